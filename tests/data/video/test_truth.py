"""One truth: frame n is the n-th frame of sequential decoding, for every reader and kind of file, or a refusal by name."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from densewalk.core.errors import UserError
from densewalk.data.settings import VideoSettings
from densewalk.data.video import survey
from densewalk.data.video.clips import ClipReader
from densewalk.data.video.orientation import ORIENTATIONS
from densewalk.data.video.probe import probe
from densewalk.data.video.survey import Survey
from densewalk.data.video.timeline import scan_packets
from densewalk.data.video.transcode import transcode
from tests.fixtures.videos import barcode, encode, numbers_in

TOTAL = 90
GOP = {"preset": "veryfast", "g": "24", "bf": "3"}
OPEN_GOP = {**GOP, "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
REFRESH = {"preset": "veryfast", "g": "24", "bf": "0", "x264-params": "intra-refresh=1"}
HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=24:min-keyint=24:bframes=4:open-gop=1:scenecut=0:b-adapt=0"}
MPEG = {"g": "12", "bf": "2", "b": "2000000"}
ASKED = [80, 3, 3, 47, 48, 49, 23, 25, 0, 89, 72, 1]


def copied(path: Path, **settings) -> tuple[list[int], tuple[str, ...], float]:
    """Numbers in the training copy, its problems and its rate."""
    target = path.with_name("copy.mp4")
    receipt = transcode(VideoSettings(source=str(path), min_frozen_seconds=99.0, **settings), target)
    return numbers_in(ClipReader(target, gop=receipt.gop).read(range(receipt.frames))), receipt.problems, receipt.fps


def surveyed(path: Path, whole: bool) -> list[tuple[float, int]]:
    """Seconds and numbers of the frames that a survey looks at."""
    frames = Survey(VideoSettings(source=str(path), min_frozen_seconds=99.0, skip_broken=True), whole=whole)
    return [(seconds, numbers_in(torch.from_numpy(frame.copy()).permute(2, 0, 1)[None])[0]) for seconds, frame in frames]


NO_ORDER = "its time stamps do not say in which order frames are shown"
KINDS = [
    ("mp4", "libx264", GOP, None),
    ("mkv", "libx264", GOP, None),
    ("ts", "libx264", GOP, None),
    ("ts", "libx264", {**GOP, "g": "250"}, None),
    ("flv", "libx264", GOP, None),
    ("avi", "libx264", GOP, NO_ORDER),
    ("asf", "libx264", GOP, NO_ORDER),
    ("mp4", "libx264", OPEN_GOP, None),
    ("mkv", "libx264", OPEN_GOP, None),
    ("ts", "libx264", OPEN_GOP, None),
    ("mp4", "libx264", REFRESH, "is not where its packets say"),
    ("mp4", "libx265", HEVC, None),
    ("ts", "libx265", HEVC, None),
    ("mpg", "mpeg2video", MPEG, None),
    ("ts", "mpeg2video", MPEG, None),
    ("mp4", "mpeg4", MPEG, None),
    ("avi", "mpeg4", MPEG, None),
    ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "24", "b": "1000000"}, None),
]


@pytest.mark.parametrize(("suffix", "codec", "options", "refusal"), KINDS)
def test_every_reader_gives_frame_n(tmp_path, monkeypatch, suffix, codec, options, refusal):
    formats = {"ts": "mpegts"}
    path = encode(
        tmp_path / f"a.{suffix}", map(barcode, range(TOTAL)), codec=codec, options=options, rate=25, container_format=formats.get(suffix)
    )
    info = probe(path)
    assert (info.frames, info.fps) == (TOTAL, 25)
    assert info.duration == pytest.approx(TOTAL / 25, abs=0.01)
    assert copied(path) == (list(range(TOTAL)), (), 25.0)
    assert [number for _, number in surveyed(path, whole=True)] == list(range(TOTAL))
    monkeypatch.setattr(survey, "WHOLE_PIXELS", 0)
    assert all(round(seconds * 25) == number for seconds, number in surveyed(path, whole=False))
    for reader in ("auto", "decord", "pyav"):
        if refusal is None:
            assert numbers_in(ClipReader(path, reader=reader).read(ASKED)) == ASKED
            assert len(ClipReader(path, reader=reader)) == TOTAL
        else:
            with pytest.raises(UserError, match=f"cannot be read by frame number: .*{refusal}"):
                ClipReader(path, reader=reader).read([0])


def test_the_frames_before_an_open_group_are_not_counted(tmp_path):
    """A cut without re-encoding at an open group of pictures: its first frames need what was cut off, and are never shown."""
    whole = encode(tmp_path / "whole.mkv", map(barcode, range(TOTAL)), options=OPEN_GOP, rate=25)
    path = tmp_path / "cut.mkv"
    with av.open(str(whole)) as container, av.open(str(path), "w") as out:
        copied_stream, begun = out.add_stream_from_template(container.streams.video[0]), 0
        for packet in container.demux(video=0):
            begun += packet.is_keyframe
            if begun > 1 and packet.size:
                packet.stream = copied_stream
                out.mux(packet)
    with av.open(str(path)) as container:
        truth = [numbers_in_frame(frame) for frame in container.decode(video=0)]
    assert probe(path).frames == len(truth) < len(scan_packets(path).shown)
    assert copied(path)[0] == truth
    for reader in ("auto", "decord", "pyav"):
        clip_reader = ClipReader(path, reader=reader)
        assert [numbers_in(clip_reader.read([n]))[0] for n in (30, 0, 7, len(truth) - 1)] == [truth[n] for n in (30, 0, 7, -1)]


def numbers_in_frame(frame: av.VideoFrame) -> int:
    return numbers_in(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None])[0]


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_stamps_that_start_over_keep_the_order_of_the_file(tmp_path, suffix):
    """Two recordings one after the other, as `cat` makes them."""
    parts = [
        encode(
            tmp_path / f"{start}.{suffix}",
            map(barcode, range(start, start + 40)),
            codec="mpeg2video",
            options=MPEG,
            rate=25,
            container_format={"ts": "mpegts", "mpg": None}[suffix],
        )
        for start in (0, 40)
    ]
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    numbers, problems, rate = copied(path)
    assert (numbers, rate) == (list(range(80)), 25.0)
    assert problems[0] == "time stamps start over at 0:00:02: frames are in the order of the file"
    assert probe(path).duration == pytest.approx(3.2, abs=0.1)
    with pytest.raises(UserError, match="its time stamps start over"):
        ClipReader(path).read([0])


def test_two_frames_of_one_stamp_are_not_read_by_number(tmp_path):
    stamps = [40 * n - 40 * (n == 20) for n in range(40)]
    path = encode(tmp_path / "a.mkv", map(barcode, range(40)), options={"bf": "0"}, stamps=stamps, rate=25)
    with pytest.raises(UserError, match="several of its frames have one time stamp"):
        ClipReader(path).read([20])


# -- rates and durations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("flv", "libx264"), ("webm", "libvpx")])
def test_missing_frames_do_not_change_the_rate(tmp_path, suffix, codec):
    kept = [n for n in range(100) if n % 5 != 3 and n not in (41, 42)]
    path = encode(tmp_path / f"a.{suffix}", map(barcode, kept), codec=codec, stamps=[40 * n for n in kept], rate=25, options={"g": "24"})
    info = probe(path)
    assert (info.fps, info.frames, info.duration) == (25.0, len(kept), pytest.approx(4.0))
    numbers, problems, rate = copied(path)
    assert rate == 25.0
    assert numbers == [max(k for k in kept if k <= n) for n in range(100)]
    assert problems == (f"variable frame rate: for a constant one, {100 - len(kept)} frames are repeated and 0 left out",)


def test_a_browsers_recording_has_the_rate_of_its_stamps(tmp_path):
    """It states neither a duration nor a rate, from which FFmpeg makes 1000 frames a second."""
    steps = np.random.default_rng(0).choice([17, 33, 50], 149, p=[0.25, 0.5, 0.25])
    stamps = [0, *np.cumsum(steps).tolist()]
    path = encode(tmp_path / "a.webm", map(barcode, range(150)), codec="libvpx", stamps=stamps, rate=1000, options={"b": "1000000"})
    info = probe(path)
    assert info.fps == pytest.approx(30, abs=0.01)
    assert info.duration == pytest.approx(stamps[-1] / 1000 + 1 / 30, abs=0.001)
    numbers, _, rate = copied(path, usable_seconds=[(1.0, 3.0)])
    moments = np.arange(len(numbers)) / rate * 1000
    assert np.abs(np.array(stamps)[numbers] - moments).max() <= 50
    assert numbers == sorted(numbers)


def test_jitter_of_less_than_half_a_frame_keeps_every_frame(tmp_path):
    stamps = [round(1000 / 29.6 * n + jitter) for n, jitter in enumerate([0, *np.random.default_rng(0).uniform(-9, 9, 98), 0])]
    path = encode(tmp_path / "a.mkv", map(barcode, range(100)), stamps=stamps, rate=30)
    assert copied(path)[0] == list(range(100))


def test_a_jump_is_refused_before_anything_is_copied(tmp_path):
    path = encode(tmp_path / "a.mkv", map(barcode, range(40)), stamps=[40 * n + 60_000 * (n > 19) for n in range(40)], rate=25)
    with pytest.raises(UserError, match=r"a\.mkv time stamps jump from 0:00:01"):
        copied(path)
    assert probe(path).duration == pytest.approx(1.6)
    assert copied(path, skip_broken=True)[0] == list(range(40))


# -- orientation -----------------------------------------------------------------------------------------------------


def with_matrix(path: Path, entries: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into an MP4 file's track header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    matrix = struct.unpack(">9i", content[place : place + 36])
    a, b, c, d = (round(entry * 65536) for entry in entries)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, *matrix[5:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", list(ORIENTATIONS))
def test_all_eight_display_matrices_are_applied(tmp_path, matrix):
    a, b, c, d = matrix
    corners = {(0, 0): 250, (1, 0): 190, (0, 1): 130, (1, 1): 70}  # gray levels by column and row of the stored quarters
    stored = np.zeros((48, 64, 3), np.uint8)
    for (column, row), gray in corners.items():
        stored[24 * row : 24 * row + 24, 32 * column : 32 * column + 32] = gray
    path = with_matrix(encode(tmp_path / "a.mp4", [stored] * 5, options={"bf": "0"}), matrix)
    receipt = transcode(VideoSettings(source=str(path), min_frozen_seconds=99.0), tmp_path / "copy.mp4")
    shown = ClipReader(tmp_path / "copy.mp4", gop=receipt.gop).read([2])[0, 0].numpy()
    assert shown.shape == ((48, 64) if b == 0 else (64, 48))
    # p to the right and q down, from the middle, is shown at x = a p + c q, y = b p + d q
    for (column, row), gray in corners.items():
        p, q = 2 * column - 1, 2 * row - 1
        x, y = a * p + c * q, b * p + d * q
        found = shown[shown.shape[0] * (2 + y) // 4, shown.shape[1] * (2 + x) // 4]
        assert abs(int(found) - gray) < 6, (column, row)
    if matrix != (1, 0, 0, 1):
        with pytest.raises(UserError, match=r"is stored (turned|mirrored)"):
            ClipReader(path).read([0])


@pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.5, 0, 1), (1, 0, 0, 0.5), (0, 0, 0, 0)])
def test_other_display_matrices_are_refused_by_name(tmp_path, matrix):
    path = with_matrix(encode(tmp_path / "a.mp4", [barcode(3)] * 5, options={"bf": "0"}), matrix)
    for read in (probe, lambda path: ClipReader(path).read([0])):
        with pytest.raises(UserError, match=r"a\.mp4 is to be shown turned by .* degrees, skewed or stretched"):
            read(path)


# -- streams and raw files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "small", "count"), [("mkv", 64, 1), ("mp4", 640, 1), ("mkv", 64, 40), ("ts", 64, 40)])
def test_the_video_is_chosen_among_several_streams(tmp_path, suffix, small, count):
    """A picture is no video however large it is; of two videos the larger one is read."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w", format={"ts": "mpegts"}.get(suffix)) as container:
        streams = [(container.add_stream("libx264", rate=25), small, count), (container.add_stream("libx264", rate=25), 160, 40)]
        for stream, size, _ in streams:
            stream.width, stream.height, stream.pix_fmt = size, size * 3 // 4, "yuv420p"
        for n in range(40):
            for stream, size, total in streams:
                if n < total:
                    frame = av.VideoFrame.from_ndarray(barcode(n if size == 160 else 9999, size, size * 3 // 4), format="rgb24")
                    frame.pts = n
                    container.mux(stream.encode(frame.reformat(format="yuv420p")))
        for stream, *_ in streams:
            container.mux(stream.encode(None))
    numbers, problems, _ = copied(path)
    assert numbers == list(range(40))
    assert [p for p in problems if p.startswith("2 video streams: number 1 (h264, 160x120) is read, not number 0")] == list(problems)
    assert numbers_in(ClipReader(path).read([30, 5])) == [30, 5]


@pytest.mark.parametrize(("suffix", "codec"), [("h264", "libx264"), ("h265", "libx265"), ("m2v", "mpeg2video")])
def test_a_raw_stream_is_told_what_it_lacks(tmp_path, suffix, codec):
    formats = {"h265": "hevc", "m2v": "mpeg2video"}
    path = encode(tmp_path / f"a.{suffix}", map(barcode, range(30)), codec=codec, options={}, container_format=formats.get(suffix, suffix))
    for read in (probe, copied, lambda path: ClipReader(path).read([0])):
        with pytest.raises(UserError, match=rf"a\.{suffix} is a raw stream .* ffmpeg -framerate"):
            read(path)
