"""Reference values of methods and evaluations that are not here as a whole: the parts that are."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, cases, compare, has, relative

from densewalk.data.benchmarks import boxes
from densewalk.evaluations.discovery import evaluate as discovery
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


def eval_discovery(values: Any) -> Rows:
    """Masks, components and boxes by attention, and IoU of boxes."""
    for case in cases(values, 2, having="cls"):
        rows, columns, patch = values[f"{case}/cfg"].tolist()
        attention = torch.from_numpy(values[f"{case}/cls"]).flatten(1)
        for kind, mass, chosen in (("dora", 0.8, attention.mean(0)), ("one_head", 0.6, attention[min(4, len(attention) - 1)])):
            mask = discovery.top_mass_mask(chosen, mass).reshape(rows, columns)
            component = discovery.largest_component(mask)
            box = discovery.bounding_box(component, patch, columns * patch, rows * patch)
            yield compare("eval_discovery", case, f"mask, {kind}", mask, values[f"{case}/{kind}/mask"], 0)
            yield compare("eval_discovery", case, f"component, {kind}", component, values[f"{case}/{kind}/component"], 0)
            yield compare("eval_discovery", case, f"box, {kind}", box, values[f"{case}/{kind}/box_all_components"], 0)
    for case in cases(values, 1, having="owner"):
        truth, owner = values[f"{case}/gt"].astype(float), values[f"{case}/owner"]
        found = [boxes.iou(values[f"{case}/pred"][o].astype(float), t[None])[0] for t, o in zip(truth, owner, strict=True)]
        yield compare("eval_discovery", case, "IoU of boxes", found, values[f"{case}/iou_released"], 1e-6)
        best = [max(f for f, o in zip(found, owner, strict=True) if o == image) for image in range(len(values[f"{case}/pred"]))]
        yield compare("eval_discovery", case, "CorLoc in %", 100 * np.mean([b >= 0.5 for b in best]), values[f"{case}/CorLoc"], 1e-6)
    for other in ("tokencut", "jaccard"):
        if cases(values, 1).count(other):
            yield Note("eval_discovery", other, "a part of an evaluation that is not here")
