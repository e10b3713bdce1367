"""Methods, sharded over two processes, have the losses and the weights that they have unsharded: copied networks, frozen ones, masked
tokens, several passes of a student before one backward pass. Those that are not here are made of the same parts."""

import pytest
import torch
import torch._dynamo  # before processes are forked: each would import them again
import torch.distributed.fsdp
from benchmarks.gpu.trainings import small

from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.processes.sharding import is_sharded, whole_state
from tests.fixtures.processes import in_processes

STEPS = 2
TRAININGS = [training for training in small() if training.name in ("DoRA", "NeCo", "Time-Tuning", "MAE", "MoCo v3", "DINOv2")]


def trained(number, shard):
    """Losses, how many tensors are held in parts, and the whole weights after a few steps of the method with this number."""
    training, device = TRAININGS[number], torch.device("cpu")
    method, execution = training.method(), Execution(workers=0, shard=shard)
    _, optimizer, averager = loop.ready(method, execution, device)
    parts = sum(map(is_sharded, method.parameters()))
    losses = [loop.one_step(method, optimizer, [training.batch()], step, 0, execution, device, averager)[0].item() for step in range(STEPS)]
    return losses, parts, {name: x.numpy(force=True) for name, x in whole_state(method).items()}


def both(number):
    return trained(number, shard=False), trained(number, shard=True)


@pytest.mark.parametrize("number", range(len(TRAININGS)), ids=[training.name for training in TRAININGS])
def test_a_sharded_method_equals_an_unsharded_one(tmp_path, number):
    for (losses, none, expected), (found, parts, weights) in in_processes(both, 2, tmp_path, number):
        assert none == 0
        assert parts > 0
        assert found == pytest.approx(losses, rel=1e-5)
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert value == pytest.approx(expected[name], rel=1e-4, abs=2e-4), name
