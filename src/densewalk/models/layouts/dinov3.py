"""Convert DINOv3's files to timm's keys.

Meta's, timm's (with biases of queries and values or without) and Hugging Face transformers' are understood. Sources: timm.models.eva,
https://github.com/facebookresearch/dinov3 (dinov3/models, dinov3/hub), transformers.models.dinov3_vit.convert_dinov3_vit_to_hf.

    Meta's                                             timm's
    storage_tokens                                     reg_token
    rope_embed.periods                                 not in a file
    blocks.0.attn.qkv.bias, .bias_mask                 blocks.0.attn.q_bias, .v_bias (keys have none: the mask is zero there)
    blocks.0.ls1.gamma                                 blocks.0.gamma_1
    blocks.0.mlp.w1, w2, w3                            blocks.0.mlp.fc1_g, fc1_x, fc2

`from_transformers` comes first: it converts Hugging Face's names to Meta's.
"""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from densewalk.core.errors import UserError

BIASES = (".q_bias", ".v_bias")
ZERO_BIASES = "biases of queries and values, which the file leaves out, are zero"
RENAMED = {
    r"^storage_tokens$": "reg_token",
    r"\.ls([12])\.gamma$": r".gamma_\1",
    r"\.mlp\.w1\.": ".mlp.fc1_g.",
    r"\.mlp\.w2\.": ".mlp.fc1_x.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
TRANSFORMERS = {
    r"^embeddings\.register_tokens$": "storage_tokens",
    r"^embeddings\.patch_embeddings\.": "patch_embed.proj.",
    r"^embeddings\.": "",
    r"^layer\.(\d+)\.": r"blocks.\1.",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
}
GATED = {r"\.mlp\.gate_proj\.": ".mlp.w1.", r"\.mlp\.up_proj\.": ".mlp.w2.", r"\.mlp\.down_proj\.": ".mlp.w3."}
PLAIN = {r"\.mlp\.up_proj\.": ".mlp.fc1.", r"\.mlp\.down_proj\.": ".mlp.fc2."}


def from_transformers(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file; Hugging Face's DINOv3 in Meta's layout."""
    if "layer.0.layer_scale1.lambda1" not in flat or "embeddings.register_tokens" not in flat:
        return dict(flat)
    patterns = TRANSFORMERS | (GATED if "layer.0.mlp.gate_proj.weight" in flat else PLAIN)
    renamed = {substitute(k, patterns): v for k, v in flat.items()}
    for weight in [k for k in renamed if k.endswith(".attention.q_proj.weight")]:
        block = weight.removesuffix(".attention.q_proj.weight")
        for kind in ("weight", "bias"):
            query, key, value = (renamed.pop(f"{block}.attention.{part}_proj.{kind}", None) for part in "qkv")
            if query is not None and value is not None:
                if len({part.shape for part in (query, key, value) if part is not None}) > 1:
                    raise UserError(f"{block}.attention: query, key and value have different shapes ({kind})")
                renamed[f"{block}.attn.qkv.{kind}"] = torch.cat([query, torch.zeros_like(query) if key is None else key, value])
    return renamed


def is_dinov3(weights: Mapping[str, Tensor]) -> bool:
    """True if the network has rotary positions, by Meta's names or timm's."""
    meta = any(k.startswith(("rope_embed.", "storage_tokens")) for k in weights)
    return meta or ("blocks.0.gamma_1" in weights and "pos_embed" not in weights)


def periods(weights: Mapping[str, Tensor], metadata: Mapping[str, str], head_dim: int, source: str) -> tuple[float, ...] | None:
    """The rotary periods in a file; None if they are timm's, 100 ** (4 k / head_dim)."""
    computed = 100.0 ** (2.0 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2))
    found = weights.get("rope_embed.periods")
    if found is None and "periods" in metadata:
        try:
            found = torch.tensor(json.loads(metadata["periods"]))
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{source}: rotary periods {metadata['periods'][:80]!r}", allowed="a list of numbers") from error
    if found is None:
        return None
    found = found.float()
    if found.shape != computed.shape or not (found.isfinite() & (found > 0)).all():
        raise UserError(f"{source}: rotary periods {found.tolist()}", allowed=f"{len(computed)} positive numbers", todo="check `arch`")
    return None if torch.equal(found, computed) else tuple(found.tolist())


def to_timm(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename Meta's keys to timm's; attentions without biases get zeros."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        key = substitute(name, RENAMED)
        if key.endswith(".attn.qkv.bias"):
            # Meta's network multiplies the biases by the mask, which makes those of the keys zero
            query, of_key, of_value = (value * weights[f"{key}_mask"].to(value.dtype) if f"{key}_mask" in weights else value).chunk(3)
            if (of_key != 0).any():
                raise UserError(f"{source}: {key} is not zero for the keys", todo="use a released file of DINOv3")
            renamed |= dict(zip((key.removesuffix(".qkv.bias") + bias for bias in BIASES), (query, of_value), strict=True))
        elif not key.endswith((".attn.qkv.bias_mask", "rope_embed.periods")):
            renamed[key] = value
    attentions = {k.removesuffix(".qkv.weight"): v for k, v in renamed.items() if k.endswith(".attn.qkv.weight")}
    zeros = {f"{name}{bias}": v.new_zeros(len(v) // 3) for name, v in attentions.items() for bias in BIASES}
    return zeros | renamed


def describe_changes(weights: Mapping[str, Tensor]) -> list[str]:
    """The changes that `to_timm` makes, in words."""
    if not is_dinov3(weights):
        return []
    biased = any(k.endswith((".attn.qkv.bias", *BIASES)) for k in weights)
    return ["DINOv3's names changed to timm's"] * ("storage_tokens" in weights) + [ZERO_BIASES] * (not biased)


def substitute(key: str, patterns: Mapping[str, str]) -> str:
    """Apply regular expressions (pattern -> replacement) one after the other."""
    for pattern, replacement in patterns.items():
        key = re.sub(pattern, replacement, key)
    return key
