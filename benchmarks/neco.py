"""Cost of NeCo's loss and of a whole step, against the published formula in matrices and the release's way of running it.

    python -m benchmarks.neco                            # the loss; a step of one 224 px image; under a minute
    python -m benchmarks.neco --size 224 --batch 4       # the release's two sizes
    python -m benchmarks.neco --size 518 --batch 1

One thread, CPU seconds of this process, the best of several runs, the rivals in turn, so that a busy machine is equally unfair to all. The
release's modules write out the matrix of attention, too, which is why the first row does. The floor of a step is in benchmarks/steps.py.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from benchmarks import matrix_sort
from benchmarks.floors import Products, step_floor, update_bytes
from benchmarks.gpu.trainings import Decoded
from benchmarks.measure import Row
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.neco.augmentation import NecoCrops, make_views
from densewalk.methods.neco.method import Neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.loading import create
from densewalk.ops.cpu.switch import set_cpu_kernels
from densewalk.ops.soft_sort import loss as sorting
from densewalk.ops.soft_sort import networks
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item

STEEPNESS = 100.0


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch14_reg4")
    parser.add_argument("--size", type=int, default=224, help="side of a global crop")
    parser.add_argument("--local", type=int, default=98, help="side of a local crop")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rows", type=int, default=784, help="rows of the loss: 49 for each image and pair of crops")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in ("bitonic", "odd_even"):
        print_losses(kind, options.rows, options.repeats)
    print_steps(options)


# -- the loss alone ----------------------------------------------------------------------------------------------------


def print_losses(kind: str, rows: int, repeats: int) -> None:
    """Microseconds per row of loss and gradient, and how far each is from the matrix formula in float64."""
    student, teacher = scores(rows)
    few = slice(0, 100)
    exact = evaluate(lambda s: matrix_sort.sort_loss(s, teacher[few].double(), kind, STEEPNESS, STEEPNESS), student[few].double())
    largest = exact[1].abs().max()
    print(f"\n{kind}, 49 scores, {rows} rows             us/row  faster   off by (loss, gradient; largest gradient {largest:.0e})")
    rivals: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "matrices": lambda s, t: matrix_sort.sort_loss(s, t, kind, STEEPNESS, STEEPNESS),
        **{name: backend(kind, name) for name in ("torch", "numba") if importlib.util.find_spec(name)},
    }
    counts = {"matrices": repeats, "torch": 2 * repeats, "numba": 10 * repeats}
    for run in list(rivals.values())[1:]:
        evaluate(lambda s, run=run: run(s, teacher[few]), student[few])  # compiles
    seconds: dict[str, float] = {}
    for name in (rival for turn in range(max(counts.values())) for rival in rivals if turn < counts[rival]):
        taken = timed(lambda name=name: evaluate(lambda s: rivals[name](s, teacher), student))
        seconds[name] = min(taken, seconds.get(name, taken))
    for name, run in rivals.items():
        loss, gradient = evaluate(lambda s, run=run: run(s, teacher[few]), student[few])
        faster = seconds["matrices"] / seconds[name]
        off = f"{abs(loss - exact[0]):.0e}, {(gradient - exact[1]).abs().max():.0e}"
        print(f"  {name:<38}{1e6 * seconds[name] / rows:9.1f}{faster:7.1f}x   {off}")


def scores(rows: int) -> tuple[Tensor, Tensor]:
    """Cosines to 49 references as in training: clustered, the student near the teacher."""
    g = torch.Generator().manual_seed(0)
    teacher = 0.2 + 0.15 * torch.randn(rows, 49, generator=g)
    return teacher + 0.05 * torch.randn(rows, 49, generator=g), teacher


def backend(kind: str, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`sorting.sort_losses` on one back end."""
    options: dict[str, Any] = {"student_steepness": STEEPNESS, "teacher_steepness": STEEPNESS, "backend": name}
    return lambda s, t: sorting.sort_losses(s, t, network=networks.network(kind, 49), **options).mean()  # type: ignore[arg-type]


def evaluate(loss: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    student = student.clone().requires_grad_()
    value = loss(student)
    return value.detach(), torch.autograd.grad(value, student)[0]


# -- a whole step ------------------------------------------------------------------------------------------------------


def print_steps(options: argparse.Namespace) -> None:
    """CPU seconds and saved activations of one step as released and as here."""
    size = f"{options.arch}, {options.batch} image(s) of {options.size} and {options.local} px"
    print(f"\nstep of {size:<49} teacher student    loss backward  update  total  faster   saved MiB/image")
    fused = F.scaled_dot_product_attention
    rows = {  # compat, with the teacher's unused graph, sorting, torch's attention, CPU kernels (ops/cpu) on or off
        "compat: released as it is: torch's, all in matrices": ("released", True, matrix_losses, matrix_attention, False),
        "compat: released, torch's layers, sorting in matrices": ("released", True, matrix_losses, fused, False),
        "compat: released, with the teacher's graph": ("released", True, sorting.sort_losses, fused, True),
        "compat: released": ("released", False, sorting.sort_losses, fused, True),
        "compat: paper": ("paper", False, sorting.sort_losses, fused, True),
    }
    stages: dict[str, dict[str, float]] = {}
    saved = {}
    for repeat in range(options.repeats):
        for label, (compat, graph, losses, attention, cpu_kernels) in rows.items():
            set_cpu_kernels(cpu_kernels)
            method, optimizer, batch = new_run(options.arch, (options.size, options.local, options.batch), compat, graph)
            torch.manual_seed(repeat)  # the same images are dropped for all
            with replaced(F, "scaled_dot_product_attention", attention):
                taken = one_step(method, optimizer, batch, losses)
                stages[label] = min(taken, stages.get(label, taken), key=lambda s: sum(s.values()))
                if not repeat:
                    saved[label] = saved_bytes(method, batch, losses) / 2**20 / options.batch
    first = sum(stages[next(iter(rows))].values())
    for label in rows:
        total = sum(stages[label].values())
        print(
            f"  {label:<57}"
            + "".join(f"{s:8.2f}" for s in stages[label].values())
            + f"{total:8.2f}{first / total:7.2f}x{saved[label]:14.0f}"
        )


def released_row(repeat: int, arch: str, size: int, local: int) -> Row:
    """A step of `compat: released` in turns with the same step in torch's layers, its sorting in matrices, and with the release's way."""

    def run(graph: bool, losses: Any, attention: Any, kernels: bool) -> Callable[[], dict[str, float]]:
        method, optimizer, batch = new_run(arch, (size, local, 1), "released", graph)

        def step() -> dict[str, float]:
            set_cpu_kernels(kernels)
            with replaced(F, "scaled_dot_product_attention", attention):
                seconds = one_step(method, optimizer, batch, losses)
            set_cpu_kernels(True)
            return seconds

        return step

    fused = F.scaled_dot_product_attention
    here = run(False, sorting.sort_losses, fused, True)
    with Products() as products:
        here()
    updated = update_bytes(new_run(arch, (size, local, 1), "released", False)[0])
    rivals = {
        "torch's own layers, sorting in matrices": run(False, matrix_losses, fused, False),
        "attention in matrices and the teacher's graph, too": run(True, matrix_losses, matrix_attention, False),
    }
    return Row.of(
        f"step of NeCo, compat released, {arch}",
        here,
        ("its products, and its update's bytes", step_floor(products, updated)),
        rivals,
        repeat,
    )


def new_run(
    arch: str, sizes: tuple[int, int, int], compat: str, teacher_graph: bool
) -> tuple[Neco, torch.optim.Optimizer, dict[str, Tensor]]:
    """A run of the README's recipe (no queue), and one batch. sizes: of global and local crops, and of the batch."""
    size, local, images = sizes
    settings = NecoSettings(
        compat=compat,  # type: ignore[arg-type]
        teacher_graph=teacher_graph,
        queue=0,
        steps=10,
        global_size=size,
        local_size=local,
        batch_size=images,
    )
    method = Neco(settings, create(arch, seed=0), 10, 10, seed=0)
    crops = NecoCrops(Decoded(480, 640, different=images), settings)
    batch = torch.utils.data.default_collate([crops[Item(i, i)] for i in range(images)])
    return method, make_optimizer(method), make_views(batch, torch.device("cpu"))


def one_step(method: Neco, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], losses: Any) -> dict[str, float]:
    """CPU seconds of each stage of one step."""
    seconds = dict.fromkeys(("teacher", "student", "loss", "backward", "update"), 0.0)

    def watch(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            begun = time.process_time()
            result = function(*arguments)
            seconds[label] += time.process_time() - begun
            return result

        return run

    set_schedules(optimizer, 0)
    teacher, student = watch("teacher", method.encode_teacher), watch("student", method.encode_student)
    with (
        replaced(method, "encode_teacher", teacher),
        replaced(method, "encode_student", student),
        replaced(method, "sort_losses", partial(losses, **method.sort_losses.keywords)),
    ):
        loss, _ = watch("loss", method.step)(batch, 0, torch.Generator().manual_seed(0))
    seconds["loss"] -= seconds["teacher"] + seconds["student"]
    watch("backward", loss.backward)()
    watch("update", lambda: (method.after_backward(0), optimizer.step(), method.after_update(0)))()
    optimizer.zero_grad(set_to_none=True)
    return seconds


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute for the length of the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def matrix_losses(
    student: Tensor, teacher: Tensor, *, network: networks.Network, student_steepness: float, teacher_steepness: float, **_: Any
) -> Tensor:
    """The opponent in the place of `sorting.sort_losses`."""
    kind = "bitonic" if network.reverse else "odd_even"
    return matrix_sort.sort_loss(student, teacher, kind, student_steepness, teacher_steepness)


def matrix_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as the modules do it that DINOv2's released code falls back to on a CPU: the matrix is written out and kept."""
    return (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def saved_bytes(method: Neco, batch: dict[str, Tensor], losses: Any) -> int:
    """What the forward pass keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    sort_losses = partial(losses, **method.sort_losses.keywords)
    with replaced(method, "sort_losses", sort_losses), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss, _ = method.step(batch, 0, torch.Generator().manual_seed(0))
    del loss
    return sum(storages.values())


def timed(function: Callable[[], Any]) -> float:
    """CPU seconds."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
