"""CIS: Unsupervised Moving Object Detection via Contextual Information Separation (Yang et al., CVPR 2019,
https://arxiv.org/abs/1901.03360).

A generator G divides each frame into two sides. An inpainter I predicts the flow of a side from the other side's flow and the image. I
shall predict well. G shall divide so that it cannot: an object's own motion is told by nothing around it.

    m       = G(x, (u - mean u) / std u)                                            models/families/motion.py
    v_in    = I(x, u (1 - m), m),   v_out = I(x, u m, 1 - m),   v_0 = I(x, 0, 1)    `predict`
    I:        (rho(u - v_in, m) + rho(u - v_out, 1 - m) + rho(u - v_0, 1)) / pixels                     `inpainter_loss`
    G:        1 - rho(u - v_in, m) / (rho(u - v_0, m) + epsilon), and the same of 1 - m                 `generator_loss`

u: optical flow to a neighboring frame, divided by `flow_scale`; x: the frame. m and 1 - m are the same to both losses. The generator is
the backbone with a light decoder, which is ours, as is the inpainter's size; the paper's are convolutional networks. First the inpainter
learns alone, with random boxes for masks, because here it has learned nothing before. Then both take turns, each step with one of the two
losses. The decoder is exported with the backbone; evaluation `motion_segmentation` scores it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.hashing import derive_seed
from densewalk.data.images import normalize
from densewalk.data.sources import Source
from densewalk.methods.cis.inpainter import Inpainter
from densewalk.methods.cis.losses import Flow, Mask, Predictions, errors_of, generator_loss, inpainter_loss
from densewalk.methods.cis.pairs import FlowPairs, box_masks, moving_videos
from densewalk.methods.cis.settings import CisSettings
from densewalk.models.backbone import Backbone
from densewalk.models.families.motion import THRESHOLD, object_side
from densewalk.training.method import Method, ParamGroup
from densewalk.training.schedules import constant
from densewalk.visualization.strips import write_rows

FRAMES_SHOWN = 8  # in the image of a finished training
FLAT = 1e-5  # mean absolute gradient of the generator below which `noise_where_flat` acts
Turn = Literal["boxes", "inpainter", "generator"]
Pixels = Float[Tensor, "batch 3 height width"]


class Cis(Method):
    """One training run of CIS.

    Raises:
        UserError: the height or width is not a multiple of the patch size.
    """

    def __init__(self, settings: CisSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings, self.backbone, self.seed = settings.resolved(), backbone, seed
        settings.require_network(backbone.arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "cis"))
            backbone.set_motion_decoder(settings.decoder_width)
            self.inpainter = Inpainter(settings.inpainter_width)

    @staticmethod
    def dataset(settings: CisSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Every frame with the flow to a neighbor.

        Raises:
            UserError: see `moving_videos` and `FlowPairs`.
        """
        return FlowPairs(moving_videos(sources), settings.resolved())

    def param_groups(self) -> list[ParamGroup]:
        """Both networks, without weight decay: Adam."""
        lr, decay = constant(self.settings.lr, self.total_steps), constant(0.0, self.total_steps)
        networks: list[tuple[str, nn.Module]] = [("generator", self.backbone), ("inpainter", self.inpainter)]
        return [ParamGroup(name, [p for p in part.parameters() if p.requires_grad], lr, decay) for name, part in networks]

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Images in -0.5..0.5."""
        moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        return moved | {"image": moved["image"].float() / 255 - 0.5}

    def turn(self, step: int) -> Turn:
        """Who learns in a step: the inpainter on boxes, then it and the generator in turns."""
        s = self.settings
        later = step - round(s.inpainter_share * self.total_steps)
        if later < 0:
            return "boxes"
        return "inpainter" if later % (s.inpainter_steps + s.generator_steps) < s.inpainter_steps else "generator"

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the network whose turn it is, of images [b, 3, h, w] in -0.5..0.5 with flow [b, 2, h, w] and boxes [b, 4]."""
        image, flow, turn = batch["image"], batch["flow"], self.turn(step)
        self.inpainter.requires_grad_(turn != "generator")  # again in `after_backward`
        with torch.set_grad_enabled(turn == "generator"):
            mask = box_masks(batch["box"], *flow.shape[-2:]) if turn == "boxes" else self.masks(image, flow)  # [b, 1, h, w]
        predicted = self.predict(image, flow, mask)
        with torch.autocast(flow.device.type, enabled=False):
            errors = errors_of(flow, mask, predicted)
            losses = {
                "loss_inpainter": inpainter_loss(errors, flow[0, 0].numel()),
                "loss_generator": generator_loss(errors, self.settings.scaled_epsilon),
            }
        share = mask.detach().mean(dim=(1, 2, 3))
        loss = losses["loss_generator" if turn == "generator" else "loss_inpainter"]
        return loss, {**losses, "smaller_side": torch.minimum(share, 1 - share).mean()}

    def masks(self, image: Pixels, flow: Flow) -> Mask:
        """m of each frame."""
        return self.backbone.motion_masks(normalize(image + 0.5), flow)

    def predict(self, image: Pixels, flow: Flow, mask: Mask) -> Predictions:
        """The flow of each side by that of the other, and by the image alone."""
        inside = self.inpainter(image, flow * (1 - mask), mask)
        outside = self.inpainter(image, flow * mask, 1 - mask)
        everything = self.inpainter(image, torch.zeros_like(flow), torch.ones_like(mask))
        return Predictions(inside.float(), outside.float(), everything.float())

    def after_backward(self, step: int) -> None:
        """Clip the gradients of the network whose turn it is, by value; the other one has none."""
        self.inpainter.requires_grad_(True)
        learns: nn.Module = self.backbone if self.turn(step) == "generator" else self.inpainter
        rests: nn.Module = self.inpainter if self.turn(step) == "generator" else self.backbone
        for p in rests.parameters():
            p.grad = None  # several processes have sent zeros, for which Adam would move by what it remembers
        gradients = [distributed.local_part(p.grad) for p in learns.parameters() if p.grad is not None]
        if self.settings.noise_where_flat and learns is self.backbone and mean_absolute(gradients) < FLAT:
            self.fill_with_noise(gradients, step)
        for gradient in gradients:
            gradient.clamp_(-self.settings.clip_value, self.settings.clip_value)

    def fill_with_noise(self, gradients: Iterable[Tensor], step: int) -> None:
        """Random numbers from 0 to `clip_value`, the same in all processes."""
        for number, gradient in enumerate(gradients):
            source = torch.Generator().manual_seed(derive_seed(self.seed, "noise", step, number))
            gradient.copy_(torch.rand(gradient.shape, generator=source) * self.settings.clip_value)

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some frames, and below them the object's side of the mask."""
        assert isinstance(data, FlowPairs)
        count = min(FRAMES_SHOWN, len(data))
        samples = [data.plain(i * len(data) // count) for i in range(count)]
        device = next(self.parameters()).device
        batch = self.prepare({name: torch.stack([sample[name] for sample in samples]) for name in ("image", "flow")}, device)
        masks = self.masks(batch["image"], batch["flow"])[:, 0].cpu().numpy()
        frames = [sample["image"].permute(1, 2, 0).numpy() for sample in samples]
        labels = [object_side(mask > THRESHOLD).astype("uint8") for mask in masks]
        shown = [(frames[i : i + 4], labels[i : i + 4]) for i in range(0, count, 4)]
        rows = [(row, own) for row, objects in shown for own in ([0 * one for one in objects], objects)]
        write_rows(folder / "masks.png", rows)

    def export(self) -> Backbone:
        """The generator: the backbone with its decoder."""
        return self.backbone


def mean_absolute(gradients: Sequence[Tensor]) -> float:
    """Mean of |g| over all elements of all gradients; the same in all processes, which may hold different parts."""
    count = sum(gradient.numel() for gradient in gradients)
    return float(distributed.all_mean(torch.stack([gradient.abs().sum() for gradient in gradients]).sum() / count))


METHOD = Cis
