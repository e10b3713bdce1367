"""Distillation: a vision transformer learns the features of other networks of any family.

    x            = a crop of an image, the same pixels for all networks                `DistillCrops`
    (m_k, v_k)   = map and vector of teacher k, frozen                                 `encode_teacher`
    (p, c)       = patch tokens and CLS token of the network that learns
    loss         = mean_k (dense_weight d(P_k(p), m_k) + pooled_weight d(Q_k(c), v_k)) `map_loss`, `feature_loss`

P_k and Q_k are projectors to the width of teacher k, which the export leaves out. Without augmentation, what a teacher gives for an image
is computed once and kept. Teachers get images that are normalized with their own statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.augmentation.views import make_views
from densewalk.data.images import denormalize, normalize
from densewalk.data.sources import Source, open_images
from densewalk.methods.distill.augmentation import DistillCrops
from densewalk.methods.distill.losses import feature_loss, map_loss
from densewalk.methods.distill.settings import DistillSettings
from densewalk.models.backbone import Backbone
from densewalk.models.heads import mlp
from densewalk.models.interface import Network
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.sampler import Item
from densewalk.training.schedules import constant, per_step
from densewalk.visualization.similarity import draw_similarity, to_row
from densewalk.visualization.strips import write_rows

IMAGES_SHOWN = 4  # in the image of a finished training
Images = Float[Tensor, "batch 3 height width"]


@dataclass(frozen=True)
class Features:
    """What a teacher gives for some images; vector: None where it is not learned."""

    map: Float[Tensor, "batch dim rows columns"]
    vector: Float[Tensor, "batch pooled_dim"] | None

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return sum(t.numel() * t.element_size() for t in (self.map, self.vector) if t is not None)


class Distill(Method):
    """One training run of distillation.

    Args:
        teachers: frozen networks. They are no part of the state, which holds what is learned.

    Raises:
        UserError: no teacher, one that gives no vectors where they are to be learned, or a size that a network does not take.
    """

    def __init__(
        self,
        settings: DistillSettings,
        backbone: Backbone,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        teachers: Sequence[Network] = (),
    ) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings, self.backbone = settings, backbone
        self.teachers = list(teachers)  # in a list, which torch takes for no part of this module
        settings.require_network(backbone.arch)
        check_teachers(settings, self.teachers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "distill"))
            self.dense_projectors = nn.ModuleList(self._projector(t.dim, settings.dense_weight) for t in self.teachers)
            self.pooled_projectors = nn.ModuleList(self._projector(t.pooled_dim, settings.pooled_weight) for t in self.teachers)
        self.known: list[dict[int, Features]] = [{} for _ in self.teachers]
        self.room = int(settings.cache_gib * 2**30)

    def _projector(self, dim: int, weight: float) -> nn.Module:
        """From the network's features to a teacher's; nothing where they are not learned."""
        hidden = [self.settings.projector_hidden] if self.settings.projector_hidden else []
        return mlp([self.backbone.dim, *hidden, dim]) if weight else nn.Identity()

    @staticmethod
    def dataset(settings: DistillSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """A crop of every usable frame of every video and of every image."""
        return DistillCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Network and projectors, with and without weight decay."""
        s, total = self.settings, self.total_steps
        warmup = s.warmup_epochs * self.steps_per_epoch
        if obstacle := s.warmup_obstacle(total, self.steps_per_epoch):
            raise UserError(obstacle)
        lr = per_step(s.lr, 0.0, total, warmup=warmup)
        return decay_groups("all", list(self.named_parameters()), lr, constant(s.weight_decay, total))

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The crops in the network's size and in the teachers'; `index` stays on the CPU."""
        crops = make_views(batch, device, ("crop",))["crop"][:, 0]
        s = self.settings
        return {"images": resized(crops, s.size), "shown": resized(crops, s.teachers_size), "index": batch["index"]}

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of `images` [b, 3, h, w], which the teachers see as `shown`."""
        s = self.settings
        tokens = self.backbone.tokens(batch["images"])
        losses, logs = [], {"feature_rank": feature_rank(tokens.patches.mean(dim=1))}
        for number in range(len(self.teachers)):
            target = self.encode_teacher(number, batch["shown"], batch["index"])
            parts = {}
            if s.dense_weight:
                projected = self.dense_projectors[number](tokens.patches).transpose(1, 2).unflatten(2, tokens.grid)
                parts["dense"] = map_loss(projected, target.map, s.loss)
            if target.vector is not None:
                parts["pooled"] = feature_loss(self.pooled_projectors[number](tokens.cls), target.vector, s.loss)
            weights = {"dense": s.dense_weight, "pooled": s.pooled_weight}
            losses.append(sum(weights[name] * part for name, part in parts.items()))
            logs |= {f"{name}_loss_{number}": part.detach() for name, part in parts.items()}
        return torch.stack(losses).mean(), logs  # type: ignore[arg-type]

    def encode_teacher(self, number: int, images: Images, index: Int[Tensor, " batch"]) -> Features:
        """A teacher's features, one image at a time where they are kept: so they do not depend on which others are in the batch."""
        if self.settings.augmentation == "crops":
            return self._encode(number, images)
        found = [self._known(number, int(i), image[None]) for i, image in zip(index, images, strict=True)]
        vectors = [features.vector for features in found if features.vector is not None]
        joined = (
            torch.cat([features.map for features in found]).to(images.device),
            torch.cat(vectors).to(images.device) if vectors else None,
        )
        return Features(*joined)

    def _known(self, number: int, index: int, image: Images) -> Features:
        known = self.known[number]
        if index in known:
            return known[index]
        features = self._encode(number, image)
        if features.bytes <= self.room:
            vector = None if features.vector is None else features.vector.cpu()
            known[index] = Features(features.map.cpu(), vector)
            self.room -= features.bytes
        return features

    @torch.no_grad()
    def _encode(self, number: int, images: Images) -> Features:
        teacher = self.teachers[number].eval().to(images.device)
        shown = normalize(denormalize(images), teacher.statistics)
        return Features(teacher.dense(shown), teacher.pooled(shown) if self.settings.pooled_weight else None)

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some images, and the cosine of each place with the middle one, by the first teacher and by what has learned from it."""
        if not self.settings.dense_weight:
            return
        device, count = next(self.backbone.parameters()).device, min(IMAGES_SHOWN, len(data))  # type: ignore[arg-type]
        chosen: Any = [data[Item(i * len(data) // count, seed=0)] for i in range(count)]  # type: ignore[arg-type]
        batch = self.prepare({name: torch.stack([sample[name] for sample in chosen]) for name in chosen[0]}, device)
        tokens = self.backbone.tokens(batch["images"])
        learned = self.dense_projectors[0](tokens.patches).transpose(1, 2).unflatten(2, tokens.grid)
        taught = self.encode_teacher(0, batch["shown"], batch["index"]).map
        rows = [denormalize(batch["shown"]), *(draw_similarity(m, self.settings.teachers_size) for m in (taught, learned))]
        write_rows(folder / "similarity.png", [to_row(row) for row in rows])

    def export(self) -> Backbone:
        """The network without projectors."""
        return self.backbone


def check_teachers(settings: DistillSettings, teachers: Sequence[Network]) -> None:
    """UserError unless there are teachers, which give what is to be learned and take images of their size."""
    if not teachers:
        raise UserError("distill has no teacher", todo="name one in the run's `teachers`")
    size = settings.teachers_size
    for teacher in teachers:
        if size % teacher.multiple or teacher.size not in (None, size):
            near = teacher.size or max(1, round(size / teacher.multiple)) * teacher.multiple
            found = f"teacher_size {size} for {teacher.arch.name}, whose images have sides that are multiples of {teacher.multiple}"
            raise UserError(found, allowed=f"e.g. {near}", todo="set teacher_size")
        teacher.require_abilities(["dense", *["pooled"] * bool(settings.pooled_weight)], "distill")


def resized(images: Images, side: int) -> Float[Tensor, "batch 3 {side} {side}"]:
    """Square images with another side."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


METHOD = Distill
