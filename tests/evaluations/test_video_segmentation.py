"""Unsupervised video segmentation: the release's scores, clusters that are there, and a whole evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.data.settings import ImagesSettings
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.video_segmentation import clips
from densewalk.evaluations.video_segmentation import evaluate as video_segmentation
from densewalk.evaluations.video_segmentation.clips import find_clips
from densewalk.evaluations.video_segmentation.evaluate import (
    absent_background,
    cluster_maps,
    frame_counts,
    interpolate_pixels,
    match_and_score,
    sample_pixels,
)
from densewalk.evaluations.video_segmentation.settings import VideoSegmentationSettings
from densewalk.jobs import evaluate as evaluate_job
from densewalk.jobs import train as train_job
from densewalk.jobs.prepare import prepare_images
from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center
from densewalk.results.tables import read_table, write_table
from densewalk.study.config import parse_study
from densewalk.training.execution import Execution
from tests.fixtures.dense import MeanColors
from tests.fixtures.helpers import shared


def settings_for(root, **changes):
    defaults = {"layout": "davis", "size": 48, "dataset_size": 24, "clip_frames": 2, "clusters": 4, "dataset_clusters": 6}
    return VideoSegmentationSettings(root=str(root), dataset="squares", **{**defaults, **changes})


@pytest.fixture
def root(tmp_path):
    """Two videos, flat colors: one object in the first, two in the second."""
    for name, objects in (("one", 1), ("two", 2)):
        masks = np.zeros((3, 60, 90), np.uint8)
        for number in range(1, objects + 1):
            masks[:, 10:50, 20 * number : 20 * number + 16] = number
        write_labels(tmp_path / "Annotations/480p" / name, masks)
        (tmp_path / "JPEGImages/480p" / name).mkdir(parents=True)
        for i, mask in enumerate(masks):
            colors = np.array([[20, 20, 20], [220, 40, 40], [40, 220, 220]], np.uint8)
            Image.fromarray(colors[mask]).save(tmp_path / "JPEGImages/480p" / name / f"{i:05d}.jpg", quality=95)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("one\ntwo\n")
    return tmp_path


def evaluate(root, out, monkeypatch, **changes):
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    return video_segmentation.evaluate(settings_for(root, **changes), root, Job(out=out, state=out))


@pytest.mark.parametrize("case", range(5))
def test_parity_of_scores(case):
    values = np.load(shared("parity/timetuning_eval.npz"))
    labels = torch.from_numpy(values["annotations"])
    maps = torch.from_numpy(values[f"cases/{case}/cluster_maps"].astype(np.int64))
    how = "many_to_one" if values[f"cases/{case}/many_to_one"] else "hungarian"
    groups = {"frame-wise": (12, 1), "sample-wise": (3, 4), "dataset-wise": (1, 12)}[str(values[f"cases/{case}/protocol"])]
    labels, maps = labels.view(*groups, 56, 56), maps.view(*groups, 56, 56)
    scores = [match_and_score(t, m, int(maps.max()) + 1, how)[0] for t, m in zip(labels, maps, strict=True)]
    assert np.mean(scores) == pytest.approx(float(values[f"cases/{case}/score"]), abs=1e-6)


@pytest.mark.parametrize("case", [0, 3])
def test_parity_of_clusters(case):
    """From features to scores: principal components, interpolation and k-means draw other random points than the release's."""
    values = np.load(shared("parity/timetuning_eval.npz"))
    groups = {"frame-wise": (12, 1), "dataset-wise": (1, 12)}[str(values[f"cases/{case}/protocol"])]
    features = torch.from_numpy(values["features"])
    components = PrincipalComponents(features.flatten(0, 2)).project(features, 50).view(*groups, 196, -1)
    labels, theirs = (
        torch.from_numpy(values[n].astype(np.int64)).view(*groups, 56, 56) for n in ("annotations", f"cases/{case}/cluster_maps")
    )
    scores, agreement = [], []
    for own, truth, expected in zip(components, labels, theirs, strict=True):
        maps = cluster_maps(own, (14, 14), 56, 4, settings_for("."), seed=0)
        scores.append(match_and_score(truth, maps, 4, "hungarian")[0])
        agreement.append(match_and_score(expected, maps, 4, "hungarian")[0])
    assert np.mean(scores) == pytest.approx(float(values[f"cases/{case}/score"]), abs=2e-3)
    assert np.mean(agreement) > 0.99


@pytest.mark.parametrize("how", ["hungarian", "many_to_one"])
def test_matching_undoes_a_renumbering(how):
    labels = torch.tensor([[[0, 0, 7], [9, 9, 7]]])
    renumbered = torch.tensor([[[2, 2, 0], [1, 1, 0]]])
    value, matched = match_and_score(labels, renumbered, 3, how)
    assert value == 1
    assert torch.equal(matched, labels)


def test_a_cluster_without_a_label_is_background():
    labels = torch.tensor([[[0, 0, 0, 7]]])
    value, matched = match_and_score(labels, torch.tensor([[[0, 0, 1, 2]]]), 3, "hungarian")
    assert matched.tolist() == [[[0, 0, 0, 7]]]
    assert value == 1


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_numbers_of_labels_are_of_no_matter(numbers):
    """Two labels, with background among them or not, and two clusters: one found half of its label, the other none of its own."""
    large, small = numbers
    labels = torch.full((1, 10, 10), large)
    labels[0, 0, :2] = small
    maps = torch.zeros(1, 10, 10, dtype=torch.int64)
    maps[0, 9, :8] = 1
    value, _ = match_and_score(labels, maps, 2, "hungarian")
    assert value == pytest.approx((90 / 100 + 0) / 2)
    statistic = frame_counts(labels, maps, 2).matched_iou(matching="hungarian", void=absent_background(labels))
    assert statistic.of_weights(np.ones((1, 1)))[0] == pytest.approx(100 * value)


def all_pixels(components, grid, size):
    """The features of every pixel of a frame."""
    return F.interpolate(components.T.unflatten(1, grid)[None], (size, size), mode="bilinear")[0].flatten(1).T


def test_pixels_are_interpolated():
    components, chosen = torch.randn(6, 3), torch.tensor([0, 7, 8, 21, 63])
    assert torch.allclose(interpolate_pixels(components, (2, 3), 8, chosen), all_pixels(components, (2, 3), 8)[chosen], atol=1e-6)


def test_cluster_maps_equal_those_of_all_pixels():
    """Few enough pixels that k-means sees all of them."""
    components, settings = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0)), settings_for(".")
    maps = cluster_maps(components, (3, 4), 12, 4, settings, seed=7)
    features = torch.cat([all_pixels(frame, (3, 4), 12) for frame in components])
    centers = kmeans(features, 4, seed=7, iterations=settings.iterations, restarts=settings.restarts)
    assert torch.equal(maps.flatten(), nearest_center(features, centers))


def test_sampled_pixels_are_distinct_and_spread():
    chosen = sample_pixels(5, 10, 300, seed=0)
    assert sum(len(c) for c in chosen) == 300
    for own in chosen:
        assert len(own.unique()) == len(own)
        assert 30 < len(own) <= 100
        assert own.min() >= 0
        assert own.max() < 100
    assert [len(c) for c in sample_pixels(2, 3, 100, seed=0)] == [9, 9]


def test_cluster_maps_of_clips_name_the_same_thing_alike():
    halves = torch.zeros(2, 16, 3)
    halves[:, 8:] = 5
    maps = cluster_maps(halves, (4, 4), 8, 2, settings_for("."), seed=0)
    assert torch.equal(maps[0], maps[1])
    assert maps[0, 0, 0] != maps[0, 7, 0]
    assert (maps[0, :3] == maps[0, 0, 0]).all()


def test_clips_and_numbers_of_the_data_set(root):
    found = find_clips(settings_for(root))
    assert [(c.sequence.name, c.numbers, c.offset) for c in found] == [
        ("one", [0, 1], 0),
        ("one", [2], 0),
        ("two", [0, 1], 1),
        ("two", [2], 1),
    ]


def test_objects_of_one_color_are_found(root, tmp_path, monkeypatch):
    result = evaluate(root, tmp_path / "out", monkeypatch)
    assert set(result.metrics) == set(VideoSegmentationSettings.METRICS)
    assert (result.n, result.details["clips"]) == (6, 4)
    assert min(result.metrics[n] for n in ("F", "C", "F_over", "C_over")) > 80
    # in the data set, objects 1 of both videos look alike but are two classes: one of them cannot be found
    assert result.metrics["D"] < 75
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one.png", "two.png"]
    assert Image.open(tmp_path / "out/two.png").size == (96, 96)
    assert evaluate(root, tmp_path / "again", monkeypatch) == result


def test_random_features_score_less(root, tmp_path, monkeypatch):
    right = evaluate(root, tmp_path / "a", monkeypatch).metrics
    noise = torch.Generator().manual_seed(0)
    monkeypatch.setattr(clips, "normalize", lambda x, statistics: torch.randn(x.shape, generator=noise))
    wrong = evaluate(root, tmp_path / "b", monkeypatch).metrics
    assert wrong["F"] < right["F"] - 20
    assert wrong["C"] < right["C"] - 20


# -- as a column of a study --------------------------------------------------------------------------------------------


def study_of(root, **settings):
    """A Time-Tuning of seconds on the frames of the two videos, scored by their masks."""
    training = {"steps": 2, "batch_size": 2, "size": 32, "frames": 3, "head_widths": [16], "prototypes": 6}
    evaluation = {"root": str(root), "dataset": "squares", "layout": "davis", "size": 32, "dataset_size": 16, "restarts": 1}
    evaluation |= {"clip_frames": 2, "clusters": 3, "dataset_clusters": 5}
    return parse_study(
        {
            "study": "squares",
            "images": {"frames": {"source": str(root / "JPEGImages/480p"), "layout": "sequences"}},
            "runs": {
                "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
                "tuned": {"method": "timetuning", "init": "start", "data": ["frames"], "settings": training},
            },
            "evaluations": {"clusters": {"protocol": "video_segmentation", "settings": {**evaluation, **settings}}},
        }
    )


def test_a_study_trains_scores_and_tabulates(root, tmp_path):
    study, execution = study_of(root), Execution(device="cpu", workers=0)
    results = tmp_path / "results"
    prepare_images(ImagesSettings(source=str(root / "JPEGImages/480p"), layout="sequences"), tmp_path / "frames.json")
    start = results / "start/s0/backbone.safetensors"
    train_job.make_backbone(study.run_spec("start", 0), None, [], tmp_path / "state/a", results / "start/s0", execution)
    train_job.make_backbone(
        study.run_spec("tuned", 0), start, [tmp_path / "frames.json"], tmp_path / "state/b", results / "tuned/s0", execution
    )
    assert (results / "tuned/s0/training/prototypes.png").is_file()
    for run, seed, evaluation in study.evaluation_jobs():
        folder = results / run / f"s{seed}"
        spec = study.evaluation_spec(run, seed, evaluation)
        evaluate_job.evaluate(spec, folder / "backbone.safetensors", tmp_path / "state" / run, folder / f"{evaluation}.json", execution)
        assert (folder / evaluation / "two.png").is_file()
    records = sorted(results.glob("*/s0/clusters.json"))
    write_table(records, study.task_tables[0], tmp_path / "table.csv")
    table = read_table(tmp_path / "table.csv")
    assert study.task_tables == ["video_segmentation"]
    assert list(table["run"]) == ["start", "tuned"]
    assert list(table["n"]) == ["6", "6"]
    assert all(0 < float(table[metric][0]) <= 100 for metric in VideoSegmentationSettings.METRICS)
    assert not table["protocol"][0].startswith("unsupervised video segmentation, 2017 val, clips of 16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test-dev"}, r"list .*ImageSets/2017/test-dev.txt does not exist; allowed: val"),
        ({"sequences": ["one", "three"]}, r"does not list three; allowed: one, two"),
        ({"resolution": "1080p"}, r"folder .*JPEGImages/1080p/one does not exist"),
        ({"layout": "youtube_vos"}, r"YouTube-VOS's folder .*train does not exist"),
        ({"root": "/nowhere"}, r"DAVIS's folder /nowhere does not exist"),
    ],
)
def test_missing_data_are_named_before_the_backbone_is_loaded(root, tmp_path, changes, message):
    settings = settings_for(root).model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        video_segmentation.evaluate(settings, tmp_path / "no.safetensors", Job(out=tmp_path, state=tmp_path))


@pytest.mark.parametrize("damage", ["no mask", "colors", "size", "truncated"])
def test_damaged_masks_are_named_before_the_backbone_is_loaded(root, tmp_path, damage):
    mask = root / "Annotations/480p/two/00001.png"
    if damage == "no mask":
        mask.unlink()
    elif damage == "truncated":
        mask.write_bytes(mask.read_bytes()[:-40])
    else:
        shape = (60, 90, 3) if damage == "colors" else (60, 80)
        Image.fromarray(np.zeros(shape, np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"two/00001\.png"):
        video_segmentation.evaluate(settings_for(root), tmp_path / "no.safetensors", Job(out=tmp_path, state=tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "davos"}, "evaluations.clusters.settings.layout"),
        ({"clip_frames": 0}, "settings.clip_frames"),
        ({"layout": "youtube_vos", "year": 2016}, "layout youtube_vos has no year: leave them out"),
        ({"sequences": []}, "settings.sequences"),
    ],
)
def test_wrong_settings_are_named_by_the_study(root, settings, message):
    with pytest.raises(UserError, match=message):
        study_of(root, **settings)


def test_youtube_vos_scores_the_frames_that_have_masks(root, tmp_path, monkeypatch):
    (tmp_path / "yt").mkdir()
    (tmp_path / "yt/train").mkdir()
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p").rename(tmp_path / "yt/train" / kind)
    (tmp_path / "yt/train/Annotations/two/00001.png").unlink()
    settings = settings_for(tmp_path / "yt", layout="youtube_vos", clip_frames=None)
    found = find_clips(settings)
    assert [(c.sequence.name, [c.sequence.masks[n].stem for n in c.numbers], c.offset) for c in found] == [
        ("one", ["00000", "00001", "00002"], 0),
        ("two", ["00000", "00002"], 1),
    ]
    assert evaluate(tmp_path / "yt", tmp_path / "out", monkeypatch, layout="youtube_vos", clip_frames=None).n == 5
    listed = settings_for(tmp_path / "yt", layout="youtube_vos", clip_frames=None, sequence_list="val.txt")
    with pytest.raises(UserError, match=r"val\.txt does not exist.*correct `sequence_list`"):
        find_clips(listed)
    (tmp_path / "yt/val.txt").write_text("two\n")
    assert [clip.sequence.name for clip in find_clips(listed)] == ["two"]
    assert listed.protocol != settings.protocol


def test_settings():
    assert settings_for(".").protocol.startswith("unsupervised video segmentation, 2017 val, clips of 2")
    assert VideoSegmentationSettings(root=".", dataset="x", layout="youtube_vos").frames == 4
    assert VideoSegmentationSettings(root=".", dataset="x", layout="davis").frames == 16
    with pytest.raises(ValueError, match="youtube_vos has no year"):
        VideoSegmentationSettings(root=".", dataset="x", layout="youtube_vos", year=2016)
    assert settings_for(".").protocol != settings_for(".", components=20).protocol
    for changes in ({"layout": "davis"}, {"layout": "youtube_vos", "sequences": ["one"]}):
        with pytest.raises(ValueError, match="sequence_list: for layout youtube_vos, and not beside sequences"):
            VideoSegmentationSettings(root=".", dataset="x", sequence_list="val.txt", **changes)
