import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.core.hashing import file_sha256
from densewalk.data.download import fetch as download
from densewalk.data.download.catalog import Dataset, command_for, command_for_file, dataset_of, datasets
from densewalk.data.download.fetch import receipt_path
from densewalk.data.video.encode import write_video
from densewalk.jobs import fetch as module
from densewalk.jobs.fetch import VideoChoice, fetch_video, prepare, write_trainaug
from densewalk.study.registry import parse_evaluation
from tests.fixtures.server import serving

KNOWN = datasets()


def picture(array, kind):
    body = io.BytesIO()
    Image.fromarray(array).save(body, kind)
    return body.getvalue()


def zipped(content):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as made:
        for name, data in content.items():
            made.writestr(name, data)
    return body.getvalue()


def tiny_voc():
    """VOC's archive and that of the masks of trainaug, with three and one image."""
    gray, labels = np.zeros((8, 9, 3), np.uint8), np.ones((8, 9), np.uint8)
    lists = {"train": "a\n", "val": "v\n"}
    main_part = {f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}
    main_part |= {f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": picture(gray, "JPEG") for name in "abv"}
    masks = {f"SegmentationClassAug/{name}.png": picture(labels, "PNG") for name in "abv"}
    return {"voc.zip": zipped(main_part), "aug.zip": zipped({"masks.zip": zipped(masks)})}


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """The data set `voc` on a server of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    with serving(tiny_voc()) as files:
        aug = {"url": files.url("aug.zip"), "into": "VOCdevkit/VOC2012", "nested": ["masks.zip"]}
        entry = KNOWN["voc"].model_dump() | {"archives": [{"url": files.url("voc.zip")}, aug], "counts": "2 memory images, 1 query images"}
        monkeypatch.setattr(module, "datasets", lambda: {"voc": Dataset.model_validate(entry)})
        yield files


def test_a_set_is_downloaded_unpacked_and_counted(tmp_path, voc):
    voc.cuts = [100]
    assert prepare("voc", tmp_path / "voc.json") == "data/VOCdevkit/VOC2012: 2 memory images, 1 query images"
    receipt = read_json(tmp_path / "voc.json")
    assert set(receipt["archives"]) == {voc.url("voc.zip"), voc.url("aug.zip")}
    assert all(len(record["sha256"]) == 64 for record in receipt["archives"].values())
    assert (tmp_path / "data/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").read_text() == "a\nb\n"
    assert not (tmp_path / "data/.downloads").exists()
    before = len(voc.requests)
    (tmp_path / "voc.json").unlink()
    prepare("voc", tmp_path / "voc.json")  # what is there and whole is not downloaded again
    assert len(voc.requests) == before


def test_a_damaged_archive_leaves_no_receipt(tmp_path, voc):
    voc.content["aug.zip"] = voc.content["aug.zip"][:-50]
    with pytest.raises(UserError, match=r"aug.zip cannot be unpacked: .*; to do: remove it and fetch it again"):
        prepare("voc", tmp_path / "voc.json")
    assert not (tmp_path / "voc.json").exists()
    assert not (tmp_path / "data/VOCdevkit/VOC2012/SegmentationClassAug").exists()


def test_what_is_missing_is_named_with_folder_and_command_and_comes_again(tmp_path, voc):
    prepare("voc", tmp_path / "voc.json")
    before, mask = len(voc.requests), tmp_path / "data/VOCdevkit/VOC2012/SegmentationClassAug/b.png"
    mask.unlink()
    message = rf"SegmentationClassAug/b.png does not exist.*; to do: .*remove {tmp_path}/voc.json and .*densewalk data voc again"
    with pytest.raises(UserError, match=message):
        prepare("voc", tmp_path / "voc.json")
    assert len(voc.requests) == before  # not downloaded unasked
    (tmp_path / "voc.json").unlink()
    assert prepare("voc", tmp_path / "voc.json").endswith("2 memory images, 1 query images")
    assert mask.is_file()
    shutil.rmtree(tmp_path / "data")  # all of it: no traceback
    with pytest.raises(UserError, match=message.split("Segmentation")[0] + r".*VOC2012 does not exist.*densewalk data voc again"):
        prepare("voc", tmp_path / "voc.json")


def test_a_set_goes_where_it_is_wanted(tmp_path, voc):
    assert prepare("voc", tmp_path / "voc.json", tmp_path / "big") == f"{tmp_path}/big/VOCdevkit/VOC2012: 2 memory images, 1 query images"
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "big/.downloads").exists()


@pytest.mark.parametrize(
    ("name", "root", "command"),
    [
        ("voc", "data/VOCdevkit/VOC2012", "densewalk data voc"),
        ("voc", "./data/VOCdevkit/VOC2012/", "densewalk data voc"),
        ("voc", "/big/VOCdevkit/VOC2012", "densewalk data voc --folder /big"),
        ("voc", "/big/voc", "densewalk data voc --folder /big/voc, and root: /big/voc/VOCdevkit/VOC2012"),
        ("voc", "VOC2012", "densewalk data voc --folder VOC2012, and root: VOC2012/VOCdevkit/VOC2012"),
        ("davis", "DAVIS", "densewalk data davis --folder ."),
        ("coco", "/big/coco", "densewalk data coco --folder /big/coco"),
        ("cityscapes", "data/cityscapes", "densewalk data cityscapes"),
    ],
)
def test_the_command_fits_the_root(name, root, command):
    assert command_for(name, root) == command
    folder = Path(command.split("--folder ")[1].split(",")[0]) if "--folder" in command else Path(KNOWN[name].folder)
    wanted = command.split("root: ")[1] if "root: " in command else root
    assert Path(KNOWN[name].at(folder).root) == Path(wanted)


def test_every_set_s_own_check_and_folder_lead_to_its_command():
    for name, dataset in KNOWN.items():
        if dataset.check is not None:
            settings = parse_evaluation(dataset.check["protocol"], {**dataset.check["settings"], "dataset": name})
            assert dataset_of(dataset.check["protocol"], settings) == name
            assert command_for(name, settings.root) == f"densewalk data {name}"
    stuff = {"root": "data/coco", "dataset": "x", "layout": "coco_stuff"}
    assert dataset_of("incontext", parse_evaluation("incontext", stuff)) == "coco", "its 15 supercategories are panoptic annotations"
    assert dataset_of("segmentation_linear", parse_evaluation("segmentation_linear", stuff)) == "coco_stuff"
    assert command_for_file("data/coco/train2017") == "densewalk data coco"
    assert command_for_file("data/YouTube-VOS/train/JPEGImages") == "densewalk data youtube_vos"
    assert command_for_file("data/walking_tours/venice.mp4") == "densewalk data walking_tours --name venice"
    assert command_for_file("data/walking_tours/mine.mp4") is None
    assert command_for_file("data/cocoa/train2017") is None


def test_too_few_images_are_said(tmp_path, voc, monkeypatch):
    entry = module.datasets()["voc"].model_copy(update={"counts": "10582 memory images, 1449 query images"})
    monkeypatch.setattr(module, "datasets", lambda: {"voc": entry})
    with pytest.raises(UserError, match=r"voc is incomplete: .* 2 memory images, 1 query images; allowed: 10582 memory images"):
        prepare("voc", tmp_path / "voc.json")


@pytest.mark.parametrize("name", [name for name, entry in KNOWN.items() if entry.manual])
def test_what_only_a_person_can_get_is_told_step_by_step(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["data", name]) == UserError.exit_status
    assert f"{name} (" in caplog.text
    for number, step in enumerate(KNOWN[name].manual, start=1):
        assert f"({number}) {step}" in caplog.text


def test_unknown_sets_are_explained(tmp_path):
    with pytest.raises(UserError, match="no data set is called 'lvis'; allowed: coco, coco_stuff, ade20k"):
        prepare("lvis", tmp_path / "r.json")


def test_trainaug_is_all_but_val(tmp_path):
    (tmp_path / "SegmentationClassAug").mkdir()
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("c", "a", "b"):
        (tmp_path / "SegmentationClassAug" / f"{name}.png").touch()
    (lists / "val.txt").write_text("b\n")
    write_trainaug(tmp_path)
    assert (lists / "trainaug.txt").read_text() == "a\nc\n"


# stands for yt-dlp: writes the video it finds in $VIDEO, or fails as that does
YT_DLP = """#!/bin/sh
while [ "$1" != "-o" ]; do echo "$1" >> "$LOG"; shift; done
echo "$4" >> "$LOG"
[ "$4" = "$GONE" ] && { echo "ERROR: video unavailable" >&2; exit 1; }
cp "$VIDEO" "$2"
[ -z "$MUTE" ] && echo '{"id": "abc123", "format_id": "137"}'
exit 0
"""


@pytest.fixture
def yt_dlp(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "yt-dlp"
    tool.write_text(YT_DLP)
    tool.chmod(0o755)
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), np.uint8)
    write_video(tmp_path / "source.mp4", list(frames), 6.0)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VIDEO", str(tmp_path / "source.mp4"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("GONE", "https://example.org/gone")
    monkeypatch.chdir(tmp_path)


def test_a_walk_comes_by_yt_dlp_with_a_receipt(tmp_path, yt_dlp):
    receipt = fetch_video("https://example.org/walk", tmp_path / "walk.mp4", codec="vp9", height=720)
    assert receipt == read_json(receipt_path(tmp_path / "walk.mp4"))
    assert (receipt["id"], receipt["fps"], receipt["sha256"]) == ("abc123", 6.0, file_sha256(tmp_path / "source.mp4"))
    assert "bestvideo[vcodec^=vp9][height<=720]" in (tmp_path / "log").read_text()
    with pytest.raises(UserError, match="yt-dlp: ERROR: video unavailable; to do: look which formats"):
        fetch_video("https://example.org/gone", tmp_path / "gone.mp4")
    assert not (tmp_path / "gone.mp4").exists()


def test_walking_tours_come_by_their_names(tmp_path, yt_dlp, monkeypatch, capsys):
    assert main(["data", "walking_tours", "--name", "venice", "--codec", "vp9", "--height", "2160"]) == 0
    assert capsys.readouterr().out == "data/walking_tours: venice.mp4\n"
    asked = (tmp_path / "log").read_text()
    assert "https://www.youtube.com/watch?v=fGX0Te6pFvk" in asked
    assert "bestvideo[vcodec^=vp9][height<=2160]" in asked
    assert not (tmp_path / "results").exists(), "the whole set's receipt would be a lie"
    # all of them; what is there is not fetched again, and the others come although one is gone
    monkeypatch.setenv("GONE", f"https://www.youtube.com/watch?v={KNOWN['walking_tours'].videos['bangkok']}")
    with pytest.raises(UserError, match="not fetched: bangkok; to do: see above"):
        prepare("walking_tours", tmp_path / "r.json")
    assert len(list((tmp_path / "data/walking_tours").glob("*.mp4"))) == 9
    monkeypatch.delenv("GONE")
    prepare("walking_tours", tmp_path / "r.json")
    videos = read_json(tmp_path / "r.json")["videos"]
    assert videos.keys() == KNOWN["walking_tours"].videos.keys()
    assert all(len(v["sha256"]) == 64 and v["fps"] == 6.0 and v["id"] for v in videos.values())
    assert (tmp_path / "log").read_text().count("fGX0Te6pFvk") == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (VideoChoice(name="paris"), "walking_tours has no video 'paris'; allowed: amsterdam, bangkok"),
        (VideoChoice(name="../../x", address="https://example.org/x"), r"--name ../../x; allowed: letters, digits, _ and -"),
        (VideoChoice(address="https://example.org/x"), "--name is missing"),
    ],
)
def test_a_wrong_choice_of_video_is_explained(choice, message, tmp_path, yt_dlp):
    with pytest.raises(UserError, match=message):
        prepare("walking_tours", tmp_path / "r.json", choice=choice)


def test_a_yt_dlp_that_says_nothing_is_one_clear_error(tmp_path, yt_dlp, monkeypatch):
    monkeypatch.setenv("MUTE", "1")
    with pytest.raises(UserError, match="yt-dlp does not say what it has brought"):
        fetch_video("https://example.org/walk", tmp_path / "w" / "walk.mp4")
    assert list((tmp_path / "w").iterdir()) == []


def test_what_is_no_video_does_not_stay(tmp_path, yt_dlp, monkeypatch):
    (tmp_path / "page.mp4").write_text("<html>")
    monkeypatch.setenv("VIDEO", str(tmp_path / "page.mp4"))
    with pytest.raises(UserError, match="walk"):
        fetch_video("https://example.org/walk", tmp_path / "w" / "walk.mp4")
    assert list((tmp_path / "w").iterdir()) == []  # yt-dlp would take what is left for the whole


def test_without_yt_dlp_the_way_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="yt-dlp is not installed; to do: pip install yt-dlp"):
        fetch_video("https://example.org/walk", tmp_path / "walk.mp4")


def test_fetch_without_a_name_says_what_to_name(caplog):
    assert main(["fetch"]) == UserError.exit_status
    assert "nothing to fetch; to do: name a checkpoint that `densewalk checkpoints` lists, or a study" in caplog.text
