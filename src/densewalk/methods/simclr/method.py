"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020, arXiv 2002.05709).

Two views of an image are found among the views of all other images.

    z_i  = normalize(projector(backbone(view_i)))
    loss = mean over views i of  - ln ( exp(z_i z_pos(i) / tau) / sum over j != i of exp(z_i z_j / tau) )     equation 1, `nt_xent`

j goes over the views of all processes, and all of them have a gradient (core/distributed.py, `gathered_with_gradient`): the step is that
of one process on the whole batch, up to rounding. Batch normalization is over all processes, too.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.augmentation.crops import central_square, resized_crop
from densewalk.data.augmentation.draws import draw_distortion, maybe
from densewalk.data.augmentation.views import collect, make_views, sample_box
from densewalk.data.images import normalize
from densewalk.data.sources import Source, SpacedImages, open_images
from densewalk.methods.simclr.settings import SimclrSettings
from densewalk.models.backbone import Backbone
from densewalk.models.heads import normalized_mlp
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.sampler import Item
from densewalk.training.schedules import constant, cosine
from densewalk.visualization.neighbors import draw_neighbors

IMAGES_LOOKED_AT = 64  # by the image of a finished training
Embeddings = Float[Tensor, "batch dim"]


class TwoViews(Dataset[dict[str, Tensor]]):
    """Two crops of each image: `views` [2, 3, size, size], uint8, and `views_distortions`, a row for each."""

    def __init__(self, images: SpacedImages, settings: SimclrSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        s, image, views = self.settings, self.images.draw(item.index, generator), []
        for _ in range(2):
            crop = resized_crop(image, sample_box(image, s.scale, generator), s.size, InterpolationMode.BICUBIC)
            flip = maybe(0.5, generator)
            views.append((crop, draw_distortion(generator, strength=s.color_strength)._replace(flip=flip)))
        return collect("views", views, s.size)

    def plain(self, index: int) -> UInt8[Tensor, "3 size size"]:
        """The middle of an image, the same at each call."""
        return central_square(self.images.draw(index, torch.Generator().manual_seed(0)), self.settings.size)


class Simclr(Method):
    """One training run of SimCLR.

    Raises:
        UserError: a view's side is not a multiple of the patch size, or the warm-up is longer than the training.
    """

    def __init__(self, settings: SimclrSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        if settings.size % backbone.patch:
            near = max(1, round(settings.size / backbone.patch)) * backbone.patch
            raise UserError(f"size {settings.size} is not a multiple of the patch size {backbone.patch}", allowed=f"e.g. {near}")
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "simclr"))
            self.projector = normalized_mlp([backbone.dim, *settings.projector_widths])

    @staticmethod
    def dataset(settings: SimclrSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Two views of every image, and of a frame of every stretch of a video."""
        return TwoViews(SpacedImages([open_images(source) for source in sources], settings.frame_seconds), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and projector, with and without weight decay."""
        s, total = self.settings, self.total_steps
        warmup = round(s.warmup_epochs * self.steps_per_epoch)
        if warmup > total:
            raise UserError(f"warmup_epochs {s.warmup_epochs:g} are {warmup} steps, the training has {total}", todo="lower warmup_epochs")
        lr = cosine(s.lr * s.batch_size / 256, 0.0, total, warmup=warmup)
        return decay_groups("all", list(self.named_parameters()), lr, constant(s.weight_decay, total))

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Float[Tensor, "batch 2 3 height width"]:
        """Flips, colors and blur."""
        return make_views(batch, device, ("views",))["views"]

    def step(self, batch: Tensor, step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of two views each, [b, 2, 3, h, w]."""
        features = self.backbone.cls(batch.transpose(0, 1).flatten(0, 1))  # [2 b, d], by view
        one, two = self.projector(features).chunk(2)
        loss = nt_xent(one, two, self.settings.temperature)
        return loss * (2 if self.settings.summed_views else 1), {"feature_rank": feature_rank(features)}

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some images with those that are most similar to each."""
        assert isinstance(data, TwoViews)
        count = min(IMAGES_LOOKED_AT, len(data))
        images = torch.stack([data.plain(i * len(data) // count) for i in range(count)])
        device = next(self.backbone.parameters()).device
        features = torch.cat([self.backbone.cls(normalize(image[None].to(device) / 255)) for image in images])
        draw_neighbors(folder / "neighbors.png", images, features)

    def export(self) -> Backbone:
        """The backbone, without the projector."""
        return self.backbone


def nt_xent(one: Embeddings, two: Embeddings, temperature: float) -> Float[Tensor, ""]:
    """This process's part of the loss: the mean over its own views, each against all views of all processes."""
    with torch.autocast(one.device.type, enabled=False):
        own = F.normalize(torch.cat([one, two]).float(), dim=1)
        everyone = distributed.gathered_with_gradient(own).flatten(0, 1)
        return nt_xent_among(own, everyone, distributed.rank() * len(own), temperature)


def nt_xent_among(own: Float[Tensor, "views dim"], everyone: Float[Tensor, "all dim"], first: int, temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding the other view of the same image among all views but itself.

    for i in range(views):
        p = exp(own[i] @ everyone.T / temperature), without everyone[first + i], which is own[i] itself
        loss -= ln(p[the other view of i] / p.sum()) / views

    Args:
        own: views of unit length, the first views of all images, then the second ones. first: their place in `everyone`.
    """
    count = len(own)
    places = torch.arange(count, device=own.device)
    logits = (own @ everyone.T / temperature).scatter(1, (first + places)[:, None], -torch.inf)
    return F.cross_entropy(logits, first + (places + count // 2) % count)


METHOD = Simclr
