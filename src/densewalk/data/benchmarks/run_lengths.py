"""Run lengths of binary masks, as COCO's files have them: columns from top to bottom, first a run of 0, then of 1, and so on."""

from collections.abc import Sequence
from typing import Any

Bounds = tuple[int | float, int | float, int | float, int | float]  # x0, y0, x1, y1; x1 and y1 lie outside


def runs_of(counts: Any) -> list[int]:
    """Return the run lengths of a list or of COCO's compressed text.

    Each number is split into groups of five bits, lowest first, plus 32 where another follows, as characters from 48 on; the last
    group's fifth bit is the sign. From the fourth run on it is the difference from the run before the last.

        for n, number in enumerate(numbers):
            run[n] = number + (run[n - 2] if n > 2 else 0)

    Raises:
        ValueError: no such list or text, or a run below 0.
    """
    if isinstance(counts, list):
        runs = counts
        if not all(type(run) is int for run in runs):
            raise ValueError("not all are whole numbers")
    elif isinstance(counts, str):
        runs = []
        for number in _numbers(counts):
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    else:
        raise ValueError(f"{type(counts).__name__} instead of a list or text")
    if any(run < 0 for run in runs):
        raise ValueError(f"the run {min(runs)}")
    return runs


def _numbers(text: str) -> list[int]:
    numbers, value, shift = [], 0, 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"the character {character!a}")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            numbers.append(value - (1 << shift) if group & 16 else value)
            value, shift = 0, 0
    if shift:
        raise ValueError("the text ends inside a number")
    return numbers


def runs_bounds(runs: Sequence[int], height: int) -> Bounds | None:
    """Return the bounds of a mask's ones, None if there is none."""
    at, left, right, top, bottom = 0, None, 0, height, 0
    for number, run in enumerate(runs):
        first, at = at, at + run
        if number % 2 and run:
            left = first // height if left is None else left
            right = (at - 1) // height + 1
            whole = (at - 1) // height > first // height  # it goes on in the next column: through the bottom, and from the top
            top, bottom = min(top, 0 if whole else first % height), max(bottom, height if whole else (at - 1) % height + 1)
    return None if left is None else (left, top, right, bottom)
