"""Reference values of methods and evaluations that are not here as a whole: the parts that are."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, cases, compare, has, relative

from densewalk.evaluations.metrics.davis import jf
from densewalk.methods.dino.losses import cross_entropies, koleo
from densewalk.ops.sinkhorn import sinkhorn


def dinov2_loss(values: Any) -> Rows:
    """DINOv2's centering by Sinkhorn, cross-entropies and KoLeo."""
    for case in [*cases(values, 2, having="targets"), *cases(values, 1, having="float64")]:
        logits = torch.from_numpy(values[f"{case}/logits"])
        epsilon, iterations = float(values[f"{case}/temperature"]), int(values[f"{case}/iterations"])
        theirs = values[f"{case}/{'targets' if f'{case}/targets' in values.files else 'float64'}"]
        yield compare("dinov2_loss", case, "targets", sinkhorn(logits, epsilon=epsilon, iterations=iterations), theirs, 2e-5)
    for case in cases(values, 2, having="x"):
        x = torch.from_numpy(values[f"{case}/x"]).requires_grad_()
        loss = koleo(x)
        (gradient,) = torch.autograd.grad(loss, x)
        unit = torch.nn.functional.normalize(x.detach(), dim=1)
        duplicates = bool(((unit @ unit.T).fill_diagonal_(-1) > 1 - 1e-6).any())
        if duplicates:
            yield compare("dinov2_loss", case, "KoLeo of equal rows: infinities", (~gradient.isfinite()).sum(), 0, 0)
            continue
        yield compare("dinov2_loss", case, "KoLeo", loss.item(), values[f"{case}/loss"], 1e-5)
        yield relative("dinov2_loss", case, "gradient of KoLeo, relative", gradient, values[f"{case}/grad"], 1e-4)
    if has(values, "dino_sum/loss"):
        student, targets = (torch.from_numpy(values[f"dino_sum/{name}"]) for name in ("student", "targets"))
        student.requires_grad_()
        loss = cross_entropies(targets, student, float(values["dino_sum/student_temperature"])).mean(-1).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        yield relative("dinov2_loss", "dino_sum", "sum of cross-entropies, relative", loss.item(), values["dino_sum/loss"], 1e-5)
        yield relative("dinov2_loss", "dino_sum", "its gradient, relative", gradient, values["dino_sum/grad"], 1e-4)
    for other in ("centering", "ibot_masked"):
        if cases(values, 1).count(other):
            yield Note("dinov2_loss", other, "a part of a method that is not here")


def eval_vos(values: Any) -> Rows:
    """J and F of every object on every frame."""
    for case in cases(values, 2, having="categories"):
        j, f = jf(values[f"{case}/gt"], values[f"{case}/pred"], len(values[f"{case}/categories"]))
        yield compare("eval_vos", case, "J", j, values[f"{case}/J"], 1e-6)
        yield compare("eval_vos", case, "F", f, values[f"{case}/F"], 1e-6)
    for other in ("vos_benchmark", "mose", "dinov3_propagation"):
        if cases(values, 1).count(other):
            yield Note("eval_vos", other, "a part of an evaluation that is not here")
