"""NeCo: improving DINOv2's spatial representations in 19 GPU hours with patch neighbour consistency.

Pariza, Salehi, Burghouts, Locatello, Asano, ICLR 2025, https://arxiv.org/abs/2408.11054. A patch and the same patch in another crop
shall order a set of reference patches alike: the student's order, made differentiable by a relaxed sorting network, learns
the teacher's.

    A_t, A_s = RoIAlign(teacher patches, shared region), RoIAlign(student patches, shared region)     section 3.2, `align`
    S = d(A_s, F), T = d(A_t, F)        distances to references F, patches of the teacher             equation 1,  `scores`
    P, Q = relaxed_sort(S), relaxed_sort(T)    P[i, k]: share of reference i at place k               equation 2,  sorting.py
    l(i, v) = - mean over patches, i of sum over k of Q[i, k] log P[i, k]                             equation 6,  sorting.py
    loss = mean over pairs (teacher's global crop i, student's crop v other than i) of l(i, v)        equation 7,  `step`

The released code is https://github.com/vpariza/NeCo at commit 3932160; its settings are presets of `NecoSettings`.

Published, ViT-S/14 on DINOv2R: in-context segmentation VOC 80.2 / 76.4 / 70.3 / 66.6 mIoU at fractions 1, 1/8, 1/64, 1/128 against
75.1 / 68.3 / 58.0 / 53.1 of its start (figure 2); measured again by DIP: 81.0 / 77.3 / 71.5 / 65.8 against 79.4 / 75.2 / 67.7 / 60.7, and
on ADE20K 38.9 / 32.5 / 24.1 / 21.9 against 39.3 / 33.2 / 24.9 / 22.6. Do not expect the first difference.

What the two modes of `compat` do, each a switch in the settings. File and line are the release's.

    switch             paper  released  source and effect
    similarity_order   no     yes       figure 1 orders by distance 1 - cos, neco.py:378-384 by cos: the same order from the other end, but
                                        the network is not its own mirror image, so that P differs a little
    teacher_graph      no     yes       neco.py:441: the teacher runs with gradients that nothing uses, and without queue they flow back
                                        through it from the references; the same loss and student, up to 1.5 times the cost
    unused_patches     no     yes       vit_v2.py:304: the student's last MLP and head run for patches that no other crop shares, a
                                        quarter of the global crops; the same loss and student again
    unequal_heads      no     yes       utils.py:508: student and teacher start from different random heads, so that the first targets
                                        order the references in a space of their own
    half_filled_queue  no     yes       neco.py:487: one counter for both queues is advanced twice a step: until they are full, every
                                        second reference is a zero vector
    shifted_mask_rows  no     yes       neco.py:463: with `loss_mask`, references are chosen by the masks of other images and crops
    idle_clipping      no     yes       neco.py: clipping runs before the backward pass, on old gradients
    offset_positions   no     yes       models/vit_v2.py: DINOv2R's position embeddings are resampled as DINOv2's
    cut_remainder      no     yes       98 px crops with patch 16: two pixels are cut off, boxes are scaled with them

In both modes P is not taken to be smaller than 1e-30 (the release's loss is NaN for odd_even with a steepness of 1000), and the
sort is computed in float32. The teacher moves after the backward pass and before the optimiser, as in the release. With several
processes, references come from the patches of all of them, so that the batch is the same for any number of processes.

Choices of ours that neither settles, all for `loss_mask`: a pair without any patch in the mask is left out of the mean; references
from the queue are not filtered.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Generator, Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.data.sources import Source, open_images
from densewalk.methods.neco.alignment import align, align_masks, by_pair, crop_pairs, scores, student_boxes, used_patches, without_diagonal
from densewalk.methods.neco.augmentation import NecoViews, to_input
from densewalk.methods.neco.references import candidates, draws, even_weights, over_processes
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.backbone import Backbone, Tokens
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import PatchHead
from densewalk.models.surgery import freeze_all_but, with_drop_path, without_registers
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.soft_sort import loss as sorting
from densewalk.ops.soft_sort import networks
from densewalk.training.method import Method
from densewalk.training.param_groups import ParamGroup, decay_groups
from densewalk.training.schedules import cosine


class PatchNetwork(nn.Module):
    """A backbone and the head on its patches."""

    def __init__(self, backbone: Backbone, head: PatchHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "images 3 size size"]) -> Float[Tensor, "images out rows columns"]:
        """Unit vectors, one for each patch, in float32."""
        return self.project(self.backbone.tokens(images))

    def where(
        self, images: Float[Tensor, "images 3 size size"], used: Bool[Tensor, "images rows columns"]
    ) -> Float[Tensor, "images out rows columns"]:
        """The same for the patches that are used, and zero for the others."""
        vectors = self.head(self.backbone.patches_where(images, used.flatten(1))).float()
        maps = vectors.new_zeros(*used.shape, vectors.shape[-1]).index_put(used.nonzero(as_tuple=True), vectors)
        return maps.permute(0, 3, 1, 2)

    def with_attention(
        self, images: Float[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images out rows columns"], Float[Tensor, "images rows columns"]]:
        """The same, and the CLS token's attention to each patch in the last block, mean of all heads."""
        seen = self.backbone.last_block(images)
        return self.project(seen.tokens), seen.cls_attention.float().mean(dim=1).unflatten(1, seen.tokens.grid)

    def project(self, tokens: Tokens) -> Float[Tensor, "images out rows columns"]:
        """The head's output as a map."""
        return self.head(tokens.patches).float().transpose(1, 2).unflatten(2, tokens.grid)


class Neco(Method):
    """One training run of NeCo.

    Raises:
        UserError: a crop is no multiple of the patch size.
    """

    queue: Tensor
    entries: Tensor

    def __init__(self, settings: NecoSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = s = settings.resolved()
        require_patch_multiples(s, backbone.patch)
        if s.registers == "drop" and backbone.arch.registers:
            backbone = without_registers(backbone)
        if s.offset_positions:
            backbone.arch = replace(backbone.arch, interpolation="offset")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student = PatchNetwork(with_drop_path(backbone, s.drop_path), new_head(backbone.dim, s))
            other_head = new_head(backbone.dim, s) if s.unequal_heads else self.student.head
        self.teacher = make_teacher(PatchNetwork(backbone, other_head)).requires_grad_(bool(s.teacher_graph))
        if s.trainable_blocks is not None:
            freeze_all_but(self.student.backbone, s.trainable_blocks)
        self.pairs = crop_pairs(s)
        self.network = networks.network(s.network, s.aligned_patches**2)
        self.momentum = cosine(s.teacher_momentum, 1.0, total_steps)
        self.register_buffer("queue", torch.zeros(s.global_crops, s.queue, s.head_out))
        self.register_buffer("entries", torch.zeros((), dtype=torch.long))

    @staticmethod
    def dataset(settings: NecoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every image, or of every frame of a video."""
        return NecoViews(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head with learning rates of their own, each with and without weight decay."""
        s, total = self.settings, self.total_steps
        decay = cosine(s.weight_decay, s.weight_decay_end, total)
        parts = (("backbone", self.student.backbone, s.backbone_lr), ("head", self.student.head, s.head_lr))
        groups = [decay_groups(name, list(part.named_parameters()), cosine(lr, 0.0, total), decay) for name, part, lr in parts]
        return [group for pair in groups for group in pair]

    def step(self, batch: dict[str, Tensor], at: int, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of `global` [batch, 2, 3, size, size], `local` [batch, 4, 3, size, size] and the boxes that crops share."""
        patch = self.student.backbone.patch
        in_global, in_view = batch["in_global"] / patch, batch["in_view"] / patch
        with torch.set_grad_enabled(bool(self.settings.teacher_graph)):
            teacher, masks = self.look_with_mask(batch["global"], without_diagonal(in_global))
        self.update_queue(teacher, rng)
        boxes = student_boxes(in_view)
        student = [self.look_at(self.student, batch[name], shared) for name, shared in boxes.items()]
        with torch.autocast(teacher.device.type, enabled=False):
            targets, sources = align(teacher, student, in_global, list(boxes.values()), self.settings)
            covered = None if masks is None else align_masks(masks, in_global, self.settings.aligned_patches)
            references = self.references(targets, covered, rng)
            learnt = None if covered is None else by_pair(covered, self.pairs)
            loss = self.order_loss(sources, targets, references, learnt)
        return loss, self.statistics(targets, references, learnt)

    def look(
        self, network: PatchNetwork, crops: Shaped[Tensor, "batch crops 3 size size"]
    ) -> Float[Tensor, "batch crops out rows columns"]:
        """A network's patches of crops of one size."""
        maps: Tensor = network(to_input(crops, network.backbone.patch))
        return maps.unflatten(0, crops.shape[:2])

    def look_at(
        self, network: PatchNetwork, crops: Shaped[Tensor, "batch crops 3 size size"], boxes: Float[Tensor, "batch crops boxes 4"]
    ) -> Float[Tensor, "batch crops out rows columns"]:
        """A network's patches of crops of one size, where RoIAlign of the boxes reads them."""
        if self.settings.unused_patches:
            return self.look(network, crops)
        x = to_input(crops, network.backbone.patch)
        used = used_patches(boxes, x.shape[-1] // network.backbone.patch)
        return network.where(x, used.flatten(0, 1)).unflatten(0, crops.shape[:2])

    def look_with_mask(
        self, crops: Shaped[Tensor, "batch crops 3 size size"], boxes: Float[Tensor, "batch crops boxes 4"]
    ) -> tuple[Float[Tensor, "batch crops out rows columns"], Bool[Tensor, "batch crops rows columns"] | None]:
        """The teacher's patches, and those of them to learn from (None for all). A queue may take any, and without one only those in the
        boxes are looked at."""
        s = self.settings
        if s.loss_mask == "all":
            return self.look(self.teacher, crops) if s.queue else self.look_at(self.teacher, crops, boxes), None
        maps, attention = self.teacher.with_attention(to_input(crops, self.teacher.backbone.patch))
        foreground = foreground_masks(attention.detach(), s.foreground_mass)
        masks = foreground if s.loss_mask == "foreground" else ~foreground
        return maps.unflatten(0, crops.shape[:2]), masks.unflatten(0, crops.shape[:2])

    # -- references --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_queue(self, teacher: Float[Tensor, "batch crops out rows columns"], rng: Generator) -> None:
        """Put random patches of each global crop, of all processes, in front of its queue."""
        s = self.settings
        if not s.queue:
            return
        crops = teacher.transpose(0, 1).flatten(3).transpose(2, 3).flatten(1, 2)  # [crops, batch * patches, out]
        count = min(s.queue_patches_per_image * len(teacher), s.queue // distributed.world_size(), crops.shape[1])
        order = draws(crops.shape[1], count, rng).to(crops.device)
        new = distributed.gathered(crops[:, order]).transpose(0, 1).flatten(1, 2)
        self.queue = torch.cat([new, self.queue], dim=1)[:, : s.queue]
        counted = new.shape[1] * (s.global_crops if s.half_filled_queue else 1)
        self.entries = (self.entries + counted).clamp(max=s.queue)

    def references(
        self,
        targets: Float[Tensor, "pairs batch patches out"],
        covered: Bool[Tensor, "batch globals views patches"] | None,
        rng: Generator,
    ) -> Float[Tensor, "pairs batch patches out"]:
        """For each pair and image as many patches of the teacher as the shared region has, without replacement over the whole batch.

        Each process draws for all of them and keeps its own images' share. `covered`: patches that the mask allows.
        """
        _, batch, patches, _ = targets.shape
        count, world, queue = batch * patches, distributed.world_size(), self.settings.queue
        own = slice(distributed.rank() * count, (distributed.rank() + 1) * count)
        pools = [self.queue[i] for i, _ in self.pairs] if queue else over_processes(targets, dim=1).flatten(1, 2)
        allowed = None if queue or covered is None else candidates(over_processes(covered, dim=0), self.pairs, self.settings)
        chosen = []
        for number, pool in enumerate(pools):
            some = allowed[number] if allowed is not None else None
            order = draws(len(pool if some is None else some), world * count, rng)[own].to(pool.device)
            order = order % self.entries if queue else order
            chosen.append(pool[order if some is None else some[order]])
        return torch.stack(chosen).unflatten(1, (batch, patches))

    def order_loss(
        self,
        sources: Float[Tensor, "pairs batch patches out"],
        targets: Float[Tensor, "pairs batch patches out"],
        references: Float[Tensor, "pairs batch refs out"],
        learnt: Bool[Tensor, "pairs batch patches"] | None,
    ) -> Float[Tensor, ""]:
        """Equations 2, 6 and 7 over all pairs at once: they have equally many rows, so that the mean is that of the pairs' means."""
        student, teacher = (scores(x, references, self.settings) for x in (sources, targets))
        steepness = self.settings.student_steepness
        if learnt is None:
            return self.sort_losses(student.flatten(0, 2), teacher.flatten(0, 2), steepness).mean()
        return (self.sort_losses(student[learnt], teacher[learnt], steepness) * even_weights(learnt)[learnt]).sum()

    def sort_losses(
        self, student: Float[Tensor, "rows refs"], teacher: Float[Tensor, "rows refs"], student_steepness: float
    ) -> Float[Tensor, " rows"]:
        """The loss of each row by the settings' network and relaxation."""
        s = self.settings
        return sorting.sort_losses(
            student,
            teacher,
            network=self.network,
            student_steepness=student_steepness,
            teacher_steepness=s.teacher_steepness,
            relaxation=s.relaxation,
        )

    @torch.no_grad()
    def statistics(
        self,
        targets: Float[Tensor, "pairs batch patches out"],
        references: Float[Tensor, "pairs batch refs out"],
        learnt: Bool[Tensor, "pairs batch patches"] | None,
    ) -> dict[str, Tensor]:
        """The targets' entropy in one pair of crops, below which the loss cannot fall, and how full queue and masks are."""
        teacher = scores(targets[0, 0], references[0, 0], self.settings)
        logs = {"target_entropy": self.sort_losses(teacher, teacher, self.settings.teacher_steepness).mean()}
        if self.settings.queue:
            logs["queue_entries"] = self.entries.float()
        if learnt is not None:
            logs["learnt_patches"] = learnt.float().mean()
        return logs

    # -- the loop's hooks --------------------------------------------------------------------------------------------

    def after_backward(self, at: int) -> None:
        """Clip, and move the teacher by the student that was just evaluated."""
        if self.settings.clip_grad is not None and not self.settings.idle_clipping:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_grad, foreach=True)
        if self.settings.teacher_graph:
            self.teacher.zero_grad(set_to_none=True)
        update_teacher(self.teacher, self.student, float(self.momentum[at]))

    def export(self) -> Backbone:
        """The student: it is what the paper evaluates."""
        return self.student.backbone


# -- networks --------------------------------------------------------------------------------------------------------


def new_head(dim: int, settings: NecoSettings) -> PatchHead:
    """Three linear layers with GELU between them, torch's initialisation, unit length."""
    return PatchHead([dim, settings.head_hidden, settings.head_hidden, settings.head_out], normalize=True)


def require_patch_multiples(settings: NecoSettings, patch: int) -> None:
    """Refuse crops of which the patches would miss a part, unless that is what was asked for."""
    for name in ("global_size", "local_size"):
        size = getattr(settings, name)
        if size % patch and not settings.cut_remainder:
            raise UserError(f"{name} {size} is no multiple of the patch size {patch}", todo=f"set it to {size - size % patch}")


METHOD = Neco
