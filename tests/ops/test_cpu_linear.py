"""Linear layers by oneDNN, or by oneDNN and MKL, give what torch's give."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densewalk.ops.cpu import linear as module
from densewalk.ops.cpu import switch
from densewalk.ops.cpu.linear import MAX_ROWS, MIN_ROWS, Linear, linear, linear_of_layer, transposed_product, use_onednn_linear
from densewalk.ops.cpu.processor import set_processor
from tests.fixtures.helpers import PROCESSORS

needed = pytest.mark.usefixtures("processor")


@pytest.fixture(params=PROCESSORS)
def processor(request):
    """As on each kind of processor; oneDNN's products are right on all of them."""
    set_processor(PROCESSORS[request.param])
    yield PROCESSORS[request.param]
    set_processor(None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@needed
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(37,), (3, 17), (2, 3, 11)])
def test_values_and_gradients_are_as_exact_as_torchs(batch, bias):
    x, weight = normal(*batch, 48), normal(29, 48, seed=1)
    parts = [x, weight] + [normal(29, seed=2)] * bias
    down = normal(*batch, 29, seed=3)
    results = []
    for product, dtype in ((F.linear, torch.float64), (linear, torch.float32)):
        inputs = [part.to(dtype).requires_grad_() for part in parts]
        y = product(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, down.to(dtype))])
    for exact, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-5)


@needed
@pytest.mark.parametrize("widths", [(24, 40), (40, 24)])
@pytest.mark.parametrize("rows", [MIN_ROWS, MAX_ROWS, 2 * MAX_ROWS + 7])
def test_a_transposed_product_in_blocks(rows, widths):
    one, other = (normal(rows, width, seed=width) for width in widths)
    found = transposed_product(one.float(), other.float())
    assert found.is_contiguous(), "as the weights are that it is a gradient of"
    torch.testing.assert_close(found.double(), one.t() @ other, rtol=1e-5, atol=2e-5 * rows**0.5)


@needed
@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
def test_linear_of_an_activation(learns):
    """Of input and weight either may be without gradient; only the activation's input is kept."""
    x, weight, bias = normal(3, 17, 48), normal(29, 48, seed=1), normal(29, seed=2)
    results, kept = [], []
    for product, dtype in ((lambda x, w, b: F.linear(F.gelu(x), w, b), torch.float64), (through_gelu, torch.float32)):
        inputs = [part.to(dtype).requires_grad_(learn) for part, learn in zip((x, weight, bias), (*learns, True), strict=True)]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = product(*inputs)
        results.append([y, *torch.autograd.grad((y**2).sum(), [part for part in inputs if part.requires_grad])])
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)
    assert [t.data_ptr() for t in kept if t.dtype == torch.float32] == [inputs[0].data_ptr(), inputs[1].data_ptr()]


def through_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return linear_of_layer(nn.GELU(), x, weight, bias)


@needed
@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True), (False, False)])
def test_linear_of_a_norm(learns):
    """The norm's own parameters learn, too, or do not; the norm's output is not kept."""
    weight, bias = normal(29, 48, seed=1), normal(29, seed=2)
    some = nn.LayerNorm(48).requires_grad_(learns[1])
    nn.init.normal_(some.weight, generator=torch.Generator().manual_seed(4))
    results, kept = [], []
    for dtype in (torch.float64, torch.float32):
        norm = copy.deepcopy(some).to(dtype)
        x = normal(3, 17, 48).to(dtype).requires_grad_(learns[0])
        own = [weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = F.linear(norm(x), *own) if dtype == torch.float64 else linear_of_layer(norm, x, *own)
        inputs = [part for part in (x, *norm.parameters(), *own) if part.requires_grad]
        results.append([y, *torch.autograd.grad((y**2).sum(), inputs)])
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)
    found = [t.data_ptr() for t in kept if t.dtype == torch.float32]
    assert found == [t.data_ptr() for t in (x, own[0], *norm.parameters())]


@needed
def test_strided_inputs_and_gradients():
    """Parts of tokens, transposed maps, and a gradient that is one number everywhere."""
    tokens, weight = torch.randn(20, 9, 48).requires_grad_(), torch.randn(24, 48).requires_grad_()
    for x in (tokens[:, 1:], tokens[:, :, :].transpose(0, 1), tokens[::2]):
        found = []
        for product in (F.linear, linear):
            y = product(x, weight)
            found.append([y, *torch.autograd.grad(y.sum(), [tokens, weight])])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_what_needs_no_gradient_gets_none(processor):
    x, weight = torch.randn(40, 8), torch.randn(6, 8).requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        frozen = linear(x.requires_grad_(), weight.detach())
    assert kept == [weight.numel()], "x is not kept for a weight that does not learn"
    frozen.sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand_as(x))


@pytest.mark.parametrize("why", ["double", "few rows", "autocast", "switched off"])
def test_all_else_is_torchs_own(why, monkeypatch):
    def wrong(*_: object) -> None:
        raise AssertionError("not for this one")

    monkeypatch.setattr(module, "HAS_ONEDNN", True)
    monkeypatch.setattr(module, "product", wrong)
    monkeypatch.setattr(module, "this_processor", lambda: PROCESSORS["AMD, AVX-512 in full"])
    monkeypatch.setattr(switch, "_enabled", why != "switched off")
    rows = MIN_ROWS - 1 if why == "few rows" else MIN_ROWS
    x, weight = (torch.randn(n, 8, dtype=torch.float64 if why == "double" else torch.float32) for n in (rows, 6))
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_network_with_onednn_layers_is_the_same_under_the_same_names():
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Sequential(nn.Linear(16, 4, bias=False)))
    fast = use_onednn_linear(copy.deepcopy(network))
    assert [type(part) for part in fast.modules()].count(Linear) == 2
    fast.load_state_dict(network.state_dict())
    x = torch.randn(50, 8)
    torch.testing.assert_close(fast(x), network(x))
