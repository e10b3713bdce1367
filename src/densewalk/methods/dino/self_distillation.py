"""Self-distillation with an EMA teacher: what DINO and DoRA share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from densewalk.core import distributed
from densewalk.core.errors import TrainingError, UserError
from densewalk.core.files import atomic_write
from densewalk.methods.dino.settings import SelfDistillationSettings
from densewalk.models.backbone import Backbone
from densewalk.models.ema import make_teacher, update_teacher
from densewalk.models.heads import PrototypeHead
from densewalk.models.surgery import with_drop_path
from densewalk.ops.sinkhorn import NonFiniteScores, sinkhorn
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.schedules import cosine, linear_then_constant

Step = Callable[[Any, dict[str, Tensor], int, Generator], tuple[Tensor, dict[str, Tensor]]]


class BadBatch(Exception):
    """There is nothing to learn from a batch; the message says why."""


class Network(nn.Module):
    """A backbone and the projection head on its CLS token; parameters are named as in DINO's training files."""

    def __init__(self, backbone: Backbone, head: PrototypeHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class SelfDistillation(Method):
    """Student, teacher, center, schedules and optimizer of DINO; `step` is left to the method.

    Raises:
        UserError: a view's side is not a multiple of the patch size, or the warm-up is longer than the training.
    """

    settings: SelfDistillationSettings
    center: Tensor

    def __init__(self, settings: SelfDistillationSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        settings.require_network(backbone.arch)
        self.settings = s = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.teacher, self.student = self.make_networks(backbone)
        self.register_buffer("center", torch.zeros(s.out_dim))
        self.mean_logits: list[Tensor] = []  # of the parts of this step's batch
        self.make_schedules()

    def make_networks(self, backbone: Backbone) -> tuple[Any, Any]:
        """Teacher and student with the same new head."""
        s = self.settings
        head = PrototypeHead(
            backbone.dim, s.out_dim, hidden=s.head_hidden, bottleneck=s.head_bottleneck, trainable_scale=not s.norm_last_layer
        )
        return make_teacher(Network(backbone, head)), Network(with_drop_path(backbone, s.drop_path), head)

    def make_schedules(self) -> None:
        """Learning rate, weight decay and momentum of every step, teacher temperature of every epoch."""
        s, total = self.settings, self.total_steps
        warmup = round(s.warmup_epochs * self.steps_per_epoch)
        if obstacle := s.warmup_obstacle(total, self.steps_per_epoch):
            raise UserError(obstacle)
        self.lr = cosine(s.peak_lr, s.min_lr, total, warmup=warmup)
        self.decay = cosine(s.weight_decay, s.weight_decay_end, total)
        self.momentum = cosine(s.teacher_momentum, 1.0, total)
        start, end, epochs = s.teacher_temperature_start, s.teacher_temperature, -(-total // self.steps_per_epoch)
        self.temperatures = linear_then_constant(start, end, epochs, warmup=s.teacher_temperature_epochs)

    def param_groups(self) -> list[ParamGroup]:
        """All of the student, with and without weight decay."""
        return decay_groups("student", list(self.student.named_parameters()), self.lr, self.decay)

    def targets(self, logits: Float[Tensor, "*batch protos"], step: int) -> Float[Tensor, "*batch protos"]:
        """The teacher's distribution for its own logits at a step."""
        return self.distribution(logits, self.temperature(step), self.center)

    def temperature(self, step: int) -> float:
        """The teacher's temperature, one value an epoch."""
        return float(self.temperatures[min(step // self.steps_per_epoch, len(self.temperatures) - 1)])

    def distribution(
        self, logits: Float[Tensor, "*batch protos"], temperature: float, center: Float[Tensor, " protos"]
    ) -> Float[Tensor, "*batch protos"]:
        """Centered and sharpened (equation 1), or shared out evenly over all processes' batch."""
        if self.settings.centering == "mean":
            return ((logits.float() - center) / temperature).softmax(dim=-1)
        iterations = self.settings.sinkhorn_centering_iterations
        try:
            rows = sinkhorn(logits.flatten(0, -2), epsilon=temperature, iterations=iterations, across_processes=True)
        except NonFiniteScores as error:
            raise BadBatch(f"the teacher's logits: {error}") from error
        return rows.view_as(logits)

    @torch.no_grad()
    def note_logits(self, logits: Float[Tensor, "*batch protos"]) -> None:
        """Keep the teacher's mean logits until all parts of the batch have been seen: all of them are centered alike."""
        self.mean_logits.append(logits.float().flatten(0, -2).mean(dim=0))

    @torch.no_grad()
    def update_center(self) -> None:
        """Equation 4, over all processes."""
        if self.settings.centering == "mean":
            mean = distributed.all_mean(torch.stack(self.mean_logits).mean(dim=0))
            self.center.lerp_(mean, 1 - self.settings.center_momentum)
        self.mean_logits.clear()

    def after_backward(self, step: int) -> None:
        """Move the center; clip each tensor's gradient; hold the prototypes still in the beginning."""
        self.update_center()
        if self.settings.clip_grad is not None:
            clip_each([p.grad for p in self.student.parameters() if p.grad is not None], self.settings.clip_grad)
        if step < self.settings.freeze_last_layer_epochs * self.steps_per_epoch:
            for p in self.student.head.last_layer.parameters():
                p.grad = None

    def after_update(self, step: int) -> None:
        """Move the teacher."""
        update_teacher(self.teacher, self.student, float(self.momentum[step]))

    def export(self) -> Backbone:
        """The teacher: it is what the papers evaluate."""
        return self.teacher.backbone


def stops_on_bad_batch(step: Step) -> Step:
    """Let a method's `step` end the training with a TrainingError, its batch saved, where the teacher's output is of no use."""

    @wraps(step)
    def guarded(self: SelfDistillation, batch: dict[str, Tensor], number: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            return step(self, batch, number, generator)
        except (BadBatch, NonFiniteScores) as error:
            where = "no folder for diagnostics is set, the batch is lost"
            if self.diagnostics is not None:
                path = self.diagnostics / f"failed-step-{number:08d}-process-{distributed.rank()}.pt"
                where = f"its batch is in {path}"
                try:
                    with atomic_write(path) as temporary:
                        torch.save({"step": number, "reason": str(error), "batch": batch}, temporary)
                except UserError as unwritten:  # which must not hide why the training ends
                    where = str(unwritten)
            raise TrainingError(f"step {number}: {error}; {where}") from error

    return guarded


@torch.no_grad()
def clip_each(gradients: list[Tensor], most: float) -> None:
    """Scale every gradient tensor whose norm exceeds `most` down to it.

    for g in gradients:  g *= min(1, most / (|g| + 1e-6))
    """
    factors = (most / (torch.stack(distributed.norms(gradients)) + 1e-6)).clamp(max=1)
    torch._foreach_mul_([*map(distributed.local_part, gradients)], list(factors.unbind()))


def by_view(
    function: Callable[[Tensor], Tensor], images: Float[Tensor, "batch views *frames 3 height width"]
) -> Float[Tensor, "views batch *frames dim"]:
    """`function` of all images at once, the result ordered by view."""
    return function(images.flatten(0, -4)).unflatten(0, images.shape[:-3]).transpose(0, 1)
