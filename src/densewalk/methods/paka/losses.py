"""Alignment of the kernels of patches."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Patches = Float[Tensor, "images places dim"]
SMALLEST = 1e-6  # of a kernel's squared norm: features that are the same everywhere give no NaN


def cka_loss(student: Patches, teacher: Patches, valid: Bool[Tensor, "images places"] | None = None) -> Float[Tensor, ""]:
    """1 - CKA of the patches of two networks at the same places, mean over images, in float32; from 0 to 1.

        for S, T in zip(student, teacher):               valid places alone
            S, T = S - mean(S), T - mean(T)              over places
            K, M = S S^T, T T^T
            loss = 1 - <K, M> / (sqrt(max(<K, K>, 1e-6)) sqrt(max(<M, M>, 1e-6)))

    An image with fewer than two valid places is left out; without any other one the loss is 0.

    Source: PaKA (arXiv 2509.05606), CKA with a linear kernel (Kornblith et al., arXiv 1905.00414).
    """
    with torch.autocast(student.device.type, enabled=False):
        weights = student.new_ones(student.shape[:2]).float() if valid is None else valid.float()
        counted = weights.sum(dim=1) >= 2
        k, m = (centered_kernel(x.float(), weights) for x in (student, teacher))
        shared, of_student, of_teacher = ((a * b).sum(dim=(1, 2)) for a, b in ((k, m), (k, k), (m, m)))
        losses = 1 - shared / (of_student.clamp(min=SMALLEST).sqrt() * of_teacher.clamp(min=SMALLEST).sqrt())
        return (losses * counted).sum() / counted.sum().clamp(min=1)


def centered_kernel(x: Patches, weights: Float[Tensor, "images places"]) -> Float[Tensor, "images places places"]:
    """Products of all pairs of centered patches; 0 where a place has no weight."""
    mean = (x * weights[..., None]).sum(dim=1, keepdim=True) / weights.sum(dim=1).clamp(min=1)[:, None, None]
    x = (x - mean) * weights[..., None]
    return x @ x.transpose(1, 2)
