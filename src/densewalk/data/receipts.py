"""Receipts of prepared data: jobs/prepare.py and jobs/curate.py write them. Free of torch."""

import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from densewalk.core.errors import UserError
from densewalk.core.files import write_json
from densewalk.data.settings import VideoSettings


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if any(b <= a for a, b in pairwise(numbers)):
        raise ValueError("each number must be larger than the one before")
    return numbers


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Numbers = Annotated[tuple[Count, ...], AfterValidator(_ascending)]
Kept = Annotated[Numbers | None, Field(exclude_if=lambda kept: kept is None)]


class _Receipt(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: str
    """Which of the classes below it is."""
    name: str
    """The name in `config.yaml`."""


class VideoReceipt(_Receipt):
    """A training copy of a video. Fields that begin with `source` are about the original."""

    kind: Literal["video"] = "video"
    path: str
    """The copy."""
    source: str
    """The video."""
    source_stamp: str
    """Its size and time: `... bytes, ...` in nanoseconds."""
    source_sha256: Sha256
    """Of its content."""
    source_codec: str
    """The name of FFmpeg's decoder."""
    source_width: Positive
    """Square pixels, upright."""
    source_height: Positive
    """Pixels, upright."""
    source_fps: Rate
    """Frames a second on average."""
    source_frames: Count
    """As the file counts them."""
    codec: str
    """Of the copy, as all that follows: always h264."""
    width: Positive
    """Pixels, even."""
    height: Positive
    """Pixels, even."""
    gop: Positive
    """Distance of key frames: every multiple is one."""
    fps: Rate
    """Frames a second, constant."""
    frames: Positive
    """All, usable or not."""
    duration: Rate
    """Seconds: `frames` / `fps`."""
    usable: tuple[tuple[Count, Positive], ...]
    """[start, end) of the parts without blank, frozen, broken and unwanted frames."""
    cuts: Numbers
    """First frames after a scene cut."""
    problems: tuple[str, ...]
    """Sentences for people."""
    sha256: Sha256
    """Of the copy's content."""
    bytes: Positive
    """Size of the file."""
    settings: VideoSettings
    """What the copy was made with."""
    kept: Kept = None
    """Frames that a curation has chosen; None for all."""

    @model_validator(mode="after")
    def frames_are_there(self) -> Self:
        """All numbers of frames are below `frames`, and the usable parts follow each other."""
        for start, end in self.usable:
            if not start < end <= self.frames:
                raise ValueError(f"usable: [{start}, {end}] is no range of {self.frames} frames")
        for (_, end), (start, _) in pairwise(self.usable):
            if start < end:
                raise ValueError(f"usable: the part from {start} on begins before frame {end}, where the one before it ends")
        for key, numbers in (("cuts", self.cuts), ("kept", self.kept)):
            if numbers and numbers[-1] >= self.frames:
                raise ValueError(f"{key}: there is no frame {numbers[-1]}, only {self.frames}")
        return self


class _FolderReceipt(_Receipt):
    path: str
    """The folder."""
    files: Positive
    """Number of images."""
    listing: Sha256
    """Of all names: another one if a file was added, removed or renamed, not if its content changed."""
    smallest: tuple[Positive, Positive]
    """Width and height of the smallest image that was opened, by its area."""
    largest: tuple[Positive, Positive]
    """Width and height of the largest one."""


class ImagesReceipt(_FolderReceipt):
    """A folder of unrelated images."""

    kind: Literal["images"] = "images"
    kept: Kept = None
    """Images that a curation has chosen, numbered by path; None for all."""

    @model_validator(mode="after")
    def kept_images_are_there(self) -> Self:
        """All numbers are below `files`."""
        if self.kept and self.kept[-1] >= self.files:
            raise ValueError(f"kept: there is no image {self.kept[-1]}, only {self.files}")
        return self


class SequencesReceipt(_FolderReceipt):
    """A folder of videos, each a folder of numbered frames."""

    kind: Literal["sequences"] = "sequences"
    sequences: Positive
    """Number of those that are used."""
    shortest: Positive
    """Frames of the shortest sequence."""
    longest: Positive
    """Frames of the longest."""
    chosen: tuple[str, ...] | None
    """Names of the sequences that are used; None for all."""
    fps: Rate | None
    """Frames a second, where somebody has said so."""


class CuratedReceipt(_Receipt):
    """A curation's choice. `pictures` are images of folders and frames of videos."""

    kind: Literal["curation"] = "curation"
    pictures: Positive
    """All that could have been chosen; the sum of `kept`, `duplicates` and `not_retrieved`."""
    kept: Count
    """Images to train on."""
    duplicates: Count
    """Near duplicates of an earlier image."""
    not_retrieved: Count
    """Others that are not like the references."""
    largest_group: Positive
    """Images of the largest group of near duplicates."""
    neighbour_similarity: dict[Literal["5 %", "50 %", "95 %"], float]
    """Quantiles of the cosine similarity of each image to the one most similar to it."""
    sources: dict[str, Annotated[VideoReceipt | ImagesReceipt, Field(discriminator="kind")]]
    """By name, each with its `kept`."""
    config_hash: Annotated[str | None, Field(exclude_if=lambda found: found is None)] = None
    """Of the curation's specification; None in receipts of earlier versions."""
    contents: Annotated[tuple[str, ...] | None, Field(exclude_if=lambda found: found is None)] = None
    """Of the sources, as data/contents.py has them; None in receipts of earlier versions."""
    backbone_sha256: Annotated[Sha256 | None, Field(exclude_if=lambda found: found is None)] = None
    """Of the backbone that compared the images; None in receipts of earlier versions."""

    @model_validator(mode="after")
    def counts_agree(self) -> Self:
        """The counts add up, those of the sources too."""
        if self.pictures != self.kept + self.duplicates + self.not_retrieved:
            raise ValueError(f"pictures: {self.pictures} is not the sum of kept, duplicates and not_retrieved")
        kept = sum(len(source.kept or ()) for source in self.sources.values())
        if kept != self.kept:
            raise ValueError(f"kept: {self.kept}, but the sources keep {kept}")
        return self


Receipt = VideoReceipt | ImagesReceipt | SequencesReceipt | CuratedReceipt
_RECEIPT: TypeAdapter[Receipt] = TypeAdapter(Annotated[Receipt, Field(discriminator="kind")])


def read_receipt(path: str | Path) -> Receipt:
    """Read and check a receipt.

    Raises:
        UserError: there is none, or the file is something else; the message names the key.
    """
    try:
        return _RECEIPT.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"receipt {path} cannot be read: {error.strerror}", todo="prepare the data again") from error
    except ValidationError as error:
        raise UserError(f"receipt {path}: {_complaint(error)}", todo="delete it, so that it is made again") from error


def _complaint(error: ValidationError) -> str:
    """The first thing that is wrong: key, reason, what was found."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][1:])  # the first part is the receipt's kind
    if first["type"] == "missing":
        return f"{key} is missing"
    reason = first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], dict | bytes) else f", found {reprlib.repr(first['input'])}"
    return f"{key}: {reason}{found}" if key else f"{reason}{found}"


def write_receipt(path: str | Path, receipt: Receipt) -> None:
    """Write a receipt; the file appears when it is complete."""
    write_json(path, receipt.model_dump(mode="json"))
