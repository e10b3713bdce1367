"""A transcoding that is stopped goes on, and ends with the very bytes of one that was not."""

import av
import pytest

from densewalk.data.settings import VideoSettings
from densewalk.data.video import parts
from densewalk.data.video import transcode as module
from densewalk.data.video.encode import Encoder
from densewalk.data.video.transcode import transcode
from tests.fixtures.videos import barcode, encode

FPS = 25
UNEVEN = [40 * i for i in range(60)] + [3100 + 25 * i for i in range(80)]
SOURCES = {
    "even": {"name": "a.mkv"},
    "B-frames": {"name": "a.mp4"},
    "variable": {"name": "a.mkv", "stamps": UNEVEN, "rate": FPS},
}


class Stopped(Exception):
    """As by a signal."""


@pytest.fixture(autouse=True)
def _parts_of_a_second(monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", 1.0)


def source_of(folder, kind):
    options = dict(SOURCES[kind])
    return encode(folder / options.pop("name"), map(barcode, range(140)), **options)


def stop_after(monkeypatch, frames):
    """Let the encoder be stopped behind so many frames; what was decoded is counted."""
    written, decoded = [], []
    write, decode = Encoder.write, module.decode_packets

    def counted(self, frame):
        if len(written) == frames:
            raise Stopped
        written.append(frame.pts)
        write(self, frame)

    def watched(packets):
        for frame in decode(packets):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(Encoder, "write", counted)
    monkeypatch.setattr(module, "decode_packets", watched)
    return written, decoded


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("settings", [{}, {"fps": 10, "usable_seconds": [(0.5, 4.0)]}], ids=["as it is", "slower"])
def test_a_stopped_transcoding_ends_with_the_same_bytes(tmp_path, monkeypatch, kind, settings):
    source = source_of(tmp_path, kind)
    wanted = VideoSettings(source=str(source), short_side=96, **settings)
    (tmp_path / "whole").mkdir()
    whole = transcode(wanted, tmp_path / "whole" / "copy.mp4")
    for stop in (round(2.4 * whole.fps), round(1.3 * whole.fps)):  # in the third part, then in the one after the next
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Stopped):
                transcode(wanted, tmp_path / "copy.mp4")
    with monkeypatch.context() as patch:
        written, decoded = stop_after(patch, 10**6)
        receipt = transcode(wanted, tmp_path / "copy.mp4")
    assert 0 < len(written) < receipt.frames
    assert len(decoded) < 140
    assert receipt.model_copy(update={"path": whole.path}) == whole
    assert not list(tmp_path.glob(".*.parts"))


def test_parts_are_one_video_with_key_frames_at_multiples_of_the_gop(tmp_path):
    settings = VideoSettings(source=str(source_of(tmp_path, "even")), short_side=96)
    receipt = transcode(settings, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        frames, unit = list(container.decode(video=0)), container.streams.video[0].time_base
    assert len(frames) == receipt.frames == 140
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == list(range(0, 140, receipt.gop))
    assert [frame.pts for frame in frames] == [round(i / receipt.fps / unit) for i in range(140)]


def test_a_copy_of_one_part_has_the_bytes_of_one_encoder(tmp_path, monkeypatch):
    settings = VideoSettings(source=str(source_of(tmp_path, "even")), short_side=96)
    monkeypatch.setattr(parts, "SECONDS", 600.0)
    transcode(settings, tmp_path / "copy.mp4")
    info, timeline = module.probe_timeline(settings.source, samples=True)
    pipeline = module.FramePipeline(info, timeline, settings, 1, "")
    with Encoder(tmp_path / "plain.mp4", *pipeline.size, pipeline.rate, settings.crf, settings.gop) as encoder:
        for frame in pipeline.frames():
            encoder.write(frame)
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "copy.mp4").read_bytes()


def test_parts_of_another_source_are_not_used(tmp_path, monkeypatch):
    source = source_of(tmp_path, "even")
    settings = VideoSettings(source=str(source), short_side=96)
    with monkeypatch.context() as patch:
        stop_after(patch, 60)
        with pytest.raises(Stopped):
            transcode(settings, tmp_path / "copy.mp4")
    encode(source, map(barcode, range(139, -1, -1)))
    with monkeypatch.context() as patch:
        written, _ = stop_after(patch, 10**6)
        assert transcode(settings, tmp_path / "copy.mp4").frames == len(written) == 140
