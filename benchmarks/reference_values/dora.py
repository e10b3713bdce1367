"""Reference values of DoRA: one step of the release, from its inputs to the updated networks."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import children, compare, finite_or_equal, has, relative
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.dora import tracking
from densewalk.methods.dora.losses import frame_terms, total_loss
from densewalk.methods.dora.method import Dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.models.architecture import Architecture
from densewalk.models.backbone import Backbone
from densewalk.ops.sinkhorn import sinkhorn
from densewalk.training.optimizer import make_optimizer, set_schedules


def dora_step(values: Any) -> Rows:
    """Teacher, objects, tracks, masks, student, loss, gradients and update; and Sinkhorn by itself."""
    config = {name: str(values[f"config/{name}"]) for name in children(values, "config")}
    for case in sorted({k.removesuffix("_in") for k in children(values, "sinkhorn_cases") if k.endswith("_in")}):
        scores, theirs = (torch.from_numpy(values[f"sinkhorn_cases/{case}_{part}"]) for part in ("in", "out"))
        ours = sinkhorn(scores, epsilon=float(config["sk_eps"]), iterations=int(config["sk_iters"]))
        yield finite_or_equal("dora_step", case, "Sinkhorn", ours, theirs, 2e-5)
    method, batch = _method(values, config)
    heads = torch.from_numpy(values["mot/heads"])
    method.sample_heads = lambda generator: heads  # type: ignore[method-assign]
    yield from _tracking(values, method, batch, heads)
    yield from _terms(values, method, int(config["B"]))
    yield from _step(values, method, batch)


def _method(values: Any, config: dict[str, str]) -> tuple[Dora, dict[str, Tensor]]:
    """The method in the recorded state, and the recorded batch. Learning rate, decay and momentum are those of the recorded tables."""
    number = {name: int(value) for name, value in config.items() if value.lstrip("-").isdigit()}
    settings = DoraSettings(
        compat="released", objects=len(values["mot/heads"]), frames=number["T"], local_crops=number["n_local"],
        global_size=number["img"], local_size=number["local"], out_dim=number["out"], head_hidden=number["hid"],
        head_bottleneck=number["bot"], drop_path=0.0, batch_size=256, warmup_epochs=0, freeze_last_layer_epochs=0,
        student_temperature=float(config["student_temp"]), teacher_temperature=float(config["teacher_temp"]),
        center_momentum=float(config["center_momentum"]), sinkhorn_iterations=number["sk_iters"],
        sinkhorn_epsilon=float(config["sk_eps"]),
    )  # fmt: skip
    dim, depth, n_heads, patch = (number[name] for name in ("dim", "depth", "heads", "patch"))
    arch = Architecture("recorded", dim=dim, depth=depth, heads=n_heads, patch=patch, image=number["img"])
    method = Dora(settings, Backbone(arch), total_steps=10000, steps_per_epoch=100, seed=0)
    for network, kind in ((method.student, "student"), (method.teacher, "teacher")):
        prefix = f"weights/{kind}/"
        weights = {_ours(k.removeprefix(prefix)): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
        network.load_state_dict(weights)
    method.center.copy_(torch.from_numpy(values["center_before"])[0])
    crops = torch.from_numpy(values["inputs/locals"]).transpose(0, 1)
    return method, {"global": torch.from_numpy(values["inputs/global"])[:, None], "local": crops}


def _ours(name: str) -> str:
    return name.replace("backbone.", "backbone.vit.", 1)


@torch.no_grad()
def _tracking(values: Any, method: Dora, batch: dict[str, Tensor], heads: Tensor) -> Rows:
    """From the teacher's features to the masked frames."""
    images = batch["global"].flatten(0, 1)
    seen = method.encode_teacher(images)
    key = torch.from_numpy(values["teacher/key"])[:, :, :, 1:].transpose(2, 3).flatten(3)
    found = tracking.object_prototypes(seen.cls_attention[:, heads], seen.query)
    scores = F.normalize(seen.patches, dim=-1) @ found.transpose(1, 2)
    refined = tracking.refine_prototypes(found, seen.patches, method.settings)
    tracks = tracking.track_objects(refined, seen.keys)
    masks = tracking.hard_masks(tracks, per_batch=True)
    order = _order(tracks, values["mot/track_soft"])
    unit = F.normalize(tracks, dim=-1)
    sure = (unit - unit.mean(dim=(0, -1), keepdim=True)).abs() > 1e-6  # nearer to the threshold, either side is right
    whole = tracking.apply_masks(images, sure.float(), seen.grid) if not sure.all() else None
    shown = tracking.apply_masks(images, masks, seen.grid)
    expected = torch.from_numpy(values["mot/masked_img"]).transpose(0, 1)
    decided = [torch.where(whole == 0, 0, x) if whole is not None else x for x in (shown, expected)]
    iterations = {"epsilon": method.settings.sinkhorn_epsilon, "iterations": method.settings.sinkhorn_iterations}
    assigned = sinkhorn(torch.from_numpy(values["mot/assignment"]), **iterations)
    yield compare("dora_step", "teacher", "logits", seen.logits.transpose(0, 1), values["teacher/logits"], 1e-6)
    yield compare("dora_step", "teacher", "patches of the first frame", seen.patches, values["teacher/patches"][0], 1e-5)
    yield compare("dora_step", "teacher", "keys", seen.keys.transpose(0, 1), key, 1e-5)
    yield compare("dora_step", "objects", "CLS attention", seen.cls_attention[:, heads], values["mot/cls_attn"], 1e-6)
    yield compare("dora_step", "objects", "prototypes", found, values["mot/prototypes"], 1e-5)
    yield compare("dora_step", "objects", "scores of patches", scores, values["mot/assignment"], 1e-4)
    yield finite_or_equal("dora_step", "objects", "Sinkhorn", assigned, values["mot/sinkhorn"], 2e-5)
    yield relative("dora_step", "objects", "refined prototypes, relative", refined, values["mot/refined"], 1e-4)
    yield compare("dora_step", "tracking", "tracks", tracks.permute(order), values["mot/track_soft"], 2e-5)
    yield compare("dora_step", "tracking", "masks", (masks * sure).permute(order), values["mot/track_bin"] * sure.permute(order).numpy(), 0)
    yield compare("dora_step", "tracking", "masked frames", *decided, 0)


def _order(tracks: Tensor, recorded: Any) -> tuple[int, int, int, int]:
    """The recorded axes are objects and frames in either order, then batch and patches: where both are as many, the nearer ones."""
    orders = [o for o in ((1, 2, 0, 3), (2, 1, 0, 3)) if tracks.permute(o).shape == recorded.shape]
    if not orders:
        raise ValueError(f"dora_step, tracking: mot/track_soft has shape {recorded.shape}, ours {tuple(tracks.shape)}")
    return min(orders, key=lambda order: (tracks.permute(order) - torch.from_numpy(recorded)).abs().max().item())


@torch.no_grad()
def _terms(values: Any, method: Dora, batch: int) -> Rows:
    """The loss from recorded logits, with and without the release's carry-over and skipped crop."""
    s, recorded = method.settings, {n: torch.from_numpy(values[n]) for n in ("student/masked", "student/local", "teacher/logits")}
    targets = method.targets(recorded["teacher/logits"].transpose(0, 1), step=0)
    masked = recorded["student/masked"].transpose(1, 2)
    crops = recorded["student/local"].unflatten(1, (s.local_crops, batch)).permute(1, 2, 0, 3)
    mask_terms, local_terms = frame_terms(targets, masked, crops[1:], s.student_temperature)
    theirs = torch.from_numpy(values["loss/mask_terms"])
    fitting = [terms for terms in (mask_terms, mask_terms.T) if terms.shape == theirs.shape] or [mask_terms]
    nearest = min(fitting, key=lambda terms: float((terms - theirs).norm())) if len(fitting) > 1 else fitting[0]
    yield relative("dora_step", "loss", "terms of masked frames, relative", nearest, theirs, 1e-5)
    yield relative("dora_step", "loss", "terms of local crops, relative", local_terms, values["loss/local_terms"], 1e-5)
    carried = total_loss(mask_terms, local_terms, carry_over=True)
    yield relative("dora_step", "loss", "official, relative", carried, values["loss/official"], 1e-6)
    all_masks, all_crops = frame_terms(targets, masked, crops, s.student_temperature)
    clean = total_loss(all_masks, all_crops, carry_over=False)
    yield relative("dora_step", "loss", "without carry-over and skipped crop, relative", clean, values["loss/loss_clean"], 1e-6)


def _step(values: Any, method: Dora, batch: dict[str, Tensor]) -> Rows:
    """The whole step: loss, gradients, center, and the recorded ones of the updated parameters."""
    optimizer = make_optimizer(method)
    set_schedules(optimizer, 0)
    loss, _ = method.step(batch, 0, torch.Generator().manual_seed(0))
    yield relative("dora_step", "step", "loss, relative", loss.item(), values["loss/official"], 1e-6)
    loss.backward()
    gradients = {name: p.grad for name, p in method.student.named_parameters() if p.grad is not None}
    for name in sorted(k for k in values.files if k.startswith("grad/")):
        ours = gradients[_ours(name.removeprefix("grad/"))]
        yield relative("dora_step", "step", f"gradient of {name.removeprefix('grad/')}, relative", ours, values[name], 1e-4, floor=1e-6)
    method.after_backward(0)
    yield compare("dora_step", "step", "center after", method.center, values["loss/center_after"][0], 1e-6)
    optimizer.step()
    method.after_update(0)
    networks = {"student": method.student.state_dict(), "teacher": method.teacher.state_dict()}
    for name in sorted(k for k in values.files if k.startswith("after_step/")):
        kind, parameter = name.removeprefix("after_step/").split(".", 1)
        yield compare("dora_step", "step", f"{kind} after, {parameter}", networks[kind][_ours(parameter)], values[name], 1e-6)
    if has(values, "schedules/lr"):
        yield from _schedules(values, method.student.backbone)


def _schedules(values: Any, backbone: Backbone) -> Rows:
    """The default recipe's, for as many steps and epochs as were recorded."""
    steps, epochs = (len(values[f"schedules/{key}"]) for key in ("lr", "teacher_temp"))
    settings = DoraSettings(epochs=epochs, out_dim=8, head_hidden=8, head_bottleneck=8)
    own = Dora(settings, backbone, steps, steps // epochs, seed=0)
    group = own.param_groups()[0]
    found = {"lr": group.lr, "wd": group.weight_decay, "ema": own.momentum, "teacher_temp": own.temperatures}
    for key, ours in found.items():
        yield compare("dora_step", "schedules", key, ours, values[f"schedules/{key}"], 1e-12)
