"""Which labelled patches voted for the patches of a few queries: results/{run}/s{seed}/{evaluation}/votes.json. Free of torch."""

import base64
import binascii
import io
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt16
from PIL import Image
from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model, write_model

AGAIN = "delete the result, so that it is made again (snakemake does so)"
NO_LABEL = 65_535  # of a patch whose pixels are all ignored
FULL = 65_535  # a weight of 1


class MemoryImage(Settings):
    """A memory image as it was remembered, so perhaps a crop of it. image: WebP in base64; None where it has few votes."""

    name: str
    image: str | None


class Query(Settings):
    """A query. image: WebP in base64. The others are base64 of little-endian uint16, for each patch, row by row.

    predicted, truth: its most voted and its most frequent label. share: of all votes, that the predicted label has; 65535 is 1.
    voters: [patches, voters, 4]: memory image, patch in it, that patch's most frequent label, its share of all votes. mixture:
    [patches, classes, 2 + voters]: a label, its share of all votes, and of this what each voter gives to it, as a voter votes for every
    label in its patch; empty in files of earlier versions.
    """

    name: str
    image: str
    predicted: str
    share: str
    truth: str
    voters: str
    mixture: str = ""


class Votes(Settings):
    """The votes for a few queries.

    rows, columns: of every image's patches. voters: that are kept of each patch, the largest first. classes: whose shares are kept of
    each patch: the predicted one, the true one, then those with the largest shares; 0 in files of earlier versions.
    """

    version: Literal[1] = 1
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    voters: int = Field(ge=1)
    classes: int = Field(default=0, ge=0)
    labels: list[str] = Field(min_length=1)
    memory: list[MemoryImage]
    queries: list[Query]


def write_votes(path: Path, votes: Votes) -> None:
    """Write the votes of an evaluation."""
    write_model(path, votes)


def read_votes(path: Path) -> Votes:
    """Read the votes of an evaluation; a UserError names what is missing or broken."""
    found = read_model(path, Votes, "file of votes", AGAIN)
    patches = found.rows * found.columns
    for query in found.queries:
        shares = found.classes * (2 + found.voters)
        for name, numbers in (("predicted", 1), ("share", 1), ("truth", 1), ("voters", 4 * found.voters), ("mixture", shares)):
            content = from_text(getattr(query, name), f"{path}: {name} of {query.name}")
            if len(content) != patches * numbers:
                raise UserError(f"{path}: {name} of {query.name} has {len(content)} numbers", allowed=str(patches * numbers), todo=AGAIN)
        voters = from_text(query.voters, str(path)).reshape(-1, 4)
        for column, limit, what in ((0, len(found.memory), "memory image"), (1, patches, "patch"), (2, len(found.labels), "label")):
            if voters[:, column].max() >= limit:
                raise UserError(f"{path}: {query.name} has a vote of {what} {voters[:, column].max()} of {limit}", todo=AGAIN)
        labels = from_text(query.mixture, str(path)).reshape(patches * found.classes, -1)[:, :1] if found.classes else np.zeros(1)
        if labels.max() >= len(found.labels):
            raise UserError(f"{path}: mixture of {query.name} has label {labels.max()} of {len(found.labels)}", todo=AGAIN)
    return found


def to_text(values: np.ndarray) -> str:
    """Base64 of little-endian uint16."""
    return base64.b64encode(np.ascontiguousarray(values).astype("<u2").tobytes()).decode()


def from_text(text: str, what: str) -> UInt16[np.ndarray, " values"]:
    """The numbers of `to_text`; `what` is named where it is no such text."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u2")
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{what} is no base64 of 16-bit numbers", todo=AGAIN) from error


def small_image(image: Image.Image, side: int) -> str:
    """WebP in base64, at most `side` pixels wide and high."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
