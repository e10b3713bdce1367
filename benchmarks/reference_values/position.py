"""Reference values of position in features: RASA's planes, the debias by SVD, and how much of a map is position."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import children, compare, elementwise, numbered, relative
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.position.settings import PositionSettings
from densewalk.methods.rasa.planes import orthonormal_rows, place_targets, removal_matrix, round_loss
from densewalk.ops.position import PlaceSums, RidgeSums, position_basis, total_squares, without_subspace
from densewalk.training.schedules import cosine

RASA, RASA_WEIGHT, ROUNDING = 1e-5, 1e-4, 1e-6


def eval_position(values: Any) -> Rows:
    """Every recorded debias, and the shares of position in the same features."""
    for number in children(values, "debias"):
        case = f"debias/{number}"
        blank, maps = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("zero_image", "feats"))
        basis, sizes = subspace(blank, int(values[f"{case}/components"]), len(values[f"{case}/singular_values"]))
        ours = {"singular_values": sizes, "projector": basis @ basis.T, "out": without_subspace(maps, basis)}
        for name, found in ours.items():
            yield elementwise("eval_position", case, name.replace("_", " "), found, values[f"{case}/{name}"], 1e-3, floor=0.1)
    for number in children(values, "xray"):
        yield from shares(values, f"xray/{number}", torch.from_numpy(values[f"debias/{number}/feats"]))


def subspace(blank: Tensor, components: int, values: int) -> tuple[Tensor, Tensor]:
    """The basis that is taken out, and as many singular values, the lengths of the centered tokens along each vector."""
    tokens = F.normalize(blank.double().flatten(1), dim=0)
    whole = position_basis(blank, values)
    along = whole.double().T @ (tokens - tokens.mean(1, keepdim=True))
    return position_basis(blank, components), along.norm(dim=1)


def shares(values: Any, case: str, maps: Tensor) -> Rows:
    """Variance between places, and R2 of row and column in the last image."""
    places, ridge = PlaceSums(), RidgeSums()
    places.add(maps)
    ridge.add(maps[:-1])
    penalty = PositionSettings.model_fields["ridge"].default
    errors = ridge.fit(penalty).squared_errors(maps[-1:])[0]
    yield compare("eval_position", case, "R2 of y and x", 1 - errors / total_squares(*maps.shape[-2:]), values[f"{case}/r2_y_x"], 1e-9)
    for name, share in places.shares()._asdict().items():
        yield compare("eval_position", case, name, share, values[f"{case}/{name}"], 1e-9)


# -- RASA --------------------------------------------------------------------------------------------------------------


def rasa(values: Any) -> Rows:
    """Planes of all rounds, the training of one, a plane of one direction, and the debias by SVD."""
    if children(values, "rounds"):
        yield from planes(values)
    for case in numbered(values, "training"):
        yield from training(values, case)
    for case in numbered(values, "one_dimensional"):
        features = torch.from_numpy(values["features"])
        row = orthonormal_rows(torch.from_numpy(values[f"{case}/weight"])).float()
        yield compare("rasa", case, "left", features - features @ row.T @ row, values[f"{case}/left"], RASA)
    for case in numbered(values, "svd"):
        blank, maps = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("blank_features", "features"))
        basis, sizes = subspace(blank, int(values[f"{case}/components"]), len(values[f"{case}/singular_values"]))
        yield compare("rasa", case, "singular values", sizes, values[f"{case}/singular_values"], RASA)
        yield compare("rasa", case, "projector", basis @ basis.T, values[f"{case}/basis_projector"], RASA)
        yield compare("rasa", case, "debiased", without_subspace(maps, basis), values[f"{case}/debiased"], RASA)


def removal(weights: list[np.ndarray]) -> Tensor:
    """The matrix that takes out the planes of some rounds as the release does: none of them is made orthogonal to earlier ones."""
    return removal_matrix([torch.from_numpy(w) for w in weights], weights[0].shape[1], orthogonal=False).float()


def planes(values: Any) -> Rows:
    """The part of the features in each round's plane, and what is left of them."""
    features, weights = torch.from_numpy(values["features"]), []
    before, left = features, features
    for number in children(values, "rounds"):
        case = f"rounds/{number}"
        weights.append(values[f"{case}/weight"])
        before, left = left, features @ removal(weights).T
        rows = orthonormal_rows(torch.from_numpy(weights[-1])).float()
        yield compare("rasa", case, "positional", before @ rows.T @ rows, values[f"{case}/positional"], RASA)
        yield compare("rasa", case, "left", left, values[f"{case}/left"], RASA)
    for name, found in (("before_last", before), ("all", left)):
        yield compare("rasa", "rounds", name.replace("_", " "), found, values[name], RASA)


def training(values: Any, case: str) -> Rows:
    """Steps of one round: losses, the first gradient, and the directions where no gradient was mere rounding."""
    target = torch.from_numpy(values["target"])
    features, targets = torch.from_numpy(values["before_last"]), place_targets(*(len(target[..., axis].unique()) for axis in (0, 1)))
    yield compare("rasa", case, "targets", targets.expand_as(target), target, RASA)
    weight = torch.from_numpy(values[f"{case}/weight_before"]).clone().requires_grad_()
    rates = cosine(float(values[f"{case}/lr"]), 0.0, int(values[f"{case}/steps"]))
    optimizer, losses, known = torch.optim.AdamW([weight], weight_decay=0), [], torch.ones_like(weight, dtype=torch.bool)
    for step, rate in enumerate(rates.tolist()):
        optimizer.param_groups[0]["lr"] = rate
        loss = round_loss(weight, features, targets)
        (weight.grad,) = torch.autograd.grad(loss, weight)
        if step == 0:
            yield relative("rasa", case, "first gradient, relative", weight.grad, values[f"{case}/grad_first"], RASA)
        known &= weight.grad.abs() >= ROUNDING
        optimizer.step()
        losses.append(loss.item())
    yield compare("rasa", case, "losses", losses, values[f"{case}/losses"], RASA)
    yield compare("rasa", case, "weight after", weight.detach()[known], values[f"{case}/weight_after"][known.numpy()], RASA_WEIGHT)
