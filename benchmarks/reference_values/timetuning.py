"""Reference values of Time-Tuning: whole steps of the release, with or without teacher and queue, and the inner algorithms alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.networks import architecture, choose_heads, sure_entries
from benchmarks.reference_values.rows import cases, children, compare, has, optional, relative
from torch import Tensor

from densewalk.methods.timetuning.method import TimeTuning
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.backbone import Backbone
from densewalk.models.loading import to_timm
from densewalk.ops.label_propagation import Rule, follow
from densewalk.ops.sinkhorn import sinkhorn
from densewalk.training.optimizer import make_optimizer

State = dict[str, Tensor]
DECAY = (0.04, 0.4)  # of the release, from start to end
MOMENTUM = 0.995


def timetuning_sinkhorn(values: Any) -> Rows:
    """Sinkhorn alone."""
    for case in cases(values, having="q"):
        epsilon, iterations = float(values[f"{case}/eps"]), int(values[f"{case}/iters"])
        ours = sinkhorn(torch.from_numpy(values[f"{case}/scores"]), epsilon=epsilon, iterations=iterations)
        yield compare("timetuning_sinkhorn", case, "shares", ours, values[f"{case}/q"], 1e-6)


def timetuning_propagation(values: Any) -> Rows:
    """The propagation alone."""
    for case in cases(values, having="q"):
        theirs = torch.from_numpy(values[f"{case}/propagated"])
        radius, top_k, context = (int(values[f"{case}/{n}"]) for n in ("size_mask_neighborhood", "topk", "n_last_frames"))
        rule = Rule((theirs.shape[-2], theirs.shape[-1]), radius, top_k, context)
        frames = torch.from_numpy(values[f"{case}/features"])[:, None]
        ours = torch.cat(list(follow(frames, torch.from_numpy(values[f"{case}/q"]).T[None], rule)))
        yield compare("timetuning_propagation", case, "soft labels", ours, theirs.flatten(2), 1e-6)
        yield compare("timetuning_propagation", case, "labels", ours.argmax(1), theirs.flatten(2).argmax(1), 0)


def timetuning_step(values: Any) -> Rows:
    """Every recorded training: its groups, and each step's assignment, loss, gradients and networks."""
    for case in cases(values, having="model0/prototypes"):
        method = _method(values, case)
        _load(method, values, f"{case}/model0/")
        yield from _groups(values, case, method)
        yield from _steps(values, case, method)


def _method(values: Any, case: str) -> TimeTuning:
    """The method with the sizes, rates, teacher and queue that the recorded tensors have."""
    weights = {k.removeprefix(f"{case}/model0/"): torch.from_numpy(values[k]) for k in values.files if k.startswith(f"{case}/model0/")}
    backbone = _part(weights, "feature_extractor.backbone.")
    head = [w for k, w in sorted(_part(weights, "feature_extractor.head.").items()) if k.endswith("weight")]
    clip = values[f"{case}/steps/0/clip"]
    rates = {group: float(values[f"{case}/param_groups/{group}/lr"]) for group in children(values, f"{case}/param_groups")}
    names = {group: [str(n) for n in values[f"{case}/param_groups/{group}/names"]] for group in rates}
    slow = next(rates[g] for g in rates if any(".backbone." in name for name in names[g]))
    blocks = {int(n.split("blocks.")[1].split(".")[0]) for g in rates for n in names[g] if "blocks." in n}
    settings = TimeTuningSettings(
        compat="released",
        batch_size=len(clip),
        steps=100,
        frames=clip.shape[1],
        size=clip.shape[-1],
        trainable_blocks=len(blocks),
        head_widths=[len(w) for w in head],
        prototypes=len(weights["prototypes"]),
        teacher=any(k.startswith("teacher.") for k in weights) and has(values, f"{case}/steps/0/momentum"),
        queue=_queue(values, case, clip),
        lr=max(rates.values()),
        backbone_lr=slow,
    )
    recorded = torch.from_numpy(values[f"{case}/steps/0/backbone_features"])

    def error(heads: int) -> float:
        network = Backbone(architecture(backbone, heads))
        network.vit.load_state_dict(to_timm(backbone))
        with torch.no_grad():
            return float((network.tokens(torch.from_numpy(clip[:1, 0])).patches[0] - recorded[0]).abs().max())

    arch = architecture(backbone, optional(values, (f"{case}/heads", "heads"), 0) or choose_heads(backbone, error))
    return TimeTuning(settings, Backbone(arch), 100, 100, seed=0)


def _queue(values: Any, case: str, clip: Any) -> int:
    """The queue's length: what the file says, or how many rows more than the batch's some assignment has."""
    said = next((k for k in values.files if k.startswith(f"{case}/") and k.endswith(("queue_length", "queue_size"))), None)
    if said:
        return int(values[said])
    patches = values[f"{case}/steps/0/backbone_features"].shape[1]
    rows = [len(values[k]) - len(clip) * patches for k in values.files if k.startswith(f"{case}/steps/") and k.endswith("/scores")]
    longest = max(rows, default=0)
    held = next((values[k] for k in values.files if k == f"{case}/model0/queue"), None)
    return len(held) if held is not None else max(0, longest)


def _part(weights: State, prefix: str) -> State:
    return {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}


def _ours(weights: State) -> tuple[State, State]:
    """The release's networks in our names: (student, teacher); the latter is empty without one."""
    networks = []
    for part, prototypes in (("feature_extractor.", "prototypes"), ("teacher.", "teacher_prototypes")):
        found = {f"backbone.vit.{k}": w for k, w in to_timm(_part(weights, f"{part}backbone.")).items()}
        found |= {f"head.mlp.{k}": w for k, w in _part(weights, f"{part}head.").items()}
        networks.append({**found, "prototypes": weights[prototypes]} if found else {})
    return networks[0], networks[1]


def _load(method: TimeTuning, values: Any, prefix: str) -> None:
    weights = {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
    student, teacher = _ours(weights)
    method.student.load_state_dict(student)
    if method.teacher is not None:
        method.teacher.load_state_dict(teacher)


def _groups(values: Any, case: str, method: TimeTuning) -> Rows:
    """First values of the groups, and the recorded values after the first step.

    The release records them when its schedulers have moved on: learning rates at 1 of as many steps as the training has, weight
    decay and momentum at 1 of tables that are longer, since its own end one short (an IndexError in the last step).
    """
    groups = {g.name: g for g in method.param_groups()}
    listing = ["prototypes/decay", "prototypes/no_decay", "head/decay", "head/no_decay", "backbone/decay", "backbone/no_decay"]
    names = {id(p): n for n, p in method.student.named_parameters()}
    for i, name in enumerate(listing):
        theirs = {str(n) for n in values[f"{case}/param_groups/{i}/names"]}
        ours = {names[id(p)].replace("backbone.vit.", "backbone.").replace("head.mlp.", "head.") for p in groups[name].params}
        ours = {n if n == "prototypes" else f"feature_extractor.{n}" for n in ours}
        yield compare("timetuning_step", case, f"parameters not alike, {name}", len(ours ^ theirs), 0, 0)
        found = [groups[name].lr[0], groups[name].weight_decay[0]]
        yield compare(
            "timetuning_step",
            case,
            f"rate and decay, {name}",
            found,
            [float(values[f"{case}/param_groups/{i}/{k}"]) for k in ("lr", "wd")],
            1e-12,
        )
    if has(values, f"{case}/steps/0/lr"):
        rates = np.array([float(values[f"{case}/param_groups/{i}/lr"]) for i in range(6)])
        after = values[f"{case}/steps/0/lr"] / rates
        yield _on_a_cosine("timetuning_step", case, "learning rate after step 0, of the first", after, (1.0, 0.0))
    if has(values, f"{case}/steps/0/wd"):
        yield _on_a_cosine("timetuning_step", case, "weight decay after step 0", values[f"{case}/steps/0/wd"][::2], DECAY)
    if method.teacher is not None and has(values, f"{case}/steps/0/momentum"):
        yield _on_a_cosine("timetuning_step", case, "momentum after step 0", values[f"{case}/steps/0/momentum"], (MOMENTUM, 1.0))


def _on_a_cosine(file: str, case: str, quantity: str, theirs: Any, ends: tuple[float, float]) -> Any:
    """The value at 1 of a cosine over whole steps: the number of steps, which files do not say, is the one that fits best."""
    theirs = np.atleast_1d(np.asarray(theirs, dtype=np.float64))
    found = {n: ends[1] + (ends[0] - ends[1]) * (1 + np.cos(np.pi / n)) / 2 for n in range(1, 100_000)}
    steps = min(found, key=lambda n: abs(found[n] - theirs[0]))
    return compare(file, case, f"{quantity} (cosine of {steps} steps)", np.full(theirs.shape, found[steps]), theirs, 1e-6)


def _steps(values: Any, case: str, method: TimeTuning) -> Rows:
    optimizer = make_optimizer(method)
    groups = {group["name"]: group for group in optimizer.param_groups}
    sure: dict[str, Tensor] = {}
    listing = ["prototypes/decay", "prototypes/no_decay", "head/decay", "head/no_decay", "backbone/decay", "backbone/no_decay"]
    for at in (int(n) for n in children(values, f"{case}/steps")):
        step = f"{case}/steps/{at}"
        before = f"{case}/steps/{at - 1}"
        for i, name in enumerate(listing):
            if name in groups:  # rates in force are those that were recorded after the step before
                lr, decay = (
                    float(values[f"{before}/{k}"][i]) if at else float(values[f"{case}/param_groups/{i}/{k}"]) for k in ("lr", "wd")
                )
                groups[name].update(lr=lr, weight_decay=decay)
        clip = torch.from_numpy(values[f"{step}/clip"])
        yield from _inner(values, case, at, method, clip)
        optimizer.zero_grad()
        with _recorded_draws(values, step):
            loss, _ = method.step(clip, at, torch.Generator().manual_seed(0))
        yield compare("timetuning_step", case, f"loss of step {at}", loss.item(), values[f"{step}/loss"], 1e-5)
        loss.backward()
        yield from _gradients(values, case, at, method, sure)
        optimizer.step()
        if method.teacher is not None:
            method.momentum = [float(values[f"{step}/momentum"])] * len(method.momentum)
        method.after_update(0)
        yield from _networks(values, case, at, method, sure)


@contextmanager
def _recorded_draws(values: Any, step: str) -> Iterator[None]:
    """The recorded permutations, in order, in place of those that the method would draw; they may be cut to what was used."""
    keys = [f"{step}/randperms/{i}" for i in children(values, f"{step}/randperms")]
    together = np.atleast_2d(values[f"{step}/randperms"]) if has(values, f"{step}/randperms") else []
    recorded = [*(values[key] for key in keys), *together]
    draw = torch.randperm

    def permutation(count: int, **options: Any) -> Tensor:
        if not recorded:
            return draw(count, **options)
        if len(recorded[0]) > count:
            raise ValueError(f"{step}: the next recorded permutation is one of {len(recorded[0])}, but {count} patches are drawn from")
        return torch.from_numpy(recorded.pop(0))

    with mock.patch.object(torch, "randperm", permutation):
        yield


@torch.no_grad()
def _inner(values: Any, case: str, at: int, method: TimeTuning, clip: Tensor) -> Rows:
    """Features and assignments of a step: an assignment of the batch alone, or of the batch and the queue in either order."""
    step = f"{case}/steps/{at}"
    trunk = method.student.encode_trunk(clip)
    features = method.student.encode(trunk)
    if has(values, f"{step}/backbone_features"):
        yield compare("timetuning_step", case, f"features of step {at}", features.flatten(0, 1), values[f"{step}/backbone_features"], 1e-4)
    for i in children(values, f"{step}/sinkhorn"):
        scores = torch.from_numpy(values[f"{step}/sinkhorn/{i}/scores"])
        ours = method.sinkhorn_shares(scores, across_processes=False)
        theirs = values[f"{step}/sinkhorn/{i}/q"]
        if len(theirs) < len(ours):  # the batch's rows alone, before or behind the queue's
            ours = min((ours[: len(theirs)], ours[-len(theirs) :]), key=lambda x: float((x - torch.from_numpy(theirs)).abs().max()))
        yield compare("timetuning_step", case, f"Sinkhorn {i} of step {at}", ours, theirs, 1e-6)


def _gradients(values: Any, case: str, at: int, method: TimeTuning, sure: dict[str, Tensor]) -> Rows:
    prefix = f"{case}/steps/{at}/grads/"
    recorded = {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
    own = {n: p.grad for n, p in method.student.named_parameters() if p.grad is not None}
    worst = 0.0
    theirs = {}
    for name, gradient in recorded.items():
        ours = name if name == "prototypes" else name.removeprefix("feature_extractor.")
        ours = ours.replace("backbone.", "backbone.vit.", 1).replace("head.", "head.mlp.", 1) if ours != "prototypes" else ours
        theirs[ours] = gradient
        sure_entries(sure, ours, gradient)
        error = relative("timetuning_step", case, name, own[ours], gradient, 1e-4, floor=1e-6).difference
        worst = max(worst, error)
    yield compare("timetuning_step", case, f"gradients of step {at}: parameters not alike", len(theirs.keys() ^ own.keys()), 0, 0)
    yield compare("timetuning_step", case, f"gradients of step {at}, largest relative error", worst, 0, 1e-4)


def _networks(values: Any, case: str, at: int, method: TimeTuning, sure: dict[str, Tensor]) -> Rows:
    """Weights after the step, but for entries whose gradient was nothing but rounding."""
    prefix = f"{case}/steps/{at}/model_after/"
    weights = {k.removeprefix(prefix): torch.from_numpy(values[k]) for k in values.files if k.startswith(prefix)}
    if not weights:
        return
    for network, expected, kind in zip((method.student, method.teacher), _ours(weights), ("student", "teacher"), strict=True):
        if network is None or not expected:
            continue
        errors = []
        for name, weight in network.state_dict().items():
            error = (weight - expected[name]).abs()
            errors.append(float((error * sure[name] if name in sure else error).max()))
        yield compare("timetuning_step", case, f"{kind} after step {at}, largest error", max(errors), 0, 1e-5)
