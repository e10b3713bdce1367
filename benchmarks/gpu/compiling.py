"""`execution.compile`: the same loss, nothing that falls back, few compilations."""

from collections.abc import Iterator
from functools import partial

import torch
from benchmarks.gpu.methods import apart, cosine, plain_float32
from benchmarks.gpu.report import Finding, Setting
from benchmarks.gpu.trainings import Training, medium, small
from torch import Tensor
from torch._dynamo.utils import counters

from densewalk.models.backbone import Backbone
from densewalk.models.blocks import CompiledBlocks, run_blocks

MOST = 8  # torch's own limit for one function: beyond it runs uncompiled without an error


def check(setting: Setting) -> Iterator[Finding]:
    """DoRA, which has the most shapes: whole frames, masked frames and local crops, a teacher and a student."""
    training = (small() if setting.small else medium())[1]
    runner = CompiledBlocks()
    if setting.small:  # all of it but machine code, which takes minutes on a CPU
        runner.compiled = partial_compile()
    with plain_float32():
        expected = outcome(training, setting, None)
        torch._dynamo.reset()
        counters.clear()
        first = outcome(training, setting, runner)
        compiled = counters["frames"]["total"]
        again = outcome(training, setting, runner)
    yield Finding("blocks still compiled in the end: 1 is yes", float(runner.compiled is not None), at_least=1)
    yield Finding("loss against blocks as they are", max(apart(expected, first), apart(expected, again)), at_most=1e-4)
    yield Finding("cosine of the gradients", min(cosine(expected, first), cosine(expected, again)), at_least=0.9999)
    yield Finding("compilations of the first step", compiled, at_most=MOST, at_least=1)
    yield Finding("compilations of a second step", counters["frames"]["total"] - compiled, at_most=0)
    yield Finding("compilations that failed", counters["frames"]["total"] - counters["frames"]["ok"], at_most=0)
    yield Finding("graph breaks", sum(counters["graph_break"].values()), at_most=0)


def partial_compile() -> CompiledBlocks:
    """`CompiledBlocks` traced and differentiated only."""
    return partial(torch.compile, dynamic=False, backend="aot_eager")(run_blocks)  # type: ignore[return-value]


def outcome(training: Training, setting: Setting, runner: CompiledBlocks | None) -> tuple[Tensor, Tensor]:
    """Loss and gradients of a step from the same start."""
    method = training.method().to(setting.device).train()
    for part in method.modules():
        if isinstance(part, Backbone) and runner is not None:
            part.run_blocks = runner
    torch.manual_seed(0)
    views = method.prepare(training.batch(), setting.device)
    loss, _ = method.step(views, 0, torch.Generator().manual_seed(0))
    loss.backward()
    gradients = [p.grad.flatten().double().cpu() for p in method.parameters() if p.grad is not None]
    return loss.detach().double().cpu(), torch.cat(gradients)
