"""Damaged videos: the training copy and the reader give the frames that decoding from the beginning gives, or one error.

The files are read in another process: FFmpeg and decord are C, and a crash there must not end the tests.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures.studies import REPOSITORY
from tests.fixtures.videos import encode
from tests.fuzz.budget import FACTOR
from tests.fuzz.video_worker import BITS, RATE

FRAMES = 50
EACH = 5 * FACTOR  # damaged files of each container


def numbered(count):
    """Images whose blocks in the middle hold their number."""
    for n in range(count):
        image = np.full((120, 160, 3), 90, np.uint8)
        image[:, (7 * n) % 140 : (7 * n) % 140 + 20] = (200, 40, 60)  # something that moves
        for b in range(BITS):
            image[50:70, 10 * b : 10 * b + 10] = 255 * (n >> b & 1)
        yield image


CONTAINERS = {
    "mp4": {"options": {"preset": "veryfast", "crf": "16", "g": "12", "bf": "2"}},
    "mkv": {"options": {"preset": "veryfast", "crf": "16", "g": "12", "bf": "2"}},
    "ts": {"options": {"preset": "veryfast", "crf": "16", "g": "12", "bf": "0"}},
    "avi": {"codec": "mpeg4", "options": {"b": "2000000", "g": "12"}},
}


def damaged_files(folder, suffix):
    """The whole file, and copies with bits flipped, bytes left out, and without their end."""
    whole = encode(folder / f"whole.{suffix}", numbered(FRAMES), rate=RATE, **CONTAINERS[suffix])
    content = whole.read_bytes()
    generator = np.random.default_rng([FACTOR, *suffix.encode()])
    files = [whole]
    for i in range(EACH):
        changed = bytearray(content)
        kind = ("flip", "cut", "head", "drop", "zeros")[i % 5]
        at = int(generator.integers(1, len(changed)))
        if kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + int(generator.integers(1, 400))]
        elif kind == "zeros":
            changed[at : at + 600] = bytes(len(changed[at : at + 600]))
        else:
            reach = len(changed) if kind == "flip" else 600  # the head, or anywhere
            for place in generator.integers(0, min(reach, len(changed)), size=int(generator.integers(1, 12))):
                changed[place] ^= 1 << int(generator.integers(8))
        files.append(folder / f"{kind}{i}.{suffix}")
        files[-1].write_bytes(changed)
    return files


def without_repeats(numbers):
    known = [n for n in numbers if n is not None]
    return [n for i, n in enumerate(known) if i == 0 or n != known[i - 1]]


def believable(numbers):
    """The numbers of a longest increasing part; None for the others, which damage has changed."""
    best = []  # for each frame the longest increasing part that ends there, as indices
    for i, n in enumerate(numbers):
        before = [chain for chain, j in zip(best, range(i), strict=True) if None not in (n, numbers[j]) and numbers[j] < n]
        best.append([*max(before, key=len, default=[]), i] if n is not None else [])
    kept = set(max(best, key=len, default=[]))
    return [n if i in kept else None for i, n in enumerate(numbers)]


def is_part_in_order(part, whole):
    """True if the numbers come in this order in the whole, where None stands for a frame whose number the damage has reached."""
    rest = iter(whole)
    return all(any(n == other or other is None for other in rest) for n in part)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_damaged_videos_give_right_frames_or_one_error(tmp_path, suffix):
    files = damaged_files(tmp_path, suffix)
    command = [sys.executable, "-m", "tests.fuzz.video_worker", *map(str, files)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60 + 30 * len(files))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"status {done.returncode} after {lines[-1]}: {done.stderr[-2000:]}"
    for file, found in zip(files, lines[1::2], strict=True):
        truth = found["truth"]
        for kind in ("copy", "whole copy", "reader"):
            result = found[kind]
            assert "traceback" not in result, f"{file.name}, {kind}: {result['traceback']}"
            if "refused" in result:
                assert file.name in result["refused"], (file.name, kind, result)
        for kind in ("copy", "whole copy"):
            if "copied" in found[kind]:
                shown = without_repeats(found[kind]["copied"])
                assert is_part_in_order(shown, believable(truth)), f"{file.name}, {kind}: {shown}, not of {truth}"
        if "read" in found["reader"]:
            # A frame that does not decode is left out of the truth, one whose packet is lost out of the packets too. The reader counts
            # packets: behind both, its number is neither the frame's own nor its place in the truth.
            for asked, n in zip(found["reader"]["asked"], found["reader"]["read"], strict=True):
                allowed = (None, asked, *(numbers[asked] for numbers in (truth, found["packets"]) if asked < len(numbers)))
                assert n in allowed, f"{file.name}: frame {asked} is read as {n}, not as one of {allowed}"
    whole = lines[1]
    assert whole["truth"] == list(range(FRAMES))
    assert whole["copy"]["copied"] == list(range(FRAMES))
