"""NeCo: Improving DINOv2's spatial representations in 19 GPU hours with patch neighbor consistency (Pariza et al., ICLR 2025,
https://arxiv.org/abs/2408.11054).

A patch and the same patch in another crop shall order a set of reference patches alike: the student's order, made differentiable by a
relaxed sorting network, learns the teacher's.

    A_t, A_s = RoIAlign(teacher patches, shared region), RoIAlign(student patches, shared region)     section 3.2  `align`
    S = d(A_s, F), T = d(A_t, F)        distances to references F, patches of the teacher             equation 1   `distances`
    P, Q = relaxed_sort(S), relaxed_sort(T)    P[i, k]: share of reference i at place k               equation 2   ops/soft_sort
    l(i, v) = - mean over patches, i of sum over k of Q[i, k] log P[i, k]                             equation 6   ops/soft_sort
    loss = mean over pairs (teacher's global crop i, student's crop v other than i) of l(i, v)        equation 7   `order_loss`

Published, ViT-S/14 on DINOv2R: in-context segmentation VOC 80.2 / 76.4 / 70.3 / 66.6 mIoU at fractions 1, 1/8, 1/64, 1/128 against
75.1 / 68.3 / 58.0 / 53.1 of its start (figure 2); measured again by DIP: 81.0 / 77.3 / 71.5 / 65.8 against 79.4 / 75.2 / 67.7 / 60.7, and
on ADE20K 38.9 / 32.5 / 24.1 / 21.9 against 39.3 / 33.2 / 24.9 / 22.6. Do not expect the first difference.

The teacher moves after the backward pass and before the optimizer, as released. Choices of ours: with several processes, references
come from the patches of all of them, so that the batch is the same for any number of processes. With `loss_mask`, a pair without any
patch in the mask adds nothing to the loss, and references are not filtered when they are drawn from the queue.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core import distributed
from densewalk.data.sources import Source, open_images
from densewalk.methods.neco import alignment
from densewalk.methods.neco.alignment import Aligned, Covered, InGlobal, InView, Learned, Maps, Masks, crop_pairs, distances
from densewalk.methods.neco.augmentation import NecoCrops, make_views
from densewalk.methods.neco.network import Crops, PatchNetwork, new_head
from densewalk.methods.neco.references import candidates, even_weights, gather_rows, over_processes, reference_masks, sample_indices
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.surgery import freeze_all_but, with_drop_path, without_registers
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.soft_sort import networks
from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.schedules import cosine


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
        s.require_network(backbone.arch)
        if s.registers == "drop" and backbone.arch.registers:
            backbone = without_registers(backbone)
        if s.offset_positions:
            backbone.arch = replace(backbone.arch, interpolation="offset")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student = PatchNetwork(with_drop_path(backbone, s.drop_path), new_head(backbone.dim, s))
            teacher_head = new_head(backbone.dim, s) if s.unequal_heads else self.student.head
        self.teacher = make_teacher(PatchNetwork(backbone, teacher_head)).requires_grad_(bool(s.teacher_graph))
        if s.trainable_blocks is not None:
            freeze_all_but(self.student.backbone, s.trainable_blocks)
        self.pairs = crop_pairs(s)
        network = networks.network(s.network, s.aligned_patches**2)
        self.sort_losses = partial(sort_losses, network=network, relaxation=s.relaxation, teacher_steepness=s.teacher_steepness)
        self.momentum = cosine(s.teacher_momentum, 1.0, total_steps)
        self.register_buffer("queue", torch.zeros(s.global_crops, s.queue, s.head_out))
        self.register_buffer("entries", torch.zeros((), dtype=torch.long))

    @staticmethod
    def dataset(settings: NecoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every image, or of every frame of a video."""
        return NecoCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head with learning rates of their own, each with and without weight decay."""
        s, total = self.settings, self.total_steps
        decay = cosine(s.weight_decay, s.weight_decay_end, total)
        backbone, head = (list(part.named_parameters()) for part in (self.student.backbone, self.student.head))
        lr, vit = cosine(s.backbone_lr, 0.0, total), self.student.backbone.vit
        folded = []
        if s.separate_cls_position and vit.no_embed_class and not self.student.backbone.arch.rope:
            # two parameters with one gradient: their sum c loses lr (2 update + decay c), which is AdamW with 2 lr and decay / 2
            folded = decay_groups("backbone/cls", [(n, p) for n, p in backbone if p is vit.cls_token], 2 * lr, decay / 2)
            backbone = [(n, p) for n, p in backbone if p is not vit.cls_token]
        return [
            *decay_groups("backbone", backbone, lr, decay),
            *decay_groups("head", head, cosine(s.head_lr, 0.0, total), decay),
            *folded,
        ]

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Colors and blur; normalization follows in the networks."""
        return make_views(batch, device)

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of `global` [b, g, 3, h, h] and `local` [b, l, 3, h, h] crops and the boxes that crops share."""
        patch = self.student.backbone.patch
        in_global, in_view = batch["in_global"] / patch, batch["in_view"] / patch  # in patches: [b, g, g + l, 4], [b, g + l, g, 4]
        teacher, masks = self.encode_teacher(batch["global"], in_global)  # [b, g, d, rows, columns], [b, g, rows, columns] or None
        self.update_queue(teacher, generator, masks)
        student = self.encode_student(batch, in_view)  # [b, g or l, d, rows, columns]
        with torch.autocast(teacher.device.type, enabled=False):
            targets, sources = alignment.align(teacher, student, in_global, in_view, self.settings)  # [pairs, b, n, d] each
            covered = None if masks is None else alignment.align_masks(masks, in_global, self.settings)  # [b, g, g + l, n]
            references = self.sample_references(targets, covered, generator)  # [pairs, b, n, d]
            learned = None if covered is None else self.learned_patches(covered)  # [pairs, b, n]
            loss = self.order_loss(sources, targets, references, learned)  # equations 1, 2, 6 and 7
        return loss, self.statistics(targets, references, learned)

    def encode_teacher(self, crops: Crops, in_global: InGlobal) -> tuple[Maps, Masks | None]:
        """The teacher's patches, and those of them to learn from (None for all).

        A queue may take any patch; without one only those in the boxes are computed.
        """
        s = self.settings
        with torch.set_grad_enabled(bool(s.teacher_graph)):
            if s.loss_mask == "all":
                boxes = None if s.queue or s.unused_patches else alignment.without_diagonal(in_global)
                return self.teacher.encode(crops, boxes), None
            maps, attention = self.teacher.encode_with_attention(crops)
        foreground = foreground_masks(attention.detach().flatten(0, 1), s.foreground_mass).view(attention.shape)
        return maps, foreground if s.loss_mask == "foreground" else ~foreground

    def encode_student(self, batch: dict[str, Tensor], in_view: InView) -> list[Tensor]:
        """The student's patches of the global crops and, if there are any, of the local ones, where RoIAlign reads them."""
        boxes = alignment.student_boxes(in_view)
        return [self.student.encode(batch[kind], None if self.settings.unused_patches else shared) for kind, shared in boxes.items()]

    @torch.no_grad()
    def update_queue(self, teacher: Maps, generator: Generator, masks: Masks | None = None) -> None:
        """Put random patches of each global crop, of all processes, in front of its queue.

        `masks`: the patches to learn from; with `foreground_queue` only these enter, of which crops may have unequal numbers.
        """
        s = self.settings
        if not s.queue:
            return
        masked = masks is not None and s.loss_mask == "foreground" and s.foreground_queue
        most = min(s.queue_patches_per_image * len(teacher), s.queue // distributed.world_size())
        counts = []
        for i, queue in enumerate(self.queue):
            patches = teacher[:, i].movedim(1, -1)  # [batch, rows, columns, out]
            pool = patches[masks[:, i]] if masked and masks is not None else patches.flatten(0, 2)
            order = sample_indices(len(pool), min(most, len(pool)), generator).to(pool.device)
            new = gather_rows(pool[order], most)
            self.queue[i] = torch.cat([new, queue])[: s.queue]
            counts.append(len(new))
        counted = sum(counts) if s.half_filled_queue else min(counts)
        self.entries = (self.entries + counted).clamp(max=s.queue)

    def learned_patches(self, covered: Covered) -> Learned:
        """The patches of each pair that are learned from."""
        learned = alignment.select_pairs(covered, self.pairs)
        if self.settings.skip_pairs_without_references and not self.settings.queue:
            learned &= reference_masks(over_processes(covered, dim=0), self.pairs, self.settings).any(dim=1)[:, None, None]
        return learned

    def sample_references(self, targets: Aligned, covered: Covered | None, generator: Generator) -> Aligned:
        """Draw for each pair and image as many patches of the teacher as the shared region has, without replacement over the batch.

        Each process draws for all of them and keeps its own images' share. `covered`: the patches that the mask allows.
        """
        _, batch, patches, _ = targets.shape
        count, world, queue = batch * patches, distributed.world_size(), self.settings.queue
        own = slice(distributed.rank() * count, (distributed.rank() + 1) * count)
        pools = [self.queue[i] for i, _ in self.pairs] if queue else over_processes(targets, dim=1).flatten(1, 2)
        if queue or covered is None:
            allowed = [torch.arange(len(pool), device=pool.device) for pool in pools]
        else:
            allowed = candidates(over_processes(covered, dim=0), self.pairs, self.settings)
        chosen = []
        for pool, numbers in zip(pools, allowed, strict=True):
            if not len(numbers):  # a pair that is skipped
                chosen.append(pool.new_zeros(count, pool.shape[1]))
                continue
            order = sample_indices(len(numbers), world * count, generator)[own].to(pool.device)
            chosen.append(pool[numbers[order % self.entries.clamp(min=1) if queue else order]])
        return torch.stack(chosen).unflatten(1, (batch, patches))

    def order_loss(self, sources: Aligned, targets: Aligned, references: Aligned, learned: Learned | None) -> Float[Tensor, ""]:
        """Equations 1, 2, 6 and 7 over all pairs at once: they have equally many rows, so that the mean is that of the pairs' means."""
        student, teacher = (distances(x, references, self.settings) for x in (sources, targets))
        steepness = self.settings.student_steepness
        if learned is None:
            return self.sort_losses(student.flatten(0, 2), teacher.flatten(0, 2), student_steepness=steepness).mean()
        losses = self.sort_losses(student[learned], teacher[learned], student_steepness=steepness)
        weights = even_weights(learned, all_pairs=bool(self.settings.skip_pairs_without_references))
        return (losses * weights[learned]).sum()

    @torch.no_grad()
    def statistics(self, targets: Aligned, references: Aligned, learned: Learned | None) -> dict[str, Tensor]:
        """The targets' entropy in one pair of crops, below which the loss cannot fall, and how full queue and masks are."""
        teacher = distances(targets[0, 0], references[0, 0], self.settings)
        logs = {"target_entropy": self.sort_losses(teacher, teacher, student_steepness=self.settings.teacher_steepness).mean()}
        if self.settings.queue:
            logs["queue_entries"] = self.entries.float()
        if learned is not None:
            logs["learnt_patches"] = learned.float().mean()
        return logs

    def after_backward(self, step: int) -> None:
        """Clip, and move the teacher by the student that was just evaluated."""
        if self.settings.clip_grad is not None and not self.settings.idle_clipping:
            distributed.clip_together(self.student.parameters(), self.settings.clip_grad)
        if self.settings.teacher_graph:
            self.teacher.zero_grad(set_to_none=True)
        update_teacher(self.teacher, self.student, float(self.momentum[step]))

    def export(self) -> Backbone:
        """The student: it is what the paper evaluates."""
        return self.student.backbone


METHOD = Neco
