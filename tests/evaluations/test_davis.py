"""DAVIS label propagation: settings, each step against its rule, whole evaluations of small sequences, and bad input."""

import zipfile
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.data.image_files import read_mask
from densewalk.evaluations.common import label_propagation
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.davis import evaluate as davis
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.evaluations.metrics.davis import jf
from densewalk.models.backbone import Backbone
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.fixtures.dense import MeanColors
from tests.fixtures.helpers import shared

HEIGHT, WIDTH = 64, 96


def write_mask(path, labels):
    write_labels(path.parent / ".new", labels[None].astype(np.uint8))
    (path.parent / ".new/00000.png").replace(path)
    (path.parent / ".new").rmdir()


def write_sequence(root, name, *, frames=5, year=2017, objects=2, speed=4, annotations="Annotations", flat=False):
    """Textured (or `flat`) rectangles that move over noise (or grey); listed in val."""
    rng = np.random.default_rng(len(name))
    background = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    textures = rng.integers(0, 256, (objects, 32, 24, 3)).astype(np.uint8)
    if flat:
        background[:], textures[:] = 90, np.array([[220, 30, 30], [30, 30, 220]])[:objects, None, None]
    for t in range(frames):
        image, labels = background.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, texture in enumerate(textures, start=1):
            top, left = 16 * (number - 1), 40 * (number - 1) + speed * t
            image[top : top + 32, left : left + 24], labels[top : top + 32, left : left + 24] = texture, number
        path = root / "JPEGImages/480p" / name / f"{t:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)
        write_mask(root / annotations / "480p" / name / f"{t:05d}.png", labels)
    listed = root / f"ImageSets/{year}/val.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    with open(listed, "a") as file:
        file.write(name + "\n")


@pytest.fixture
def root(tmp_path):
    write_sequence(tmp_path / "DAVIS", "boat")
    write_sequence(tmp_path / "DAVIS", "kites", frames=4, objects=1)
    return tmp_path / "DAVIS"


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


def small(root, **changes):
    return DavisSettings(root=str(root), dataset="squares", **{"short_side": 64, "multiple": 16, **changes})


def run(root, backbone, out, **changes):
    return davis.evaluate(small(root, **changes), backbone, Job(out=out, state=out / "state"))


# -- whole evaluations -----------------------------------------------------------------------------------------------


def test_evaluation_scores_every_object_and_writes_predictions(root, backbone, tmp_path):
    result = run(root, backbone, tmp_path / "out")
    assert set(result.metrics) == set(DavisSettings.METRICS)
    assert (result.n, result.unit) == (3, "objects")
    assert result.metrics["J&F"] == pytest.approx((result.metrics["J"] + result.metrics["F"]) / 2)
    of_objects = [o["J"]["mean"] for objects in result.details["sequences"].values() for o in objects]
    assert result.metrics["J"] == pytest.approx(np.mean(of_objects)), "the mean is over objects, not sequences"
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    assert files == ["boat.png", *(f"boat/{i:05d}.png" for i in range(5)), "kites.png", *(f"kites/{i:05d}.png" for i in range(4))]
    with Image.open(tmp_path / "out/boat/00002.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert np.array_equal(read_mask(tmp_path / "out/boat/00000.png"), read_mask(root / "Annotations/480p/boat/00000.png"))
    assert run(root, backbone, tmp_path / "again").metrics == result.metrics


def read_labels(folder):
    return np.stack([read_mask(path).astype(np.uint8) for path in sorted(folder.glob("*.png"))])


def test_scores_are_those_of_the_written_files(root, backbone, tmp_path):
    result, settings = run(root, backbone, tmp_path), small(root).resolved()
    sequences = davis.find_sequences(settings)
    found = {s.name: read_labels(tmp_path / s.name) for s in sequences}
    first = {name: np.stack([labels[0]] * len(labels)) for name, labels in found.items()}
    scores, floors = ({s.name: davis.score(s, labels[s.name], settings) for s in sequences} for labels in (found, first))
    assert davis.summarize(scores, floors) == result
    assert result.metrics["J_copied"] == pytest.approx(100 * np.concatenate(list(floors.values()))[:, 0, 0].mean())
    assert result.metrics["J_copied"] != pytest.approx(result.metrics["J"]), "these objects move"


def test_results_of_an_earlier_run_are_not_reported_again(root, backbone, tmp_path, monkeypatch):
    """The official tool reads a CSV that it finds beside the predictions instead of scoring them."""
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    first = run(root, backbone, tmp_path / "out")
    monkeypatch.undo()
    for name in ("global_results-val.csv", "per-sequence_results-val.csv"):
        (tmp_path / "out" / name).write_text("J&F-Mean\n1.000\n")
    second = run(root, backbone, tmp_path / "out")
    assert second.metrics != first.metrics
    assert second == run(root, backbone, tmp_path / "elsewhere")


@pytest.mark.parametrize("task", ["semi-supervised", "unsupervised"])
def test_ground_truth_as_prediction_scores_100(tmp_path, backbone, monkeypatch, task):
    """Through `evaluate` itself: only the segmentation is replaced, by the masks as an evaluation writes and reads them."""
    write_sequence(tmp_path, "boat", annotations="Annotations" if task == "semi-supervised" else "Annotations_unsupervised")

    def perfect(_backbone, sequence, *_):
        write_labels(tmp_path / "gt" / sequence.name, sequence.truth())
        return read_labels(tmp_path / "gt" / sequence.name)

    monkeypatch.setattr(davis, "segment", perfect)
    metrics = run(tmp_path, backbone, tmp_path / "out", task=task).metrics
    assert [metrics[n] for n in ("J&F", "J", "F", "J_recall", "F_recall")] == [100.0] * 5
    assert metrics["J_decay"] == metrics["F_decay"] == 0


def test_of_test_dev_a_submission_is_written_and_nothing_is_scored(root, backbone, tmp_path):
    """Only the first masks are public; predictions do not depend on the others."""
    scored = run(root, backbone, tmp_path / "val")
    (root / "ImageSets/2017/val.txt").rename(root / "ImageSets/2017/test-dev.txt")
    for path in (root / "Annotations/480p").glob("*/*.png"):
        if path.stem != "00000":
            path.unlink()
    result = run(root, backbone, tmp_path / "out", split="test-dev")
    assert np.isnan(list(result.metrics.values())).all()
    assert (result.n, result.units, result.details["sequences"]) == (scored.n, None, {"boat": 2, "kites": 1})
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as archive:
        assert archive.namelist() == [*(f"boat/{i:05d}.png" for i in range(5)), *(f"kites/{i:05d}.png" for i in range(4))]
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "val" / name).read_bytes()
    (root / "Annotations/480p/kites/00000.png").unlink()
    with pytest.raises(UserError, match=r"kites/00000\.png does not exist"):
        davis.find_sequences(small(root, split="test-dev").resolved())
    with pytest.raises(ValueError, match="unsupervised has nothing to be scored with on test-dev"):
        small(root, split="test-dev", task="unsupervised")


def test_dinov3_s_preset_follows_objects(root, backbone, tmp_path):
    result = run(root, backbone, tmp_path / "out", preset="dinov3_s", short_patches=8)
    assert result.metrics["J"] > 20
    assert result.metrics != run(root, backbone, tmp_path / "dino").metrics


def test_settings_side_by_side_are_scored_as_alone_and_share_the_features_of_frames(root, backbone, tmp_path, monkeypatch):
    forwards, dense = Counter(), Backbone.dense

    def counted(self, images):
        forwards[tuple(images.shape[-2:])] += len(images)
        return dense(self, images)

    monkeypatch.setattr(Backbone, "dense", counted)
    every = [small(root), small(root, temperature=0.3), small(root, short_side=48), small(root, short_side=48, radius=2)]
    jobs = [Job(out=tmp_path / f"out{i}", state=tmp_path / f"state{i}") for i in range(4)]
    found = davis.evaluate_side_by_side(every, backbone, jobs)
    frames = davis.describe_data(every[0])["frames"]
    assert list(forwards.values()) == [frames, frames], "two sizes of the input, each frame once"
    assert not list(tmp_path.rglob("*.scratch"))
    alone = [davis.evaluate(settings, backbone, job) for settings, job in zip(every, jobs, strict=True)]
    assert sum(forwards.values()) == 6 * frames
    assert [result.metrics for result in found] == [result.metrics for result in alone]
    assert len({result.metrics["J"] for result in found}) > 1
    assert [list(r.units.ids) for r in found] == [list(alone[0].units.ids)] * 4


def test_settings_of_other_sequences_are_not_scored_side_by_side(root, backbone, tmp_path):
    every = [small(root), small(root, sequences=[davis.find_sequences(small(root))[0].name])]
    with pytest.raises(UserError, match="other sequences"):
        davis.evaluate_side_by_side(every, backbone, [Job(out=tmp_path, state=tmp_path)] * 2)


def test_a_still_video_keeps_its_mask(tmp_path, backbone):
    write_sequence(tmp_path, "still", speed=0, objects=1)
    result = run(tmp_path, backbone, tmp_path / "out")
    assert result.metrics["J"] > 75
    first_guess, *others = [read_mask(tmp_path / f"out/still/{i:05d}.png") for i in range(1, 5)]
    assert (first_guess == others[-1]).mean() > 0.95


def test_the_end_frames_are_not_scored(root):
    settings = small(root).resolved()
    sequence = davis.find_sequences(settings)[0]
    wrong_ends = sequence.truth()
    wrong_ends[[0, -1]] = 0
    assert (davis.score(sequence, wrong_ends, settings)[:, :, 0] == 1).all()


def test_unsupervised_finds_its_own_proposals(tmp_path, monkeypatch):
    write_sequence(tmp_path, "boat", annotations="Annotations_unsupervised", flat=True)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    result = run(tmp_path, tmp_path, tmp_path / "out", task="unsupervised", proposals=5)
    assert result.n == 2
    first = read_mask(tmp_path / "out/boat/00000.png")
    assert set(np.unique(first).tolist()) == set(range(1, 6))
    assert result.metrics["J"] > 80
    assert run(tmp_path, tmp_path, tmp_path / "again", task="unsupervised", proposals=5) == result


def test_unsupervised_scoring_matches_leaves_out_void_and_scores_all_frames():
    truth = np.zeros((4, 40, 60), np.uint8)
    truth[:, 5:20, 5:20], truth[:, 25:35, 30:50] = 1, 2
    swapped = np.array([0, 7, 3], np.uint8)[truth]
    assert (davis.score_unsupervised(truth, swapped)[:, :, 0] == 1).all()
    swapped[0] = 0
    assert np.allclose(davis.score_unsupervised(truth, swapped)[:, :, 0], 0.75), "the first frame counts"
    swapped = np.array([0, 7, 3], np.uint8)[truth]
    swapped[:, :, 52:] = 5  # a third proposal costs nothing
    assert (davis.score_unsupervised(truth, swapped)[:, :, 0] == 1).all()
    truth[:, 25:35, 40:50] = 255
    assert (davis.score_unsupervised(truth, swapped)[:, :, 0] == 1).all(), "what is predicted on void does not matter"
    only_one = np.where(truth == 1, np.uint8(4), np.uint8(0))
    assert davis.score_unsupervised(truth, only_one)[:, :, 0].tolist() == [[1, 1], [0, 0]]


def official_unsupervised(truth, prediction):
    """The official tool's rule in plain loops: ids up to the largest are proposals, empty ones are added up to the number of objects."""
    void = truth == 255
    truth, prediction = np.where(void, 0, truth), np.where(void, 0, prediction)
    objects = int(truth.max())
    proposals = max(objects, int(prediction.max()))
    both = np.zeros((2, proposals, objects, len(truth)))
    for p, o in np.ndindex(proposals, objects):
        pair = ((labels == number + 1).astype(np.uint8) for labels, number in ((truth, o), (prediction, p)))
        both[:, p, o] = np.stack(jf(*pair, 1))[:, 0]
    totals = both.mean(-1).mean(0)
    best = max(permutations(range(proposals), objects), key=lambda chosen: sum(totals[p, o] for o, p in enumerate(chosen)))
    return np.stack([both[:, p, o].mean(-1) for o, p in enumerate(best)])


def scene(kind):
    """Truth and prediction of six frames."""
    truth, prediction = np.zeros((2, 6, 24, 32), np.uint8)
    truth[:, 2:8, 2:8] = 1
    truth[2:5, 10:18, 10:20] = 2  # on three of six frames
    truth[5:, 12:20, 24:30] = 3  # on the last one
    if kind == "one proposal for three objects":
        prediction[:, 2:8, 2:9] = 1
    elif kind == "none":
        pass
    elif kind == "the only proposal is on the object that is seldom there":
        prediction[5:, 12:20, 24:30] = 1
    elif kind == "a number is left out":
        prediction[:, 2:8, 2:8], prediction[2:5, 10:18, 10:20] = 1, 4
    elif kind == "more proposals than objects":
        for number in range(5):
            prediction[:, 4 * number : 4 * number + 4] = number + 1
    elif kind == "as many":
        prediction[:, 2:8, 2:8], prediction[:, 10:18, 10:20], prediction[:, 20:] = 3, 1, 2
    elif kind == "an object fills the frame":
        truth[:2], prediction[:, 2:8, 2:8] = 2, 1
    elif kind == "void":
        truth[:3, 3:12], prediction[:, 2:8, 2:9] = 255, 1
    return truth, prediction


@pytest.mark.parametrize(
    "kind",
    [
        "one proposal for three objects",
        "none",
        "the only proposal is on the object that is seldom there",
        "a number is left out",
        "more proposals than objects",
        "as many",
        "an object fills the frame",
        "void",
    ],
)
def test_unsupervised_scores_are_the_official_tools(kind):
    truth, prediction = scene(kind)
    found = davis.score_unsupervised(truth, prediction)[:, :, 0]
    assert np.abs(found - official_unsupervised(truth, prediction)).max() <= 1e-12
    if kind == "none":
        assert found[:, 0].tolist() == pytest.approx([0, 1 / 2, 5 / 6]), "an absent object scores 1 with an empty proposal"


def test_many_objects_and_few_proposals_are_scored():
    cells = np.arange(1, 51, dtype=np.uint8).reshape(5, 10).repeat(4, 0).repeat(4, 1)
    truth, prediction = np.stack([cells] * 3), np.stack([np.where(cells <= 14, cells, 0)] * 3)
    truth[0] = np.where(cells > 40, 0, cells)
    found = davis.score_unsupervised(truth, prediction)[:, 0, 0]
    assert found.tolist() == pytest.approx([1] * 14 + [0] * 26 + [1 / 3] * 10)


def test_2016_merges_all_objects_and_takes_255_for_one(tmp_path, backbone):
    write_sequence(tmp_path, "boat", year=2016)
    for path in (tmp_path / "Annotations/480p/boat").glob("*.png"):
        labels = read_mask(path)
        write_mask(path, np.where(labels == 2, 255, labels))
    (sequence,) = davis.find_sequences(small(tmp_path, year=2016).resolved())
    assert np.unique(sequence.truth()).tolist() == [0, 1]
    assert sequence.truth()[0].sum() == 2 * 32 * 24
    assert run(tmp_path, backbone, tmp_path / "out", year=2016).n == 1


def test_void_is_background_in_2017(root):
    path = root / "Annotations/480p/boat/00001.png"
    labels = read_mask(path)
    write_mask(path, np.where(labels == 2, 255, labels))
    assert np.unique(davis.find_sequences(small(root).resolved())[0].mask(1)).tolist() == [0, 1]


# -- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "patch", "expected"),
    [
        ((480, 854), 16, (480, 832)),
        ((480, 854), 8, (480, 832)),
        ((480, 854), 14, (476, 826)),
        ((854, 480), 16, (832, 480)),
        ((480, 910), 16, (480, 896)),
        ((480, 480), 16, (480, 448)),
    ],
)
def test_input_size(frame, patch, expected):
    assert label_propagation.input_size(*frame, DavisSettings(root=".", dataset="x"), patch) == expected


def test_input_is_normalized_with_the_right_standard_deviations():
    white = np.full((32, 48, 3), 255, np.uint8)
    for compat, red in (("paper", 0.229), ("released", 0.228)):
        x = label_propagation.prepare_frame(white, (16, 32), red_std=DavisSettings(root=".", dataset="x", compat=compat).resolved().red_std)
        assert x.shape == (1, 3, 16, 32)
        assert torch.allclose(x[0, :, 0, 0], torch.tensor([0.515 / red, 0.544 / 0.224, 0.594 / 0.225]), atol=1e-6)
    red_first = np.zeros((32, 48, 3), np.uint8)
    red_first[..., 0] = 255
    assert label_propagation.prepare_frame(red_first, (32, 48))[0, :, 0, 0].argmax() == 0


def test_small_objects_survive_the_reduced_mask_or_are_lost():
    mask = np.zeros((64, 64), np.uint8)
    mask[:40, :40] = 1
    mask[49:53, 49:52] = 2  # no patch centre, sampled at 8, 24, 40, 56
    mask[45:48, 1:4] = 3
    assert np.unique(label_propagation.reduce_mask(mask, (4, 4), keep_small_objects=False)).tolist() == [0, 1]
    kept = label_propagation.reduce_mask(mask, (4, 4), keep_small_objects=True)
    assert (kept[3, 3], kept[2, 0]) == (2, 3)
    assert label_propagation.one_hot(kept).shape == (1, 4, 16)


def test_small_objects_do_not_take_patches_from_each_other_nor_patches_they_do_not_touch():
    mask = np.zeros((32, 32), np.uint8)
    mask[1, 1], mask[3, 3] = 1, 2
    assert label_propagation.reduce_mask(mask, (2, 2), keep_small_objects=True).tolist() == [[1, 0], [0, 0]]
    mask[4, 15:17] = 2
    assert label_propagation.reduce_mask(mask, (2, 2), keep_small_objects=True).tolist() == [[1, 2], [0, 0]]
    mask[6:12, 6:12] = 1  # now a patch's centre, and the only one
    assert label_propagation.reduce_mask(mask, (2, 2), keep_small_objects=True).tolist() == [[1, 2], [0, 0]]


def test_stretch_parity_with_dino():
    values = np.load(shared("parity/davis_propagation.npz"))
    x, y = torch.from_numpy(values["norm_mask/x"]), torch.from_numpy(values["norm_mask/y"])
    assert torch.equal(label_propagation.normalize_channels(x, constant_channel_wins=True).isnan(), y.isnan())
    assert torch.allclose(label_propagation.normalize_channels(x, constant_channel_wins=True), y, atol=1e-6, equal_nan=True)


def test_a_constant_channel_no_longer_wins_everywhere():
    """0 / 0 of a channel that is the same everywhere: torch's argmax takes NaN for the largest value."""
    object_1 = torch.zeros(4, 5)
    object_1[1, 2], object_1[1, 3] = 0.8, 0.4
    channels = torch.stack([torch.full((4, 5), 0.3), object_1])
    assert label_propagation.normalize_channels(channels, constant_channel_wins=True).argmax(dim=0).sum() == 0
    fixed = label_propagation.normalize_channels(channels, constant_channel_wins=False)
    assert not fixed.isnan().any()
    assert fixed.argmax(dim=0).nonzero().tolist() == [[1, 2], [1, 3]]


@pytest.mark.parametrize("patch", [8, 16])
def test_the_window_counts_patches_of_any_size(root, monkeypatch, patch):
    """12 patches to each side are 192 px at patch 16 and 96 px at patch 8, in the released code, too."""
    seen = []
    monkeypatch.setattr(label_propagation, "follow", lambda frames, first, rule, later: (seen.append(rule), iter([]))[1])
    sequence = davis.find_sequences(small(root).resolved())[0]
    davis.segment(create(f"vit_nano_patch{patch}", seed=0), sequence, small(root).resolved(), 0, Progress("", 1))
    assert [(rule.grid, rule.radius, rule.top_k, rule.context) for rule in seen] == [((64 // patch, 96 // patch), 12, 5, 7)]


def test_channels_are_stretched_after_they_were_interpolated():
    """Interpolation flattens peaks: stretched before it, a channel would no longer reach 1."""
    soft = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) ** 4
    large = F.interpolate(soft[None].double(), size=(10, 14), mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2)).tolist(), large.amax((1, 2)).tolist()
    expected = [[max(range(3), key=lambda c: (float(large[c, i, j]) - low[c]) / (high[c] - low[c])) for j in range(14)] for i in range(10)]
    assert label_propagation.upsample_labels(soft, (10, 14), (10, 14)).tolist() == expected
    before = label_propagation.normalize_channels(soft, constant_channel_wins=False)
    assert F.interpolate(before[None], size=(10, 14), mode="bilinear")[0].argmax(0).tolist() != expected


def test_objects_are_those_of_the_first_mask():
    truth = np.zeros((5, 20, 20), np.uint8)
    truth[:, 2:8, 2:8] = 1
    truth[2:, 10:16, 10:16] = 2
    assert davis.score_semi_supervised(truth, truth).shape == (1, 2, 3)


# -- settings --------------------------------------------------------------------------------------------------------


def test_protocol_names():
    paper = DavisSettings(root=".", dataset="DAVIS-2017")
    released = DavisSettings(root="elsewhere", dataset="DAVIS-2017", compat="released")
    assert paper.protocol != released.protocol
    assert released.published_protocol == "label propagation (DINO)"
    assert paper.published_protocol is None
    for change in ({"top_k": 7}, {"split": "train"}, {"year": 2016}, {"red_std": 0.229}, {"sequences": ["a"]}, {"short_side": 240}):
        changed = released.model_copy(update=change)
        assert changed.published_protocol is None, change
        assert changed.protocol != released.protocol, change
    assert released.model_copy(update={"dataset": "squares"}).published_protocol is None


def test_radius_zero_is_no_window_in_hash_and_name():
    none, zero = (DavisSettings(root=".", dataset="x", radius=radius) for radius in (None, 0))
    assert zero == none
    assert "top 5 within any distance" in zero.protocol
    assert zero.protocol != DavisSettings(root=".", dataset="x").protocol


def test_switches_follow_compat_unless_set():
    released = DavisSettings(root=".", dataset="x", compat="released", red_std=0.229).resolved()
    assert (released.red_std, released.keep_small_objects, released.constant_channel_wins) == (0.229, False, True)
    assert DavisSettings(root=".", dataset="x").resolved().keep_small_objects is True


# -- bad input -------------------------------------------------------------------------------------------------------


def _break_list(root):
    (root / "ImageSets/2017/val.txt").unlink()


def _break_sequence(root):
    for path in (root / "JPEGImages/480p/kites").iterdir():
        path.unlink()
    (root / "JPEGImages/480p/kites").rmdir()


def _break_mask(root):
    (root / "Annotations/480p/kites/00002.png").unlink()


def _colour_mask(root):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "Annotations/480p/boat/00000.png")


def _grey_mask(root):
    path = root / "Annotations/480p/boat/00000.png"
    Image.fromarray(read_mask(path).astype(np.uint8) * 38).save(path)


def _empty_mask(root):
    write_mask(root / "Annotations/480p/boat/00000.png", np.zeros((HEIGHT, WIDTH)))


def _other_size(root):
    write_mask(root / "Annotations/480p/boat/00003.png", np.ones((HEIGHT, WIDTH + 2)))


def _damaged(root):
    (root / "Annotations/480p/boat/00003.png").write_bytes(b"\x89PNG nothing more")


def _two_frames(root):
    for i in (2, 3):
        (root / f"JPEGImages/480p/kites/{i:05d}.jpg").unlink()
        (root / f"Annotations/480p/kites/{i:05d}.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_list, r"val\.txt does not exist"),
        (_break_sequence, r"JPEGImages/480p/kites does not exist"),
        (_break_mask, r"kites/00002\.png does not exist"),
        (_colour_mask, r"boat/00000\.png is a color image"),
        (_grey_mask, r"boat/00000\.png has the ids \[38, 76\].*without gaps"),
        (_empty_mask, r"boat/00000\.png has no object"),
        (_other_size, r"boat/00003\.png is 98x64, but .*00003\.jpg is 96x64"),
        (_damaged, r"boat/00003\.png cannot be read"),
        (_two_frames, r"kites has 2 frames"),
    ],
)
def test_bad_data_is_refused_with_the_file_named(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        davis.evaluate(small(root), root / "no backbone is loaded before the data are checked", Job(out=root, state=root))


def test_unknown_sequences_are_refused(root):
    with pytest.raises(UserError, match=r"does not list swan; allowed: boat, kites"):
        davis.find_sequences(small(root, sequences=["swan"]).resolved())


# -- real sequences ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_floors_of_real_sequences():
    """Copying the first mask to every frame: J as measured independently."""
    floors = {"blackswan": 0.545, "car-shadow": 0.408, "libby": 0.304, "motocross-jump": 0.154, "schoolgirls": 0.353}
    for split in ("train", "val"):
        settings = small(shared("data/davis"), split=split).resolved()
        for sequence in davis.find_sequences(settings):
            copied = np.repeat(sequence.mask(0)[None], len(sequence), axis=0)
            assert davis.score(sequence, copied, settings)[:, 0, 0].mean() == pytest.approx(floors[sequence.name], abs=5e-4)
