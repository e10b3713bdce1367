"""Semantic correspondence: features computed once for each image, against once for each pair that it is in, in CPU seconds.

    python -m benchmarks.correspondence                     # 12 images, 60 pairs: about two minutes
    python -m benchmarks.correspondence --arch vit_small_patch16 --size 480

SPair-71k's test list has 12,234 pairs of 18 categories, and all of its three lists together 1,800 images: some ten pairs or more for each
image. The plain form computes both images of every pair. Both look up the same points and must give the same places.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densewalk.core.progress import Progress
from densewalk.data.benchmarks.keypoints import KeypointPair
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.correspondence.evaluate import Scored, match, match_pairs, see
from densewalk.evaluations.correspondence.settings import CorrespondenceSettings
from densewalk.models.interface import Network
from densewalk.models.loading import create

WIDTH, HEIGHT, POINTS = 500, 375, 8


def make_pairs(folder: Path, images: int, pairs: int) -> list[KeypointPair]:
    """Images of noise, and some of all their pairs."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(images)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    every = list(itertools.permutations(paths, 2))
    size, box = (WIDTH, HEIGHT), np.array([0.0, 0.0, WIDTH, HEIGHT])
    chosen = [every[i] for i in rng.permutation(len(every))[:pairs]]
    points = rng.uniform((0, 0), size, (len(chosen), 2, POINTS, 2))
    return [
        KeypointPair(str(i), "noise", *chosen[i], points[i, 0], points[i, 1], box, size, size, None)
        for i in range(len(chosen))
    ]  # fmt: skip


def plain(network: Network, pairs: list[KeypointPair], settings: CorrespondenceSettings, job: Job) -> list[Scored]:
    """Both images of each pair, whether they were seen before or not."""
    found = []
    for pair in pairs:
        views = [see(network, network.dense, path, settings, job) for path in (pair.source, pair.target)]
        found.append(match(views[0], views[1], pair, settings))
    return found


def clocked(compute: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its CPU seconds."""
    start = time.process_time()
    return compute(), time.process_time() - start


def main() -> None:
    """Print a row for each read-out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = create(options.arch, seed=0).eval().requires_grad_(False)
    print(f"{options.arch}, {options.size} px, {options.pairs} pairs of {options.images} images, CPU seconds")
    print("read-out   each pair   each image   ratio")
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(Path(folder), options.images, options.pairs)
        job = Job(out=Path(folder), state=Path(folder))
        for readout in ("own", "dift", "insid3", "probe3d"):
            settings = CorrespondenceSettings(root=".", dataset="x", readout=readout, size=options.size).resolved()
            once, each_image = clocked(lambda s=settings: match_pairs(network, network.dense, pairs, s, job, Progress("pairs", len(pairs))))
            again, each_pair = clocked(lambda s=settings: plain(network, pairs, s, job))
            assert all(np.array_equal(a.predicted, b.predicted) for a, b in zip(once, again, strict=True))
            print(f"{readout:8} {each_pair:11.1f} {each_image:12.1f} {each_pair / each_image:7.1f}")


if __name__ == "__main__":
    main()
