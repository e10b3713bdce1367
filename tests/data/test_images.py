import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.check_images import check_images
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_files import read_mask
from densewalk.data.image_folder import ImageFolder
from densewalk.data.images import normalize, read_rgb
from densewalk.data.receipts import read_receipt
from densewalk.data.settings import ImagesSettings
from densewalk.jobs.prepare import prepare_images
from tests.fixtures.helpers import shared

RED, GREEN = (250, 20, 30), (10, 240, 60)


def two_colours() -> np.ndarray:
    """Uint8 [4, 6, 3]: red above green."""
    return np.array([[RED] * 6] * 2 + [[GREEN] * 6] * 2, np.uint8)


def as_picture(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()


# -- normalisation ---------------------------------------------------------------------------------------------------


def test_normalize_equals_the_formula_per_channel():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    y = normalize(x)
    for c, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        torch.testing.assert_close(y[:, c], (x[:, c] - mean) / std)
    torch.testing.assert_close(normalize(x[0].float()), y[0].float())


# -- files -----------------------------------------------------------------------------------------------------------


def test_colors_and_size_are_read_as_they_are(tmp_path):
    Image.fromarray(two_colours()).save(tmp_path / "a.png")
    x = read_rgb(tmp_path / "a.png")
    assert (x.shape, x.dtype) == ((3, 4, 6), torch.uint8)
    assert np.array_equal(as_picture(x), two_colours())
    x[0] = 0  # nobody else's memory


@pytest.mark.parametrize("mode", ["RGBA", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    Image.fromarray(two_colours()).convert(mode).save(tmp_path / "a.tif")
    assert np.array_equal(as_picture(read_rgb(tmp_path / "a.tif")), two_colours())


@pytest.mark.parametrize("options", [{}, {"transparency": bytes([0, 128])}])
def test_a_palette_is_looked_up(tmp_path, options):
    Image.fromarray(two_colours()).quantize(2).save(tmp_path / "a.png", **options)
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.array_equal(as_picture(read_rgb(tmp_path / "a.png")), two_colours())


def test_gray_is_repeated_and_sixteen_bits_become_eight(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    for name, expected in (("8.png", grey), ("16.png", grey), ("1.png", (grey > 100) * np.uint8(255))):
        assert np.array_equal(as_picture(read_rgb(tmp_path / name)), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_images_are_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(two_colours()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_picture(read_rgb(tmp_path / "a.png")), np.rot90(two_colours(), turn))


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("text.jpg", "cut.jpg", "float.tif", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            read_rgb(tmp_path / name)


def test_masks_are_indices_never_colors(tmp_path):
    labels = np.array([[0, 1, 7], [255, 3, 0]], np.uint8)
    indexed = Image.fromarray(labels, "P")
    indexed.putpalette([v for i in range(256) for v in (255 - i, 13, 77)])
    indexed.save(tmp_path / "p.png")
    Image.fromarray(labels).save(tmp_path / "l.png")
    Image.fromarray(labels.astype(np.uint16) * 200).save(tmp_path / "i16.png")
    Image.fromarray(labels > 0).save(tmp_path / "1.png")
    for name, expected in (("p.png", labels), ("l.png", labels), ("i16.png", labels.astype(int) * 200), ("1.png", labels > 0)):
        mask = read_mask(tmp_path / name)
        assert mask.dtype.kind == "u"
        assert np.array_equal(mask, expected)
    Image.fromarray(two_colours()).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"mask .*rgb\.png is a color image"):
        read_mask(tmp_path / "rgb.png")


def test_real_masks(tmp_path):
    davis = read_mask(shared("data/davis/Annotations/480p/schoolgirls/00000.png"))
    assert np.unique(davis).tolist() == list(range(8))
    ade = read_mask(next(shared("data/ade20k/ADEChallengeData2016/annotations/validation").glob("*.png")))
    assert 0 <= ade.min() <= ade.max() <= 150


# -- folders ---------------------------------------------------------------------------------------------------------


def save(path, value: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_a_folder_is_sorted_recursive_and_knows_its_files(tmp_path):
    for i, name in enumerate(["b/2.png", "b/1.JPG", "a.jpeg", "c/d/e.webp"]):
        save(tmp_path / "pictures" / name, 40 * i + 40)
    (tmp_path / "pictures" / "readme.txt").write_text("not a picture")
    (tmp_path / "pictures" / "._a.jpg").write_text("what macOS leaves behind")
    (tmp_path / "linked").mkdir()
    save(tmp_path / "elsewhere" / "f.png", 240)
    (tmp_path / "pictures" / "link").symlink_to(tmp_path / "elsewhere")
    folder = ImageFolder(tmp_path / "pictures")
    assert folder.names == ["a.jpeg", "b/1.JPG", "b/2.png", "c/d/e.webp", "link/f.png"]
    assert [int(folder[i].float().mean().round()) for i in range(len(folder))] == [120, 80, 40, 160, 240]


def test_missing_and_empty_folders_say_what_is_there(tmp_path):
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train2017 does not exist; allowed: folders in .*coco: val2017"):
        ImageFolder(tmp_path / "coco" / "train2017")
    with pytest.raises(UserError, match="val2017 holds no image"):
        ImageFolder(tmp_path / "coco" / "val2017")


def test_frame_folders_are_sequences_in_the_order_of_their_numbers(tmp_path):
    for sequence, numbers in {"480p/swan": [10, 9, 100], "480p/car": [0, 1]}.items():
        for number in numbers:
            save(tmp_path / sequence / f"frame_{number}.png", number)
    folders = FrameFolders(tmp_path)
    assert (folders.names, [len(s) for s in folders.sequences]) == (["480p/car", "480p/swan"], [2, 3])
    clip = folders.read(1, [2, 0, 0])
    assert clip.shape == (3, 3, 4, 6)
    assert clip[:, 0, 0, 0].tolist() == [100, 9, 9]
    save(tmp_path / "480p/car/frame_2.png", 2, size=(8, 4))
    with pytest.raises(UserError, match=r"frame_2\.png is 8x4, but .*frame_0\.png is 6x4"):
        FrameFolders(tmp_path).read(0, [0, 2])


@given(st.lists(st.integers(0, 1200), min_size=1, max_size=6, unique=True))
def test_numbered_frames_of_any_width_are_in_order(tmp_path_factory, numbers):
    root = tmp_path_factory.mktemp("frames")
    for number in numbers:
        (root / f"{number}.png").touch()
    (sequence,) = FrameFolders(root).sequences
    assert [int(name.rsplit("/", 1)[1][:-4]) for name in sequence] == sorted(numbers)


def test_the_receipt_of_a_folder(tmp_path):
    for i in range(40):
        save(tmp_path / "pictures" / f"{i:02d}.png", i, size=(10 + i, 5))
    settings = ImagesSettings(source=str(tmp_path / "pictures"))
    prepare_images(settings, tmp_path / "receipts" / "coco.json")
    receipt = read_receipt(tmp_path / "receipts" / "coco.json")
    written = json.loads((tmp_path / "receipts" / "coco.json").read_text())
    assert written == receipt.model_dump(mode="json")
    assert (written["smallest"], "kept" in written) == ([10, 5], False)
    assert (receipt.kind, receipt.name, receipt.path) == ("images", "coco", str(tmp_path / "pictures"))
    assert (receipt.files, receipt.smallest, receipt.largest) == (40, (10, 5), (49, 5))
    save(tmp_path / "pictures" / "more.png", 0)
    assert check_images(settings, "again").listing != receipt.listing


def test_a_damaged_image_leaves_no_receipt(tmp_path):
    save(tmp_path / "pictures" / "0.png", 0)
    (tmp_path / "pictures" / "1.png").write_text("damaged")
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        prepare_images(ImagesSettings(source=str(tmp_path / "pictures")), tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()


def test_the_receipt_of_real_sequences():
    receipt = check_images(ImagesSettings(source=str(shared("data/davis/JPEGImages/480p")), layout="sequences"), "davis")
    assert (receipt.kind, receipt.sequences, receipt.files) == ("sequences", 5, 219)
    assert (receipt.shortest, receipt.longest) == (40, 50)


def frame(folder):
    folder.mkdir(parents=True)
    Image.fromarray(two_colours()).save(folder / "00000.png")


def test_sequences_can_be_chosen_by_a_list(tmp_path):
    for name in ("a", "b", "c"):
        frame(tmp_path / "frames" / name)
    (tmp_path / "train.txt").write_text("a\n\nc\n")
    settings = ImagesSettings(source=str(tmp_path / "frames"), layout="sequences", sequence_list=str(tmp_path / "train.txt"))
    receipt = check_images(settings, "davis")
    assert (receipt.sequences, receipt.chosen) == (2, ("a", "c"))
    assert FrameFolders(tmp_path / "frames", only=receipt.chosen).names == ["a", "c"]
    (tmp_path / "train.txt").write_text("a\nd\n")
    with pytest.raises(UserError, match=r"frames has no sequence d \(1 of 2 listed ones are missing\)"):
        check_images(settings, "davis")
    with pytest.raises(UserError, match=r"list .*val.txt does not exist"):
        check_images(settings.model_copy(update={"sequence_list": str(tmp_path / "val.txt")}), "davis")
    with pytest.raises(ValueError, match="only layout sequences has one"):
        ImagesSettings(source="x", sequence_list="train.txt")
    with pytest.raises(ValueError, match="fps: only layout sequences has one"):
        ImagesSettings(source="x", fps=24)


def test_masks_are_not_taken_for_videos(tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        frame(tmp_path / "DAVIS" / kind / "480p" / "swan")
    with pytest.raises(UserError, match=r"DAVIS holds masks \(Annotations/480p/swan\).*allowed: .*DAVIS/JPEGImages/480p"):
        check_images(ImagesSettings(source=str(tmp_path / "DAVIS"), layout="sequences"), "davis")
    assert FrameFolders(tmp_path / "DAVIS/JPEGImages/480p").names == ["swan"]
