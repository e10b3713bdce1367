"""Reference values of NeCo: sorting networks, views, the pairwise loss, and whole steps of the release."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchmarks import matrix_sort
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.networks import architecture, choose_heads, sure_entries
from benchmarks.reference_values.rows import cases, children, compare, finite_or_equal, has, optional, relative
from torch import Tensor

from densewalk.data.augmentation import crops as augmentation
from densewalk.methods.neco import alignment
from densewalk.methods.neco import method as neco
from densewalk.methods.neco.method import Neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.backbone import Backbone
from densewalk.models.loading import to_timm
from densewalk.ops.soft_sort import networks
from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.training.optimizer import make_optimizer, set_schedules

State = dict[str, Tensor]


def neco_sort(values: Any) -> Rows:
    """Relaxed sorts, the loss between two of them and its gradient."""
    for case in cases(values, having="S"):
        kind, steep_s, steep_t = (values[f"{case}/{n}"].item() for n in ("kind", "steep_s", "steep_t"))
        student, teacher = (torch.from_numpy(values[f"{case}/{n}"]) for n in ("S", "T"))
        for scores, steepness, p, ordered in ((student, steep_s, "P", "sorted_s"), (teacher, steep_t, "Q", "sorted_t")):
            found = matrix_sort.relaxed_sort(scores.double(), kind, float(steepness))
            yield compare("neco_sort", case, f"{p}, by matrices in float64", found[0], values[f"{case}/{p}"], 5e-5)
            yield compare("neco_sort", case, f"{ordered}, by matrices in float64", found[1], values[f"{case}/{ordered}"], 5e-5)
        scores = student.clone().requires_grad_()
        rates = {"student_steepness": float(steep_s), "teacher_steepness": float(steep_t), "relaxation": "cauchy"}
        loss = sort_losses(scores, teacher, network=networks.network(kind, scores.shape[1]), **rates).mean()
        (gradient,) = torch.autograd.grad(loss, scores)
        yield finite_or_equal("neco_sort", case, "loss", loss.item(), values[f"{case}/loss"], 1e-5)
        if np.isfinite(values[f"{case}/dS"]).all():
            yield relative("neco_sort", case, "gradient, relative", gradient, values[f"{case}/dS"], 1e-4)
        else:
            yield finite_or_equal("neco_sort", case, "gradient", gradient, values[f"{case}/dS"], 0)


def neco_views(values: Any) -> Rows:
    """The boxes in which crops overlap, from the crops' boxes and from a seed."""
    for case in cases(values, 2, having="crop_bboxes"):
        boxes = torch.from_numpy(values[f"{case}/crop_bboxes"])
        yield from _intersections(values, case, boxes, values[f"{case}/size_crops"].tolist())
    for case in cases(values, 2, having="seed"):
        image = torch.from_numpy(values[f"{case}/image"]).permute(2, 0, 1).contiguous()
        settings, sizes = NecoSettings(), values[f"{case}/size"].tolist()
        n_global, views = values[f"{case}/gc"].shape[:2]
        crops = [augmentation.Crop(sizes[0], settings.global_scale, True)] * n_global
        crops += [augmentation.Crop(sizes[1], settings.local_scale, False)] * (views - n_global)
        seed = torch.Generator().manual_seed(int(values[f"{case}/seed"]))
        *_, boxes = augmentation.multi_crop(image, crops, settings.min_overlap, seed)
        yield from _intersections(values, case, boxes, sizes)


def _intersections(values: Any, case: str, boxes: Tensor, sizes: list[int]) -> Rows:
    n_global, views = values[f"{case}/gc"].shape[:2]
    found = augmentation.intersections(boxes, [sizes[0]] * n_global + [sizes[1]] * (views - n_global), n_global)
    for ours, key in zip(found, ("gc", "all"), strict=True):
        yield compare("neco_views", case, f"boxes, {key}", ours, values[f"{case}/{key}"], 0)


def neco_loss(values: Any) -> Rows:
    """Aligned patches, references by the recorded draws, the loss of every pair and its gradient."""
    for case in cases(values, having="teacher_gc"):
        v = {k.removeprefix(f"{case}/"): torch.from_numpy(values[k]) for k in values.files if _is_number(values, k, case)}
        batch, patch, grid, local = (int(v[k]) for k in ("bs", "patch_size", "gc_res", "lc_res"))
        n_global, views = v["bboxes/gc"].shape[1:3]
        side = v["pairs/0/src"].shape[-1]
        distance = str(optional(values, (f"{case}/distance", f"{case}/sim_dist"), "euclidean" if "euclidean" in case else "cosine"))
        settings = NecoSettings(
            compat="released", steps=1, queue=0, global_size=grid * patch, local_size=local * patch, global_crops=n_global,
            local_crops=views - n_global, head_hidden=8, head_out=v["teacher_gc"].shape[1], aligned_patches=side, distance=distance,
            network=str(optional(values, (f"{case}/kind", f"{case}/network"), "bitonic")),
            student_steepness=float(optional(values, (f"{case}/steepness", f"{case}/steep_s"), 100.0)),
            teacher_steepness=float(optional(values, (f"{case}/steepness", f"{case}/steep_t"), 100.0)),
        )  # fmt: skip
        method = Neco(settings, _tiny(patch), 1, 1, seed=0)
        student = [_maps(v["student_gc"], n_global, batch, grid).requires_grad_()]
        if views > n_global:
            student.append(_maps(v["student_lc"], views - n_global, batch, local).requires_grad_())
        boxes = v["bboxes/gc"] / patch, v["bboxes/all"] / patch
        targets, sources = alignment.align(_maps(v["teacher_gc"], n_global, batch, grid), student, *boxes, method.settings)
        theirs = [torch.stack([v[f"pairs/{2 * p + i}/src"].flatten(2).transpose(1, 2) for p in range(len(targets))]) for i in (0, 1)]
        yield compare("neco_loss", case, "aligned patches of the student", sources.detach(), theirs[0], 1e-5)
        yield compare("neco_loss", case, "aligned patches of the teacher", targets, theirs[1], 1e-5)
        draws = [v[f"randperms_in_order/{i}"] for i in children(values, f"{case}/randperms_in_order")]
        expected = torch.stack([v[f"pairs/{2 * p}/ref"].flatten(2).transpose(1, 2) for p in range(len(targets))])
        with _recorded_draws(draws):
            references = method.sample_references(targets, None, torch.Generator())
        yield compare("neco_loss", case, "references", references, expected, 1e-5)
        for p, pair in enumerate(method.pairs):
            rows = [alignment.distances(x[p], references[p], method.settings).flatten(0, 1) for x in (sources, targets)]
            loss = method.sort_losses(*rows, student_steepness=settings.student_steepness).mean()
            yield compare("neco_loss", case, f"loss of crops {pair[0]} and {pair[1]}", loss.item(), v[f"sublosses/{p}/loss"], 1e-5)
        total = method.order_loss(sources, targets, references, None)
        yield compare("neco_loss", case, "loss", total.item(), v["loss"], 1e-5)
        for gradient, key, crops, size in zip(  # not strict: a case without local crops has the first alone
            torch.autograd.grad(total, student), ("student_gc", "student_lc"), (n_global, views - n_global), (grid, local), strict=False
        ):
            yield relative("neco_loss", case, f"gradient to {key}, relative", gradient, _maps(v[f"d_{key}"], crops, batch, size), 1e-4)


def _is_number(values: Any, key: str, case: str) -> bool:
    return key.startswith(f"{case}/") and values[key].dtype.kind in "fib"


def _maps(rows: Tensor, crops: int, batch: int, side: int) -> Tensor:
    """Recorded rows, crop after crop and image after image, as [batch, crops, out, rows, columns]."""
    return rows.detach().unflatten(0, (crops, batch, side, side)).permute(1, 0, 4, 2, 3).clone()


def _tiny(patch: int) -> Backbone:
    """A backbone that is not run."""
    return Backbone(
        architecture(
            {"patch_embed.proj.weight": torch.zeros(8, 3, patch, patch), "pos_embed": torch.zeros(1, 5, 8), "blocks.0.x": torch.zeros(1)}, 1
        )
    )


@contextmanager
def _recorded_draws(recorded: list[Tensor]) -> Iterator[None]:
    """Recorded permutations, in order, in place of the method's own draws; where it needs more numbers, from the start again."""
    left = iter(recorded)

    def draw(pool: int, count: int, generator: Any) -> Tensor:
        order = next(left, None)
        if order is None or len(order) != pool:
            found = "none" if order is None else f"one of {len(order)}"
            raise ValueError(f"the next recorded permutation is {found}, but {pool} patches are drawn from")
        return order.repeat(-(-count // max(1, pool)))[:count]

    with mock.patch.object(neco, "sample_indices", draw):
        yield


def neco_step(values: Any) -> Rows:
    """Every recorded step: embeddings, loss, gradients, student and teacher after it."""
    student0, teacher0 = (_tensors(values, f"{name}0/") for name in ("student", "teacher"))
    method = _method(values, student0)
    method.student.load_state_dict(_ours(student0))
    method.teacher.load_state_dict(_ours(teacher0))
    optimizer = make_optimizer(method)
    yield from _groups(values, method, optimizer)
    sure: State = {}
    for at in (int(n) for n in children(values, "steps")):
        yield from _step(values, method, optimizer, at, sure)


def _method(values: Any, student: State) -> Neco:
    """The method with the recorded sizes and rates."""
    sizes = values["size_crops"].tolist()
    n_global, views = values["steps/0/bboxes/gc"].shape[1:3]
    head = [w for k, w in sorted(student.items()) if k.startswith("projection_head.") and k.endswith("weight")]
    mask = str(optional(values, ("loss_mask", "hparams/loss_mask"), "all"))
    settings = NecoSettings(
        compat="released", steps=int(values["hparams/iters"]), batch_size=int(values["bs"]), global_size=sizes[0], local_size=sizes[-1],
        global_crops=n_global, local_crops=views - n_global, head_hidden=len(head[0]), head_out=len(head[-1]), drop_path=0.0,
        queue=int(optional(values, tuple(k for k in values.files if k.split("/")[-1] in QUEUE_KEYS), 0)),
        queue_patches_per_image=int(optional(values, ("hparams/queue_patches_per_image",), 10)),
        loss_mask={"fg": "foreground", "bg": "background"}.get(mask, mask),
        backbone_lr=float(values["hparams/lr_backbone"]), head_lr=float(values["hparams/lr_heads"]),
        weight_decay=float(values["hparams/wd"][0]), weight_decay_end=float(values["hparams/wd"][1]),
        teacher_momentum=float(values["hparams/mom"][0]), student_steepness=float(values["hparams/steepness"]),
        teacher_steepness=float(optional(values, ("hparams/steepness_teacher",), values["hparams/steepness"])),
    )  # fmt: skip
    backbone = {k: w for k, w in student.items() if not k.startswith("projection_head.")}
    arch = architecture(
        backbone, optional(values, ("heads", "hparams/heads"), 0) or choose_heads(backbone, lambda n: _error(values, student, settings, n))
    )
    return Neco(settings, Backbone(arch), settings.steps or 1, 1, seed=0)


QUEUE_KEYS = ("queue", "queue_size", "queue_length")


@torch.no_grad()
def _error(values: Any, student: State, settings: NecoSettings, heads: int) -> float:
    """How far the first image's embeddings in the first global crop are from the recorded ones, with this number of heads."""
    backbone = {k: w for k, w in student.items() if not k.startswith("projection_head.")}
    method = Neco(settings, Backbone(architecture(backbone, heads)), 1, 1, seed=0)
    method.student.load_state_dict(_ours(student))
    found = method.student.eval().encode(torch.from_numpy(values["steps/0/crops/0"])[:1, None])[0, 0].flatten(1).T
    return float((found - torch.from_numpy(values["steps/0/student_emb"])[: len(found)]).abs().max())


def _tensors(values: Any, prefix: str) -> State:
    return {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}


def _ours(weights: State) -> State:
    """The release's network in our names; with registers, CLS's position is folded into the CLS token."""
    backbone = to_timm({k: w for k, w in weights.items() if not k.startswith("projection_head.")})
    head = {k.replace("projection_head.", "head.mlp."): w for k, w in weights.items() if k.startswith("projection_head.")}
    return {**{f"backbone.vit.{k}": w for k, w in backbone.items()}, **head}


def _our_gradients(gradients: State) -> State:
    """Likewise; the two parameters that are folded have the same gradient, which is their sum's."""
    folded = dict(gradients)
    if "register_tokens" in folded and "pos_embed" in folded:
        folded["pos_embed"] = torch.cat([torch.zeros_like(folded["pos_embed"][:, :1]), folded["pos_embed"][:, 1:]], dim=1)
    return _ours({k: g for k, g in folded.items() if k != "mask_token"})


def _groups(values: Any, method: Neco, optimizer: torch.optim.Optimizer) -> Rows:
    """Rates of every parameter, and the schedules. The CLS token that holds its position has a group of its own, at twice the rate."""
    set_schedules(optimizer, 0)
    names = {id(p): name for name, p in method.student.named_parameters()}
    found = {
        names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"] if g["name"] != "backbone/cls/decay"
    }
    theirs = {}
    for group in children(values, "param_groups"):
        rates = (float(values[f"param_groups/{group}/lr"]), float(values[f"param_groups/{group}/wd"]))
        for name in values[f"param_groups/{group}/names"].tolist():
            ours = str(name).replace("projection_head.", "head.mlp.") if "projection_head" in str(name) else f"backbone.vit.{name}"
            theirs[ours.replace("register_tokens", "reg_token")] = rates
    both = sorted(found.keys() & theirs.keys())
    left = (found.keys() ^ theirs.keys()) - {"backbone.vit.mask_token", "backbone.vit.cls_token"}
    yield compare("neco_step", "groups", "parameters not alike", len(left), 0, 0)
    yield compare("neco_step", "groups", "rates and decays", [found[n] for n in both], [theirs[n] for n in both], 1e-12)
    yield compare("neco_step", "schedules", "weight decay", method.param_groups()[0].weight_decay, values["wd_schedule"], 1e-12)
    yield compare("neco_step", "schedules", "momentum", method.momentum, values["momentum_schedule"], 1e-12)


def _step(values: Any, method: Neco, optimizer: torch.optim.Optimizer, at: int, sure: State) -> Rows:
    """One step from the recorded crops, boxes and draws."""
    step, n_global = f"steps/{at}", method.settings.global_crops
    crops = [torch.from_numpy(values[f"{step}/crops/{v}"]) for v in children(values, f"{step}/crops")]
    batch = {"global": torch.stack(crops[:n_global], dim=1), "in_global": torch.from_numpy(values[f"{step}/bboxes/gc"])}
    batch["in_view"] = torch.from_numpy(values[f"{step}/bboxes/all"])
    batch["local"] = torch.stack(crops[n_global:], dim=1) if crops[n_global:] else batch["global"][:, :0]
    set_schedules(optimizer, at)
    for network, kinds, key in ((method.teacher, ("global",), "teacher_emb"), (method.student, ("global", "local"), "student_emb")):
        with torch.no_grad():
            maps = [network.encode(batch[kind]).transpose(0, 1).flatten(0, 1) for kind in kinds if batch[kind].shape[1]]
        found = torch.cat([m.flatten(2).transpose(1, 2).flatten(0, 1) for m in maps])
        yield compare("neco_step", f"step {at}", key, found, values[f"{step}/{key}"], 1e-4)
    if has(values, f"{step}/lrs"):
        rates = [g["lr"] for g in optimizer.param_groups if g["name"] != "backbone/cls/decay"]
        yield compare("neco_step", f"step {at}", "learning rates", rates, values[f"{step}/lrs"], 1e-9)
    optimizer.zero_grad()
    with _recorded_draws(
        [torch.from_numpy(values[f"{step}/randperms_in_order/{i}"]) for i in children(values, f"{step}/randperms_in_order")]
    ):
        loss, _ = method.step(batch, at, torch.Generator())
    yield compare("neco_step", f"step {at}", "loss", loss.item(), values[f"{step}/loss"], 1e-5)
    loss.backward()
    worst = 0.0
    for name, gradient in _our_gradients(_tensors(values, f"{step}/grads/")).items():
        sure_entries(sure, name, gradient)
        own = method.student.get_parameter(name).grad
        found = gradient.new_zeros(gradient.shape) if own is None else own
        worst = max(worst, relative("neco_step", f"step {at}", name, found, gradient, 1e-4, floor=1e-5).difference)
    yield compare("neco_step", f"step {at}", "gradients, largest relative error", worst, 0, 1e-4)
    method.after_backward(at)
    optimizer.step()
    method.after_update(at)
    for network, key in ((method.student, "student_after"), (method.teacher, "teacher_after")):
        expected = _tensors(values, f"{step}/{key}/")
        if expected:
            errors = {n: (network.state_dict()[n] - w).abs() * sure.get(n, torch.ones(())) for n, w in _ours(expected).items()}
            yield compare(
                "neco_step", f"step {at}", f"{key.replace('_', ' ')}, largest error", max(float(e.max()) for e in errors.values()), 0, 1e-5
            )
