"""Scaled outputs and gradients are those of normalized weights."""

import pytest
import torch

from densewalk.ops.cpu.switch import set_cpu_kernels
from densewalk.ops.cpu.weight_norm import weight_norm_linear


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, False), (True, False, False), (True, True, False)])
@pytest.mark.parametrize("batch", [(3,), (2, 17)])
def test_values_and_gradients_equal_the_formula(batch, learns):
    generator = torch.Generator().manual_seed(0)
    x, v, g = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((*batch, 24), (50, 24), (50, 1)))
    down = torch.randn(*batch, 50, dtype=torch.float64, generator=generator)
    found = []
    for dtype, function in (
        (torch.float64, lambda x, v, g: x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T),
        (torch.float32, weight_norm_linear),
    ):
        parts = [part.to(dtype).requires_grad_(learn) for part, learn in zip((x, v, g), learns, strict=True)]
        y = function(*parts)
        found.append([y, *torch.autograd.grad(y, [part for part in parts if part.requires_grad], down.to(dtype))])
    for exact, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-5)


def test_no_normalized_weights_are_kept_and_torch_s_layer_is_the_same():
    x, v, g = torch.randn(4, 24), torch.randn(50, 24, requires_grad=True), torch.ones(50, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = weight_norm_linear(x, v, g)
    assert kept[:3] == [x.data_ptr(), v.data_ptr(), g.data_ptr()]
    assert len(kept) == 4, "and one number for each output"
    set_cpu_kernels(False)
    try:
        torch.testing.assert_close(y, weight_norm_linear(x, v, g), rtol=1e-5, atol=1e-5)
    finally:
        set_cpu_kernels(True)
