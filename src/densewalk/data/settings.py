"""Settings of videos and image folders: all decide what is learnt and enter the hashes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from densewalk.core.settings import PathText, Settings, is_null


class VideoSettings(Settings):
    """One video file, and how its training copy is made."""

    source: PathText
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
    """A frame is blank if its gray levels (0 to 255, averaged over 64 x 36 cells) have a smaller standard deviation."""
    min_blank_seconds: float = Field(default=1.0, ge=0)
    """Shorter blank parts are kept."""
    frozen_change: float = Field(default=2.0, ge=0)
    """A frame is frozen if none of those cells has changed by more than this since it came to a stand."""
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
    """A folder of images."""

    source: PathText
    """The folder, relative to the study's folder; its subfolders are searched."""
    layout: Literal["pictures", "sequences"] = "pictures"
    """`pictures`: unrelated images. `sequences`: one folder of numbered frames per video, as in DAVIS and YouTube-VOS, whose
    JPEGImages/480p and train/JPEGImages are such a `source`."""
    sequence_list: PathText | None = None
    """Layout `sequences`: text file with the names of the sequences to use, one a line, e.g. DAVIS/ImageSets/2017/train.txt."""
    fps: float | None = Field(default=None, gt=0, exclude_if=is_null)
    """Layout `sequences`: frames a second, which no file says (DAVIS: 24; YouTube-VOS: 6); DoRA's clips need it."""

    @model_validator(mode="after")
    def only_sequences_have(self) -> Self:
        """Unrelated images have no names to list, and no time."""
        for name in ("sequence_list", "fps"):
            if getattr(self, name) is not None and self.layout != "sequences":
                raise ValueError(f"{name}: only layout sequences has one; leave it out or set layout to sequences")
        return self
