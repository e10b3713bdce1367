"""Receipts: what is written is read back, and a broken one is one error that names the file and the key."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.data.receipts import CuratedReceipt, VideoReceipt, read_receipt, write_receipt
from densewalk.jobs.inputs import read_sources
from tests.fixtures.receipts import images_receipt, sequences_receipt, video_receipt


def curated_receipt(**changes):
    sources = {
        "walk": video_receipt(kept=(3, 5)),
        "photos": images_receipt(kept=()),
        "others": images_receipt(kept=(8,)),
    }
    content = {"name": "pool", "pictures": 9, "kept": 3, "duplicates": 4, "not_retrieved": 2, "largest_group": 3, "sources": sources}
    return CuratedReceipt(**{**content, "neighbour_similarity": {"5 %": 0.1, "50 %": 0.5, "95 %": 0.9}, **changes})


RECEIPTS = {
    "video": video_receipt(usable=((0, 5), (5, 300)), cuts=(7, 9), problems=("frozen from 0:00:30 to 0:00:40",)),
    "images": images_receipt(),
    "sequences": sequences_receipt(chosen=("a", "c"), fps=6.0),
    "curation": curated_receipt(),
}


@pytest.mark.parametrize("kind", RECEIPTS)
def test_a_receipt_is_read_as_it_was_written(tmp_path, kind):
    write_receipt(tmp_path / "walk.json", RECEIPTS[kind])
    assert read_receipt(tmp_path / "walk.json") == RECEIPTS[kind]
    content = json.loads((tmp_path / "walk.json").read_text())
    assert [*content][:2] == ["kind", "name"]
    assert content["kind"] == kind


def test_kept_is_written_where_something_was_chosen_only(tmp_path):
    write_receipt(tmp_path / "a.json", RECEIPTS["video"])
    assert "kept" not in json.loads((tmp_path / "a.json").read_text())
    write_receipt(tmp_path / "b.json", RECEIPTS["curation"])
    content = json.loads((tmp_path / "b.json").read_text())
    assert [[*source][-1] for source in content["sources"].values()] == ["kept"] * 3
    assert [source["kept"] for source in content["sources"].values()] == [[3, 5], [], [8]]


def test_of_a_curation_the_sources_with_something_left_are_trained_on(tmp_path):
    write_receipt(tmp_path / "pool.json", RECEIPTS["curation"])
    sources = read_sources(tmp_path / "pool.json", "pool")
    assert [(source.name, source.kind, source.receipt.kept) for source in sources] == [
        ("walk", "video", (3, 5)),
        ("others", "images", (8,)),
    ]


def test_receipts_are_read_without_torch():
    code = "import sys, densewalk.data.receipts; assert not {'torch', 'numpy', 'av'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def changed(which, /, **changes):
    content = RECEIPTS[which].model_dump(mode="json")
    return {key: value for key, value in {**content, **changes}.items() if value is not ...}


def in_source(name, **changes):
    sources = RECEIPTS["curation"].model_dump(mode="json")["sources"]
    return {"sources": {**sources, name: {**sources[name], **changes}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        ([], "Input should be an object, found \\[\\]"),
        (None, "Input should be an object, found None"),
        ({}, "Unable to extract tag using discriminator 'kind'"),
        (changed("video", kind="film"), "Input tag 'film' found using 'kind' does not match any of the expected tags: 'video'"),
        (changed("video", kind="images"), "files is missing"),
        # what version 0.1 did not write
        (changed("video", gop=...), "gop is missing"),
        (changed("video", cuts=...), "cuts is missing"),
        (changed("video", source_stamp=...), "source_stamp is missing"),
        (changed("sequences", chosen=...), "chosen is missing"),
        (changed("sequences", fps=...), "fps is missing"),
        (changed("video", crf=20), "crf: Extra inputs are not permitted"),
        (changed("video", settings={"source": "a.mp4", "speed": 2}), "settings.speed: Extra inputs are not permitted"),
        # wrong types
        (changed("video", fps="25"), "fps: Input should be a valid number, found '25'"),
        (changed("video", frames=9.5), "frames: Input should be a valid integer, .*found 9.5"),
        (changed("video", frames=True), "frames: Input should be a valid integer, found True"),
        (changed("video", path=None), "path: Input should be a valid string, found None"),
        (changed("video", usable={}), "usable: Input should be a valid array"),
        (changed("video", usable=[[1, 2, 3]]), "usable.0: Tuple should have at most 2 items"),
        (changed("video", problems="none"), "problems: Input should be a valid array, found 'none'"),
        (changed("images", smallest=[6]), "smallest.1 is missing"),
        (changed("images", listing="x"), "listing: String should match pattern"),
        # numbers that cannot be
        (changed("video", fps=float("nan")), "fps: Input should be .*, found nan"),
        (changed("video", duration=float("inf")), "duration: Input should be a finite number, found inf"),
        (changed("video", fps=0), "fps: Input should be greater than 0, found 0"),
        (changed("video", width=0), "width: Input should be greater than or equal to 1, found 0"),
        (changed("video", usable=[[-1, 5]]), "usable.0.0: Input should be greater than or equal to 0, found -1"),
        (changed("video", usable=[[5, 5]]), r"usable: \[5, 5\] is no range of 400 frames"),
        (changed("video", usable=[[9, 5]]), r"usable: \[9, 5\] is no range of 400 frames"),
        (changed("video", usable=[[0, 401]]), r"usable: \[0, 401\] is no range of 400 frames"),
        (changed("video", usable=[[0, 50], [40, 60]]), "usable: the part from 40 on begins before frame 50"),
        (changed("video", cuts=[9, 3]), "cuts: each number must be larger than the one before"),
        (changed("video", cuts=[400]), "cuts: there is no frame 400, only 400"),
        (changed("video", kept=[3, 3]), "kept: each number must be larger than the one before"),
        (changed("video", kept=[-1]), "kept.0: Input should be greater than or equal to 0"),
        (changed("video", kept=[7, 400]), "kept: there is no frame 400, only 400"),
        (changed("images", kept=[9]), "kept: there is no image 9, only 9"),
        (changed("images", files=0), "files: Input should be greater than or equal to 1"),
        (changed("sequences", fps=-6.0), "fps: Input should be greater than 0"),
        (changed("curation", neighbour_similarity={"50 %": float("nan")}), "neighbour_similarity.*: Input should be a finite number"),
        (changed("curation", kept=4), "pictures: 9 is not the sum"),
        (changed("curation", kept=4, duplicates=3), "kept: 4, but the sources keep 3"),
        (changed("curation", **in_source("walk", kept=[5, 3])), "sources.walk.video.kept: each number must be larger"),
        (changed("curation", **in_source("photos", kept=[True])), "sources.photos.images.kept.0: Input should be a valid integer"),
        (changed("curation", sources={"davis": changed("sequences")}), "sources.davis: Input tag 'sequences' found using 'kind'"),
    ],
)
def test_a_broken_receipt_is_one_error_that_names_file_and_key(tmp_path, content, message):
    path = tmp_path / "walk.json"
    if isinstance(content, str | bytes):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    else:
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^receipt .*walk\.json: {message}") as error:
        read_sources(path, "walk")
    assert str(error.value).endswith("to do: delete it, so that it is made again")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


def test_a_receipt_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"receipt .*gone\.json cannot be read: No such file"):
        read_receipt(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_receipt(tmp_path)


def test_no_program_makes_a_wrong_receipt():
    with pytest.raises(ValidationError, match="no range"):
        video_receipt(usable=((0, 500),))
    with pytest.raises(ValidationError, match="frozen"):
        video_receipt().fps = 1.0
    assert VideoReceipt.model_fields["kept"].default is None
