"""Clusters of patch features: standardised principal components and k-means. The only door to scikit-learn.

x = principal_components(features, 50)
centres = kmeans(x, 21, seed=0)
labels = nearest_centre(x, centres)
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor


class PrincipalComponents:
    """Coordinates of largest variance, after every dimension was scaled to zero mean and unit variance.

    What is added is not kept: means and covariance are summed up in float64.
    """

    def __init__(self, x: Float[Tensor, "points dim"] | None = None) -> None:
        self.count = 0
        if x is not None:
            self.add(x)

    def add(self, x: Float[Tensor, "points dim"]) -> None:
        """Take more points into account."""
        x = x.double()
        if not self.count:
            self.origin = x.mean(dim=0)  # keeps the sums small, and with them what cancels below
            self.sum, self.products = torch.zeros_like(self.origin), torch.zeros_like(x.T @ x)
        x = x - self.origin
        self.count += len(x)
        self.sum += x.sum(dim=0)
        self.products += x.T @ x

    def project(self, x: Float[Tensor, "*points dim"], components: int) -> Float[Tensor, "*points kept"]:
        """The points' first `components` coordinates, or all if there are fewer. A dimension without variance counts for nothing."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-9 * deviation.max(), 1 / deviation, 0.0)
        _, vectors = torch.linalg.eigh(covariance * scale * scale[:, None])
        axes = (scale[:, None] * vectors.flip(1)[:, :components]).float()
        return (x - (self.origin + mean).float()) @ axes


def kmeans(
    x: Float[Tensor, "points dim"], clusters: int, *, seed: int, iterations: int = 50, restarts: int = 5, points_per_cluster: int = 256
) -> Float[Tensor, "clusters dim"]:
    """Centres of the best of several runs of Lloyd's algorithm.

    Args:
        clusters: at most this many; fewer where there are fewer points.
        points_per_cluster: where there are more points, this many times `clusters` random ones are used (faiss's rule).
    """
    rng = np.random.default_rng(seed)
    most = clusters * points_per_cluster
    if len(x) > most:
        x = x[torch.from_numpy(np.sort(rng.choice(len(x), most, replace=False))).to(x.device)]
    fit = KMeans(min(clusters, len(x)), n_init=restarts, max_iter=iterations, random_state=int(rng.integers(2**31)), tol=0.0)
    return torch.from_numpy(fit.fit(x.cpu().numpy()).cluster_centers_).to(x)


def nearest_centre(x: Float[Tensor, "*points dim"], centres: Float[Tensor, "clusters dim"]) -> Int[Tensor, "*points"]:
    """The number of each point's nearest centre."""
    return (centres.square().sum(dim=1) - 2 * x @ centres.T).argmin(dim=-1)
