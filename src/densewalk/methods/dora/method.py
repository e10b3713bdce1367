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
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.data.images import normalize
from densewalk.data.sources import Source, open_clips
from densewalk.methods.dino.losses import teacher_entropies
from densewalk.methods.dino.self_distillation import SelfDistillation, by_view
from densewalk.methods.dora.augmentation import DoraViews
from densewalk.methods.dora.losses import frame_terms, koleo_of_frames, total_loss
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.dora.tracking import (
    Sight,
    hard_masks,
    mask_statistics,
    owners,
    patch_features,
    prototypes,
    refine,
    show_objects,
    soft_masks,
    track,
)
from densewalk.models.backbone import Backbone
from densewalk.ops.sinkhorn import NonFiniteScores
from densewalk.visualization.features import evenly_spaced, uncut
from densewalk.visualization.overlays import TrackedClip, tracking_strip

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
        return DoraViews(
            ConcatDataset([open_clips(source, settings.frames, settings.spacing_seconds) for source in sources]), settings.resolved()
        )

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
        for number in evenly_spaced(len(data), CLIPS_SHOWN):
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


METHOD = Dora
