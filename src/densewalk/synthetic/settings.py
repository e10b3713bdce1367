"""What the generated city walk contains and how much of it is written."""

from typing import Self

from pydantic import Field, model_validator

from densewalk.core.settings import Seed, Settings


class SyntheticSettings(Settings):
    """One seed gives one data set, byte for byte. The defaults are the demo's: half a minute of work for one core."""

    seed: Seed = 0
    """The video, the photographs and the sequences are different walks, all derived from this number."""
    seconds: float = Field(default=64.0, gt=0)
    """Length of the walk's video."""
    fps: float = Field(default=4.0, gt=0)
    """Frames a second of the video and of the DAVIS sequences."""
    width: int = Field(default=320, ge=64)
    """Width of every image in pixels, even."""
    height: int = Field(default=192, ge=64)
    """Height of every image in pixels, even."""
    mask_stride: int = Field(default=4, ge=1)
    """Every how many frames of the video a dense mask is written."""
    ade_train: int = Field(default=24, ge=1)
    """Images with masks in the ADE20K layout, training."""
    ade_val: int = Field(default=12, ge=1)
    """Images with masks in the ADE20K layout, validation; from other walks than the training images."""
    coco_train: int = Field(default=24, ge=1)
    """Images with instances in the COCO layout, training; the first of them are those of ade_train."""
    coco_val: int = Field(default=12, ge=1)
    """Images with instances in the COCO layout, validation; the first of them are those of ade_val."""
    depth_train: int | None = Field(default=None, ge=1)
    """Images with depth in the NYUv2 layout, training, the first of them those of ade_train; as many as those if not given."""
    depth_val: int | None = Field(default=None, ge=1)
    """Images with depth in the NYUv2 layout, test, the first of them those of ade_val; as many as those if not given."""
    davis_sequences: int = Field(default=2, ge=1)
    """Sequences in the DAVIS-2017 layout; a third of them, rounded down, is listed in train.txt, the others in val.txt."""
    davis_frames: int = Field(default=12, ge=2)
    """Frames of each sequence."""
    keypoints: int = Field(default=10, ge=4)
    """Most points of a pair in the SPair-71k layout, whose images are frames of the DAVIS sequences."""

    objects: int = Field(default=4, ge=1)
    """Toys in the NAVI layout."""
    object_views: int = Field(default=12, ge=2)
    """Images of each of them."""

    @model_validator(mode="after")
    def even_sizes(self) -> Self:
        """H.264 with 4:2:0 colors has no odd sizes."""
        if self.width % 2 or self.height % 2:
            raise ValueError(f"width and height must be even for H.264 (width={self.width}, height={self.height})")
        return self

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return max(1, round(self.seconds * self.fps))
