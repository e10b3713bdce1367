"""Cost of a step of the depth head beside the frozen forward pass that gives its features.

    python -m benchmarks.depth                           # ViT-S/16, crops of 416 x 544, 2 images
    python -m benchmarks.depth --arch vit_small_patch14_reg4 --batch 4

CPU seconds of this process, the best of several runs, both in turn. A step is the head's forward and backward pass, the SigLoss on every
pixel of the crop and the update. With a x4 head the scores are interpolated, not the features: `features first` is the published order,
which gives the same depth.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from densewalk.evaluations.depth.head import DepthHead, channels, features_of, mix_bins, pad_to_patches, resize_map
from densewalk.evaluations.depth.losses import batch_loss
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.evaluations.depth.train import make_optimizer, step
from densewalk.models.loading import create


def main() -> None:
    """Print a row for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16")
    parser.add_argument("--size", type=int, nargs=2, default=(416, 544), help="height and width of the crops")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = create(options.arch, seed=0).eval().requires_grad_(False)
    images = torch.randn(options.batch, 3, *options.size)
    depth = 10 * torch.rand(options.batch, 1, *options.size)
    print(f"{options.arch}, {options.batch} images of {options.size[0]} x {options.size[1]} px, CPU seconds")
    print("preset         forward  step   (forward + step) / forward   features first, step")
    for preset in ("dinov3", "dinov2_lin1", "dinov2_lin4"):
        settings = DepthSettings(root=".", dataset="x", preset=preset, batch_size=options.batch, loss_group=1).resolved()
        compute = features_of(settings, network)
        padded = pad_to_patches(images, network.multiple)
        with torch.no_grad():
            features = compute(padded)
        head = DepthHead(settings, channels(settings, network), 0)
        optimizer = make_optimizer(settings, head)
        forward, own, published = best(
            options.repeats,
            lambda compute=compute, padded=padded: without_gradient(compute, padded),
            lambda s=settings, h=head, o=optimizer, f=features: step(s, h, o, f, depth, network.multiple, 200, (1e-4, 0.9)),
            lambda s=settings, h=head, f=features: features_first(s, h, f, depth, network.multiple),
        )
        print(f"{preset:12} {forward:8.2f} {own:6.2f} {1 + own / forward:18.2f} {published:26.2f}")


def without_gradient(compute: Callable[..., Any], images: torch.Tensor) -> None:
    """The frozen pass."""
    with torch.no_grad():
        compute(images)


def features_first(settings: DepthSettings, head: DepthHead, features: torch.Tensor, depth: torch.Tensor, patch: int) -> None:
    """Forward and backward pass in the published order: features are interpolated before the linear layer."""
    x = head.norm(features)
    x = F.interpolate(x, scale_factor=head.scale, mode="bilinear") if head.scale > 1 else x
    maps = mix_bins(head.linear(x), head.depths, settings.bin_weights)
    maps = resize_map(maps, (depth.shape[-2], depth.shape[-1]), patch, crop_padding=bool(settings.crop_padding))
    batch_loss(maps, depth, settings.loss_group, variance=True, gradients=False).backward()


def best(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """The least CPU time of each."""
    found = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            found[i] = min(found[i], time.process_time() - start)
    return found


if __name__ == "__main__":
    main()
