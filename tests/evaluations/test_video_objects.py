"""YouTube-VOS and MOSE: scores of the benchmarks, objects that enter later, submissions, and bad input."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.data.benchmarks.video_tasks import list_mose, list_youtube_tasks, smallest_hashes
from densewalk.data.image_files import read_mask
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.label_propagation import rounded_up_size, upsample_labels
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.evaluations.video_objects import evaluate as video_objects
from densewalk.evaluations.video_objects.scores import score_objects
from densewalk.evaluations.video_objects.settings import MoseSettings, YouTubeVosSettings
from densewalk.evidence.units import read_units, write_units
from densewalk.ops.label_propagation import Rule, follow, propagate
from tests.fixtures.dense import MeanColors
from tests.fixtures.helpers import shared
from tests.fixtures.video_tasks import FRAMES, NAMES, label_maps, write_mose, write_youtube

RECORDED = "parity/eval_vos.npz"
SMALL = {"short_side": 64, "multiple": 16}


def youtube(root, **changes):
    return YouTubeVosSettings(root=str(root), dataset="squares", **{**SMALL, **changes})


def mose(root, **changes):
    return MoseSettings(root=str(root), dataset="squares", **{**SMALL, **changes})


def run(settings, out, monkeypatch):
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    return video_objects.evaluate(settings, out, Job(out=out, state=out))


# -- the benchmarks' scores --------------------------------------------------------------------------------------------


def write_recorded(root):
    """The recorded videos of YouTube-VOS as files; predictions by name."""
    values = np.load(shared(RECORDED))
    meta = json.loads(str(values["ytvos/meta"]))
    predictions = {}
    for name, found in meta["videos"].items():
        truth = values[f"ytvos/{name}/gt"]
        stems = [f"{5 * i:05d}" for i in range(len(truth))]
        write_labels(root / "valid/Annotations" / name, truth, stems)
        (root / "valid/JPEGImages" / name).mkdir(parents=True)
        for stem, frame in zip(stems, truth, strict=True):
            Image.fromarray(np.repeat(frame[..., None] * 60, 3, axis=2)).save(root / "valid/JPEGImages" / name / f"{stem}.jpg")
        predictions[name] = values[f"ytvos/{name}/pred"]
        assert len(found["objects"]) == len(values[f"ytvos/{name}/first"])
    (root / "valid/meta.json").write_text(json.dumps(meta))
    return values, predictions


def test_youtube_vos_scores_equal_the_recorded_ones(tmp_path, monkeypatch):
    """Through `evaluate` itself: only the segmentation is replaced."""
    values, predictions = write_recorded(tmp_path)
    monkeypatch.setattr(video_objects, "segment", lambda _backbone, task, *_: predictions[task.name])
    settings = youtube(tmp_path, seen=values["ytvos/seen_categories"].tolist())
    result = run(settings, tmp_path / "out", monkeypatch)
    found = [result.metrics[n] for n in ("J_seen", "F_seen", "J_unseen", "F_unseen")]
    np.testing.assert_allclose(found, values["ytvos/J_seen_F_seen_J_unseen_F_unseen"], rtol=0, atol=1e-6)
    assert result.metrics["G"] == pytest.approx(float(values["ytvos/overall"]), abs=1e-6)
    assert result.n == 6
    about = {"config_hash": "a", "run_hash": "b", "backbone_sha256": "c"}
    write_units(tmp_path / "r.json", result.units, **about)
    again = read_units(tmp_path / "r.json", **about)
    assert again.statistics["G"].score == pytest.approx(result.metrics["G"], abs=1e-9)
    assert again.clusters == ["aaa"] * 3 + ["bbb"] * 2 + ["ccc"]


@pytest.mark.parametrize("name", ["ddd", "eee"])
def test_mose_scores_equal_the_organizers_tool(name):
    values = np.load(shared(RECORDED))
    truth, prediction = values[f"mose/{name}/gt"], values[f"mose/{name}/pred"]
    found = score_objects("mose", truth, prediction, [0] * int(truth[0].max()))
    for number, (j, f) in enumerate(found.tolist(), start=1):
        assert j == pytest.approx(values[f"mose/{name}/{number}/J"].mean(), abs=1e-6)
        assert f == pytest.approx(values[f"mose/{name}/{number}/F"].mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["aaa", "bbb", "ccc"])
def test_vos_benchmark_scores_equal_the_recorded_ones(name):
    values = np.load(shared(RECORDED))
    recorded = np.stack([values[f"vos_benchmark/{name}/{kind}"] for kind in "JF"], axis=1)
    truth, prediction = values[f"ytvos/{name}/gt"], values[f"ytvos/{name}/pred"]
    np.testing.assert_allclose(100 * score_objects("vos_benchmark", truth, prediction, [0] * len(recorded)), recorded, rtol=0, atol=1e-6)


def test_an_object_without_a_frame_to_score_has_no_value():
    truth = np.zeros((3, 8, 8), np.uint8)
    truth[2, 2:5, 2:5] = 1
    assert np.isnan(score_objects("youtube_vos", truth, truth, [2])).all()
    assert np.isnan(score_objects("vos_benchmark", truth, truth, [2])).all()


# -- DINOv3's propagation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(3))
def test_propagation_equals_dinov3(case):
    values = np.load(shared(RECORDED))
    key = f"dinov3_propagation/{case}"
    size, square, top_k, temperature = values[f"{key}/cfg"].tolist()
    soft = torch.from_numpy(values[f"{key}/context_probs"])
    frames, rows, columns, classes = soft.shape
    features = F.normalize(torch.from_numpy(values[f"{key}/feats"]), dim=-1).reshape(frames + 1, 1, rows * columns, -1)
    rule = Rule((rows, columns), int(size), int(top_k), frames, temperature, circle=not square)
    labels = [x.reshape(1, rows * columns, classes).transpose(1, 2) for x in soft]
    found = propagate([*features[:-1]], labels, features[-1], rule)[0].T.reshape(rows, columns, classes)
    np.testing.assert_allclose(found.numpy(), values[f"{key}/out"], rtol=0, atol=1e-4)
    expected = values[f"{key}/labels"]
    channels = torch.from_numpy(values[f"{key}/out"]).permute(2, 0, 1).contiguous()
    np.testing.assert_array_equal(upsample_labels(channels, (0, 0), expected.shape, how="nearest"), expected)


def test_sizes_equal_dinov3():
    values = np.load(shared(RECORDED))
    pairs = zip(values["dinov3_propagation/sizes"].tolist(), values["dinov3_propagation/sizes_args"].tolist(), strict=True)
    for (width, height, new_width, new_height), (short_side, patch) in pairs:
        assert rounded_up_size(height, width, short_side, patch) == (new_height, new_width)


def test_pixels_take_the_largest_of_interpolated_labels():
    soft = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(soft[None].double(), size=(10, 15), mode="bilinear", align_corners=False)[0]
    assert upsample_labels(soft, (0, 0), (10, 15), how="bilinear").tolist() == large.argmax(0).tolist()


def test_the_preset_is_dinov3_s_and_other_settings_keep_their_hash():
    plain = DavisSettings(root=".", dataset="DAVIS-2017")
    assert not {"preset", "short_patches", "resize", "window", "upsample"} & plain.model_dump().keys()
    card = DavisSettings(root=".", dataset="DAVIS-2017", preset="dinov3_m")
    assert card.published_protocol == "label propagation (DINOv3, M)"
    assert (card.pixel_rules.short_patches, card.pixel_rules.circle, card.temperature) == (60, True, 0.2)
    assert card.resolved().keep_small_objects is False
    assert card.protocol.startswith("label propagation, semi-supervised, 2017 val, short side 60 patches, top 5 within 12 patches")
    for changes in ({"window": "square"}, {"temperature": 0.1}, {"upsample": "nearest"}, {"compat": "released"}):
        changed = DavisSettings.model_validate(card.model_dump() | changes)
        assert changed.published_protocol is None
        assert changed.protocol != card.protocol
        assert DavisSettings.model_validate(changed.model_dump()) == changed, "a written specification is read as it was"
    with pytest.raises(ValueError, match="preset 'dinov3' is unknown"):
        DavisSettings(root=".", dataset="x", preset="dinov3")


# -- objects that enter later ------------------------------------------------------------------------------------------


def test_labels_of_entering_objects_replace_those_that_were_propagated():
    """As a loop: propagate, put the newcomer in its place, go on with that."""
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(1, 20, 8, generator=generator) for _ in range(5)]
    first = F.one_hot(torch.randint(0, 2, (1, 20), generator=generator), 3).transpose(1, 2).float()
    newcomer = torch.zeros(1, 3, 20)
    newcomer[:, 2, 4:9] = 1
    rule = Rule((4, 5), radius=2, top_k=3, context=2)
    found = list(follow(frames, first, rule, {2: newcomer}))
    unit = [F.normalize(x, dim=-1) for x in frames]
    known = {0: first}
    for t in range(1, 5):
        context = [0, *range(max(1, t - 2), t)]
        labels = propagate([unit[c] for c in context], [known[c] for c in context], unit[t], rule)
        if t == 2:
            labels[:, :, 4:9] = newcomer[:, :, 4:9]
        known[t] = labels
        assert torch.equal(found[t - 1], labels)


def test_a_newcomer_is_found_from_its_frame_on(tmp_path, monkeypatch):
    write_youtube(tmp_path)
    result = run(youtube(tmp_path), tmp_path / "out", monkeypatch)
    assert (result.n, result.details["videos"], result.details["objects_seen"]) == (4, 2, 2)
    assert result.metrics["J_unseen"] > 85
    assert result.metrics["J&F_copied"] == 100, "nothing moves"
    assert result.metrics["G"] == pytest.approx(np.mean([result.metrics[n] for n in ("J_seen", "F_seen", "J_unseen", "F_unseen")]))
    assert result.details["objects"].keys() == {"boat/1", "boat/2", "kites/2", "kites/5"}
    before, entering, after = (read_mask(tmp_path / f"out/Annotations/kites/{NAMES[i]}.png") for i in (1, 2, 5))
    assert set(np.unique(before).tolist()) == {0, 2}
    assert np.array_equal(entering == 5, label_maps()[2] == 2), "the given mask itself"
    assert set(np.unique(after).tolist()) == {0, 2, 5}
    assert not (tmp_path / "out/submission.zip").exists()
    assert (tmp_path / "out/boat.png").is_file()


def test_frames_before_the_first_object_are_background(tmp_path):
    write_youtube(tmp_path)
    (task,) = list_youtube_tasks(tmp_path, "valid", only=["boat"])
    late = task.__class__(task.video, task.masks, task.entries[1:], task.written, task.entering)
    labels = video_objects.segment(MeanColors(), late, youtube(tmp_path).resolved(), Progress("", 4))
    assert labels[:2].max() == 0
    assert np.array_equal(labels[2], np.where(label_maps()[2] == 2, 1, 0))
    assert (labels[3:] == 1).any((1, 2)).all()


@pytest.mark.parametrize("kind", ["youtube_vos", "davis", "mose", "vos_benchmark"])
def test_true_masks_as_predictions_score_100(tmp_path, monkeypatch, kind):
    """Through `evaluate` itself: only the segmentation is replaced, by the masks as an evaluation writes and reads them."""

    def perfect(_backbone, task, *_):
        write_labels(tmp_path / "perfect" / task.name, task.truth())
        return np.stack([read_mask(tmp_path / f"perfect/{task.name}/{i:05d}.png") for i in range(FRAMES)]).astype(np.uint8)

    monkeypatch.setattr(video_objects, "segment", perfect)
    if kind in ("mose", "vos_benchmark"):
        write_mose(tmp_path)
        settings = mose(tmp_path, scoring=kind)
    else:
        write_youtube(tmp_path)
        settings = youtube(tmp_path, scoring=kind, objects="first" if kind == "davis" else "all")
    metrics = run(settings, tmp_path / "out", monkeypatch).metrics
    assert (metrics["J&F"], metrics["J"], metrics["F"]) == (100, 100, 100)


def test_davis_s_rule_is_for_objects_of_the_first_frame(tmp_path):
    write_youtube(tmp_path)
    assert [len(t.entries) for t in list_youtube_tasks(tmp_path, "valid", first_only=True)] == [1, 1]
    with pytest.raises(ValueError, match="also those before an object enters; set `objects: first`"):
        youtube(tmp_path, scoring="davis")


def test_nobody_says_which_categories_are_seen(tmp_path, monkeypatch):
    write_youtube(tmp_path)
    (tmp_path / "train/meta.json").unlink()
    result = run(youtube(tmp_path), tmp_path / "out", monkeypatch)
    assert np.isnan([result.metrics[n] for n in ("G", "J_seen", "F_seen")]).all()
    assert result.metrics["J_unseen"] == pytest.approx(result.metrics["J"])


# -- submissions -------------------------------------------------------------------------------------------------------


def test_without_masks_a_submission_is_written_and_nothing_is_scored(tmp_path, monkeypatch):
    write_youtube(tmp_path / "whole")
    write_youtube(tmp_path / "given", complete=False)
    scored = run(youtube(tmp_path / "whole"), tmp_path / "a", monkeypatch)
    result = run(youtube(tmp_path / "given"), tmp_path / "b", monkeypatch)
    assert np.isnan(list(result.metrics.values())).all()
    assert result.units is None
    assert (result.n, result.details["scored"], scored.details["scored"]) == (4, False, True)
    with zipfile.ZipFile(tmp_path / "b/submission.zip") as archive:
        assert archive.namelist() == [f"Annotations/{name}/{stem}.png" for name in ("boat", "kites") for stem in NAMES]
        with archive.open("Annotations/kites/00015.png") as file:
            written = Image.open(file)
            assert written.mode == "P"
            assert set(np.unique(np.array(written)).tolist()) == {0, 2, 5}
    for name in ("boat", "kites"):  # the masks of later frames are not looked at
        for stem in NAMES:
            one, other = (tmp_path / f"{run}/Annotations/{name}/{stem}.png" for run in "ab")
            assert one.read_bytes() == other.read_bytes()


def test_mose_needs_its_first_masks_only(tmp_path, monkeypatch):
    write_mose(tmp_path, complete=False)
    result = run(mose(tmp_path), tmp_path / "out", monkeypatch)
    assert np.isnan(result.metrics["J&F"])
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as archive:
        assert archive.namelist()[0] == "boat/00000.png"


def test_a_fifth_of_the_videos_is_the_same_everywhere():
    names = [f"video{i:02d}" for i in range(12)]
    assert smallest_hashes(reversed(names)) == smallest_hashes(names)
    assert len(smallest_hashes(names)) == 2
    assert smallest_hashes(["only"]) == ["only"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def change_meta(root, change):
    path = root / "valid/meta.json"
    meta = json.loads(path.read_text())
    change(meta["videos"])
    path.write_text(json.dumps(meta))


def unlink_later_mask(root):
    (root / "valid/Annotations/kites/00025.png").unlink()


def other_object(root):
    write_labels(root / "valid/Annotations/kites", label_maps()[2:3], [NAMES[2]])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: (r / "valid/meta.json").unlink(), r"valid/meta\.json does not exist"),
        (lambda r: (r / "valid/meta.json").write_text("{"), r"valid/meta\.json is not JSON"),
        (lambda r: (r / "valid/meta.json").write_text("{}"), r"valid/meta\.json: videos: Field required"),
        (lambda r: change_meta(r, lambda v: v["boat"].clear()), r"meta\.json: videos\.boat\.objects"),
        (lambda r: change_meta(r, lambda v: v["boat"]["objects"].update({"x": {"frames": NAMES}})), r"object x is no number of an object"),
        (
            lambda r: change_meta(r, lambda v: v["boat"]["objects"]["2"]["frames"].append("00099")),
            r"meta\.json: video boat, object 2 names frame 00099, which .*JPEGImages/boat has not",
        ),
        (lambda r: change_meta(r, lambda v: v.update(swan=v["boat"])), r"folder .*JPEGImages/swan does not exist"),
        (lambda r: change_meta(r, lambda v: v.update({"../boat": v["boat"]})), "is no file inside its folder"),
        (lambda r: (r / "valid/Annotations/kites/00010.png").unlink(), r"kites/00010\.png does not exist: an object enters there"),
        (other_object, r"kites/00010\.png does not show object 5, which enters there according to .*meta\.json"),
        (unlink_later_mask, r"kites/00025\.jpg has no mask, but other frames have"),
        (lambda r: (r / "valid/JPEGImages/kites/00025.jpg").unlink(), r"kites/00025\.png is a mask without a frame"),
    ],
)
def test_bad_youtube_vos_is_refused_before_the_backbone_is_loaded(tmp_path, damage, said):
    write_youtube(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=said):
        video_objects.evaluate(youtube(tmp_path), tmp_path / "no.safetensors", Job(out=tmp_path / "out", state=tmp_path))
    assert not (tmp_path / "out").exists()


def test_bad_mose_is_refused(tmp_path):
    write_mose(tmp_path)
    write_labels(tmp_path / "valid/Annotations/kites", np.zeros((1, 64, 96), np.uint8), [NAMES[0]])
    with pytest.raises(UserError, match=r"kites/00000\.png has no object"):
        video_objects.find_tasks(mose(tmp_path))
    (tmp_path / "valid/Annotations/kites/00000.png").unlink()
    with pytest.raises(UserError, match=r"kites/00000\.png does not exist: the mask of the first frame"):
        list_mose(tmp_path, "valid")
    with pytest.raises(UserError, match=r"MOSE's folder .*train does not exist"):
        list_mose(tmp_path, "train")


def test_a_video_that_is_too_short(tmp_path):
    write_mose(tmp_path)
    for stem in NAMES[2:]:
        (tmp_path / f"valid/JPEGImages/boat/{stem}.jpg").unlink()
        (tmp_path / f"valid/Annotations/boat/{stem}.png").unlink()
    with pytest.raises(UserError, match="has 2 frames to predict, of which scoring as mose needs 3"):
        video_objects.find_tasks(mose(tmp_path))
