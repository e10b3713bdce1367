"""Steps of MAE, SimCLR, MoCo v3, iBOT, DINOv2, PaKA, the contrastive random walk and MoSiC, each against the passes they are made of.

    python benchmarks/self_supervised.py                                    # ViT-S/16, two images a batch: some minutes
    python benchmarks/self_supervised.py --arch vit_micro_patch16 --batch 4
    python benchmarks/self_supervised.py --small                            # nano networks, small images: seconds

The passes: all networks forward on what the step gives them, heads included, and backward from the sum of their outputs. What a step
takes more is its losses, targets and centers. CPU seconds on one thread. Below, parts for themselves: logits of masked patches against
those of all, and the walk's chains against products made from the beginning for each cycle.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.gpu import trainings
from benchmarks.gpu.trainings import Training
from benchmarks.measure import Row, medians
from torch import Tensor

from densewalk.methods.crw.walk import chains, cycle_loss, transitions
from densewalk.methods.mocov3.method import MocoV3
from densewalk.methods.mosic.method import Mosic
from densewalk.methods.paka.method import Paka

CPU = torch.device("cpu")


def passes(method: Any, batch: Any) -> list[Tensor]:
    """All outputs of a step's forward passes."""
    match type(method).__name__:
        case "Mae":
            return [method.decoder(method.encode(batch["images"], batch["order"]), batch["order"])]
        case "Simclr":
            return [method.projector(method.backbone.cls(batch.transpose(0, 1).flatten(0, 1)))]
        case "MocoV3":
            return moco_passes(method, batch)
        case "Crw":
            return [method.head(method.backbone.tokens(batch.flatten(0, 2)).patches.mean(dim=1))]
        case "Mosic":
            return mosic_passes(method, batch)
        case "Dino":
            return [method.encode_teacher(batch["global"]), method.encode_student(batch)[0]]
    teacher, student = method.encode_teacher(batch), method.encode_student(batch)
    outputs = [student.cls, student.patches, teacher.cls]
    return [*outputs, *aligned_passes(method, batch)] if isinstance(method, Paka) else outputs


def aligned_passes(method: Paka, batch: dict[str, Tensor]) -> list[Tensor]:
    """The teacher's plain global views, the student's crops to align, and heads on as many patches as are aligned."""
    with torch.no_grad():
        plain = method.teacher.backbone.tokens(batch["plain"].flatten(0, 1)).patches
    crops = method.student.backbone.tokens(batch["aligned"].flatten(0, 1)).patches
    places = method.side**2
    aligned = plain[:, :places].repeat_interleave(len(crops) // len(plain), dim=0)
    return [method.student.aligned_head(crops[:, :places]), method.teacher.aligned_head(aligned)]


def moco_passes(method: MocoV3, batch: Tensor) -> list[Tensor]:
    """Queries of both views, and their keys."""
    return [*(method.predictor(method.student(view)) for view in batch.unbind(1)), *method.encode_keys(batch)]


def mosic_passes(method: Mosic, batch: dict[str, Tensor]) -> list[Tensor]:
    """The frozen blocks on all frames; the student's last ones on the first, the teacher's on all; scores of all patches."""
    trunk = method.student.encode_trunk(batch["clip"])
    with torch.no_grad():
        taught = method.teacher.head(method.teacher.encode(trunk)) @ method.teacher.prototypes.T
    return [method.student.head(method.student.encode(trunk[:, :1])) @ method.student.prototypes.T, taught]


def all_methods(arch: str, batch: int) -> list[Training]:
    """DINO first, which the others are compared with."""
    heads = {"out_dim": 8192, "local_crops": 8, "drop_path": 0.0}
    return [
        trainings.dino(arch, batch_size=batch, **heads),
        trainings.mae(arch, batch_size=batch, decoder_dim=192, decoder_depth=4, decoder_heads=6),
        trainings.simclr(arch, batch_size=batch),
        trainings.mocov3(arch, batch_size=batch),
        trainings.ibot(arch, batch_size=batch, **heads),
        trainings.dinov2(arch, batch_size=batch, **heads),
        trainings.paka(arch, batch_size=batch, global_size=224, local_size=112, **heads),
        trainings.crw(arch, batch_size=1),
        trainings.mosic(arch, batch_size=1, frames=4),
    ]


def small_methods() -> list[Training]:
    """The same methods with nano networks and small images."""
    named = {training.name: training for training in trainings.small()}
    return [named[training.name] for training in all_methods("vit_nano_patch16", 2)]


def rows(found: list[Training], repeat: int) -> Iterator[Row]:
    """Each method's step, whose floor is its own passes."""
    for training in found:
        step, plain = seconds_of(training, repeat)
        what = f"step of {training.name}, {training.arch.name}, {training.settings.batch_size} sample(s)"
        yield Row(what, step, plain, "its passes, heads included", {})


def seconds_of(training: Training, repeat: int) -> tuple[float, float]:
    """Of a step, and of its passes."""
    method = training.method().train()
    batch = method.prepare(training.batch(), CPU)

    def step() -> None:
        loss, _ = method.step(batch, 0, torch.Generator().manual_seed(0))
        loss.backward()
        for name in ("patch_sums", "mean_logits"):  # of the centers, which no update takes here
            getattr(method, name, []).clear()

    def plain() -> None:
        learned = [output for output in passes(method, batch) if output.requires_grad]
        # ones in memory: the gradient of a sum is one number seen many times, for which matrix products have a slow path
        torch.autograd.backward(learned, [torch.ones_like(output) for output in learned])
        getattr(method, "patch_sums", []).clear()

    taken = medians({"step": step, "passes": plain}, repeat)
    return taken["step"], taken["passes"]


def patch_logits_row(arch: str, batch: int, repeat: int) -> str:
    """Logits and their backward pass for masked patches, and for all of them."""
    training = trainings.ibot(arch, batch_size=batch, local_crops=0, drop_path=0.0)
    method: Any = training.method()
    views = method.prepare(training.batch(), CPU)
    patches = torch.randn(views["masks"].numel(), method.student.backbone.dim, requires_grad=True)
    head = method.student

    def logits(places: Any) -> None:
        head.patch_prototypes(head.bottleneck(patches[places])).logsumexp(dim=1).sum().backward()

    taken = medians({"masked": lambda: logits(views["places"]), "whole": lambda: logits(slice(None))}, repeat)
    masked, whole = taken["masked"], taken["whole"]
    share = len(views["places"]) / views["masks"].numel()
    return (
        f"| {100 * share:.0f} % masked, {method.settings.patch_prototypes} prototypes | {whole:.2f} | {masked:.2f} | {whole / masked:.1f} |"
    )


def walk_row(frames: int, repeat: int) -> str:
    """All cycles of a clip of 49 nodes, forward and backward."""
    nodes = torch.nn.functional.normalize(
        torch.randn(4, frames, 49, 128, generator=torch.Generator().manual_seed(0)), dim=-1
    ).requires_grad_()

    def chained() -> Tensor:
        return torch.stack([cycle_loss(*walk) for walk in chains(*transitions(nodes, 0.05, 0.0, None, inherited=False))]).mean()

    def plain() -> Tensor:
        there, back = transitions(nodes, 0.05, 0.0, None, inherited=False)
        losses = []
        for k in range(frames - 1):
            product = there[0]
            for step in (*there[1 : k + 1], *back[: k + 1].flip(0)):
                product = product @ step
            losses.append(-(product.diagonal(dim1=1, dim2=2) + 1e-20).log().mean() + product.sum(dim=2).log().mean())
        return torch.stack(losses).mean()

    difference = abs(chained().item() - plain().item())
    taken = medians({"chained": lambda: chained().backward(), "plain": lambda: plain().backward()}, repeat)
    ours, theirs = taken["chained"], taken["plain"]
    return f"| {frames} | {1000 * theirs:.1f} | {1000 * ours:.1f} | {theirs / ours:.1f} | {difference:.0e} |"


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="nano networks, small images")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.small:
        args.arch, args.batch = "vit_nano_patch16", 2
    found = small_methods() if args.small else all_methods(args.arch, args.batch)
    images = "small images" if args.small else f"{args.batch} images of 224 px (one clip of 4 frames for CRW and MoSiC)"
    print(f"{args.arch}, {images}, one thread\n")
    print("| method | passes, CPU s | step | overhead | step of DINO's |\n|---|---|---|---|---|")
    reference = None
    for training in found:
        step, plain = seconds_of(training, args.repeat)
        reference = reference or step
        print(f"| {training.name} | {plain:.2f} | {step:.2f} | {100 * (step / plain - 1):.0f} % | {step / reference:.2f} |", flush=True)
    print("\n| patches' logits | of all, CPU s | of masked | ratio |\n|---|---|---|---|")
    print(patch_logits_row(args.arch, args.batch, args.repeat))
    print("\n| frames of a walk | products from the beginning, CPU ms | chained | ratio | difference |\n|---|---|---|---|---|")
    for frames in (4, 8, 16):
        print(walk_row(frames, args.repeat))


if __name__ == "__main__":
    main()
