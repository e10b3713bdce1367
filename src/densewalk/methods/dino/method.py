"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294).

It is DoRA's baseline, trained on the frames of the same videos or on image folders; an epoch on a video is every usable frame once.

    P_t(x) = softmax((g_t(x) - c) / tau_t),  P_s(x) = softmax(g_s(x) / tau_s)           equation 1        `targets`
    loss   = mean over global views q and all views v != q of  - sum P_t(q) log P_s(v)  equations 2 and 3 `dino_loss`
    c     <- m c + (1 - m) mean over the batch of g_t                                   equation 4        `update_center`
    theta_t <- l theta_t + (1 - l) theta_s,  l from 0.996 to 1 along a cosine           section 3.1       `after_update`

Two options are DINOv2's (https://arxiv.org/abs/2304.07193, section 4), as released. `koleo_weight`: KoLeo on the backbone's CLS of each
global view, within one process. `centering: sinkhorn`, over the batch of all processes in place of equation 4:

    P_t = the rows of SinkhornKnopp(exp(g_t / tau_t)), which share the batch out evenly among the prototypes

Published, ViT-S/16 after 100 epochs of ImageNet-1k: 69.3 % k-NN and 74.0 % linear top-1 (the release's README). The DINO that
DoRA's authors trained on Walking Tours is known by its checkpoint only.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.data.augmentation.views import make_views
from densewalk.data.sources import Source, open_images
from densewalk.methods.dino.augmentation import DinoCrops
from densewalk.methods.dino.losses import dino_loss, mean_koleo, teacher_entropies
from densewalk.methods.dino.self_distillation import SelfDistillation, by_view, stops_on_bad_batch
from densewalk.methods.dino.settings import DinoSettings


class Dino(SelfDistillation):
    """One training run of DINO."""

    settings: DinoSettings

    @staticmethod
    def dataset(settings: DinoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every usable frame of every video and of every image."""
        return DinoCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Flips, colors and blur."""
        return make_views(batch, device)

    @stops_on_bad_batch
    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of `global` [b, 2, 3, h, w] and `local` [b, crops, 3, h, w] views."""
        teacher_logits = self.encode_teacher(batch["global"])  # [2, b, prototypes]
        logits, features = self.encode_student(batch)  # [2 + crops, b, prototypes], global views first; [2, b, d]
        targets = self.targets(teacher_logits, step)  # [2, b, prototypes], equation 1
        loss = dino_loss(targets, logits, self.settings.student_temperature)  # equations 2 and 3
        logs = {"loss_dino": loss.detach(), **teacher_entropies(targets)}
        if self.settings.koleo_weight:
            koleo = mean_koleo(features)
            loss, logs["loss_koleo"] = loss + self.settings.koleo_weight * koleo, koleo.detach()
        self.note_logits(teacher_logits)  # for equation 4, after the backward pass
        return loss, logs

    @torch.no_grad()
    def encode_teacher(self, views: Float[Tensor, "batch views 3 height width"]) -> Float[Tensor, "views batch protos"]:
        """The teacher's logits of the global views."""
        return self.teacher.head(by_view(self.teacher.backbone.cls, views))

    def encode_student(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "views batch protos"], Float[Tensor, "globals batch dim"]]:
        """The student's logits of all views, global ones first, and its backbone's output for the global ones."""
        features = [by_view(self.student.backbone.cls, batch[kind]) for kind in ("global", "local")]
        return self.student.head(torch.cat(features)), features[0]


METHOD = Dino
