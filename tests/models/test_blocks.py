"""Blocks recomputed and compiled give what plain ones give, and a compiler that fails stops nothing."""

import logging
from copy import deepcopy
from functools import partial

import pytest
import torch
from timm.layers import DropPath

from densewalk.models.backbone import Backbone
from densewalk.models.blocks import CompiledBlocks, run_block
from densewalk.models.loading import create
from densewalk.ops.cpu.stochastic_depth import residual

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outcome(backbone: Backbone) -> list[torch.Tensor]:
    """CLS token and gradients."""
    backbone.zero_grad()
    cls = backbone.cls(IMAGES)
    cls.square().sum().backward()
    return [cls.detach(), *(p.grad for p in backbone.parameters() if p.grad is not None)]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one, two, strict=True))


def test_dropping_images_keeps_no_image_for_the_backward_pass() -> None:
    """For y = x + 2 [image kept] * w x:  dx = dy + 2 [image kept] * w dy,  dw = sum over kept images of 2 dy x."""
    x = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.tensor(0.3, requires_grad=True)
    kept: list[torch.Size] = []
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = residual(x, DropPath(0.5).train(), lambda part: part * weight)
    shown = (y != x).flatten(1).all(1)
    assert 0 < shown.sum() < 40
    assert sum(shape.numel() == 15 * int(shown.sum()) for shape in kept) == 1, "the branch's own input, not its output"
    down = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(1))
    of_x, of_weight = torch.autograd.grad(y, [x, weight], down)
    torch.testing.assert_close(y, x + 2 * shown[:, None, None] * weight * x)
    torch.testing.assert_close(of_x, down * (1 + 2 * shown[:, None, None] * weight))
    torch.testing.assert_close(of_weight, (2 * shown[:, None, None] * down * x).sum())


@pytest.mark.parametrize("tokens", [5, 120, 700])  # fewer than the inputs of both layers, of the MLP's, of none
def test_layer_scale_equals_that_of_timm(tokens: int) -> None:
    """Multiplied into weights or outputs: values and gradients of timm's own block in float64."""
    block = create("vit_nano_patch14_reg4", seed=0).vit.blocks[0]
    generator = torch.Generator().manual_seed(0)
    for scale in (block.ls1.gamma, block.ls2.gamma):
        scale.data.copy_(1 + 0.5 * torch.randn(scale.shape, generator=generator))
    x = torch.randn(1, tokens, block.norm1.normalized_shape[0], generator=generator)
    down = torch.randn(x.shape, generator=generator)
    found = torch.autograd.grad(run_block(block, x), list(block.parameters()), down)
    exact = deepcopy(block).double()
    expected = torch.autograd.grad(exact(x.double()), list(exact.parameters()), down.double())
    torch.testing.assert_close(run_block(block, x), exact(x.double()).float(), rtol=1e-4, atol=1e-4)
    for (name, _), one, other in zip(block.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-3 * float(other.abs().max()), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ["vit_nano_patch16", "vit_nano_patch16_reg4_rope"])
def test_traced_blocks_equal_plain_ones(arch: str, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # all of torch.compile but the making of machine code, which takes minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    student, teacher = create(arch, seed=0), create(arch, seed=1).requires_grad_(False).eval()
    expected = outcome(student), teacher.cls(IMAGES)
    compiled = CompiledBlocks()
    for backbone in (student, teacher):
        backbone.gradient_checkpointing, backbone.run_blocks = recompute, compiled
    for _ in range(2):
        assert same(outcome(student), expected[0])
        torch.testing.assert_close(teacher.cls(IMAGES), expected[1], rtol=1e-4, atol=1e-5)
    assert compiled.compiled is not None, "nothing failed"
    if not recompute:  # the tests' checks of types hide recomputed blocks from the counter
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for each network, none for the second round"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_without_a_compiler_blocks_run_as_they_are(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    backbone = create("vit_nano_patch16", seed=0)
    expected = outcome(backbone)
    backbone.run_blocks = CompiledBlocks()
    with caplog.at_level(logging.WARNING, logger="densewalk"):
        for _ in range(2):
            assert same(outcome(backbone), expected)
    (line,) = [record.message for record in caplog.records if record.name == "densewalk"]
    assert line.startswith("torch.compile fails here (")
    assert line.endswith("blocks run as they are")


def test_what_fails_without_the_compiler_is_raised() -> None:
    def wrong(blocks: object, x: torch.Tensor, rope: None, recompute: bool) -> torch.Tensor:
        raise RuntimeError("out of memory")

    compiled = CompiledBlocks()
    compiled.compiled = wrong
    block = create("vit_nano_patch16", seed=0).vit.blocks[0]
    with pytest.raises(RuntimeError, match="expected input with shape"):
        compiled([block], torch.ones(1, 2, 4), None, False)
