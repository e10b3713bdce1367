"""Settings of the contrastive random walk."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, deviation, switch
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, parameters, vit
from densewalk.training.settings import PresetSettings


class CrwSettings(PresetSettings):
    """Contrastive random walk (https://arxiv.org/abs/2006.14613) on clips of videos; defaults are the released command's.

    The released code is https://github.com/ajabri/videowalk at commit 047f3f4. It trains a ResNet-18, which a vision transformer takes
    the place of here.
    """

    SAMPLES: ClassVar[Literal["images", "clips"]] = "clips"
    CUT_FROM: ClassVar[Literal["images", "frames", "timed frames"]] = "timed frames"
    RESOURCES: ClassVar[Resources] = Resources(gpu=1, threads=16, mem_mb=64_000, runtime=2880)
    PICTURES: ClassVar[dict[str, str]] = {
        "walks": "Nodes of a clip's first frame, and in later frames the color of the node from which a walk most likely comes."
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("ResNet-18 with stride 8 and reflect padding", "a vision transformer", "resnet.py"),
        Difference("the nodes of a feature map, as an option", "windows only, which know nothing of their place", "model.py"),
        Difference(
            "`zero_diagonal`, `restrict`, `wd`, `optim`, `lr_warmup_epochs` have no effect", "no such settings", "train.py, model.py"
        ),
        Difference("`flip` reverses the order of the product", "no such setting", "model.py"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # vit_micro_patch16 from scratch on a video of minutes
        "small_video": {
            "frame_rate": 4.0,
            "size": 128,
            "node_size": 32,
            "node_stride": 16,
            "out_dim": 64,
            "batch_size": 4,
            "steps": 300,
            "lr": 1e-3,
        },
    }

    batch_size: int = Field(default=20, ge=1)
    """Clips of one optimizer step over all processes together."""
    epochs: Epochs | None = 25
    """Passes over the clips, one from each usable frame. Exactly one of `epochs` and `steps`."""

    frames: int = Field(default=4, ge=2)
    """Frames of a clip."""
    frame_rate: float = Field(default=8.0, gt=0)
    """Frames of a clip in a second of the video."""
    size: int = Field(default=256, ge=16)
    """Side of a frame in pixels, after its crop."""
    scale: ShareRange = (0.8, 0.95)
    """Share of a frame's area that its crop covers, from and to; drawn for each frame of a clip."""
    node_size: int = Field(default=64, ge=8)
    """Side of a node's window in pixels, a multiple of the patch size. Each window is an image of its own for the network."""
    node_stride: int = Field(default=32, ge=1)
    """Distance of windows in pixels."""
    node_scale: ShareRange = (0.7, 0.9)
    """Share of a window's area that is kept, from and to; drawn for each window."""

    node_feature: Literal["patches", "cls"] = "patches"
    """A node is the mean of its patches, or its CLS token."""
    out_dim: int = Field(default=128, ge=1)
    """Width of the linear head, behind which nodes have unit length."""
    temperature: float = Field(default=0.05, gt=0)
    """Temperature of the softmax over a node's edges."""
    edge_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that an edge is cut before the softmax."""
    two_frame_cycle: bool | None = switch(
        paper=True, released=False, effect="the shortest walk, there and back over one edge", source="equation 7; model.py:228-254"
    )
    """Learn from the cycle over two frames, too."""
    inherited_cuts: bool | None = deviation(
        effect="edges of the way back are cut with 1 - (1 - p)^2", source="model.py:150-165, a cut in place on a view"
    )
    """Edges that are cut on the way there are cut on the way back, too, beside its own."""

    lr: LearningRate = Field(default=1e-4, gt=0)
    """Learning rate of the first four fifths of the training; 0.3 of it in the last."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay; none on biases and one-dimensional parameters."""

    @property
    def grid(self) -> int:
        """Windows to a side of a frame."""
        return (self.size - self.node_size) // self.node_stride + 1

    @property
    def shortest(self) -> int:
        """Edges of the shortest walk, less one."""
        return 0 if self.resolved().two_frame_cycle else 1

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"node_size": self.node_size}

    def obstacle(self) -> str | None:
        """A walk needs frames to go through, and nodes to choose from."""
        if self.size < self.node_size or self.grid < 2:
            return f"size {self.size} has no two windows of node_size {self.node_size} to a side"
        if self.frames < self.shortest + 2:
            return f"frames {self.frames}: the shortest walk without two_frame_cycle goes through 3"
        return None

    def across_samples(self) -> None:
        """Nothing: walks stay within their clip."""
        return

    def ceilings(self) -> dict[str, Ceiling]:
        """A share, and RankMe's number of rows."""
        return {"cycle_accuracy": Ceiling(1.0, "all walks return"), "feature_rank": Ceiling(64, "64, the nodes that it looks at")}

    def step_work(self, arch: Architecture) -> Work:
        """Every window is an image; two products of all nodes with each other for each edge of the longest walk, there and back."""
        nodes, edges = self.grid**2, self.frames - 1
        windows = self.batch_size * self.frames * nodes
        flops = windows * (vit(arch, self.node_size) + 2.0 * arch.dim * self.out_dim)
        walks = self.batch_size * edges * (2.0 * nodes**2 * self.out_dim + 4.0 * nodes**3)
        values = windows * kept(arch, self.node_size)
        return Work(LEARN * (flops + walks), kept=values, outside=8 * self.batch_size * edges * nodes**2, learnt=parameters(arch))


SETTINGS = CrwSettings
