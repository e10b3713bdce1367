"""Student and teacher of masked self-distillation: a backbone whose patches can be masked, and its heads."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.methods.ibot.settings import MaskedDistillationSettings
from densewalk.models.backbone import Backbone
from densewalk.models.heads import PrototypeHead, WeightNormLinear
from densewalk.models.surgery import with_drop_path
from densewalk.ops.cpu.stochastic_depth import BatchSubset

Images = Float[Tensor, "images 3 height width"]
Masks = Bool[Tensor, "images patches"]


class Heads(NamedTuple):
    """The heads of CLS tokens and of patches; `patch_head` is None where they are one, or of one MLP with `patch_layer`."""

    head: PrototypeHead
    patch_head: PrototypeHead | None
    patch_layer: WeightNormLinear | None


def make_heads(dim: int, s: MaskedDistillationSettings) -> Heads:
    """New heads."""

    def one(out_dim: int, bottleneck: int) -> PrototypeHead:
        return PrototypeHead(dim, out_dim, hidden=s.head_hidden, bottleneck=bottleneck, trainable_scale=not s.norm_last_layer)

    head = one(s.out_dim, s.head_bottleneck)
    patch_head = one(s.patch_prototypes, s.patch_head_bottleneck) if s.head == "separate" else None
    layer = None
    if s.head == "shared_mlp":
        layer = WeightNormLinear(s.head_bottleneck, s.patch_prototypes, trainable_scale=not s.norm_last_layer)
    return Heads(head, patch_head, layer)


class MaskedNetwork(nn.Module):
    """A backbone, the vector that stands for a masked patch, and the heads."""

    def __init__(self, backbone: Backbone, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.dim))
        self.head, self.patch_head, self.patch_layer = heads

    def encode(self, images: Images, masks: Masks | None = None) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images n dim"]]:
        """CLS and patches; masked patches are replaced before they get their positions."""
        x, grid = self.backbone.embed(images, None if masks is None else (masks, self.mask_token))
        tokens = self.backbone.finish(self.backbone.run(x, grid), grid)
        return tokens.cls, tokens.patches

    def bottleneck(self, patches: Float[Tensor, "*patches dim"]) -> Float[Tensor, "*patches width"]:
        """Patches in front of their prototypes, of unit length."""
        return F.normalize((self.patch_head or self.head).mlp(patches), dim=-1)

    @property
    def patch_prototypes(self) -> WeightNormLinear:
        """The layer that gives logits of `bottleneck`."""
        return self.patch_layer or (self.patch_head or self.head).last_layer

    def last_layers(self) -> list[nn.Parameter]:
        """The prototypes of all heads."""
        layers = {id(layer): layer for layer in (self.head.last_layer, self.patch_prototypes)}
        return [p for layer in layers.values() for p in layer.parameters()]

    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters of the backbone with its mask token, and of each head."""
        heads: list[Any] = [part for part in (self.head, self.patch_head, self.patch_layer) if part is not None]
        return [[self.mask_token, *self.backbone.parameters()], *(list(head.parameters()) for head in heads)]


def with_stochastic_depth(backbone: Backbone, s: MaskedDistillationSettings) -> Backbone:
    """A copy with stochastic depth, growing with the block or uniform, of each image or of a subset of the batch."""
    copy = with_drop_path(backbone, s.drop_path)
    if not s.drop_path or not (s.drop_path_uniform or s.drop_path_batch_subset):
        return copy
    blocks = list(copy.vit.blocks)
    drop_path = type(blocks[-1].drop_path1)  # timm's
    for number, block in enumerate(blocks):
        rate = s.drop_path if s.drop_path_uniform else s.drop_path * number / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, BatchSubset(rate) if s.drop_path_batch_subset else drop_path(rate))
    return copy
