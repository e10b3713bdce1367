"""Rename the keys of public state dicts to timm's; two keys that would become one are refused."""

import math
import re
from collections.abc import Callable, Mapping

from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.models.layouts import dinov3

# parts of a name that wrappers add: torch.compile, FSDP, activation checkpointing, DeepSpeed. `module` (DataParallel) is one only
# inside a network: a checkpoint may call a whole network so.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
WITHOUT_WRAPPERS = "the names that wrappers had added (torch.compile, FSDP, DataParallel, activation checkpointing) taken off"

# not the backbone's: classifiers, projection heads (NeCo, Leopart, DINOv2, Franca), prototypes (Leopart), embeddings of masked patches
# (DINOv2, iBOT) and decoders (MAE)
HEADS = {"head", "projection_head", "prototypes", "dino_head", "ibot_head", "rasa_head", "mask_token", "masked_embed"}
HEADS |= {f"decoder_{part}" for part in ("embed", "blocks", "norm", "pred", "pos_embed")}

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


def renamed(weights: Mapping[str, Tensor], name: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors under new names; UserError if two of them would get the same."""
    result: dict[str, Tensor] = {}
    before: dict[str, str] = {}
    for key, value in weights.items():
        new = name(key)
        if new in result:
            raise UserError(f"the keys {before[new]} and {key} both become {new}", todo="leave one of them out of the file")
        result[new], before[new] = value, key
    return result


def without_wrappers(weights: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The tensors without these parts in their names, at any place."""
    return renamed(weights, lambda key: ".".join(part for part in key.split(".") if part not in names))


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to timm's keys; timm's own pass through unchanged.

    DINO's, iBOT's, MAE's and MoCo-v3's keys are timm's. DINOv2's are, too, except in training files that number blocks as
    `blocks.<chunk>.<i>`, gated MLPs, and registers: there CLS's own position is folded into the CLS token.
    """
    patterns = {pattern: replacement for pairs in RENAMED.values() for pattern, replacement in pairs.items()}
    result = renamed({k: v for k, v in weights.items() if k != "mask_token"}, lambda key: dinov3.substitute(key, patterns))
    if "register_tokens" in result:
        result = renamed(result, lambda key: "reg_token" if key == "register_tokens" else key)
        table, cls = result.get("pos_embed"), result.get("cls_token")
        if table is not None and cls is not None and is_square(table.shape[1] - 1):  # CLS before a square of patches
            result["cls_token"], result["pos_embed"] = cls + table[:, :1], table[:, 1:]
    return result


def is_square(number: int) -> bool:
    """True for 1, 4, 9, ..."""
    return number > 0 and math.isqrt(number) ** 2 == number


def describe_changes(weights: Mapping[str, Tensor]) -> list[str]:
    """The changes that `to_timm` makes, in words."""
    found = [change for change, patterns in RENAMED.items() if any(re.search(pattern, k) for pattern in patterns for k in weights)]
    return found + [FOLDED] * ("register_tokens" in weights)
