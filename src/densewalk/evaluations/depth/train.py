"""The training of the depth head: batches, schedules, and what survives an interruption."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from densewalk.core.errors import TrainingError
from densewalk.core.progress import Progress, track
from densewalk.data.benchmarks.depth import DepthImage
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, require_finite, scratch
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.common.shares import batches_of
from densewalk.evaluations.depth.data import TrainingCrops, WholeImages
from densewalk.evaluations.depth.head import DepthHead, pad_to_patches, resize_map
from densewalk.evaluations.depth.losses import batch_loss
from densewalk.evaluations.depth.schedules import schedules
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.training.sampler import StepSampler
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State

log = logging.getLogger("densewalk")
SAVE_SECONDS = 300.0  # at most this much of the training is lost
BATCH = 8  # whole images per forward pass
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Frozen:
    """What gives features: a function of normalized, padded images, of whose sides `patch` is a divisor; and the network, for the rest."""

    compute: Dense
    network: Network

    @property
    def patch(self) -> int:
        """Sides of images are multiples of it."""
        return self.network.multiple


@dataclass
class Best:
    """The head with the least AbsRel so far, `select: test`."""

    value: float = float("inf")
    step: int = 0
    weights: Weights | None = None


def make_optimizer(settings: DepthSettings, head: DepthHead) -> torch.optim.AdamW:
    """AdamW; its learning rate and beta1 are set at every step."""
    return torch.optim.AdamW(head.parameters(), lr=0.0, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay)


def step(
    settings: DepthSettings,
    head: DepthHead,
    optimizer: torch.optim.AdamW,
    features: Float[Tensor, "batch channels rows columns"],
    depth: Float[Tensor, "batch 1 height width"],
    patch: int,
    at: int,
    rates: tuple[float, float],
) -> tuple[float, float]:
    """One update. Returns the loss and the norm of its gradient before it was shortened.

    Args:
        at: number of the step, from 0. rates: learning rate and beta1.
    """
    optimizer.param_groups[0].update(lr=rates[0], betas=(rates[1], settings.beta2))
    size = (depth.shape[-2], depth.shape[-1])
    maps = resize_map(head(features), size, patch, crop_padding=bool(settings.crop_padding))
    gradients = settings.gradient_loss == "intended"
    loss = batch_loss(maps, depth, settings.loss_group, variance=at >= settings.loss_warmup, gradients=gradients)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(head.parameters(), settings.max_norm)
    value = loss.item()
    if not np.isfinite(value):
        raise TrainingError(f"the loss of the depth head is {value} after {at} steps; lower learning_rate")
    optimizer.step()
    return value, norm.item()


def train(
    settings: DepthSettings,
    head: DepthHead,
    frozen: Frozen,
    examples: Sequence[DepthImage],
    state: State,
    job: Job,
    look: Callable[[DepthHead], float],
) -> dict[str, Any]:
    """Train to the last step, from the newest intact checkpoint if there is one; `head` is then the one to score. Returns its step.

    Args:
        look: AbsRel of a head on the scored images, for `select: test`.
    """
    optimizer, done, best = make_optimizer(settings, head), 0, Best()
    if (content := state.newest(job.device)) is not None:
        head.load_state_dict(content["head"])
        optimizer.load_state_dict(content["optimizer"])
        done, best = content["step"], Best(**content["best"])
        log.info("resuming after step %d", done)
    stored = whole_features(settings, frozen, examples, job) if settings.augment == "none" and done < settings.iterations else None
    sampler = StepSampler(len(examples), settings.batch_size, job.seed, done, settings.iterations)
    data = TrainingCrops(settings, examples)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    rates, beta1 = schedules(settings)
    progress = Progress("depth", settings.iterations, done=done)
    with stop_signals() as stop:
        saver = PeriodicSaver(state, stop, settings.iterations, seconds=SAVE_SECONDS, device=torch.device(job.device))
        for at, (images, depth, numbers) in enumerate(loader, start=done):
            if stored is not None:
                features = stored[numbers].to(job.device)
            else:
                features = compute_features(frozen, images.to(job.device), [examples[i] for i in numbers.tolist()])
            head.train()
            own = float(rates[at]), float(beta1[at])
            loss, _ = step(settings, head, optimizer, features, depth.to(job.device), frozen.patch, at, own)
            if is_look(settings, at + 1) and (value := look(head)) < best.value:
                best = Best(value, at + 1, {name: weight.clone() for name, weight in head.state_dict().items()})
            progress.advance(f"loss {loss:.4f}")
            if saver.is_due(at + 1):
                content = {"step": at + 1, "head": head.state_dict(), "optimizer": optimizer.state_dict(), "best": vars(best)}
                saver.save(at + 1, content)
    progress.close()
    if settings.select == "test" and best.weights is not None:
        head.load_state_dict(best.weights)
        return {"step": best.step, "selected_on": "the scored images"}
    return {"step": settings.iterations}


def is_look(settings: DepthSettings, done: int) -> bool:
    """True after the steps at which the head is scored, `select: test`."""
    return settings.select == "test" and (done % settings.select_every == 0 or done == settings.iterations)


@torch.no_grad()
def compute_features(
    frozen: Frozen, images: Float[Tensor, "batch 3 height width"], names: Sequence[Any]
) -> Float[Tensor, "batch channels rows columns"]:
    """Features of images in 0..1, normalized and padded to whole patches; an image whose features are not finite is named."""
    features = frozen.compute(pad_to_patches(normalize(images, frozen.network.statistics), frozen.patch))
    require_finite(features, names, frozen.network.source)
    return features


def whole_features(
    settings: DepthSettings, frozen: Frozen, examples: Sequence[DepthImage], job: Job
) -> Float[Tensor, "images channels rows columns"]:
    """Features of all whole training images, in a scratch file of the job, from which each step reads those of its images."""
    loader = DataLoader(WholeImages(settings, examples), batch_sampler=batches_of(len(examples), BATCH), num_workers=job.workers)
    stored: Tensor | None = None
    first = 0
    for images, _ in track(loader, "training features"):
        features = compute_features(frozen, images.to(job.device), examples[first : first + len(images)])
        if stored is None:
            stored = scratch(job, (len(examples), *features.shape[1:]))
        stored[first : first + len(images)] = features.cpu()
        first += len(images)
    assert stored is not None
    return stored
