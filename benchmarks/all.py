"""Steps, scores and their inner loops, each beside its floor and in turns with a plain form; docs/performance.md is made of it.

python -m benchmarks.all                              # some minutes, one thread; prints the page
python -m benchmarks.all --out docs/performance.md
python -m benchmarks.all --size small                 # a minute: fewer methods, one run of each after one that warms up
python -m benchmarks.all --size tiny                  # seconds: does it run?
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from benchmarks import boxes, colors, davis, growth, incontext, inner_loops, knn, self_supervised, steps
from benchmarks.floors import bandwidth, product_rate
from benchmarks.gpu import trainings
from benchmarks.measure import Row, table

from densewalk.core.memory import HUGE_PAGES

HEAD = """# How near to the machine's limits

This page is written by `python -m benchmarks.all --out docs/performance.md`. The column to look at is the first one: the time of a
computation divided by the time of what it cannot do without on this machine, which is measured in the same run. 1 is the limit.

* Every number is CPU time of one process on one thread, the median of several runs. Nothing measured on another machine or day is here.
* Rivals ran in turns with it, in the same process: one run of each after the other. A ratio above 1 means that the rival takes longer.
* A floor of matrix products is those that the computation itself asks for, each kind measured alone by the fastest way that torch has.
  Attention that is computed again in a backward pass is counted twice. What is read and written besides is not counted.
* Memory is in huge pages, as that of jobs is ([environment.md](environment.md#faster-on-a-cpu)).
* Steps of few images are measured. The fewer, the more weighs the update, which takes the same time for any batch.
* A floor of bytes is one pass over what must be read or written.
* A step's own passes are all its networks forward, heads included, and backward from the sum of their outputs. What a step takes more is
  its losses, targets and centers.
* [performance_intel.md](performance_intel.md) is such a page of an Intel processor,
  [performance_avx2.md](performance_avx2.md) of one with AVX2 only; both are of earlier versions.

"""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    trainings: Callable[[], list[trainings.Training]]
    repeat: int  # of steps and scores; inner loops are repeated three times as often
    sorted_rows: int
    pixels: tuple[int, int]
    entries: int
    queries: int
    memory_images: int
    query_images: int
    knn: tuple[int, int]
    grids: dict[int, tuple[int, int]]
    plain_patch8: bool
    frames: int
    box_images: int
    growth: growth.Amounts
    methods: Callable[[], list[trainings.Training]]  # whose steps are compared with their passes
    view_sides: tuple[int, int, int] = (224, 96, 518)  # global, local, in levels
    released: tuple[str, int, int] = steps.RELEASED


SIZES = {
    "tiny": Size(
        lambda: trainings.small()[2:5], 1, 20, (40, 60), 500, 40, 1, 1, (200, 20), {16: (6, 8)}, False, 2, 4,
        growth.Amounts((), 20, 40, 40), lambda: self_supervised.small_methods()[1:2], (32, 24, 32), steps.SMALL,
    ),
    "small": Size(
        lambda: steps.ordinary()[1:4:2], 1, 200, (480, 640), 18_816, 784, 12, 2, (20_000, 200), {16: (30, 52), 8: (60, 104)}, False, 20, 50,
        growth.Amounts((), 1_000, 4_000, 500), lambda: self_supervised.all_methods("vit_micro_patch16", 4)[:4],
    ),
    "full": Size(
        steps.ordinary, 3, 784, (480, 640), 18_816, 784, 24, 8, (20_000, 1_000), {16: (30, 52), 8: (60, 104)}, True, 60, 300,
        growth.Amounts((40, 160, 640), 1_000, 4_000, 1_000), lambda: self_supervised.all_methods("vit_small_patch16", 2),
    ),
}  # fmt: skip


def sections(size: Size) -> Iterator[tuple[str, Iterator[Row]]]:
    """Headings and what is below them."""
    yield "Training steps", steps.rows(size.trainings(), size.repeat, size.sorted_rows, size.released)
    yield "Training steps beside their own passes", self_supervised.rows(size.methods(), size.repeat)
    yield "Views", colors.view_rows(3 * size.repeat, size.view_sides)
    yield "Scores", score_rows(size)
    yield "Inner loops", loop_rows(size)


def score_rows(size: Size) -> Iterator[Row]:
    """Evaluations from features, label maps or boxes on."""
    for classes in (21, 151):
        yield incontext.row(size.memory_images, size.query_images, classes, size.repeat)
    yield knn.row(*size.knn, classes=1_000, repeat=size.repeat)
    for patch, grid in size.grids.items():
        yield davis.propagation_row(patch, grid, size.repeat if patch > 8 else 1, patch > 8 or size.plain_patch8)
    yield davis.jf_row(3, size.repeat, size.frames)
    yield boxes.row(size.box_images, size.repeat)


def loop_rows(size: Size) -> Iterator[Row]:
    """Confusion matrix and search."""
    yield from inner_loops.confusion_rows(size.pixels, 3 * size.repeat)
    yield from inner_loops.search_rows(size.entries, size.queries, 3 * size.repeat)


def machine(size: str) -> str:
    """How much is measured on which machine, and its own limits."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return (
        f"Size `{size}`, measured on {name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}:\n"
        f"{product_rate() / 1e9:.0f} Gflop/s in products of ViT-S's sizes, {bandwidth() / 1e9:.1f} GB/s in copies, on one thread."
    )


def told(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, each told on the standard error when it is measured."""
    for row in rows:
        print(f"{row.what}: {row.times_floor:.2f} of its floor", file=sys.stderr, flush=True)
        yield row


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--out", type=Path, help="a file instead of the standard output")
    parser.add_argument("--note", help="a sentence for the page: what else the machine did meanwhile")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = SIZES[args.size]
    page = HEAD + "\n".join([machine(args.size), *filter(None, [args.note])]) + "\n"
    for title, rows in sections(size):
        page += f"\n## {title}\n\n{table(told(rows))}\n"
    page += f"\n## Growth\n\n{growth.page(size.growth)}\n"
    if args.out:
        args.out.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    if HUGE_PAGES[0] not in os.environ:  # a process cannot ask for them after its start
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.all", *sys.argv[1:]], {**os.environ, **dict([HUGE_PAGES])})
    main()
