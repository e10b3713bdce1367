"""Rename the keys of official checkpoints to timm's."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

# change, as reported -> pattern -> replacement
RENAMED = {
    "chunks of blocks renumbered": {r"^blocks\.\d+\.(\d+)\.": r"blocks.\1."},
    "gated MLPs renamed": {r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."},
    "OpenMMLab's names changed to timm's": {
        r"^patch_embed\.projection\.": "patch_embed.proj.",
        r"^layers\.": "blocks.",
        r"\.ln([12])\.": r".norm\1.",
        r"^ln1\.": "norm.",
        r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
        r"\.ffn\.layers\.1\.": ".mlp.fc2.",
        r"\.attn\.attn\.in_proj_": ".attn.qkv.",
        r"\.attn\.attn\.out_proj\.": ".attn.proj.",
    },
}
FOLDED = "CLS's position folded into the CLS token, as timm does where there are registers"


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to timm's keys; timm's own pass through unchanged.

    DINO's, iBOT's, MAE's and MoCo-v3's keys are timm's. DINOv2's are, too, except in training files that number blocks as
    `blocks.<chunk>.<i>`, gated MLPs, and registers: there CLS's own position is folded into the CLS token.
    """
    patterns = {pattern: replacement for pairs in RENAMED.values() for pattern, replacement in pairs.items()}
    result = {substitute(k, patterns): v for k, v in weights.items() if k != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        table = result["pos_embed"]
        if math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1:  # CLS before a square of patches
            result["cls_token"], result["pos_embed"] = result["cls_token"] + table[:, :1], table[:, 1:]
    return result


def describe_changes(weights: Mapping[str, Tensor]) -> list[str]:
    """The changes that `to_timm` makes, in words."""
    found = [change for change, patterns in RENAMED.items() if any(re.search(pattern, k) for pattern in patterns for k in weights)]
    return found + [FOLDED] * ("register_tokens" in weights)


def substitute(key: str, patterns: Mapping[str, str]) -> str:
    """Apply regular expressions (pattern -> replacement) one after the other."""
    for pattern, replacement in patterns.items():
        key = re.sub(pattern, replacement, key)
    return key
