"""DINO: Emerging Properties in Self-Supervised Vision Transformers.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294. Here it is DoRA's baseline, trained on the frames of the same videos
or on image folders, and the machinery DoRA is built from (`SelfDistillation`).

    P_t(x) = softmax((g_t(x) - c) / tau_t),  P_s(x) = softmax(g_s(x) / tau_s)           equation 1, section 3.1
    loss   = mean over global views q and all views v != q of  - sum P_t(q) log P_s(v)  equations 2 and 3
    c     <- m c + (1 - m) mean over the batch of g_t                                   equation 4
    theta_t <- l theta_t + (1 - l) theta_s,  l from 0.996 to 1 along a cosine           section 3.1

Published, ViT-S/16 after 100 epochs of ImageNet-1k: 69.3 % k-NN and 74.0 % linear top-1 (the release's README). The DINO that
DoRA's authors trained on Walking Tours is known by its checkpoint only; on video frames, an epoch here is every usable frame once.

The optional KoLeo term is DINOv2's (https://arxiv.org/abs/2304.07193, section 4), as released: on the backbone's CLS of each
global view, within one process. So is `centering: sinkhorn` (there; 3 iterations over the batch of all processes, instead of equation 4):

    P_t = the rows of SinkhornKnopp(exp(g_t / tau_t)), which share the batch out evenly among the prototypes

`compat` changes nothing: the recipe is the released one. Deviations from it: views are cut and coloured as tensors (antialiased
resizing, colours in float), so that the pixels differ from Pillow's in the last digits.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.data.sources import Source, open_images
from densewalk.methods.dino.augmentation import DinoViews
from densewalk.methods.dino.losses import dino_loss, koleo, teacher_entropies
from densewalk.methods.dino.self_distillation import SelfDistillation, by_view
from densewalk.methods.dino.settings import DinoSettings

# -- the method ------------------------------------------------------------------------------------------------------


class Dino(SelfDistillation):
    """One training run of DINO."""

    settings: DinoSettings

    @staticmethod
    def dataset(settings: DinoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Views of every usable frame of every video and of every image."""
        return DinoViews(ConcatDataset([open_images(source) for source in sources]), settings)

    def step(self, batch: dict[str, Tensor], at: int, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of `global` [batch, 2, 3, height, width] and `local` [batch, crops, 3, height, width] views."""
        logits, features = self.student_logits(batch)
        teacher_logits = self.teacher_logits(batch["global"])
        targets = self.targets(teacher_logits, at, batch)
        loss = dino_loss(targets, logits, self.settings.student_temperature)
        logs = {"loss_dino": loss.detach(), **teacher_entropies(targets)}
        if self.settings.koleo_weight:
            spread = torch.stack([koleo(view) for view in features]).mean()
            loss, logs["loss_koleo"] = loss + self.settings.koleo_weight * spread, spread.detach()
        self.note_logits(teacher_logits)
        return loss, logs

    def student_logits(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "views batch protos"], Float[Tensor, "globals batch dim"]]:
        """Logits of all views, global ones first, and the backbone's output for the global ones."""
        features = [by_view(self.student.backbone.cls, batch[kind]) for kind in ("global", "local")]
        return self.student.head(torch.cat(features)), features[0]

    @torch.no_grad()
    def teacher_logits(self, views: Float[Tensor, "batch views 3 height width"]) -> Float[Tensor, "views batch protos"]:
        """Logits of the global views."""
        return self.teacher.head(by_view(self.teacher.backbone.cls, views))


METHOD = Dino
