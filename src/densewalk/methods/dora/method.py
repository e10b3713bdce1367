"""DoRA: Is ImageNet worth 1 video? (Venkataramanan et al., ICLR 2024, https://arxiv.org/abs/2310.08584).

The teacher discovers k objects in the first frame of a clip and tracks them through the others; the student sees one tracked object
at a time and learns the teacher's view of the frame.

    A_i   = softmax(q_cls K_i^T / sqrt(d / heads)), a draw I of k heads                 equation 1   `LastBlock.cls_attention`
    P     = A_I Q                                      object prototypes                equation 2   `object_prototypes`
    M     = SinkhornKnopp(exp(Z P^T / epsilon))        which patch is which object's    equation 4   `refine_prototypes`
    P'    = M^T Z                                      refined, distinct prototypes     equation 5   `refine_prototypes`
    T'_t  = softmax(P' K_t^T / sqrt(d))                where the objects are in frame t equation 6   `track_objects`
    X_t^i = X_t * T'_t[i]                              the frame with one object        equation 7   `apply_masks`
    loss  = mean over t, i of (CE(teacher(X_t), student(X_t^i)) + CE(teacher(X_t), student(local crops of X_t))) / 2
                                                                                        equation 8   `dora_loss`

Q, K: queries and keys of the teacher's last block, heads side by side; Z: its normalized patch tokens. The rest is DINO's.

Published, ViT-S/16: UPerNet on ADE20K, 160k iterations: DINO on ImageNet-1k 33.9 mIoU, DoRA on Walking Tours Venice 1.5 more
(second hand); measured again by PooDLe: DINO 29.2, DoRA 35.2 on Venice, 38.3 on all ten videos.

Choices of ours: T'_t sums to 1 over n patches, so soft masks are T'_t scaled to 0..1 for each object and frame. With two global views,
objects are discovered in each; local crops learn from both. An object without any patch ends the training. KoLeo is on the CLS of
the masked frames.
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
from densewalk.methods.dino.self_distillation import SelfDistillation, by_view, stops_on_bad_batch
from densewalk.methods.dora.augmentation import DoraClips, make_views
from densewalk.methods.dora.losses import StudentOutput, dora_loss
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.dora.tracking import (
    TeacherFeatures,
    apply_masks,
    assign_argmax,
    join_heads,
    mask_statistics,
    object_masks,
    object_prototypes,
    refine_prototypes,
    require_patches,
    track_objects,
)
from densewalk.models.backbone import Backbone
from densewalk.visualization.features import evenly_spaced, resize_to_patches
from densewalk.visualization.overlays import TrackedClip, write_tracking_strip

CLIPS_SHOWN = 4  # in the image of a finished training
PICTURE_SCALE = 2  # views are cut from a fifth of a frame or more: at their size, whole frames would show everything too small


class Dora(SelfDistillation):
    """One training run of DoRA.

    Raises:
        UserError: more objects than the backbone has heads, or what `SelfDistillation` refuses.
    """

    settings: DoraSettings

    def __init__(self, settings: DoraSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
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
        clips: ConcatDataset[Tensor] = ConcatDataset([open_clips(source, settings.frames, settings.spacing_seconds) for source in sources])
        return DoraClips(clips, settings.resolved())

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Views of the clips, flips, colors and blur."""
        return make_views(batch, self.settings, device)

    @stops_on_bad_batch
    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of `global` [b, views, t, 3, h, w] and `local` [b, crops, t, 3, h, w]; v = b * views."""
        views = batch["global"].flatten(0, 1)  # [v, t, 3, h, w]
        teacher = self.encode_teacher(views)  # logits [v, t, prototypes], patches [v, n, d], keys [v, t, n, d]
        heads = self.sample_heads(generator)  # [k]
        with torch.autocast(views.device.type, enabled=False):
            prototypes = object_prototypes(teacher.cls_attention[:, heads], teacher.query)  # [v, k, d], equation 2
            refined = refine_prototypes(prototypes, teacher.patches, self.settings)  # [v, k, d], equations 4 and 5
            masks = object_masks(track_objects(refined, teacher.keys), self.settings)  # [v, k, t, n], equation 6
        require_patches(masks)
        masked = apply_masks(views, masks, teacher.grid)  # [v, k, t, 3, h, w], equation 7
        student = self.encode_student(masked, batch["local"])  # logits [k, v, t, prototypes] and [crops, b, t, prototypes]
        targets = self.targets(teacher.logits, step)  # [v, t, prototypes]
        loss, logs = dora_loss(targets, student, self.settings)  # equation 8
        self.note_logits(teacher.logits)  # for the center, after the backward pass
        return loss, {**logs, **teacher_entropies(targets), **mask_statistics(masks)}

    @torch.no_grad()
    def encode_teacher(self, views: Float[Tensor, "batch frames 3 height width"]) -> TeacherFeatures:
        """The teacher's output for every frame. Only the first one's patches are needed, of the others CLS and keys."""
        network = self.teacher.backbone
        later = (len(views), views.shape[1] - 1)
        first = network.last_block(views[:, 0])
        cls, keys = network.cls_and_keys(views[:, 1:].flatten(0, 1))
        first_keys, later_keys = join_heads(first.key, network.prefix), join_heads(keys, network.prefix)
        return TeacherFeatures(
            logits=self.teacher.head(torch.cat([first.tokens.cls[:, None], cls.unflatten(0, later)], dim=1)),
            patches=first.tokens.patches.float(),
            query=join_heads(first.query, network.prefix),
            keys=torch.cat([first_keys[:, None], later_keys.unflatten(0, later)], dim=1),
            cls_attention=first.cls_attention.float(),
            grid=first.tokens.grid,
        )

    def sample_heads(self, generator: Generator) -> Int[Tensor, " objects"]:
        """Draw the attention heads that discover the objects, once for the whole batch."""
        if self.settings.unseeded_heads:
            generator = Generator(generator.device)
            generator.seed()
        heads = self.teacher.backbone.arch.heads
        return torch.randperm(heads, generator=generator, device=generator.device)[: self.settings.objects]

    def encode_student(
        self, masked: Float[Tensor, "batch objects frames 3 height width"], crops: Float[Tensor, "samples crops frames 3 size size"]
    ) -> StudentOutput:
        """The student's logits of masked frames and of local crops, and its features of the former; the head runs once, on both."""
        used = crops[:, 1:] if self.settings.skip_first_local_crop else crops
        features = [by_view(self.student.backbone.cls, images) for images in (masked, used)]
        logits = self.student.head(torch.cat([x.flatten(0, -2) for x in features]))
        parts = logits.split([x.shape[:-1].numel() for x in features])
        masked_logits, local_logits = (part.unflatten(0, x.shape[:-1]) for part, x in zip(parts, features, strict=True))
        return StudentOutput(masked_logits, local_logits, features[0])

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw the objects of some clips of uncut frames, discovered by the first heads and tracked as in training.

        Two rows each: the masks, and whose attention is the largest, which leaves out what all objects attend to.
        """
        assert isinstance(data, DoraClips)
        heads = torch.arange(self.settings.objects, device=self.center.device)
        rows = []
        for number in evenly_spaced(len(data), CLIPS_SHOWN):
            frames = resize_to_patches(data.clips[number], PICTURE_SCALE * self.settings.global_size, self.teacher.backbone.patch)
            teacher = self.encode_teacher(normalize(frames / 255).to(self.center.device)[None])
            prototypes = object_prototypes(teacher.cls_attention[:, heads], teacher.query)
            tracks = track_objects(refine_prototypes(prototypes, teacher.patches, self.settings), teacher.keys)
            title, pixels = f"clip {number} of {len(data)}", frames.permute(0, 2, 3, 1).numpy()
            for kind, masks in (
                ("what the student is shown", object_masks(tracks, self.settings).nan_to_num()),
                ("whose attention is largest", assign_argmax(tracks)),
            ):
                rows.append(TrackedClip(f"{title}: {kind}", pixels, masks[0].unflatten(-1, teacher.grid).cpu().numpy()))
        write_tracking_strip(folder / "objects.png", rows)


METHOD = Dora
