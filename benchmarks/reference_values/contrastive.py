"""Reference values of SimCLR and MoCo v3: losses over several processes, computed here in one, and MoCo v3's whole steps."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.networks import architecture
from benchmarks.reference_values.rows import cases, children, compare, relative
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.mocov3.method import MocoV3, contrast_among
from densewalk.methods.mocov3.settings import MocoV3Settings
from densewalk.methods.simclr.method import nt_xent_among
from densewalk.models.backbone import Backbone
from densewalk.training.optimizer import make_optimizer

NOISE = 1e-5  # gradients below are rounding: what batch normalization removes has none


def contrastive_losses(values: Any) -> Rows:
    """Both losses of every process, with the other processes' views as constants (MoCo v3) or with a gradient (SimCLR)."""
    if "q" in values.files:
        q, k = (torch.from_numpy(values[name]) for name in ("q", "k"))
        for process in children(values, "process"):
            for name in children(values, f"process/{process}"):
                kind, _, temperature = name.partition("_")
                case, rank = f"process/{process}/{name}", int(process)
                found = (_moco if kind == "moco" else _simclr)(q, k, rank, float(temperature))
                yield from _outcome(values, case, *found)
    for number in children(values, "ntxent_one_process"):
        case = f"ntxent_one_process/{number}"
        z = torch.stack([torch.from_numpy(values[f"{case}/{name}"]) for name in ("z0", "z1")])
        yield from _outcome(values, case, *_simclr(z[:1, None], z[1:, None], 0, float(values[f"{case}/temperature"])))


def _outcome(values: Any, case: str, loss: float, gradients: dict[str, Tensor]) -> Rows:
    yield relative("contrastive_losses", case, "loss, relative", loss, values[f"{case}/loss"], 1e-5)
    for name, gradient in gradients.items():
        yield relative("contrastive_losses", case, f"{name}, relative", gradient, values[f"{case}/{name}"], 1e-5)


def _moco(q: Tensor, k: Tensor, rank: int, temperature: float) -> tuple[float, dict[str, Tensor]]:
    """Queries of one process, keys of all."""
    queries = [q[view, rank].clone().requires_grad_() for view in range(2)]
    keys = [F.normalize(k[view].flatten(0, 1), dim=1) for view in range(2)]
    first = rank * q.shape[2]
    loss = sum(contrast_among(queries[view], keys[1 - view], first, temperature) for view in range(2))
    gradients = torch.autograd.grad(loss, queries)
    return loss.item(), {f"grad_q{view + 1}": gradient for view, gradient in enumerate(gradients)}


def _simclr(q: Tensor, k: Tensor, rank: int, temperature: float) -> tuple[float, dict[str, Tensor]]:
    """The loss of one process; gradients of its views from the sum of all processes' losses."""
    views = torch.stack([q[0], k[0]], dim=1).requires_grad_()  # [processes, 2, b, d]
    everyone = F.normalize(views, dim=-1).flatten(0, 2)
    count = 2 * views.shape[2]
    losses = [nt_xent_among(everyone[n * count :][:count], everyone, n * count, temperature) for n in range(len(views))]
    (gradient,) = torch.autograd.grad(sum(losses), views)
    return losses[rank].item(), {"grad_z0": gradient[rank, 0], "grad_z1": gradient[rank, 1]}


def mocov3_step(values: Any) -> Rows:
    """Two steps of the release."""
    method = _method(values)
    _load(method, values, "weights")
    optimizer = make_optimizer(method)
    optimizer.param_groups[0].update(lr=float(values["config/lr"]), weight_decay=float(values["config/weight_decay"]))
    names = {n: p for n, p in _named(method).items() if p.requires_grad}
    sure = {n: torch.ones_like(p, dtype=torch.bool) for n, p in names.items()}
    for at in (int(n) for n in children(values, "steps")):
        step = f"steps/{at}"
        batch = torch.stack([torch.from_numpy(values[f"{step}/x{view}"]) for view in (1, 2)], dim=1)
        method.momentum = np.full(100, float(values[f"{step}/momentum"]))
        optimizer.zero_grad()
        loss, _ = method.step(batch, at, torch.Generator())
        yield compare("mocov3_step", step, "loss", loss.item(), values[f"{step}/loss"], 1e-5)
        loss.backward()
        recorded = {k.removeprefix(f"{step}/grad/"): values[k] for k in values.files if k.startswith(f"{step}/grad/")}
        yield compare("mocov3_step", step, "gradients: parameters not alike", len(names.keys() ^ recorded.keys()), 0, 0)
        errors = []
        for name, theirs in recorded.items():
            gradient = names[name].grad
            assert gradient is not None
            sure[name] &= torch.from_numpy(np.abs(theirs) > NOISE)
            if np.abs(theirs).max() > NOISE:
                errors.append(relative("mocov3_step", step, name, gradient, theirs, 1e-4, floor=1e-6).difference)
        yield compare("mocov3_step", step, "gradients, largest relative error", max(errors), 0, 1e-4)
        optimizer.step()
        yield from _after(method, values, step, sure)
        _load(method, values, f"{step}/after")


def _after(method: MocoV3, values: Any, step: str, sure: dict[str, Tensor]) -> Rows:
    """Weights, but for entries whose gradient was rounding, and buffers of batch normalization."""
    errors = []
    for name, weight in _named(method).items():
        error = (weight.detach() - torch.from_numpy(values[f"{step}/after/{name}"])).abs()
        errors.append(float((error * sure[name] if name in sure else error).max()))
    yield compare("mocov3_step", step, "weights after it, largest error", max(errors), 0, 1e-4)
    prefix = f"{step}/buffers/"
    own = _named(method, buffers=True)
    theirs = {k.removeprefix(prefix): values[k] for k in values.files if k.startswith(prefix)}
    yield compare("mocov3_step", step, "buffers not alike", len(own.keys() ^ theirs.keys()), 0, 0)
    for name, buffer in own.items():
        yield compare("mocov3_step", step, name, buffer, theirs[name], 1e-5)


def _named(method: MocoV3, *, buffers: bool = False) -> dict[str, Tensor]:
    """All tensors by the names of the release."""
    parts = {"base": method.student, "momentum": method.teacher, "predictor": method.predictor}
    found = {}
    for part, network in parts.items():
        for name, tensor in network.named_buffers() if buffers else network.named_parameters():
            own = name.replace("backbone.vit.", "").replace("projector.", "head.")
            found[f"{part}/{own}"] = tensor
    return found


@torch.no_grad()
def _load(method: MocoV3, values: Any, prefix: str) -> None:
    """Recorded weights; buffers go on as they are."""
    for name, tensor in _named(method).items():
        tensor.copy_(torch.from_numpy(values[f"{prefix}/{name}"]))


def _method(values: Any) -> MocoV3:
    config = {k.removeprefix("config/"): values[k] for k in values.files if k.startswith("config/")}
    base = {
        k.removeprefix("weights/base/"): torch.from_numpy(values[k])
        for k in values.files
        if k.startswith("weights/base/") and not k.startswith("weights/base/head.")
    }
    arch = architecture(base, int(config["heads"]), hidden=int(config["mlp_ratio"]) * int(config["dim"]))
    settings = MocoV3Settings(
        steps=100,
        size=int(config["image"]),
        projector_hidden=int(config["mlp_hidden"]),
        predictor_hidden=int(config["mlp_hidden"]),
        out_dim=int(config["out_dim"]),
        temperature=float(config["temperature"]),
        freeze_patch_embed=bool(config["stop_grad_patch_embed"]),
        warmup_epochs=0,
    )
    method = MocoV3(settings, Backbone(arch), 100, 100, seed=0)
    assert cases(values, having="0/q1") == ["steps"]
    return method.train()
