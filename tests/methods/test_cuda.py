"""All methods on tensors that say they are on a GPU and hold nothing: a tensor that is left on the CPU is an error, as on a real one.

No value is computed, and no backward pass, for which torch asks a real GPU. `make gpu-check` does both.
"""

from functools import partial

import pytest
import torch
from benchmarks.gpu.fake import CUDA, arrived, fake_gpu, put
from benchmarks.gpu.trainings import small
from torch import Tensor
from torch.utils._pytree import tree_leaves

from densewalk.ops.soft_sort import loss as sorting
from densewalk.training.optimizer import make_optimizer, set_schedules

NAMES = ("DINO", "DoRA", "NeCo", "Time-Tuning", "MAE", "SimCLR", "MoCo v3", "iBOT", "DINOv2", "PaKA")


def made(name, monkeypatch, **changes):
    """A method with its optimizer's state on the CPU, a batch, and the numbers that its samples drew."""
    training = next(t for t in small(**changes) if t.name == name)
    batch, method = training.batch(), training.method().train()
    if name == "NeCo":  # in plain torch, which computes a derivative by the way
        method.sort_losses = partial(method.sort_losses, backend="torch")
        monkeypatch.setattr(sorting, "_compare_backward", lambda grad, *others: grad.new_empty(others[2].n, grad.shape[1]))
    drawn = [rows.flatten() for key, rows in batch.items() if "distortion" in key]
    return method, batch, torch.cat(drawn).tolist()


def devices(values):
    return {x.device for x in tree_leaves(values) if isinstance(x, Tensor)}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_step_stays_on_the_gpu(name, monkeypatch):
    method, batch, numbers = made(name, monkeypatch)
    with fake_gpu(numbers):
        put(method)
        views = method.prepare(arrived(batch), CUDA)
        assert devices(views) == {CUDA}
        loss, logs = method.step(views, 0, torch.Generator().manual_seed(0))
        assert devices([loss, logs]) == {CUDA}
        assert loss.requires_grad
        learned = [p for p in method.parameters() if p.requires_grad]
        for p in learned:
            p.grad = torch.empty_like(p)
        optimizer = make_optimizer(method)
        set_schedules(optimizer, 0)
        method.after_backward(0)
        optimizer.step()
        method.after_update(0)
        assert devices([*method.parameters(), *method.buffers()]) == {CUDA}


@pytest.mark.parametrize(("name", "buffer"), [("DINO", "center"), ("DoRA", "center"), ("NeCo", "queue"), ("Time-Tuning", "queue")])
def test_a_tensor_left_on_the_cpu_is_seen(name, buffer, monkeypatch):
    method, batch, numbers = made(name, monkeypatch, queue=10)
    with fake_gpu(numbers):
        put(method)
        method._buffers[buffer] = torch.empty(method._buffers[buffer].shape)
        views = method.prepare(arrived(batch), CUDA)
        with pytest.raises(RuntimeError, match=r"device|cuda:0"):
            method.step(views, 0, torch.Generator().manual_seed(0))
