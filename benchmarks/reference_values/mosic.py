"""Reference values of MoSiC: assignment, loss and gradient of recorded scores."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import cases, compare, optional, relative

from densewalk.methods.mosic.method import assign, track_loss
from densewalk.methods.mosic.settings import MosicSettings


def mosic_loss(values: Any) -> Rows:
    """Every recorded batch of scores [clips, frames, points, prototypes]."""
    for case in cases(values, depth=2, having="teacher_scores"):
        teacher, student, visible = (torch.from_numpy(values[f"{case}/{n}"]) for n in ("teacher_scores", "student_scores", "visible"))
        epsilon, iterations = float(values[f"{case}/epsilon"]), int(values[f"{case}/iterations"])
        shares = assign(teacher, MosicSettings(sinkhorn_epsilon=epsilon, sinkhorn_iterations=iterations))
        yield compare("mosic_loss", case, "assignment", shares, values[f"{case}/assignment"], 1e-4)
        student.requires_grad_()
        labels = shares.argmax(dim=-1)
        loss = track_loss(student[:, 0], labels, visible.bool(), optional(values, (f"{case}/temperature",), 0.1))
        yield relative("mosic_loss", case, "loss, relative", loss.item(), values[f"{case}/loss"], 1e-5)
        (gradient,) = torch.autograd.grad(loss, student)
        yield compare("mosic_loss", case, "gradient", gradient, values[f"{case}/grad"], 1e-5)
