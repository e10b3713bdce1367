"""Cost of one DoRA step and of one clip's views, in CPU seconds and peak memory.

    python -m benchmarks.dora                                   # two frames, a minute
    python -m benchmarks.dora --frames 8 --compat released      # the case of the release: ViT-S/16, 1 clip, 6 local crops
    python -m benchmarks.dora --frames 8 --recompute            # execution.gradient_checkpointing; --compile, --parts: the others

Below a step's stages stands how near it is to the time of its matrix products alone. That the loss, gradients and update are the
release's is shown by tests/methods/test_dora.py. How fast the release is on another machine says nothing about this one:
benchmarks/steps.py runs a step in turns with torch's own layers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.floors import Products, step_floor, update_bytes
from benchmarks.gpu.trainings import Decoded
from torch.utils.data import default_collate

from densewalk.methods.dora.augmentation import DoraClips, make_views
from densewalk.methods.dora.losses import dora_loss
from densewalk.methods.dora.method import Dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.dora.tracking import apply_masks, object_masks, object_prototypes, refine_prototypes, track_objects
from densewalk.models.blocks import CompiledBlocks
from densewalk.models.loading import create
from densewalk.ops.cpu.memory import trim_heap
from densewalk.training import loop
from densewalk.training.cost import peak_rss_mib
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item


class Stopwatch:
    """CPU seconds by label."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, label: str, function: Callable[[], Any]) -> Any:
        """Run, and add the time it took."""
        begun = time.process_time()
        result = function()
        self.seconds[label] = self.seconds.get(label, 0.0) + time.process_time() - begun
        return result


def step_stages(method: Dora, optimizer: torch.optim.Optimizer, parts: list[dict[str, torch.Tensor]], at: int) -> dict[str, float]:
    """One whole step in its stages."""
    watch = Stopwatch()
    set_schedules(optimizer, at)
    for part in parts:
        part_stages(watch, method, part, at, share=1 / len(parts))
    watch("clip, AdamW, EMA", lambda: (method.after_backward(at), optimizer.step(), method.after_update(at)))
    optimizer.zero_grad(set_to_none=True)
    return watch.seconds


def part_stages(watch: Stopwatch, method: Dora, batch: dict[str, torch.Tensor], at: int, share: float) -> None:
    """One part of the batch, to its gradient."""
    views = batch["global"].flatten(0, 1)
    teacher = watch("teacher", lambda: method.encode_teacher(views))
    heads = method.sample_heads(torch.Generator().manual_seed(at))

    def discover_and_track() -> torch.Tensor:
        prototypes = object_prototypes(teacher.cls_attention[:, heads], teacher.query)
        return object_masks(track_objects(refine_prototypes(prototypes, teacher.patches, method.settings), teacher.keys), method.settings)

    masks = watch("discover and track", discover_and_track)
    student = watch("student forward", lambda: method.encode_student(apply_masks(views, masks, teacher.grid), batch["local"]))

    def loss() -> torch.Tensor:
        value, _ = dora_loss(method.targets(teacher.logits, at), student, method.settings)
        method.note_logits(teacher.logits)
        return share * value

    total = watch("loss", loss)
    watch("trim heap", lambda: trim_heap(torch.device("cpu")))
    watch("backward", total.backward)


def clip_stages(settings: DoraSettings, height: int, width: int) -> dict[str, float]:
    """The views of one decoded clip."""
    watch = Stopwatch()
    clips = Decoded(settings.frames, height, width, different=1)
    sample = watch("cut the clip, draw", lambda: DoraClips(clips, settings)[Item(0, seed=0)])
    watch("views", lambda: make_views(default_collate([sample]), settings, torch.device("cpu")))
    return watch.seconds


def show(title: str, runs: list[dict[str, float]]) -> float:
    """Print fastest, median and slowest of the repetitions after the first, which warms up; the median of their sums."""
    runs = runs[1:] or runs
    print(f"\n{title:28} {'fastest':>9} {'median':>9} {'slowest':>9}  CPU s")
    rows = {label: [run[label] for run in runs] for label in runs[0]}
    rows["total"] = [sum(run.values()) for run in runs]
    for label, values in rows.items():
        print(f"{label:28} {min(values):9.3f} {statistics.median(values):9.3f} {max(values):9.3f}")
    return statistics.median(rows["total"])


def print_floor(method: Dora, optimizer: torch.optim.Optimizer, parts: list[dict[str, torch.Tensor]], seconds: float) -> None:
    """How near a step is to its matrix products alone."""
    with Products() as products:
        step_stages(method, optimizer, parts, 0)
    floor = step_floor(products, update_bytes(method)).seconds()
    print(f"\nits products ({products.operations / 1e9:.0f} Gflop) and its update's bytes alone: {floor:.2f} CPU s")
    print(f"step / floor: {seconds / floor:.2f}")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--parts", type=int, default=1, help="in which the batch is passed")
    parser.add_argument("--locals", type=int, default=6)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--out-dim", type=int, default=65536)
    parser.add_argument("--sizes", type=int, nargs=2, default=(224, 112), metavar=("GLOBAL", "LOCAL"))
    parser.add_argument("--compat", choices=("paper", "released"), default="paper")
    parser.add_argument("--frame-size", type=int, nargs=2, default=(540, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeat", type=int, default=2, help="measured repetitions after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="blocks in the backward pass")
    parser.add_argument("--compile", action="store_true", help="blocks with torch.compile, during the repetition that warms up")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)

    settings = DoraSettings(
        compat=a.compat, frames=a.frames, local_crops=a.locals, global_views=a.views, out_dim=a.out_dim,
        global_size=a.sizes[0], local_size=a.sizes[1], warmup_epochs=0, freeze_last_layer_epochs=0, steps=a.repeat + 1,
    )  # fmt: skip
    print(f"{a.arch}, {a.batch} x {a.frames} frames, {a.locals} local crops, {a.out_dim} prototypes, {a.compat}, {a.threads} thread(s)")
    show(f"views from {a.frame_size[1]}x{a.frame_size[0]}", [clip_stages(settings.resolved(), *a.frame_size) for _ in range(5)])

    method = Dora(settings, create(a.arch, seed=0), a.repeat + 1, 1, seed=0).train()
    compiled = CompiledBlocks() if a.compile else None
    for network in (method.student, method.teacher):
        network.backbone.gradient_checkpointing = a.recompute
        network.backbone.run_blocks = compiled or network.backbone.run_blocks
    optimizer = make_optimizer(method)
    batch = {
        "global": torch.randn(a.batch, a.views, a.frames, 3, a.sizes[0], a.sizes[0]),
        "local": torch.randn(a.batch, a.locals, a.frames, 3, a.sizes[1], a.sizes[1]),
    }
    seconds = show("training step", [step_stages(method, optimizer, loop.split(batch, a.parts), at) for at in range(a.repeat + 1)])
    print(f"\npeak memory of this process: {peak_rss_mib() / 1024:.2f} GiB")
    print_floor(method, optimizer, loop.split(batch, a.parts), seconds)


if __name__ == "__main__":
    main()
