"""The branches that only CUDA takes, one by one, each against the CPU. They have never been run by those who wrote them (docs/gpu.md)."""

import copy
import importlib.util
import logging
import warnings

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.evaluations.mmlab.processes import share_batch_norm
from densewalk.evaluations.mmlab.runner import precision
from densewalk.models.blocks import CompiledBlocks
from densewalk.models.loading import create
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.ops.search.nearest_neighbors import nearest
from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.ops.soft_sort.networks import network
from densewalk.training import cost, launch, loop
from densewalk.training.execution import Execution
from densewalk.training.optimizer import make_optimizer
from densewalk.training.state import State
from tests.fixtures.helpers import require_cuda
from tests.fixtures.toy import Noise, Toy

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


@pytest.fixture
def gpu():
    return require_cuda()


def trained(folder, device, **options):
    """The toy's weights after six steps, and what they cost."""
    method = Toy(6, drop_path=0.0)
    method.step = without_draws(method)
    execution = Execution(workers=2, checkpoint_minutes=60, metrics_every=1, **options)
    with State(folder, {"data": "noise"}) as state, deterministic_kernels(None, device):
        done = loop.train(method, Noise(), batch_size=4, seed=7, state=state, execution=execution, device=device)
    return torch.cat([p.detach().flatten().cpu() for p in method.student.parameters()]), done.cost


def without_draws(method):
    """The toy's step without noise, of which a GPU draws another."""

    def step(batch, number, generator):
        images, _ = batch
        return F.mse_loss(method.student.cls(images), method.teacher.cls(images)), {}

    return step


def close(one, other, start, most):
    """Whether two trainings went the same way, as a share of it."""
    return (one - other).norm() <= most * (one - start).norm()


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
def test_a_training_pinned_copied_ahead_and_updated_by_the_fused_adamw_goes_the_cpu_s_way(gpu, tmp_path, options):
    start = torch.cat([p.detach().flatten() for p in Toy(6, drop_path=0.0).student.parameters()])
    expected, _ = trained(tmp_path / "cpu", CPU)
    found, spent = trained(tmp_path / "gpu", gpu, **options)
    assert close(expected, found, start, most=0.3 if options else 0.1)
    assert spent.gpu_hours is not None
    assert spent.gpu_hours > 0
    assert spent.peak_gpu_mib is not None
    assert spent.peak_gpu_mib > 0


def test_a_training_resumes_from_its_checkpoint_on_the_gpu(gpu, tmp_path):
    torch.manual_seed(0)
    method = Toy(6, drop_path=0.0).to(gpu)
    optimizer = make_optimizer(method)
    method.student.cls(torch.randn(2, 3, 32, 32, device=gpu)).square().sum().backward()
    optimizer.step()
    with State(tmp_path, {"data": "noise"}) as state:
        loop.save(method, optimizer, state, 1)
        again = Toy(6, drop_path=0.0).to(gpu)
        other = make_optimizer(again)
        assert loop.resume(again, other, state, gpu) == 1
    assert all(torch.equal(a, b) for a, b in zip(method.state_dict().values(), again.state_dict().values(), strict=True))
    moments = [[s[name] for s in o.state_dict()["state"].values() for name in ("exp_avg", "exp_avg_sq")] for o in (optimizer, other)]
    assert all(a.device.type == gpu.type and torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_the_sort_loss_runs_in_triton(gpu):
    assert importlib.util.find_spec("triton"), "torch for CUDA brings it"
    g = torch.Generator().manual_seed(0)
    teacher = 0.15 * torch.randn(100, 49, generator=g)
    student = teacher + 0.05 * torch.randn(100, 49, generator=g)
    found = {}
    for backend, device in (("auto", gpu), ("torch", gpu), ("torch", CPU)):
        x = student.to(device).requires_grad_()
        losses = sort_losses(
            x, teacher.to(device), network=network("bitonic", 49), student_steepness=100.0, teacher_steepness=100.0, backend=backend
        )
        losses.sum().backward()
        found[backend, device.type] = losses.detach().cpu(), x.grad.cpu()
    first, *others = found.values()
    for other in others:
        torch.testing.assert_close(first[0], other[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(first[1], other[1], rtol=1e-4, atol=1e-5 * first[1].abs().max().item())


def test_energy_and_memory_are_told(gpu, monkeypatch):
    assert cost.uuid_of(gpu).startswith("GPU-")
    assert cost.peak_gpu_mib(gpu) >= 0
    energy = cost.energy_mj(gpu)
    if energy is None:
        pytest.skip("NVML tells no energy: a part of a GPU (MIG), or older than Volta")
    assert energy > 0


def test_jobs_side_by_side_claim_the_gpus_that_are_there(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "LOCKS", tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch.visible_gpus() == [str(i) for i in range(torch.cuda.device_count())]
    assert distributed.local_device("auto") == distributed.local_device("cuda") == torch.device("cuda", 0)


def test_nccl_carries_tensors_of_the_gpu_and_gloo_those_of_the_cpu(gpu, tmp_path):
    torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        for device in (gpu, CPU):
            x = torch.arange(3.0, device=device)
            parts = [torch.empty_like(x)]
            dist.all_reduce(x)
            dist.all_gather(parts, x)
            assert parts[0].tolist() == [0, 1, 2]
        objects = [None]
        dist.all_gather_object(objects, {"rank": 0})
        assert objects == [{"rank": 0}]
    finally:
        dist.destroy_process_group()


def test_batch_normalization_is_torch_s_own_over_processes_and_equals_the_plain_one_in_one(gpu):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    shared = share_batch_norm(copy.deepcopy(plain), gpu).to(gpu).train()
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(shared(x.to(gpu)).cpu(), plain(x), rtol=1e-3, atol=1e-3)  # TF32


def test_the_toolboxes_compute_in_bfloat16(gpu):
    optim = pytest.importorskip("mmengine.optim", reason="mmengine is not installed")
    model = nn.Linear(4, 4).to(gpu)
    wrapper = optim.build_optim_wrapper(model, precision(gpu) | {"optimizer": {"type": "AdamW", "lr": 1e-3}})
    with wrapper.optim_context(model):
        y = model(torch.ones(2, 4, device=gpu))
    assert y.dtype == torch.bfloat16
    before = model.weight.detach().clone()
    wrapper.update_params(y.float().sum())
    assert not torch.equal(model.weight, before)


def test_compiled_blocks_equal_plain_ones(gpu, caplog):
    torch._dynamo.reset()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(gpu)
    backbone = create("vit_nano_patch16", seed=0).to(gpu)
    expected = backbone.cls(images)
    runner = CompiledBlocks()
    backbone.run_blocks = runner
    with caplog.at_level(logging.WARNING, logger="densewalk"):
        found = backbone.cls(images)
    assert runner.compiled is not None, caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_deterministic_kernels_give_the_same_bits_twice(gpu):
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0)).to(gpu)

    def gradient():
        leaf = x.clone().requires_grad_()
        F.interpolate(leaf, size=(64, 64), mode="bilinear").square().sum().backward()
        return leaf.grad

    with warnings.catch_warnings(), deterministic_kernels(True, gpu):
        warnings.filterwarnings("error", message=".*deterministic.*")  # an operator that has no such kernel
        first, second = gradient(), gradient()
    assert torch.equal(first, second)
    torch.testing.assert_close(gradient(), first, rtol=1e-4, atol=1e-5)


def test_exact_search_finds_what_the_cpu_finds(gpu):
    g = torch.Generator().manual_seed(0)
    memory, queries = (F.normalize(torch.randn(n, 64, generator=g), dim=1) for n in (40_000, 50))
    values, index = nearest(memory.to(gpu), queries.to(gpu), 10)
    expected, entries = nearest(memory, queries, 10)
    torch.testing.assert_close(values.cpu(), expected, rtol=0, atol=1e-5)
    assert (index.cpu() == entries).float().mean() > 0.99
