"""Which pixels of a depth map are scored, and the errors of one image.

The data set's value is the mean over images of the image's value, also of RMSE.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Map = Float[Tensor, "height width"]
Box = Literal["eigen", "garg", "none"]
GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)  # top, bottom, left, right, as shares of height and width


def box_edges(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """First row, row after the last, first column, column after the last of the scored box."""
    if box == "none":
        return 0, height, 0, width
    if box == "eigen":  # 45 to 471 and 41 to 601 of 480 x 640, rounded down
        return 45 * height // 480, 471 * height // 480, 41 * width // 640, 601 * width // 640
    return int(GARG[0] * height), int(GARG[1] * height), int(GARG[2] * width), int(GARG[3] * width)


def scored_pixels(true: Map, low: float, high: float, box: Box) -> Bool[Tensor, "height width"]:
    """Where low < t < high, both strict, inside the box."""
    top, bottom, left, right = box_edges(box, *true.shape)
    inside = torch.zeros_like(true, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside & (true > low) & (true < high)


def errors(predicted: Map, true: Map, mask: Bool[Tensor, "height width"]) -> dict[str, float]:
    """The errors of one image over its scored pixels, in float64.

    d1, d2, d3 = shares of max(p / t, t / p) < 1.25, 1.25^2, 1.25^3      AbsRel = mean |p - t| / t       SqRel = mean (p - t)^2 / t
    RMSE = sqrt(mean (p - t)^2)      RMSElog = sqrt(mean e^2)      log10 = mean |log10 p - log10 t|      MAE = mean |p - t|
    SILog = 100 sqrt(mean e^2 - (mean e)^2),     e = log p - log t
    """
    p, t = predicted[mask].double(), true[mask].double()
    ratio, e, off = torch.maximum(p / t, t / p), p.log() - t.log(), p - t
    found = {f"d{i}": (ratio < 1.25**i).double().mean() for i in (1, 2, 3)}
    found |= {"AbsRel": (off.abs() / t).mean(), "SqRel": (off.square() / t).mean(), "RMSE": off.square().mean().sqrt()}
    found |= {"RMSElog": e.square().mean().sqrt(), "log10": (p.log10() - t.log10()).abs().mean(), "MAE": off.abs().mean()}
    found["SILog"] = 100 * (e.square().mean() - e.mean().square()).clamp(min=0).sqrt()
    return {name: float(value) for name, value in found.items()}


def mean_errors(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over images."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def least_squares(predicted: Map, true: Map, mask: Bool[Tensor, "height width"]) -> tuple[float, float]:
    """Scale s and shift b with the least sum of (s p + b - t)^2 over the scored pixels; a constant prediction is only shifted (s = 1)."""
    p, t = predicted[mask].double(), true[mask].double()
    centered = p - p.mean()
    spread = centered.square().sum()
    scale = float((centered * (t - t.mean())).sum() / spread) if spread > 1e-12 * len(p) else 1.0
    return scale, float(t.mean() - scale * p.mean())
