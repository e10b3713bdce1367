"""A linear probe whose head, loss, optimizer and schedule are each those of one of two protocols."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.core.errors import TrainingError
from densewalk.core.hashing import derive_seed
from densewalk.evaluations.common.dense_features import reduce_masks
from densewalk.evaluations.linear_ladder.parts import Mixture

NOTHING = -1  # label of pixels that are neither learned nor scored
LOSS_IMAGES = 16  # whose logits exist at once at the loss's size


class Head(nn.Module):
    """A 1x1 convolution, after batch normalization or not."""

    def __init__(self, dim: int, outputs: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.conv_seg = nn.Conv2d(dim, outputs, kernel_size=1)

    def forward(self, maps: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch outputs rows columns"]:
        """Logits at the maps' resolution."""
        found: Tensor = self.conv_seg(self.bn(maps))
        return found


class Probe:
    """A head in training.

    Attributes:
        labels: the label of each output.
    """

    def __init__(self, mixture: Mixture, dim: int, seed: int, toolbox_start: Mapping[str, Tensor] | None, device: torch.device) -> None:
        """A head before its first step. toolbox_start: its weights in the toolbox; None where they are those of `linear_segmentation`."""
        self.mixture, a, b = mixture, mixture.toolbox.resolved(), mixture.own.resolved()
        self.a, self.b = a, b
        self.labels = list(range(b.label_values)) if mixture.is_own("outputs") else list(a.rule.values)
        self.head = Head(dim, len(self.labels), batch_norm=a.batch_norm and not mixture.is_own("batch_norm")).to(device)
        if toolbox_start is None:
            torch.manual_seed(derive_seed(seed, "linear_segmentation"))
            start = nn.Linear(dim, len(self.labels))
            toolbox_start = {"conv_seg.weight": start.weight.detach()[:, :, None, None], "conv_seg.bias": start.bias.detach()}
        with torch.no_grad():
            self.head.conv_seg.weight.copy_(toolbox_start["conv_seg.weight"])
            self.head.conv_seg.bias.copy_(toolbox_start["conv_seg.bias"])  # type: ignore[union-attr]
        parameters = self.head.parameters()
        self.optimizer: torch.optim.Optimizer
        if mixture.is_own("optimizer"):
            self.lr = b.learning_rate
            self.optimizer = torch.optim.SGD(parameters, self.lr, momentum=b.momentum, weight_decay=b.weight_decay)
        else:
            self.lr = a.learning_rate
            self.optimizer = torch.optim.AdamW(parameters, self.lr, betas=(0.9, 0.999), weight_decay=a.weight_decay)
        places = torch.full((b.label_values + 1,), -100)  # the last one is NOTHING's
        places[self.labels] = torch.arange(len(self.labels))
        if b.ignored is not None and b.ignored < b.label_values:
            places[b.ignored] = -100
        self.places, self.values = places.to(device), torch.tensor(self.labels, device=device)

    def factor(self, step: int, total: int) -> float:
        """Of the learning rate. A protocol's warm-up and drop keep their share of the steps where the steps are the other's."""
        done = step / total
        if self.mixture.is_own("schedule"):
            return 0.1 if step >= math.ceil(total * self.b.drop_epoch / self.b.epochs) else 1.0
        fall = (1 + math.cos(math.pi * done)) / 2 if self.a.schedule == "cosine" else 1 - done
        warmup = self.a.warmup * total / self.a.iterations
        return fall * (1 - (1 - step / warmup) * (1 - 1e-6)) if step < warmup else fall

    def targets(self, labels: Int[Tensor, "batch height width"]) -> Int[Tensor, "batch rows columns"]:
        """The output of each pixel that the loss is taken at; -100 where none is learned."""
        reduced = reduce_masks(labels, self.b.mask_size) if self.mixture.is_own("loss_size") else labels
        return self.places[reduced.long()]

    def step(
        self, maps: Float[Tensor, "batch dim rows columns"], labels: Int[Tensor, "batch height width"], step: int, total: int
    ) -> float:
        """One update; returns the loss. As in `linear_segmentation`, the mean over no labelled pixel changes nothing.

        loss = sum over pixels of cross_entropy(bilinear(head(maps)), target) / number of pixels, all or labelled
        """
        targets = self.targets(labels)
        count = int((targets >= 0).sum()) if self.mixture.is_own("loss_mean") else targets.numel()
        if not count:
            return 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.factor(step, total)
        self.head.train()
        coarse = self.head(maps)
        gradient, loss = torch.empty_like(coarse), 0.0
        for start in range(0, len(coarse), LOSS_IMAGES):
            part = slice(start, start + LOSS_IMAGES)
            logits = coarse[part].detach().requires_grad_()
            resized = F.interpolate(logits, targets.shape[-2:], mode="bilinear")
            value = F.cross_entropy(resized, targets[part], reduction="sum") / count
            (gradient[part],) = torch.autograd.grad(value, logits)
            loss += value.item()
        if not math.isfinite(loss):
            parts = ", ".join(sorted(self.mixture.own_parts)) or "nothing"
            raise TrainingError(f"the loss of the linear head with {parts} of the second protocol is {loss}; lower learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        coarse.backward(gradient)
        self.optimizer.step()
        return loss

    def logits(self, maps: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch outputs rows columns"]:
        """Of test images."""
        self.head.eval()
        found: Tensor = self.head(maps)
        return found

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
