"""Architectures of all families by their names and by timm's."""

from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import RotaryEmbeddingDinoV3, SwiGLU
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import HUGGING_FACE, SIZES, Architecture, Shape, architecture_named, is_vit, known_architecture
from densewalk.models.backbone import Backbone
from densewalk.models.families.stages import StageNetwork, StageShape, stage_shape
from densewalk.models.families.vit import build_vit
from densewalk.models.interface import Network
from densewalk.models.layouts import dinov3


def named_shape(name: str) -> Shape:
    """The shape of the network called `name`, of any family; UserError if there is none."""
    if name.startswith("timm/") and not is_vit(name):
        _require_known(name)
        return stage_shape(name, name.removeprefix("timm/"))
    return named_architecture(name)


def build_network(shape: Shape, *, drop_path: float = 0.0) -> Network:
    """The network of a shape with new weights: each family has a dataclass and a class."""
    match shape:
        case Architecture():
            return Backbone(shape, drop_path=drop_path)
        case StageShape():
            return StageNetwork(shape, drop_path=drop_path)
    raise AssertionError(f"no family has the shape {type(shape).__name__}")


def named_architecture(name: str) -> Architecture:
    """The vision transformer called `name` (architecture.py); UserError if there is none."""
    if name.startswith("timm/"):
        return _timm_architecture(name.removeprefix("timm/"))
    if (known := architecture_named(name)) is not None:
        return known
    _require_known(name)
    assert name.startswith(HUGGING_FACE)
    raise UserError(f"{name} is a kind of folder, whose config.json says the network", todo="name the folder as the checkpoint's file")


def _require_known(name: str) -> None:
    try:
        known_architecture(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def architecture_without_registers(arch: Architecture) -> Architecture:
    """The same without register tokens, under its name; UserError if it has none."""
    less = replace(arch, registers=0)
    for size in (size for size, shape in SIZES.items() if shape == (arch.dim, arch.depth, arch.heads)):
        gated = "_swiglu" if arch.swiglu and size != "giant" else ""
        own = named_architecture(f"vit_{size}_patch{arch.patch}{gated}{'_rope' if arch.rope else ''}")
        # a file may have other values than its family
        same = replace(less, name=own.name, image=own.image, interpolation=own.interpolation, periods=None)
        if own == same:
            return replace(less, name=own.name)
    raise UserError(f"{arch.name} has no name without its registers here", todo="keep the registers")


def _timm_architecture(name: str) -> Architecture:
    """The shape of timm's network; UserError if it differs from the networks here."""
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise UserError(f"timm knows no model '{name}'", todo="see timm.list_models('vit*', pretrained=True)") from error
    rope = isinstance(model, Eva) and isinstance(model.rope, RotaryEmbeddingDinoV3)
    if not isinstance(model, VisionTransformer) and not rope:
        raise UserError(f"timm's {name} is a {type(model).__name__}", allowed="plain vision transformers (VisionTransformer), DINOv3's")
    block: Any = model.blocks[0]
    arch = Architecture(
        name=f"timm/{name}",
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        image=model.patch_embed.img_size[0],
        registers=model.num_prefix_tokens - 1 if rope else model.num_reg_tokens,
        layer_scale=rope or not isinstance(block.ls1, nn.Identity),
        interpolation="antialias",
        swiglu=isinstance(block.mlp, SwiGLU if rope else timm.layers.GluMlp),
        rope=rope,
        statistics=PixelStatistics(tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])),
    )
    with torch.device("meta"):
        own = build_vit(arch)
    theirs, ours = _traits(model), _traits(own)
    # DINOv3's biases are zero, and timm has each network with and without them
    optional = dinov3.BIASES if getattr(block.attn, "q_bias", None) is None else ()
    ours["parameters"] = {k: shape for k, shape in ours["parameters"].items() if not k.endswith(optional)}
    problems = [trait for trait in ours if ours[trait] != theirs[trait]]
    if problems:
        raise UserError(f"timm's {name} differs from the networks here in its {', '.join(problems)}", allowed="plain vision transformers")
    return arch


def _traits(model: Any) -> dict[str, Any]:
    """The facts that determine what a vision transformer computes."""
    block, rope = model.blocks[0], getattr(model, "rope", None)
    names = ("temperature", "min_period", "max_period", "normalize_coords", "rotate_half", "grid_offset")
    return {
        "parameters": {k: v.shape for k, v in model.state_dict().items()},
        "activation": type(block.mlp.act),
        "normalization layers": (type(block.norm1), block.norm1.eps),
        "rotary positions": None if rope is None else [getattr(rope, name) for name in names],
        "blocks": type(block),
    }
