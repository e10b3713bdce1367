"""Create a backbone, or load one from any public layout, strictly."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import HUGGING_FACE, Architecture, Interpolation, Shape
from densewalk.models.backbone import Backbone
from densewalk.models.families.motion import PREFIX, read_decoder
from densewalk.models.families.own_code import OWN
from densewalk.models.families.own_network import build_own, load_own
from densewalk.models.families.position_removal import read_removal
from densewalk.models.families.stages import StageNetwork, StageShape
from densewalk.models.interface import LoadReport, Network
from densewalk.models.layouts import dinov3, huggingface
from densewalk.models.layouts.content import flat_content, read_content, require_numbers, require_same_keys, some_of
from densewalk.models.layouts.key_names import HEADS, WITHOUT_WRAPPERS, WRAPPERS, describe_changes, is_square, to_timm, without_wrappers
from densewalk.models.layouts.stages import one_stage_network
from densewalk.models.timm_models import build_network, named_shape


def create(arch: str | Shape, *, seed: int, drop_path: float = 0.0) -> Network:
    """A `Network` with random weights (a `Backbone` for a vision transformer); the global random state does not change."""
    if isinstance(arch, str) and arch.startswith(OWN):
        return build_own(arch, seed=seed)
    shape = named_shape(arch) if isinstance(arch, str) else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(shape, drop_path=drop_path)


def load(
    path: str | Path,
    arch: str | Shape | None = None,
    *,
    drop_path: float = 0.0,
    key: str | None = None,
    interpolation: Interpolation | None = None,
    stride: int | None = None,
    statistics: PixelStatistics | None = None,
) -> Network:
    """Load a `Network` from a file of this project, timm or a family in checkpoints.yaml; a `Backbone` if it is a vision transformer.

    Args:
        arch: needed unless the file is one of this project's exports, which contain theirs.
        key: for training checkpoints with several networks: a part of the name of the wanted one, e.g. `teacher`.
        interpolation: the rule for positions, if it is neither the architecture's own nor in the file.
        stride: of the dense map of a convolutional or hierarchical network; of its last stage if not given.
        statistics: what images are normalized with, if it is neither the architecture's own nor in the file.

    Raises:
        UserError: unreadable file, weights that are no finite numbers, missing, extra or misshapen keys; the message lists them.
    """
    path = Path(path)
    if path.is_dir() and isinstance(arch, str) and arch.startswith(HUGGING_FACE):
        path = path / "model.safetensors"
    content, metadata = read_content(path)
    name = metadata.get("arch") if arch is None else arch
    if isinstance(name, str) and name.startswith(OWN):
        return load_own(content, metadata, name, path, key)
    shape = _with_statistics(_file_architecture(path, metadata, arch), statistics, metadata, path)
    if isinstance(shape, StageShape):
        return _load_stages(content, metadata, shape, path, key, stride, drop_path)
    if stride is not None:
        raise UserError(f"{path}: stride {stride} for {shape.name}", allowed="networks with stages", todo="leave `stride` out")
    assert isinstance(shape, Architecture)
    return _load_vit(content, metadata, shape, path, key, interpolation, drop_path)


def _load_vit(
    content: Any,
    metadata: Mapping[str, str],
    architecture: Architecture,
    path: Path,
    key: str | None,
    interpolation: Interpolation | None,
    drop_path: float,
) -> Backbone:
    """A vision transformer with a file's weights."""
    if architecture.name.startswith(HUGGING_FACE) and "shape" not in metadata and not architecture.rope:
        weights, report = huggingface.to_timm(flat_content(content, path), str(path))
    else:
        weights, report = _one_network(content, path, key)
    require_numbers(weights, path)
    architecture, projection = read_removal(architecture, dict(metadata), weights, str(path))
    width, decoder = read_decoder(weights, str(path))
    architecture = replace(architecture, motion=width)
    _require_shapes(weights, architecture, path)
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
    changed = report.changed + describe_changes(weights) + dinov3.describe_changes(weights)
    if architecture.rope:
        found = dinov3.periods(weights, metadata, architecture.dim // architecture.heads, str(path))
        architecture = replace(architecture, periods=found or architecture.periods)
        weights = dinov3.to_timm(weights, str(path))
    try:
        weights = to_timm(weights)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    side = _table_side(weights, architecture)
    if side is not None and side * architecture.patch != architecture.image:
        usual = architecture.image // architecture.patch
        changed.append(f"positions of {side} x {side} patches taken as they are, not {usual} x {usual}")
        architecture = replace(architecture, image=side * architecture.patch)
    resampled = f"positions are resampled to other sizes by the rule `{architecture.interpolation}`"
    if width is not None:
        changed.append(f"with a decoder of masks from image and flow, {width} wide")
    changed.append("positions are rotary, for any size" if architecture.rope else resampled)
    backbone = Backbone(architecture, drop_path=drop_path)
    load_strictly(backbone.vit, weights, source=str(path))
    if backbone.motion is not None:
        load_strictly(backbone.motion, decoder, source=f"{path} ({PREFIX}*)")
    backbone.projection = projection
    backbone.report = replace(report, taken=len(weights), parameters=sum(w.numel() for w in weights.values()), changed=changed)
    return backbone


def _load_stages(
    content: Any, metadata: Mapping[str, str], shape: StageShape, path: Path, key: str | None, stride: int | None, drop_path: float
) -> StageNetwork:
    """A convolutional or hierarchical network with a file's weights."""
    if stride is None and "stride" in metadata:
        if not metadata["stride"].isdecimal():
            raise UserError(f"{path}: stride {metadata['stride'][:40]!r}", allowed="a whole number")
        stride = int(metadata["stride"])
    network = StageNetwork(shape.with_stride(stride), drop_path=drop_path)
    own = network.weights()
    weights, report = one_stage_network(flat_content(content, path), own, str(path), key)
    require_numbers(weights, path)
    require_same_keys(own, weights, source=str(path))
    network.load_weights(weights)
    changed = [*report.changed, f"the dense map has stride {network.stride}"]
    network.report = replace(report, parameters=sum(w.numel() for w in weights.values()), changed=changed)
    return network


def _with_statistics(shape: Shape, given: PixelStatistics | None, metadata: Mapping[str, str], path: Path) -> Shape:
    """The shape with the statistics of pixels that the caller or else the file names."""
    if given is None and "mean" in metadata and "std" in metadata:
        try:
            mean, std = ([float(value) for value in json.loads(metadata[name])] for name in ("mean", "std"))
            given = PixelStatistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path}: mean and std of pixels cannot be read", allowed="three numbers each") from error
    if given is None:
        return shape
    if not all(math.isfinite(value) for value in (*given.mean, *given.std)) or min(given.std) <= 0:
        raise UserError(f"{path}: mean {given.mean} and std {given.std} of pixels", allowed="finite numbers, std above 0")
    return replace(shape, statistics=given)  # type: ignore[type-var]


def _file_architecture(path: Path, metadata: Mapping[str, str], arch: str | Shape | None) -> Shape:
    """The architecture that the file or the caller names; they must not contradict each other."""
    named = metadata.get("arch")
    if "shape" in metadata and named is not None and arch in (None, named):
        try:
            return Architecture(named, **json.loads(metadata["shape"]))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: the shape in its metadata cannot be read") from error
    if named is None and isinstance(arch, str) and arch.startswith(HUGGING_FACE):
        return huggingface.folder_architecture(arch, path)
    if isinstance(arch, str) and named is not None and (arch.startswith(HUGGING_FACE) or named != named_shape(arch).name):
        raise UserError(f"{path} holds a {named}, not a {arch}", todo=f"set arch: {named}")
    arch = named if arch is None else arch
    if arch is None:
        raise UserError(f"{path} does not say its architecture", todo="give `arch` for this checkpoint")
    return named_shape(arch) if isinstance(arch, str) else arch


def _table_side(weights: Mapping[str, Tensor], arch: Architecture) -> int | None:
    """Patches along a side of the file's table of positions; None if there is no square one."""
    table = weights.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    patches = table.shape[1] - (0 if arch.registers or not arch.class_token else 1)
    return math.isqrt(patches) if is_square(patches) else None


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """`load_state_dict`, or UserError with keys that are missing, left over or misshapen."""
    require_same_keys(module.state_dict(), weights, source=source)
    module.load_state_dict(weights)


def _one_network(content: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], LoadReport]:
    """The state dict of one backbone in a checkpoint, without prefixes and projection heads.

    Each `cls_token` belongs to a network, and the part before it is its name: `teacher.backbone` in DINO's and Time-Tuning's files,
    `state_dict.model` in Lightning's (NeCo, Leopart), nothing in a file of weights alone.
    """
    named = flat_content(content, path)
    try:
        flat = dinov3.from_transformers(without_wrappers(named, WRAPPERS))
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
    try:
        own = without_wrappers(own, {"module"})
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    weights = {k: v for k, v in own.items() if k.split(".")[0] not in HEADS}
    others = [k for k in flat if not k.startswith(prefix)]
    dropped = Counter(_group(k, networks) for k in others) + Counter(k.split(".")[0] for k in own if k not in weights)
    report = LoadReport(str(path), prefix.removesuffix("."), len(weights), 0, dict(sorted(dropped.items())))
    if any(not {"module", *WRAPPERS}.isdisjoint(k.removeprefix(prefix).split(".")) for k in named):
        report.changed.append(WITHOUT_WRAPPERS)
    return weights, report


def _group(key: str, networks: list[str]) -> str:
    """The network of a tensor, or the first two parts of its name."""
    named = [n for n in networks if n and key.startswith(n)]
    return named[0].removesuffix(".") if named else ".".join(key.split(".")[:2])


# what conversions take apart or add up: end of the key -> dimensions, last size in units of the network's width (0: any)
SHAPES = {
    "cls_token": (3, 1),
    "pos_embed": (3, 1),
    "register_tokens": (3, 1),
    "storage_tokens": (3, 1),
    "reg_token": (3, 1),
    ".qkv.weight": (2, 1),
    ".qkv.bias": (1, 3),
    ".qkv.bias_mask": (1, 3),
    "rope_embed.periods": (1, 0),
}


def _require_shapes(weights: Mapping[str, Tensor], architecture: Architecture, path: Path) -> None:
    """UserError for tensors that cannot be converted: `load_strictly` compares only what has been."""
    wrong = []
    for end, (dimensions, widths) in SHAPES.items():
        for key, value in weights.items():
            if key.endswith(end) and (value.ndim != dimensions or (widths and value.shape[-1] != widths * architecture.dim)):
                shape = [*["any"] * (dimensions - 1), str(widths * architecture.dim) if widths else "any"]
                wrong.append(f"{key} {tuple(value.shape)} instead of ({', '.join(shape)})")
    if wrong:
        found = f"{path} does not fit the network {architecture.name}; wrong shape: {some_of(wrong)}"
        raise UserError(found, todo="check `arch` and which file this is")
