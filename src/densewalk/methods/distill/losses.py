"""The distance of two networks' features."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cosine", "smooth_l1"]


def feature_loss(student: Float[Tensor, "*rows dim"], teacher: Float[Tensor, "*rows dim"], kind: Loss) -> Float[Tensor, ""]:
    """Mean over all rows of the distance of two vectors, each divided by its length.

    s, t      = student / |student|, teacher / |teacher|
    cosine    = 1 - s . t
    smooth_l1 = mean_i huber(sqrt(dim) (s_i - t_i)),  huber(x) = x^2 / 2 if |x| < 1 else |x| - 1/2
    """
    student, teacher = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
    if kind == "cosine":
        return (1 - (student * teacher).sum(dim=-1)).mean()
    scale = student.shape[-1] ** 0.5
    return F.smooth_l1_loss(scale * student, scale * teacher)


def map_loss(
    student: Float[Tensor, "batch dim _rows _columns"], teacher: Float[Tensor, "batch dim rows columns"], kind: Loss
) -> Float[Tensor, ""]:
    """`feature_loss` at each position of the teacher's map, to whose grid the student's is resized (bilinear; averaged if it is finer)."""
    grid = (teacher.shape[-2], teacher.shape[-1])
    finer = student.shape[-2] > grid[0] or student.shape[-1] > grid[1]
    if student.shape[-2:] != teacher.shape[-2:]:
        student = F.interpolate(student.float(), grid, mode="bilinear", align_corners=False, antialias=finer)
    return feature_loss(student.movedim(1, -1), teacher.movedim(1, -1), kind)
