"""Time-Tuning's propagation score: its formula as loops, the release's number, and whole evaluations of small videos."""

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.video_segmentation import evaluate as video_segmentation
from densewalk.evaluations.video_segmentation import propagation
from densewalk.evaluations.video_segmentation.propagation import object_scores, propagation_score
from densewalk.evaluations.video_segmentation.settings import ClipPropagationSettings
from tests.evaluations.test_bad_input import write_davis
from tests.fixtures.dense import MeanColors
from tests.fixtures.helpers import shared


def settings_for(root, **changes):
    return ClipPropagationSettings(root=str(root), dataset="squares", **{"layout": "davis", "size": 64, **changes})


@pytest.fixture(scope="module")
def labels():
    """Truth and prediction [clips, frames, height, width]: a lost object, one that comes back, one that no truth shows."""
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(0, 4, (2, 3, 5, 6, 7))
    prediction[0, 2:][prediction[0, 2:] == 1] = 0
    prediction[1, 2][prediction[1, 2] == 2] = 0
    truth[2][truth[2] == 3] = 0
    return truth, prediction


def as_loops(truth, prediction, *, running, skip):
    """The formula pixel by pixel."""
    values = []
    for g, p in zip(truth.tolist(), prediction.tolist(), strict=True):
        shown = sorted({label for frame in p for row in frame for label in row} - {0})
        for o in shown:
            total, a, b, frames = 0.0, 0, 0, 0
            for t in range(len(p)):
                pairs = [(x, y) for i in range(6) for x, y in zip(p[t][i], g[t][i], strict=True)]
                both, either = sum(x == y == o for x, y in pairs), sum(o in pair for pair in pairs)
                a, b = (a + both, b + either) if running else (both, either)
                total += a / max(b, 1e-8)
                frames += any(x == o for x, _ in pairs) if skip else either > 0
            values.append(total / frames)
    return sum(values) / len(values)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_the_score_is_the_formula(labels, running, skip):
    found = propagation_score(*labels, running_sums=running, skip_missed_frames=skip)
    assert found == pytest.approx(as_loops(*labels, running=running, skip=skip), abs=1e-12)


def test_the_score_equals_the_release():
    values = np.load(shared("parity/timetuning_eval.npz"))
    truth = values["annotations"]
    moved = np.roll(truth, 1, axis=-1)
    released = ClipPropagationSettings(root=".", dataset="x", layout="davis", compat="released").resolved()
    options = {"running_sums": released.running_sums, "skip_missed_frames": released.skip_missed_frames}
    assert propagation_score(truth, moved, **options) == pytest.approx(float(values["propagation_score"]), abs=1e-12)
    assert propagation_score(truth, moved) != pytest.approx(float(values["propagation_score"]), abs=1e-3)


def test_a_lost_object_costs_its_frames_unless_released():
    truth, prediction = np.ones((2, 4, 3, 3), np.int64)
    prediction[1:] = 0
    assert object_scores(truth, prediction) == {1: 0.25}
    assert object_scores(truth, prediction, skip_missed_frames=True) == {1: 1.0}


def evaluate(root, out, monkeypatch, **changes):
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    return video_segmentation.evaluate(settings_for(root, **changes), root, Job(out=out, state=out))


def test_objects_of_one_color_are_followed(tmp_path, monkeypatch):
    write_davis(tmp_path)
    result = evaluate(tmp_path, tmp_path / "out", monkeypatch, clip_frames=3)
    assert (result.n, result.unit, result.details["clips"]) == (8, "objects", 4)  # five frames: clips of 3 and 2, of two objects each
    assert result.metrics["propagation_score"] > 60
    assert result.metrics["propagation_score_copied"] == 100, "nothing moves"
    assert result.units is not None
    assert result.units.ids[:2] == ["boat/00000/1", "boat/00000/2"]
    assert list(result.units.clusters).count("boat") == 4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["boat.png", "kites.png"]


def test_perfect_predictions_score_100(tmp_path, monkeypatch):
    write_davis(tmp_path)

    def truth(view, first, settings):
        """Two objects a sequence: the data set's numbers 1, 2 and 3, 4."""
        return np.where(view.labels > 0, (view.labels - 1) % 2 + 1, 0).astype(np.uint8)

    monkeypatch.setattr(propagation, "propagate_clip", truth)
    assert evaluate(tmp_path, tmp_path / "out", monkeypatch).metrics["propagation_score"] == 100


def test_videos_without_objects_are_refused_before_the_backbone_is_loaded(tmp_path):
    write_davis(tmp_path)
    for name in ("boat", "kites"):
        write_labels(tmp_path / "Annotations/480p" / name, np.zeros((5, 64, 96), np.uint8))
    with pytest.raises(UserError, match=r"no first frame of the 2 clips in .* has an object"):
        video_segmentation.evaluate(settings_for(tmp_path), tmp_path / "no.safetensors", Job(out=tmp_path, state=tmp_path))


def test_settings():
    paper, released = (settings_for(".", compat=compat) for compat in ("paper", "released"))
    assert paper.frames == 25
    assert paper.protocol != released.protocol
    assert (released.resolved().running_sums, paper.resolved().skip_missed_frames) == (True, False)
