"""One update by several processes and in parts; batch normalization over all processes; one score from what each has tested.

Each process has its share of every batch (`data.ItemStream`), as in the pretraining: gradients are averaged once, before the update. So
the learning rate, the iterations and the batch of an update are the published ones for any number of processes and parts.
"""

from itertools import chain, zip_longest
from typing import Any

import torch
from jaxtyping import Float
from mmengine.evaluator import BaseMetric
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch import distributed as dist

from densewalk.core import distributed

_NOTHING = object()


@LOOPS.register_module()
class SharedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop of iterations, each of which is one update.

    mmengine's own accumulation counts each part as an iteration, and its schedules with them.

    Args:
        parts: in how many a process passes its share of a batch, one after the other.
    """

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int, parts: int = 1) -> None:
        super().__init__(runner, dataloader, max_iters)
        self.parts = parts

    def run_iter(self, data_batch: dict[str, list[Any]]) -> None:
        """One update, between the hooks."""
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs = update(self.runner.model, self.runner.optim_wrapper, split(data_batch, self.parts))
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1


def update(model: Any, optimizer: Any, parts: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
    """One update by the mean gradient of parts and processes; the means over the parts of what the model logs.

    Args:
        model: an mmengine BaseModel. optimizer: mmengine's wrapper, which knows the precision.
    """
    found: list[dict[str, Tensor]] = []
    for part in parts:
        with optimizer.optim_context(model):
            losses = model._run_forward(model.data_preprocessor(part, True), mode="loss")
        loss, logs = model.parse_losses(losses)
        optimizer.backward(loss / len(parts))
        found.append({name: value.detach() for name, value in logs.items()})
    distributed.average_gradients(p for group in optimizer.optimizer.param_groups for p in group["params"])
    optimizer.step()
    optimizer.zero_grad()
    return {name: torch.stack([logs[name].float() for logs in found]).mean(0) for name in found[0]}


def split(batch: dict[str, list[Any]], parts: int) -> list[dict[str, list[Any]]]:
    """A batch of lists in equal parts."""
    size = len(batch["inputs"]) // parts
    return [{key: values[i * size : (i + 1) * size] for key, values in batch.items()} for i in range(parts)]


# -- batch normalization -------------------------------------------------------------------------------------------------------


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Normalize over the batches of all processes: by torch's SyncBatchNorm on a GPU, which is all it works on, else by `BatchNorm`."""
    if distributed.world_size() == 1:
        return model
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = BatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(parent, name, shared)
    return model


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization whose mean and variance are those of all processes' batches, which may differ in size.

        n = sum(n_p),   mean = sum(sum(x_p)) / n,   var = sum(sum(x_p^2)) / n - mean^2          over processes p

    in float64; the running variance is that of a sample, var n / (n - 1), as torch has it.
    """

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalize by this batch in training, else by the running values."""
        if not self.training:
            return super().forward(x)
        wide, axes = x.double(), (0, 2, 3)
        count = wide.new_tensor([x.numel() // x.shape[1]])
        sums: Tensor = _SumOfProcesses.apply(torch.cat([wide.sum(axes), wide.square().sum(axes), count]))  # type: ignore[no-untyped-call]
        n = sums[-1].detach()
        mean, square = (sums[:-1] / n).chunk(2)
        var = square - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum or 0.0)
            self.running_var.lerp_((var * n / (n - 1)).to(self.running_var), self.momentum or 0.0)
        scale = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum over processes; each process's value is part of all processes' sums, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


# -- the score -----------------------------------------------------------------------------------------------------------------


class GatheredMetric(BaseMetric):
    """A metric of what all processes have tested: process p has images p, p + P, p + 2 P, ..., each once.

    mmengine's own gathering expects shares that are padded to one length, and drops the surplus of `results` alone, not of sums.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        """The values, in process 0; the others have none.

        Args:
            size: images of the test.
        """
        shares = distributed.gathered_objects(list(self.results))
        self.results.clear()
        if distributed.rank() > 0:
            return {}
        results = [r for r in chain.from_iterable(zip_longest(*shares, fillvalue=_NOTHING)) if r is not _NOTHING]
        if len(results) != size:
            raise AssertionError(f"{len(results)} images were tested instead of {size}")
        return {f"{self.prefix}/{name}": value for name, value in self.compute_metrics(results).items()}
