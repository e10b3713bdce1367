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
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset
from torchvision.ops import roi_align

from densewalk import distributed, sorting
from densewalk.backbone import Backbone, Tokens
from densewalk.errors import UserError
from densewalk.foreground import foreground_masks
from densewalk.heads import PatchHead
from densewalk.images import normalize
from densewalk.methods.base import Item, Method, ParamGroup, Source, decay_groups
from densewalk.methods.dino import pictures, with_drop_path
from densewalk.schedules import cosine
from densewalk.settings.neco import NecoSettings
from densewalk.teacher import make_teacher, update_teacher
from densewalk.views import Crop, intersections, multi_crop


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
        self.network = sorting.network(s.network, s.aligned_patches**2)
        self.momentum = cosine(s.teacher_momentum, 1.0, total_steps)
        self.register_buffer("queue", torch.zeros(s.global_crops, s.queue, s.head_out))
        self.register_buffer("entries", torch.zeros((), dtype=torch.long))

    @staticmethod
    def dataset(settings: NecoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every image, or of every frame of a video."""
        return NecoViews(ConcatDataset([pictures(source) for source in sources]), settings)

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


def without_registers(backbone: Backbone) -> Backbone:
    """The same backbone less its register tokens. CLS keeps the position that is folded into it."""
    plain = Backbone(backbone.arch.without_registers())
    weights = backbone.vit.state_dict()
    del weights["reg_token"]
    if not backbone.arch.rope:
        weights["pos_embed"] = torch.cat([torch.zeros_like(weights["cls_token"]), weights["pos_embed"]], dim=1)
    plain.vit.load_state_dict(weights)
    return plain


def freeze_all_but(backbone: Backbone, last_blocks: int) -> None:
    """Only the last blocks and the final norm learn."""
    backbone.requires_grad_(False)
    for part in [*backbone.vit.blocks[-last_blocks:], backbone.vit.norm]:
        part.requires_grad_(True)


def require_patch_multiples(settings: NecoSettings, patch: int) -> None:
    """Refuse crops of which the patches would miss a part, unless that is what was asked for."""
    for name in ("global_size", "local_size"):
        size = getattr(settings, name)
        if size % patch and not settings.cut_remainder:
            raise UserError(f"{name} {size} is no multiple of the patch size {patch}", todo=f"set it to {size - size % patch}")


# -- aligned patches -------------------------------------------------------------------------------------------------


def crop_pairs(settings: NecoSettings) -> list[tuple[int, int]]:
    """(teacher's global crop, student's crop), for every two different crops."""
    crops = settings.global_crops + settings.local_crops
    return [(i, v) for i in range(settings.global_crops) for v in range(crops) if v != i]


def align(
    teacher: Float[Tensor, "batch globals out rows columns"],
    student: Sequence[Float[Tensor, "batch _ out _ _"]],
    in_global: Float[Tensor, "batch globals views 4"],
    in_student: Sequence[Float[Tensor, "batch _ _ 4"]],
    settings: NecoSettings,
) -> tuple[Float[Tensor, "pairs batch patches out"], Float[Tensor, "pairs batch patches out"]]:
    """The teacher's and the student's patches of the region that the two crops of each pair share, resampled to one grid.

    for p, (i, v) in enumerate(pairs):
        targets[p] = RoIAlign(teacher[:, i], in_global[:, i, v])
        sources[p] = RoIAlign(student crop v, in_view[:, v, i])

    Args:
        student: maps of the global crops and, if there are any, of the local ones.
        in_global: boxes as left, top, right, bottom in patches. in_student: `student_boxes`.
    """
    side, n = settings.aligned_patches, settings.global_crops
    targets = regions(teacher, without_diagonal(in_global), side)
    aligned = [regions(maps, boxes, side) for maps, boxes in zip(student, in_student, strict=True)]
    sources = [aligned[0][:, v, i - (i > v)] if v < n else aligned[1][:, v - n, i] for i, v in crop_pairs(settings)]
    return targets.permute(1, 2, 0, 3, 4).flatten(0, 1), torch.stack(sources)


def student_boxes(in_view: Float[Tensor, "batch views globals 4"]) -> dict[str, Float[Tensor, "batch _ _ 4"]]:
    """The regions that the student's global crops share with the other global ones, and its local crops with all global ones."""
    n = in_view.shape[2]
    boxes = {"global": without_diagonal(in_view[:, :n])}
    return boxes if in_view.shape[1] == n else {**boxes, "local": in_view[:, n:]}


def without_diagonal(boxes: Float[Tensor, "batch crops others 4"]) -> Float[Tensor, "batch crops others-1 4"]:
    """Boxes of every crop with every other one, less those with itself."""
    kept = [[v for v in range(boxes.shape[2]) if v != i] for i in range(boxes.shape[1])]
    return torch.stack([boxes[:, i, others] for i, others in enumerate(kept)], dim=1)


def used_patches(boxes: Float[Tensor, "batch crops boxes 4"], side: int) -> Bool[Tensor, "batch crops side side"]:
    """The patches that RoIAlign of any box may read: it samples within half a patch left of the box, between two patches.

    for left, top, right, bottom in boxes:
        used[floor(top - 1/2) : floor(bottom - 1/2) + 2, floor(left - 1/2) : floor(right - 1/2) + 2] = True
    """
    cells = torch.arange(side, device=boxes.device)
    first, last = (boxes - 0.5).floor().chunk(2, dim=-1)
    inside = (cells >= first[..., None]) & (cells <= last[..., None] + 1)  # [batch, crops, boxes, (x, y), side]
    return (inside[..., 1, :, None] & inside[..., 0, None, :]).any(dim=2)


def regions(
    maps: Float[Tensor, "batch crops channels rows columns"], boxes: Float[Tensor, "batch crops boxes 4"], side: int
) -> Float[Tensor, "batch crops boxes patches channels"]:
    """RoIAlign of several boxes of each map, `side` squared patches each."""
    shape = boxes.shape[:3]
    numbers = torch.arange(shape[0] * shape[1], device=boxes.device).repeat_interleave(shape[2])
    numbered = torch.cat([numbers[:, None], boxes.flatten(0, 2)], dim=1)
    return roi_align(maps.flatten(0, 1), numbered.to(maps.dtype), side, aligned=True).flatten(2).transpose(1, 2).unflatten(0, shape)


def scores(
    patches: Float[Tensor, "*rows patches out"], references: Float[Tensor, "*rows refs out"], settings: NecoSettings
) -> Float[Tensor, "*rows patches refs"]:
    """What is sorted in ascending order: cosine or Euclidean distance of each patch to each reference of its image."""
    if settings.distance == "euclidean":
        return torch.cdist(patches, references)
    similarities = F.normalize(patches, dim=-1) @ F.normalize(references, dim=-1).transpose(-2, -1)
    return similarities if settings.similarity_order else 1 - similarities


# -- references ------------------------------------------------------------------------------------------------------


def draws(pool: int, count: int, rng: Generator) -> Int[Tensor, " count"]:
    """`count` of the numbers below `pool` in random order, from the start again where there are fewer."""
    order = torch.randperm(pool, generator=rng, device=rng.device)
    return order.repeat(-(-count // pool))[:count]


def over_processes(x: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
    """Every process's `x` one after the other along dimension `dim`; of a single process `x` itself, with its graph."""
    if distributed.world_size() == 1:
        return x
    sent = x.to(torch.uint8) if x.dtype == torch.bool else x
    return torch.cat(distributed.gathered(sent).unbind(), dim).to(x.dtype)


# -- foreground masks ------------------------------------------------------------------------------------------------


def align_masks(
    masks: Bool[Tensor, "batch globals rows columns"], in_global: Float[Tensor, "batch globals views 4"], side: int
) -> Bool[Tensor, "batch globals views patches"]:
    """The aligned patches that lie wholly within the mask, in the region that each global crop shares with each view."""
    return regions(masks.float().unsqueeze(2), in_global, side).squeeze(-1) > 1 - 1e-5


def by_pair(covered: Bool[Tensor, "batch globals views patches"], pairs: Sequence[tuple[int, int]]) -> Bool[Tensor, "pairs batch patches"]:
    """The masks of each pair's region."""
    return torch.stack([covered[:, i, v] for i, v in pairs])


def candidates(
    covered: Bool[Tensor, "batch globals views patches"], pairs: Sequence[tuple[int, int]], settings: NecoSettings
) -> list[Int[Tensor, " allowed"]]:
    """For each pair the numbers, image * patches + patch, of the patches that may be references: those in the mask, or all if none is.

    With `shifted_mask_rows`, the batch's masks are taken from a list by image, then view, as if it were by view, then image.
    """
    batch = len(covered)
    if settings.shifted_mask_rows:
        masks = torch.stack([covered[:, i].flatten(0, 1)[batch * i : batch * (i + 1)] for i, _ in pairs])
    else:
        masks = by_pair(covered, pairs)
    masks = masks.flatten(1)
    masks = masks | ~masks.any(dim=1, keepdim=True)
    return [mask.nonzero()[:, 0] for mask in masks]


def even_weights(learnt: Bool[Tensor, "pairs batch patches"]) -> Float[Tensor, "pairs batch patches"]:
    """Weights of the mean over pairs of the means over their patches, leaving out pairs without any."""
    counts = learnt.flatten(1).sum(dim=1)
    return learnt / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1))[:, None, None]


# -- views -----------------------------------------------------------------------------------------------------------


class NecoViews(Dataset[dict[str, Tensor]]):
    """Crops of pictures and where they overlap.

    A sample is a dict of `global` [globals, 3, size, size] and `local` [locals, 3, size, size], uint8; `in_global`
    [globals, views, 4] and `in_view` [views, globals, 4], boxes as left, top, right, bottom in pixels of the crop (views.py).
    """

    def __init__(self, images: "Dataset[Tensor]", settings: NecoSettings) -> None:
        self.images = images
        self.crops = [Crop(settings.global_size, settings.global_scale, True)] * settings.global_crops
        self.crops += [Crop(settings.local_size, settings.local_scale, False)] * settings.local_crops
        self.n_global, self.min_overlap = settings.global_crops, settings.min_overlap

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        image = self.images[item.index]
        image = image[0] if image.ndim == 4 else image
        views, boxes = multi_crop(image, self.crops, self.min_overlap, Generator().manual_seed(item.seed))
        in_global, in_view = intersections(boxes, [crop.size for crop in self.crops], self.n_global)
        size = self.crops[-1].size
        local = torch.stack(views[self.n_global :]) if len(views) > self.n_global else image.new_zeros(0, 3, size, size)
        return {"global": torch.stack(views[: self.n_global]), "local": local, "in_global": in_global, "in_view": in_view}


def to_input(crops: Shaped[Tensor, "batch crops 3 size size"], patch: int) -> Float[Tensor, "images 3 cut cut"]:
    """Crops as a network takes them: whole patches, and uint8 normalised (float is taken to be so already)."""
    size = crops.shape[-1] - crops.shape[-1] % patch
    x = crops[..., :size, :size].flatten(0, 1)
    return normalize(x.float() / 255) if x.dtype == torch.uint8 else x
