"""Random files in DINOv3's three layouts, and its forward pass written from the architecture alone, in float64."""

import math
import re

import torch
from torch import Tensor

from densewalk.backbone import Architecture


def meta_weights(arch: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """A random file in Meta's layout. Biases of the keys are not zero, but masked; periods are rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    dim, heads, hidden = arch.dim, arch.heads, 4 * arch.dim

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    def linear(name, inside, outside):
        return {f"{name}.weight": random(outside, inside), f"{name}.bias": random(outside)}

    def norm(name):
        return {f"{name}.weight": 1 + random(dim), f"{name}.bias": random(dim)}

    weights = {"cls_token": random(1, 1, dim), "storage_tokens": random(1, arch.registers, dim), "mask_token": random(1, dim)}
    weights |= {"patch_embed.proj.weight": random(dim, 3, arch.patch, arch.patch), "patch_embed.proj.bias": random(dim)}
    count = dim // heads // 4
    weights["rope_embed.periods"] = torch.tensor([100 ** (k / count) for k in range(count)]).bfloat16()
    for b in (f"blocks.{i}" for i in range(arch.depth)):
        weights |= norm(f"{b}.norm1") | linear(f"{b}.attn.qkv", dim, 3 * dim) | linear(f"{b}.attn.proj", dim, dim)
        weights[f"{b}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(dim)
        weights |= {f"{b}.ls1.gamma": random(dim), f"{b}.ls2.gamma": random(dim)} | norm(f"{b}.norm2")
        if arch.swiglu:
            weights |= linear(f"{b}.mlp.w1", dim, hidden) | linear(f"{b}.mlp.w2", dim, hidden) | linear(f"{b}.mlp.w3", hidden, dim)
        else:
            weights |= linear(f"{b}.mlp.fc1", dim, hidden) | linear(f"{b}.mlp.fc2", hidden, dim)
    return weights | norm("norm")


def timm_weights(weights: dict[str, Tensor], *, biased: bool) -> dict[str, Tensor]:
    """The same file as timm publishes it: with biases of queries and values, or without, which is right where they are zero."""
    names = {"storage_tokens": "reg_token", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    names |= {".mlp.w1.": ".mlp.fc1_g.", ".mlp.w2.": ".mlp.fc1_x.", ".mlp.w3.": ".mlp.fc2."}
    found = {}
    for key, value in weights.items():
        if key.endswith(".qkv.bias"):
            query, _, values = value.chunk(3)
            found |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): values} if biased else {}
        elif key not in ("mask_token", "rope_embed.periods") and not key.endswith("bias_mask"):
            for old, new in names.items():
                key = key.replace(old, new)
            found[key] = value
    return found


def transformers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same file as Hugging Face's library has it."""
    embeddings = {"cls_token": "cls_token", "mask_token": "mask_token", "storage_tokens": "register_tokens"}
    mlps = {"fc1": "up_proj", "fc2": "down_proj", "w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"}
    found = {}
    for key, value in weights.items():
        if key in embeddings:
            found[f"embeddings.{embeddings[key]}"] = value[None] if key == "mask_token" else value
        elif key.startswith("patch_embed."):
            found[key.replace("patch_embed.proj", "embeddings.patch_embeddings")] = value
        elif (match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key)) is not None:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                if (letter, match[2]) != ("k", "bias"):
                    found[f"layer.{match[1]}.attention.{letter}_proj.{match[2]}"] = part
        elif not key.startswith("rope_embed") and not key.endswith("bias_mask"):
            key = re.sub(r"^blocks\.", "layer.", key).replace(".attn.proj.", ".attention.o_proj.")
            key = re.sub(r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1", key)
            found[re.sub(r"\.mlp\.(\w+)\.", lambda m: f".mlp.{mlps[m[1]]}.", key)] = value
    return found


def meta_tokens(weights: dict[str, Tensor], images: Tensor, arch: Architecture) -> tuple[list[Tensor], Tensor]:
    """All tokens (CLS, registers, patches) after every block, normalised; and the last block's CLS attention to the patches."""
    w, patch, heads = {k: v.double() for k, v in weights.items()}, arch.patch, arch.heads
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    size = arch.dim // heads

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"] * w.get(f"{name}.bias_mask", 1.0)

    def turned(x):
        """Each pair (d, d + size / 2) of a patch's query or key by its angle: half of the pairs by the row, half by the column."""
        x, y, pairs = x.clone(), x, size // 2
        for n in range(rows * columns):
            place = (2 * (n // columns + 0.5) / rows - 1, 2 * (n % columns + 0.5) / columns - 1)
            t = 1 + arch.registers + n
            for d in range(pairs):
                axis, k = divmod(d, size // 4)
                angle = 2 * math.pi * place[axis] / float(w["rope_embed.periods"][k])
                c, s = math.cos(angle), math.sin(angle)
                x[:, :, t, d] = y[:, :, t, d] * c - y[:, :, t, d + pairs] * s
                x[:, :, t, d + pairs] = y[:, :, t, d + pairs] * c + y[:, :, t, d] * s
        return x

    tokens = [w["cls_token"].expand(len(images), -1, -1), w["storage_tokens"].expand(len(images), -1, -1)]
    for i in range(0, images.shape[2], patch):
        for j in range(0, images.shape[3], patch):
            pixels = images[:, :, i : i + patch, j : j + patch].double().flatten(1)
            tokens.append((pixels @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"])[:, None])
    x, levels = torch.cat(tokens, dim=1), []
    for b in (f"blocks.{i}" for i in range(arch.depth)):
        q, k, v = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").unflatten(2, (3, heads, size)).permute(2, 0, 3, 1, 4)
        attention = (turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(size)).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f"{b}.attn.proj") * w[f"{b}.ls1.gamma"]
        inside = norm(x, f"{b}.norm2")
        if arch.swiglu:
            gate = linear(inside, f"{b}.mlp.w1")
            y = linear(gate / (1 + torch.exp(-gate)) * linear(inside, f"{b}.mlp.w2"), f"{b}.mlp.w3")
        else:
            hidden = linear(inside, f"{b}.mlp.fc1")
            y = linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{b}.mlp.fc2")
        x = x + y * w[f"{b}.ls2.gamma"]
        levels.append(norm(x, "norm"))
    return levels, attention[:, :, 0, 1 + arch.registers :]
