"""Images, and next to each those that a network finds most similar."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from densewalk.visualization.strips import write_rows


def draw_neighbors(
    path: Path, images: UInt8[Tensor, "images 3 height width"], features: Float[Tensor, "images dim"], *, shown: int = 4, most: int = 5
) -> None:
    """A row for each of a few images, evenly spaced: itself, then the others by falling cosine of the features."""
    unit = F.normalize(features.double(), dim=1)
    order = (unit @ unit.T).fill_diagonal_(2).argsort(dim=1, descending=True, stable=True).cpu()
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    rows = torch.linspace(0, len(images) - 1, min(shown, len(images))).round().long()
    nothing = 0 * pixels[: most + 1, :, :, 0]
    write_rows(path, [(list(pixels[order[row, : most + 1].numpy()]), list(nothing)) for row in rows.tolist()])
