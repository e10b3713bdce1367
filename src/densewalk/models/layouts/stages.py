"""Find one convolutional or hierarchical network in a file, under timm's key names.

A network is found by a key that it has once, and the part before that key is its name. So these need no rule of their own: timm's files;
torchvision's ResNets, which name their parts as timm does (DINO, VICRegL); `module.` (SwAV); `model.backbone.` and
`model.teacher_backbone.` beside the two encoders of RAFT (PooDLe); `state_dict.module.encoder_q.` and
`encoder_k.` (MoCo-v2), `base_encoder.` and `momentum_encoder.` (MoCo-v3); `student.backbone.` and `teacher.backbone.` (DINO's training
files); `classy_state_dict.base_model.model.trunk._feature_blocks.` (VISSL's SimCLR). ConvNeXts have two more sets of names:

    timm's                          Meta's (ConvNeXt, VICRegL, DINOv3)      Hugging Face's (DINOv3)
    stem.0, stem.1                  downsample_layers.0.0, .1               stages.0.downsample_layers.0, .1
    stages.1.downsample.0           downsample_layers.1.0                   stages.1.downsample_layers.0
    stages.1.blocks.2.conv_dw       stages.1.2.dwconv                       stages.1.layers.2.depthwise_conv
    stages.1.blocks.2.mlp.fc1       stages.1.2.pwconv1                      stages.1.layers.2.pointwise_conv1
    head.norm                       norm, and once more norms.3 (DINOv3)    layer_norm

EfficientNets of the package efficientnet_pytorch number their blocks through all stages and call the layers of a block otherwise:

    conv_stem, bn1; conv_head, bn2      _conv_stem, _bn0; _conv_head, _bn1
    blocks.0.0.conv_dw, bn1             _blocks.0._depthwise_conv, _bn1         (a block that does not expand)
               conv_pw, bn2                       _project_conv, _bn2
    blocks.1.0.conv_pw, bn1             _blocks.1._expand_conv, _bn0
               conv_dw, bn2                       _depthwise_conv, _bn1
               conv_pwl, bn3                      _project_conv, _bn2
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.models.interface import LoadReport
from densewalk.models.layouts.dinov3 import substitute
from densewalk.models.layouts.key_names import HEADS, WITHOUT_WRAPPERS, WRAPPERS, renamed, without_wrappers

STAGE_HEADS = HEADS | {"fc", "classifier", "projector", "predictor", "prototypes"}
META = {
    r"^downsample_layers\.0\.([01])\.": r"stem.\1.",
    r"^downsample_layers\.([1-3])\.([01])\.": r"stages.\1.downsample.\2.",
    r"^stages\.(\d)\.(\d+)\.dwconv\.": r"stages.\1.blocks.\2.conv_dw.",
    r"^stages\.(\d)\.(\d+)\.pwconv([12])\.": r"stages.\1.blocks.\2.mlp.fc\3.",
    r"^stages\.(\d)\.(\d+)\.(norm\.|gamma$)": r"stages.\1.blocks.\2.\3",
    r"^norm\.": "head.norm.",
}
HUGGING_FACE = {
    r"^stages\.0\.downsample_layers\.([01])\.": r"stem.\1.",
    r"^stages\.([1-3])\.downsample_layers\.([01])\.": r"stages.\1.downsample.\2.",
    r"^stages\.(\d)\.layers\.(\d+)\.depthwise_conv\.": r"stages.\1.blocks.\2.conv_dw.",
    r"^stages\.(\d)\.layers\.(\d+)\.pointwise_conv([12])\.": r"stages.\1.blocks.\2.mlp.fc\3.",
    r"^stages\.(\d)\.layers\.(\d+)\.layer_norm\.": r"stages.\1.blocks.\2.norm.",
    r"^stages\.(\d)\.layers\.(\d+)\.gamma$": r"stages.\1.blocks.\2.gamma",
    r"^layer_norm\.": "head.norm.",
}
EXPANDS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def efficientnet(own: Mapping[str, Tensor]) -> dict[str, str]:
    """The patterns of an EfficientNet, by the stages that timm's network has."""
    layers = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    patterns = {rf"^{old}\.": f"{new}." for old, new in layers.items()}
    blocks = sorted({(int(k.split(".")[1]), int(k.split(".")[2])) for k in own if k.startswith("blocks.")})
    for number, (stage, block) in enumerate(blocks):
        names = EXPANDS if f"blocks.{stage}.{block}.conv_pwl.weight" in own else PLAIN
        patterns |= {rf"^_blocks\.{number}\.{old}\.": f"blocks.{stage}.{block}.{new}." for old, new in names.items()}
    return patterns


# a key that only this layout has -> its patterns by the network's own state dict, in words
LAYOUTS: dict[str, tuple[Callable[[Mapping[str, Tensor]], dict[str, str]], str]] = {
    "downsample_layers.0.0.weight": (lambda _: META, "Meta's names of a ConvNeXt changed to timm's"),
    "stages.0.downsample_layers.0.weight": (lambda _: HUGGING_FACE, "Hugging Face's names of a ConvNeXt changed to timm's"),
    "_blocks.0._depthwise_conv.weight": (efficientnet, "efficientnet_pytorch's names of an EfficientNet changed to timm's"),
}


def one_stage_network(
    flat: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str, key: str | None
) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights of one network under timm's names, and a report; what is left over is an error later.

    Args:
        flat: the file's tensors under dotted names. own: the network's state dict. key: a part of the wanted network's name.

    Raises:
        UserError: there is no such network, or there are several.
    """
    try:
        named = without_wrappers({k: v for k, v in flat.items() if not k.endswith("num_batches_tracked")}, WRAPPERS | {"module"})
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    anchors = [*LAYOUTS, unique_key(own)]
    found = {k.removesuffix(anchor): anchor for anchor in anchors for k in named if f".{k}".endswith(f".{anchor}")}
    names = ", ".join(sorted(n.removesuffix(".") or "one without a name (leave `key` out)" for n in found)) or "none"
    chosen = [name for name in found if key is None or f".{key}." in f".{name}"]
    if key is not None and not chosen:
        raise UserError(f"checkpoint {path} has no network '{key}'", allowed=names)
    if len(chosen) > 1:
        raise UserError(f"checkpoint {path} holds several networks: {names}", todo="say with `key` which one")
    if not chosen:
        raise UserError(
            f"checkpoint {path} has no key {unique_key(own)}, as such a network has it", todo="check `arch` and which file this is"
        )
    prefix, (patterns_for, words) = chosen[0], LAYOUTS.get(found[chosen[0]], (lambda _: {}, ""))
    patterns = patterns_for(own)
    inside = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
    weights = renamed(without_twins(inside, path), lambda name: substitute(name, patterns))
    taken = {k: v for k, v in weights.items() if k in own or k.split(".")[0] not in STAGE_HEADS}
    dropped = Counter(".".join(k.split(".")[:2]) for k in named if not k.startswith(prefix))
    dropped += Counter(k.split(".")[0] for k in weights if k not in taken)
    changed = [words] * bool(words) + [WITHOUT_WRAPPERS] * (named.keys() != {k for k in flat if not k.endswith("num_batches_tracked")})
    return taken, LoadReport(path, prefix.removesuffix("."), len(taken), 0, dict(sorted(dropped.items())), changed)


def unique_key(own: Mapping[str, Tensor]) -> str:
    """The first of a network's keys that no other one ends with: `layer1.0.conv1.weight` of a ResNet, not `conv1.weight`."""
    return next(key for key in own if sum(f".{other}".endswith(f".{key}") for other in own) == 1)


def without_twins(weights: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The tensors without `norms.3`, a second name of `norm` in DINOv3's ConvNeXts; UserError if the two differ."""
    twins = {k: f"norm.{k.removeprefix('norms.3.')}" for k in weights if k.startswith("norms.3.")}
    if differ := [k for k, other in twins.items() if other not in weights or not torch.equal(weights[k], weights[other])]:
        raise UserError(f"checkpoint {path}: {differ[0]} is not equal to {twins[differ[0]]}", todo="take a released file")
    return {k: v for k, v in weights.items() if k not in twins}
