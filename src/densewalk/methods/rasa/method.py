"""RASA, the removal of absolute spatial attributes, of Franca.

    round t:   minimize  mean (sigmoid(w_t z_(t-1)) - (row, column))^2  over w_t [2, D]       `planes.round_loss`
               z_t = z_(t-1) - Q_t^T Q_t z_(t-1),  Q_t the orthonormal rows of w_t            `planes.orthonormal_rows`
    export:    z' = L z, L the product of the rounds' (I - Q_t^T Q_t)                         `planes.removal_matrix`

z_0 are the patch tokens of a frozen backbone after its final norm; row and column are those of the crop's grid, from 0 to 1. A norm cannot
hold L, so that the exported file has it beside the initial weights (models/families/position_removal.py).

Published, Franca-B: VOC in-context 76.2 to 76.7, ADE20K 35.0 to 35.3. A constant has the loss (s + 1) / (12 (s - 1)) on a grid of side s.
Choices of ours: probabilities of the augmentation that are not published are NeCo's (jitter 0.8, gray 0.2, blur 0.5) and one half for
flips and turns.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_STD
from densewalk.data.augmentation.colors import distort
from densewalk.data.sources import Source, open_images
from densewalk.methods.rasa.augmentation import TurnedCrops
from densewalk.methods.rasa.planes import place_targets, removal_matrix, round_loss
from densewalk.methods.rasa.settings import RasaSettings
from densewalk.models.backbone import Backbone
from densewalk.training.method import Method, ParamGroup
from densewalk.training.schedules import constant, cosine


class Rasa(Method):
    """A frozen backbone and the directions of each round."""

    def __init__(self, settings: RasaSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings, self.backbone = settings.resolved(), backbone.requires_grad_(False)
        settings.require_network(backbone.arch)
        if obstacle := settings.obstacle_to_length(total_steps):
            raise UserError(obstacle)
        self.starts = np.linspace(0, total_steps, settings.rounds + 1).round().astype(int)
        self.directions = nn.ParameterList(nn.Linear(backbone.dim, 2, bias=False).weight for _ in range(settings.rounds))
        self.matrices: dict[int, Tensor] = {}  # of the rounds before one, which no longer change

    @staticmethod
    def dataset(settings: RasaSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """Crops of every usable frame of every video and of every image."""
        return TurnedCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """The directions of each round; they learn in its steps only."""
        assert self.settings.lr is not None
        groups = []
        for number, (start, stop) in enumerate(pairwise(self.starts.tolist())):
            lr = constant(0.0, self.total_steps)
            lr[start:stop] = cosine(self.settings.lr, 0.0, stop - start)
            groups.append(ParamGroup(f"round {number + 1}", [self.directions[number]], lr, constant(0.0, self.total_steps)))
        return groups

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Colors, blur and flips; normalized."""
        assert self.settings.blue_std is not None
        std = [*IMAGENET_STD[:2], self.settings.blue_std]
        return distort(batch["crops"].to(device, non_blocking=True), batch["distortions"], std=std)

    def step(self, batch: Float[Tensor, "batch 3 size size"], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of crops in the round that the step belongs to."""
        number = self.round_of(step)
        side = batch.shape[-1] // self.backbone.patch * self.backbone.patch
        with torch.no_grad():
            tokens = self.backbone.tokens(batch[..., :side, :side])
        with torch.autocast(batch.device.type, enabled=False):
            features = tokens.patches.float() @ self.matrix_before(number, batch.device).T  # [b, places, dim]
            loss = round_loss(self.directions[number], features, place_targets(*tokens.grid).to(batch.device))
        return loss, {"round": torch.tensor(float(number + 1))}

    def after_backward(self, step: int) -> None:
        """Leave the other rounds without gradient, also where several processes have sent zeros: AdamW counts its steps."""
        for number, weight in enumerate(self.directions):
            if number != self.round_of(step):
                weight.grad = None

    def round_of(self, step: int) -> int:
        """The round that a step belongs to."""
        return int(np.searchsorted(self.starts, step, side="right")) - 1

    def matrix_before(self, number: int, device: torch.device) -> Float[Tensor, "dim dim"]:
        """The product of the rounds before this one."""
        if number not in self.matrices:
            self.matrices = {number: self.removal(number).float().to(device)}
        return self.matrices[number]

    def removal(self, rounds: int) -> Float[Tensor, "dim dim"]:
        """L of the first rounds."""
        assert self.settings.orthogonal is not None
        return removal_matrix(list(self.directions)[:rounds], self.backbone.dim, orthogonal=self.settings.orthogonal)

    def export(self) -> Backbone:
        """The initial backbone with L in its map."""
        made = Backbone(replace(self.backbone.arch, projected=True))
        made.vit.load_state_dict(self.backbone.vit.state_dict())
        made.projection = self.removal(self.settings.rounds).float()
        return made


METHOD = Rasa
