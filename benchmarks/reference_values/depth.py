"""Reference values of depth by a linear probe: bins, heads, losses, metrics, schedules and steps of training."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, children, compare, elementwise, has, numbered
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.depth.head import DepthHead, at_image, bin_depths, mix_bins, padding, with_cls
from densewalk.evaluations.depth.losses import gradient_loss, sig_loss
from densewalk.evaluations.depth.metrics import box_edges, errors, least_squares
from densewalk.evaluations.depth.schedules import schedules
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.evaluations.depth.train import make_optimizer, step

PATCH = 14  # DINOv2's, without effect on maps whose padding is not cut off
FULL = (38_400.0, 12_800.0, 3e-4)  # steps, warm-up and largest learning rate of DINOv3
SIZES = {"full": (480, 640), "half": (240, 320)}
# the toolbox's names -> ours, in its order; DINOv3 adds the last one
ERRORS = {"a1": "d1", "a2": "d2", "a3": "d3", "abs_rel": "AbsRel", "rmse": "RMSE", "log_10": "log10", "rmse_log": "RMSElog"}
ERRORS |= {"silog": "SILog", "sq_rel": "SqRel", "mae": "MAE"}
UNUSED = {
    "gradlog_released_dinov2": "the release's gradient loss takes differences between images, which is not here",
    "grad_dinov3": "gradients of depth without its logarithm, which no training here has",
    "l1_dinov3": "differences of depth without its logarithm, which no training here has",
}


def settings_of(**changes: Any) -> DepthSettings:
    """Settings of no data set."""
    return DepthSettings(**{"root": ".", "dataset": "recorded", **changes})


def load(head: DepthHead, weight: Tensor, bias: Tensor) -> DepthHead:
    """The head with these weights of its linear layer."""
    head.linear.weight.data.copy_(weight[:, :, None, None])
    assert head.linear.bias is not None
    head.linear.bias.data.copy_(bias)
    return head


def eval_depth(values: Any) -> Rows:
    """Every recorded part of the probe."""
    for name in children(values, "bins"):
        yield from bins(values, f"bins/{name}")
    for name in children(values, "dinov2_head"):
        yield from dinov2_head(values, f"dinov2_head/{name}")
    for case in numbered(values, "dinov3_head"):
        yield from dinov3_head(values, case)
    for name in children(values, "centre_padding"):
        patch, height, width = map(int, name.split("_"))
        case, found = f"centre_padding/{name}", [*padding(height, patch), *padding(width, patch)]
        yield compare("eval_depth", case, "rows and columns of zeros", found, values[case], 0)
    for name in children(values, "loss"):
        yield from losses(values, f"loss/{name}")
    for name, why in UNUSED.items():
        if any(has(values, f"loss/{case}/{name}") for case in children(values, "loss")):
            yield Note("eval_depth", f"loss/*/{name}", why)
    for name in children(values, "mask"):
        if name in SIZES:
            yield compare("eval_depth", f"mask/{name}", "box", box_edges("eigen", *SIZES[name]), values[f"mask/{name}/box"], 0)
        else:
            yield Note("eval_depth", f"mask/{name}", f"an image's size is known of {' and '.join(SIZES)} only")
    for case in numbered(values, "metrics"):
        yield from metrics(values, case)
    for name in children(values, "schedule"):
        if not name.endswith(("_args", "_steps")):
            yield from schedule(values, f"schedule/{name}")


def bins(values: Any, case: str) -> Rows:
    """Depth of scores, by each kind of weights and by bins whose logarithms are evenly spaced."""
    scores = torch.from_numpy(values[f"{case}/logits"])
    low, high = values[f"{case}/range"].tolist()
    settings = settings_of(bins=scores.shape[1], min_depth=low, max_depth=high)
    for kind in ("linear", "softmax", "sigmoid"):
        depth = mix_bins(scores, bin_depths(settings), kind)
        yield elementwise("eval_depth", case, f"depth, {kind}", depth, values[f"{case}/{kind}/out"], 1e-5)
    depth = mix_bins(scores, bin_depths(settings.model_copy(update={"bin_spacing": "log"})), "linear")
    yield elementwise("eval_depth", case, "depth, logarithmic bins", depth, values[f"{case}/log_linear"], 1e-5)


def dinov2_head(values: Any, case: str) -> Rows:
    """DINOv2's head on patches with CLS tokens, its depth at the image, and the mean with the mirrored image's."""
    own = {name: torch.from_numpy(values[f"{case}/{name}"]) for name in ("patches", "cls", "weight", "bias")}
    settings = settings_of(bins=len(own["weight"]), compat="released")
    features = torch.cat([with_cls(*pair) for pair in zip(own["patches"], own["cls"], strict=True)], dim=1)
    with torch.no_grad():
        maps = load(DepthHead(settings, features.shape[1], 0), own["weight"], own["bias"])(features)
    rows, columns = values[f"{case}/at_image"].shape[-2:]
    found = {"upsampled": F.interpolate(features, scale_factor=settings.upsample, mode="bilinear"), "depth": maps}
    found |= {"at_image": at_image(settings, maps, None, (rows, columns), PATCH)}
    found |= {"tta": at_image(settings, maps, maps.flip(-1), (rows, columns), PATCH)}
    for name, ours in found.items():
        yield elementwise("eval_depth", case, name.replace("_", " "), ours, values[f"{case}/{name}"], 1e-5)


@torch.no_grad()
def dinov3_head(values: Any, case: str) -> Rows:
    """DINOv3's head in training, the statistics of its batch normalization after one batch, and its depth with these."""
    x, weight, bias = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("x", "weight", "bias"))
    head = load(DepthHead(settings_of(preset="dinov3", bins=len(weight)), x.shape[1], 0), weight, bias).train()
    found = {"logits_train": head.linear(head.norm(x))}
    found |= {"running_mean": head.norm.running_mean, "running_var": head.norm.running_var}
    found |= {"logits_eval": head.eval().linear(head.norm(x)), "depth_eval": head(x)}
    for name, ours in found.items():
        yield elementwise("eval_depth", case, name.replace("_", " "), ours, values[f"{case}/{name}"], 1e-5)


def losses(values: Any, case: str) -> Rows:
    """SigLoss with and without its variance, the loss on gradients, and the gradients of both."""
    predicted, true = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("pred", "gt"))
    without = sig_loss(predicted, true, variance=False).item()
    for name, loss in (("sig", sig_loss(predicted.requires_grad_(), true, variance=True)), ("gradlog", gradient_loss(predicted, true))):
        (gradient,) = torch.autograd.grad(loss, predicted)
        yield elementwise("eval_depth", case, name, loss.item(), values[f"{case}/{name}"], 1e-5)
        yield elementwise("eval_depth", case, f"gradient of {name}", gradient, values[f"{case}/{name}_grad"], 1e-4, floor=1e-4)
    yield elementwise("eval_depth", case, "sig in the warm-up", without, values[f"{case}/sig_warmup"], 1e-5)
    both = without, sig_loss(predicted, true, variance=True).item()
    yield elementwise("eval_depth", case, "sig in the warm-up and after it", both, values[f"{case}/sig_dinov3"], 1e-5)


def metrics(values: Any, case: str) -> Rows:
    """Errors by the toolbox and by DINOv3, and the scale and shift of least squares, which a constant prediction does not have."""
    predicted, true, mask = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("pred", "gt", "mask"))
    settings = settings_of().resolved()
    assert settings.max_depth is not None
    predicted = predicted.clamp(settings.min_depth, settings.max_depth)
    found = errors(predicted, true, mask)
    for name, order in (("toolbox", list(ERRORS)[:-1]), ("dinov3", values["metrics/names"].tolist())):
        ours = [found[ERRORS[error]] for error in order]
        yield elementwise("eval_depth", case, f"errors, {name}", ours, values[f"{case}/{name}"], 1e-4)
    if len(predicted[mask].unique()) < 2:
        yield Note("eval_depth", f"{case}/least_squares", "a constant prediction has no scale")
    else:
        line = least_squares(predicted, true, mask)
        yield elementwise("eval_depth", case, "scale and shift", line, values[f"{case}/least_squares"], 1e-4)


def schedule(values: Any, case: str) -> Rows:
    """DINOv3's learning rate and beta1, of all steps or of some."""
    total, warmup, peak = values[f"{case}_args"].tolist() if has(values, f"{case}_args") else FULL
    steps = values[f"{case}_steps"] if has(values, f"{case}_steps") else slice(None)
    settings = settings_of(preset="dinov3", compat="released", iterations=int(total), warmup=int(warmup), learning_rate=peak)
    for name, ours, theirs in zip(("learning rate", "beta1"), schedules(settings.resolved()), values[case].T, strict=True):
        yield elementwise("eval_depth", case, name, ours[steps], theirs, 1e-6, floor=1e-3)


# -- steps of training -------------------------------------------------------------------------------------------------


def eval_depth_train(values: Any) -> Rows:
    """Every recorded training, on the same features and depths."""
    for key in values.files:
        if key.endswith("/weight0"):
            yield from training(values, key.removesuffix("/weight0"))


def training(values: Any, case: str) -> Rows:
    """Loss, norm of the gradient, rates, weights and running statistics of each step."""
    settings = training_settings(values, case)
    weight, bias = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("weight0", "bias0"))
    head = load(DepthHead(settings, weight.shape[1], 0), weight, bias)
    optimizer, recorded = make_optimizer(settings, head.train()), values[f"{case}/loss_norm_lr_beta1"]
    if has(values, f"{case}/settings"):
        rates = [rate[: len(recorded)] for rate in schedules(settings)]
        for name, ours, theirs in zip(("learning rate", "beta1"), rates, recorded[:, 2:].T, strict=True):
            yield elementwise("eval_depth_train", case, name, ours, theirs, 1e-6, floor=1e-3)
    found: dict[str, list[Any]] = {"loss_norm": [], "weights": [], "batch_norm": []}
    for at, (_, _, rate, beta1) in enumerate(recorded.tolist()):
        features, true = torch.from_numpy(values["patches"][at]), torch.from_numpy(values["gt"][at])
        if settings.cls_token:
            features = with_cls(features, torch.from_numpy(values["cls"][at]))
        found["loss_norm"].append(step(settings, head, optimizer, features, true, PATCH, at, (rate, beta1)))
        found["weights"].append(head.linear.weight.detach()[:, :, 0, 0].clone())
        if settings.batch_norm:
            norm = head.norm
            found["batch_norm"].append(torch.stack([norm.weight, norm.bias, norm.running_mean, norm.running_var]).detach())
    for name, ours, theirs in zip(("loss", "norm of the gradient"), zip(*found["loss_norm"], strict=True), recorded.T[:2], strict=True):
        yield elementwise("eval_depth_train", case, name, ours, theirs, 1e-5)
    for name in ("weights", "batch_norm") if settings.batch_norm else ("weights",):
        yield compare("eval_depth_train", case, name.replace("_", " "), torch.stack(found[name]), values[f"{case}/{name}"], 1e-5)
    assert head.linear.bias is not None
    yield compare("eval_depth_train", case, "last bias", head.linear.bias.detach(), values[f"{case}/bias"], 1e-5)


def training_settings(values: Any, case: str) -> DepthSettings:
    """As recorded; where nothing is, DINOv2's with a warm-up of the loss of two steps. The images of a batch have one loss together."""
    images = values["gt"].shape[1]
    changes = {"compat": "released", "bins": len(values[f"{case}/weight0"]), "batch_size": images, "loss_group": images}
    changes |= {"iterations": len(values["gt"]), "warmup": 0, "loss_warmup": 2, "learning_rate": 1e-3}
    if values[f"{case}/weight0"].shape[1] == values["patches"].shape[2]:  # without a CLS token behind each patch
        changes["preset"] = "dinov3"
    if has(values, f"{case}/settings"):
        peak, beta2, decay, norm, total, warmup, loss_warmup = values[f"{case}/settings"].tolist()
        changes |= {"learning_rate": peak, "beta2": beta2, "weight_decay": decay, "max_norm": norm, "iterations": int(total)}
        changes |= {"warmup": int(warmup), "loss_warmup": int(loss_warmup)}
    return settings_of(**changes).resolved()
