"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020, arXiv 2002.05709).

Two views of an image are found among the views of all other images.

    z_i  = normalize(projector(backbone(view_i)))
    loss = mean over views i of  - ln ( exp(z_i z_pos(i) / tau) / sum over j != i of exp(z_i z_j / tau) )     equation 1, `nt_xent`

j goes over the views of all processes, and all of them have a gradient (core/distributed.py, `gathered_with_gradient`): the step is that
of one process on the whole batch, up to rounding. Batch normalization is over all processes, too.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.data.augmentation.crops import resized_crop
from densewalk.data.augmentation.draws import draw_distortion, maybe
from densewalk.data.augmentation.views import sample_box
from densewalk.data.sources import Source
from densewalk.methods.simclr.settings import SimclrSettings
from densewalk.methods.simclr.two_views import Contrastive, TwoViews, View, open_spaced
from densewalk.models.backbone import Backbone
from densewalk.models.heads import normalized_mlp
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import ParamGroup, decay_groups
from densewalk.training.schedules import constant, cosine

Embeddings = Float[Tensor, "batch dim"]


class SimclrViews(TwoViews[SimclrSettings]):
    """Two crops of each image, with colors and blur drawn alike."""

    def crops(self, image: UInt8[Tensor, "3 height width"], generator: Generator) -> list[View]:
        """The crops, and how each is distorted."""
        s, views = self.settings, []
        for _ in range(2):
            crop = resized_crop(image, sample_box(image, s.scale, generator), s.size, InterpolationMode.BICUBIC)
            flip = maybe(0.5, generator)
            views.append((crop, draw_distortion(generator, strength=s.color_strength)._replace(flip=flip)))
        return views


class Simclr(Contrastive):
    """One training run of SimCLR.

    Raises:
        UserError: a view's side is not a multiple of the patch size, or the warm-up is longer than the training.
    """

    settings: SimclrSettings

    def __init__(self, settings: SimclrSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        settings.require_network(backbone.arch)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "simclr"))
            self.projector = normalized_mlp([backbone.dim, *settings.projector_widths])

    @staticmethod
    def dataset(settings: SimclrSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Two views of every image, and of a frame of every stretch of a video."""
        return SimclrViews(open_spaced(sources, settings), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and projector, with and without weight decay."""
        s, total = self.settings, self.total_steps
        lr = cosine(s.lr * s.batch_size / 256, 0.0, total, warmup=round(self.warmup_steps()))
        return decay_groups("all", list(self.named_parameters()), lr, constant(s.weight_decay, total))

    def step(self, batch: Tensor, step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of two views each, [b, 2, 3, h, w]."""
        features = self.backbone.cls(batch.transpose(0, 1).flatten(0, 1))  # [2 b, d], by view
        one, two = self.projector(features).chunk(2)
        loss = nt_xent(one, two, self.settings.temperature)
        return loss * (2 if self.settings.summed_views else 1), {"feature_rank": feature_rank(features)}

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
