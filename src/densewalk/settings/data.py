"""What is trained on: videos, image folders, pools chosen from them. All of it decides what is learnt and enters the hashes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from densewalk.settings.base import Settings


class VideoSettings(Settings):
    """One video file, and how its training copy is made."""

    source: str
    """The video file, relative to the study's folder; any container and codec that FFmpeg reads."""
    short_side: int = Field(default=480, ge=32)
    """Short side of the training copy in pixels; a smaller video keeps its size."""
    fps: float | None = Field(default=None, gt=0)
    """Frames a second of the training copy: a lower number gives fewer clips. The video's own by default, and at most that."""
    crf: int = Field(default=20, ge=0, le=51)
    """Quality of the training copy, x264's constant rate factor: 0 is lossless, 18 to 22 is hard to tell from the original."""
    gop: int = Field(default=6, ge=1)
    """Distance of key frames in the training copy: a smaller number makes clips cheaper to read and the file larger."""
    usable_seconds: list[tuple[float, float]] | None = None
    """Parts to train on as [start, end] in seconds; everything by default. Blank and frozen parts are left out either way."""
    blank_spread: float = Field(default=3.0, ge=0)
    """A frame is blank if its grey levels (0 to 255, averaged over 64 x 36 cells) have a smaller standard deviation."""
    min_blank_seconds: float = Field(default=1.0, ge=0)
    """Shorter blank parts are kept."""
    frozen_change: float = Field(default=2.0, ge=0)
    """A frame is frozen if none of those cells has changed by more than this since the picture came to a stand."""
    min_frozen_seconds: float = Field(default=3.0, ge=0)
    """Shorter frozen parts are kept."""
    skip_broken: bool = False
    """Leave stretches out that do not decode, and record them. By default they stop the transcoding."""

    @model_validator(mode="after")
    def ordered_ranges(self) -> Self:
        """Each range ends after it starts."""
        for start, end in self.usable_seconds or []:
            if not 0 <= start < end:
                raise ValueError(f"usable_seconds: [{start}, {end}] is no range; give [start, end] with 0 <= start < end")
        return self


class ImagesSettings(Settings):
    """A folder of pictures."""

    source: str
    """The folder, relative to the study's folder; its subfolders are searched."""
    layout: Literal["pictures", "sequences"] = "pictures"
    """`pictures`: unrelated images. `sequences`: one folder of numbered frames per video, as in DAVIS and YouTube-VOS, whose
    JPEGImages/480p and train/JPEGImages are such a `source`."""
    sequence_list: str | None = None
    """Layout `sequences`: text file with the names of the sequences to use, one a line, e.g. DAVIS/ImageSets/2017/train.txt."""
    fps: float | None = Field(default=None, gt=0)
    """Layout `sequences`: frames a second, which no file says (DAVIS: 24; YouTube-VOS: 6); DoRA's clips need it."""

    @model_validator(mode="after")
    def only_sequences_have(self) -> Self:
        """Pictures have no names to list, and no time."""
        for name in ("sequence_list", "fps"):
            if getattr(self, name) is not None and self.layout != "sequences":
                raise ValueError(f"{name}: only layout sequences has one; leave it out or set layout to sequences")
        return self


class RetrievalSettings(Settings):
    """Keep what is like the pictures of a reference folder."""

    source: str
    """The folder of reference pictures, relative to the study's folder."""
    by: Literal["samples", "clusters"] = "samples"
    """`samples`: the pool's nearest pictures of each reference. `clusters`: whole k-means clusters of the pool that references fall
    into."""
    neighbours: int = Field(default=4, ge=1)
    """`samples`: how many nearest pictures of each reference are kept."""
    clusters: int = Field(default=100, ge=1)
    """`clusters`: how many there are; fewer where the pool has fewer pictures."""
    least_references: int = Field(default=1, ge=1)
    """`clusters`: a cluster is kept if so many references or more are nearest to its centre."""


class CurationSettings(Settings):
    """A pool of single pictures without near duplicates, or of those like a reference set (DINOv2, https://arxiv.org/abs/2304.07193,
    section 3), by the cosine similarity of a backbone's CLS tokens. Runs name it in their `data` like any other."""

    data: list[str] = Field(min_length=1)
    """Videos and folders of pictures to choose from."""
    backbone: str
    """What compares pictures: a checkpoint's or a run's name; a public checkpoint's will do (`densewalk checkpoints` lists them)."""
    seed: int | None = None
    """Which of the run's seeds, by default its first; and the seed of k-means."""
    spacing_seconds: float = Field(default=1.0, gt=0)
    """Distance of the frames of a video that are looked at; only such frames are ever kept."""
    size: int = Field(default=224, ge=16)
    """Pictures are resized to a square of this side, whatever their shape (so does SSCD, https://arxiv.org/abs/2202.10261)."""
    duplicates: float | None = Field(default=None, gt=-1, le=1)
    """Two pictures at least this similar are near duplicates, and so is what a chain of them connects: the first of all stays.
    Null keeps all. What is a good value depends on the backbone: the receipt says how similar neighbours are."""
    retrieve: RetrievalSettings | None = None
    """Keep only what is like these pictures; null keeps all."""

    @model_validator(mode="after")
    def chooses_something(self) -> Self:
        """A curation that keeps everything is a typing error."""
        if self.duplicates is None and self.retrieve is None:
            raise ValueError("set duplicates, retrieve or both; a curation without either keeps everything")
        return self
