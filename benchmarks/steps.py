"""Training steps in turns with the same steps in torch's own layers, beside the time of their matrix products alone.

    python -m benchmarks.steps                            # ViT-S, few images: some minutes
    python -m benchmarks.steps --small                    # nano networks

A step is forward, backward and update on a batch that is there. Its floor is its own matrix products one by one, and the bytes that the
update must read and write. CPU seconds on one thread, medians.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks import matrix_sort, neco
from benchmarks.floors import Products, step_floor, update_bytes
from benchmarks.gpu import trainings
from benchmarks.gpu.trainings import Training
from benchmarks.measure import Row, table
from torch import Tensor

from densewalk.ops.cpu.switch import set_cpu_kernels
from densewalk.ops.soft_sort import networks
from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.training.optimizer import make_optimizer, set_schedules

CPU = torch.device("cpu")
RELEASED = ("vit_small_patch14_reg4", 224, 98)  # network, global and local crops
SMALL = ("vit_nano_patch14_reg4", 56, 28)


def ordinary() -> list[Training]:
    """Methods with a ViT-S and as few images as make a step."""
    arch, head = "vit_small_patch16", {"local_crops": 2, "drop_path": 0.0}
    return [
        trainings.dora(arch, batch_size=1, frames=2, **head),
        trainings.neco("vit_small_patch14_reg4", batch_size=1, global_size=224, drop_path=0.0, queue=0),
        trainings.dino(arch, batch_size=1, **head),
        trainings.timetuning(arch, batch_size=1),
        trainings.mae(arch, batch_size=2),
        trainings.dora(arch, batch_size=2, frames=2, **head),
        trainings.neco("vit_small_patch14_reg4", batch_size=4, global_size=224, drop_path=0.0, queue=0),
    ]


def step_row(training: Training, repeat: int) -> Row:
    """One method."""
    method = training.method().train()
    optimizer = make_optimizer(method)
    batch = method.prepare(training.batch(), CPU)

    def step(kernels: bool = True) -> None:
        set_cpu_kernels(kernels)
        set_schedules(optimizer, 0)
        loss, _ = method.step(batch, 0, torch.Generator().manual_seed(0))
        loss.backward()
        method.after_backward(0)
        optimizer.step()
        method.after_update(0)
        optimizer.zero_grad(set_to_none=True)
        set_cpu_kernels(True)

    with Products() as products:
        step()
    floor = step_floor(products, update_bytes(method))
    what = f"step of {training.name}, {training.arch.name}, {training.settings.batch_size} sample(s)"
    return Row.of(what, step, ("its products, and its update's bytes", floor), {"torch's own layers": lambda: step(False)}, repeat)


def sort_row(rows: int, repeat: int) -> Row:
    """Relaxed sorting of 49 scores, loss and gradient, against the published formula in matrices; the floor is its bytes."""
    generator = torch.Generator().manual_seed(0)
    teacher = 0.2 + 0.15 * torch.randn(rows, 49, generator=generator)
    student = teacher + 0.05 * torch.randn(rows, 49, generator=generator)
    network = networks.network("bitonic", 49)

    def backward(loss: Any) -> None:
        scores = student.clone().requires_grad_()
        loss(scores).backward()

    def compiled(scores: Tensor) -> Tensor:
        return sort_losses(scores, teacher, network=network, student_steepness=100.0, teacher_steepness=100.0).mean()

    return Row.of(
        f"sort loss and gradient, {rows} rows of 49",
        lambda: backward(compiled),
        ("reading and writing the scores", lambda: student.clone().add_(teacher)),
        {"matrices": lambda: backward(lambda s: matrix_sort.sort_loss(s, teacher, "bitonic", 100.0, 100.0))},
        repeat,
    )


def rows(found: list[Training], repeat: int, sorted_rows: int, released: tuple[str, int, int] = RELEASED) -> Iterator[Row]:
    """All methods, NeCo as released, then the sort loss. released: network and sizes of NeCo's crops."""
    for training in found:
        yield step_row(training, repeat)
    yield neco.released_row(repeat, *released)
    yield sort_row(sorted_rows, repeat)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    amounts = (trainings.small(), args.repeat, 100, SMALL) if args.small else (ordinary(), args.repeat, 784, RELEASED)
    print(table(rows(*amounts)))


if __name__ == "__main__":
    main()
