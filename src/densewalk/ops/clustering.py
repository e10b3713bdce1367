"""Clusters of patch features: standardized principal components and k-means.

x = PrincipalComponents(features).project(features, 50)
centers = kmeans(x, 21, seed=0)
labels = nearest_center(x, centers)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor
from torch.nn import functional as F

POINTS = 256  # per cluster, that k-means uses (faiss's rule)
Sums = tuple[int, Float64[Tensor, " dim"], Float64[Tensor, "dim dim"]]  # number, sum, and sum of the products of points less the origin


class PrincipalComponents:
    """Coordinates of largest variance after scaling to unit variance, from sums in float64."""

    def __init__(self, x: Float[Tensor, "points dim"] | None = None) -> None:
        self.count = 0
        if x is not None:
            self.add(x)

    def add(self, x: Float[Tensor, "points dim"]) -> None:
        """Add points."""
        if not self.count:
            self.begin(x.double().mean(dim=0))
        self.add_sums(self.sums_of(x))

    def begin(self, origin: Float64[Tensor, " dim"]) -> None:
        """Choose the origin: a point among the points keeps the sums small, so that less cancels in `project`."""
        self.origin = origin
        self.sum, self.products = torch.zeros_like(origin), torch.outer(origin, origin).zero_()

    def sums_of(self, x: Float[Tensor, "points dim"]) -> Sums:
        """The sums over some points, which another process may add to its own."""
        x = x.double() - self.origin
        return len(x), x.sum(dim=0), x.T @ x

    def add_sums(self, sums: Sums) -> None:
        """Add points by their sums; the order decides about the last bits."""
        count, total, products = sums
        self.count += count
        self.sum += total
        self.products += products

    def project(self, x: Float[Tensor, "*points dim"], components: int) -> Float[Tensor, "*points kept"]:
        """The points' first `components` coordinates; dimensions without variance are ignored."""
        return self.projection(components)(x)

    def projection(self, components: int) -> "Projection":
        """The map to the first `components` coordinates, of the points added so far: one eigendecomposition for any number of calls."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-9 * deviation.max(), 1 / deviation, 0.0)
        _, vectors = torch.linalg.eigh(covariance * scale * scale[:, None])
        axes = (scale[:, None] * vectors.flip(1)[:, :components]).float()
        return Projection((self.origin + mean).float(), axes)


@dataclass(frozen=True)
class Projection:
    """x -> (x - mean) axes."""

    mean: Float[Tensor, " dim"]
    axes: Float[Tensor, "dim kept"]

    def __call__(self, x: Float[Tensor, "*points dim"]) -> Float[Tensor, "*points kept"]:
        """Project points."""
        return (x - self.mean) @ self.axes


def kmeans(
    x: Float[Tensor, "points dim"], clusters: int, *, seed: int, iterations: int = 50, restarts: int = 5, points_per_cluster: int = POINTS
) -> Float[Tensor, "clusters dim"]:
    """Centers of the best of several runs of Lloyd's algorithm; not more than there are points.

    points_per_cluster: if there are more points, this many times `clusters` random ones are used.
    """
    generator = np.random.default_rng(seed)
    x = sample_points(x, clusters * points_per_cluster, generator)
    fit = KMeans(min(clusters, len(x)), n_init=restarts, max_iter=iterations, random_state=int(generator.integers(2**31)), tol=0.0)
    return torch.from_numpy(fit.fit(x.cpu().numpy()).cluster_centers_).to(x)


def nearest_center(x: Float[Tensor, "*points dim"], centers: Float[Tensor, "clusters dim"]) -> Int[Tensor, "*points"]:
    """The number of each point's nearest center."""
    return (centers.square().sum(dim=1) - 2 * x @ centers.T).argmin(dim=-1)


def spherical_kmeans(
    x: Float[Tensor, "points dim"], clusters: int, *, seed: int, iterations: int = 50, restarts: int = 5, points_per_cluster: int = POINTS
) -> Float[Tensor, "clusters dim"]:
    """Centers of unit length by cosine; arguments and initialization are those of `kmeans`.

    x = x / |x|
    until the sum of cosines grows no more:
        near[p] = argmax over k of x[p] . center[k];  center[k] = sum of x[near == k], made a unit vector

    A center without points stays where it is.
    """
    generator = np.random.default_rng(seed)
    x = F.normalize(sample_points(x, clusters * points_per_cluster, generator), dim=-1)
    best, most = x[:0], -torch.inf
    for _ in range(restarts):
        start, _ = kmeans_plusplus(x.cpu().numpy(), min(clusters, len(x)), random_state=int(generator.integers(2**31)))
        centers, total = F.normalize(torch.from_numpy(start).to(x), dim=-1), -torch.inf
        for _ in range(iterations):
            cosine, near = (x @ centers.T).max(dim=-1)
            if float(cosine.sum()) <= total:
                break
            total = float(cosine.sum())
            sums = torch.zeros_like(centers).index_add_(0, near, x)
            centers = torch.where(sums.norm(dim=-1, keepdim=True) > 0, F.normalize(sums, dim=-1), centers)
        if total > most:
            best, most = centers, total
    return best


def sample_points(x: Shaped[Tensor, " points *rest"], most: int, generator: np.random.Generator) -> Shaped[Tensor, " some *rest"]:
    """At most `most` random points, in their order."""
    if len(x) <= most:
        return x
    return x[torch.from_numpy(np.sort(generator.choice(len(x), most, replace=False))).to(x.device)]
