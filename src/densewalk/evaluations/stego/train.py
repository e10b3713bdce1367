"""The training of STEGO's head and probes on stored features, and what survives an interruption."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from densewalk.core.errors import TrainingError
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import Progress
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.stego.head import Stego
from densewalk.evaluations.stego.losses import (
    LARGEST,
    Centering,
    Maps,
    Places,
    cluster_loss,
    correspondence_losses,
    crf_loss,
    sample_negatives,
    sample_places,
)
from densewalk.evaluations.stego.settings import StegoSettings
from densewalk.evaluations.stego.views import IGNORED, Views
from densewalk.training.sampler import StepSampler
from densewalk.training.signals import stop_signals
from densewalk.training.state import State

log = logging.getLogger("densewalk")
SAVE_SECONDS = 300.0  # at most this much of the training is lost
CRF_PIXELS = 1000


class Batch(NamedTuple):
    """Features of some views and of one of the nearest views of each, labels, and small images for the CRF's loss."""

    features: tuple[Maps, Maps]
    labels: Int[Tensor, "batch size size"]
    images: Float[Tensor, "batch 3 colors colors"] | None


def train(settings: StegoSettings, model: Stego, read: Callable[[], Views], state: State, job: Job) -> Float[Tensor, "3"]:
    """Train to the last step, from the newest intact checkpoint if there is one.

    Returns the share of the pairs of features whose correspondence exceeds the shift, mean over all steps: of an image with itself, with
    a nearest view, and with others.

    Args:
        read: gives the training views, which a training that was finished before does not need.
    """
    optimizer, done, shares = model.optimizer(settings), 0, torch.zeros(3, dtype=torch.float64)
    if (content := state.newest(job.device)) is not None:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        done, shares = content["step"], content["shares"].cpu()
        log.info("resuming after step %d", done)
    if done == settings.iterations:
        return shares / done
    views = read()
    sampler = StepSampler(len(views.maps), settings.batch_size, job.seed, done, settings.iterations)
    progress = Progress("stego", settings.iterations, done=done)
    with stop_signals() as stop:
        saver = PeriodicSaver(state, stop, settings.iterations, seconds=SAVE_SECONDS, device=torch.device(job.device))
        for at, items in enumerate(sampler, start=done):
            generator = torch.Generator().manual_seed(derive_seed(job.seed, "stego", "step", at))
            batch = read_batch(views, torch.tensor([item.index for item in items]), generator, job.device)
            loss, found = total_loss(settings, model, batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not np.isfinite(loss.item()):
                raise TrainingError(f"the loss of STEGO's head is {loss.item()} after {at} steps; lower learning_rate")
            optimizer.step()
            shares += found.cpu()
            if at + 1 == settings.iterations:
                model.fit_centers(views.maps, derive_seed(job.seed, "stego", "k-means"))
            progress.advance(f"loss {loss.item():.4f}")
            if saver.is_due(at + 1):
                content = {"step": at + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "shares": shares}
                saver.save(at + 1, content)
    progress.close()
    return shares / settings.iterations


def read_batch(views: Views, chosen: Int[Tensor, " batch"], generator: Generator, device: str) -> Batch:
    """The chosen views, each with one of its nearest views."""
    rank = torch.randint(views.neighbors.shape[1], (len(chosen),), generator=generator)
    features = tuple(views.maps[index].to(device) for index in (chosen, views.neighbors[chosen, rank]))
    images = None if views.images is None else views.images[chosen].to(device)
    return Batch((features[0], features[1]), views.labels[chosen].long().to(device), images)


def total_loss(settings: StegoSettings, model: Stego, batch: Batch, generator: Generator) -> tuple[Tensor, Float[Tensor, "3"]]:
    """Sum of all losses, of which each sends gradients to its own part; and the shares of `train`.

    correspondences -> head;  cross-entropy of labels -> linear probe;  cosine to the nearest center -> cluster probe
    """
    pairs = [model.head.train_codes(maps, settings.dropout, generator) for maps in batch.features]
    (features, codes), (near_features, near_codes) = pairs
    count = len(codes)
    places = Places(*(sample_places(count, settings.feature_samples, generator).to(codes) for _ in range(2)))
    negatives = torch.stack([sample_negatives(count, generator) for _ in range(settings.neg_samples)]).to(codes.device)
    low, high = 0.0 if settings.zero_clamp else -torch.inf, LARGEST if settings.stabilize else torch.inf
    shifts = settings.shift_self, settings.shift_knn, settings.shift_random
    centering = Centering(settings.pointwise_centering, low, high)
    found = correspondence_losses((features, near_features), (codes, near_codes), places, negatives, shifts, centering)
    loss = settings.weight_self * found.own + settings.weight_knn * found.knn + settings.weight_random * found.random.mean()
    if batch.images is not None:
        loss = loss + settings.weight_crf * crf_of_codes(batch.images, codes, generator)
    loss = loss + linear_loss(model, codes.detach(), batch.labels)
    return loss + cluster_loss(codes, model.centers), found.shares


def linear_loss(model: Stego, codes: Maps, labels: Int[Tensor, "batch size size"]) -> Tensor:
    """Cross-entropy of the linear probe's logits, enlarged to the labels (bilinear); 0 where nothing is labelled."""
    logits = F.interpolate(model.linear(codes), labels.shape[-2:], mode="bilinear")
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def crf_of_codes(images: Float[Tensor, "batch 3 side side"], codes: Maps, generator: Generator) -> Tensor:
    """The CRF's loss on random pixels, of codes of unit length enlarged to the small images."""
    side = images.shape[-1]
    enlarged = F.normalize(F.interpolate(codes, (side, side), mode="bilinear"), dim=1)
    return crf_loss(images, enlarged, torch.randint(side, (2, CRF_PIXELS), generator=generator).to(codes.device))
