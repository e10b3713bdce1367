"""A backbone whose patches are projected: NeCo's student and teacher."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from densewalk.data.images import normalize
from densewalk.methods.neco.alignment import Maps, used_patches
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.backbone import Backbone, Tokens
from densewalk.models.heads import PatchHead

Crops = Shaped[Tensor, "batch crops 3 size size"]


class PatchNetwork(nn.Module):
    """A backbone and the head on its patches."""

    def __init__(self, backbone: Backbone, head: PatchHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def encode(self, crops: Crops, boxes: Float[Tensor, "batch crops boxes 4"] | None = None) -> Maps:
        """Unit vectors in float32, one for each patch; with boxes only where RoIAlign of them reads, else zero."""
        images = to_input(crops, self.backbone.patch)
        if boxes is None:
            return self.project(self.backbone.tokens(images)).unflatten(0, crops.shape[:2])
        used = used_patches(boxes, images.shape[-1] // self.backbone.patch)  # [batch, crops, rows, columns]
        vectors = self.head(self.backbone.patches_where(images, used.flatten(0, 1).flatten(1))).float()
        maps = vectors.new_zeros(*used.shape, vectors.shape[-1]).index_put(used.nonzero(as_tuple=True), vectors)
        return maps.movedim(-1, 2)

    def encode_with_attention(self, crops: Crops) -> tuple[Maps, Float[Tensor, "batch crops rows columns"]]:
        """Unit vectors, and the CLS token's attention to each patch in the last block, mean of all heads."""
        last = self.backbone.last_block(to_input(crops, self.backbone.patch))
        attention = last.cls_attention.float().mean(dim=1).unflatten(1, last.tokens.grid)
        return self.project(last.tokens).unflatten(0, crops.shape[:2]), attention.unflatten(0, crops.shape[:2])

    def project(self, tokens: Tokens) -> Float[Tensor, "images out rows columns"]:
        """The head's output as a map."""
        return self.head(tokens.patches).float().transpose(1, 2).unflatten(2, tokens.grid)


def new_head(dim: int, settings: NecoSettings) -> PatchHead:
    """Three linear layers with GELU between them, torch's initialization, unit length."""
    return PatchHead([dim, settings.head_hidden, settings.head_hidden, settings.head_out], normalize=True)


def to_input(crops: Crops, patch: int) -> Float[Tensor, "images 3 cut cut"]:
    """Crops as a network takes them: whole patches, and uint8 normalized (float is taken to be so already)."""
    size = crops.shape[-1] - crops.shape[-1] % patch
    x = crops[..., :size, :size].flatten(0, 1)
    return normalize(x.float() / 255) if x.dtype == torch.uint8 else x
