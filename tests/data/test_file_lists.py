"""Folders, pairs, order and lists: every layout counts the same way and refuses by name what it would have to guess."""

import os
import socket

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.boxes import read_tracks
from densewalk.data.benchmarks.classification import list_imagenet
from densewalk.data.benchmarks.label_maps import list_ade20k, list_coco_stuff, list_folders, list_voc
from densewalk.data.benchmarks.label_rules import class_rule
from densewalk.data.benchmarks.paths import read_list
from densewalk.data.benchmarks.video_objects import list_davis, list_youtube_vos
from densewalk.data.file_lists import find_files, frames_in_order
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_files import EXTENSIONS
from densewalk.data.image_folder import ImageFolder
from tests.fixtures.layouts import write_classes, write_got10k

RULE = class_rule(tuple(range(4)))


def save(path, value=0, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def pairs(root, names, suffix=".png", masks=".png"):
    for name in names:
        save(root / f"images/{name}{suffix}")
        save(root / f"masks/{name}{masks}", mode="L")
    return root / "images", root / "masks"


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [".", "..", "../..", "a", "../pictures/a"])
def test_a_link_back_counts_no_image_twice(tmp_path, target):
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / "data/pictures" / name)
    (tmp_path / "data/pictures/latest").symlink_to(target)
    (tmp_path / "data/pictures/b/again").symlink_to("..")
    assert ImageFolder(tmp_path / "data/pictures").names == ["a/1.png", "b/2.png"]


def test_links_that_lead_to_each_other(tmp_path):
    for one, other in (("x", "y"), ("y", "x")):
        save(tmp_path / one / "1.png")
        (tmp_path / one / "link").symlink_to(tmp_path / other)
    (tmp_path / "pictures").mkdir()
    for name in ("first", "second"):
        (tmp_path / "pictures" / name).symlink_to(tmp_path / "x")
    assert ImageFolder(tmp_path / "pictures").names == ["first/1.png", "first/link/1.png"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "nothing", "loop"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, monkeypatch):
    save(tmp_path / "1.png")
    path = tmp_path / "2.PNG"
    monkeypatch.chdir(tmp_path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        path.symlink_to("gone" if kind == "nothing" else path.name)
    with pytest.raises(UserError, match=r"2\.PNG is no file"):
        ImageFolder(tmp_path)


def test_other_pipes_hidden_files_and_hidden_folders_are_passed_over(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / ".thumbnails/1.png")
    save(tmp_path / ".2.png")
    os.mkfifo(tmp_path / "log")
    assert ImageFolder(tmp_path).names == ["1.png"]


@pytest.mark.parametrize("name", [b"a\nb.png", b"a\rb.png", b"a\xff.png", b"a\x1b[31m.png"])
def test_names_that_no_table_could_hold_are_refused(tmp_path, name):
    save(tmp_path / "1.png")
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(UserError, match=r"has a file named '.*; allowed: names of printable characters"):
        ImageFolder(tmp_path)


@pytest.mark.slow
def test_a_folder_of_thousands_of_images_is_listed_whole(tmp_path):
    for part in range(12):
        (tmp_path / f"{part}").mkdir()
        for number in range(500):
            os.close(os.open(tmp_path / f"{part}/{number}.jpg", os.O_CREAT))
    names = find_files(tmp_path, EXTENSIONS)
    frames = frames_in_order([name for name in names if name.startswith("0/")], tmp_path)
    assert (len(names), len(frames)) == (6_000, 500)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_suffixes_in_any_case_are_files_like_others(tmp_path):
    images, masks = pairs(tmp_path, ["1", "2"])
    pairs(tmp_path, ["3"], ".JPG", ".PNG")
    pairs(tmp_path, ["4"], ".Jpeg", ".Png")
    assert [e.image.name for e in list_folders(images, masks, RULE)] == ["1.png", "2.png", "3.JPG", "4.Jpeg"]


@pytest.mark.parametrize("missing", [["1"], ["1", "2"]])
@pytest.mark.parametrize("of", ["images", "masks"])
def test_what_has_no_partner_is_counted_and_named(tmp_path, missing, of):
    images, masks = pairs(tmp_path, ["1", "2", "3", "10"])
    for name in missing:
        (tmp_path / of / f"{name}.png").unlink()
    path = (masks if of == "images" else images) / "1.png"
    with pytest.raises(UserError, match=rf"{path} has no (mask|image).* \({len(missing)} of 4 (images|masks)\)"):
        list_folders(images, masks, RULE)


@pytest.mark.parametrize("other", ["1.jpg", "1.PNG", "1.webp"])
def test_two_images_or_masks_of_one_stem_are_refused(tmp_path, other):
    images, masks = pairs(tmp_path, ["1"])
    save(images / other)
    with pytest.raises(UserError, match=rf"images has two files of one name: 1\.(png|PNG) and (1\.png|{other})|{other} and 1\.png"):
        list_folders(images, masks, RULE)
    if other == "1.PNG":
        (images / other).rename(masks / other)
        with pytest.raises(UserError, match="masks has two files of one name"):
            list_folders(images, masks, RULE)


def test_every_layout_counts(tmp_path):
    """Half of the masks missing: each list says so, the frozen evaluations' and the toolboxes' are the same functions."""
    for number in range(4):
        for name in (f"ADEChallengeData2016/images/training/{number}.jpg", f"train2017/{number}.jpg"):
            save(tmp_path / name)
        if number < 2:
            for name in (f"ADEChallengeData2016/annotations/training/{number}.png", f"stuffthingmaps/train2017/{number}.png"):
                save(tmp_path / name, mode="L")
    for attempt in (list_ade20k, list_coco_stuff):
        with pytest.raises(UserError, match=r"2\.jpg has no mask \(2 of 4 images\)"):
            attempt(tmp_path, "training" if attempt is list_ade20k else "train2017", RULE)


def test_masks_of_another_size_or_turned_are_found_in_the_list(tmp_path):
    """By headers, before anything is read."""
    images, masks = pairs(tmp_path, ["1", "2"])
    save(masks / "2.png", size=(4, 6), mode="L")
    with pytest.raises(UserError, match=r"2\.png is 4x6, but .*2\.png is 6x4"):
        list_folders(images, masks, RULE)
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.new("RGB", (4, 6)).save(images / "2.png", exif=tags)
    with pytest.raises(UserError, match=r"images/2\.png has the EXIF orientation 3"):
        list_folders(images, masks, RULE)


# -- order -------------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 6)), min_size=1, max_size=12, unique_by=lambda pair: pair[0]))
def test_frames_are_in_the_order_of_their_numbers(numbers):
    names = [f"frame{number:0{width}d}.jpg" for number, width in numbers]
    found = [int(name[5:-4]) for name in frames_in_order(reversed(names), "x")]
    assert found == sorted(number for number, _ in numbers)


@pytest.mark.parametrize("names", ["one.jpg two.jpg", "-1.jpg 1.jpg", "frame_1.jpg Frame_2.jpg", "8.jpg a.jpg", "1.jpg cover.jpg"])
def test_frames_that_numbers_do_not_order_are_refused(names):
    with pytest.raises(UserError, match="x has frames whose names differ in more than a number"):
        frames_in_order(names.split(), "x")


@pytest.mark.parametrize("other", ["1.png", "01.jpg", "1.JPG"])
def test_two_frames_of_one_number_are_refused(tmp_path, other):
    save(tmp_path / "a/1.jpg")
    save(tmp_path / f"a/{other}")
    with pytest.raises(UserError, match="two frames of one number"):
        FrameFolders(tmp_path)


def write_sequences(root, layout, numbers, suffix=".jpg"):
    """A sequence `swan` in the layout of DAVIS or YouTube-VOS; frame n is of brightness n."""
    images, masks = ("JPEGImages/480p", "Annotations/480p") if layout == "davis" else ("train/JPEGImages", "train/Annotations")
    for number in numbers:
        save(root / images / f"swan/{number}{suffix}", number)
        save(root / masks / f"swan/{number}.png", number % 3, mode="L")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("swan\n")
    return root / images / "swan", root / masks / "swan"


LISTS = {"davis": list_davis, "youtube": list_youtube_vos}


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".png"])
@pytest.mark.parametrize("layout", LISTS)
def test_videos_are_in_the_order_of_their_numbers(tmp_path, layout, suffix):
    write_sequences(tmp_path, layout, range(11), suffix)
    (video,) = LISTS[layout](tmp_path)
    assert [int(frame.stem) for frame in video.frames] == list(range(11))
    assert [round(video.image(n).mean()) for n in range(11)] == pytest.approx(list(range(11)), abs=1)
    assert [int(mask.max()) for mask in video.truth()] == [n % 3 for n in range(11)]


@pytest.mark.parametrize("layout", LISTS)
def test_masks_and_frames_without_each_other(tmp_path, layout):
    images, masks = write_sequences(tmp_path, layout, range(4))
    (masks / "2.png").unlink()
    if layout == "davis":
        with pytest.raises(UserError, match=r"swan/2\.jpg has no mask \(1 of 4 images\)"):
            list_davis(tmp_path)
    else:
        assert [frame.stem for frame in list_youtube_vos(tmp_path)[0].frames] == ["0", "1", "3"]
    (images / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"swan/3\.png has no image of that name"):
        LISTS[layout](tmp_path)


def test_got10k_is_in_the_order_of_its_numbers(tmp_path):
    """Sorted as text, frame 10 would have the box of frame 2."""
    write_got10k(tmp_path, frames=11)
    folder = tmp_path / "val/GOT-10k_Val_000001"
    for number in range(1, 12):
        (folder / f"{number:08d}.jpg").rename(folder / f"{number}.{'JPG' if number % 2 else 'jpg'}")
    track = read_tracks(tmp_path)[0]
    assert [int(frame.stem) for frame in track.frames] == list(range(1, 12))
    for frame, box in zip(track.frames, track.boxes.astype(int), strict=True):
        with Image.open(frame) as image:
            assert np.asarray(image)[box[1] : box[3], box[0] : box[2]].min() > 100, "the box holds the bright square"


# -- lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa\nb\n", b"a\r\nb\r\n", b"\n\na\n\n  b  \n\n", b"a\nb", b"\xef\xbb\xbf\r\na\r\n\r\n\tb"])
def test_marks_line_ends_and_blanks_count_for_nothing(tmp_path, content):
    (tmp_path / "val.txt").write_bytes(content)
    assert read_list(tmp_path / "val.txt", todo="") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", r"val\.txt, line 3: a is in line 1, too"),
        (b"\xef\xbb\xbfa\nb\na \r\n", r"line 3: a is in line 1"),
        (b"a\n../b\n", r"line 2: '\.\./b' is no file inside its folder"),
        (b"a/../../b\n", "is no file inside"),
        (b"/etc/passwd\n", "is no file inside"),
        (b"..\\b\n", "is no file inside"),
        (b"./a\n", "is no file inside"),
        (300 * b"a" + b"\n", "is no file inside"),
        (b"a\x00b\n", "is no file inside"),
        (b"\xff\xfea\x00\n\x00", "is no text in UTF-8"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
    ],
)
def test_lists_that_would_count_twice_or_lead_away_are_refused(tmp_path, content, message):
    (tmp_path / "val.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "val.txt", todo="")


def test_a_list_of_voc_is_read_so(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    for name in ("a", "b"):
        save(base / f"JPEGImages/{name}.jpg")
        save(base / f"SegmentationClass/{name}.png", mode="L")
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    path = base / "ImageSets/Segmentation/val.txt"
    path.write_bytes(b"\xef\xbb\xbfb\r\na\r\n")
    assert [e.image.stem for e in list_voc(tmp_path, "val", "SegmentationClass", RULE)] == ["b", "a"]
    path.write_text("a\n../JPEGImages/b\n")
    with pytest.raises(UserError, match=r"line 2: '\.\./JPEGImages/b'"):
        list_voc(tmp_path, "val", "SegmentationClass", RULE)


def test_a_class_is_counted_once(tmp_path):
    write_classes(tmp_path, {"train": {"n01": 2, "n02": 2}, "val": {"n01": 1, "n02": 1}})
    for target, said in ((".", "a folder above it"), ("n01", "n01")):
        (tmp_path / "train/zzz").symlink_to(target)
        with pytest.raises(UserError, match=rf"train/zzz is a link to {said}"):
            list_imagenet(tmp_path)
        (tmp_path / "train/zzz").unlink()
