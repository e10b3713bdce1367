"""Convolutional and hierarchical networks of timm's: ResNet, ConvNeXt, Swin and every other one that gives maps of its stages.

Their maps grow coarser from stage to stage. The dense map is that of one stage, by default the last; the setting `stride` chooses another.
The final norm of networks that have one (ConvNeXt, Swin) is applied to every position of the last stage's map, as DINOv3's ConvNeXts do
it, and not to the other maps. The pooled vector is what timm's classifier would get: for most networks the mean of the last map.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import statistics_metadata
from densewalk.models.families.abilities import MAPS
from densewalk.models.interface import Network

NOT_WEIGHTS = ("num_batches_tracked",)  # counters of batch normalization, which nothing here reads


@dataclass(frozen=True)
class StageShape:
    """The shape of a network with stages; see `Shape`. model: timm's name of it. level: the stage of the dense map."""

    name: str
    model: str
    level_dims: tuple[int, ...]
    level_strides: tuple[int, ...]
    level: int
    pooled_dim: int
    statistics: PixelStatistics
    size: int | None = None
    heads: int = 0

    @property
    def dim(self) -> int:
        """Channels of the dense map."""
        return self.level_dims[self.level]

    @property
    def stride(self) -> int:
        """Pixels per position of the dense map."""
        return self.level_strides[self.level]

    @property
    def multiple(self) -> int:
        """The coarsest stride: so every map covers the image exactly."""
        return max(self.level_strides)

    @property
    def abilities(self) -> frozenset[str]:
        """Maps and the pooled vector."""
        return MAPS

    @property
    def trainable(self) -> bool:
        """False: evaluations may fine-tune it, the methods do not train it."""
        return False

    def metadata(self) -> dict[str, str]:
        """The stride, where it is not the last stage's, and the statistics."""
        last = self.level == len(self.level_dims) - 1
        return statistics_metadata(self.statistics) | ({} if last else {"stride": str(self.stride)})

    def with_stride(self, stride: int | None) -> "StageShape":
        """The same with the dense map of this stride; UserError if no stage has it."""
        if stride is None:
            return self
        found = [level for level, other in enumerate(self.level_strides) if other == stride]
        if not found:
            strides = ", ".join(str(s) for s in sorted(set(self.level_strides)))
            raise UserError(f"{self.name} has no map of stride {stride}", allowed=strides, todo="correct `stride`")
        return replace(self, level=found[-1])


def stage_shape(name: str, model: str) -> StageShape:
    """The shape of timm's network; UserError if it gives no maps of stages."""
    return replace(_shape_of(model), name=name)


@lru_cache
def _shape_of(model: str) -> StageShape:
    with torch.device("meta"):
        net = build(model)
    missing = [part for part in ("feature_info", "forward_intermediates", "forward_head", "group_matcher") if not hasattr(net, part)]
    if missing:
        raise UserError(f"timm's {model} gives no maps of its stages (no {missing[0]})", allowed="networks with timm's `feature_info`")
    info = list(net.feature_info)
    config = net.pretrained_cfg
    fixed = config.get("fixed_input_size") and "strict_img_size" not in inspect.signature(type(net).__init__).parameters
    return StageShape(
        name=f"timm/{model}",
        model=model,
        level_dims=tuple(int(stage["num_chs"]) for stage in info),
        level_strides=tuple(int(stage["reduction"]) for stage in info),
        level=len(info) - 1,
        pooled_dim=int(getattr(net, "head_hidden_size", None) or net.num_features),
        statistics=PixelStatistics(tuple(config["mean"]), tuple(config["std"])),
        size=int(config["input_size"][-1]) if fixed else None,
    )


def build(model: str, drop_path: float = 0.0) -> Any:
    """timm's network with new weights and without classifier, for images of any size where the family can."""
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    name = model.partition(".")[0]
    entry = timm.model_entrypoint(name) if timm.is_model(name) else None
    if entry is None:
        raise UserError(f"timm knows no model '{model}'", todo="see timm.list_models()")
    module = inspect.getmodule(entry)
    if any("strict_img_size" in inspect.signature(kind.__init__).parameters for kind in _networks_of(module)):
        options["strict_img_size"] = False
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:  # an unknown tag
        raise UserError(f"timm knows no model '{model}'", todo=f"see timm.list_models('{name}*', pretrained=True)") from error


def _networks_of(module: Any) -> list[type[nn.Module]]:
    """The classes of whole networks in one of timm's files."""
    classes = (value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__)
    return [kind for kind in classes if issubclass(kind, nn.Module) and hasattr(kind, "forward_features")]


class StageNetwork(Network):
    """A convolutional or hierarchical network, frozen or fine-tuned by an evaluation; the methods do not train it."""

    arch: StageShape

    def __init__(self, arch: StageShape, *, drop_path: float = 0.0) -> None:
        super().__init__(arch)
        self.net: Any = build(arch.model, drop_path)

    def weights(self) -> dict[str, Tensor]:
        """The state dict with timm's key names."""
        return {key: value for key, value in self.net.state_dict().items() if not key.endswith(NOT_WEIGHTS)}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights with exactly the keys of `weights`."""
        counters = {key: value for key, value in self.net.state_dict().items() if key.endswith(NOT_WEIGHTS)}
        self.net.load_state_dict({**counters, **weights})

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm after the last stage; None where there is none."""
        for norm in (getattr(self.net, "norm", None), getattr(getattr(self.net, "head", None), "norm", None)):
            if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (self.arch.level_dims[-1],):
                return norm
        return None

    # -- outputs ------------------------------------------------------------------------------------------------------

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The map of the chosen stage; of the last one after the final norm."""
        return self.levels(images, [self.arch.level], norm=True)[0]

    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch pooled_dim"]:
        """What timm's classifier would get."""
        self.require_size(*images.shape[-2:])
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)

    def levels(
        self, images: Float[Tensor, "batch 3 height width"], numbers: Sequence[int], *, norm: bool
    ) -> list[Float[Tensor, "batch _dim _rows _columns"]]:
        """Maps of stages, ascending; `norm` applies the final norm to the last stage's."""
        self.require_size(*images.shape[-2:])
        maps = self.net.forward_intermediates(
            images, indices=list(numbers), norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        final = self.final_norm
        if norm and final is not None and numbers[-1] == len(self.arch.level_dims) - 1:
            maps[-1] = final(maps[-1]) if isinstance(final, LayerNorm2d) else final(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    # -- fine-tuning ----------------------------------------------------------------------------------------------------

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Keep only the stages' inputs for the backward pass, or all."""
        if on:
            self.net.set_grad_checkpointing(True)

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """0: the stem; then one layer for each stage; the last: the final norm."""
        matcher = self.net.group_matcher(coarse=True)
        found: dict[str, int] = group_parameters(self.net, matcher, reverse=True)
        norm = {id(p) for p in self.final_norm.parameters()} if self.final_norm is not None else set()
        last = max(found[name] for name, p in self.net.named_parameters() if id(p) not in norm)
        name = parameter.removeprefix("net.")
        if name not in found:
            raise AssertionError(f"{parameter} is none of the network's parameters")
        return (last + 1 if id(self.net.get_parameter(name)) in norm else found[name]), last + 2

    def parameters_behind(self, level: int, *, norm: bool) -> list[nn.Parameter]:
        """Those after the stage's own, in the network's order; of the last stage, the final norm unless it is applied."""
        stage = self.net.feature_info[level]["module"]
        named = list(self.net.named_parameters())
        own = [i for i, (name, _) in enumerate(named) if name.startswith(f"{stage}.")]
        if not own:
            return []
        kept = {id(p) for p in self.final_norm.parameters()} if norm and self.final_norm is not None else set()
        is_last = level == len(self.arch.level_dims) - 1
        return [p for _, p in named[own[-1] + 1 :] if not (is_last and id(p) in kept)]
