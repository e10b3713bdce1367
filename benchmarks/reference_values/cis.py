"""Reference values of contextual information separation: both losses with their gradients, and how a mask is scored."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import compare, optional, relative
from torch import Tensor

from densewalk.evaluations.motion_segmentation.evaluate import jaccard
from densewalk.methods.cis.losses import Errors, Predictions, errors_of, generator_loss, inpainter_loss
from densewalk.models.families.motion import THRESHOLD, border_share, object_side, standardize_flow

ALLOWED, ALLOWED_IOU = 1e-4, 1e-6
# names there -> names of Predictions here: by which side a flow is told there, which side's flow is told here
PREDICTED = {"outside": "inside", "inside": "outside", "image": "image"}


def cis(values: Any) -> Rows:
    """The recorded batches, of which a file may hold several; channels are last there."""
    for case in sorted(key.removesuffix("loss_generator") for key in values.files if key.endswith("loss_generator")):
        yield from losses(values, case)
    for case in sorted(key.removesuffix("iou") for key in values.files if key.endswith("evaluation/iou")):
        yield from evaluation(values, case)


def losses(values: Any, case: str) -> Rows:
    """Standardized flow, sums of errors, both losses and their gradients."""

    def maps(key: str) -> Tensor:
        return torch.from_numpy(values[f"{case}{key}"]).movedim(-1, 1)

    name = case.strip("/") or "batch"
    flow, epsilon = maps("flow"), float(values[f"{case}epsilon"])
    yield compare("cis", name, "standardized flow", standardize_flow(flow), maps("flow_standardised"), ALLOWED)
    mask = maps("mask").requires_grad_()
    predicted = {there: maps(f"pred_{there}").requires_grad_() for there in PREDICTED}
    errors = errors_of(flow, mask, Predictions(**{here: predicted[there] for there, here in PREDICTED.items()}))
    for key, ours in sums(errors, epsilon).items():
        yield relative("cis", name, f"{key}, relative", ours.detach(), values[f"{case}{key}"], ALLOWED)
    of_inpainter, of_generator = inpainter_loss(errors, flow[0, 0].numel()), generator_loss(errors, epsilon)
    yield compare("cis", name, "loss, inpainter", of_inpainter.item(), values[f"{case}loss_inpainter"], ALLOWED)
    yield compare("cis", name, "loss, generator", of_generator.item(), values[f"{case}loss_generator"], ALLOWED)
    for there, gradient in zip(predicted, torch.autograd.grad(of_inpainter, [*predicted.values()], retain_graph=True), strict=True):
        yield compare("cis", name, f"gradient, {there}", gradient, maps(f"grad_inpainter/{there}"), ALLOWED * scale(values, case, there))
    (gradient,) = torch.autograd.grad(of_generator, mask)
    recorded = maps("grad_mask")
    yield compare("cis", name, "gradient, mask", gradient, recorded, ALLOWED * float(recorded.abs().max()))


def sums(errors: Errors, epsilon: float) -> dict[str, Tensor]:
    """Sums of each image under their names there, where the denominators hold epsilon."""
    return {
        "rec": errors.inside,
        "rec_complement": errors.outside,
        "denominator": errors.image_inside + epsilon,
        "denominator_complement": errors.image_outside + epsilon,
        "prior": errors.image,
    }


def scale(values: Any, case: str, there: str) -> float:
    """The largest element of a recorded gradient: gradients are small, and are compared relative to it."""
    return float(np.abs(values[f"{case}grad_inpainter/{there}"]).max())


def evaluation(values: Any, case: str) -> Rows:
    """Share of the border, and intersection over union of the object's side with the true object."""
    threshold = optional(values, (f"{case}threshold",), THRESHOLD)
    sides = values[f"{case}pred"][..., 0] > threshold
    truth = values[f"{case}gt"][..., 0] > 0
    name = case.strip("/")
    yield compare("cis", name, "share of the border", [border_share(side) for side in sides], values[f"{case}border_share"], ALLOWED_IOU)
    found = [jaccard(*pair) for pair in zip(truth, map(object_side, sides), strict=True)]
    yield compare("cis", name, "IoU", found, values[f"{case}iou"], ALLOWED_IOU)
