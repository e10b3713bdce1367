"""Files of point tracks: what is written is read, and anything else is one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from densewalk.core.errors import UserError
from densewalk.data.video.tracks import Tracks, TracksHeader, read_tracks, write_tracks

HEADER = {"video": 64 * "1", "frames": 40, "width": 80, "height": 60, "step": 2}


def header(**changes):
    return TracksHeader(**{**HEADER, **changes})


def arrays(tracks=3, columns=4, **changes):
    points = np.random.default_rng(0).uniform(0, 60, (tracks, columns, 2)).astype(np.float32)
    whole = {"points": points, "visible": np.ones((tracks, columns), bool), "first": np.arange(tracks)}
    return {**whole, **changes}


def test_what_is_written_is_read(tmp_path):
    tracks = Tracks(header(), **arrays(sequence=np.array([0, 2, 2])))
    for name in ("a", "b"):
        write_tracks(tmp_path / name, tracks)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_tracks(tmp_path / "a")
    assert read.header == tracks.header
    assert all(np.array_equal(getattr(read, name), getattr(tracks, name)) for name in ("points", "visible", "first", "sequence"))


def test_a_file_of_another_program(tmp_path):
    """Half precision, 32-bit numbers and no sequence, as a script that knows nothing of this project writes them."""
    given = arrays(points=np.ones((3, 4, 2), np.float16), first=np.arange(3, dtype=np.int32))
    text = json.dumps({"kind": "densewalk point tracks", **HEADER})
    save_file(given, tmp_path / "t.safetensors", metadata={"tracks": text})
    read = read_tracks(tmp_path / "t.safetensors")
    assert read.points.dtype == np.float32
    assert read.sequence.tolist() == [0, 0, 0]


def holed():
    points = arrays()["points"]
    points[1, 2, 0] = np.nan
    return points


@pytest.mark.parametrize(
    ("given", "metadata", "message"),
    [
        (arrays(), None, "its metadata have no key tracks"),
        (arrays(), "{", "metadata, tracks: Invalid JSON"),
        (arrays(), json.dumps({**HEADER, "video": "walk.mp4"}), "metadata, tracks: video: String should match"),
        (arrays(), json.dumps({**HEADER, "step": 0}), "step: Input should be greater than or equal to 1"),
        (arrays(first=np.zeros(3, np.float32)), json.dumps(HEADER), "first holds numbers of type float32"),
        (arrays(first=np.zeros(2, np.int64)), json.dumps(HEADER), r"tracks with points \[3, 4, 2\], visible \[3, 4\], first \[2\]"),
        (arrays(first=np.array([0, -1, 2])), json.dumps(HEADER), "first or sequence of track 1 is below 0"),
        (arrays(visible=np.zeros((3, 4), bool)), json.dumps(HEADER), "no point of the 3 tracks is visible in any frame"),
        (arrays(points=holed()), json.dumps(HEADER), "points: track 1 is visible in column 2, but has no finite place there"),
        ({"points": arrays()["points"]}, json.dumps(HEADER), "it has no tensor visible"),
    ],
)
def test_anything_else_is_one_line(tmp_path, given, metadata, message):
    path = tmp_path / "t.safetensors"
    save_file(given, path, metadata=metadata and {"tracks": metadata})
    with pytest.raises(UserError, match=message) as error:
        read_tracks(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_such_file(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 something else")
    for name, message in (("a.npz", "cannot be read"), ("none", "there is no such file"), ("", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_tracks(tmp_path / name)
