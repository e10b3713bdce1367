"""Settings of MoSiC."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, PathText, ShareRange, Unique, deviation
from densewalk.data.amounts import Amount
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, parameters, tokens, vit
from densewalk.training.settings import PresetSettings


class MosicSettings(PresetSettings):
    """MoSiC (https://arxiv.org/abs/2506.08694) on clips of videos; defaults are the released recipe's for YouTube-VOS.

    The released code is https://github.com/SMSD75/MoSiC at commit fed4637. Its point tracker, CoTracker3, is not part of this project.
    """

    VERSION: ClassVar[int] = 2
    """2: hidden points of given tracks have the tracker's places, not the corner of the frame."""
    SAMPLES: ClassVar[Literal["images", "clips"]] = "clips"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    PICTURES: ClassVar[dict[str, str]] = {
        "tracks": "Frames of some clips, and the points that are followed through them; a color is a point.",
        "prototypes": "The same frames, and the prototype of each patch by the student; a color is a prototype.",
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("tracks are made by CoTracker3 while training", "by optical flow, or read from files", "its training script"),
        Difference("symmetric and soft variants of the loss, off by default", "no such settings", "its training script"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # the released training on YouTube-VOS, by its code at commit fed4637; tracks of a point tracker are given as files
        "published": {
            "compat": "released",
            "tracker": "files",
            "batch_size": 64,
            "epochs": 8,
            "frames": 12,
            "frame_step": 6,
            "size": 224,
            "grid": 16,
            "prototypes": 100,
            "momentum": 0.99,
            "lr": 1e-4,
            "backbone_lr": 1e-5,
            "weight_decay": 0.01,
        },
        # vit_micro_patch16 on a video of minutes, with a frame every 0.2 to 1 s
        "small_video": {
            "batch_size": 8,
            "steps": 300,
            "frames": 4,
            "frame_step": 1,
            "segment_seconds": 2.0,
            "size": 160,
            "grid": 10,
            "head_widths": [256, 128],
            "prototypes": 50,
        },
    }

    batch_size: int = Field(default=64, ge=1)
    """Clips of one optimizer step over all processes together."""
    epochs: Epochs | None = 8
    """Passes over the videos: one clip of each. Exactly one of `epochs` and `steps`."""

    frames: int = Field(default=12, ge=2)
    """Frames of a clip, and of each track."""
    frame_step: int = Field(default=6, ge=1)
    """Distance of a clip's frames, in frames of the video."""
    segment_seconds: float = Field(default=5.0, gt=0)
    """A video file is cut into pieces of about this length, each one video like YouTube-VOS's; longer ones if a clip needs them."""
    size: int = Field(default=224, ge=16)
    """Side of the network's input in pixels."""
    scale: ShareRange = (0.4, 1.0)
    """Share of the image's area that the crop of a clip covers, from and to."""

    tracker: Literal["flow", "files"] = "flow"
    """`flow`: points of the cropped clip are followed by optical flow (DIS) from frame to frame, checked by the way back. `files`: tracks
    of another tracker, in `track_files`."""
    track_files: Annotated[list[PathText], Unique] = []
    """Tracker `files`: files of tracks (src/densewalk/data/video/tracks.py), one for each video or folder in `data`, in any order."""
    grid: int = Field(default=16, ge=1)
    """Points of a clip to a side: tracker `flow` starts them on a grid of the first frame; of `files`, grid x grid tracks are drawn."""

    trainable_blocks: int = Field(default=2, ge=1)
    """Last blocks of the backbone that learn; everything else is frozen, the final norm included."""
    head_widths: list[Annotated[int, Field(ge=1)]] = Field(default=[1024, 1024, 512, 256], min_length=1)
    """Widths of the projection head's layers; the last is the prototypes' dimension."""
    prototypes: int = Field(default=100, ge=2)
    """Cluster centers."""
    momentum: float = Field(default=0.99, ge=0, le=1)
    """Share of the old teacher in each update."""

    sinkhorn_epsilon: float = Field(default=0.06, gt=0)
    """Temperature of the assignment."""
    sinkhorn_iterations: int = Field(default=3, ge=1)
    """Sinkhorn-Knopp iterations over the points of all frames, clips and processes; part of the method, since they end unconverged."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Of the student's scores in the loss."""
    transposed_places: bool | None = deviation(
        effect="features are those of another place, mirrored at the diagonal", source="its look-up [x, y] in a map of rows and columns"
    )
    """Look up the features of a point at x, y in row x and column y."""

    lr: LearningRate = Field(default=1e-4, gt=0)
    """Learning rate of head and prototypes, falling to 0 along a cosine."""
    backbone_lr: LearningRate = Field(default=1e-5, gt=0)
    """Learning rate of the trainable blocks, falling likewise."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay; none on biases and one-dimensional parameters."""

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.frames - 1) * self.frame_step + 1

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """The released recipe, with tracks of another tracker."""
        if labels.method != "MoSiC":
            return None
        return cls(preset="published", track_files=["tracks.safetensors"]).all_settings("track_files")

    def files(self) -> list[str]:
        """The files of tracks."""
        return self.track_files

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def obstacle(self) -> str | None:
        """Tracks that nothing says, or that nothing reads."""
        if (self.tracker == "files") != bool(self.track_files):
            there = f"track_files names {len(self.track_files)}" if self.track_files else "track_files names none"
            return f"tracker {self.tracker}, but {there}"
        return None

    def across_samples(self) -> str | None:
        """Sinkhorn."""
        return "MoSiC's Sinkhorn shares the prototypes out among the points of the whole batch"

    def ceilings(self) -> dict[str, Ceiling]:
        """The entropy of even labels, a share, and RankMe's number of rows."""
        return {
            "patch_mean_entropy": Ceiling(math.log(self.prototypes), f"ln {self.prototypes}"),
            "points_visible": Ceiling(1.0, "all points are followed to the last frame"),
            "feature_rank": Ceiling(64, "64, the points that it looks at"),
        }

    def samples(self, amount: Amount) -> int:
        """A clip of each sequence, of each stretch of a video file, or of each image."""
        if amount.kind == "video":
            return max(amount.parts, round(amount.seconds / self.segment_seconds))
        return amount.parts if amount.kind == "sequences" else amount.frames

    def step_work(self, arch: Architecture) -> Work:
        """The frozen blocks and the teacher's last ones see each frame once; the student's learn from the first frame."""
        clips, blocks = self.batch_size, self.trainable_blocks
        widths, patches = [arch.dim, *self.head_widths], tokens(arch, self.size) - tokens(arch, 0)
        head = patches * (mlp(widths) + 2 * self.head_widths[-1] * self.prototypes)
        last = vit(arch, self.size, blocks=blocks)
        flops = clips * (self.frames * (vit(arch, self.size) + head) + LEARN * (last + head))
        values = clips * (kept(arch, self.size, blocks=blocks) + 2 * patches * sum([*self.head_widths, self.prototypes]))
        learnt = parameters(arch, blocks) + mlp_parameters(widths)
        return Work(flops, kept=values, learnt=learnt, fixed=2 * parameters(arch) - parameters(arch, blocks))


SETTINGS = MosicSettings
