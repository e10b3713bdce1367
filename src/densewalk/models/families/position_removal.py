"""Vision transformers whose map has position taken out: what `method: debias` and `method: rasa` export.

    debias    z'_p = n((I - U U^T) n(z_p)), U the first left singular vectors of the tokens of a black image of the same size
    rasa      z'_p = L z_p, L a matrix of the file

z_p is a patch token after the final norm, n(x) = x / |x|. The weights are those of the initial backbone: the number of singular vectors
is in the file's metadata, the matrix is one more tensor. U depends on the image's size, so it is computed once for each size.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.data.images import normalize
from densewalk.models.architecture import Architecture
from densewalk.ops.position import position_basis, without_subspace

MATRIX = "dense_projection"  # the tensor's name in the file
Maps = Float[Tensor, "batch dim rows columns"]
Dense = Callable[[Float[Tensor, "1 3 height width"]], Float[Tensor, "1 dim rows columns"]]


def read_removal(
    architecture: Architecture, metadata: dict[str, str], weights: dict[str, Tensor], path: str
) -> tuple[Architecture, Tensor | None]:
    """The architecture with what is taken out, and the matrix, which is removed from `weights`."""
    matrix, components = weights.pop(MATRIX, None), metadata.get("debias")
    if components is not None:
        if not re.fullmatch(r"[0-9]{1,6}", components):
            raise UserError(f"{path}: debias {components[:40]!r} in its metadata", allowed="a whole number")
        architecture = replace(architecture, debias=int(components))
    if matrix is None:
        return architecture, None
    if matrix.shape != (architecture.dim, architecture.dim):
        allowed = f"{architecture.dim} x {architecture.dim}"
        raise UserError(f"{path}: {MATRIX} of {' x '.join(map(str, matrix.shape))} numbers", allowed=allowed)
    return replace(architecture, projected=True), matrix.float()


class PositionBases:
    """U of each size of images."""

    def __init__(self, components: int, statistics: PixelStatistics) -> None:
        self.components, self.statistics = components, statistics
        self.known: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def of_size(self, images: Float[Tensor, "batch 3 height width"], dense: Dense) -> Float[Tensor, "dim components"]:
        """U of images as large as these.

        Raises:
            UserError: as many singular vectors as the map has dimensions or places.
        """
        height, width = images.shape[-2:]
        key = (height, width, images.device, images.dtype)
        if key not in self.known:
            with torch.inference_mode(False), torch.no_grad():
                black = normalize(torch.zeros(1, 3, height, width, device=images.device, dtype=images.dtype), self.statistics)
                tokens = dense(black)[0]
                require_fewer(self.components, tokens.shape[0], tokens[0].numel())
                self.known[key] = position_basis(tokens, self.components)
        return self.known[key]

    def take_out(self, maps: Maps, images: Float[Tensor, "batch 3 height width"], dense: Dense) -> Maps:
        """n((I - U U^T) n(z)) at each place."""
        return without_subspace(maps, self.of_size(images, dense))


def require_fewer(components: int, dim: int, places: int | None = None) -> None:
    """UserError for as many singular vectors as dimensions or, if they are known, places."""
    least = dim if places is None else min(dim, places)
    if components >= least:
        found = f"debias takes {components} singular vectors out of a map of {dim} dimensions" + (
            f" and {places} places" * (places is not None)
        )
        raise UserError(found, allowed=f"less than {least}", todo="lower `components`, or take larger images")
