"""Reference values of methods and evaluations that are not here as a whole: the parts that are."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, Row, cases, children, compare, has, relative
from torch.nn import functional as F

from densewalk.evaluations.common.label_propagation import rounded_up_size, upsample_labels
from densewalk.evaluations.metrics.davis import jf
from densewalk.evaluations.video_objects.scores import score_objects
from densewalk.methods.dino.losses import cross_entropies, koleo
from densewalk.ops.label_propagation import Rule, propagate
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
    for case in cases(values, 2, having="objects"):
        video = f"ytvos/{case.split('/')[1]}"
        objects = values[f"{case}/objects"]
        found = score_objects("vos_benchmark", values[f"{video}/gt"], values[f"{video}/pred"], [0] * int(objects.max()))
        recorded = np.stack([values[f"{case}/{kind}"] for kind in "JF"], axis=1)
        yield compare("eval_vos", case, "J and F in %, vos-benchmark's rule", 100 * found[objects - 1], recorded, 1e-6)
    if has(values, "ytvos/seen_categories"):
        yield _youtube_vos(values)
    for case in [case for case in cases(values, 2, having="gt") if case.startswith("mose/")]:
        numbers = [int(name) for name in children(values, case) if name.isdigit()]
        found = score_objects("mose", values[f"{case}/gt"], values[f"{case}/pred"], [0] * max(numbers))
        theirs = [[values[f"{case}/{number}/{kind}"].mean() for kind in "JF"] for number in numbers]
        yield compare("eval_vos", case, "J and F, the tool of MOSE's organizers", found[np.array(numbers) - 1], theirs, 1e-6)
    for case in cases(values, 2, having="context_probs"):
        yield from _dinov3_propagation(values, case)
    if has(values, "dinov3_propagation/sizes"):
        pairs = zip(values["dinov3_propagation/sizes"].tolist(), values["dinov3_propagation/sizes_args"].tolist(), strict=True)
        found = [rounded_up_size(height, width, side, patch) for (width, height, *_), (side, patch) in pairs]
        yield compare("eval_vos", "dinov3_propagation", "sizes of inputs", found, values["dinov3_propagation/sizes"][:, [3, 2]], 0)


def _youtube_vos(values: Any) -> Row:
    """J and F of seen and unseen categories, in percent, on the frames after an object's first."""
    videos = cases(values, 2, having="categories")
    found = [
        score_objects("youtube_vos", values[f"{video}/gt"], values[f"{video}/pred"], values[f"{video}/first"].tolist()) for video in videos
    ]
    seen = np.isin(np.concatenate([values[f"{video}/categories"] for video in videos]), values["ytvos/seen_categories"])
    objects = 100 * np.concatenate(found)
    groups = [objects[chosen].mean(0) for chosen in (seen, ~seen)]
    return compare(
        "eval_vos", "ytvos", "J, F, seen and unseen, %", np.concatenate(groups), values["ytvos/J_seen_F_seen_J_unseen_F_unseen"], 1e-6
    )


def _dinov3_propagation(values: Any, case: str) -> Rows:
    """One frame's soft labels, and the labels of pixels by the notebook's rule."""
    size, square, top_k, temperature = values[f"{case}/cfg"].tolist()
    soft = torch.from_numpy(values[f"{case}/context_probs"])
    frames, rows, columns, classes = soft.shape
    features = F.normalize(torch.from_numpy(values[f"{case}/feats"]), dim=-1).reshape(frames + 1, 1, rows * columns, -1)
    rule = Rule((rows, columns), int(size), int(top_k), frames, temperature, circle=not square)
    labels = [x.reshape(1, rows * columns, classes).transpose(1, 2) for x in soft]
    found = propagate([*features[:-1]], labels, features[-1], rule)[0].T.reshape(rows, columns, classes)
    yield compare("eval_vos", case, "soft labels, DINOv3", found, values[f"{case}/out"], 1e-4)
    expected = values[f"{case}/labels"]
    channels = torch.from_numpy(values[f"{case}/out"]).permute(2, 0, 1).contiguous()
    pixels = upsample_labels(channels, (0, 0), expected.shape, how="nearest")
    yield compare("eval_vos", case, "labels of pixels, DINOv3", pixels, expected, 0)
