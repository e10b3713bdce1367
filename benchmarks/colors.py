"""Flips, colors and blur of views (data/augmentation/colors.py) in turns with torch's operators: CPU time on one thread.

    python -m benchmarks.colors                          # a quarter of a minute
    python -m benchmarks.colors --repeat 1 --side 24

Both give the same numbers to the last bit. The floor is reading the crops and writing the views.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from benchmarks.measure import Row, table
from torch import Generator, Tensor

from densewalk.data.augmentation.colors import distort, distort_levels
from densewalk.data.augmentation.draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, Distortion, draw_distortion, to_rows
from densewalk.data.augmentation.views import draw_colors
from densewalk.ops.cpu.switch import set_cpu_kernels

IMAGES = 16
SINGLE = {
    "nothing": Distortion(),
    "brightness": Distortion(first=BRIGHTNESS, brightness=1.2),
    "contrast": Distortion(first=CONTRAST, contrast=1.2),
    "saturation": Distortion(first=SATURATION, saturation=1.2),
    "hue": Distortion(first=HUE, hue=0.1),
    "a jitter of all four": Distortion(
        first=HUE, second=CONTRAST, third=BRIGHTNESS, fourth=SATURATION, brightness=1.2, contrast=1.2, saturation=1.2, hue=0.1
    ),
    "blur of radius 1": Distortion(blur=1.0),
}


def view_rows(repeat: int, sides: Sequence[int] = (224, 96, 518)) -> Iterator[Row]:
    """Views as DoRA draws them, global and local, and as NeCo draws them, in levels."""
    generator = Generator().manual_seed(0)
    for kind, side, blur in (("global", sides[0], 0.1), ("local", sides[1], 0.5)):
        drawn = [draw_colors(generator, blur=blur) for _ in range(IMAGES)]
        yield row(f"colors of {IMAGES} {kind} views of {side} px", distort, side, drawn, repeat)
    drawn = [draw_distortion(generator) for _ in range(2)]
    yield row(f"colors of 2 views of {sides[2]} px, in levels", distort_levels, sides[2], drawn, repeat)


def single_rows(repeat: int, side: int) -> Iterator[Row]:
    """One change of all images at a time."""
    for name, drawn in SINGLE.items():
        yield row(f"{name}, {IMAGES} images of {side} px", distort, side, [drawn] * IMAGES, repeat)


def row(what: str, change: Callable[[Tensor, Tensor], Tensor], side: int, drawn: Sequence[Distortion], repeat: int) -> Row:
    """In turns with torch's operators."""
    generator = Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(drawn), side, side, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    rows = to_rows(drawn)

    def by_operators() -> Tensor:
        set_cpu_kernels(False)
        result = change(images, rows)
        set_cpu_kernels(True)
        return result

    views = change(images, rows)
    assert (views.double() - by_operators().double()).abs().max() <= 1
    floor = ("reading the crops, writing the views", lambda: views.copy_(images))
    return Row.of(what, lambda: change(images, rows), floor, {"torch's operators": by_operators}, repeat)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--side", type=int, default=224, help="of an image in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(table([*view_rows(args.repeat, (args.side, args.side * 3 // 7, args.side * 37 // 16)), *single_rows(args.repeat, args.side)]))


if __name__ == "__main__":
    main()
