"""Time-Tuning: Time Does Tell: Self-Supervised Time-Tuning of Dense Image Representations.

Salehi et al., ICCV 2023, https://arxiv.org/abs/2308.11796. The first frame of a clip is clustered, its soft clusters are forwarded
through the clip along feature similarity, and the student must predict the last frame's clusters from the last frame alone.

    Q_1 = SinkhornKnopp(exp(normalize(g_t(F_1)) C_t^T / epsilon))         assignment of the first frame's patches  `assign`
    Q_T = feature-forwarder(Q_1; features of frames 1..T)                 soft labels of the last frame            `forward_labels`
    loss = CE(normalize(g(F_T)) C^T / tau, argmax Q_T)                    mean over the last frame's patches       `step`

F: patch features of the backbone, of which only the last blocks learn; g: projection head; C: prototypes of unit length; t: the
momentum teacher's. The feature-forwarder is ops/label_propagation.py; Sinkhorn runs over the first frames of all clips of all processes.
The released code is https://github.com/SMSD75/Timetuning at commit 94550b5; file and line are its.

Published sanity targets (its README): loss from 4.9 to 1.6 within 540 steps, VOC clustering with K = 21 from 6.3 to 12.5 % mIoU.
The tables of the paper are not reproduced in published.csv, since their source could not be read.

What the two modes of `compat` do, each a switch in the settings:

    switch            paper   released   source and effect
    red_std           0.229   0.228      time_tuning.py:588-594: a slip of the pen in the normalisation
    swapped_momentum  no      yes        time_tuning.py:109-118: teacher = (1 - m) teacher + m student with m from 0.995 to 1, so that the
                                         teacher is all but the student; in mode `paper` it is an exponential moving average

What the two values of `variant` do, each a switch in the settings; `simplified` is https://github.com/SMSD75/TimeT_clean at 8fe9d20:

    switch            timetuning  simplified
    sampling          uniform     dense       four random frames of the video, or four consecutive ones
    teacher           yes         no          who assigns the first frame (the README of the release says no, its code yes)
    assigned_frames   first       all         whose patches share the prototypes evenly
    context           7           6           frames to propagate from, beside the first
    epochs            100         800         unless a study says how long

Parts of the release without a counterpart here: its command-line options that have no effect (propagation and Sinkhorn settings)
or another than they say (`--use_queue False` turns the queue on); anomaly detection left on; the end of its weight-decay schedule,
which stops the last step with an IndexError; and `--use_mask`, which stops the first one (`foreground_mass` does what it is for).

Choices of ours that neither settles: colours and blur are drawn once per clip as in the release, but after cropping; a video file
is cut into segments at its scene cuts and about every `segment_seconds`; a still picture is a video of one frame.

The same loss and gradients for a sixth of the work. With frozen blocks up to 10 of 12, four frames and a batch of one clip, the
release passes 288 blocks: student and teacher each three times (with attention maps, without, for frames twice) over all frames.
Here it is 50: the frozen blocks once for all frames (40), shared with the teacher; the student's last two on all frames, with
gradient on the last frame only (8); the teacher's last two on the first frame (2).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.sources import Source
from densewalk.methods.timetuning.clips import ClipDataset, Clips, draw, normalized, videos_of
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import PatchHead
from densewalk.ops.attention_mask import top_mass_mask
from densewalk.ops.label_propagation import Rule, follow
from densewalk.ops.sinkhorn import sinkhorn
from densewalk.training.method import Method
from densewalk.training.param_groups import ParamGroup, decay_groups
from densewalk.training.schedules import cosine

CLIPS_SHOWN = 4  # in the picture of a finished training


class TimeTuning(Method):
    """One training run of Time-Tuning.

    Raises:
        UserError: the size is no multiple of the patch size, or more blocks are to learn than there are.
    """

    queue: Tensor

    def __init__(self, settings: TimeTuningSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        check_backbone(settings, backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "timetuning"))
            self.student = Clusterer(backbone, settings)
        self.teacher = make_teacher(self.student) if settings.teacher else None
        # one value more: the update after step i takes the schedule's value at i + 1, as in the release
        self.momentum = [*cosine(settings.momentum, 1.0, total_steps).tolist(), 1.0]
        side = settings.size // backbone.patch
        self.rule = Rule((side, side), settings.radius, settings.top_k, settings.context or 0, settings.propagation_temperature)
        self.register_buffer("queue", torch.zeros(settings.queue, settings.head_widths[-1]))

    @staticmethod
    def dataset(settings: TimeTuningSettings, sources: Sequence[Source]) -> "Dataset[Tensor]":
        """One clip of every video, segment of a video file, or picture."""
        settings = settings.resolved()
        return ClipDataset([video for source in sources for video in videos_of(source, settings)], settings)

    def param_groups(self) -> list[ParamGroup]:
        """Prototypes, head and the last blocks."""
        s, student = self.settings, self.student
        decay = cosine(s.weight_decay, s.weight_decay_end, self.total_steps)
        lr, slow = (cosine(rate, 0.0, self.total_steps) for rate in (s.lr, s.backbone_lr))
        return [
            *decay_groups("prototypes", [("prototypes", student.prototypes)], lr, decay),
            *decay_groups("head", list(student.head.named_parameters()), lr, decay),
            *decay_groups("backbone", list(student.backbone.named_parameters()), slow, decay),
        ]

    def step(self, batch: Clips, at: int, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of clips, normalised."""
        trunk, grid = self.student.trunk(batch)
        earlier, last = self.student_features(trunk, grid)
        features = torch.cat([earlier, last.detach()], dim=1)
        with torch.autocast(batch.device.type, enabled=False):
            assignment = self.assign(trunk, grid, features, rng)
            labels = self.forward_labels(features, assignment)
            scores = self.student.head(last[:, 0].float()) @ self.student.prototypes.T
            losses = F.cross_entropy(scores.transpose(1, 2) / self.settings.student_temperature, labels, reduction="none")
            learnt = self.foreground(batch[:, -1])
            loss = ((losses * learnt).sum(dim=1) / learnt.sum(dim=1)).mean()
        return loss, assignment_statistics(assignment, labels, scores.detach())

    def after_update(self, at: int) -> None:
        """Prototypes back to unit length, then the teacher."""
        self.student.normalize_prototypes()
        if self.teacher is not None:
            momentum = self.momentum[at + 1]
            update_teacher(self.teacher, self.student, 1 - momentum if self.settings.swapped_momentum else momentum)
            self.teacher.normalize_prototypes()

    def export(self) -> Backbone:
        """The student: it is what the paper evaluates."""
        return self.student.backbone

    def pictures(self, data: "Dataset[Tensor]", folder: Path) -> None:
        """Some clips without augmentation, and below them their prototypes: of the first frame as assigned, then propagated."""
        assert isinstance(data, ClipDataset)
        frames = torch.stack([data.plain(i * len(data) // CLIPS_SHOWN) for i in range(min(CLIPS_SHOWN, len(data)))])
        clips = normalized(frames.to(self.student.prototypes.device).float() / 255, self.settings)
        trunk, grid = self.student.trunk(clips)
        features = self.student.features(trunk, grid)
        vectors, network = self.vectors(trunk, grid, features)
        shares = self.shares(vectors.flatten(0, -2) @ network.prototypes.T, across_processes=False)
        first = shares.view(*vectors.shape[:-1], -1)[:, 0]
        following = follow(features.float().unbind(1), first.transpose(1, 2), self.rule)
        maps = torch.stack([first.argmax(dim=2), *(soft.argmax(dim=1) for soft in following)], dim=1)
        draw(folder / "prototypes.png", frames, maps.unflatten(2, grid).cpu())

    # -- the parts of a step -----------------------------------------------------------------------------------------

    def student_features(
        self, trunk: Float[Tensor, "batch frames tokens dim"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch earlier patches dim"], Float[Tensor, "batch 1 patches dim"]]:
        """Features of all frames but the last without gradient, and of the last with it."""
        with torch.no_grad():
            earlier = self.student.features(trunk[:, :-1], grid)
        return earlier, self.student.features(trunk[:, -1:], grid)

    @torch.no_grad()
    def assign(
        self,
        trunk: Float[Tensor, "batch frames tokens dim"],
        grid: tuple[int, int],
        features: Float[Tensor, "batch frames patches dim"],
        rng: Generator,
    ) -> Float[Tensor, "batch patches protos"]:
        """Each patch's share in each prototype, for the first frames; all prototypes get the same share of all patches."""
        vectors, network = self.vectors(trunk, grid, features)
        rows = vectors.flatten(0, -2)
        shares = self.shares(torch.cat([rows, self.queued()]) @ network.prototypes.T, across_processes=True)
        self.enqueue(vectors[:, 0], rng)
        return shares[: len(rows)].view(*vectors.shape[:-1], -1)[:, 0]

    def vectors(
        self,
        trunk: Float[Tensor, "batch frames tokens dim"],
        grid: tuple[int, int],
        features: Float[Tensor, "batch frames patches dim"],
    ) -> tuple[Float[Tensor, "batch assigned patches width"], "Clusterer"]:
        """What is assigned to prototypes, the first frame or all of them, and whose network it comes from.

        features: the student's.
        """
        count = features.shape[1] if self.settings.assigned_frames == "all" else 1
        if self.teacher is None:
            return self.student.head(features[:, :count].float()), self.student
        return self.teacher.head(self.teacher.features(trunk[:, :count], grid).float()), self.teacher

    def shares(self, scores: Float[Tensor, "rows protos"], *, across_processes: bool) -> Float[Tensor, "rows protos"]:
        """Sinkhorn-Knopp as the settings say."""
        s = self.settings
        return sinkhorn(scores, epsilon=s.sinkhorn_epsilon, iterations=s.sinkhorn_iterations, across_processes=across_processes)

    def forward_labels(
        self, features: Float[Tensor, "batch frames patches dim"], assignment: Float[Tensor, "batch patches protos"]
    ) -> Int[Tensor, "batch patches"]:
        """The last frame's hard labels."""
        *_, last = follow(features.float().unbind(1), assignment.transpose(1, 2), self.rule)
        return last.argmax(dim=1)

    @torch.no_grad()
    def foreground(self, images: Float[Tensor, "batch 3 height width"]) -> Bool[Tensor, "batch patches"]:
        """Patches to learn from: the smallest set that holds `foreground_mass` of the CLS attention, mean of all heads, or all."""
        mass = self.settings.foreground_mass
        if mass is None:
            return torch.ones(len(images), self.rule.grid[0] * self.rule.grid[1], dtype=torch.bool, device=images.device)
        return top_mass_mask(self.student.backbone.last_block(images).cls_attention.float().mean(dim=1), mass)

    # -- the queue ---------------------------------------------------------------------------------------------------

    def queued(self) -> Float[Tensor, "entries dim"]:
        """This process's share of the queue; none of it until the queue is full."""
        full = len(self.queue) and bool(self.queue[-1].any())
        return self.queue[distributed.rank() :: distributed.world_size()] if full else self.queue[:0]

    def enqueue(self, vectors: Float[Tensor, "batch patches dim"], rng: Generator) -> None:
        """Some random vectors of the batch, of all processes, take the front; as many leave at the end."""
        if len(self.queue):
            rows = vectors.flatten(0, 1)
            count = min(self.settings.queue_patches_per_clip * len(vectors), len(rows))
            chosen = rows[torch.randperm(len(rows), generator=rng, device=rng.device)[:count].to(rows.device)]
            new = distributed.gathered(chosen).flatten(0, 1)[: len(self.queue)]
            self.queue.copy_(torch.cat([new, self.queue[: len(self.queue) - len(new)]]))


class Clusterer(nn.Module):
    """Backbone, projection head to unit vectors, and prototypes. Of the backbone only the last blocks learn."""

    def __init__(self, backbone: Backbone, settings: TimeTuningSettings) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.backbone.vit.blocks[-settings.trainable_blocks :].requires_grad_(True)
        self.learnt = settings.trainable_blocks
        self.head = PatchHead([backbone.dim, *settings.head_widths], normalize=True)
        self.prototypes = nn.Parameter(torch.randn(settings.prototypes, settings.head_widths[-1]))
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Every prototype to unit length."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    @torch.no_grad()
    def trunk(self, clips: Clips) -> tuple[Float[Tensor, "batch frames tokens dim"], tuple[int, int]]:
        """What the frozen part makes of every frame, and the grid."""
        x, grid = self.backbone.embed(clips.flatten(0, 1))
        return self.backbone.run(x, grid, 0, -self.learnt).unflatten(0, clips.shape[:2]), grid

    def features(self, trunk: Float[Tensor, "batch frames tokens dim"], grid: tuple[int, int]) -> Float[Tensor, "batch frames patches dim"]:
        """The last blocks and the final norm."""
        x = self.backbone.run(trunk.flatten(0, 1), grid, -self.learnt)
        return self.backbone.finish(x, grid).patches.unflatten(0, trunk.shape[:2])


def check_backbone(settings: TimeTuningSettings, backbone: Backbone) -> None:
    """Refuse what does not fit together, before anything is computed."""
    if settings.size % backbone.patch:
        near = settings.size // backbone.patch * backbone.patch
        raise UserError(f"size {settings.size} is no multiple of the patch size", todo=f"set size to {near} or {near + backbone.patch}")
    if settings.trainable_blocks > backbone.arch.depth:
        raise UserError(f"trainable_blocks {settings.trainable_blocks}: {backbone.arch.name} has {backbone.arch.depth} blocks")


def assignment_statistics(
    assignment: Float[Tensor, "batch patches protos"], labels: Int[Tensor, "batch patches"], scores: Float[Tensor, "batch patches protos"]
) -> dict[str, Tensor]:
    """Mean largest share of a patch, share of the prototypes that some label names, share of labels the student already gives."""
    used = torch.bincount(labels.flatten(), minlength=assignment.shape[-1]) > 0
    return {
        "assignment_confidence": assignment.amax(dim=-1).mean(),
        "prototypes_used": used.float().mean(),
        "student_agrees": (scores.argmax(dim=-1) == labels).float().mean(),
    }
