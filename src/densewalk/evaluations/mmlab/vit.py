"""This project's networks as mmengine modules."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from densewalk.models.loading import load


@MODELS.register_module()
class DensewalkBackbone(BaseModule):
    """A backbone file, loaded strictly, that gives the maps of some of its levels (blocks of a ViT, stages of a hierarchical network).

    Registers, LayerScale and each family's way of interpolating position embeddings come from `densewalk.models`.

    Args:
        path: file with the weights, an export of this project.
        levels: ascending numbers; the output has one map for each.
        final_norm: apply the network's final norm, see `Network.levels`.
        frozen: no gradient, and evaluation mode whatever the model around it is in.
        drop_path: stochastic depth's rate at the last block.
        padding: where zeros go when a side is no multiple of the patch (`Network.multiple`). `center`: evenly to both ends, as DINOv2
            does; the maps then cover slightly more than the image, which a head that resizes them to the image's size ignores.
            `corner`: to the right and below, so that position x of the image stays at x / patch of the maps, which boxes need.
    """

    def __init__(
        self,
        path: str,
        levels: Sequence[int],
        *,
        final_norm: bool,
        frozen: bool = False,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
        padding: Literal["center", "corner"] = "corner",
    ) -> None:
        super().__init__()
        self.network = load(path, drop_path=drop_path)
        self.network.set_gradient_checkpointing(gradient_checkpointing)
        self.levels, self.final_norm, self.frozen, self.padding = list(levels), final_norm, frozen, padding
        if frozen:
            self.network.requires_grad_(False)
        # parameters that take no part must not count as trained
        for parameter in self.network.parameters_behind(self.levels[-1], norm=final_norm):
            parameter.requires_grad_(False)

    def init_weights(self) -> None:
        """Keep the file's weights. mmengine calls this on all parts of a model before training."""

    def train(self, mode: bool = True) -> "DensewalkBackbone":
        """Set the training mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Float[Tensor, "batch dim rows columns"], ...]:
        """One map per level, of the padded image."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return tuple(self.network.levels(pad(images, self.network.multiple, self.padding), self.levels, norm=self.final_norm))

    def get_layer_depth(self, name: str) -> tuple[int, int]:
        """The layer of a parameter of this module, counted from the image, and the number of layers; see `Network.layer_of`."""
        return self.network.layer_of(name.removeprefix("network."))


def pad(
    images: Float[Tensor, "batch 3 height width"], multiple: int, where: Literal["center", "corner"]
) -> Float[Tensor, "batch 3 padded_height padded_width"]:
    """Zeros up to the next multiple of the patch; see `DensewalkBackbone`."""
    rows, columns = (-side % multiple for side in images.shape[-2:])
    top, left = (rows // 2, columns // 2) if where == "center" else (0, 0)
    return F.pad(images, (left, columns - left, top, rows - top))
