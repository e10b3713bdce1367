"""Label propagation and J&F, each against its plain form: CPU seconds on one thread, and growth of the peak memory.

    python benchmarks/davis.py                      # a quarter of a minute
    python benchmarks/davis.py --plain-patch8       # the plain form at patch 8, too: 3 GB and half a minute

The plain form of propagation is its formula with a dense [sources, targets] matrix, as the released code has it; the one of J&F
goes mask by mask, with OpenCV's dilation. The official tools, measured on another two-core machine: propagation 1.1 s (190 MB) at
patch 16 and 35.8 s (2.7 GB) at patch 8, J&F of 60 frames with 3 objects 3.85 s.
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
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


def propagation_row(name: str, grid: tuple[int, int], with_plain: bool) -> str:
    """One line of the table."""
    rule = Rule(grid, radius=12, top_k=5, context=7)
    problem = video(grid)
    seconds, memory, result = measure(lambda: propagate(*problem, rule)[0], repeat=3)
    if not with_plain:
        return f"| {name} | | {seconds:.2f} | | | {memory:.0f} | |"
    plain_seconds, plain_memory, expected = measure(lambda: plain_propagate(*problem, rule), repeat=1)
    same = (result.argmax(0) == expected.argmax(0)).float().mean()
    equality = f"{(result - expected).abs().max():.0e}, labels {100 * same:.2f} % equal"
    return (
        f"| {name} | {plain_seconds:.2f} | {seconds:.2f} | {plain_seconds / seconds:.1f} | {plain_memory:.0f} | {memory:.0f} | {equality} |"
    )


def follow_row(grid: tuple[int, int]) -> str:
    """One line: frames of YouTube-VOS, in which an object enters, against those of DAVIS, CPU seconds a frame."""
    rule = Rule(grid, radius=12, top_k=5, context=7)
    context, (first, *_), target = video(grid)
    features, frames = [*context, target], CONTEXT + 1
    newcomer = torch.zeros_like(first)
    newcomer[:, -1, : grid[1]] = 1
    plain_seconds, plain_memory, _ = measure(lambda: list(follow(features, first, rule))[-1][0], repeat=2)
    seconds, memory, _ = measure(lambda: list(follow(features, first, rule, {3: newcomer}))[-1][0], repeat=2)
    columns = f"{plain_seconds / frames:.3f} | {seconds / frames:.3f} | {plain_seconds / seconds:.2f} | {plain_memory:.0f} | {memory:.0f}"
    return f"| a frame of YouTube-VOS (second column) and of DAVIS (first), patch 16 | {columns} | |"


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
            scores[1, number - 1, t] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return scores[0], scores[1]


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from a neighbor on the right, below or both."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def jf_row(objects: int) -> str:
    """One line of the table."""
    truth, prediction = label_maps(60, objects)
    seconds, memory, result = measure(lambda: jf(truth, prediction, objects), repeat=3)
    plain_seconds, plain_memory, expected = measure(lambda: plain_jf(truth, prediction, objects), repeat=1)
    difference = max(np.abs(a - b).max() for a, b in zip(result, expected, strict=True))
    columns = f"{plain_seconds:.2f} | {seconds:.2f} | {plain_seconds / seconds:.1f} | {plain_memory:.0f} | {memory:.0f} | {difference:.0e}"
    return f"| J&F, 60 frames 854 x 480, {objects} objects | {columns} |"


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(function: Callable[[], Any], repeat: int) -> tuple[float, float, Any]:
    """Fewest CPU seconds, growth of the peak memory in MiB, and the result; in a process of its own, since a peak never falls."""

    def child(pipe: "multiprocessing.connection.Connection") -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = []
        for _ in range(repeat):
            begun = time.process_time()
            result = function()
            spent.append(time.process_time() - begun)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pipe.send((min(spent), grown, result.numpy() if isinstance(result, Tensor) else result))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    seconds, memory, result = receiver.recv()
    process.join()
    return seconds, memory, torch.from_numpy(result) if isinstance(result, np.ndarray) else result


def main() -> None:
    """Measure everything and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-patch8", action="store_true", help="measure the plain form at patch 8, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| | plain, CPU s | ours, CPU s | ratio | plain, MiB | ours, MiB | largest difference |\n|---|---|---|---|---|---|---|")
    print(propagation_row("propagation, one frame, patch 16 (30 x 52)", (30, 52), True))
    print(propagation_row("propagation, one frame, patch 8 (60 x 104)", (60, 104), args.plain_patch8))
    print(follow_row((30, 52)))
    for objects in (1, 3, 5):
        print(jf_row(objects))


if __name__ == "__main__":
    main()
