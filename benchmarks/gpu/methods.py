"""All methods: views, loss and gradient on the GPU against the CPU in float32, then bfloat16 against float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from benchmarks.gpu.report import Finding, Setting
from benchmarks.gpu.trainings import Training, medium, small
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")


def check(setting: Setting) -> Iterator[Finding]:
    """The same weights, samples and draws everywhere; the views of the CPU, so that a step is compared by itself."""
    for training in small() if setting.small else medium():
        batch, name = training.batch(), training.name
        with plain_float32():
            views = training.method().prepare(batch, CPU)
            made = training.method().prepare(to(batch, setting.device, torch.uint8), setting.device)
            yield Finding(f"{name}: views, mean difference", distance(views, made), at_most=2e-3)
            expected = outcome(training, views, CPU, bfloat16=False)
            exact = outcome(training, to(views, setting.device), setting.device, bfloat16=False)
            yield Finding(f"{name}: loss in float32 against the CPU", apart(expected, exact), at_most=1e-3)
            yield Finding(f"{name}: cosine of the gradients", cosine(expected, exact), at_least=0.999)
        rounded = outcome(training, to(views, setting.device), setting.device, bfloat16=True)
        yield Finding(f"{name}: loss in bfloat16 against float32", apart(exact, rounded), at_most=0.01)
        # a tiny random network with sines and cosines for positions: batch normalization enlarges the little that its outputs differ by
        tiny = setting.small and name == "MoCo v3"
        yield Finding(f"{name}: cosine of the gradients", cosine(exact, rounded), at_least=0.95 if tiny else 0.99)


@contextmanager
def plain_float32() -> Iterator[None]:
    """Without TF32, which torch takes for convolutions by default: it would hide errors of a thousandth."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def to(batch: Any, device: torch.device, only: torch.dtype | None = None) -> Any:
    """A batch on a device, or only its tensors of one type, as the loop moves it."""
    return tree_map_only(Tensor, lambda x: x.to(device) if only in (None, x.dtype) else x, batch)


def outcome(training: Training, views: Any, device: torch.device, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Loss and all gradients, from new weights and a generator of the CPU: those of a GPU draw other numbers."""
    method = training.method().to(device).train()
    torch.manual_seed(0)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        loss, _ = method.step(views, 0, torch.Generator().manual_seed(0))
    loss.backward()
    gradients = [p.grad.flatten().double().cpu() for p in method.parameters() if p.grad is not None]
    return loss.detach().double().cpu(), torch.cat(gradients)


def apart(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Relative difference of the losses."""
    return abs((one[0] - other[0]) / one[0]).item()


def cosine(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Of all gradients together."""
    return torch.nn.functional.cosine_similarity(one[1], other[1], dim=0).item()


def distance(one: Any, other: Any) -> float:
    """Mean difference of pixels, of the tensor in which it is largest; 8-bit pixels count as 0..1, boxes as they are."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    levels = ((a.float() - b.cpu().float()).abs().mean().item() / (255 if a.dtype == torch.uint8 else 1) for a, b in pairs)
    return max(levels)
