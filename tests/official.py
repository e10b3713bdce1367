"""Random files in the layouts of DINO, DINOv2 and Franca, and their forward pass written from the architecture alone, in float64."""

import math

import torch
from torch import Tensor

from densewalk.backbone import Architecture, create


def official_weights(arch: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """A random file in the official layout: `register_tokens`, `mask_token`, positions with CLS."""
    generator = torch.Generator().manual_seed(seed)
    weights = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in create(arch, seed=0).vit.state_dict().items()}
    if arch.registers:
        weights["register_tokens"] = weights.pop("reg_token")
        weights["pos_embed"] = torch.randn(1, 1 + (arch.image // arch.patch) ** 2, arch.dim, generator=generator) * 0.2
    if arch.swiglu:
        weights = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in weights.items()}
    if arch.layer_scale:
        weights["mask_token"] = torch.zeros(1, arch.dim)
    return weights


def official_maps(weights: dict[str, Tensor], images: Tensor, arch: Architecture, *, antialias: bool, norm: bool) -> list[Tensor]:
    """The patch maps of all blocks at any multiple of the patch; `antialias`: DINOv2's rule for the models with registers."""
    rows, columns = (side // arch.patch for side in images.shape[-2:])
    side = arch.image // arch.patch
    table = weights["pos_embed"].double()
    grid = table[0, 1:].reshape(side, side, arch.dim)
    along_rows, along_columns = (resampling(side, size, antialias=antialias) for size in (rows, columns))
    grid = torch.einsum("ij,kl,jld->ikd", along_rows, along_columns, grid)
    resampled = {**weights, "pos_embed": torch.cat([table[:, :1], grid.reshape(1, -1, arch.dim)], dim=1)}
    first = 1 + arch.registers
    tokens = official_tokens(resampled, images, arch, norm_all=norm)
    return [t[:, first:].transpose(1, 2).reshape(1, arch.dim, rows, columns) for t in tokens]


def official_tokens(weights: dict[str, Tensor], images: Tensor, arch: Architecture, *, norm_all: bool | None = None) -> list[Tensor]:
    """All tokens after every block; by default the last ones are normalised, otherwise all or none."""
    w = {k: v.double() for k, v in weights.items()}
    patch = arch.patch

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tokens = []
    for i in range(0, images.shape[2], patch):
        for j in range(0, images.shape[3], patch):
            pixels = images[:, :, i : i + patch, j : j + patch].double().flatten(1)
            tokens.append(pixels @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"])
    x = torch.stack(tokens, dim=1)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    depth, levels = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks.")), []
    for b in range(depth):
        qkv = linear(norm(x, f"blocks.{b}.norm1"), f"blocks.{b}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, arch.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        y = linear((attention @ v).transpose(1, 2).flatten(2), f"blocks.{b}.attn.proj")
        x = x + y * w.get(f"blocks.{b}.ls1.gamma", 1.0)
        if f"blocks.{b}.mlp.w12.weight" in w:
            gate, value = linear(norm(x, f"blocks.{b}.norm2"), f"blocks.{b}.mlp.w12").chunk(2, dim=-1)
            y = linear(gate / (1 + torch.exp(-gate)) * value, f"blocks.{b}.mlp.w3")
        else:
            hidden = linear(norm(x, f"blocks.{b}.norm2"), f"blocks.{b}.mlp.fc1")
            y = linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"blocks.{b}.mlp.fc2")
        x = x + y * w.get(f"blocks.{b}.ls2.gamma", 1.0)
        normalised = norm_all if norm_all is not None else b == depth - 1
        levels.append(norm(x, "norm") if normalised else x)
    return levels


def cubic(t: float, a: float) -> float:
    """The cubic convolution kernel (Keys 1981)."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resampling(old: int, new: int, *, antialias: bool) -> Tensor:
    """Weights [new, old] of one axis.

    DINO and DINOv2: bicubic (a = -0.75) by the scale (new + 0.1) / old, the border repeated. DINOv2 with registers: bicubic
    (a = -0.5) by new / old, the kernel stretched when it shrinks, normalised within the border.
    """
    weights = torch.zeros(new, old, dtype=torch.float64)
    if new == old:
        return torch.eye(old, dtype=torch.float64)
    for i in range(new):
        if antialias:
            step = old / new
            stretch, centre = max(step, 1.0), (i + 0.5) * step
            row = torch.tensor([cubic((j + 0.5 - centre) / stretch, -0.5) for j in range(old)], dtype=torch.float64)
            weights[i] = row / row.sum()
        else:
            position = (i + 0.5) * old / (new + 0.1) - 0.5
            for j in range(math.floor(position) - 1, math.floor(position) + 3):
                weights[i, min(max(j, 0), old - 1)] += cubic(position - j, -0.75)
    return weights
