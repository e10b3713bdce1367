"""Rename the keys of official checkpoints to timm's."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from densewalk.models import dinov3

# what -> how its keys become timm's, one substitution after the other
RENAMED = {
    "chunks of blocks renumbered": [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")],
    "gated MLPs renamed": [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")],
    "OpenMMLab's names changed to timm's": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"^ln1\.", "norm."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    ],
}
FOLDED = "CLS's position folded into the CLS token, as timm does where there are registers"


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to timm's keys; timm's own pass through unchanged.

    DINO's, iBOT's, MAE's and MoCo-v3's keys are timm's. DINOv2's are, but for training files that number blocks as
    `blocks.<chunk>.<i>`, gated MLPs, and registers: there CLS's own position is folded into the CLS token.
    """
    substitutions = [pair for pairs in RENAMED.values() for pair in pairs]
    result = {_substitute(k, substitutions): v for k, v in weights.items() if k != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        if _has_cls_position(result["pos_embed"]):
            result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
            result["pos_embed"] = result["pos_embed"][:, 1:]
    return result


def describe_changes(weights: Mapping[str, Tensor]) -> list[str]:
    """In words, what `to_timm` does to them."""
    found = [what for what, pairs in RENAMED.items() if any(re.search(pattern, k) for pattern, _ in pairs for k in weights)]
    return found + dinov3.changes(weights) + ([FOLDED] if "register_tokens" in weights else [])


def _substitute(key: str, substitutions: list[tuple[str, str]]) -> str:
    for pattern, replacement in substitutions:
        key = re.sub(pattern, replacement, key)
    return key


def _has_cls_position(table: Tensor) -> bool:
    """Whether one entry stands before those of a square of patches."""
    return math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1
