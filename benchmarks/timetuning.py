"""Time-Tuning's step, its feature-forwarder and its scores, each against the plain form; CPU seconds on one thread.

    python -m benchmarks.timetuning                                       # ViT-S/16, 2 clips of 4 frames of 224 px: two minutes
    python -m benchmarks.timetuning --arch vit_micro_patch16 --size 96 --batch 4

The release asks for features three times (student for propagation, student for the loss, teacher), each time of all frames, and
passes the backbone twice for each, once for attention maps that nothing uses: 6 x 12 blocks x 4 frames = 288 block passes a clip.
Here its order of work is run in turns with ours, in this process.

The plain forwarder goes clip by clip with a dense float64 [sources, targets] matrix. Matching has two plain forms: the confusion
matrix pixel by pixel, and counting the pixels of every pair of class and cluster again, as the release does.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measure import medians
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.data.augmentation.draws import to_rows
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, many_to_one, mean_iou, reassign
from densewalk.methods.timetuning.clips import crop_clip, make_views
from densewalk.methods.timetuning.method import TimeTuning
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.heads import Clusterer
from densewalk.models.loading import create
from densewalk.ops.label_propagation import Rule, follow
from densewalk.ops.sinkhorn import sinkhorn


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


# -- the feature-forwarder -------------------------------------------------------------------------------------------


def plain_follow(features: Tensor, first: Tensor, rule: Rule) -> Tensor:
    """The last frame's soft labels, [clips, classes, patches]; features [frames, clips, patches, dim]."""
    height, width = rule.grid
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    near = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= (rule.radius or 0)
    found = []
    for clip, own in zip(F.normalize(features, dim=-1).unbind(1), first.double(), strict=True):
        labels = [own]
        for t in range(1, len(clip)):
            context = [0, *range(max(1, t - rule.context), t)]
            affinity = torch.cat([(clip[c].double() @ clip[t].double().T / rule.temperature).exp() * near for c in context])
            affinity[affinity < affinity.topk(rule.top_k, dim=0).values[-1]] = 0
            labels.append(torch.cat([labels[c] for c in context], dim=1) @ (affinity / affinity.sum(dim=0)))
        found.append(labels[-1])
    return torch.stack(found)


def propagation_row(grid: tuple[int, int], clips: int, repeat: int) -> str:
    """One line of the table: a batch of clips of 4 frames, 200 prototypes."""
    rng = torch.Generator().manual_seed(0)
    patches, rule = grid[0] * grid[1], Rule(grid, 6, 5, 7)
    features = torch.randn(1, clips, patches, 384, generator=rng) + 0.5 * torch.randn(4, clips, patches, 384, generator=rng)
    first = torch.randn(clips, 200, patches, generator=rng).softmax(dim=1)
    *_, last = follow(features, first, rule)
    expected = plain_follow(features, first, rule)
    same = (last.argmax(1) == expected.argmax(1)).float().mean()
    taken = medians({"plain": lambda: plain_follow(features, first, rule), "ours": lambda: list(follow(features, first, rule))}, repeat)
    plain, ours = taken["plain"], taken["ours"]
    equality = f"{(last - expected).abs().max():.0e}, labels {100 * same:.2f} % equal"
    return f"| {grid[0]} x {grid[1]}, {clips} clips | {1000 * plain:.0f} | {1000 * ours:.0f} | {plain / ours:.1f} | {equality} |"


# -- clusters to labels ----------------------------------------------------------------------------------------------


def pixel_by_pixel(labels: Tensor, clusters: Tensor, classes: int, count: int) -> Tensor:
    """The confusion matrix as its definition says."""
    confusion = torch.zeros(classes, count, dtype=torch.int64)
    for label, cluster in zip(labels, clusters, strict=True):
        confusion[label, cluster] += 1
    return confusion


def pair_by_pair(labels: Tensor, clusters: Tensor, classes: int, count: int) -> Tensor:
    """The confusion matrix, all pixels being looked at for every entry."""
    return torch.stack([torch.stack([((labels == c) & (clusters == k)).sum() for k in range(count)]) for c in range(classes)])


def matching_row(name: str, match: Callable[[Tensor], Tensor], count: int, pixels: int, classes: int = 21) -> str:
    """One line of the table: mIoU of random clusters, most of which lie within a class."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (pixels,), generator=rng)
    random = torch.randint(count, (pixels,), generator=rng)
    clusters = torch.where(torch.rand(pixels, generator=rng) < 0.6, labels * (count // classes), random)

    def score(confuse: Callable[[Tensor, Tensor, int, int], Tensor]) -> float:
        confusion = confuse(labels, clusters, classes, count)
        return mean_iou(reassign(confusion, match(confusion)))

    scores: list[float] = []
    ways = (confusion_matrix, pixel_by_pixel, pair_by_pair)
    runs = {way.__name__: lambda way=way: scores.append(score(way)) for way in ways}
    ours, loop, pairs = medians(runs, repeat=1, warm=False).values()
    assert len(set(scores)) == 1, scores
    ratios = f"{loop / ours:.0f}, {pairs / ours:.0f}"
    return f"| {name}, {count} clusters, {pixels} pixels | {loop:.1f} | {pairs:.1f} | {1000 * ours:.1f} | {ratios} |"


def main() -> None:
    """Measure and print Markdown tables."""
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

    ways, networks = {"the release's": release_step, "ours": step}, [method.student, method.teacher]
    taken = medians({name: lambda way=way: backward(method, way, clips) for name, way in ways.items()}, args.repeat)
    results = [backward(method, way, clips) for way in ways.values()]
    rows = [(name, block_passes(networks, clips, lambda way=way: way(method, clips)), taken[name]) for name, way in ways.items()]
    print(f"{args.arch}, {args.batch} clips of {settings.frames} frames of {args.size} px, one thread\n")
    print("| schedule of work | block passes a clip | step, CPU s |\n|---|---|---|")
    for name, passes, seconds in rows:
        print(f"| {name} | {passes:.0f} | {seconds:.2f} |")
    (plain_loss, plain_gradients), (loss, gradients) = results
    largest = max((gradients[n] - plain_gradients[n]).abs().max().item() for n in gradients)
    print(f"\nratio {rows[0][2] / rows[1][2]:.1f}; loss {loss:.6f}, difference {abs(loss - plain_loss):.1e}")
    print(f"largest difference of a gradient {largest:.1e}")

    frame = torch.randint(0, 256, (settings.frames, 3, 480, 854), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def augment() -> Tensor:
        clip, drawn = crop_clip(frame, settings, torch.Generator().manual_seed(1))
        return make_views({"clip": clip[None], "distortion": to_rows([drawn])}, settings, torch.device("cpu"))

    clip = medians({"clip": augment}, args.repeat)["clip"]
    print(f"augmentation of one decoded clip of 854 x 480: {1000 * clip:.0f} ms")
    print("\n| propagation over 4 frames | plain, CPU ms | ours | ratio | largest difference |\n|---|---|---|---|---|")
    print(propagation_row((14, 14), 8, args.repeat))
    print(propagation_row((30, 52), 2, args.repeat))
    print("\n| mIoU | pixel by pixel, CPU s | pair by pair | ours, ms | ratios |\n|---|---|---|---|---|")
    print(matching_row("Hungarian", hungarian, 21, 1_000_000))
    print(matching_row("many to one", many_to_one, 300, 200_000))


if __name__ == "__main__":
    main()
