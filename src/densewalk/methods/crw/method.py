"""Contrastive random walk: Space-Time Correspondence as a Contrastive Random Walk (Jabri et al., NeurIPS 2020, arXiv 2006.14613).

A walker goes from a node of a clip's first frame along similarity to later frames and back, and must return to where it began.

    q     = normalize(head(backbone(window)))              a node for each window of each frame      `encode`
    F_t   = softmax(q_t q_{t+1}^T / tau),  G_t the same the other way, both with edges cut           `transitions`
    P_k   = F_0 ... F_k G_k ... G_0                                                                  `chains`
    loss  = mean over k and nodes n of - ln P_k[n, n]                                                equations 6 and 7, `cycle_loss`

Windows are images of their own: with the positions of a whole frame a transformer would return by them, without looking (and windows
that show the same are all the same node: walks by position alone return as often as chance, one in `nodes`). Products are chained, so
that the work grows with the clip, not with its square. Evaluate the backbone by label propagation, without the head.

A learning curve has the accuracy of the longest walk. Folders of images have no walks; they are refused.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.data.receipts import ImagesReceipt
from densewalk.data.sources import Source, open_clips
from densewalk.methods.crw.clips import WalkClips, cut_windows
from densewalk.methods.crw.settings import CrwSettings
from densewalk.methods.crw.walk import Nodes, chains, cycle_accuracy, cycle_loss, draw_edges, transitions
from densewalk.models.backbone import Backbone
from densewalk.ops.collapse import feature_rank
from densewalk.ops.cpu.linear import Linear
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.schedules import constant
from densewalk.visualization.prototypes import draw_prototypes

CLIPS_SHOWN = 4  # in the image of a finished training
LAST, SLOWER = 0.8, 0.3  # from which share of the training on, and by which factor the learning rate is lower
Windows = Float[Tensor, "batch frames nodes 3 side side"]


class Crw(Method):
    """One training run of the contrastive random walk.

    Raises:
        UserError: a window's side is not a multiple of the patch size.
    """

    def __init__(self, settings: CrwSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings = settings.resolved()
        settings.require_network(backbone.arch)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "crw"))
            self.head = Linear(backbone.dim, settings.out_dim)

    @staticmethod
    def dataset(settings: CrwSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """A clip from every usable frame.

        Raises:
            UserError: a folder of images, or a video in which no clip fits.
        """
        for source in sources:
            if isinstance(source.receipt, ImagesReceipt):
                raise UserError(f"data {source.name} is a folder of images, in which nothing moves", todo="give a video, or sequences")
        clips = [open_clips(source, settings.frames, 1 / settings.frame_rate) for source in sources]
        return WalkClips(ConcatDataset(clips), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head, with and without weight decay."""
        s, total = self.settings, self.total_steps
        lr = np.where(np.arange(total) < LAST * total, s.lr, SLOWER * s.lr)
        return decay_groups("all", list(self.named_parameters()), lr, constant(s.weight_decay, total))

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Windows:
        """Windows of all frames, normalized."""
        return cut_windows(batch["clip"].to(device, non_blocking=True), batch["boxes"], self.settings.node_size)

    def step(self, batch: Windows, step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of windows [b, t, n, 3, side, side]."""
        s, nodes = self.settings, self.encode(batch)
        with torch.autocast(batch.device.type, enabled=False):
            draws = draw_edges(nodes) if s.edge_dropout else None
            there, back = transitions(nodes, s.temperature, s.edge_dropout, draws, inherited=bool(s.inherited_cuts))
            walks = list(chains(there, back))
            loss = torch.stack([cycle_loss(*walk) for walk in walks[s.shortest :]]).mean()
        return loss, {"cycle_accuracy": cycle_accuracy(*walks[-1]), "feature_rank": feature_rank(nodes[:, 0])}

    def encode(self, windows: Windows) -> Nodes:
        """The nodes, of unit length, in float32."""
        images = windows.flatten(0, 2)
        found = self.backbone.cls(images) if self.settings.node_feature == "cls" else self.backbone.tokens(images).patches.mean(dim=1)
        return F.normalize(self.head(found).float(), dim=1).unflatten(0, windows.shape[:3])

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some clips, each node in the color of the first frame's node from which a walk most likely comes."""
        assert isinstance(data, WalkClips)
        count, s, device = min(CLIPS_SHOWN, len(data)), self.settings, self.head.weight.device
        samples = [data.plain(i * len(data) // count) for i in range(count)]
        maps = []
        for sample in samples:
            windows = cut_windows(sample["clip"][None].to(device), sample["boxes"][None], s.node_size)
            there, back = transitions(self.encode(windows), s.temperature, 0.0, None, inherited=False)
            own = torch.arange(s.grid**2, device=device)
            maps.append(torch.stack([own, *(ahead[0].argmax(dim=0) for ahead, _ in chains(there, back))]))
        clips = torch.stack([sample["clip"] for sample in samples])
        draw_prototypes(folder / "walks.png", clips, torch.stack(maps).unflatten(2, (s.grid, s.grid)).cpu())

    def export(self) -> Backbone:
        """The backbone, without the head."""
        return self.backbone


METHOD = Crw
