"""Clips from a video as it comes against clips from its training copy, and the transcoding against a plain one.

    python benchmarks/video.py                            # a generated 720p60 walk of 8 s: under a minute
    python benchmarks/video.py --height 2160 --seconds 10 # 4K
    python benchmarks/video.py walk.mp4 --seconds 60      # the first minute of a video, cut without re-encoding

CPU seconds count all threads of a process. Memory is a forked data loader worker's: what it does not share with its parent
("own"), and all that is mapped ("RSS", most of it the parent's libraries).
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from densewalk.data.receipts import VideoReceipt
from densewalk.data.settings import VideoSettings
from densewalk.data.video.clips import ClipReader, VideoClips
from densewalk.data.video.probe import probe
from densewalk.data.video.transcode import target_size, transcode
from densewalk.methods.dora.settings import DoraSettings
from densewalk.ops.cpu.memory import trim_heap

FRAMES, SPACING = 8, 1.0


def main() -> None:
    """Print both tables."""
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.mp4")
        if args.video:
            cut(args.video, source, args.seconds)
        else:
            generate(source, args.height, args.seconds)
        settings = VideoSettings(source=str(source), **({"short_side": args.short_side} if args.short_side else {}))
        info = probe(source)
        print(f"{info.codec} {info.width}x{info.height}, {info.fps:g} fps, {info.frames} frames, {source.stat().st_size / 2**20:.1f} MiB")
        receipt, ratio = compare_transcoding(source, Path(folder), settings, args.repeats)
        print(f"training copy {receipt.width}x{receipt.height}, gop {receipt.gop}, {receipt.bytes / 2**20:.1f} MiB")
        _, own, rss = compare_clips(source, receipt, args.clips)
        if info.height >= 2160:
            compare_figures(ratio, own, rss)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="a video file instead of a generated one")
    parser.add_argument("--height", type=int, default=720, help="of the generated video")
    parser.add_argument("--seconds", type=float, default=8.0, help="of video; a clip takes 7")
    parser.add_argument("--short-side", type=int, help="of the training copy")
    parser.add_argument("--clips", type=int, default=5, help="per reader")
    parser.add_argument("--repeats", type=int, default=2, help="of the transcoding")
    return parser.parse_args()


# -- sources ---------------------------------------------------------------------------------------------------------


def generate(path: Path, height: int, seconds: float, fps: int = 60) -> None:
    """A walk past a detailed wall, with sensor noise, in the manner of a download: key frames 5 s apart, B-frames."""
    width = height * 16 // 9 // 2 * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23", "g": "300"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(walk(width, height, round(seconds * fps))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def walk(width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """RGB pictures panning over random texture of all scales."""
    rng = np.random.default_rng(0)
    wall = np.zeros((height * 3 // 2, width * 2, 3), np.float32)
    for cells in (6, 24, 96, 384):
        texture = rng.normal(0, 60 / cells**0.25, (cells, cells * 2, 3)).astype(np.float32)
        wall += cv2.resize(texture, wall.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    wall = np.clip(wall + 128, 0, 255).astype(np.uint8)
    noise = rng.normal(0, 3, (3, height, width, 3)).astype(np.int8)
    for i in range(frames):
        x, y = width * i // frames, round(height / 4 * (1 + np.sin(i / 60)))
        yield cv2.add(wall[y : y + height, x : x + width], noise[i % 3], dtype=cv2.CV_8U)


def cut(source: Path, target: Path, seconds: float) -> None:
    """The first `seconds` of a video, as they are."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base > seconds:
                return
            packet.stream = copied
            out.mux(packet)


def compare_figures(ratio: float, own: float, rss: float) -> None:
    """A ratio of two runs in turns and memory, on a 4K source, beside the most they may be; seconds depend on the machine."""
    print(f"\n{'figure, for a 4K60 source':28} {'here':>7} {'most':>7}")
    for name, here, most in (
        ("transcode / plain, CPU", ratio, 1.3),
        ("MiB a worker, own", own, 600),
        ("MiB a worker, RSS", rss, 600),
    ):
        print(f"{name:28} {here:7.2f} {most:7g}  {'met' if here <= most else 'MISSED'}")


# -- transcoding -----------------------------------------------------------------------------------------------------


def compare_transcoding(source: Path, folder: Path, settings: VideoSettings, repeats: int) -> tuple[VideoReceipt, float]:
    """CPU and wall seconds of `transcode` and of a plain loop in turn; the receipt of the last copy, and their CPU seconds' ratio."""
    plain_times, times = [], []
    for _ in range(repeats):
        plain_times.append(timed(plain, source, folder / "plain.mp4", settings)[0])
        elapsed, receipt = timed(transcode, settings, folder / "copy.mp4", threads=1)
        times.append(elapsed)
    ratio = [statistics.median(t[i] / p[i] for t, p in zip(times, plain_times, strict=True)) for i in (0, 1)]
    for name, rows in (("plain decode, scale, encode", plain_times), ("transcode", times)):
        cpu, wall = (statistics.median(row[i] for row in rows) for i in (0, 1))
        print(f"{name:28} {cpu:7.2f} CPU-s {wall:7.2f} s  {cpu / receipt.source_frames * 1000:6.1f} CPU-ms a frame")
    print(f"{'transcode / plain':28} {ratio[0]:7.2f}       {ratio[1]:7.2f}    (median of {repeats})\n")
    return receipt, ratio[0]


def timed(function: Any, *args: Any, **kwargs: Any) -> tuple[tuple[float, float], Any]:
    """(CPU seconds, wall seconds), result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function(*args, **kwargs)
    return (time.process_time() - cpu, time.perf_counter() - wall), result


def plain(source: Path, target: Path, settings: VideoSettings) -> None:
    """Decode every frame, scale it, encode it with the same parameters: nothing else."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        width, height = target_size(stream.width, stream.height, settings.short_side)
        options = {"preset": "veryfast", "tune": "fastdecode", "crf": str(settings.crf), "bf": "0", "x264-params": "scenecut=0"}
        encoder = out.add_stream("libx264", rate=stream.average_rate, options=options)
        encoder.width, encoder.height, encoder.pix_fmt, encoder.gop_size = width, height, "yuv420p", settings.gop
        encoder.codec_context.thread_count = 4
        scale = VideoReformatter()
        for number, frame in enumerate(container.decode(stream)):
            scaled = scale.reformat(frame, width, height, format="yuv420p", interpolation="AREA")
            scaled.pts, scaled.time_base, scaled.pict_type = number, Fraction(1) / stream.average_rate, 0
            out.mux(encoder.encode(scaled))
        out.mux(encoder.encode(None))


# -- clips -----------------------------------------------------------------------------------------------------------


class ViewReader:
    """DoRA's samples from a training copy: all that a data loader's worker does for one."""

    def __init__(self, reader: ClipReader) -> None:
        from densewalk.methods.dora.augmentation import (
            DoraClips,  # late: what it imports counts as memory, and the other readers need none of it
        )

        self.reader, self.samples = reader, partial(DoraClips, settings=DoraSettings(compat="released").resolved())

    def read(self, indices: list[int]) -> Any:
        """One sample."""
        from densewalk.training.sampler import Item

        return self.samples([self.reader.read(indices)])[Item(0, seed=indices[0])]


def compare_clips(source: Path, receipt: VideoReceipt, count: int) -> tuple[float, float, float]:
    """CPU seconds and memory of loading clips, each reader in a process of its own; those of the training copy's as DoRA's samples."""
    clips = VideoClips(receipt, FRAMES, SPACING)
    chosen = np.random.default_rng(0).integers(0, len(clips), count)
    indices = [clips.frame_indices(int(i)) for i in chosen]
    print(f"clip loading, {FRAMES} frames {SPACING:g} s apart")
    trim_heap(torch.device("cpu"))  # what making and transcoding the video left in the heap, which no training has
    first = measure("source, decord", ClipReader(source, reader="decord"), indices)[0]
    measure("source, PyAV", ClipReader(source, reader="pyav"), indices, first)
    measure("copy, decord", ClipReader(receipt.path, gop=receipt.gop, reader="decord"), indices, first)
    ours = ClipReader(receipt.path, gop=receipt.gop, reader="pyav")
    measure("copy, PyAV (VideoClips)", ours, indices, first)
    return measure("the same, cut for DoRA", ViewReader(ours), indices, first)


def measure(name: str, reader: ClipReader | ViewReader, indices: list[list[int]], first: float | None = None) -> tuple[float, float, float]:
    """Print and return the median CPU seconds of a clip, and the memory; `first`: the seconds to compare with."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        times, own, rss = pool.apply(load, (reader, indices))
    median = statistics.median(times)
    spread = f"({min(times):.3f} to {max(times):.3f})"
    faster = (first or median) / median
    print(f"{name:28} {median:7.3f} CPU-s a clip {spread:20} {faster:6.1f}x  own {own:5.0f} MiB, RSS {rss:5.0f} MiB")
    return median, own, rss


def load(reader: ClipReader | ViewReader, indices: list[list[int]]) -> tuple[list[float], float, float]:
    """CPU seconds of each clip, the most memory (MiB) that is this process's own, and that is mapped."""
    torch.set_num_threads(1)
    reader.read(indices[0])  # opens the file
    times, own = [], 0.0
    for clip in indices:
        times.append(timed(reader.read, clip)[0][0])
        own = max(own, memory("/proc/self/smaps_rollup", "Private_Clean:", "Private_Dirty:"))
    return times, own, memory("/proc/self/status", "VmHWM:")


def memory(path: str, *keys: str) -> float:
    """The sum of some of the kernel's figures on a process, in MiB."""
    lines = Path(path).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(keys)) / 1024


if __name__ == "__main__":
    os.environ.pop("DENSEWALK_VIDEO_READER", None)
    main()
