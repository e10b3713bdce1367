"""Reference values of iBOT and DINOv2: masks, losses, parts and whole steps of the releases."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.networks import architecture, sure_entries
from benchmarks.reference_values.rows import children, compare, has, relative
from torch import Tensor, nn

from densewalk.methods.dino.losses import dino_loss
from densewalk.methods.dino.self_distillation import SelfDistillation
from densewalk.methods.dinov2.method import DinoV2
from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.methods.ibot.losses import masked_places, patch_loss
from densewalk.methods.ibot.masks import BlockRule, draw_blocks, ibot_rule, intervals
from densewalk.methods.ibot.method import MaskedDistillation, on_device
from densewalk.methods.ibot.settings import IbotSettings
from densewalk.models.backbone import Backbone, interpolate_positions
from densewalk.models.loading import to_timm
from densewalk.ops.cpu.stochastic_depth import BatchSubset, residual
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.schedules import cosine

STEPS = 10_000


class Recorded:
    """Recorded draws of blocks, in order."""

    def __init__(self, attempts: Any) -> None:
        self.numbers = [float(x) for x in np.asarray(attempts).flatten() if not math.isnan(x)]

    def uniform(self, a: float | int, b: float | int) -> float:
        """The next number."""
        return self.numbers.pop(0)

    def randint(self, a: int, b: int) -> int:
        """The next number."""
        return int(self.numbers.pop(0))


def ibot_masks(values: Any) -> Rows:
    """Masks from recorded draws, and how a batch of DINOv2 is masked."""
    for kind in ("ibot", "dinov2"):
        for number in children(values, kind):
            case = f"{kind}/{number}"
            grid = tuple(int(n) for n in values[f"{case}/grid"])
            draws = Recorded(values[f"{case}/attempts"])
            if kind == "ibot":
                mask = draw_blocks(grid, float(values[f"{case}/high"]), ibot_rule(grid), draws)  # type: ignore[arg-type]
            else:
                rule = BlockRule(4.0, float(values[f"{case}/max_num_patches"]))
                mask = draw_blocks(grid, int(values[f"{case}/count"]), rule, draws)  # type: ignore[arg-type]
            yield compare("ibot_masks", case, "mask", mask, values[f"{case}/mask"], 0)
            yield compare("ibot_masks", case, "draws left", len(draws.numbers), 0, 0)
    for number in children(values, "dinov2_batch"):
        case = f"dinov2_batch/{number}"
        views, drawn = int(values[f"{case}/images"]), values[f"{case}/drawn"]
        ratio = tuple(float(x) for x in values[f"{case}/ratio"])
        edges = intervals(int(views * float(values[f"{case}/mask_probability"])), ratio)  # type: ignore[arg-type]
        yield compare("ibot_masks", case, "intervals", edges, values[f"{case}/draw_from"], 2e-7)
        targets = [int(int(values[f"{case}/n_tokens"]) * u) for u in drawn] + [0] * (views - len(drawn))
        yield compare("ibot_masks", case, "targets", targets, values[f"{case}/targets"], 0)
        masks = torch.from_numpy(values[f"{case}/masks"]).bool()
        places, weights = masked_places(masks.unflatten(0, (2, -1)))
        yield compare("ibot_masks", case, "places", places, values[f"{case}/indices"], 0)
        yield compare("ibot_masks", case, "weights", weights.double() * views, values[f"{case}/weights"], 1e-7)


def ibot_loss(values: Any) -> Rows:
    """Losses, gradients and centers of recorded logits."""
    tau, keep = float(values["student_temperature"]), float(values["center_momentum"])
    weights = (float(values["lambda_cls"]), float(values["lambda_patch"]))
    stub: Any = SimpleNamespace(settings=IbotSettings())
    for at in children(values, "steps"):
        step = f"steps/{at}"
        get = {n: torch.from_numpy(values[f"{step}/{n}"]) for n in ("student_cls", "student_patch", "student_local")}
        get = {n: x.requires_grad_() for n, x in get.items()}
        teacher = {n: torch.from_numpy(values[f"{step}/teacher_{n}"]) for n in ("cls", "patch")}
        masks = torch.from_numpy(values[f"{step}/masks"]).bool().flatten(2)
        images, epoch = masks.shape[1], int(values[f"{step}/epoch"])
        center, center2 = (torch.from_numpy(values[f"{step}/{n}_before"]).flatten() for n in ("center", "center2"))
        temperatures = (float(values["temperature"][epoch]), float(values["temperature_patch"][epoch]))
        targets = SelfDistillation.distribution(stub, teacher["cls"].unflatten(0, (2, images)), temperatures[0], center)
        patch_targets = SelfDistillation.distribution(stub, teacher["patch"], temperatures[1], center2)
        logits = torch.cat([get["student_cls"], get["student_local"]]).unflatten(0, (-1, images))
        places, own = masked_places(masks)
        cls = weights[0] * dino_loss(targets, logits, tau)
        patch = weights[1] * patch_loss(patch_targets.flatten(0, 1)[places], get["student_patch"].flatten(0, 1)[places], own, tau)
        for name, loss in (("cls", cls), ("patch", patch), ("loss", cls + patch)):
            yield relative("ibot_loss", step, f"{name}, relative", loss.item(), values[f"{step}/{name}"], 1e-5)
        gradients = torch.autograd.grad(cls + patch, list(get.values()))
        for name, gradient in zip(get, gradients, strict=True):
            if has(values, f"{step}/grad/{name}"):
                yield relative("ibot_loss", step, f"gradient of {name}, relative", gradient, values[f"{step}/grad/{name}"], 1e-5)
        for name, before, new in (("center", center, teacher["cls"]), ("center2", center2, teacher["patch"].flatten(0, 1))):
            after = before.lerp(new.mean(0), 1 - keep)
            yield compare("ibot_loss", step, name, after, values[f"{step}/{name}_after"].flatten(), 1e-5)


def dinov2_parts(values: Any) -> Rows:
    """Positions at other sizes, stochastic depth on a subset, factors of layers, and schedules."""
    for number in children(values, "positions"):
        case = f"positions/{number}"
        table = torch.from_numpy(values[f"{case}/pos_embed"])[:, 1:]
        rows, columns = (int(n) // int(values[f"{case}/patch"]) for n in values[f"{case}/size"])
        antialias, offset = bool(values[f"{case}/antialias"]), float(values[f"{case}/offset"])
        kind: Any = "antialias" if antialias else "offset" if offset else "size"
        ours = interpolate_positions(table, (rows, columns), kind)
        yield compare("dinov2_parts", case, f"positions by {kind}", ours, values[f"{case}/resized"][:, 1:], 1e-5)
    for number in children(values, "drop_path"):
        yield from _drop_path(values, f"drop_path/{number}")
    names, blocks = [str(n) for n in values["layer_decay/names"]], int(values["layer_decay/blocks"])
    decay, found = float(values["layer_decay/decay"]), []
    for name in names:
        block = next((int(part) for part in name.split(".") if part.isdigit() and "blocks" in name), None)
        embedding = any(kind in name for kind in ("pos_embed", "patch_embed", "cls_token", "mask_token", "register"))
        found.append(decay ** (blocks - block if block is not None else blocks + 1 if embedding else 0))
    yield compare("dinov2_parts", "layer_decay", "factors", found, values["layer_decay/multiplier"], 1e-12)
    base, final, start = (float(values[f"cosine/{n}"]) for n in ("base", "final", "start"))
    total, warmup = (int(values[f"cosine/{n}"]) for n in ("total", "warmup"))
    ours = [*cosine(base, final, total, warmup=warmup, start=start), final, final]
    yield compare("dinov2_parts", "cosine", "schedule, two values past the end being its final one", ours, values["cosine/values"], 1e-12)


def _drop_path(values: Any, case: str) -> Rows:
    """A residual branch with recorded images kept, in both of its forms."""
    weight, dy = (torch.from_numpy(values[f"{case}/{n}"]) for n in ("weight", "dy"))
    drop = BatchSubset(float(values[f"{case}/rate"]))
    kept = torch.from_numpy(values[f"{case}/kept"])
    yield compare("dinov2_parts", case, "images kept", len(drop.draw(len(dy), kept.device)), len(kept), 0)
    with mock.patch.object(BatchSubset, "draw", return_value=kept):
        for form in ("computed", "scaled"):
            x = torch.from_numpy(values[f"{case}/x"]).requires_grad_()
            y = residual(x, drop, lambda x: (x @ weight).tanh()) if form == "computed" else x + drop((x @ weight).tanh())
            (gradient,) = torch.autograd.grad(y, x, dy)
            yield compare("dinov2_parts", case, f"output, {form}", y.detach(), values[f"{case}/y"], 1e-5)
            yield compare("dinov2_parts", case, f"gradient, {form}", gradient, values[f"{case}/dx"], 1e-5)


# -- whole steps -------------------------------------------------------------------------------------------------------


def _config(values: Any) -> dict[str, Any]:
    return {k.removeprefix("config/"): values[k] for k in values.files if k.startswith("config/")}


def _weights(values: Any, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}


def ours_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a release's network by our names."""
    backbone = {k.removeprefix("backbone."): w for k, w in weights.items() if k.startswith("backbone.")}
    masked = next((backbone.pop(n) for n in ("masked_embed", "mask_token") if n in backbone), None)
    found = {f"backbone.vit.{k}": w for k, w in to_timm(backbone).items()}
    for name, w in weights.items():
        if not name.startswith("backbone."):
            own = name.replace("dino_head.", "head.").replace("ibot_head.", "patch_head.").replace("head.last_layer2.", "patch_layer.")
            found[own] = w
    return found if masked is None else {**found, "mask_token": masked.view(1, -1)}


def _load(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = ours_of(weights)
    missing = network.load_state_dict(own, strict=False)
    unread = [n for n in missing.missing_keys if n != "mask_token"]
    if unread or missing.unexpected_keys:
        raise ValueError(f"weights without a place: {missing.unexpected_keys}, without a value: {unread}")


def ibot_step(values: Any) -> Rows:
    """Whole steps of iBOT."""
    c = _config(values)
    weights = _weights(values, "weights/student/")
    vit = {k.removeprefix("backbone."): w for k, w in weights.items() if k.startswith("backbone.") and "masked" not in k}
    arch = architecture(vit, int(c["heads"]), hidden=int(c["mlp_ratio"]) * int(c["dim"]))
    shared = bool(c["shared_head"])
    prototypes = next((len(w) for k, w in weights.items() if k.endswith("last_layer2.weight_v")), int(c["out_dim"]))
    total, per_epoch = len(values["lr"]), int(c["steps_per_epoch"])
    settings = IbotSettings(
        steps=total,
        global_size=int(c["image"]),
        local_size=int(c["local"]),
        head_hidden=int(c["head_hidden"]),
        head_bottleneck=int(c["head_bottleneck"]),
        out_dim=int(c["out_dim"]),
        head="shared" if shared else "shared_mlp",
        patch_out_dim=prototypes,
        norm_last_layer=bool(c["norm_last_layer"]),
        clip_grad=float(c["clip_grad"]),
        freeze_last_layer_epochs=float(c["freeze_last_layer_epochs"]),
        warmup_epochs=0,
        drop_path=0.0,
    )
    method = MaskedDistillation(settings, Backbone(arch), total, per_epoch, seed=0)
    method.lr, method.decay, method.momentum = (values[n] for n in ("lr", "weight_decay", "momentum"))
    method.temperatures = method.patch_temperatures = values["temperature"].repeat(per_epoch)
    yield from _steps(values, "ibot_step", method, _ibot_batch)


def _ibot_batch(values: Any, step: str) -> dict[str, Tensor]:
    crops = {kind: torch.from_numpy(values[f"{step}/images/{kind}s"]).transpose(0, 1) for kind in ("global", "local")}
    masks = torch.from_numpy(values[f"{step}/masks"]).bool().flatten(2)
    return {**crops, **on_device(masks, masks.device)}


def dinov2_step(values: Any) -> Rows:
    """Whole steps of DINOv2."""
    c = _config(values)
    weights = _weights(values, "weights/student/")
    vit = {k.removeprefix("backbone."): w for k, w in weights.items() if k.startswith("backbone.") and "mask" not in k}
    arch = architecture(vit, int(c["heads"]), hidden=int(c["mlp_ratio"]) * int(c["dim"]))
    cls_head, patch_head = c["dino_head"].tolist(), c["ibot_head"].tolist()  # hidden, bottleneck, prototypes
    total, per_epoch = len(values["schedules/lr"]), int(c["steps_per_epoch"])
    separate = bool(c["separate_head"])
    settings = DinoV2Settings(
        steps=total,
        global_size=int(c["image"]),
        local_size=int(c["local"]),
        local_crops=int(c["local_crops"]),
        head="separate" if separate else "shared",
        head_hidden=cls_head[0],
        head_bottleneck=cls_head[1],
        out_dim=cls_head[2],
        patch_head_bottleneck=patch_head[1],
        patch_out_dim=patch_head[2],
        centering="sinkhorn" if "sinkhorn" in str(c["centering"]) else "mean",
        sinkhorn_centering_iterations=int(c["sinkhorn_iterations"]),
        koleo_weight=float(c["koleo_weight"]),
        clip_grad=float(c["clip_grad"]),
        freeze_last_layer_epochs=float(c["freeze_last_layer_epochs"]),
        layer_decay=float(c["layerwise_decay"]),
        patch_embed_lr_factor=float(c["patch_embed_lr_mult"]),
        drop_path=float(c["drop_path"]),
        warmup_epochs=float(c["warmup_epochs"]),
    )
    method = DinoV2(settings, Backbone(arch), total, per_epoch, seed=0).train()
    names = {"lr": "lr", "decay": "weight_decay", "momentum": "momentum"}
    for own, theirs in names.items():
        setattr(method, own, values[f"schedules/{theirs}"])
    method.temperatures = method.patch_temperatures = values["schedules/temperature"]
    yield from _factors(values, method)
    yield from _steps(values, "dinov2_step", method, _dinov2_batch)


def _dinov2_batch(values: Any, step: str) -> dict[str, Tensor]:
    images = len(values[f"{step}/globals"]) // 2
    crops = {kind: torch.from_numpy(values[f"{step}/{kind}s"]).unflatten(0, (-1, images)).transpose(0, 1) for kind in ("global", "local")}
    masks = torch.from_numpy(values[f"{step}/masks"]).bool().unflatten(0, (2, images))
    return {**crops, **on_device(masks, masks.device)}


def _factors(values: Any, method: MaskedDistillation) -> Rows:
    """Each parameter's factors of learning rate and weight decay, and whether it is a prototype."""
    theirs = {k.removeprefix("group_multipliers/"): values[k] for k in values.files if k.startswith("group_multipliers/")}
    tokens = ("register", "cls_token", "mask_token", "pos_embed")
    named = ours_of({k: torch.from_numpy(w) for k, w in theirs.items() if not any(t in k for t in tokens)})
    named |= {n: torch.from_numpy(theirs["backbone.cls_token"]) for n in ("backbone.vit.cls_token", "backbone.vit.pos_embed", "mask_token")}
    names = {id(p): n for n, p in method.student.named_parameters()}
    errors, seen = [], 0
    peak = len(method.lr) - 1  # prototypes learn by then
    for group in method.param_groups():
        for p in group.params:
            expected = named.get(names[id(p)])
            if expected is None:
                continue
            seen += 1
            found = [group.lr[peak] / method.lr[peak], group.weight_decay[0] / method.decay[0], float("prototypes" in group.name)]
            frozen = group.lr[0] if found[2] else values["schedules/last_layer_lr"][0]
            errors.append(float(np.abs(np.array(found) - expected.numpy()).max()) + abs(frozen - values["schedules/last_layer_lr"][0]))
    yield compare("dinov2_step", "groups", "parameters compared", seen > 40, True, 0)
    yield compare("dinov2_step", "groups", "factors, largest error", max(errors), 0, 1e-6)


def _steps(values: Any, file: str, method: MaskedDistillation, batch_of: Any) -> Rows:
    for network, name in ((method.student, "student"), (method.teacher, "teacher")):
        _load(network, _weights(values, f"weights/{name}/"))
    method.train()
    optimizer = make_optimizer(method)
    sure: dict[str, Tensor] = {}
    folded = method.student.backbone.arch.registers > 0  # two parameters of the release are one here: CLS and its position
    for at in (int(n) for n in children(values, "steps")):
        step = f"steps/{at}"
        set_schedules(optimizer, at)
        optimizer.zero_grad()
        with _kept(values, step, method):
            loss, _ = method.step(batch_of(values, step), at, torch.Generator())
        yield relative(file, step, "loss, relative", loss.item(), values[f"{step}/loss"], 1e-5)
        loss.backward()
        named = dict(method.student.named_parameters())
        if recorded := _weights(values, f"{step}/grad/"):
            yield from _gradients(file, step, named, recorded)
        for name, p in named.items():
            if p.grad is not None:
                sure_entries(sure, name, p.grad)
        cls = named["backbone.vit.cls_token"]
        before = cls.detach().clone()
        yield from _centers(values, file, step, method, "centers/dino", "centers/ibot")  # as used in this step
        with _twice(method, cls) if folded else nullcontext():
            method.after_backward(at)
        yield from _centers(values, file, step, method, "center", "center2")
        optimizer.step()
        if folded:
            group = next(g for g in optimizer.param_groups if any(p is cls for p in g["params"]))
            with torch.no_grad():
                cls.copy_(2 * cls - before * (1 - group["lr"] * group["weight_decay"]))
        method.after_update(at)
        for network, name in ((method.student, "student"), (method.teacher, "teacher")):
            if after := _weights(values, f"{step}/after/{name}/"):
                errors = _errors(network, ours_of(after), sure)
                yield compare(file, step, f"{name} after it, largest error", max(errors.values()), 0, 1e-4)


@contextmanager
def _twice(method: MaskedDistillation, cls: nn.Parameter) -> Iterator[None]:
    """The gradient of CLS counts twice in the backbone's norm, as those of the release's two parameters, inside the block."""
    parts = method.student.parts
    other = nn.Parameter(torch.empty_like(cls))
    other.grad = None if cls.grad is None else cls.grad.clone()
    backbone, *heads = parts()
    with mock.patch.object(method.student, "parts", return_value=[[*backbone, other], *heads]):
        yield


def _gradients(file: str, step: str, named: Mapping[str, nn.Parameter], recorded: Mapping[str, Tensor]) -> Rows:
    theirs = ours_of(recorded)
    errors = {}
    for name, gradient in theirs.items():
        own = named[name].grad
        if name in ("backbone.vit.cls_token",) and "backbone.register_tokens" in recorded:
            gradient = recorded["backbone.cls_token"]  # folding has added the position's
        if own is not None:
            errors[name] = relative(file, step, name, own, gradient.view_as(own), 1e-4, floor=1e-6).difference
    worst = max(errors, key=errors.__getitem__)
    yield compare(file, step, "parameters with a gradient", len(errors) == len([p for p in named.values() if p.grad is not None]), True, 0)
    yield compare(file, step, f"gradients, largest relative error ({worst})", errors[worst], 0, 1e-4)


def _errors(network: nn.Module, expected: Mapping[str, Tensor], sure: Mapping[str, Tensor]) -> dict[str, float]:
    found = {}
    for name, weight in network.state_dict().items():
        if name in expected:
            error = (weight - expected[name].view_as(weight)).abs()
            found[name] = float((error * sure[name] if name in sure else error).max())
    return found


def _centers(values: Any, file: str, step: str, method: MaskedDistillation, *names: str) -> Rows:
    for own, name in zip((method.center, method.patch_center), names, strict=True):
        if has(values, f"{step}/{name}") and method.settings.centering == "mean":
            yield compare(file, step, name, own, values[f"{step}/{name}"].flatten(), 1e-5)


@contextmanager
def _kept(values: Any, step: str, method: MaskedDistillation) -> Iterator[None]:
    """The recorded images that stochastic depth kept, in place of drawn ones: global views first, block by block."""
    depth, recorded = method.student.backbone.arch.depth, []
    for views in ("global", "local"):
        for block in range(depth):
            for branch in ("attention", "mlp"):
                key = f"{step}/drop_path_kept/block{block}_{branch}_{views}"
                recorded += [torch.from_numpy(values[key])] if key in values.files else []
    with mock.patch.object(BatchSubset, "draw", side_effect=lambda *_: recorded.pop(0)):
        yield
    if recorded:
        raise ValueError(f"{step}: {len(recorded)} recorded draws were not asked for")
