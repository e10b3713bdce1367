"""How much of a map of features is position: streamed sums over images, and what takes position out of a map.

    places, ridge = PlaceSums(), RidgeSums()
    for maps in batches:                                # [batch, dim, rows, columns], all of one grid
        places.add(maps); ridge.add(maps)
    places.mean, places.shares(), ridge.fit(1e-3)

Sums are float64. Everything but the SVD is a formula of this project; the SVD debias is INSID3's.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

FREQUENCIES = 8  # of the fixed code: 2^0 to 2^7 times pi
LEAST_LENGTH = 1e-6  # of what is left of a unit vector: less is rounding, and becomes zero
Maps = Float[Tensor, "batch dim rows columns"]


def coordinates(rows: int, columns: int, device: torch.device | str = "cpu") -> Float64[Tensor, "places 2"]:
    """y and x of every place, row by row; from -1 to 1 between the centers of the outer places, 0 where there is one row or column."""

    def axis(count: int) -> Tensor:
        return torch.linspace(-1 if count > 1 else 0, 1 if count > 1 else 0, count, dtype=torch.float64, device=device)

    return torch.stack(torch.meshgrid(axis(rows), axis(columns), indexing="ij"), dim=-1).flatten(0, 1)


def fixed_code(rows: int, columns: int) -> Float[Tensor, "code rows columns"]:
    """sin and cos of 2^k pi y and of 2^k pi x, k = 0 to 7: 32 numbers for each place.

    y = (row + 0.5) / rows and x likewise, so from 0 to 1: between -1 and 1, opposite borders would have the same code.
    """
    frequencies = math.pi * 2.0 ** torch.arange(FREQUENCIES, dtype=torch.float64)
    y, x = ((torch.arange(count, dtype=torch.float64) + 0.5) / count for count in (rows, columns))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)  # [rows, columns, 2]
    angles = (places[..., None] * frequencies).flatten(2)  # [rows, columns, 2 frequencies]
    return torch.cat([angles.sin(), angles.cos()], dim=2).permute(2, 0, 1).float()


class VarianceShares(NamedTuple):
    """Share of the features' variance that lies between places: as measured, and corrected for the number of images."""

    eta2: float
    omega2: float


class PlaceSums:
    """The mean feature at each place of the grid, and the variance between places."""

    def __init__(self) -> None:
        self.images = 0
        self.sums = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, maps: Maps) -> None:
        """Add a batch."""
        maps = maps.double()
        self.images += len(maps)
        self.sums = self.sums.to(maps.device) + maps.sum(0)
        self.squares = self.squares.to(maps.device) + maps.square().sum()

    @property
    def mean(self) -> Float64[Tensor, "dim rows columns"]:
        """p_ij, the mean over images of the features at place (i, j)."""
        return self.sums / self.images

    def shares(self) -> VarianceShares:
        """eta^2 and omega^2, over B images and hw places; m_ij the mean at a place, m the mean of all.

            SS_between = B sum_ij |m_ij - m|^2,  SS_total = sum |f - m|^2
            eta^2 = SS_between / SS_total,  omega^2 = (SS_between - (hw - 1) MS_w) / (SS_total + MS_w),
            MS_w = (SS_total - SS_between) / (B hw - hw)

        Pure noise has eta^2 = 1 / B and omega^2 = 0. NaN where it is not defined: one image, or features that never change.
        """
        means = self.mean.flatten(1)  # [dim, places]
        places, center = means.shape[1], means.mean(1)
        between = float(self.images * (means - center[:, None]).square().sum())
        total = float(self.squares - self.images * places * center.square().sum())
        if self.images < 2 or total <= 0:
            return VarianceShares(math.nan, math.nan)
        within = (total - between) / (places * (self.images - 1))
        return VarianceShares(between / total, (between - (places - 1) * within) / (total + within))


class Ridge(NamedTuple):
    """(y, x) = weight (f - feature_mean) + target_mean."""

    weight: Float64[Tensor, "2 dim"]
    feature_mean: Float64[Tensor, " dim"]
    target_mean: Float64[Tensor, " 2"]

    def squared_errors(self, maps: Maps) -> Float64[Tensor, "batch 2"]:
        """Sum over the places of each image of the squared error of y and of x."""
        features = maps.double().flatten(2).transpose(1, 2)  # [b, places, dim]
        found = (features - self.feature_mean) @ self.weight.T + self.target_mean
        return (found - coordinates(maps.shape[2], maps.shape[3], maps.device)).square().sum(1)


class RidgeSums:
    """A ridge regression of the place (y, x) on its features."""

    def __init__(self) -> None:
        self.count = 0
        zero = torch.zeros((), dtype=torch.float64)
        self.features, self.products, self.crosses, self.targets = zero, zero, zero, zero

    def add(self, maps: Maps) -> None:
        """Add a batch."""
        target = coordinates(maps.shape[2], maps.shape[3], maps.device).repeat(len(maps), 1)
        features = maps.double().flatten(2).transpose(1, 2).flatten(0, 1)  # [patches, dim]
        self.count += len(features)
        self.features = self.features.to(maps.device) + features.sum(0)
        self.products = self.products.to(maps.device) + features.T @ features
        self.crosses = self.crosses.to(maps.device) + features.T @ target
        self.targets = self.targets.to(maps.device) + target.sum(0)

    def fit(self, ridge: float) -> Ridge:
        """Solve (X^T X + ridge n I) w = X^T Y for centered X and Y of n patches."""
        mean, target = self.features / self.count, self.targets / self.count
        products = self.products - self.count * torch.outer(mean, mean)
        crosses = self.crosses - self.count * torch.outer(mean, target)
        penalty = ridge * self.count * torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        return Ridge(torch.linalg.solve(products + penalty, crosses).T, mean, target)


def total_squares(rows: int, columns: int) -> Float64[Tensor, " 2"]:
    """Sum over the places of an image of the squared distance of y, and of x, from its mean."""
    return coordinates(rows, columns).square().sum(0)  # the mean is 0


# -- taking position out -------------------------------------------------------------------------------------------------


def position_basis(blank: Float[Tensor, "dim rows columns"], components: int) -> Float[Tensor, "dim components"]:
    """The first left singular vectors of the unit-length tokens of a blank image minus their mean over places.

    Source: INSID3; see `without_subspace`.
    """
    tokens = torch.nn.functional.normalize(blank.double().flatten(1), dim=0)
    vectors = torch.linalg.svd(tokens - tokens.mean(1, keepdim=True), full_matrices=False).U
    return vectors[:, :components].to(blank.dtype)


def without_subspace(maps: Maps, basis: Float[Tensor, "dim components"]) -> Maps:
    """n((I - U U^T) n(f)) at each place, n(x) = x / |x|; zero where nothing but rounding is left."""
    unit = torch.nn.functional.normalize(maps, dim=1)
    left = unit - torch.einsum("dk,bkhw->bdhw", basis, torch.einsum("dk,bdhw->bkhw", basis, unit))
    length = left.norm(dim=1, keepdim=True)
    return torch.where(length < LEAST_LENGTH, 0.0, left / length.clamp(min=LEAST_LENGTH))


def without_mean(maps: Maps, mean: Float[Tensor, "dim rows columns"]) -> Maps:
    """f_ij - p_ij, as long as f_ij was: the direction changes, and nothing that depends on the features' size."""
    left = maps - mean
    length = left.norm(dim=1, keepdim=True)
    return torch.where(length == 0, 0.0, left / length.clamp(min=torch.finfo(maps.dtype).tiny) * maps.norm(dim=1, keepdim=True))
