"""How a keypoint's place in another image is read from two maps of features: ours, and those of three released codes.

    predict = READOUTS["own"](...)

Points are x, y in pixels of the original images, maps [dim, rows, columns]. All read-outs compare by the cosine; they differ in where
a patch or a pixel is said to lie, which moves predictions by up to half a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

STRIP = 64  # rows of an enlarged map that exist at once
Points = Float[Tensor, "points 2"]


@dataclass
class View:
    """An image as the network saw it.

    maps: features. width, height: of the original image. side: of the padded square, in original pixels; None if it was not padded.
    """

    maps: Float[Tensor, "dim rows columns"]
    width: int
    height: int
    side: int | None = None
    lengths: Float[Tensor, "height width"] | None = field(default=None, repr=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.maps.shape[-2], self.maps.shape[-1]


def own(source: View, target: View, points: Points) -> Points:
    """The feature between the patches around the keypoint; the center of the most similar patch.

    A patch's center is ((column + 0.5) W / columns, (row + 0.5) H / rows), for both images; features between centers are bilinear.
    """
    size = points.new_tensor([source.width, source.height])
    vectors = sample(F.normalize(source.maps, dim=0), 2 * points / size - 1, align_corners=False)
    x, y = _columns_rows(cosines(vectors, target.maps).argmax(1), target.grid)
    rows, columns = target.grid
    return torch.stack([(x + 0.5) * target.width / columns, (y + 0.5) * target.height / rows], dim=1)


def dift(source: View, target: View, points: Points) -> Points:
    """Both maps enlarged to the original images, bilinear (DIFT): the vector at the pixel, the most similar of all pixels.

    up = interpolate(maps, (H, W));  prediction = argmax over pixels of cos(up_source[:, y, x], up_target)
    Products are enlarged instead of maps, which gives the same: only the lengths of the enlarged vectors need them, once an image.
    """
    pixels = points.round()
    size = points.new_tensor([source.width, source.height])
    vectors = sample(source.maps, (2 * pixels + 1) / size - 1, align_corners=False)
    products = torch.einsum("pd,dhw->phw", F.normalize(vectors, dim=1), target.maps)
    if target.lengths is None:
        target.lengths = enlarged_lengths(target.maps, target.height, target.width)
    found = []
    for product in products:
        scores = F.interpolate(product[None, None], (target.height, target.width), mode="bilinear", align_corners=False)[0, 0]
        found.append((scores / target.lengths).argmax())
    x, y = _columns_rows(torch.stack(found), (target.height, target.width))
    return torch.stack([x, y], dim=1)


def enlarged_lengths(maps: Float[Tensor, "dim rows columns"], height: int, width: int) -> Float[Tensor, "{height} {width}"]:
    """Lengths of the vectors of the enlarged map, in strips."""
    columns = (2 * torch.arange(width, device=maps.device) + 1) / width - 1
    strips = []
    for rows in torch.arange(height, device=maps.device).split(STRIP):
        grid = torch.stack(torch.meshgrid((2 * rows + 1) / height - 1, columns, indexing="ij")[::-1], dim=-1).to(maps.dtype)
        strip = F.grid_sample(maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        strips.append(strip[0].square().sum(0).sqrt())
    return torch.cat(strips).clamp(min=1e-12)


def insid3(source: View, target: View, points: Points, window: float = 7, temperature: float = 0.04) -> Points:
    """The nearest patch by index, and a soft-argmax of the cosines under a window about the best patch (INSID3).

    cell = clamp(round(x columns / W), round(y rows / H))                      half to even, no half-patch offset
    score = cos * exp(-((column - column*)^2 + (row - row*)^2) / (2 window^2))
    prediction = sum softmax(score / temperature) (column W / columns, row H / rows)
    """
    rows, columns = source.grid
    x = (points[:, 0] * columns / source.width).round().clamp(0, columns - 1).long()
    y = (points[:, 1] * rows / source.height).round().clamp(0, rows - 1).long()
    similar = cosines(source.maps[:, y, x].T, target.maps)
    rows, columns = target.grid
    best_x, best_y = _columns_rows(similar.argmax(1), target.grid)
    all_y, all_x = (torch.arange(n, device=points.device, dtype=points.dtype) for n in (rows, columns))
    distance = (all_y[None, :, None] - best_y[:, None, None]) ** 2 + (all_x[None, None] - best_x[:, None, None]) ** 2
    scores = similar.unflatten(1, (rows, columns)) * torch.exp(-distance / (2 * window**2))
    weights = (scores / temperature).flatten(1).softmax(1).unflatten(1, (rows, columns))
    expected = torch.stack([(weights.sum(1) * all_x).sum(1), (weights.sum(2) * all_y).sum(1)], dim=1)
    return expected * points.new_tensor([target.width / columns, target.height / rows])


def probe3d(source: View, target: View, points: Points) -> Points:
    """Squares padded right and below; bilinear source with aligned corners, nearest patch's corner as the prediction (probe3d).

    vector = normalized maps at 2 x / side - 1 (align_corners true);  prediction = (column side / columns, row side / rows)
    """
    assert source.side is not None
    assert target.side is not None
    vectors = sample(F.normalize(source.maps, dim=0), 2 * points / source.side - 1, align_corners=True)
    rows, columns = target.grid
    x, y = _columns_rows(cosines(vectors, target.maps).argmax(1), target.grid)
    return torch.stack([x * target.side / columns, y * target.side / rows], dim=1)


def same_place(source: View, target: View, points: Points) -> Points:
    """The same relative place in the other image: what can be had without features."""
    return points * points.new_tensor([target.width / source.width, target.height / source.height])


def sample(maps: Float[Tensor, "dim rows columns"], places: Points, *, align_corners: bool) -> Float[Tensor, "points dim"]:
    """Bilinear features at places x, y from -1 to 1."""
    grid = places[None, None].to(maps.dtype)
    return F.grid_sample(maps[None], grid, mode="bilinear", padding_mode="border", align_corners=align_corners)[0, :, 0].T


def cosines(vectors: Float[Tensor, "points dim"], maps: Float[Tensor, "dim rows columns"]) -> Float[Tensor, "points patches"]:
    """Of each vector with each patch."""
    return F.normalize(vectors, dim=1) @ F.normalize(maps.flatten(1), dim=0)


def _columns_rows(index: Int[Tensor, " points"], grid: tuple[int, int]) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    return (index % grid[1]).float(), (index // grid[1]).float()


Readout = Callable[[View, View, Points], Points]
READOUTS: dict[str, Readout] = {"own": own, "dift": dift, "insid3": insid3, "probe3d": probe3d}
