"""Create a backbone, or load one from any public layout, strictly."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.models import dinov3
from densewalk.models.architecture import Architecture, Interpolation
from densewalk.models.backbone import Backbone, LoadReport
from densewalk.models.timm_models import named_architecture

# not the backbone's: classifiers, projection heads (NeCo, Leopart, DINOv2, Franca), prototypes (Leopart), embeddings of masked patches
# (DINOv2, iBOT) and decoders (MAE)
HEADS = {"head", "projection_head", "prototypes", "dino_head", "ibot_head", "rasa_head", "mask_token", "masked_embed"}
HEADS |= {f"decoder_{part}" for part in ("embed", "blocks", "norm", "pred", "pos_embed")}


def create(arch: str | Architecture, *, seed: int, drop_path: float = 0.0) -> Backbone:
    """A backbone with random weights; the global random state does not change."""
    architecture = named_architecture(arch) if isinstance(arch, str) else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(architecture, drop_path=drop_path)


def load(
    path: str | Path,
    arch: str | Architecture | None = None,
    *,
    drop_path: float = 0.0,
    key: str | None = None,
    interpolation: Interpolation | None = None,
) -> Backbone:
    """Load a backbone from a file of this project, timm or a family in checkpoints.yaml.

    Args:
        arch: needed unless the file is one of this project's exports, which contain theirs.
        key: for training checkpoints with several networks: a part of the name of the wanted one, e.g. `teacher`.
        interpolation: the rule for positions, if it is neither the architecture's own nor in the file.

    Raises:
        UserError: unreadable file, missing, extra or misshapen keys; the message lists them.
    """
    path = Path(path)
    weights, metadata, report = read_weights(path, key)
    architecture = _file_architecture(path, metadata, arch)
    rule = interpolation or metadata.get("interpolation")
    if rule is not None:
        if rule not in get_args(Interpolation):
            raise UserError(f"{path}: positions by the rule '{rule}'", allowed=", ".join(get_args(Interpolation)))
        architecture = replace(architecture, interpolation=rule)  # type: ignore[arg-type]
    if architecture.rope and not dinov3.is_dinov3(weights):
        raise UserError(f"{path} is none of DINOv3's, whose positions are rotary", todo="take `_rope` off `arch`")
    if dinov3.is_dinov3(weights) and not architecture.rope:
        todo = "set arch: vit_{size}_patch16_reg4_rope"
        raise UserError(f"{path} has the rotary positions of DINOv3, {architecture.name} has none", todo=todo)
    changed = describe_changes(weights) + dinov3.describe_changes(weights)
    if architecture.rope:
        architecture = replace(architecture, periods=dinov3.periods(weights, metadata, architecture.dim // architecture.heads, str(path)))
        weights = dinov3.to_timm(weights, str(path))
    weights = to_timm(weights)
    side = _table_side(weights, architecture)
    if side is not None and side * architecture.patch != architecture.image:
        usual = architecture.image // architecture.patch
        changed.append(f"positions of {side} x {side} patches taken as they are, not {usual} x {usual}")
        architecture = replace(architecture, image=side * architecture.patch)
    resampled = f"positions are resampled to other sizes by the rule `{architecture.interpolation}`"
    changed.append("positions are rotary, for any size" if architecture.rope else resampled)
    backbone = Backbone(architecture, drop_path=drop_path)
    load_strictly(backbone.vit, weights, source=str(path))
    backbone.report = replace(report, taken=len(weights), parameters=sum(w.numel() for w in weights.values()), changed=changed)
    return backbone


def _file_architecture(path: Path, metadata: Mapping[str, str], arch: str | Architecture | None) -> Architecture:
    """The architecture that the file or the caller names; they must not contradict each other."""
    named = metadata.get("arch")
    if isinstance(arch, str) and named is not None and named != named_architecture(arch).name:
        raise UserError(f"{path} holds a {named}, not a {arch}", todo=f"set arch: {named}")
    arch = named if arch is None else arch
    if arch is None:
        raise UserError(f"{path} does not say its architecture", todo="give `arch` for this checkpoint")
    return named_architecture(arch) if isinstance(arch, str) else arch


def _table_side(weights: Mapping[str, Tensor], arch: Architecture) -> int | None:
    """Patches along a side of the file's table of positions; None if there is no square one."""
    table = weights.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    patches = table.shape[1] - (0 if arch.registers else 1)
    return math.isqrt(patches) if patches > 0 and math.isqrt(patches) ** 2 == patches else None


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """`load_state_dict`, or UserError with keys that are missing, left over or misshapen."""
    own = module.state_dict()
    misshapen = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    problems = {
        "missing": own.keys() - weights.keys(),
        "not expected": weights.keys() - own.keys(),
        "wrong shape": [f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in misshapen],
    }
    found = [f"{label}: {_some(sorted(keys))}" for label, keys in problems.items() if keys]
    if found:
        raise UserError(f"{source} does not fit the network; " + "; ".join(found), todo="check `arch` and which file this is")
    module.load_state_dict(weights)


def _some(keys: list[str], most: int = 6) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def read_weights(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str], LoadReport]:
    """Read state dict, metadata and a report of a file's backbone; execute nothing in it."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", todo="download it or correct the path")
    metadata: dict[str, str] = {}
    try:
        if _is_safetensors(path):
            with safe_open(path, "pt") as file:
                metadata.update(file.metadata() or {})
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # torch's message advises to switch the safety off
        why = f"it holds a {foreign[1]}, which is not known to be harmless" if foreign else (str(error) or "it is cut off").splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be read safely: {why}", todo="use a file of tensors only") from error
    weights, report = _one_network(content, path, key)
    return weights, metadata, report


def _is_safetensors(path: Path) -> bool:
    """By name or content (8 bytes of length, then JSON): hand-made downloads have any name."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


# harmless objects in training checkpoints
INERT = (
    "argparse.Namespace",
    "builtins.getattr",  # which mmengine's history needs
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pathlib.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)


class _Inert:
    """Replaces each of them: their own code is neither imported nor run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the content."""


def _one_network(content: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict of one backbone in a checkpoint, without prefixes and projection heads.

    Each `cls_token` belongs to a network, and the part before it is its name: `teacher.backbone` in DINO's and Time-Tuning's files,
    `state_dict.model` in Lightning's (NeCo, Leopart), nothing in a file of weights alone.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    try:
        flat = dinov3.from_transformers(dict(_leaves(content)))
    except UserError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    networks = sorted({k.removesuffix("cls_token") for k in flat if k.split(".")[-1] == "cls_token"})
    chosen = [n for n in networks if key is None or f".{key}." in f".{n}"]
    names = ", ".join(n.removesuffix(".") or "one without a name (leave `key` out)" for n in networks) or "none"
    if key is not None and not chosen:
        raise UserError(f"checkpoint {path} has no network '{key}'", allowed=names)
    if len(chosen) > 1:
        raise UserError(f"checkpoint {path} holds several networks: {names}", todo="say with `key` which one, e.g. the part `teacher`")
    prefix = chosen[0] if chosen else ""
    own = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    weights = {k: v for k, v in own.items() if k.split(".")[0] not in HEADS}
    others = [k for k in flat if not k.startswith(prefix)]
    dropped = Counter(_group(k, networks) for k in others) + Counter(k.split(".")[0] for k in own if k not in weights)
    report = LoadReport(str(path), prefix.removesuffix("."), len(weights), 0, dict(sorted(dropped.items())))
    return weights, report


def _group(key: str, networks: list[str]) -> str:
    """The network of a tensor, or the first two parts of its name."""
    named = [n for n in networks if n and key.startswith(n)]
    return named[0].removesuffix(".") if named else ".".join(key.split(".")[:2])


def _leaves(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries under dotted names; UserError if nested endlessly."""
    if depth > 32:
        raise UserError("dictionaries in dictionaries without an end", todo="use a file of tensors only")
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.", depth + 1)


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
    result = {dinov3.substitute(k, patterns): v for k, v in weights.items() if k != "mask_token"}
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
