"""MAE's decoder, and the pixels that it predicts."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.models.architecture import Architecture
from densewalk.models.blocks import run_blocks
from densewalk.models.families.vit import build_vit
from densewalk.ops.cpu.linear import Linear
from densewalk.ops.positions import sincos_positions

Images = Float[Tensor, "batch 3 height width"]
Order = Int[Tensor, "batch patches"]


class Decoder(nn.Module):
    """Predicts the pixels of removed patches from the tokens of those that are left.

    dim: width of the encoder. arch: shape of the decoder. grid: patches of an image in rows and columns.
    """

    positions: Tensor

    def __init__(self, dim: int, arch: Architecture, grid: tuple[int, int]) -> None:
        super().__init__()
        vit: Any = build_vit(arch)
        self.embed = Linear(dim, arch.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, arch.dim))
        self.blocks: nn.ModuleList = vit.blocks
        self.norm: nn.LayerNorm = vit.norm
        self.predict = Linear(arch.dim, 3 * arch.patch**2)
        table = sincos_positions(arch.dim, grid)
        self.register_buffer("positions", torch.cat([table.new_zeros(1, arch.dim), table])[None], persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Float[Tensor, "batch visible dim"], order: Order) -> Float[Tensor, "batch removed pixels"]:
        """Pixels of the removed patches, in their order."""
        x = self.run(latent, order)[:, 1:]
        return self.predict(self.norm(take(x, order[:, latent.shape[1] - 1 :])))

    def run(self, latent: Float[Tensor, "batch visible dim"], order: Order) -> Float[Tensor, "batch tokens width"]:
        """CLS and all patches in place, after the last block.

        latent: CLS and the patches that are left, in their order. order: of all patches, those that are left first.
        """
        x = self.embed(latent)
        places = order[:, : x.shape[1] - 1, None].expand(-1, -1, x.shape[2])
        patches = self.mask_token.to(x.dtype).expand(len(x), order.shape[1], -1).scatter(1, places, x[:, 1:])
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        return run_blocks(list(self.blocks), x, None, False)


def take(x: Float[Tensor, "batch patches dim"], index: Int[Tensor, "batch chosen"]) -> Float[Tensor, "batch chosen dim"]:
    """Some of each image's patches."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def patchify(images: Images, patch: int) -> Float[Tensor, "batch patches pixels"]:
    """The pixels of each patch, by row, column and channel."""
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [b, 3, rows, p, columns, p]
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Float[Tensor, "batch patches pixels"], grid: tuple[int, int], patch: int) -> Images:
    """The images of such patches."""
    x = patches.unflatten(1, grid).unflatten(3, (patch, patch, 3))  # [b, rows, columns, p, p, 3]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def scale_of(patches: Float[Tensor, "*batch pixels"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, at least 1e-3) of each patch's pixels, of all channels together."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def reconstruction_loss(
    predicted: Float[Tensor, "batch removed pixels"], target: Float[Tensor, "batch removed pixels"], *, norm_pix: bool
) -> Float[Tensor, ""]:
    """Mean squared error of the removed patches' pixels, in float32.

    for b, n:  target[b, n] = (target[b, n] - mean) / sqrt(var + 1e-6)       if `norm_pix`; var is divided by pixels - 1
    loss = sum over b, n of mean((predicted[b, n] - target[b, n]) ** 2) / (b n)
    """
    with torch.autocast(predicted.device.type, enabled=False):
        if norm_pix:
            mean, deviation = scale_of(target)
            target = (target - mean) / deviation
        return F.mse_loss(predicted.float(), target)
