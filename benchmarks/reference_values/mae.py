"""Reference values of MAE: the release's loss and gradients with and without normalized pixels, its schedule, positions and patches."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.networks import architecture
from benchmarks.reference_values.rows import cases, compare, relative

from densewalk.methods.mae.method import Mae
from densewalk.methods.mae.network import patchify, take
from densewalk.methods.mae.settings import MaeSettings
from densewalk.models.backbone import Backbone
from densewalk.ops.positions import sincos_positions
from densewalk.training.schedules import per_step

PARTS = {"embed": "decoder_embed", "blocks": "decoder_blocks", "norm": "decoder_norm", "predict": "decoder_pred"}


def mae_step(values: Any) -> Rows:
    """Every recorded batch, and the parts alone."""
    for case in cases(values, having="noise"):
        yield from _batch(values, case)
    if "lr_schedule/lr" in values.files:
        rates = values["lr_schedule/lr"]
        peak, end, warmup, epochs = (float(values[f"lr_schedule/{k}"]) for k in ("peak", "min_lr", "warmup_epochs", "epochs"))
        ours = per_step(peak, end, len(rates), warmup=warmup * len(rates) / epochs)
        yield compare("mae_step", "lr_schedule", "learning rate", ours, rates, 1e-12)
    for case in [key for key in values.files if key.startswith("sincos/")]:
        dim, side = (int(part) for part in case.removeprefix("sincos/").split("x"))
        yield compare("mae_step", case, "positions", sincos_positions(dim, (side, side)), values[case][1:], 1e-6)
    if "patchify/images" in values.files:
        patches = values["patchify/patches"]
        ours = patchify(torch.from_numpy(values["patchify/images"]), int(np.sqrt(patches.shape[2] // 3)))
        yield compare("mae_step", "patchify", "pixels", ours, patches, 0)


def method_of(values: Any, case: str) -> Mae:
    """The method with the recorded weights."""
    weights = {k.split("/")[2]: torch.from_numpy(values[k]) for k in values.files if k.startswith(f"{case}/weights/")}
    config = {k.removeprefix("config/"): values[k].item() for k in values.files if k.startswith("config/")}
    encoder = {k: w for k, w in weights.items() if not k.startswith("decoder_") and k != "mask_token"}
    hidden = int(config["mlp_ratio"])
    arch = architecture(encoder, int(config["heads"]), hidden=hidden * int(config["dim"]))
    settings = MaeSettings(
        steps=10,
        size=int(config["image"]),
        mask_ratio=float(config["mask_ratio"]),
        norm_pix_loss=case.startswith("norm"),
        decoder_dim=int(config["decoder_dim"]),
        decoder_depth=int(config["decoder_depth"]),
        decoder_heads=int(config["decoder_heads"]),
        warmup_epochs=0,
    )
    with HiddenWidth(settings, hidden):
        method = Mae(settings, Backbone(arch), 10, 10, seed=0)
    method.backbone.vit.load_state_dict(encoder)
    theirs = {**{f"{theirs}.": f"{ours}." for ours, theirs in PARTS.items()}, "mask_token": "mask_token"}
    own = {}
    for name, weight in weights.items():
        prefix = next((t for t in theirs if name.startswith(t)), None)
        if prefix is not None and name != "decoder_pos_embed":
            own[name.replace(prefix, theirs[prefix], 1)] = weight
    method.decoder.load_state_dict(own)
    return method


class HiddenWidth:
    """A decoder whose MLPs have another width than usual, inside a `with` block."""

    def __init__(self, settings: MaeSettings, ratio: int) -> None:
        self.kind, self.usual, self.ratio = type(settings), type(settings).decoder, ratio

    def __enter__(self) -> None:
        from dataclasses import replace

        usual, ratio = self.usual, self.ratio

        def decoder(self: MaeSettings, patch: int) -> Any:
            arch = usual(self, patch)
            return replace(arch, hidden_width=ratio * arch.dim)

        self.kind.decoder = decoder  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.kind.decoder = self.usual  # type: ignore[method-assign]


def _batch(values: Any, case: str) -> Rows:
    """Mask, latent, prediction, loss and gradients."""
    method = method_of(values, case)
    images, noise = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("images", "noise"))
    order = noise.argsort(dim=1)
    kept = method.settings.visible(method.patches)
    mask = torch.ones_like(noise).scatter(1, order[:, :kept], 0.0)
    yield compare("mae_step", case, "mask", mask, values[f"{case}/mask"], 0)
    latent = method.encode(images, order)
    yield compare("mae_step", case, "latent", latent.detach(), values[f"{case}/latent"], 1e-5)
    decoder = method.decoder
    predicted = decoder.predict(decoder.norm(decoder.run(latent, order)[:, 1:])).detach()
    yield compare("mae_step", case, "prediction", predicted, values[f"{case}/pred"], 1e-5)
    removed = take(predicted, order[:, kept:])
    yield compare("mae_step", case, "prediction of removed patches", decoder(latent, order).detach(), removed, 1e-5)
    loss, _ = method.step({"images": images, "order": order}, 0, torch.Generator())
    yield compare("mae_step", case, "loss", loss.item(), values[f"{case}/loss"], 1e-5)
    loss.backward()
    gradients = {n.removeprefix("backbone.vit."): p.grad for n, p in method.named_parameters() if p.grad is not None}
    gradients = {_released(n): g for n, g in gradients.items()}
    recorded = {k.removeprefix(f"{case}/grad/"): values[k] for k in values.files if k.startswith(f"{case}/grad/")}
    yield compare("mae_step", case, "gradients: parameters not alike", len(gradients.keys() ^ recorded.keys()), 0, 0)
    worst = max(relative("mae_step", case, n, gradients[n], g, 1e-4, floor=1e-6).difference for n, g in recorded.items())
    yield compare("mae_step", case, "gradients, largest relative error", worst, 0, 1e-4)


def _released(name: str) -> str:
    own = name.removeprefix("decoder.")
    if own == name or own == "mask_token":
        return own
    first, _, rest = own.partition(".")
    return f"{PARTS[first]}.{rest}"
