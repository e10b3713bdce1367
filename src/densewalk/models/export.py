"""Write a backbone as safetensors with timm's key names, and its model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from densewalk.core.files import atomic_write
from densewalk.core.imagenet import IMAGENET
from densewalk.models.architecture import Architecture
from densewalk.models.families.motion import PREFIX
from densewalk.models.families.position_removal import MATRIX
from densewalk.models.families.stages import StageNetwork
from densewalk.models.families.wrapped import WrappedNetwork, WrappedShape
from densewalk.models.interface import Network


def export_backbone(backbone: Network, path: str | Path, *, run: str, config_hash: str) -> None:
    """Write a backbone as safetensors; the metadata has everything that loading it needs."""
    arch = backbone.arch
    own = isinstance(backbone, WrappedNetwork)  # keeps its precision: its code decides in which it computes
    weights = {k: v.detach().to("cpu", v.dtype if own else torch.float32).contiguous() for k, v in backbone.weights().items()}
    metadata = {"format": "pt", "arch": arch.name, "run": run, "config_hash": config_hash, **backbone.metadata()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort a file's metadata, so that equal networks give equal files; the library does not.

    A safetensors file is eight bytes with the length of its header, the header (JSON, padded with spaces), and the tensors.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


OWN_CARD = """---
tags: [densewalk, {method}]
---
# {run} (seed {seed})

{arch}, a network of the user's own, whose file had sha256 {source}; configuration {config_hash}, commit {commit}.
{loaded}
`backbone.safetensors` holds the state of the module that this function returns. The dense map has stride {stride} and {dim} channels;
images are normalized with mean {mean} and std {std}.

Made by

{made}
"""

STAGES_CARD = """---
library_name: timm
tags: [densewalk, {method}]
---
# {run} (seed {seed})

{arch} by method `{method}` (compat: {compat}) from {init}, on {data}. Configuration {config_hash}, commit {commit}.
{loaded}
```python
import timm, torch
from safetensors.torch import load_file
model = {constructor}
missing, unexpected = model.load_state_dict(load_file("backbone.safetensors"), strict=False)
assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
maps = model.forward_intermediates(images, intermediates_only=True)  # of each stage; images normalized with mean {mean} and std {std}
```

The dense map here has stride {stride}.{norm}

Made by

{made}

`run.json` beside this file holds the whole configuration and what the run cost.
"""

CARD = """---
library_name: timm
tags: [densewalk, {method}]
---
# {run} (seed {seed})

{arch} by method `{method}` (compat: {compat}) from {init}, on {data}. Configuration {config_hash}, commit {commit}.
{loaded}
```python
import timm, torch
from safetensors.torch import load_file
model = {constructor}
weights = load_file("backbone.safetensors")
{matrix}model.load_state_dict(weights)
{periods}patch_tokens = model.forward_features(images)[:, model.num_prefix_tokens:]  # images normalized with {statistics}
{projected}```

{positions}

Made by

{made}

`run.json` beside this file holds the whole configuration and what the run cost.
"""


def write_card(backbone: Network, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write the model card: how the backbone was made and the lines that load it with timm."""
    a = backbone.arch
    if isinstance(backbone, StageNetwork):
        text = _stages_card(backbone, facts)
    elif isinstance(a, WrappedShape):
        mean, std = (list(values) for values in a.statistics)
        text = OWN_CARD.format(arch=a.name, source=a.source, stride=a.stride, dim=a.dim, mean=mean, std=std, **facts)
    else:
        assert isinstance(a, Architecture)
        text = _vit_card(a, facts)
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _stages_card(backbone: StageNetwork, facts: Mapping[str, Any]) -> str:
    a = backbone.arch
    norm = " At the last stage it is the map after the final norm." if backbone.final_norm is not None else ""
    constructor = f"timm.create_model({a.model.partition('.')[0]!r}, num_classes=0)"
    mean, std = (list(values) for values in a.statistics)
    return STAGES_CARD.format(constructor=constructor, stride=a.stride, norm=norm, mean=mean, std=std, arch=a.name, **facts)


def _vit_card(a: Architecture, facts: Mapping[str, Any]) -> str:
    periods = f"model.rope.periods.copy_(torch.tensor({list(a.periods)}))  # Meta's\n" if a.periods is not None else ""
    resampled = f"At other sizes than {a.image} px, position embeddings were resampled by rule `{a.interpolation}` here"
    positions = "Positions are rotary: any size will do." if a.rope else f"{resampled}; timm's own rule is `antialias`."
    if a.debias is not None:
        positions += (
            f"\n\nEvaluations here see n((I - U U^T) n(z)) of each patch token z, n(x) = x / |x|, U the first {a.debias} left singular "
            "vectors of the tokens of a black image of the same size, each divided by its length, minus their mean over places."
        )
    usual = "ImageNet's mean and std"
    statistics = usual if a.statistics == IMAGENET else f"mean {list(a.statistics.mean)} and std {list(a.statistics.std)}"
    shared = {"constructor": _constructor(a), "periods": periods, "positions": positions, "arch": a.name, "statistics": statistics}
    shared["matrix"] = f'matrix = weights.pop("{MATRIX}")\n' if a.projected else ""
    if a.motion is not None:
        shared["matrix"] += f'weights = {{k: v for k, v in weights.items() if not k.startswith("{PREFIX}")}}  # a decoder of masks\n'
        positions += (
            f"\n\nThe file holds a decoder of masks, too (`{PREFIX}*`): `densewalk.load(path).motion_masks(images, flow)` gives, from "
            "optical flow in any unit, the share of each pixel in one of two sides that move differently."
        )
        shared["positions"] = positions
    shared["projected"] = "patch_tokens = patch_tokens @ matrix.T\n" if a.projected else ""
    return CARD.format(**shared, **facts)


def _constructor(a: Architecture) -> str:
    """The Python expression that makes an architecture's network with timm alone."""
    shared = (
        f"img_size={a.image}, patch_size={a.patch}, embed_dim={a.dim}, depth={a.depth}, num_heads={a.heads}, num_classes=0, "
        "dynamic_img_size=True"
    )
    if a.rope:
        swiglu = ", swiglu_mlp=True, swiglu_align_to=8" if a.swiglu else ""
        rotary = "use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type='dinov3', rope_temperature=100.0, rope_rotate_half=True"
        norm = "norm_layer=lambda dim, **more: timm.layers.LayerNorm(dim, eps=1e-5, **more)"
        prefix = f"global_pool='token', init_values=1e-5, num_reg_tokens={a.registers}"
        return f"timm.models.eva.Eva({shared}, {prefix}{swiglu}, {rotary}, {norm})"
    scale = ", init_values=1e-5" if a.layer_scale else ""
    if a.swiglu:
        scale += f", mlp_ratio={2 * a.hidden + 0.5} / {a.dim}, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU"
    registers = f", reg_tokens={a.registers}, no_embed_class=True" if a.registers else ""
    return f"timm.models.VisionTransformer({shared}{scale}{registers})"
