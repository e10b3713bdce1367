"""Vision transformers of Hugging Face transformers: a folder's config.json and weights, for our own network. Nothing of transformers runs.

    huggingface/vit, huggingface/vit_mae, huggingface/dinov2, huggingface/dinov2_with_registers, huggingface/clip,
    huggingface/siglip; huggingface/dinov3_vit, whose weights dinov3.py renames

The file is the folder's model.safetensors; config.json says the shape, preprocessor_config.json mean and std of pixels. Names of versions
4 and 5 of transformers are understood. Positions are resampled as the program there does it (`size`), of DINOv2 as Meta does it.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import Architecture, Interpolation
from densewalk.models.interface import LoadReport
from densewalk.models.layouts.dinov3 import substitute
from densewalk.models.layouts.key_names import renamed

DINOV3 = "dinov3_vit"
CLIP_MODELS = ("clip", "clip_vision_model")
SIGLIP_MODELS = ("siglip", "siglip_vision_model")
# `model_type` of config.json -> rule for positions
RULES: dict[str, Interpolation] = {
    "vit": "size",
    "vit_mae": "size",
    "dinov2": "offset",
    "dinov2_with_registers": "antialias",
    **dict.fromkeys((*CLIP_MODELS, *SIGLIP_MODELS), "size"),
}
EPS = dict.fromkeys(("vit", "vit_mae"), 1e-12) | dict.fromkeys(CLIP_MODELS, 1e-5)  # 1e-6 of the others, where config.json leaves it out
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
DROPPED = ("pooler.", "embeddings.mask_token", "embeddings.position_ids")
RENAMED = {
    r"^embeddings\.(cls_token|class_embedding)$": "cls_token",
    r"^embeddings\.position_embeddings?(\.weight)?$": "pos_embed",
    r"^embeddings\.register_tokens$": "register_tokens",
    r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.": "patch_embed.proj.",
    r"^pre_layrnorm\.": "norm_pre.",
    r"^(encoder\.)?layers?\.(\d+)\.": r"blocks.\2.",
    r"\.(layernorm_before|layer_norm1)\.": ".norm1.",
    r"\.(layernorm_after|layer_norm2)\.": ".norm2.",
    r"\.(attention\.attention|attention|self_attn)\.(query|key|value|q_proj|k_proj|v_proj)\.": r".attn.\2.",
    r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"^(blocks\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
    r"\.mlp\.weights_in\.": ".mlp.fc1.",
    r"\.mlp\.weights_out\.": ".mlp.fc2.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"^(layernorm|post_layernorm)\.": "norm.",
    r"^head\.probe$": "attn_pool.latent",
    r"^head\.attention\.out_proj\.": "attn_pool.proj.",
    r"^head\.layernorm\.": "attn_pool.norm.",
    r"^head\.mlp\.": "attn_pool.mlp.",
}


def folder_architecture(name: str, file: Path) -> Architecture:
    """The shape that config.json beside a file of weights gives; name: `huggingface/` and the family."""
    config = _read(file.with_name("config.json"))
    kind = config.get("model_type")
    family = name.removeprefix("huggingface/")
    allowed = {"clip": CLIP_MODELS, "siglip": SIGLIP_MODELS}.get(family, (family,))
    if kind not in allowed:
        raise UserError(
            f"{file.with_name('config.json')}: model_type {kind!r} for {name}", allowed=", ".join(allowed), todo="correct `arch`"
        )
    c = config.get("vision_config", config)
    kind = str(kind)
    if kind == DINOV3:
        return _dinov3_architecture(name, c, file)
    activation = c.get("hidden_act", "quick_gelu" if kind in CLIP_MODELS else "gelu_pytorch_tanh" if kind in SIGLIP_MODELS else "gelu")
    if activation not in ACTIVATIONS or not c.get("qkv_bias", True):
        raise UserError(f"{file.with_name('config.json')}: hidden_act {activation}", allowed=f"{', '.join(ACTIVATIONS)}; qkv_bias true")
    dim, swiglu = int(c["hidden_size"]), bool(c.get("use_swiglu_ffn"))
    hidden = int(dim * c.get("mlp_ratio", 4)) if kind.startswith("dinov2") else int(c["intermediate_size"])
    if swiglu:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return Architecture(
        name,
        dim,
        int(c["num_hidden_layers"]),
        int(c["num_attention_heads"]),
        int(c["patch_size"]),
        image=int(c["image_size"]),
        registers=int(c.get("num_register_tokens", 0)),
        layer_scale=kind.startswith("dinov2"),
        interpolation=RULES[kind],
        swiglu=swiglu,
        statistics=_statistics(file.with_name("preprocessor_config.json")),
        hidden_width=hidden,
        eps=float(c.get("layer_norm_eps", EPS.get(kind, 1e-6))),
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
        pre_norm=kind in CLIP_MODELS,
        class_token=kind not in SIGLIP_MODELS,
    )


def _dinov3_architecture(name: str, c: Mapping[str, Any], file: Path) -> Architecture:
    """The shape of a DINOv3; UserError for what the network here has not."""
    dim, heads, gated = int(c["hidden_size"]), int(c["num_attention_heads"]), bool(c.get("use_gated_mlp"))
    fixed = {"intermediate_size": 4 * dim, "layer_norm_eps": 1e-5, "key_bias": False, "hidden_act": "silu" if gated else "gelu"}
    if other := [f"{key} {c[key]}" for key, value in fixed.items() if c.get(key, value) != value]:
        allowed = ", ".join(f"{key} {value}" for key, value in fixed.items())
        raise UserError(f"{file.with_name('config.json')}: {other[0]}", allowed=allowed)
    usual, theta = 100.0, float((c.get("rope_parameters") or c).get("rope_theta", 100.0))
    exponents = (4 * k / (dim // heads) for k in range(dim // heads // 4))
    return Architecture(
        name,
        dim,
        int(c["num_hidden_layers"]),
        heads,
        int(c["patch_size"]),
        image=int(c["image_size"]),
        registers=int(c.get("num_register_tokens", 0)),
        layer_scale=True,
        swiglu=gated,
        rope=True,
        periods=None if theta == usual else tuple(theta**exponent for exponent in exponents),
        statistics=_statistics(file.with_name("preprocessor_config.json")),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", todo="take the whole folder as it is published") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary")
    return content


def _statistics(path: Path) -> PixelStatistics:
    """Mean and std of pixels."""
    content = _read(path)
    try:
        mean, std = ([float(value) for value in content[name]] for name in ("image_mean", "image_std"))
        return PixelStatistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: image_mean and image_std cannot be read", allowed="three numbers each") from error


def to_timm(flat: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], LoadReport]:
    """The vision transformer of a file under timm's names, and a report; what is left over is an error later."""
    anchor = re.compile(r"(.*?)embeddings\.(patch_embeddings\.projection|patch_embedding)\.weight")
    prefixes = {match[1] for key in flat if (match := anchor.fullmatch(key))}
    if len(prefixes) != 1:
        raise UserError(f"checkpoint {path} has {len(prefixes)} embeddings of patches, not one", todo="check `arch` and which file this is")
    prefix = prefixes.pop()
    inside = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    if not prefix:  # what stands beside a network without a name of its own
        inside = {k: v for k, v in inside.items() if k.split(".")[0] not in ("classifier", "decoder", "text_model", "lm_head")}
    weights = renamed({k: v for k, v in inside.items() if not k.startswith(DROPPED)}, lambda key: substitute(key, RENAMED))
    for key in [k for k in weights if re.fullmatch(r"blocks\.\d+\.attn\.(query|q_proj)\.(weight|bias)", k)]:
        names = [re.sub(r"\.(query|q_proj)\.", f".{new}.", key) for new in (("query", "key", "value") if ".query." in key else QKV)]
        if missing := [name for name in names if name not in weights]:
            raise UserError(f"checkpoint {path}: {missing[0]} is missing", todo="take the whole file")
        weights[re.sub(r"\.(query|q_proj)\.", ".qkv.", key)] = torch.cat([weights.pop(name) for name in names])
    for kind in ("weight", "bias"):
        if (joint := weights.pop(f"head.attention.in_proj_{kind}", None)) is not None:
            query, key_value = joint.split([len(joint) // 3, len(joint) - len(joint) // 3])
            weights |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": key_value}
    for name in ("cls_token", "pos_embed"):
        if name in weights:
            weights[name] = weights[name].reshape(1, -1, weights[name].shape[-1])
    dropped = Counter(k.split(".")[0] for k in flat if not k.startswith(prefix) or k.removeprefix(prefix) not in inside)
    dropped += Counter(k.split(".")[0] for k in inside if k.startswith(DROPPED))
    words = ["Hugging Face's names changed to timm's"]
    return weights, LoadReport(path, prefix.removesuffix("."), len(weights), 0, dict(sorted(dropped.items())), words)


QKV = ("q_proj", "k_proj", "v_proj")
