"""Reference values of PaKA: the loss of kernels with its gradient, and patches of aligned regions."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import children, compare, has

from densewalk.methods.paka.losses import cka_loss
from densewalk.ops.roi_align import aligned_patches


def paka(values: Any) -> Rows:
    """Every loss and every region."""
    for case in (f"cka/{number}" for number in children(values, "cka")):
        student, teacher = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("student", "teacher"))
        student.requires_grad_()
        ignored = torch.from_numpy(values[f"{case}/mask"]) if has(values, f"{case}/mask") else None
        loss = cka_loss(student, teacher, None if ignored is None else ~ignored)
        (gradient,) = torch.autograd.grad(loss, student)
        yield compare("paka", case, "loss", loss.item(), values[f"{case}/loss"], 1e-5)
        yield compare("paka", case, "gradient", gradient, values[f"{case}/grad"], 1e-5)
    for case in (f"roi/{number}" for number in children(values, "roi")):
        maps, boxes = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("map", "boxes"))
        rows, columns = values[f"{case}/out"].tolist()
        found = aligned_patches(maps, torch.arange(len(maps)), boxes, (rows, columns))
        yield compare("paka", case, "patches", found, values[f"{case}/tokens"], 1e-5)
