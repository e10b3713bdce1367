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
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.augmentation.crops import central_square
from densewalk.data.augmentation.views import collect, make_views, random_crop
from densewalk.data.images import normalize
from densewalk.data.sources import Source, SpacedImages, open_images
from densewalk.methods.mocov3.settings import MocoV3Settings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import normalized_mlp
from densewalk.models.surgery import fix_positions
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import Method, ParamGroup
from densewalk.training.sampler import Item
from densewalk.training.schedules import constant, cosine, per_step
from densewalk.visualization.neighbors import draw_neighbors

IMAGES_LOOKED_AT = 64  # by the image of a finished training
Embeddings = Float[Tensor, "batch dim"]


class TwoViews(Dataset[dict[str, Tensor]]):
    """Two crops of each image, distorted as BYOL's: `views` [2, 3, size, size], uint8, and `views_distortions`, a row for each."""

    def __init__(self, images: SpacedImages, settings: MocoV3Settings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image, s = self.images.draw(item.index, generator), self.settings
        first = random_crop(image, s.size, s.scale, generator, blur=1.0)
        second = random_crop(image, s.size, s.scale, generator, blur=0.1, solarize=0.2)
        return collect("views", [first, second], s.size)

    def plain(self, index: int) -> UInt8[Tensor, "3 size size"]:
        """The middle of an image, the same at each call."""
        return central_square(self.images.draw(index, torch.Generator().manual_seed(0)), self.settings.size)


class Network(nn.Module):
    """A backbone and the projector of its CLS token."""

    def __init__(self, backbone: Backbone, settings: MocoV3Settings) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = normalized_mlp([backbone.dim, settings.projector_hidden, settings.projector_hidden, settings.out_dim])

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Embeddings:
        """The projected CLS token."""
        return self.projector(self.backbone.cls(images))


class MocoV3(Method):
    """One training run of MoCo v3.

    Raises:
        UserError: a view's side is not a multiple of the patch size, the network has rotary positions, or it was loaded with positions
            that would be lost.
    """

    def __init__(self, settings: MocoV3Settings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings
        if settings.size % backbone.patch:
            near = max(1, round(settings.size / backbone.patch)) * backbone.patch
            raise UserError(f"size {settings.size} is not a multiple of the patch size {backbone.patch}", allowed=f"e.g. {near}")
        if settings.positions == "sincos":
            fix_positions(backbone, first="row")
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
        return TwoViews(SpacedImages([open_images(source) for source in sources], settings.frame_seconds), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Network and predictor, all with weight decay."""
        s, total = self.settings, self.total_steps
        warmup = s.warmup_epochs * self.steps_per_epoch
        if warmup > total:
            raise UserError(f"warmup_epochs {s.warmup_epochs:g} are {warmup:g} steps, the training has {total}", todo="lower warmup_epochs")
        lr = per_step(s.lr * s.batch_size / 256, 0.0, total, warmup=warmup)
        learned = [p for part in (self.student, self.predictor) for p in part.parameters() if p.requires_grad]
        return [ParamGroup("all", learned, lr, constant(s.weight_decay, total))]

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Float[Tensor, "batch 2 3 height width"]:
        """Flips, colors and blur."""
        return make_views(batch, device, ("views",))["views"]

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

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some images with those that are most similar to each."""
        assert isinstance(data, TwoViews)
        count = min(IMAGES_LOOKED_AT, len(data))
        images = torch.stack([data.plain(i * len(data) // count) for i in range(count)])
        backbone = self.export()
        device = next(backbone.parameters()).device
        features = torch.cat([backbone.cls(normalize(image[None].to(device) / 255)) for image in images])
        draw_neighbors(folder / "neighbors.png", images, features)

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
