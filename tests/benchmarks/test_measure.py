"""Floors count the right products, and rivals run in turns."""

import pytest
import torch
from benchmarks.floors import Products
from benchmarks.measure import Row, Told, in_turns, table
from torch import nn
from torch.nn import functional as F

from densewalk.models.loading import create
from densewalk.ops.cpu.switch import set_cpu_kernels


def found(run):
    with Products() as products:
        run()
    return {shape: count for (shape, _), count in products.found.items()}


def test_a_linear_layer_has_one_product_forward_and_two_backward():
    x, layer = torch.randn(32, 8, requires_grad=True), nn.Linear(8, 4)
    assert found(lambda: layer(x).sum().backward()) == {(1, 32, 8, 4): 1, (1, 4, 32, 8): 1, (1, 32, 4, 8): 1}


def test_a_patch_embedding_is_the_product_of_its_patches():
    x, layer = torch.randn(2, 3, 32, 32), nn.Conv2d(3, 5, 16, stride=16)
    assert found(lambda: layer(x)) == {(1, 8, 768, 5): 1}


def test_attention_has_two_products_forward():
    q, k, v = torch.randn(3, 2, 4, 20, 16)
    with Products() as products:
        F.scaled_dot_product_attention(q, k, v)
    assert products.operations == 2 * 2 * 2 * 4 * 20 * 20 * 16


def test_products_by_both_kernels_are_the_same_number_of_operations():
    network, counts = create("vit_nano_patch16", seed=0), []
    for kernels in (False, True):
        set_cpu_kernels(kernels)
        with Products() as products, torch.no_grad():
            network.dense(torch.randn(2, 3, 64, 64))
        counts.append(products.operations)
    set_cpu_kernels(True)
    assert counts[0] == counts[1] > 0


def test_rivals_run_in_turns():
    order = []
    seconds = in_turns({"one": lambda: order.append(1), "two": lambda: order.append(2)}, repeat=3)
    assert order == [1, 2] * 4
    assert [len(taken) for taken in seconds.values()] == [3, 3]


def test_a_floor_that_is_told_is_measured_in_turns_and_its_own_time_does_not_count():
    order, told = [], iter([0.5, 9.0, 0.25])
    row = Row.of("sum", lambda: order.append("here"), ("parts", Told(lambda: order.append("floor") or next(told))), {}, repeat=3)
    assert order == ["here", *["here", "floor"] * 3], "the first one warms up, which what is told does by itself"
    assert row.floor == 0.5


def test_a_row_says_how_far_its_floor_is():
    row = Row("sum", here=0.2, floor=0.1, floor_of="reading", rivals={"loop": 0.6})
    assert row.times_floor == pytest.approx(2)
    assert table([row]).splitlines()[2] == "| sum | **2.00** | 200 | 100 | reading | loop: 600 (3.0x) |"
