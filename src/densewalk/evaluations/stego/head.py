"""What STEGO trains: the head that makes codes of frozen features, and the probes that read them."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from densewalk.evaluations.common.dense_features import BATCH
from densewalk.evaluations.stego.losses import Maps, cluster_scores
from densewalk.evaluations.stego.settings import StegoSettings
from densewalk.ops.clustering import POINTS, spherical_kmeans


class Head(nn.Module):
    """Codes s = linear(f) + mlp(f), both of 1x1 convolutions."""

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(dim, code_dim, 1)
        self.mlp = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.ReLU(), nn.Conv2d(dim, code_dim, 1))

    def forward(self, features: Maps) -> Float[Tensor, "batch code_dim rows columns"]:
        """The codes of features of which no channel is dropped."""
        return self.linear(features) + self.mlp(features)

    def train_codes(
        self, features: Maps, dropout: float, generator: Generator
    ) -> tuple[Maps, Float[Tensor, "batch code_dim rows columns"]]:
        """Features to compare and codes, each of channels dropped by itself."""
        codes = self.linear(drop_channels(features, dropout, generator)) + self.mlp(drop_channels(features, dropout, generator))
        return drop_channels(features, dropout, generator), codes


class Stego(nn.Module):
    """Head and probes.

    centers: of the cluster probe, which is trained. code_centers, feature_centers: by k-means after the training.
    """

    def __init__(self, settings: StegoSettings, dim: int) -> None:
        super().__init__()
        self.head = Head(dim, settings.code_dim)
        self.linear = nn.Conv2d(settings.code_dim, settings.label_values, 1)
        self.centers = nn.Parameter(torch.randn(settings.clusters, settings.code_dim))
        self.code_centers: Tensor
        self.feature_centers: Tensor
        self.register_buffer("code_centers", torch.zeros(settings.clusters, settings.code_dim))
        self.register_buffer("feature_centers", torch.zeros(settings.clusters, dim))

    def optimizer(self, settings: StegoSettings) -> torch.optim.Adam:
        """Adam with a learning rate for the head and one for the probes."""
        probes = [*self.linear.parameters(), self.centers]
        groups = [
            {"params": [*self.head.parameters()], "lr": settings.learning_rate},
            {"params": probes, "lr": settings.probe_learning_rate},
        ]
        return torch.optim.Adam(groups)

    def scores(
        self, features: Float[Tensor, "2 dim rows columns"], size: tuple[int, int]
    ) -> dict[str, Float[Tensor, "labels height width"]]:
        """What each probe says of an image's pixels: the shares of its labels.

        Args:
            features: of the image and, turned back, of its mirrored self; their codes are averaged, then enlarged (bilinear).
        """
        codes = F.interpolate(self.head(features).mean(0, keepdim=True), size, mode="bilinear")
        plain = F.interpolate(features.mean(0, keepdim=True), size, mode="bilinear")
        return {
            "clusters": shares(codes, self.centers),
            "kmeans": shares(codes, self.code_centers),
            "features": shares(plain, self.feature_centers),
            "linear": self.linear(codes)[0].softmax(0),
        }

    @torch.inference_mode()
    def fit_centers(self, maps: Maps, seed: int) -> None:
        """Cluster codes and features by spherical k-means, at equally many random places of all views."""
        clusters, places = len(self.centers), maps.shape[2] * maps.shape[3]
        generator = torch.Generator().manual_seed(seed)
        each = min(places, -(-clusters * POINTS // len(maps)))
        found: dict[str, list[Tensor]] = {"code_centers": [], "feature_centers": []}
        for part in maps.split(BATCH):
            features = part.to(self.centers)
            chosen = torch.rand(len(part), places, generator=generator).argsort(1)[:, :each].to(features.device)
            for name, own in (("feature_centers", features), ("code_centers", self.head(features))):
                flat = own.flatten(2).transpose(1, 2)
                found[name] += flat.gather(1, chosen[:, :, None].expand(-1, -1, flat.shape[2])).unbind(0)
        for name, points in found.items():
            centers = spherical_kmeans(torch.cat(points), clusters, seed=seed)
            self.get_buffer(name).copy_(centers[torch.arange(clusters) % len(centers)])  # fewer points than clusters


def shares(maps: Maps, centers: Float[Tensor, "clusters dim"]) -> Float[Tensor, "clusters rows columns"]:
    """softmax(2 cos) of the first map with each center: the release's log probabilities, without the logarithm."""
    return (2 * cluster_scores(maps, centers)[0]).softmax(0)


def drop_channels(features: Maps, share: float, generator: Generator) -> Maps:
    """Set random channels of each image to zero, and divide the others by their share."""
    if not share:
        return features
    kept = torch.rand(features.shape[:2], generator=generator) >= share
    return features * (kept.to(features) / (1 - share))[:, :, None, None]
