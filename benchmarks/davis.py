"""Label propagation and J&F, each in turns with its plain form: CPU time on one thread, and growth of the peak memory.

    python -m benchmarks.davis                      # a quarter of a minute
    python -m benchmarks.davis --plain-patch8       # the plain form at patch 8, too: 3 GB and a minute

The plain form of propagation is its formula with a dense [sources, targets] matrix, as the released code has it; the one of J&F
goes mask by mask, with OpenCV's dilation. The floor of propagation is its own products, that of J&F is reading both label maps.
"""

import argparse
import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from benchmarks.floors import Products
from benchmarks.measure import Row, Told, memory_growth, table
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.metrics.davis import jf
from densewalk.ops.label_propagation import Rule, follow, propagate

DIM, CHANNELS, CONTEXT = 384, 4, 8


# -- propagation -----------------------------------------------------------------------------------------------------


def video(grid: tuple[int, int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features of a slowly changing video and soft labels of its context."""
    rng = torch.Generator().manual_seed(0)
    patches = grid[0] * grid[1]
    base = torch.randn(1, patches, DIM, generator=rng)
    features = [F.normalize(base + 0.5 * torch.randn(1, patches, DIM, generator=rng), dim=-1) for _ in range(CONTEXT + 1)]
    labels = [torch.randn(1, CHANNELS, patches, generator=rng).softmax(dim=1) for _ in range(CONTEXT)]
    return features[:-1], labels, features[-1]


def plain_propagate(context: list[Tensor], labels: list[Tensor], target: Tensor, rule: Rule) -> Tensor:
    """The formula with every source for every target."""
    height, width = rule.grid
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    distance = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    affinity = torch.cat([(f[0] @ target[0].T / rule.temperature).exp() * (distance <= (rule.radius or 0)) for f in context])
    threshold = affinity.topk(rule.top_k, dim=0).values[-1]
    affinity[affinity < threshold] = 0
    return torch.cat([s[0] for s in labels], dim=1) @ (affinity / affinity.sum(dim=0))


def propagation_row(patch: int, grid: tuple[int, int], repeat: int, with_plain: bool = True) -> Row:
    """One frame."""
    rule = Rule(grid, radius=12, top_k=5, context=7)
    problem = video(grid)
    with Products() as products:
        propagate(*problem, rule)
    rivals = {"all pairs": lambda: plain_propagate(*problem, rule)} if with_plain else {}
    what = f"propagation of one frame, patch {patch} ({grid[0]} x {grid[1]})"
    return Row.of(what, lambda: propagate(*problem, rule), ("its products", Told(products.seconds)), rivals, repeat)


def propagation_memory(grid: tuple[int, int], with_plain: bool) -> str:
    """Growth of the peak memory, and how far both forms are apart."""
    rule, problem = Rule(grid, radius=12, top_k=5, context=7), video(grid)
    line = f"| {grid[0]} x {grid[1]} | {memory_growth(lambda: propagate(*problem, rule)):.0f} | "
    if not with_plain:
        return line + "| |"
    grown = memory_growth(lambda: plain_propagate(*problem, rule))
    result, expected = propagate(*problem, rule)[0], plain_propagate(*problem, rule)
    same = (result.argmax(0) == expected.argmax(0)).float().mean()
    return line + f"{grown:.0f} | {(result - expected).abs().max():.0e}, labels {100 * same:.2f} % equal |"


def follow_row(grid: tuple[int, int], repeat: int) -> Row:
    """Frames of YouTube-VOS, in which an object enters, in turns with those of DAVIS."""
    rule = Rule(grid, radius=12, top_k=5, context=7)
    context, (first, *_), target = video(grid)
    newcomer = torch.zeros_like(first)
    newcomer[:, -1, : grid[1]] = 1

    def run(later: dict[int, Tensor] | None) -> list[Tensor]:
        return list(follow([*context, target], first, rule, later))

    with Products() as products:
        run(None)
    rivals = {"DAVIS": lambda: run(None)}
    what = f"{CONTEXT} frames of YouTube-VOS, patch 16"
    return Row.of(what, lambda: run({3: newcomer}), ("its products", Told(products.seconds)), rivals, repeat)


# -- J and F ---------------------------------------------------------------------------------------------------------


def label_maps(frames: int, objects: int, height: int = 480, width: int = 854) -> tuple[np.ndarray, np.ndarray]:
    """Ellipses that drift, and a prediction with wobbling ones."""
    rng = np.random.default_rng(0)
    truth, prediction = np.zeros((2, frames, height, width), np.uint8)
    for number in range(1, objects + 1):
        center, axes = rng.uniform(0.2, 0.8, 2) * (width, height), rng.uniform(40, 120, 2)
        for t in range(frames):
            center = center + rng.normal(0, 4, 2)
            for labels, wobble in ((truth, 0.0), (prediction, 6.0)):
                place, size = center + rng.normal(0, wobble + 1e-9, 2), axes + rng.normal(0, wobble + 1e-9, 2)
                cv2.ellipse(labels[t], place.astype(int).tolist(), np.abs(size).astype(int).tolist(), 30 * number, 0, 360, number, -1)
    return truth, prediction


def plain_jf(truth: np.ndarray, prediction: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask by mask."""
    scores = np.empty((2, objects, len(truth)))
    radius = math.ceil(0.008 * math.hypot(*truth.shape[1:]))
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    for number in range(1, objects + 1):
        for t in range(len(truth)):
            g, p = truth[t] == number, prediction[t] == number
            scores[0, number - 1, t] = (g & p).sum() / (g | p).sum() if (g | p).any() else 1
            cg, cp = contour(g), contour(p)
            near_g, near_p = (cv2.dilate(c.astype(np.uint8), disk) > 0 for c in (cg, cp))
            precision, recall = (cp & near_g).sum() / max(1, cp.sum()), (cg & near_p).sum() / max(1, cg.sum())
            scores[1, number - 1, t] = 2 * precision * recall / (precision + recall) if precision + recall else not (cg | cp).any()
    return scores[0], scores[1]


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from a neighbor on the right, below or both."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def jf_row(objects: int, repeat: int, frames: int = 60) -> Row:
    """One video."""
    truth, prediction = label_maps(frames, objects)
    for one, other in zip(jf(truth, prediction, objects), plain_jf(truth, prediction, objects), strict=True):
        assert np.abs(one - other).max() < 1e-12
    return Row.of(
        f"J&F, {frames} frames of 854 x 480, {objects} objects",
        lambda: jf(truth, prediction, objects),
        ("reading the maps", lambda: (truth.max(), prediction.max())),
        {"mask by mask": lambda: plain_jf(truth, prediction, objects)},
        repeat,
    )


def rows(repeat: int, *, plain_patch8: bool) -> Iterator[Row]:
    """All measurements."""
    yield propagation_row(16, (30, 52), repeat)
    yield propagation_row(8, (60, 104), repeat if not plain_patch8 else 1, plain_patch8)
    yield follow_row((30, 52), repeat)
    for objects in (1, 3, 5):
        yield jf_row(objects, repeat)


def main() -> None:
    """Measure everything and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-patch8", action="store_true", help="measure the plain form at patch 8, too")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(table(rows(args.repeat, plain_patch8=args.plain_patch8)))
    print("\n| propagation | here, MiB more | all pairs, MiB more | largest difference |\n|---|---|---|---|")
    print(propagation_memory((30, 52), True))
    print(propagation_memory((60, 104), args.plain_patch8))


if __name__ == "__main__":
    main()
