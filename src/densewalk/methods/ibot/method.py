"""iBOT: Image BERT Pre-Training with Online Tokenizer (Zhou et al., ICLR 2022, https://arxiv.org/abs/2111.07832).

DINO, and the same for patches: the student predicts the teacher's answer for each patch that it does not see.

    L_cls   = DINO's loss; the student's global views are masked                          equation 1      `dino_loss`
    L_patch = - sum over masked patches of P_t(u) log P_s(u), mean over all views         equation 2      `patch_loss`
    loss    = lambda_1 L_cls + lambda_2 L_patch
    c_2    <- m c_2 + (1 - m) mean over all patches of the teacher's logits               `update_center`

A view's loss is the mean over its masked patches; a view without masks counts as 0. Logits are computed for masked patches alone: the
last layer is linear, so that the mean logits of all patches are those of the mean vector in front of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core import distributed
from densewalk.data.augmentation.views import make_views
from densewalk.data.images import denormalize
from densewalk.data.sources import Source, open_images
from densewalk.methods.dino.losses import dino_loss, koleo, teacher_entropies
from densewalk.methods.dino.self_distillation import SelfDistillation, clip_each, stops_on_bad_batch
from densewalk.methods.ibot.augmentation import MaskedCrops, make_masks
from densewalk.methods.ibot.losses import masked_places, patch_loss
from densewalk.methods.ibot.masks import BlockRule, dinov2_rule, ibot_rule
from densewalk.methods.ibot.network import MaskedNetwork, make_heads, with_stochastic_depth
from densewalk.methods.ibot.settings import MaskedDistillationSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher
from densewalk.models.surgery import resize_positions
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import ParamGroup, decay_groups
from densewalk.training.sampler import Item
from densewalk.training.schedules import Schedule, linear_then_constant
from densewalk.visualization.prototypes import draw_prototypes

IMAGES_SHOWN = 4  # in the image of a finished training


class Answers(NamedTuple):
    """What a network says of a batch: logits of CLS tokens by view, logits of masked patches, and the student's CLS of global views."""

    cls: Float[Tensor, "views batch protos"]
    patches: Float[Tensor, "masked patch_protos"]
    features: Float[Tensor, "globals batch dim"]


class MaskedDistillation(SelfDistillation):
    """One training run of iBOT or DINOv2.

    Raises:
        UserError: as `SelfDistillation`; no view can have a masked patch; or there is no table of positions to resize.
    """

    settings: MaskedDistillationSettings
    patch_center: Tensor
    student: MaskedNetwork
    teacher: MaskedNetwork

    def __init__(self, settings: MaskedDistillationSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        self.grid = settings.require_masks(backbone.patch)
        if settings.resize_positions:
            backbone = resize_positions(backbone, settings.global_size)
        super().__init__(settings, backbone, total_steps, steps_per_epoch, seed)
        self.register_buffer("patch_center", torch.zeros(settings.patch_prototypes))
        self.patch_sums: list[tuple[Tensor, int]] = []  # of the parts of this step's batch: the sum of logits, and of how many

    def make_networks(self, backbone: Backbone) -> tuple[MaskedNetwork, MaskedNetwork]:
        """Teacher and student with the same new heads."""
        heads = make_heads(backbone.dim, self.settings)
        teacher = make_teacher(MaskedNetwork(backbone, heads))
        return teacher, MaskedNetwork(with_stochastic_depth(backbone, self.settings), heads)

    def make_schedules(self) -> None:
        """As DINO's, and the temperature of patches; both temperatures have a value for each step."""
        super().make_schedules()
        s = self.settings
        self.temperatures = self.temperature_of_steps(s.teacher_temperature_start, s.teacher_temperature, s.teacher_temperature_epochs)
        start, end, epochs = s.patch_temperature_start, s.patch_temperature, s.patch_temperature_epochs
        self.patch_temperatures = self.temperature_of_steps(
            s.teacher_temperature_start if start is None else start,
            s.teacher_temperature if end is None else end,
            s.teacher_temperature_epochs if epochs is None else epochs,
        )

    def temperature_of_steps(self, start: float, end: float, epochs: int) -> Schedule:
        """Linearly from start to end, one value an epoch or one a step."""
        if self.settings.temperature_steps == "step":
            return linear_then_constant(start, end, self.total_steps, warmup=epochs * self.steps_per_epoch)
        of_epochs = linear_then_constant(start, end, -(-self.total_steps // self.steps_per_epoch), warmup=epochs)
        return of_epochs.repeat(self.steps_per_epoch)[: self.total_steps]

    def temperature(self, step: int) -> float:
        """The teacher's temperature for CLS tokens."""
        return float(self.temperatures[step])

    @staticmethod
    def dataset(settings: MaskedDistillationSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every usable frame of every video and of every image."""
        return MaskedCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Groups by the factor of the learning rate, with and without weight decay; prototypes by themselves if their rate is 0 first."""
        s = self.settings
        if s.decay_rule == "vectors" and s.freeze_last_layer == "gradient" and s.layer_decay == s.patch_embed_lr_factor == 1:
            return decay_groups("student", list(self.student.named_parameters()), self.lr, self.decay)
        return layer_groups(self)

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Flips, colors and blur; masks, their places and weights."""
        s = self.settings
        by_batch = s.mask_rule == "batch"
        rule: BlockRule = dinov2_rule(s.global_size, self.student.backbone.patch) if by_batch else ibot_rule(self.grid)
        masks = make_masks(batch["mask_share"], batch["mask_seed"], self.grid, rule, whole=by_batch, single=s.mask_shape == "random")
        return {**make_views(batch, device), **on_device(masks, device)}

    @stops_on_bad_batch
    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `global` [b, 2, 3, h, w] and `local` [b, crops, 3, h, w] views.

        `masks` [2, b, n]; `places` of the masked patches among all, and their `weights`.
        """
        s = self.settings
        teacher, student = self.encode_teacher(batch), self.encode_student(batch)
        targets = self.targets(teacher.cls, step)  # [2, b, prototypes]
        patch_targets = self.distribution(teacher.patches, float(self.patch_temperatures[step]), self.patch_center)
        loss_cls = dino_loss(targets, student.cls, s.student_temperature)
        loss_patch = patch_loss(patch_targets, student.patches, batch["weights"], s.student_temperature)
        loss = s.cls_loss_weight * loss_cls + s.patch_loss_weight * loss_patch
        logs = {"loss_cls": loss_cls.detach(), "loss_patch": loss_patch.detach(), **teacher_entropies(targets)}
        if s.koleo_weight:
            spread = torch.stack([koleo(view) for view in student.features]).sum()
            loss, logs["loss_koleo"] = loss + s.koleo_weight * spread, spread.detach()
        self.note_logits(teacher.cls)  # for the centers, after the backward pass
        return loss, {**logs, **patch_entropies(patch_targets), "feature_rank": feature_rank(student.features[0])}

    @torch.no_grad()
    def encode_teacher(self, batch: dict[str, Tensor]) -> Answers:
        """The teacher's answers for whole global views; patches' logits are noted for their center."""
        views = batch["global"].transpose(0, 1)  # [2, b, ...]
        cls, patches = self.teacher.encode(views.flatten(0, 1))
        patches = patches.flatten(0, 1)
        s, prototypes = self.settings, self.teacher.patch_prototypes
        if s.centering == "mean" and s.center_patches == "all":
            z = self.teacher.bottleneck(patches)
            logits = prototypes(z[batch["places"]])
            self.patch_sums.append((prototypes(z.float().mean(dim=0, keepdim=True))[0].float() * len(z), len(z)))
        else:
            logits = prototypes(self.teacher.bottleneck(patches[batch["places"]]))
            self.patch_sums.append((logits.float().sum(dim=0), len(logits)))
        cls = cls.unflatten(0, views.shape[:2])
        return Answers(self.teacher.head(cls), logits, cls)

    def encode_student(self, batch: dict[str, Tensor]) -> Answers:
        """The student's answers for masked global views and for local ones."""
        views, local, student = batch["global"].transpose(0, 1), batch["local"].transpose(0, 1), self.student
        cls, patches = student.encode(views.flatten(0, 1), batch["masks"].flatten(0, 1))
        cls = cls.unflatten(0, views.shape[:2])
        local_cls = student.backbone.cls(local.flatten(0, 1)).unflatten(0, local.shape[:2])
        logits = student.patch_prototypes(student.bottleneck(patches.flatten(0, 1)[batch["places"]]))
        return Answers(student.head(torch.cat([cls, local_cls])), logits, cls)

    @torch.no_grad()
    def update_center(self) -> None:
        """Equation 4 of DINO for CLS tokens, and for patches; over all processes, whose means count alike."""
        super().update_center()
        count = sum(number for _, number in self.patch_sums)
        if self.settings.centering == "mean":
            mean = torch.stack([total for total, _ in self.patch_sums]).sum(dim=0) / count if count else self.patch_center
            self.patch_center.lerp_(distributed.all_mean(mean), 1 - self.settings.center_momentum)
        self.patch_sums.clear()

    def after_backward(self, step: int) -> None:
        """Move the centers; clip gradients; hold the prototypes still in the beginning."""
        self.update_center()
        s = self.settings
        if s.clip_grad is not None and s.clip_scope == "tensor":
            clip_each([p.grad for p in self.student.parameters() if p.grad is not None], s.clip_grad)
        elif s.clip_grad is not None:
            for part in self.student.parts():
                distributed.clip_together(part, s.clip_grad)
        if s.freeze_last_layer == "gradient" and step < s.freeze_last_layer_epochs * self.steps_per_epoch:
            for p in self.student.last_layers():
                p.grad = None

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some views, masked and whole, and the prototype of each patch: the teacher's, and the student's from the masked view."""
        assert isinstance(data, MaskedCrops)
        count, device = min(IMAGES_SHOWN, len(data)), self.center.device
        samples = [data[Item(i * len(data) // count, seed=0)] for i in range(count)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        batch["mask_share"] = torch.full_like(batch["mask_share"], self.settings.mask_ratio[1])
        views = self.prepare(batch, device)
        images, masks = views["global"][:, 0], views["masks"][0]
        maps = []
        for network, own in ((self.teacher, None), (self.student, masks)):
            _, patches = network.encode(images, own)
            maps.append(network.patch_prototypes(network.bottleneck(patches)).argmax(dim=-1).unflatten(1, self.grid))
        pixels = (denormalize(images).clamp(0, 1) * 255).round().byte().cpu()
        patch = self.student.backbone.patch
        hidden = masks.unflatten(1, self.grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2).cpu()
        draw_prototypes(folder / "prototypes.png", torch.stack([pixels, pixels * ~hidden[:, None]], 1), torch.stack(maps, 1).cpu())


def on_device(masks: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Masks with the places and weights of what they mask, on a device."""
    places, weights = masked_places(masks)
    return {name: x.to(device, non_blocking=True) for name, x in (("masks", masks), ("places", places), ("weights", weights))}


def patch_entropies(targets: Float[Tensor, "masked protos"]) -> dict[str, Tensor]:
    """As `teacher_entropies`, of patches; without any masked patch both are those of an even answer."""
    found = teacher_entropies(targets if len(targets) else targets.new_full((1, targets.shape[1]), 1 / targets.shape[1]))
    return {"patch_entropy": found["teacher_entropy"], "patch_mean_entropy": found["teacher_mean_entropy"]}


def layer_groups(method: MaskedDistillation) -> list[ParamGroup]:
    """A group for each factor of the learning rate, with and without weight decay.

        factor = layer_decay ** (blocks - i)          of block i = 0 ... blocks - 1
                 layer_decay ** (blocks + 1)          of embeddings, tokens and positions, of the patches' projection times its own
                 1                                    of the final norm and of heads

    The prototypes' rate is 0 in the first epochs if `freeze_last_layer: rate`.
    """
    s, backbone = method.settings, method.student.backbone
    last = {id(p) for p in method.student.last_layers()} if s.freeze_last_layer == "rate" else set()
    frozen = method.lr.copy()
    frozen[: round(s.freeze_last_layer_epochs * method.steps_per_epoch)] = 0.0
    groups: dict[tuple[float, bool, bool], ParamGroup] = {}
    for name, p in method.student.named_parameters():
        if not p.requires_grad:
            continue
        plain = name.endswith("bias") or (p.ndim == 1 if s.decay_rule == "vectors" else "norm" in name or "gamma" in name)
        key = (rate_factor(name, backbone, s), plain, id(p) in last)
        if key not in groups:
            label = f"x{key[0]:.6g}{'/prototypes' if key[2] else ''}/{'no_decay' if plain else 'decay'}"
            lr = (frozen if key[2] else method.lr) * key[0]
            groups[key] = ParamGroup(label, [], lr, method.decay * (0.0 if plain else 1.0))
        groups[key].params.append(p)
    return list(groups.values())


def rate_factor(name: str, backbone: Backbone, s: MaskedDistillationSettings) -> float:
    """The factor of the learning rate of a parameter of the student."""
    if not (name.startswith("backbone.") or name == "mask_token"):  # of heads
        return 1.0
    layer, layers = backbone.layer_of(name.removeprefix("backbone."))  # the mask token's is 0, as that of all embeddings
    return s.layer_decay ** (layers - 1 - layer) * (s.patch_embed_lr_factor if "patch_embed." in name else 1.0)


METHOD = MaskedDistillation
