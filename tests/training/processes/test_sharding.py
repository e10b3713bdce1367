"""A training sharded over two processes equals the unsharded one, with a teacher and several forward passes in a step."""

import json

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.methods.dino.self_distillation import clip_each
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.processes.sharding import is_sharded, whole
from densewalk.training.state import State
from tests.fixtures.processes import in_processes
from tests.fixtures.toy import Noise, Toy

STEPS = 6


class TwoViews(Toy):
    """Two forward passes of the student before one backward pass, the second through all of the last block."""

    def step(self, batch, step, generator):
        images, _ = batch
        if step == self.dies_at:
            raise KeyboardInterrupt
        target = self.teacher.tokens(images)
        small = F.mse_loss(self.student.dense(images[..., :16, :16]).mean((2, 3)), target.cls)
        self.numbers = {sum(p.numel() for p in map(distributed.local_part, net.parameters())) for net in (self.student, self.teacher)}
        self.sharded = sum(map(is_sharded, self.teacher.parameters()))
        return F.mse_loss(self.student.tokens(images).patches, target.patches) + small, {}


def fit(folder, shard, options):
    rank = distributed.rank()
    method = TwoViews(STEPS, drop_path=0.0, dies_at=options.get("dies_at"))
    execution = Execution(
        workers=0, checkpoint_minutes=0, metrics_every=1, shard=shard, gradient_checkpointing=options.get("recompute", False)
    )
    for net in (method.student, method.teacher):
        net.gradient_checkpointing = execution.gradient_checkpointing
    with State(folder / "state" if rank == 0 else folder / f"other-{rank}", {"data": "noise"}) as state:
        state.folder = folder / "state"
        try:
            trained = loop.train(
                method,
                Noise(),
                batch_size=4,
                seed=7,
                state=state,
                execution=execution,
                device=torch.device("cpu"),
                parts=options.get("parts", 1),
            )
        except KeyboardInterrupt:
            return None
    weights = {name: x.numpy() for name, x in trained.method.state_dict().items()}
    return method.numbers, method.sharded, weights


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "state/metrics.jsonl").read_text().splitlines()]


def train_both(tmp_path, **options):
    found = {}
    for shard in (False, True):
        folder = tmp_path / str(shard)
        folder.mkdir()
        found[shard] = in_processes(fit, 2, folder, folder, shard, options)
    return found


@pytest.mark.parametrize("options", [{}, {"parts": 2, "recompute": True}])
def test_losses_and_weights_equal_those_of_an_unsharded_training(tmp_path, options):
    found = train_both(tmp_path, **options)
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-6)
    (whole, none, expected), _ = found[False]
    for numbers, sharded, weights in found[True]:
        assert none == 0
        assert sharded > 0
        assert max(numbers) < max(whole), "each process holds a part"
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert value == pytest.approx(expected[name], abs=2e-4), name


@pytest.mark.parametrize("then", [True, False])
def test_a_sharded_training_is_resumed_sharded_or_not(tmp_path, then):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    in_processes(fit, 2, tmp_path / "whole", tmp_path / "whole", False, {})
    assert in_processes(fit, 2, tmp_path / "parts", tmp_path / "parts", True, {"dies_at": 3}) == [None, None]
    (tmp_path / "parts/store").unlink(missing_ok=True)
    in_processes(fit, 2, tmp_path / "parts", tmp_path / "parts", then, {})
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def clipped(shard):
    """Gradients after clipping, one by one and together."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    if shard:
        fully_shard(net[0], mesh=init_device_mesh("cpu", (2,)))
    found = []
    for clip in (
        lambda params: clip_each([p.grad for p in params], 0.5),
        lambda params: distributed.clip_together(params, 0.5),
    ):
        net.zero_grad()
        (100 * net(torch.ones(2, 6)).square().sum()).backward()
        clip([*net.parameters()])
        found += [whole(p.grad).tolist() for p in net.parameters()]
    return found


def test_sharded_gradients_are_clipped_by_their_whole_norms(tmp_path):
    (tmp_path / "sharded").mkdir()
    expected = clipped(shard=False)
    for found in in_processes(clipped, 2, tmp_path / "sharded", True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))
    assert sum(x * x for g in expected[4:] for x in torch.tensor(g).flatten().tolist()) == pytest.approx(0.25, rel=1e-4)


def test_sharded_blocks_are_not_compiled():
    with pytest.raises(ValidationError, match="shard and compile cannot be combined"):
        Execution(shard=True, compile=True)
