"""DINO: Emerging Properties in Self-Supervised Vision Transformers.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294. Here it is DoRA's baseline, trained on the frames of the same videos
or on image folders, and the machinery DoRA is built from (`SelfDistillation`).

    P_t(x) = softmax((g_t(x) - c) / tau_t),  P_s(x) = softmax(g_s(x) / tau_s)           equation 1, section 3.1
    loss   = mean over global views q and all views v != q of  - sum P_t(q) log P_s(v)  equations 2 and 3
    c     <- m c + (1 - m) mean over the batch of g_t                                   equation 4
    theta_t <- l theta_t + (1 - l) theta_s,  l from 0.996 to 1 along a cosine           section 3.1

Published, ViT-S/16 after 100 epochs of ImageNet-1k: 69.3 % k-NN and 74.0 % linear top-1 (the release's README). The DINO that
DoRA's authors trained on Walking Tours is known by its checkpoint only; on video frames, an epoch here is every usable frame once.

The optional KoLeo term is DINOv2's (https://arxiv.org/abs/2304.07193, section 4), as released: on the backbone's CLS of each
global view, within one process. So is `centering: sinkhorn` (there; 3 iterations over the batch of all processes, instead of equation 4):

    P_t = the rows of SinkhornKnopp(exp(g_t / tau_t)), which share the batch out evenly among the prototypes

`compat` changes nothing: the recipe is the released one. Deviations from it: views are cut and coloured as tensors (antialiased
resizing, colours in float), so that the pixels differ from Pillow's in the last digits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk import distributed
from densewalk.backbone import Backbone
from densewalk.checkpoint import atomic_write
from densewalk.errors import TrainingError, UserError
from densewalk.heads import PrototypeHead
from densewalk.images import FrameClips, FrameFolders, ImageFolder, normalize
from densewalk.methods.base import Item, Method, ParamGroup, Source, decay_groups
from densewalk.schedules import cosine, linear_then_constant
from densewalk.settings.dino import DinoSettings, SelfDistillationSettings
from densewalk.sinkhorn import NonFiniteScores, sinkhorn
from densewalk.teacher import make_teacher, update_teacher
from densewalk.video import VideoClips
from densewalk.views import Box, color_jitter, gaussian_blur, grayscale, maybe, random_resized_crop_box, resized_crop, uniform

# -- the machinery ---------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A backbone and the projection head on its CLS token; parameters are named as in DINO's training files."""

    def __init__(self, backbone: Backbone, head: PrototypeHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class SelfDistillation(Method):
    """Student, teacher, centre, schedules and optimiser of DINO; `step` is left to the method.

    Raises:
        UserError: a view's side is not a multiple of the patch size, or the warm-up is longer than the training.
    """

    settings: SelfDistillationSettings
    center: Tensor

    def __init__(self, settings: SelfDistillationSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        require_patch_multiples(settings, backbone.patch)
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = PrototypeHead(
                backbone.dim,
                settings.out_dim,
                hidden=settings.head_hidden,
                bottleneck=settings.head_bottleneck,
                trainable_scale=not settings.norm_last_layer,
            )
            self.teacher = make_teacher(Network(backbone, head))
            self.student = Network(with_drop_path(backbone, settings.drop_path), head)
        self.register_buffer("center", torch.zeros(settings.out_dim))
        self.seen: list[Tensor] = []  # mean logits of the parts of this step's batch
        self.schedule()

    def schedule(self) -> None:
        """Learning rate, weight decay and momentum of every step, teacher temperature of every epoch."""
        s, total = self.settings, self.total_steps
        warmup = round(s.warmup_epochs * self.steps_per_epoch)
        if warmup > total:
            raise UserError(f"warmup_epochs {s.warmup_epochs} are {warmup} steps, the training has {total}", todo="lower warmup_epochs")
        self.lr = cosine(s.lr * s.batch_size / 256, s.min_lr, total, warmup=warmup)
        self.decay = cosine(s.weight_decay, s.weight_decay_end, total)
        self.momentum = cosine(s.teacher_momentum, 1.0, total)
        epochs = -(-total // self.steps_per_epoch)
        self.temperatures = linear_then_constant(
            s.teacher_temperature_start, s.teacher_temperature, epochs, warmup=s.teacher_temperature_epochs
        )

    def param_groups(self) -> list[ParamGroup]:
        """All of the student, with and without weight decay."""
        return decay_groups("student", list(self.student.named_parameters()), self.lr, self.decay)

    def targets(self, logits: Float[Tensor, "*batch protos"], at: int, batch: Any) -> Float[Tensor, "*batch protos"]:
        """The teacher's distribution: centred, sharpened (equation 1), or shared out evenly over all processes' batch.

        Raises:
            TrainingError: there are NaN to be shared out; `batch` is saved.
        """
        temperature = float(self.temperatures[min(at // self.steps_per_epoch, len(self.temperatures) - 1)])
        if self.settings.centering == "mean":
            return ((logits.float() - self.center) / temperature).softmax(dim=-1)
        iterations = self.settings.sinkhorn_centering_iterations
        try:
            rows = sinkhorn(logits.flatten(0, -2), epsilon=temperature, iterations=iterations, across_processes=True)
        except NonFiniteScores as error:
            self.stop(f"the teacher's logits: {error}", batch, at)
        return rows.view_as(logits)

    @torch.no_grad()
    def note_logits(self, logits: Float[Tensor, "*batch protos"]) -> None:
        """Keep the teacher's mean logits until all parts of the batch have been seen: all of them are centred alike."""
        self.seen.append(logits.float().flatten(0, -2).mean(dim=0))

    @torch.no_grad()
    def update_center(self, logits: Float[Tensor, "*batch protos"]) -> None:
        """Equation 4, over all processes."""
        if self.settings.centering != "mean":
            return
        mean = distributed.all_mean(logits.float().flatten(0, -2).mean(dim=0))
        self.center.lerp_(mean, 1 - self.settings.center_momentum)

    def after_backward(self, at: int) -> None:
        """Move the centre; clip each tensor's gradient; hold the prototypes still in the beginning."""
        self.update_center(torch.stack(self.seen))
        self.seen.clear()
        if self.settings.clip_grad is not None:
            clip_each([p.grad for p in self.student.parameters() if p.grad is not None], self.settings.clip_grad)
        if at < self.settings.freeze_last_layer_epochs * self.steps_per_epoch:
            for p in self.student.head.last_layer.parameters():
                p.grad = None

    def after_update(self, at: int) -> None:
        """Move the teacher."""
        update_teacher(self.teacher, self.student, float(self.momentum[at]))

    def export(self) -> Backbone:
        """The teacher: it is what the papers evaluate."""
        return self.teacher.backbone

    def stop(self, reason: str, batch: Any, at: int) -> NoReturn:
        """Leave the batch behind for inspection and end the training.

        Raises:
            TrainingError: always.
        """
        where = "no folder for diagnostics is set, the batch is lost"
        if self.diagnostics is not None:
            path = self.diagnostics / f"failed-step-{at:08d}-process-{distributed.rank()}.pt"
            with atomic_write(path) as temporary:
                torch.save({"step": at, "reason": reason, "batch": batch}, temporary)
            where = f"its batch is in {path}"
        raise TrainingError(f"step {at}: {reason}; {where}")


def require_patch_multiples(settings: SelfDistillationSettings, patch: int) -> None:
    """Raise UserError unless both kinds of views are whole patches."""
    for name in ("global_size", "local_size"):
        size = getattr(settings, name)
        if size % patch:
            raise UserError(f"{name} {size} is not a multiple of the patch size {patch}", allowed=f"e.g. {round(size / patch) * patch}")


def with_drop_path(backbone: Backbone, rate: float) -> Backbone:
    """A copy with stochastic depth."""
    copy = Backbone(backbone.arch, drop_path=rate)
    copy.load_state_dict(backbone.state_dict())
    return copy


@torch.no_grad()
def clip_each(gradients: list[Tensor], most: float) -> None:
    """Scale every gradient tensor whose norm exceeds `most` down to it.

    for g in gradients:  g *= min(1, most / (|g| + 1e-6))
    """
    norms = torch._foreach_norm(gradients)
    factors = (most / (torch.stack(norms) + 1e-6)).clamp(max=1)
    torch._foreach_mul_(gradients, list(factors.unbind()))


# -- losses ----------------------------------------------------------------------------------------------------------


def cross_entropies(
    targets: Float[Tensor, "targets batch protos"], logits: Float[Tensor, "views batch protos"], temperature: float
) -> Float[Tensor, "targets views batch"]:
    """Cross-entropy of every target distribution with every view's prediction, in float32.

    for q, v, b:  result[q, v, b] = - sum_o targets[q, b, o] log softmax(logits[v, b] / temperature)[o]
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float() / temperature
        return logits.logsumexp(dim=-1) - torch.einsum("qbo,vbo->qvb", targets.float(), logits)


def dino_loss(
    targets: Float[Tensor, "targets batch protos"], logits: Float[Tensor, "views batch protos"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of different views; the first views are those the targets were made from."""
    entropies = cross_entropies(targets, logits, temperature).mean(dim=-1)
    same = torch.eye(*entropies.shape, dtype=torch.bool, device=entropies.device)
    return entropies[~same].mean()


def koleo(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Spread the features over the sphere: - mean_i log(|x_i - x_nn(i)| + 1e-8), x normalised, nn the nearest other feature.

    Raises:
        ValueError: there is no other feature.
    """
    if len(features) < 2:
        raise ValueError("KoLeo needs at least two pictures per process")
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)
        return -((x - x[nearest]).norm(dim=-1) + 1e-8).log().mean()


def teacher_entropies(targets: Float[Tensor, "*batch protos"]) -> dict[str, Tensor]:
    """Entropy in nats of the targets (low: sure) and of their mean (low: collapsed onto few prototypes); both at most ln protos."""
    mean = targets.flatten(0, -2).mean(dim=0)
    return {"teacher_entropy": torch.special.entr(targets).sum(dim=-1).mean(), "teacher_mean_entropy": torch.special.entr(mean).sum()}


# -- the method ------------------------------------------------------------------------------------------------------


class Dino(SelfDistillation):
    """One training run of DINO."""

    settings: DinoSettings

    @staticmethod
    def dataset(settings: DinoSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Views of every usable frame of every video and of every image."""
        return DinoViews(ConcatDataset([pictures(source) for source in sources]), settings)

    def step(self, batch: dict[str, Tensor], at: int, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch of `global` [batch, 2, 3, height, width] and `local` [batch, crops, 3, height, width] views."""
        logits, features = self.student_logits(batch)
        teacher_logits = self.teacher_logits(batch["global"])
        targets = self.targets(teacher_logits, at, batch)
        loss = dino_loss(targets, logits, self.settings.student_temperature)
        logs = {"loss_dino": loss.detach(), **teacher_entropies(targets)}
        if self.settings.koleo_weight:
            spread = torch.stack([koleo(view) for view in features]).mean()
            loss, logs["loss_koleo"] = loss + self.settings.koleo_weight * spread, spread.detach()
        self.note_logits(teacher_logits)
        return loss, logs

    def student_logits(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "views batch protos"], Float[Tensor, "globals batch dim"]]:
        """Logits of all views, global ones first, and the backbone's output for the global ones."""
        features = [by_view(self.student.backbone.cls, batch[kind]) for kind in ("global", "local")]
        return self.student.head(torch.cat(features)), features[0]

    @torch.no_grad()
    def teacher_logits(self, views: Float[Tensor, "batch views 3 height width"]) -> Float[Tensor, "views batch protos"]:
        """Logits of the global views."""
        return self.teacher.head(by_view(self.teacher.backbone.cls, views))


def by_view(
    function: Callable[[Tensor], Tensor], images: Float[Tensor, "batch views *frames 3 height width"]
) -> Float[Tensor, "views batch *frames dim"]:
    """`function` of images [batch, 3, height, width] on all pictures at once, the result ordered by view."""
    return function(images.flatten(0, -4)).unflatten(0, images.shape[:-3]).transpose(0, 1)


# -- views -----------------------------------------------------------------------------------------------------------


def pictures(source: Source) -> "Dataset[Tensor]":
    """The source's pictures, uint8 [3, height, width] or, from a video or sequences of frames, [1, 3, height, width]."""
    if source.kind == "video":
        return VideoClips(source.path, source.receipt, frames=1, spacing_seconds=1.0)
    if source.kind == "sequences":
        return FrameClips(FrameFolders(source.path, only=source.receipt.get("chosen")), frames=1, stride=1)
    return ImageFolder(source.path, receipt=source.receipt)


class DinoViews(Dataset[dict[str, Tensor]]):
    """DINO's multi-crop views: dict of `global` [2, 3, size, size] and `local` [crops, 3, size, size], normalised."""

    def __init__(self, pictures: "Dataset[Tensor]", settings: DinoSettings) -> None:
        self.pictures, self.settings = pictures, settings

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image = self.pictures[item.index]
        image = image[0] if image.ndim == 4 else image
        s = self.settings
        first = view(image, s.global_size, s.global_scale, generator, blur=1.0)
        second = view(image, s.global_size, s.global_scale, generator, blur=0.1, solarize=0.2)
        crops = [view(image, s.local_size, s.local_scale, generator, blur=0.5) for _ in range(s.local_crops)]
        local = torch.stack(crops) if crops else torch.empty(0, 3, s.local_size, s.local_size)
        return {"global": torch.stack([first, second]), "local": local}


def view(
    image: Tensor, size: int, scale: tuple[float, float], generator: Generator, *, blur: float, solarize: float = 0.0
) -> Float[Tensor, "3 size size"]:
    """One view: crop, flip, colours, blur with probability `blur`, solarisation with probability `solarize`."""
    box = draw_box(image, scale, generator)
    x = resized_crop(image, box, size, InterpolationMode.BICUBIC)
    x = x.flip(-1) if maybe(0.5, generator) else x
    x = colour(x, generator, blur=blur)
    if maybe(solarize, generator):
        x = tv.solarize(x, 128 / 255)
    return normalize(x)


def draw_box(image: Tensor, scale: tuple[float, float], generator: Generator) -> Box:
    """A crop of a share in `scale` and an aspect ratio of 3/4 to 4/3."""
    height, width = image.shape[-2:]
    return random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)


def colour(image: UInt8[Tensor, "3 height width"], generator: Generator, *, blur: float) -> Float[Tensor, "3 height width"]:
    """Jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, grey with 0.2, blur of radius U(0.1, 2) with probability `blur`.

    Returns:
        The colours in 0..1.
    """
    x = image.contiguous() / 255  # channel after channel is what the following runs on fastest
    if maybe(0.8, generator):
        x = color_jitter(x, 0.4, 0.4, 0.2, 0.1, generator)
    if maybe(0.2, generator):
        x = grayscale(x)
    if maybe(blur, generator):
        x = gaussian_blur(x, uniform(0.1, 2.0, generator))
    return x
