"""DoRA: Is ImageNet worth 1 video? Learning strong image encoders from 1 long unlabelled video.

Venkataramanan et al., ICLR 2024, https://arxiv.org/abs/2310.08584. The teacher discovers k objects in the first frame of a clip
and tracks them through the others; the student sees one tracked object at a time and learns the teacher's view of the frame.

    A_i   = softmax(q_cls K_i^T / sqrt(d / heads)), a draw I of k heads                 equation 1   `LastBlock.cls_attention`
    P     = A_I Q                                      object prototypes                equation 2   `prototypes`
    M     = SinkhornKnopp(exp(Z P^T / epsilon))        which patch is which object's    equation 4   `refine`
    P'    = M^T Z                                      refined, distinct prototypes     equation 5   `refine`
    T'_t  = softmax(P' K_t^T / sqrt(d))                where the objects are in frame t equation 6   `track`
    X_t^i = X_t * T'_t[i]                              the frame with one object        equation 7   `show_objects`
    loss  = mean over t, i of (CE(teacher(X_t), student(X_t^i)) + CE(teacher(X_t), student(local crops of X_t))) / 2
                                                                                        equation 8   `total_loss`

Q, K: queries and keys of the teacher's last block, heads side by side; Z: its patch tokens, normalised. Head, centre, schedules
and optimiser are DINO's (dino.py). The released code is https://github.com/shashankvkt/DoRA_ICLR24 at commit 0508b2c.

Published, ViT-S/16: UPerNet on ADE20K, 160k iterations: DINO on ImageNet-1k 33.9 mIoU, DoRA on Walking Tours Venice 1.5 more
(second hand); measured again by PooDLe: DINO 29.2, DoRA 35.2 on Venice, DoRA 38.3 on all ten videos. ImageNet k-NN about 36 and
linear 45 (reviews of the submission).

What the two modes of `compat` do, each a switch in the settings. File and line are the release's.

    switch                 paper      released  source and effect
    loss_carry_over        no         yes       main.py:407,456: the running mean over frames is not reset for the next object, so
                                                that object j weighs sum_{e < k - j} T^-e: for T = 8 the loss is 8.9 % too large
    skip_first_local_crop  no         yes       main.py:448: a comparison left over from DINO skips crop 0
    hard_masks             no         yes       equation 7 against utils.py:27-79: patches above the mean are shown, others not
    batch_threshold        no         yes       utils.py:27-79: the mean is over the process's batch, so a clip's mask depends on others
    n_fold_assignment      no         yes       equation 4 has marginals 1 / k and 1 / n; sinkhorn_knopp.py:29-65 multiplies by n: the
                                                tracker's softmax is n times sharper
    linear_sinkhorn        no         yes       sinkhorn_knopp.py:29-65: exponentials underflow to 0 / 0 on peaked scores
    global_views           2          1         DINO's multi-crop against main.py:545,559, where the second one is commented out
    unseeded_heads         no         no        utils.py: Python's `random` is never seeded; has no digits to reproduce

Choices of ours that neither the paper nor the release settles:
    - T'_t sums to 1 over n patches, so that the literal product of equation 7 is a nearly black frame. Soft masks are T'_t scaled to
      0..1 over each object's patches of each frame. What is hidden becomes ImageNet's mean colour, as in the release.
    - With two global views, objects are discovered and shown in each by itself, local crops learn from both.
    - NaN in the tracker or an object without any patch ends the training with the batch saved. The release trains on grey frames.
    - Augmentation is the release's: one box of a share 0.2 to 1 for the whole clip, resized to 300 px (for 224 px views), from which
      clip-consistent global views are cut and flipped; local crops are cut per frame, not flipped; colours are drawn per image.
      All resizing is antialiased, and the crop comes before anything is converted.
    - `centering: sinkhorn` and KoLeo (dino.py) are options, off by default; KoLeo is on the student's CLS of the masked frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.backbone import Backbone
from densewalk.errors import UserError
from densewalk.images import FrameClips, FrameFolders, normalize
from densewalk.methods.base import Item, Source
from densewalk.methods.dino import SelfDistillation, by_view, colour, cross_entropies, draw_box, koleo, teacher_entropies
from densewalk.pictures import TrackedClip, tracking_strip
from densewalk.settings.dora import DoraSettings
from densewalk.sinkhorn import NonFiniteScores, linear_sinkhorn, sinkhorn
from densewalk.video import VideoClips
from densewalk.views import maybe, resized_crop

CLIPS_SHOWN = 4  # in the picture of a finished training
PICTURE_SCALE = 2  # views are cut from a fifth of a frame or more: at their size, whole frames would show everything too small


class Dora(SelfDistillation):
    """One training run of DoRA.

    Raises:
        UserError: more objects than the backbone has heads, or what `SelfDistillation` refuses.
    """

    settings: DoraSettings

    def __init__(self, settings: DoraSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        if settings.objects > backbone.arch.heads:
            raise UserError(f"objects {settings.objects} is more than the backbone's heads", allowed=f"1 to {backbone.arch.heads}")
        super().__init__(settings.resolved(), backbone, total_steps, steps_per_epoch, seed)

    @staticmethod
    def dataset(settings: DoraSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """One clip per admissible start frame of every video, be it a file or a folder of frames."""
        images = [source.name for source in sources if source.kind == "images"]
        if images:
            raise UserError(
                f"DoRA learns from videos, {', '.join(images)} holds images",
                todo="use method dino, or give videos; a folder of frames for each video is layout: sequences",
            )
        return DoraViews(ConcatDataset([clips_of(source, settings) for source in sources]), settings.resolved())

    def step(self, batch: dict[str, Tensor], at: int, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of `global` [batch, views, frames, 3, height, width] and `local` [batch, crops, frames, 3, height, width]."""
        views = batch["global"].flatten(0, 1)
        seen = self.look(views)
        masks = self.discover_and_track(seen, self.draw_heads(rng), batch, at)
        masked, local, features = self.student_logits(show_objects(views, masks, seen.grid), batch["local"])
        targets = self.targets(seen.logits, at, batch)
        mask_terms, local_terms = frame_terms(targets, masked, local, self.settings.student_temperature)
        loss = total_loss(mask_terms, local_terms, carry_over=bool(self.settings.loss_carry_over))
        logs = {"loss_mask": mask_terms.detach().mean(), "loss_local": local_terms.detach().mean()}
        if self.settings.koleo_weight:
            apart = koleo_of_frames(features, samples=len(batch["local"]))
            loss, logs["loss_koleo"] = loss + self.settings.koleo_weight * apart, apart.detach()
        self.note_logits(seen.logits)
        return loss, {**logs, **teacher_entropies(targets), **mask_statistics(masks)}

    @torch.no_grad()
    def look(self, views: Float[Tensor, "batch frames 3 height width"]) -> "Sight":
        """What the teacher makes of every frame. Only the first one's patches are needed, of the others CLS and keys."""
        network = self.teacher.backbone
        later = (len(views), views.shape[1] - 1)
        first = network.last_block(views[:, 0])
        cls, keys = network.cls_and_keys(views[:, 1:].flatten(0, 1))
        first_keys, later_keys = patch_features(first.key, network.prefix), patch_features(keys, network.prefix)
        return Sight(
            logits=self.teacher.head(torch.cat([first.tokens.cls[:, None], cls.unflatten(0, later)], dim=1)),
            patches=first.tokens.patches.float(),
            query=patch_features(first.query, network.prefix),
            keys=torch.cat([first_keys[:, None], later_keys.unflatten(0, later)], dim=1),
            cls_attention=first.cls_attention.float(),
            grid=first.tokens.grid,
        )

    def draw_heads(self, rng: Generator) -> Int[Tensor, " objects"]:
        """Attention heads whose CLS looks at the objects, one draw for the whole batch."""
        if self.settings.unseeded_heads:
            rng = Generator(rng.device)
            rng.seed()
        heads = self.teacher.backbone.arch.heads
        return torch.randperm(heads, generator=rng, device=rng.device)[: self.settings.objects]

    @torch.no_grad()
    def discover_and_track(
        self, seen: "Sight", heads: Int[Tensor, " objects"], batch: dict[str, Tensor], at: int
    ) -> Float[Tensor, "batch objects frames patches"]:
        """Each object's mask in each frame, or the end of the training if there is none."""
        try:
            masks = self.masks(self.tracks(seen, heads))
        except NonFiniteScores as error:
            self.stop(str(error), batch, at)
        empty = ~(masks.amax(dim=-1) > 0)  # true for NaN, too
        if empty.any():
            self.stop(f"{int(empty.sum())} of {empty.numel()} tracked objects have no patch to show", batch, at)
        return masks

    def tracks(self, seen: "Sight", heads: Int[Tensor, " objects"]) -> Float[Tensor, "batch objects frames patches"]:
        """Attention of the objects that these heads discover in the first frame to the patches of each frame, of sum 1.

        Raises:
            NonFiniteScores: the teacher's output is not finite.
        """
        with torch.autocast(seen.keys.device.type, enabled=False):
            refined = refine(prototypes(seen.cls_attention[:, heads], seen.query), seen.patches, self.settings)
            return track(refined, seen.keys)

    def masks(self, tracks: Float[Tensor, "batch objects frames patches"]) -> Float[Tensor, "batch objects frames patches"]:
        """What the student is shown of each patch, 0..1; NaN where soft masks have nothing to tell apart."""
        s = self.settings
        return hard_masks(tracks, per_batch=bool(s.batch_threshold)) if s.hard_masks else soft_masks(tracks)

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """The objects of some clips of uncut frames, discovered by the first heads and tracked as in training.

        Two rows each: the masks, and whose attention is the largest. Masks share what all objects look at; the second row leaves
        that out and tells whether the objects are different things.
        """
        assert isinstance(data, DoraViews)
        heads = torch.arange(self.settings.objects, device=self.center.device)
        rows = []
        for number in spread(len(data), CLIPS_SHOWN):
            frames = uncut(data.clips[number], PICTURE_SCALE * self.settings.global_size, self.teacher.backbone.patch)
            seen = self.look(normalize(frames / 255).to(self.center.device)[None])
            tracks = self.tracks(seen, heads)
            title, pixels = f"clip {number} of {len(data)}", frames.permute(0, 2, 3, 1).numpy()
            for what, masks in (
                ("what the student is shown", self.masks(tracks).nan_to_num()),
                ("whose attention is largest", owners(tracks)),
            ):
                rows.append(TrackedClip(f"{title}: {what}", pixels, masks[0].unflatten(-1, seen.grid).cpu().numpy()))
        tracking_strip(folder / "objects.png", rows)

    def student_logits(
        self, masked: Float[Tensor, "batch objects frames 3 height width"], crops: Float[Tensor, "samples crops frames 3 size size"]
    ) -> tuple[
        Float[Tensor, "objects batch frames protos"],
        Float[Tensor, "used_crops samples frames protos"],
        Float[Tensor, "objects batch frames dim"],
    ]:
        """The student's logits of masked frames and of local crops, and its features of the former; the head runs once, on both."""
        used = crops[:, 1:] if self.settings.skip_first_local_crop else crops
        features = [by_view(self.student.backbone.cls, images) for images in (masked, used)]
        logits = self.student.head(torch.cat([x.flatten(0, -2) for x in features]))
        parts = logits.split([x.shape[:-1].numel() for x in features])
        masked_logits, local_logits = (part.unflatten(0, x.shape[:-1]) for part, x in zip(parts, features, strict=True))
        return masked_logits, local_logits, features[0]


@dataclass(frozen=True)
class Sight:
    """The teacher's output for clips, in float32; everything but logits and keys is the first frame's."""

    logits: Float[Tensor, "batch frames protos"]
    patches: Float[Tensor, "batch patches dim"]
    query: Float[Tensor, "batch patches dim"]
    keys: Float[Tensor, "batch frames patches dim"]
    cls_attention: Float[Tensor, "batch heads patches"]
    grid: tuple[int, int]


def patch_features(x: Float[Tensor, "batch heads tokens head_dim"], prefix: int) -> Float[Tensor, "batch patches dim"]:
    """Queries or keys of the patches, heads side by side, in float32."""
    return x[:, :, prefix:].transpose(1, 2).flatten(2).float()


# -- discovery and tracking ------------------------------------------------------------------------------------------


def prototypes(
    attention: Float[Tensor, "batch objects patches"], query: Float[Tensor, "batch patches dim"]
) -> Float[Tensor, "batch objects dim"]:
    """Equation 2: queries pooled by what each drawn head's CLS looks at. The rows of `attention` sum to less than 1, as in the release."""
    return attention @ query


def refine(
    prototypes: Float[Tensor, "batch objects dim"], patches: Float[Tensor, "batch patches dim"], settings: DoraSettings
) -> Float[Tensor, "batch objects dim"]:
    """Equations 4 and 5: share the patches out evenly among the objects, then pool the normalised patches by their shares.

    Raises:
        NonFiniteScores: patches or prototypes are not finite.
    """
    unit = F.normalize(patches, dim=-1)
    solve = linear_sinkhorn if settings.linear_sinkhorn else sinkhorn
    shares = solve(unit @ prototypes.transpose(1, 2), epsilon=settings.sinkhorn_epsilon, iterations=settings.sinkhorn_iterations)
    if not settings.n_fold_assignment:
        shares = shares / shares.shape[1]
    return shares.transpose(1, 2) @ unit


def track(
    prototypes: Float[Tensor, "batch objects dim"], keys: Float[Tensor, "batch frames patches dim"]
) -> Float[Tensor, "batch objects frames patches"]:
    """Equation 6: cross-attention of the objects to each frame's patches, over the full width of all heads."""
    scores = torch.einsum("bkd,btnd->bktn", prototypes, keys) * keys.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


def soft_masks(tracks: Float[Tensor, "batch objects frames patches"]) -> Float[Tensor, "batch objects frames patches"]:
    """Each map scaled to 0..1; NaN where a map is constant."""
    low, high = tracks.aminmax(dim=-1, keepdim=True)
    return (tracks - low) / (high - low)


def hard_masks(tracks: Float[Tensor, "batch objects frames patches"], *, per_batch: bool) -> Float[Tensor, "batch objects frames patches"]:
    """1 where a map, scaled to unit length, exceeds the mean over its patches, or over all patches of the batch; else 0."""
    unit = F.normalize(tracks, dim=-1)
    threshold = unit.mean(dim=(0, -1) if per_batch else -1, keepdim=True)
    return (unit > threshold).float()


def owners(tracks: Float[Tensor, "batch objects frames patches"]) -> Float[Tensor, "batch objects frames patches"]:
    """1 for the object whose attention to a patch is the largest, 0 for the others."""
    return F.one_hot(tracks.argmax(dim=1), tracks.shape[1]).movedim(-1, 1).float()


def show_objects(
    views: Float[Tensor, "batch frames 3 height width"], masks: Float[Tensor, "batch objects frames patches"], grid: tuple[int, int]
) -> Float[Tensor, "batch objects frames 3 height width"]:
    """Equation 7: every frame times every object's mask, each patch as a whole."""
    rows, columns = grid
    patches = views.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1))[:, None]
    weights = masks.unflatten(-1, grid)[:, :, :, None, :, None, :, None]
    return (patches * weights).flatten(-2).flatten(-3, -2)


def mask_statistics(masks: Float[Tensor, "batch objects frames patches"]) -> dict[str, Tensor]:
    """Mean share of a frame that an object keeps, and mean share that two objects have in common."""
    pairs = torch.combinations(torch.arange(masks.shape[1], device=masks.device))
    common = torch.minimum(masks[:, pairs[:, 0]], masks[:, pairs[:, 1]])
    return {"mask_keep": masks.mean(), "object_overlap": common.mean() if len(pairs) else masks.new_zeros(())}


# -- loss ------------------------------------------------------------------------------------------------------------


def frame_terms(
    targets: Float[Tensor, "batch frames protos"],
    masked: Float[Tensor, "objects batch frames protos"],
    local: Float[Tensor, "crops samples frames protos"],
    temperature: float,
) -> tuple[Float[Tensor, "objects frames"], Float[Tensor, " frames"]]:
    """Cross-entropies of equation 8, always between views of the same frame, as means over batch and crops.

    for i, t:  mask_terms[i, t] = mean over b    of CE(targets[b, t], masked[i, b, t])
    for t:     local_terms[t]   = mean over v, b of CE(targets[b, t], local[v, sample of b, t])

    Args:
        targets: of every global view; the views of one sample are neighbours.
    """
    samples, frames = local.shape[1:3]
    own = cross_entropies(targets.flatten(0, 1)[None], masked.flatten(1, 2), temperature)[0]
    by_global_view = targets.unflatten(0, (samples, -1)).transpose(0, 1)
    crops = cross_entropies(by_global_view.flatten(1, 2), local.flatten(1, 2), temperature)
    return own.unflatten(-1, (-1, frames)).mean(dim=1), crops.unflatten(-1, (samples, frames)).mean(dim=(0, 1, 2))


def total_loss(
    mask_terms: Float[Tensor, "objects frames"], local_terms: Float[Tensor, " frames"], *, carry_over: bool
) -> Float[Tensor, ""]:
    """Mean over objects and frames of the mean of both terms; `carry_over` weighs the objects as the release does."""
    objects, frames = mask_terms.shape
    terms = (mask_terms + local_terms) / 2
    if carry_over:
        weights = [sum(frames**-e for e in range(objects - j)) for j in range(objects)]
        terms = terms * torch.tensor(weights, device=terms.device)[:, None]
    return terms.mean()


def koleo_of_frames(features: Float[Tensor, "objects batch frames dim"], samples: int) -> Float[Tensor, ""]:
    """Spread the frames of a batch that show one object of one global view, mean over objects and views.

    for i, g:  terms[i, g] = koleo(all features[i, view g of sample s, t] over s and t)

    Views of the same frame, which are to agree, are never pushed apart.

    Args:
        samples: clips of the batch; the views of one are neighbours.
    """
    groups = features.unflatten(1, (samples, -1)).transpose(1, 2).flatten(2, 3)
    return torch.stack([koleo(group) for group in groups.flatten(0, 1)]).mean()


# -- views -----------------------------------------------------------------------------------------------------------


def clips_of(source: Source, settings: DoraSettings) -> "Dataset[Tensor]":
    """The source's clips, uint8 [frames, 3, height, width].

    Raises:
        UserError: no clip fits, or folders of frames of which nobody has said how fast they are.
    """
    if source.kind == "video":
        return VideoClips(source.path, source.receipt, settings.frames, settings.spacing_seconds)
    fps = source.receipt.get("fps")
    if fps is None:
        raise UserError(
            f"images.{source.name}.fps is not given, but a clip's frames are {settings.spacing_seconds:g} s apart",
            todo="give the sequences' frames a second (DAVIS: 24)",
        )
    stride = round(settings.spacing_seconds * fps)
    if stride < 1 and settings.frames > 1:
        raise UserError(f"{source.name} has a frame every {1 / fps:g} s: {settings.spacing_seconds:g} s between frames is less")
    return FrameClips(FrameFolders(source.path, only=source.receipt.get("chosen")), settings.frames, stride)


class DoraViews(Dataset[dict[str, Tensor]]):
    """Views of clips: dict of `global` [views, frames, 3, size, size] and `local` [crops, frames, 3, size, size], normalised."""

    def __init__(self, clips: "Dataset[Tensor]", settings: DoraSettings) -> None:
        self.clips, self.settings = clips, settings

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        frames = cut_clip(self.clips[item.index], self.settings, generator)
        assert self.settings.global_views is not None
        views = [global_view(frames, self.settings, generator) for _ in range(self.settings.global_views)]
        crops = [local_crops(frames, self.settings, generator) for _ in range(self.settings.local_crops)]
        return {"global": torch.stack(views), "local": torch.stack(crops)}


def cut_clip(frames: UInt8[Tensor, "frames 3 height width"], settings: DoraSettings, generator: Generator) -> Tensor:
    """One box of the whole clip, a fifth of the area or more, at the resolution from which the views are cut: 300 px for views of 224."""
    box = draw_box(frames, (0.2, 1.0), generator)
    frames = frames.contiguous(memory_format=torch.channels_last)  # thrice as fast to resize
    return resized_crop(frames, box, round(settings.global_size * 300 / 224))


def global_view(frames: Tensor, settings: DoraSettings, generator: Generator) -> Float[Tensor, "frames 3 size size"]:
    """Crop and flip shared by all frames, colours of their own."""
    box = draw_box(frames, settings.global_scale, generator)
    clip = resized_crop(frames, box, settings.global_size)
    clip = clip.flip(-1) if maybe(0.5, generator) else clip
    return normalize(torch.stack([colour(frame, generator, blur=0.1) for frame in clip]))


def local_crops(frames: Tensor, settings: DoraSettings, generator: Generator) -> Float[Tensor, "frames 3 size size"]:
    """One crop of each frame, everything about it drawn for that frame alone."""
    crops = []
    for frame in frames:
        box = draw_box(frame, settings.local_scale, generator)
        crop = resized_crop(frame, box, settings.local_size, InterpolationMode.BICUBIC)
        crops.append(colour(crop, generator, blur=0.5))
    return normalize(torch.stack(crops))


def uncut(frames: UInt8[Tensor, "frames 3 height width"], short_side: int, patch: int) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """Whole frames whose short side is about `short_side` and whose both sides are whole patches, for pictures."""
    height, width = frames.shape[-2:]
    scale = short_side / min(height, width) / patch
    size = (max(1, round(height * scale)) * patch, max(1, round(width * scale)) * patch)
    return resized_crop(frames, (0, 0, height, width), size)


def spread(length: int, wanted: int) -> list[int]:
    """At most `wanted` of `length` numbers, evenly apart and away from the ends."""
    wanted = min(wanted, length)
    return [length * (2 * i + 1) // (2 * wanted) for i in range(wanted)]
