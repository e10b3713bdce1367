"""Cost of a Time-Tuning step against the release's schedule of work, at equal loss and gradients; CPU seconds on one thread.

    python benchmarks/timetuning.py                                       # ViT-S/16, 2 clips of 4 frames of 224 px: a minute
    python benchmarks/timetuning.py --arch vit_micro_patch16 --size 96 --batch 4

The release asks for features three times (student for propagation, student for the loss, teacher), each time of all frames, and
passes the backbone twice for each, once for attention maps that nothing uses: 6 x 12 blocks x 4 frames = 288 block passes a clip.
Measured with its code on another two-core machine: 5.41 s a step, against 1.04 s for a prototype of the schedule used here.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.backbone import create
from densewalk.methods.timetuning import Clusterer, TimeTuning, augment
from densewalk.propagation import Rule, follow
from densewalk.settings.timetuning import TimeTuningSettings
from densewalk.sinkhorn import sinkhorn


def step(method: TimeTuning, clips: Tensor) -> Tensor:
    """The loss as the method computes it."""
    return method.step(clips, 0, torch.Generator().manual_seed(0))[0]


def release_step(method: TimeTuning, clips: Tensor) -> Tensor:
    """The same loss in the release's order of work."""
    s = method.settings
    assert method.teacher is not None
    with torch.no_grad():
        features = release_features(method.student, clips)
        vectors = method.teacher.head(release_features(method.teacher, clips))
        scores = (vectors[:, [0, -1]] @ method.teacher.prototypes.T).unbind(1)
        shares = [sinkhorn(x.flatten(0, 1), epsilon=s.sinkhorn_epsilon, iterations=s.sinkhorn_iterations) for x in scores]
        labels = method.forward_labels(features, shares[0].view_as(scores[0]))
    scores = method.student.head(release_features(method.student, clips)) @ method.student.prototypes.T
    return F.cross_entropy(scores[:, -1].transpose(1, 2) / s.student_temperature, labels)


def release_features(network: Clusterer, clips: Tensor) -> Tensor:
    """Features of all frames, and attention maps that are thrown away."""
    images = clips.flatten(0, 1)
    _ = network.backbone.last_block(images).cls_attention
    return network.backbone.tokens(images).patches.unflatten(0, clips.shape[:2])


def backward(method: TimeTuning, way: Callable[[TimeTuning, Tensor], Tensor], clips: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    method.zero_grad()
    loss = way(method, clips)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def block_passes(networks: list[nn.Module], clips: Tensor, function: Callable[[], Any]) -> float:
    """Blocks passed per clip."""
    passes = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal passes
        passes += len(inputs[0])

    # attention, not the whole block: `last_block` opens the last block, so it is counted by its projection of the output
    hooks = [block.attn.proj.register_forward_hook(count) for network in networks for block in network.backbone.vit.blocks]
    function()
    for hook in hooks:
        hook.remove()
    return passes / len(clips)


def cpu_seconds(function: Callable[[], Any], repeat: int) -> float:
    """The fewest of several runs."""
    spent = []
    for _ in range(repeat):
        begun = time.process_time()
        function()
        spent.append(time.process_time() - begun)
    return min(spent)


def propagation_seconds(side: int, clips: int, frames: int, classes: int) -> float:
    """One batch of clips through the feature-forwarder."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(frames, clips, side**2, 384, generator=rng)
    first = torch.randn(clips, classes, side**2, generator=rng).softmax(dim=1)
    return cpu_seconds(lambda: list(follow(features, first, Rule((side, side), 6, 5, 7))), repeat=3)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = TimeTuningSettings(steps=1, batch_size=args.batch, size=args.size).resolved()
    method = TimeTuning(settings, create(args.arch, seed=0), 1, 1, seed=0)
    clips = torch.randn(args.batch, settings.frames, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))

    results, rows = [], []
    for name, way in (("the release's", release_step), ("ours", step)):
        results.append(backward(method, way, clips))
        networks = [method.student, method.teacher]
        rows.append(
            (
                name,
                block_passes(networks, clips, lambda way=way: way(method, clips)),
                cpu_seconds(lambda way=way: backward(method, way, clips), args.repeat),
            )
        )
    print(f"{args.arch}, {args.batch} clips of {settings.frames} frames of {args.size} px, one thread\n")
    print("| schedule of work | block passes a clip | step, CPU s |\n|---|---|---|")
    for name, passes, seconds in rows:
        print(f"| {name} | {passes:.0f} | {seconds:.2f} |")
    (plain_loss, plain_gradients), (loss, gradients) = results
    largest = max((gradients[n] - plain_gradients[n]).abs().max().item() for n in gradients)
    print(f"\nratio {rows[0][2] / rows[1][2]:.1f}; loss {loss:.6f}, difference {abs(loss - plain_loss):.1e}")
    print(f"largest difference of a gradient {largest:.1e}")

    frame = torch.randint(0, 256, (settings.frames, 3, 480, 854), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = cpu_seconds(lambda: augment(frame, settings, torch.Generator().manual_seed(1)), args.repeat)
    print(f"augmentation of one decoded clip of 854 x 480: {1000 * clip:.0f} ms")
    for side in (14, 28):
        print(f"propagation of 8 clips of 4 frames, 200 prototypes, {side} x {side}: {1000 * propagation_seconds(side, 8, 4, 200):.0f} ms")


if __name__ == "__main__":
    main()
