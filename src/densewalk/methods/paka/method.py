"""PaKA: Patch-Level Kernel Alignment for Dense Self-Supervised Learning (Yeo et al., https://arxiv.org/abs/2509.05606).

DINOv2's losses, and one by which the patches of a crop shall be as similar to each other as the teacher finds the same places. The
teacher sees them in the global crop around it, which for this loss has its own colors.

    T = RoIAlign(teacher's patches of global crop j mod 2, what it shares with crop j)         `aligned_patches` (ops/roi_align.py)
    S = RoIAlign(student's patches of crop j, the same)                                        grid of a local crop, e.g. 7 x 7
    S, T = head(S), teacher's head(T)                                                          after the alignment
    loss = DINOv2 + paka_loss_weight mean over images, j of (1 - CKA(S, T))                    `cka_loss`

CKA compares kernels of centered patches. It does not change if either side is turned, scaled or moved.

Flipped crops are aligned as if they were not. The crops to align are not those of DINOv2's loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.data.augmentation.views import make_views
from densewalk.data.images import denormalize
from densewalk.data.sources import Source, open_images
from densewalk.methods.ibot.method import IMAGES_SHOWN, MaskedDistillation
from densewalk.methods.ibot.network import make_heads, with_stochastic_depth
from densewalk.methods.paka.augmentation import PakaCrops, plain_views
from densewalk.methods.paka.losses import cka_loss
from densewalk.methods.paka.network import PakaNetwork
from densewalk.methods.paka.settings import PakaSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher
from densewalk.models.heads import PatchHead
from densewalk.ops.collapse import feature_rank
from densewalk.ops.roi_align import aligned_patches
from densewalk.training.sampler import Item
from densewalk.visualization.similarity import draw_similarity, to_row
from densewalk.visualization.strips import write_rows

Aligned = Float[Tensor, "aligned places dim"]  # crops of all images, those of one image in a row


class Paka(MaskedDistillation):
    """One training run of PaKA.

    Raises:
        UserError: as `MaskedDistillation`, or a crop to align has fewer than two patches along a side.
    """

    settings: PakaSettings
    student: PakaNetwork
    teacher: PakaNetwork

    def __init__(self, settings: PakaSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        self.side = settings.grid_side(backbone.patch)
        super().__init__(settings.resolved(), backbone, total_steps, steps_per_epoch, seed)

    def make_networks(self, backbone: Backbone) -> tuple[PakaNetwork, PakaNetwork]:
        """Teacher and student with the same new heads."""
        s, heads = self.settings, make_heads(backbone.dim, self.settings)
        aligned_head = PatchHead([backbone.dim, s.paka_hidden, s.paka_hidden, s.paka_out], normalize=False)
        teacher = make_teacher(PakaNetwork(backbone, heads, aligned_head))
        return teacher, PakaNetwork(with_stochastic_depth(backbone, s), heads, aligned_head)

    @staticmethod
    def dataset(settings: PakaSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":  # type: ignore[override]
        """Crops of every usable frame of every video and of every image."""
        return PakaCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """As DINOv2's; the global crops in their own colors as `plain`, crops to align, and which of both are flipped."""
        views = {**super().prepare(batch, device), **make_views(batch, device, ("aligned",)), "plain": plain_views(batch, device)}
        flips = {f"{kind}_flipped": batch[f"{kind}_distortions"][..., 0] > 0 for kind in ("global", "aligned")}
        moved = {name: batch[name] for name in ("in_global", "in_aligned")} | flips
        return views | {name: x.to(device, non_blocking=True) for name, x in moved.items()}

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of DINOv2, with `plain` [b, 2, 3, h, w], `aligned` [b, crops, 3, h, w] and the boxes that they share."""
        loss, logs = super().step(batch, step, generator)
        chosen = self.choose_places(generator)
        teacher = self.align_teacher(batch)[:, chosen]  # [b crops, places, d]
        student = self.align_student(batch)[:, chosen]
        alignment = cka_loss(self.student.aligned_head(student), self.teacher.aligned_head(teacher).detach())
        logs |= {"loss_paka": alignment.detach(), "patch_rank": feature_rank(student)}
        return loss + self.settings.paka_loss_weight * alignment, logs

    def choose_places(self, generator: Generator) -> Tensor | slice:
        """The places of the grid that are compared, the same for all crops."""
        count, most = self.side**2, self.settings.most_places
        if count <= most:
            return slice(None)
        return torch.randperm(count, generator=generator, device=generator.device)[:most].to(self.center.device)

    @torch.no_grad()
    def align_teacher(self, batch: dict[str, Tensor]) -> Aligned:
        """The teacher's patches of global crops, where each crop to align lies."""
        maps = self.teacher.unflipped_maps(batch["plain"].flatten(0, 1), batch["global_flipped"].flatten())
        images, crops, _ = batch["in_global"].shape
        places = torch.arange(images * crops, device=maps.device)
        numbers = 2 * (places // crops) + places % crops % 2  # of the global crop: two for each image, which take turns
        return self.align(maps, numbers, batch["in_global"])

    def align_student(self, batch: dict[str, Tensor]) -> Aligned:
        """The student's patches of the crops to align, where they lie in the global ones."""
        maps = self.student.unflipped_maps(batch["aligned"].flatten(0, 1), batch["aligned_flipped"].flatten())
        return self.align(maps, torch.arange(len(maps), device=maps.device), batch["in_aligned"])

    def align(self, maps: Float[Tensor, "maps dim rows columns"], numbers: Tensor, boxes: Float[Tensor, "b crops 4"]) -> Aligned:
        """The patches of a grid over each box; boxes in pixels, and the number of each one's map."""
        with torch.autocast(maps.device.type, enabled=False):
            return aligned_patches(maps, numbers, boxes.flatten(0, 1) / self.student.backbone.patch, self.side)

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw DINOv2's image, and for a crop of some images the kernels of student and teacher."""
        super().pictures(data, folder)
        crops = cast(PakaCrops, data)
        count = min(IMAGES_SHOWN, len(crops))
        samples = [crops[Item(i * len(crops) // count, seed=0)] for i in range(count)]
        batch = self.prepare({name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}, self.center.device)
        size, every = self.settings.global_size, self.settings.aligned_crops
        rows = [denormalize(batch["plain"][:, 0]), denormalize(batch["aligned"][:, 0])]
        rows[1] = torch.nn.functional.interpolate(rows[1], (size, size), mode="bilinear")
        for network, aligned in ((self.student, self.align_student(batch)), (self.teacher, self.align_teacher(batch))):
            features = network.aligned_head(aligned[::every])  # of the first crop of each image
            centered = features - features.mean(dim=1, keepdim=True)
            rows.append(draw_similarity(centered.transpose(1, 2).unflatten(2, (self.side, self.side)), size))
        write_rows(folder / "kernels.png", [to_row(row) for row in rows])


METHOD = Paka
