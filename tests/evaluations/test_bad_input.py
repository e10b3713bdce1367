"""Bad data and sick backbones: every evaluation of frozen features says in one error which file it is, before anything is scored."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.evaluations.common.base import Job
from densewalk.models.export import export_backbone
from densewalk.models.loading import load
from densewalk.study.registry import evaluation_module, evaluations, parse_evaluation
from tests.fixtures.dense import write_backbone, write_masks
from tests.fixtures.depth import write_nyu
from tests.fixtures.landmarks import write_landmarks
from tests.fixtures.layouts import write_classes, write_coco, write_got10k, write_navi, write_spair
from tests.fixtures.video_tasks import write_mose, write_youtube

LABELLED = {"images": "images", "masks": "masks", "num_classes": 4, "layout": "masks"}
VALIDATION = {**LABELLED, "val_every": 2, "val_offset": 1, "input_size": 64, "mask_size": 8}


def write_davis(root: Path) -> None:
    """Two sequences of two objects, five frames each."""
    for name in ("boat", "kites"):
        masks = np.zeros((5, 64, 96), np.uint8)
        masks[:, 8:40, 8:40], masks[:, 24:60, 56:90] = 1, 2
        for annotations in ("Annotations", "Annotations_unsupervised"):
            write_labels(root / annotations / "480p" / name, masks)
        (root / "JPEGImages/480p" / name).mkdir(parents=True)
        for number, mask in enumerate(masks):
            colours = np.array([[20, 20, 20], [220, 40, 40], [40, 220, 220]], np.uint8)[mask]
            Image.fromarray(colours).save(root / "JPEGImages/480p" / name / f"{number:05d}.jpg")
    for year in ("2016", "2017"):
        (root / "ImageSets" / year).mkdir(parents=True)
        (root / "ImageSets" / year / "val.txt").write_text("boat\nkites\n")


def write_imagenet(root: Path) -> None:
    """Two classes of enough pictures."""
    write_classes(root, {"train": {"n01": 6, "n02": 6}, "val": {"n01": 2, "n02": 2}})


# name -> protocol, what writes its data, settings, an image and a mask of it (patterns below the root)
MASK, FRAME = "Annotations/480p/kites/00000.png", "JPEGImages/480p/kites/00002.jpg"
CASES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any], str, str | None]] = {
    "davis": ("davis", write_davis, {"short_side": 64, "multiple": 16}, FRAME, MASK),
    "davis unsupervised": (
        "davis",
        write_davis,
        {"short_side": 64, "multiple": 16, "task": "unsupervised", "proposals": 2},
        FRAME,
        "Annotations_unsupervised/480p/kites/00000.png",
    ),
    "video_segmentation": (
        "video_segmentation",
        write_davis,
        {"layout": "davis", "size": 64, "dataset_size": 32, "clusters": 3, "dataset_clusters": 3, "restarts": 1},
        FRAME,
        MASK,
    ),
    "youtube_vos": (
        "youtube_vos",
        write_youtube,
        {"short_side": 64, "multiple": 16},
        "valid/JPEGImages/kites/00010.jpg",
        "valid/Annotations/kites/00000.png",
    ),
    "mose": (
        "mose",
        write_mose,
        {"short_side": 64, "multiple": 16},
        "valid/JPEGImages/kites/00010.jpg",
        "valid/Annotations/kites/00000.png",
    ),
    "clip_propagation": ("clip_propagation", write_davis, {"layout": "davis", "size": 64}, FRAME, MASK),
    "incontext": (
        "incontext",
        write_masks,
        {**LABELLED, "memory_every": 2, "query_every": 2, "query_offset": 1, "input_size": 64, "augmentation_epochs": 0, "neighbours": 3},
        "images/003.png",
        "masks/003.png",
    ),
    "linear_segmentation": (
        "linear_segmentation",
        write_masks,
        {**VALIDATION, "train_every": 2, "epochs": 1, "batch_size": 4},
        "images/003.png",
        "masks/003.png",
    ),
    "overcluster": ("overcluster", write_masks, {**VALIDATION, "repeats": 1, "restarts": 1}, "images/003.png", "masks/003.png"),
    "unsupervised_segmentation": (
        "unsupervised_segmentation",
        write_masks,
        {
            **VALIDATION,
            "train_every": 2,
            "repeats": 1,
            "restarts": 1,
            "foreground_clusters": 4,
            "community_clusters": 3,
            "community_repeats": 1,
        },
        "images/003.png",
        "masks/003.png",
    ),
    "stego": (
        "stego",
        write_masks,
        {**VALIDATION, "train_every": 2, "crops": "none", "train_size": 32, "code_dim": 4, "knn": 2, "batch_size": 2, "iterations": 1},
        "images/003.png",
        "masks/003.png",
    ),
    "knn": ("knn", write_imagenet, {"resize": 18, "size": 16}, "val/n02/*", None),
    "linear": ("linear", write_imagenet, {"resize": 18, "size": 16, "batch_size": 4, "epochs": 1, "blocks": [1]}, "val/n02/*", None),
    "position": ("position", write_masks, {"images": "images", "input_size": 64, "held_out_every": 2}, "images/003.png", None),
    "discovery": ("discovery", write_coco, {"layout": "coco"}, "train2014/*", None),
    "discovery by TokenCut": ("discovery", write_coco, {"layout": "coco", "method": "tokencut", "taus": [0.1]}, "train2014/*", None),
    "depth": (
        "depth",
        write_nyu,
        {"iterations": 1, "warmup": 0, "batch_size": 2, "bins": 8, "crop": [32, 32]},
        "nyu/office_0001/rgb_*",
        None,
    ),
    "correspondence": ("correspondence", write_spair, {"size": 32}, "JPEGImages/cat/b.jpg", None),
    "geometric_correspondence": (
        "geometric_correspondence",
        write_navi,
        {"size": 48, "every": 1, "matches": 20},
        "thing_0/wild_set/images/001.png",
        None,
    ),
    "retrieval": ("retrieval", write_landmarks, {"layout": "roxford5k", "size": 64}, "roxford5k/jpg/bridge_1.jpg", None),
    "motion_segmentation": ("motion_segmentation", write_davis, {"height": 32, "width": 48}, FRAME, MASK),
    "tracking": ("tracking", write_got10k, {"short_side": 64, "multiple": 16}, "val/*1/00000002.jpg", None),
}
WITH_MASKS = [name for name, case in CASES.items() if case[-1] is not None]
STILLS = [name for name in WITH_MASKS if CASES[name][1] is write_masks]


def evaluate(name: str, root: Path, tmp_path: Path, backbone: Path | None = None) -> Any:
    """Run the case on a data folder."""
    protocol, _, settings, *_ = CASES[name]
    module = evaluation_module(protocol)
    parsed = parse_evaluation(protocol, {"root": str(root), "dataset": "toy", **settings})
    backbone = backbone or write_backbone(tmp_path / "b.safetensors", motion="motion_masks" in parsed.needs)
    return module.evaluate(parsed, backbone, Job(out=tmp_path / "out", state=tmp_path / "state"))


@pytest.fixture
def data(tmp_path) -> Callable[[str], Path]:
    """Writes the data of a case."""

    def write(name: str) -> Path:
        root = tmp_path / "data"
        CASES[name][1](root)
        return root

    return write


def image_of(name: str, root: Path) -> Path:
    return min(root.glob(CASES[name][3]))


def mask_of(name: str, root: Path) -> Path:
    path = CASES[name][4]
    assert path is not None
    return root / path


def refused(name: str, root: Path, tmp_path: Path, file: Path, said: str) -> None:
    """One error that names the file and what is wrong with it, before anything was written."""
    with pytest.raises(UserError) as error:
        evaluate(name, root, tmp_path)
    assert str(file) in str(error.value)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_evaluation_of_frozen_features_is_here():
    through_mm = {"ade20k_linear", "ade20k_upernet", "segmentation_linear", "segmentation_upernet", "coco"}
    assert {case[0] for case in CASES.values()} == evaluations().keys() - through_mm


@pytest.mark.parametrize("name", CASES)
def test_good_data_are_scored(name, data, tmp_path):
    """So that nothing below is refused for another reason."""
    assert evaluate(name, data(name), tmp_path).n > 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
def test_an_unreadable_image(name, content, data, tmp_path):
    root = data(name)
    path = image_of(name, root)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "cut" else content)
    with pytest.raises(UserError, match="cannot be read") as error:
        evaluate(name, root, tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", WITH_MASKS)
@pytest.mark.parametrize("content", [b"", b"\x89PNG nothing more", "cut"])
def test_an_unreadable_mask(name, content, data, tmp_path):
    root = data(name)
    path = mask_of(name, root)
    path.write_bytes(path.read_bytes()[:60] if content == "cut" else content)
    refused(name, root, tmp_path, path, "cannot be read")


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_missing_mask(name, data, tmp_path):
    root = data(name)
    if name in STILLS:  # a picture without a mask is no labelled picture; all of them without are an error
        shutil.rmtree(root / "masks")
        refused(name, root, tmp_path, root / "masks", "does not exist")
    else:
        mask_of(name, root).unlink()
        refused(name, root, tmp_path, mask_of(name, root), "does not exist")


@pytest.mark.parametrize("name", STILLS)
@pytest.mark.parametrize("of", ["images", "masks"])
def test_half_of_the_masks_or_images_missing(name, of, data, tmp_path):
    """They are counted against each other: leaving some out would be another benchmark."""
    root = data(name)
    for path in sorted((root / of).iterdir())[::2]:
        path.unlink()
    refused(name, root, tmp_path, root / ("images" if of == "masks" else "masks") / "000.png", "(4 of 8 ")


@pytest.mark.parametrize("name", STILLS)
def test_suffixes_in_capitals_change_nothing(name, data, tmp_path):
    root = data(name)
    expected = evaluate(name, root, tmp_path / "before").metrics
    for path in [root / "images/002.png", root / "masks/003.png"]:
        path.rename(path.with_suffix(".PNG"))
    assert evaluate(name, root, tmp_path / "after").metrics == expected


@pytest.mark.parametrize("name", STILLS)
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_two_files_of_one_name(name, folder, data, tmp_path):
    root = data(name)
    shutil.copy(root / folder / "003.png", root / folder / "003.PNG")
    refused(name, root, tmp_path, root / folder, "two files of one name: 003.PNG and 003.png")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_image_is_its_upright_self_or_refused(name, orientation, data, tmp_path):
    """Stored turned, with the tag that says so. Labels that fit the image both ways, as the square ones here, leave it open."""
    root = data(name)
    path = image_of(name, root)
    upright = Image.open(path).convert("RGB")
    upright.save(path, format="PNG")
    before = evaluate(name, root, tmp_path / "before").metrics
    tags = Image.Exif()
    tags[0x0112] = orientation
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    upright.transpose(back).save(path, format="PNG", exif=tags)
    # NAVI's depth maps are of the upright image, whatever its tag says
    if name in ("knn", "linear", "position", "retrieval", "geometric_correspondence") or (
        orientation == 6 and name not in STILLS and name != "tracking"
    ):
        assert evaluate(name, root, tmp_path / "after").metrics == before
    else:
        refused(name, root, tmp_path, path, f"the EXIF orientation {orientation}")


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_mask_of_another_size_than_its_image(name, data, tmp_path):
    root = data(name)
    path = mask_of(name, root)
    with Image.open(path) as mask:
        mask.crop((0, 0, mask.width - 2, mask.height)).save(path)
    with pytest.raises(UserError) as error:
        evaluate(name, root, tmp_path)
    assert str(path) in str(error.value)
    assert "x" in str(error.value)


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_mask_in_color(name, data, tmp_path):
    root = data(name)
    path = mask_of(name, root)
    with Image.open(path) as mask:
        mask.convert("RGB").save(path)
    refused(name, root, tmp_path, path, "is a color image (RGB)")


@pytest.mark.parametrize("name", WITH_MASKS)
@pytest.mark.parametrize("label", [300, 65_535])
def test_a_label_that_eight_bits_cannot_hold(name, label, data, tmp_path):
    """It must not wrap around and pass for another: 300 = 256 + 44."""
    root = data(name)
    path = mask_of(name, root)
    with Image.open(path) as mask:
        labels = np.asarray(mask).astype(np.uint16)
    labels[labels == labels.max()] = label
    Image.fromarray(labels).save(path)
    refused(name, root, tmp_path, path, f" {label}")


@pytest.mark.parametrize("name", STILLS)
def test_a_label_beyond_the_classes(name, data, tmp_path):
    root = data(name)
    path = mask_of(name, root)
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(path)
    refused(name, root, tmp_path, path, "holds label 7; allowed: 0 to 3")


@pytest.mark.parametrize("name", STILLS)
def test_masks_without_any_label(name, data, tmp_path, monkeypatch):
    root = data(name)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    monkeypatch.setitem(CASES, name, (*CASES[name][:2], {**CASES[name][2], "ignore": 255}, *CASES[name][3:]))
    with pytest.raises(UserError, match=rf"no pixel of the .* images in {root} is (labelled|foreground)"):
        evaluate(name, root, tmp_path)


@pytest.mark.parametrize(
    ("ids", "said"), [([0], "has no object"), ([0, 1, 3], "has the ids [1, 3]"), ([0, 38, 75], "has the ids [38, 75]")]
)
def test_objects_of_the_first_davis_mask(ids, said, data, tmp_path):
    root = data("davis")
    path = mask_of("davis", root)
    labels = np.zeros((64, 96), np.uint8)
    for number, label in enumerate(ids):
        labels[16 * number : 16 * number + 16, :48] = label
    Image.fromarray(labels).save(path)
    refused("davis", root, tmp_path, path, said)


@pytest.mark.parametrize(("ids", "said"), [([0], "has no object"), ([0, 1, 3], "has the ids [1, 3]")])
def test_objects_of_an_unsupervised_davis_sequence(ids, said, data, tmp_path):
    """An id that is left out would count as an object that nothing finds."""
    root = data("davis unsupervised")
    folder = mask_of("davis unsupervised", root).parent
    for path in folder.iterdir():
        labels = np.zeros((64, 96), np.uint8)
        for number, label in enumerate(ids):
            labels[16 * number : 16 * number + 16, :48] = label
        Image.fromarray(labels).save(path)
    refused("davis unsupervised", root, tmp_path, folder, said)


@pytest.mark.parametrize("name", ["knn", "linear"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_that_is_missing_or_empty(name, split, data, tmp_path):
    root = data(name)
    for path in (root / split / "n02").iterdir():
        path.unlink()
    refused(name, root, tmp_path, root / split, "n02")
    (root / split / "n02").rmdir()
    refused(name, root, tmp_path, root / split, "n02")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [3e38, -3e38])
def test_features_that_are_no_numbers(name, value, data, tmp_path):
    """The picture and the backbone are named, and no number is written. Weights that are no numbers are refused when they are loaded."""
    root = data(name)
    sick = load(write_backbone(tmp_path / "good.safetensors", motion=name == "motion_segmentation"))
    for parameter in (sick.vit.norm.weight, sick.vit.blocks[-1].attn.qkv.weight, sick.vit.blocks[-1].attn.qkv.bias):
        parameter.data[:] = value
    export_backbone(sick, tmp_path / "sick.safetensors", run="r", config_hash="0")
    with pytest.raises(UserError, match="not finite") as error:
        evaluate(name, root, tmp_path, tmp_path / "sick.safetensors")
    assert str(root) in str(error.value)
    assert f"backbone: {tmp_path}/sick.safetensors" in str(error.value)
