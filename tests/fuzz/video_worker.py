"""Read and transcode video files that may crash a C library: `python -m tests.fuzz.video_worker FILE ...`, one line of JSON each.

A line `{"started": FILE}` comes before a file's other lines, so that the file is known that ended the process.
"""

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from densewalk.core.errors import UserError
from densewalk.data.settings import VideoSettings
from densewalk.data.video.clips import ClipReader
from densewalk.data.video.transcode import transcode

SECONDS = 60  # for a file; they are of two seconds
BITS = 16
RATE = 25


def number(image: np.ndarray) -> int | None:
    """The number in an image's blocks; None if they are neither black nor white: the damage has reached them."""
    height, width = image.shape[:2]
    band = image[round(0.46 * height) : round(0.54 * height)].mean(axis=(0, 2))
    blocks = [float(band[round((b + 0.3) * width / BITS) : round((b + 0.7) * width / BITS)].mean()) for b in range(BITS)]
    if any(70 < block < 185 for block in blocks):
        return None
    return sum(1 << b for b, block in enumerate(blocks) if block > 127)


def sequential(path: str) -> list[int | None]:
    """The numbers of all frames that decoding from the beginning gives."""
    numbers: list[int | None] = []
    with av.open(path) as container:
        for packet in container.demux(video=0):
            try:
                numbers += [number(frame.to_ndarray(format="rgb24")) for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return numbers


def of_packets(path: str) -> list[int]:
    """The numbers that the stamps of all packets say, in the order of showing: frames are 1/RATE seconds apart."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None)
        return [round((stamp - stamps[0]) * stream.time_base * RATE) for stamp in stamps]


def copied(path: str, skip_broken: bool) -> dict[str, list[int | None]]:
    """The numbers in a training copy."""
    target = f"{path}.{int(skip_broken)}.copy.mp4"
    transcode(VideoSettings(source=path, short_side=160, skip_broken=skip_broken, frozen_change=0.0, blank_spread=0.0), target, threads=1)
    return {"copied": sequential(target)}


def read(path: str) -> dict[str, list[int | None]]:
    """The numbers that the reader gives in any order."""
    reader = ClipReader(path)
    total = len(reader)
    asked = [i for i in (total - 1, 0, total // 2, total // 3, total // 2 + 1) if 0 <= i < total]
    frames = reader.read(asked).permute(0, 2, 3, 1).numpy() if asked else []
    return {"asked": asked, "read": [number(frame) for frame in frames]}


def outcome(task: Callable[[], dict[str, list[int | None]]]) -> dict[str, object]:
    """What the task says, or how it is refused."""
    signal.alarm(SECONDS)
    try:
        return dict(task())
    except UserError as error:
        return {"refused": str(error)}
    except BaseException as error:
        return {"traceback": "".join(traceback.format_exception(error))[-2000:]}
    finally:
        signal.alarm(0)


def too_long(*_: object) -> None:
    """Of a file that hangs in Python; one that hangs in C is ended by the parent."""
    raise TimeoutError("the file takes too long")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_long)
    for name in sys.argv[1:]:
        print(json.dumps({"started": name}), flush=True)
        try:
            truth: list[int | None] = sequential(name)
            packets = of_packets(name)
        except (av.FFmpegError, ValueError, IndexError):
            truth, packets = [], []
        tasks = {"copy": lambda: copied(name, False), "whole copy": lambda: copied(name, True), "reader": lambda: read(name)}  # noqa: B023
        print(json.dumps({"truth": truth, "packets": packets, **{kind: outcome(task) for kind, task in tasks.items()}}), flush=True)
        for copy in Path(name).parent.glob(f"{Path(name).name}.*"):
            copy.unlink()
