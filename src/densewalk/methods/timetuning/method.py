"""Time-Tuning: Time Does Tell: Self-Supervised Time-Tuning of Dense Image Representations (Salehi et al., ICCV 2023,
https://arxiv.org/abs/2308.11796).

The first frame of a clip is clustered, its soft clusters are forwarded through the clip along feature similarity, and the student must
predict the last frame's clusters from the last frame alone.

    Q_1 = SinkhornKnopp(exp(normalize(g_t(F_1)) C_t^T / epsilon))         assignment of the first frame's patches  `assign`
    Q_T = feature-forwarder(Q_1; features of frames 1..T)                 soft labels of the last frame            `forward_labels`
    loss = CE(normalize(g(F_T)) C^T / tau, argmax Q_T)                    mean over the last frame's patches       `step`

F: patch features of the backbone, of which only the last blocks learn; g: projection head; C: prototypes of unit length; t: the
momentum teacher's. The feature-forwarder is ops/label_propagation.py; Sinkhorn runs over the first frames of all clips of all processes.

Published sanity targets (the release's README): loss from 4.9 to 1.6 within 540 steps, VOC clustering with K = 21 from 6.3 to 12.5 %
mIoU. The paper's tables are not in published.csv, since their source could not be read.

Choices of ours: a video file is cut into segments (clips.py); a still image is a video of one frame. Each block runs only where it is
needed, which gives the same loss and gradients with 50 block passes a clip in place of 288 (benchmarks/timetuning.py): the frozen ones
once for all frames and for the teacher, too; the student's last two on all frames; the teacher's last two on the first frame.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.data.sources import Source
from densewalk.data.stretches import videos_of
from densewalk.methods.timetuning.clips import ClipDataset, Clips, make_views, normalize_clip
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import Clusterer, assignment_statistics
from densewalk.ops.attention_mask import top_mass_mask
from densewalk.ops.label_propagation import Rule, follow
from densewalk.ops.sinkhorn import sinkhorn
from densewalk.training.method import Method, ParamGroup, clusterer_groups
from densewalk.training.schedules import cosine
from densewalk.visualization.prototypes import draw_prototypes

CLIPS_SHOWN = 4  # in the image of a finished training
Tokens = Float[Tensor, "batch frames tokens dim"]
Patches = Float[Tensor, "batch frames patches dim"]
Shares = Float[Tensor, "batch patches protos"]
Labels = Int[Tensor, "batch patches"]


class TimeTuning(Method):
    """One training run of Time-Tuning.

    Raises:
        UserError: the size is no multiple of the patch size, or more blocks are to learn than there are.
    """

    queue: Tensor

    def __init__(self, settings: TimeTuningSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        settings.require_network(backbone.arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "timetuning"))
            self.student = Clusterer(
                backbone, settings.size, learning=settings.trainable_blocks, widths=settings.head_widths, prototypes=settings.prototypes
            )
        self.teacher = make_teacher(self.student) if settings.teacher else None
        # one value more: the update after step i takes the schedule's value at i + 1, as released
        self.momentum = [*cosine(settings.momentum, 1.0, total_steps).tolist(), 1.0]
        self.rule = Rule(self.student.grid, settings.radius, settings.top_k, settings.context or 0, settings.propagation_temperature)
        self.sinkhorn_shares = partial(sinkhorn, epsilon=settings.sinkhorn_epsilon, iterations=settings.sinkhorn_iterations)
        self.register_buffer("queue", torch.zeros(settings.queue, settings.head_widths[-1]))

    @staticmethod
    def dataset(settings: TimeTuningSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """One clip of every video, segment of a video file, or image."""
        settings = settings.resolved()
        return ClipDataset(
            [video for source in sources for video in videos_of(source, settings.segment_seconds, settings.frames)], settings
        )

    def param_groups(self) -> list[ParamGroup]:
        """Prototypes, head and the last blocks."""
        s = self.settings
        decay = cosine(s.weight_decay, s.weight_decay_end, self.total_steps)
        lr, slow = (cosine(rate, 0.0, self.total_steps) for rate in (s.lr, s.backbone_lr))
        return clusterer_groups(self.student, lr, slow, decay)

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Clips:
        """Flip, colors and blur, the same for all frames of a clip."""
        return make_views(batch, self.settings, device)

    def step(self, batch: Clips, step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of clips [b, t, 3, h, w], normalized."""
        trunk = self.student.encode_trunk(batch)  # [b, t, tokens, d], the frozen blocks
        last = self.student.encode(trunk[:, -1:])  # [b, 1, n, d], the only one with a gradient
        with torch.no_grad():
            features = torch.cat([self.student.encode(trunk[:, :-1]), last], dim=1)  # [b, t, n, d]
        with torch.autocast(batch.device.type, enabled=False):
            assignment = self.assign(trunk, features, generator)  # [b, n, prototypes], of the first frame
            labels = self.forward_labels(features, assignment)  # [b, n], of the last frame
            scores = self.student.head(last[:, 0].float()) @ self.student.prototypes.T  # [b, n, prototypes]
            losses = F.cross_entropy(scores.transpose(1, 2) / self.settings.student_temperature, labels, reduction="none")  # [b, n]
            learned = self.foreground(batch[:, -1])  # [b, n]
            loss = ((losses * learned).sum(dim=1) / learned.sum(dim=1)).mean()
        return loss, assignment_statistics(assignment, labels, scores.detach())

    def after_update(self, step: int) -> None:
        """Prototypes back to unit length, then the teacher."""
        self.student.normalize_prototypes()
        if self.teacher is not None:
            momentum = self.momentum[step + 1]
            update_teacher(self.teacher, self.student, 1 - momentum if self.settings.swapped_momentum else momentum)
            self.teacher.normalize_prototypes()

    def export(self) -> Backbone:
        """The student: it is what the paper evaluates."""
        return self.student.backbone

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some clips without augmentation, and below them their prototypes: of the first frame as assigned, then propagated."""
        assert isinstance(data, ClipDataset)
        frames = torch.stack([data.plain(i * len(data) // CLIPS_SHOWN) for i in range(min(CLIPS_SHOWN, len(data)))])
        clips = normalize_clip(frames.to(self.student.prototypes.device).float() / 255, self.settings)
        trunk = self.student.encode_trunk(clips)
        features = self.student.encode(trunk)
        vectors, network = self.vectors_to_assign(trunk, features)
        shares = self.sinkhorn_shares(vectors.flatten(0, -2) @ network.prototypes.T, across_processes=False)
        first = shares.view(*vectors.shape[:-1], -1)[:, 0]
        following = follow(features.float().unbind(1), first.transpose(1, 2), self.rule)
        maps = torch.stack([first.argmax(dim=2), *(soft.argmax(dim=1) for soft in following)], dim=1)
        draw_prototypes(folder / "prototypes.png", frames, maps.unflatten(2, self.student.grid).cpu())

    @torch.no_grad()
    def assign(self, trunk: Tokens, features: Patches, generator: Generator) -> Shares:
        """Each patch's share in each prototype, for the first frames; all prototypes get the same share of all patches.

        The queue takes the batch before it is read (as released), so that a step's own patches may be in it a second time.
        """
        vectors, network = self.vectors_to_assign(trunk, features)
        rows = vectors.flatten(0, -2)
        self.enqueue(vectors[:, 0], generator)
        shares = self.sinkhorn_shares(torch.cat([rows, self.queued()]) @ network.prototypes.T, across_processes=True)
        return shares[: len(rows)].view(*vectors.shape[:-1], -1)[:, 0]

    def vectors_to_assign(self, trunk: Tokens, features: Patches) -> tuple[Float[Tensor, "batch assigned patches width"], "Clusterer"]:
        """Projected patches of the first frame or of all frames, and the network that they and their prototypes are of."""
        count = features.shape[1] if self.settings.assigned_frames == "all" else 1
        if self.teacher is None:
            return self.student.head(features[:, :count].float()), self.student
        return self.teacher.head(self.teacher.encode(trunk[:, :count]).float()), self.teacher

    def forward_labels(self, features: Patches, assignment: Shares) -> Labels:
        """The last frame's hard labels."""
        *_, last = follow(features.float().unbind(1), assignment.transpose(1, 2), self.rule)
        return last.argmax(dim=1)

    @torch.no_grad()
    def foreground(self, images: Float[Tensor, "batch 3 height width"]) -> Bool[Tensor, "batch patches"]:
        """Patches to learn from: the smallest set that holds `foreground_mass` of the CLS attention, mean of all heads, or all."""
        mass = self.settings.foreground_mass
        if mass is None:
            rows, columns = self.student.grid
            return torch.ones(len(images), rows * columns, dtype=torch.bool, device=images.device)
        return top_mass_mask(self.student.backbone.last_block(images).cls_attention.float().mean(dim=1), mass)

    def queued(self) -> Float[Tensor, "entries dim"]:
        """This process's share of the queue; none of it until the queue is full."""
        full = len(self.queue) and bool(self.queue[-1].any())
        return self.queue[distributed.rank() :: distributed.world_size()] if full else self.queue[:0]

    def enqueue(self, vectors: Float[Tensor, "batch patches dim"], generator: Generator) -> None:
        """Some random vectors of the batch, of all processes, take the front; as many leave at the end."""
        if len(self.queue):
            rows = vectors.flatten(0, 1)
            count = min(self.settings.queue_patches_per_clip * len(vectors), len(rows))
            chosen = rows[torch.randperm(len(rows), generator=generator, device=generator.device)[:count].to(rows.device)]
            new = distributed.gathered(chosen).flatten(0, 1)[: len(self.queue)]
            self.queue.copy_(torch.cat([new, self.queue[: len(self.queue) - len(new)]]))


METHOD = TimeTuning
