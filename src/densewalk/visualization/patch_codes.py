"""Short codes of patches, whose products are the patches' cosine similarities, for the page. Free of torch.

    results/{run}/s{seed}/features/patches.json     PatchCodes: the codes of every patch of some images, written with their pictures

    unit   = each patch's features, divided by their length                                   [patches, dim]
    V      = the eigenvectors of unit^T unit with the largest eigenvalues                     [dim, components]
    code_k = round((unit V)_k / scale_k),  scale_k = max |(unit V)_k| / 127                   8 bits
    cosine(i, j) = sum_k scale_k^2 code_ik code_jk

Nothing is subtracted before: of all sets of so many numbers for each patch, these have the products that are nearest to all cosines (in
the sum of squares). The first components are the best fewer ones, too.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int8
from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model, write_model
from densewalk.visualization.record import FeaturesRecord

AGAIN = "delete features.json, so that it is made again (snakemake does so)"
LARGEST = 127  # of an 8-bit code
PAIRS = 20_000  # of patches, on which the error is measured
SHARE = 0.95  # of the pairs, whose error is at most the one that is named


class CodedImage(Settings):
    """The patches of one image.

    name: of its PNG in the same folder, without the end. number: in the source; of a clip, the number of the clip. seconds: of a frame of
    it, after the first one. codes: base64 of int8 [rows, columns, components].
    """

    name: str = Field(pattern=r"^(image|clip)_[0-9]+$")
    source: str
    number: int = Field(ge=0)
    seconds: float | None = Field(default=None, ge=0)
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    codes: str


class PatchCodes(Settings):
    """The codes of all images of one backbone, in one basis.

    scales: of each component. errors: with the first component, the first two, ...: 95 % of the cosines are at most so far off.
    config_hash, backbone_sha256: as in the record of the drawn features.
    """

    version: Literal[1] = 1
    config_hash: str | None = None
    backbone_sha256: str | None = None
    scales: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    errors: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    images: list[CodedImage]


@dataclass(frozen=True)
class Codes:
    """Codes of the patches of several images, the scale of each component and the error with the first 1, 2, ... of them."""

    codes: list[Int8[np.ndarray, "_ components"]]
    scales: Float[np.ndarray, " components"]
    errors: Float[np.ndarray, " components"]


def make_codes(features: Sequence[Float[np.ndarray, "_ dim"]], components: int) -> Codes:
    """Code the patches of all images in one basis of at most `components`."""
    every = np.concatenate(features).astype(np.float64)
    unit = every / np.maximum(np.linalg.norm(every, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    vectors = np.linalg.eigh(unit.T @ unit)[1][:, ::-1][:, :components]
    scores = unit @ vectors
    scales = np.maximum(np.abs(scores).max(axis=0), 1e-6) / LARGEST
    codes = np.round(scores / scales).astype(np.int8)
    one, other = np.random.default_rng(0).integers(len(unit), size=(2, PAIRS))
    products = np.cumsum(codes[one] * scales**2 * codes[other], axis=1)  # with the first 1, 2, ... components
    cosines = np.einsum("pd,pd->p", unit[one], unit[other])
    errors = np.quantile(np.abs(products - cosines[:, None]), SHARE, axis=0)
    return Codes(np.split(codes, np.cumsum([len(f) for f in features])[:-1]), scales, errors)


def to_text(codes: Int8[np.ndarray, "patches components"]) -> str:
    """Base64 of the codes."""
    return base64.b64encode(np.ascontiguousarray(codes, dtype=np.int8).tobytes()).decode()


def codes_of(image: CodedImage, components: int) -> Int8[np.ndarray, "patches components"]:
    """The codes of an image.

    Raises:
        UserError: they are no base64, or other than so many.
    """
    try:
        content = base64.b64decode(image.codes, validate=True)
    except binascii.Error as error:
        raise UserError(f"the codes of {image.name} are no base64", todo=AGAIN) from error
    expected = image.rows * image.columns * components
    if len(content) != expected:
        raise UserError(f"{image.name} has {len(content)} codes", allowed=str(expected), todo=AGAIN)
    return np.frombuffer(content, np.int8).reshape(-1, components)


def patches_path(record: Path) -> Path:
    """The file of the codes, by the record of a backbone's drawn features."""
    return record.with_suffix("") / "patches.json"


def write_patches(path: Path, content: PatchCodes) -> None:
    """Write the codes of a backbone's patches."""
    write_model(path, content)


def read_patches(path: Path, record: FeaturesRecord | None = None) -> PatchCodes:
    """Read the codes of a backbone's patches; a UserError names what is missing or broken.

    Args:
        record: of the drawn features, with which they were written; codes of other features are refused.
    """
    found = read_model(path, PatchCodes, "file of patch codes", AGAIN)
    for name in ("config_hash", "backbone_sha256") if record is not None else ():
        if getattr(found, name) != getattr(record, name):
            raise UserError(f"{path} is of other features than the record beside it: {name} differs", todo=AGAIN)
    if record is not None and (unknown := {(i.source, i.number) for i in found.images if i.seconds is None} - _drawn(record)):
        raise UserError(f"{path} is of other images than the record beside it: {sorted(unknown)[0]}", todo=AGAIN)
    if len(found.scales) != len(found.errors):
        raise UserError(f"{path}: {len(found.scales)} scales and {len(found.errors)} errors", todo=AGAIN)
    for image in found.images:
        try:
            codes_of(image, len(found.scales))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return found


def _drawn(record: FeaturesRecord) -> set[tuple[str, int]]:
    return {(image.source, image.number) for image in record.images}
