"""Time-Tuning: Time Does Tell: Self-Supervised Time-Tuning of Dense Image Representations.

Salehi et al., ICCV 2023, https://arxiv.org/abs/2308.11796. The first frame of a clip is clustered, its soft clusters are forwarded
through the clip along feature similarity, and the student must predict the last frame's clusters from the last frame alone.

    Q_1 = SinkhornKnopp(exp(normalize(g_t(F_1)) C_t^T / epsilon))         assignment of the first frame's patches  `assign`
    Q_T = feature-forwarder(Q_1; features of frames 1..T)                 soft labels of the last frame            `forward_labels`
    loss = CE(normalize(g(F_T)) C^T / tau, argmax Q_T)                    mean over the last frame's patches       `step`

F: patch features of the backbone, of which only the last blocks learn; g: projection head; C: prototypes of unit length; t: the
momentum teacher's. The feature-forwarder is propagation.py; Sinkhorn runs over the first frames of all clips of all processes.
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

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from densewalk import distributed
from densewalk.backbone import Backbone
from densewalk.errors import UserError
from densewalk.heads import PatchHead
from densewalk.images import IMAGENET_MEAN, IMAGENET_STD, FrameFolders, ImageFolder
from densewalk.methods.base import Item, Method, ParamGroup, Source, decay_groups
from densewalk.propagation import Rule, follow
from densewalk.provenance import derive_seed
from densewalk.schedules import cosine
from densewalk.sequences import write_rows
from densewalk.settings.timetuning import TimeTuningSettings
from densewalk.sinkhorn import sinkhorn
from densewalk.teacher import make_teacher, update_teacher
from densewalk.video import VideoClips
from densewalk.views import distort, maybe, random_resized_crop_box, resized_crop

CLIPS_SHOWN = 4  # in the picture of a finished training

Clips = Float[Tensor, "batch frames 3 height width"]


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
        return attended(self.student.backbone.last_block(images).cls_attention.float().mean(dim=1), mass)

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


def attended(attention: Float[Tensor, "batch patches"], mass: float) -> Bool[Tensor, "batch patches"]:
    """The smallest set of patches that holds at least the share `mass` of each row's attention.

    for patch in sorted(patches, key=attention, reverse=True):
        if sum(attention of the patches before it) < mass * sum(attention):
            keep patch
    """
    values, order = attention.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = before < mass * attention.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(1, order, kept)


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


# -- clips -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """A stretch of frames that belong together: `read` takes frame numbers, of which `start` to `start + length` are the video's."""

    read: Callable[[Sequence[int]], Tensor]
    start: int
    length: int


def videos_of(source: Source, settings: TimeTuningSettings) -> list[Video]:
    """The videos of a source: a file's segments, a folder's sequences, or each picture of a folder.

    Raises:
        UserError: a video file without a segment of `frames` frames.
    """
    if source.kind == "video":
        reader = VideoClips(source.path, source.receipt, 1, 1.0)
        parts = segments(source.receipt, settings.segment_seconds, settings.frames)
        if not parts:
            raise UserError(f"{source.name}: no usable part without a scene cut has {settings.frames} frames", todo="lower frames")
        return [Video(reader.read, start, end - start) for start, end in parts]
    if source.kind == "sequences":
        folders = FrameFolders(source.path, only=source.receipt.get("chosen"))
        return [Video(_SequenceReader(folders, i), 0, len(frames)) for i, frames in enumerate(folders.sequences)]
    pictures = ImageFolder(source.path, receipt=source.receipt)
    return [Video(_PictureReader(pictures), i, 1) for i in range(len(pictures))]


@dataclass(frozen=True)
class _SequenceReader:
    folders: FrameFolders
    sequence: int

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return self.folders.read(self.sequence, indices)


@dataclass(frozen=True)
class _PictureReader:
    pictures: ImageFolder

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return self.pictures[indices[0]].expand(len(indices), -1, -1, -1)


def segments(receipt: dict[str, Any], seconds: float, least: int) -> list[tuple[int, int]]:
    """Even pieces of the usable parts of a video, as [start, end) frames: about `seconds` long, without a cut, `least` frames or more.

    Where frames were chosen by a curation, those pieces that hold one.
    """
    found = []
    for start, end in receipt["usable"]:
        edges = [start, *(cut for cut in receipt["cuts"] if start < cut < end), end]
        for a, b in pairwise(edges):
            count = max(1, round((b - a) / (seconds * receipt["fps"])))
            marks = [a + (b - a) * i // count for i in range(count + 1)]
            found += [(x, y) for x, y in pairwise(marks) if y - x >= least]
    kept = receipt.get("kept")
    return found if kept is None else [(x, y) for x, y in found if bisect_left(kept, x) < bisect_left(kept, y)]


def choose_frames(length: int, settings: TimeTuningSettings, generator: Generator) -> list[int]:
    """Frame numbers 0 to `length` - 1 of a clip, in order.

    Uniform: distinct ones from the whole video, or with repetitions where it is too short. Dense: a stretch with the distance
    `dense_step`, less where the video is too short for it, and its last frame repeated where it has fewer frames than the clip.
    """
    frames = settings.frames
    if settings.sampling == "uniform":
        if length < frames:
            return sorted(torch.randint(length, (frames,), generator=generator).tolist())
        return sorted(torch.randperm(length, generator=generator)[:frames].tolist())
    step = max(1, min(settings.dense_step, (length - 1) // (frames - 1)))
    start = int(torch.randint(max(1, length - (frames - 1) * step), (1,), generator=generator))
    return [min(start + i * step, length - 1) for i in range(frames)]


class ClipDataset(Dataset[Tensor]):
    """One clip of each video per epoch: float [frames, 3, size, size], normalised."""

    def __init__(self, videos: list[Video], settings: TimeTuningSettings) -> None:
        self.videos, self.settings = videos, settings

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: Item) -> Float[Tensor, "frames 3 size size"]:
        generator = torch.Generator().manual_seed(item.seed)
        video = self.videos[item.index]
        numbers = choose_frames(video.length, self.settings, generator)
        return augment(video.read([video.start + n for n in numbers]), self.settings, generator)

    def plain(self, index: int) -> UInt8[Tensor, "frames 3 size size"]:
        """Always the same clip of a video: the middle of its frames, not augmented."""
        video = self.videos[index]
        numbers = choose_frames(video.length, self.settings, torch.Generator().manual_seed(0))
        clip = video.read([video.start + n for n in numbers])
        height, width = clip.shape[-2:]
        side = min(height, width)
        return resized_crop(clip, ((height - side) // 2, (width - side) // 2, side, side), self.settings.size)


def augment(
    clip: UInt8[Tensor, "frames 3 height width"], settings: TimeTuningSettings, generator: Generator
) -> Float[Tensor, "frames 3 size size"]:
    """Crop, colours, blur and flip, drawn once for the whole clip."""
    height, width = clip.shape[-2:]
    box = random_resized_crop_box(height, width, settings.scale, (3 / 4, 4 / 3), generator)
    clip = distort(resized_crop(clip, box, settings.size).float() / 255, generator)
    return normalized(clip.flip(-1) if maybe(0.5, generator) else clip, settings)


def normalized(clip: Float[Tensor, "*batch 3 height width"], settings: TimeTuningSettings) -> Float[Tensor, "*batch 3 height width"]:
    """RGB in 0..1 as the network takes it."""
    mean, std = clip.new_tensor(IMAGENET_MEAN), clip.new_tensor([settings.red_std, *IMAGENET_STD[1:]])
    return (clip - mean[:, None, None]) / std[:, None, None]


# -- pictures --------------------------------------------------------------------------------------------------------


def draw(path: Path, clips: UInt8[Tensor, "clips frames 3 size size"], maps: Int[Tensor, "clips frames rows columns"]) -> None:
    """Each clip's frames, and below them the same with every patch in its prototype's colour; frequent ones get the clearest."""
    _, prototype, count = maps.unique(return_inverse=True, return_counts=True)
    rank = count.argsort(descending=True, stable=True).argsort() + 1
    colours = rank[prototype].clamp(max=255)
    large = F.interpolate(colours.float(), clips.shape[-2:], mode="nearest").byte()
    rows = [(frames, labels) for frames, own in zip(clips.permute(0, 1, 3, 4, 2), large, strict=True) for labels in (0 * own, own)]
    write_rows(path, [(frames.numpy(), labels.numpy()) for frames, labels in rows])
