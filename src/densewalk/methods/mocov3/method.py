"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen et al., ICCV 2021, arXiv 2104.02057).

A network and its predictor find an image's key, which a momentum network makes of another view, among the keys of all images.

    q   = predictor(projector(backbone(view)))           of both views
    m   : p_k <- m p_k + (1 - m) p_q, m from 0.99 to 1 along a cosine; before the keys are computed       `update_keys`
    k   = projector(backbone(view)) of the momentum network, without gradient
    ctr(q, k) = 2 tau mean_i CE(normalize(q_i) normalize(k_j) / tau over all j, i)                       `contrast`
    loss = ctr(q_1, k_2) + ctr(q_2, k_1)                                                                  algorithm 1

j goes over the keys of all processes. Batch normalization is over all processes; the momentum network normalizes by its own batch.
The patches' projection is random and does not learn (section 4.2). An epoch on a video is one frame of each second of it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.data.augmentation.views import random_crop
from densewalk.data.sources import Source
from densewalk.methods.mocov3.settings import MocoV3Settings
from densewalk.methods.simclr.two_views import Contrastive, TwoViews, View, open_spaced
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import normalized_mlp
from densewalk.models.surgery import with_fixed_positions
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import ParamGroup
from densewalk.training.schedules import constant, cosine, per_step

Embeddings = Float[Tensor, "batch dim"]


class ByolViews(TwoViews[MocoV3Settings]):
    """Two crops of each image, distorted as BYOL's."""

    def crops(self, image: UInt8[Tensor, "3 height width"], generator: Generator) -> list[View]:
        """The crops, and how each is distorted."""
        s = self.settings
        first = random_crop(image, s.size, s.scale, generator, blur=1.0)
        return [first, random_crop(image, s.size, s.scale, generator, blur=0.1, solarize=0.2)]


class Network(nn.Module):
    """A backbone and the projector of its CLS token."""

    def __init__(self, backbone: Backbone, settings: MocoV3Settings) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = normalized_mlp([backbone.dim, settings.projector_hidden, settings.projector_hidden, settings.out_dim])

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Embeddings:
        """The projected CLS token."""
        return self.projector(self.backbone.cls(images))


class MocoV3(Contrastive):
    """One training run of MoCo v3.

    Raises:
        UserError: a view's side is not a multiple of the patch size, the network has rotary positions, or it was loaded with positions
            that would be lost.
    """

    settings: MocoV3Settings

    def __init__(self, settings: MocoV3Settings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings
        settings.require_network(backbone.arch)
        if settings.positions == "sincos":
            backbone = with_fixed_positions(backbone, settings.size, first="row")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "mocov3"))
            self.student = Network(backbone, settings)
            self.predictor = normalized_mlp([settings.out_dim, settings.predictor_hidden, settings.out_dim])
        if settings.freeze_patch_embed:
            backbone.vit.patch_embed.requires_grad_(False)
        self.teacher = make_teacher(self.student).train()  # for its batch normalization; it has no stochastic depth
        self.momentum = cosine(settings.teacher_momentum, 1.0, total_steps)

    @staticmethod
    def dataset(settings: MocoV3Settings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Two views of every image, and of a frame of every stretch of a video."""
        return ByolViews(open_spaced(sources, settings), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Network and predictor, all with weight decay."""
        s, total = self.settings, self.total_steps
        lr = per_step(s.lr * s.batch_size / 256, 0.0, total, warmup=self.warmup_steps())
        learned = [p for part in (self.student, self.predictor) for p in part.parameters() if p.requires_grad]
        return [ParamGroup("all", learned, lr, constant(s.weight_decay, total))]

    def step(self, batch: Tensor, step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of two views each, [b, 2, 3, h, w]."""
        features = [self.student.backbone.cls(view) for view in batch.unbind(1)]
        queries = [self.predictor(self.student.projector(x)) for x in features]
        self.update_keys(step)
        keys = self.encode_keys(batch)
        loss = sum(contrast(q, k, self.settings.temperature) for q, k in zip(queries, keys[::-1], strict=True))
        return loss, {"feature_rank": feature_rank(features[0])}  # type: ignore[return-value]

    def update_keys(self, step: int) -> None:
        """Move the momentum network."""
        update_teacher(self.teacher, self.student, float(self.momentum[step]))

    @torch.no_grad()
    def encode_keys(self, batch: Float[Tensor, "batch 2 3 height width"]) -> list[Embeddings]:
        """The keys of both views, each normalized over its own batch."""
        return [self.teacher(view) for view in batch.unbind(1)]

    def export(self) -> Backbone:
        """The network that learns by gradients, as published, without projector and predictor."""
        return self.student.backbone


def contrast(queries: Embeddings, keys: Embeddings, temperature: float) -> Float[Tensor, ""]:
    """This process's part of ctr(q, k), against the keys of all processes."""
    with torch.autocast(queries.device.type, enabled=False):
        everyone = distributed.gathered(F.normalize(keys.float(), dim=1)).flatten(0, 1)
        return contrast_among(queries.float(), everyone, distributed.rank() * len(queries), temperature)


def contrast_among(queries: Embeddings, keys: Float[Tensor, "all dim"], first: int, temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of finding each query's key among all keys, times twice the temperature.

    for i in range(batch):
        p = exp(normalize(queries[i]) @ keys.T / temperature)
        loss -= 2 temperature ln(p[first + i] / p.sum()) / batch
    """
    logits = F.normalize(queries, dim=1) @ keys.T / temperature
    places = first + torch.arange(len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(logits, places)


METHOD = MocoV3
