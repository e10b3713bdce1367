"""The sort loss's compiled kernel (Triton on a GPU, numba on a CPU) against the one in plain torch, and its time."""

import importlib.util
from collections.abc import Iterator
from typing import Any, get_args

import torch
from benchmarks.gpu.report import Finding, Setting, Skipped, seconds_of
from torch import Tensor

from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.ops.soft_sort.networks import NetworkKind, Relaxation, network

BOUND = 1e-5  # of losses, and of gradients relative to the largest
# of all but the two whose tails fall exponentially: at 100 their P underflows, and two orders of rounding differ by whole units
STEEPNESS, STEEPNESS_OF = 100.0, {"logistic": 10.0, "gaussian": 5.0}
ROWS = 31_360  # 64 images, 10 pairs of crops, 49 patches: a step of NeCo


def check(setting: Setting) -> Iterator[Finding]:
    """All sizes and both networks, each with the worst of the five relaxations; then speed at the size of a step."""
    name = "numba" if setting.device.type == "cpu" else "triton"
    if importlib.util.find_spec(name) is None:
        raise Skipped(f"{name} is not installed")
    for n in (4,) if setting.small else (4, 49, 64, 196):
        for kind in get_args(NetworkKind):
            apart = max(difference(kind, n, relaxation, name, setting) for relaxation in get_args(Relaxation))
            yield Finding(f"{name}, {kind}, n {n}, 5 relaxations: loss and gradient", apart, at_most=BOUND)
    rows = 64 if setting.small else ROWS
    taken = {way: seconds(way, rows, setting) for way in (name, "torch")}
    yield Finding(f"{name}, bitonic, n {4 if setting.small else 49}, {rows} rows: milliseconds", 1e3 * taken[name], slow=True)
    yield Finding("plain torch takes how many times as long", taken["torch"] / taken[name], at_least=1, slow=True)


def scores(rows: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines as in training: clustered, the student near the teacher."""
    g = torch.Generator().manual_seed(0)
    teacher = 0.2 + 0.15 * torch.randn(rows, n, generator=g)
    return (teacher + 0.05 * torch.randn(rows, n, generator=g)).to(device), teacher.to(device)


def evaluate(kind: Any, relaxation: Any, backend: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their sum."""
    student = student.clone().requires_grad_()
    steepness = STEEPNESS_OF.get(relaxation, STEEPNESS)
    options = {"relaxation": relaxation, "backend": backend, "student_steepness": steepness, "teacher_steepness": steepness}
    losses = sort_losses(student, teacher, network=network(kind, student.shape[1]), **options)
    return losses.detach(), torch.autograd.grad(losses.sum(), student)[0]


def difference(kind: str, n: int, relaxation: str, name: str, setting: Setting) -> float:
    """The larger of the differences of losses and gradients; few rows, because 196 scores take a matrix of 20 MB for each."""
    pair = scores(65 if n < 100 else 9, n, setting.device)
    (loss, gradient), (plain, expected) = (evaluate(kind, relaxation, way, *pair) for way in (name, "torch"))
    of_loss = (loss - plain).abs() / plain.abs().clamp(min=1)
    return max(of_loss.max().item(), ((gradient - expected).abs().max() / expected.abs().max()).item())


def seconds(way: str, rows: int, setting: Setting) -> float:
    """Seconds of loss and gradient."""
    pair = scores(rows, 4 if setting.small else 49, setting.device)
    return seconds_of(setting, (evaluate("bitonic", "cauchy", way, *pair) for _ in range(2 if setting.small else 6)))
