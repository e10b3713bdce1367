"""Box tracking: scores against a loop over frames, and squares that are easy to follow."""

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.boxes import Track, read_tracks
from densewalk.evaluations.common import label_propagation
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.tracking import evaluate as tracking
from densewalk.evaluations.tracking.settings import TrackingSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.fixtures.dense import MeanColors
from tests.fixtures.layouts import write_got10k


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


def small(root, **changes):
    return TrackingSettings(root=str(root), dataset="squares", **{"short_side": 64, "multiple": 16, **changes})


@pytest.mark.parametrize("box", ["component", "quantile"])
def test_follows_a_square_by_its_color(tmp_path, monkeypatch, box):
    write_got10k(tmp_path)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    result = tracking.evaluate(small(tmp_path, box=box), tmp_path, Job(out=tmp_path / "out", state=tmp_path))
    assert set(result.metrics) == set(TrackingSettings.METRICS)
    assert (result.n, result.unit) == (2 * 3, "frames"), "neither the first frames nor the hidden ones"
    assert result.metrics["AO"] > 80
    assert result.metrics["SR_50"] == 100
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"GOT-10k_Val_00000{i}.{kind}" for i in (1, 2) for kind in ("png", "txt")]
    written = np.loadtxt(tmp_path / "out/GOT-10k_Val_000001.txt", delimiter=",")
    assert written.shape == (5, 4)
    assert written[0].tolist() == [8, 16, 24, 24]


def test_whole_evaluation_twice(tmp_path, backbone):
    write_got10k(tmp_path)
    job = Job(out=tmp_path / "out", state=tmp_path)
    one = tracking.evaluate(small(tmp_path), backbone, job)
    assert tracking.evaluate(small(tmp_path), backbone, job) == one
    assert tracking.evaluate(small(tmp_path, sequences=["GOT-10k_Val_000002"]), backbone, job).n == 3


def test_scores_equal_the_loop_and_pool_frames():
    rng = np.random.default_rng(0)
    overlaps, pooled = {}, []
    for name, frames in (("short", 4), ("long", 9)):
        corners = rng.uniform(-10, 60, (2, frames, 2, 2))
        truth, found = (np.concatenate([c.min(1), c.max(1)], axis=1) for c in corners)
        visible = rng.random(frames) < 0.7
        track = Track(name, [], truth, visible, (50, 40))
        for t in range(1, frames):
            if visible[t]:
                pooled.append(loop_iou(truth[t], found[t]))
        overlaps[name] = tracking.score(track, found)
    metrics = tracking.summarize(overlaps).metrics
    assert metrics["AO"] == pytest.approx(100 * np.mean(pooled))
    assert metrics["SR_50"] == pytest.approx(100 * np.mean([v > 0.5 for v in pooled]))
    assert metrics["AO_sequences"] == pytest.approx(50 * sum(values.mean() for values in overlaps.values()))


def loop_iou(one, other):
    """Both boxes clipped to 50 x 40."""
    (a0, b0, a1, b1), (c0, d0, c1, d1) = (
        [min(max(v, 0), limit) for v, limit in zip(box, (50, 40, 50, 40), strict=True)] for box in (one, other)
    )
    inside = max(0, min(a1, c1) - max(a0, c0)) * max(0, min(b1, d1) - max(b0, d0))
    union = (a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - inside
    return inside / union if union else 0.0


def test_success_is_more_than_the_threshold():
    assert tracking.rates(np.array([0.5, 0.75, 0.76])) == pytest.approx({"AO": 67.0, "SR_50": 200 / 3, "SR_75": 100 / 3})


def test_the_first_box_is_filled_where_it_covers_pixels_centers():
    mask = tracking.rasterize(np.array([1.4, 0.0, 3.6, 1.5]), 5, 3)
    assert mask.tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert tracking.rasterize(np.array([-4.0, -4.0, 2.0, 9.0]), 3, 2).tolist() == [[1, 1, 0], [1, 1, 0]]


def test_box_of_a_mask():
    mask, before = np.zeros((20, 30), bool), np.array([1.0, 2, 3, 4])
    assert tracking.box_of(mask, small("."), before).tolist() == [1, 2, 3, 4], "nothing found: where it was"
    mask[4:14, 5:25] = True
    mask[19, 29] = True
    assert tracking.box_of(mask, small(".", box="component"), before).tolist() == [5, 4, 25, 14]
    assert tracking.box_of(mask, small(".", box="quantile", tail=0.0), before).tolist() == [5, 4, 30, 20]
    assert np.allclose(tracking.box_of(mask, small(".", box="quantile", tail=0.05), before), [5, 4, 25, 14], atol=0.3)


def test_quantiles_of_a_uniform_bar_are_its_ends():
    assert tracking.quantiles(np.array([0, 0, 5.0, 5, 5, 5, 0]), 0.1) == pytest.approx((2, 6))


def test_bad_input_is_named_before_the_backbone_is_loaded(tmp_path):
    write_got10k(tmp_path)
    job = Job(out=tmp_path / "out", state=tmp_path)
    folder = tmp_path / "val/GOT-10k_Val_000002"
    rows = (folder / "groundtruth.txt").read_text().splitlines()
    for first, message in (
        ("200,200,5,5", "line 1: the box 200, 200, 205, 205 leaves the frame of 96x64"),
        ("8,16,0,0", "line 1: the box covers no pixel"),
    ):
        (folder / "groundtruth.txt").write_text("\n".join([first, *rows[1:]]))
        with pytest.raises(UserError, match=message):
            tracking.evaluate(small(tmp_path), tmp_path / "none", job)
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "cover.label").write_text("8\n0\n0\n0\n0\n")
    with pytest.raises(UserError, match="GOT-10k_Val_000002 shows its object in no frame but the first"):
        tracking.evaluate(small(tmp_path), tmp_path / "none", job)


def test_unreadable_and_misshapen_frames_are_named(tmp_path, backbone):
    write_got10k(tmp_path)
    job = Job(out=tmp_path / "out", state=tmp_path)
    path = tmp_path / "val/GOT-10k_Val_000001/00000003.jpg"
    Image.new("RGB", (50, 40)).save(path)
    with pytest.raises(UserError, match=r"00000003\.jpg is 50x40, but .*00000001\.jpg is 96x64"):
        tracking.evaluate(small(tmp_path), backbone, job)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"00000003\.jpg cannot be read"):
        tracking.evaluate(small(tmp_path), backbone, job)


def test_protocol_is_said_to_be_ours():
    settings = small(".")
    assert "densewalk's own" in settings.protocol
    assert settings.published_protocol is None
    for change in (
        {"box": "component"},
        {"tail": 0.1},
        {"top_k": 7},
        {"radius": None},
        {"split": "train"},
        {"context": 3},
        {"temperature": 0.2},
    ):
        assert settings.model_copy(update=change).protocol != settings.protocol


def test_settings_reach_the_propagation(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(label_propagation, "follow", lambda frames, first, rule, *entering: (seen.append(rule), iter([]))[1])
    write_got10k(tmp_path)
    settings = small(tmp_path, top_k=9, radius=None, temperature=0.3, context=4)
    tracking.propagate_box(MeanColors(), read_tracks(tmp_path, "val", None)[0], settings, Progress("test", 1))
    assert (seen[0].top_k, seen[0].radius, seen[0].temperature, seen[0].context) == (9, None, 0.3, 4)
