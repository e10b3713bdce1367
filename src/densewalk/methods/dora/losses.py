"""Losses of DoRA (equation 8)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from densewalk.methods.dino.losses import cross_entropies, mean_koleo
from densewalk.methods.dora.settings import DoraSettings

Targets = Float[Tensor, "batch frames protos"]  # of every global view; the views of one sample are neighbors
Masked = Float[Tensor, "objects batch frames protos"]
Local = Float[Tensor, "crops samples frames protos"]
MaskTerms = Float[Tensor, "objects frames"]
LocalTerms = Float[Tensor, " frames"]


class StudentOutput(NamedTuple):
    """The student's logits of masked frames and of the used local crops, and its features of the former."""

    masked: Masked
    local: Local
    features: Float[Tensor, "objects batch frames dim"]


def dora_loss(targets: Targets, student: StudentOutput, settings: DoraSettings) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Equation 8, and KoLeo where it has a weight; the loss and its parts."""
    mask_terms, local_terms = frame_terms(targets, student.masked, student.local, settings.student_temperature)
    loss = total_loss(mask_terms, local_terms, carry_over=bool(settings.loss_carry_over))
    logs = {"loss_mask": mask_terms.detach().mean(), "loss_local": local_terms.detach().mean()}
    if settings.koleo_weight:
        koleo = koleo_of_frames(student.features, samples=student.local.shape[1])
        loss, logs["loss_koleo"] = loss + settings.koleo_weight * koleo, koleo.detach()
    return loss, logs


def frame_terms(targets: Targets, masked: Masked, local: Local, temperature: float) -> tuple[MaskTerms, LocalTerms]:
    """Cross-entropies of equation 8, always between views of the same frame, as means over batch and crops.

    for i, t:  mask_terms[i, t] = mean over b    of CE(targets[b, t], masked[i, b, t])
    for t:     local_terms[t]   = mean over v, b of CE(targets[b, t], local[v, sample of b, t])
    """
    samples, frames = local.shape[1:3]
    own = cross_entropies(targets.flatten(0, 1)[None], masked.flatten(1, 2), temperature)[0]
    by_global_view = targets.unflatten(0, (samples, -1)).transpose(0, 1)
    crops = cross_entropies(by_global_view.flatten(1, 2), local.flatten(1, 2), temperature)
    return own.unflatten(-1, (-1, frames)).mean(dim=1), crops.unflatten(-1, (samples, frames)).mean(dim=(0, 1, 2))


def total_loss(mask_terms: MaskTerms, local_terms: LocalTerms, *, carry_over: bool) -> Float[Tensor, ""]:
    """Mean over objects and frames of the mean of both terms; `carry_over` weighs the objects as the release does."""
    objects, frames = mask_terms.shape
    terms = (mask_terms + local_terms) / 2
    if carry_over:
        weights = [sum(frames**-e for e in range(objects - j)) for j in range(objects)]
        terms = terms * torch.tensor(weights, device=terms.device)[:, None]
    return terms.mean()


def koleo_of_frames(features: Float[Tensor, "objects batch frames dim"], samples: int) -> Float[Tensor, ""]:
    """Spread the frames of a batch that show one object of one global view, mean over objects and views.

    for i, g:  terms[i, g] = koleo(all features[i, view g of sample s, t] over s and t)

    Views of the same frame, which are to agree, are never pushed apart. `samples`: clips of the batch.
    """
    groups = features.unflatten(1, (samples, -1)).transpose(1, 2).flatten(2, 3)
    return mean_koleo(groups.flatten(0, 1))
