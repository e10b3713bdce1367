import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from densewalk import datasets as module
from densewalk import download
from densewalk.__main__ import main
from densewalk.checkpoint import read_json
from densewalk.datasets import Dataset, datasets, fetch_video, prepare, write_trainaug
from densewalk.download import receipt_path
from densewalk.errors import UserError
from densewalk.provenance import file_sha256
from densewalk.video import write_video
from tests.server import serving

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
    grey, labels = np.zeros((8, 9, 3), np.uint8), np.ones((8, 9), np.uint8)
    lists = {"train": "a\n", "val": "v\n"}
    main_part = {f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}
    main_part |= {f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": picture(grey, "JPEG") for name in "abv"}
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


def test_what_is_missing_is_named_with_folder_and_command(tmp_path, voc):
    prepare("voc", tmp_path / "voc.json")
    os.remove("data/VOCdevkit/VOC2012/SegmentationClassAug/b.png")
    with pytest.raises(UserError, match=r"SegmentationClassAug/b.png does not exist.*; to do: .*densewalk data voc again"):
        prepare("voc", tmp_path / "voc.json")


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
[ "$4" = "https://example.org/gone" ] && { echo "ERROR: video unavailable" >&2; exit 1; }
cp "$VIDEO" "$2"
echo '{"id": "abc123", "format_id": "137"}'
"""


def test_a_walk_comes_by_yt_dlp_with_a_receipt(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "yt-dlp"
    tool.write_text(YT_DLP)
    tool.chmod(0o755)
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), np.uint8)
    write_video(tmp_path / "source.mp4", list(frames), 6.0)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VIDEO", str(tmp_path / "source.mp4"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    receipt = fetch_video("https://example.org/walk", tmp_path / "walk.mp4", codec="vp9", height=720)
    assert receipt == read_json(receipt_path(tmp_path / "walk.mp4"))
    assert (receipt["id"], receipt["fps"], receipt["sha256"]) == ("abc123", 6.0, file_sha256(tmp_path / "source.mp4"))
    assert "bestvideo[vcodec^=vp9][height<=720]" in (tmp_path / "log").read_text()
    with pytest.raises(UserError, match="yt-dlp: ERROR: video unavailable; to do: look which formats"):
        fetch_video("https://example.org/gone", tmp_path / "gone.mp4")
    assert not (tmp_path / "gone.mp4").exists()


def test_without_yt_dlp_the_way_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="yt-dlp is not installed; to do: pip install yt-dlp"):
        fetch_video("https://example.org/walk", tmp_path / "walk.mp4")
