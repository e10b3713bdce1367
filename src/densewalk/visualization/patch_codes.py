"""Short codes of patches, whose products are the patches' cosine similarities, for the page. Free of torch.

    results/{run}/s{seed}/features/patches.json     PatchCodes: the codes of every patch of some images, written with their pictures

    unit   = each patch's features, divided by their length                                   [patches, dim]
    V      = the eigenvectors of unit^T unit with the largest eigenvalues                     [dim, components]
    code_k = round((unit V)_k / step)                                                         8 bits
    cosine(i, j) = sum_k step^2 code_ik code_jk

Nothing is subtracted before: of all sets of so many numbers for each patch, these have the products that are nearest to all cosines (in
the sum of squares). The first components are the best fewer ones, too. One step for all components costs least for a given error: later
components are small, most of their codes are 0, and take few bits when they are packed. Step and number of components are those of the
fewest bits whose measured error is small enough (`choose`).

    packed = pack(codes)                    # for the page: each component of all images, deflated (RFC 1951)
"""

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int, Int8
from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model, write_model
from densewalk.visualization.record import FeaturesRecord

AGAIN = "delete features.json, so that it is made again (snakemake does so)"
LARGEST = 127  # of an 8-bit code
STEPS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2)  # that are tried
WORSE = 1.1  # times the error of all components without rounding: what is allowed where that is above the wanted error
PAIRS = 20_000  # of patches, on which the error is measured
END = b"\x03\x00"  # an empty last block of a deflated stream
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


def make_codes(features: Sequence[Float[np.ndarray, "_ dim"]], components: int, error: float = 0.05) -> Codes:
    """Code the patches of all images in one basis of at most `components`, in the fewest bits with at most this error; see `choose`."""
    every = np.concatenate(features).astype(np.float64)
    unit = every / np.maximum(np.linalg.norm(every, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    vectors = np.linalg.eigh(unit.T @ unit)[1][:, ::-1][:, :components]
    scores = unit @ vectors
    pairs = np.random.default_rng(0).integers(len(unit), size=(2, PAIRS))
    cosines = np.einsum("pd,pd->p", unit[pairs[0]], unit[pairs[1]])
    step, count, errors = choose(scores, pairs, cosines, error)
    codes = np.round(scores[:, :count] / step).astype(np.int8)
    return Codes(np.split(codes, np.cumsum([len(f) for f in features])[:-1]), np.full(count, step), errors)


def choose(
    scores: Float[np.ndarray, "patches components"],
    pairs: Int[np.ndarray, "2 pairs"],
    cosines: Float[np.ndarray, " pairs"],
    error: float,
) -> tuple[float, int, Float[np.ndarray, " count"]]:
    """Step and number of components of the codes with the fewest bits that are good enough, and their errors.

        for step in STEPS:
            for count in 1 .. components:
                bits = sum over k < count of the entropy of round(scores_k / step)
                good = error(step, count) <= max(error, 1.1 error(all components, not rounded))

    error(...): 95 % of the pairs' cosines are at most so far off. Where no step is good enough: all components in the finest one.
    """
    finest = max(1e-6, float(np.abs(scores).max())) / LARGEST
    allowed = max(error, WORSE * float(errors_of(scores, pairs, cosines)[-1]))
    best: tuple[float, float, int, Float[np.ndarray, " count"]] | None = None
    for step in (step for step in STEPS if step >= finest):
        codes = np.round(scores / step)
        found = errors_of(step * codes, pairs, cosines)
        bits = np.cumsum([entropy(column) for column in codes.T])
        good = (found <= allowed).nonzero()[0]
        if len(good) and (best is None or bits[good[0]] < best[0]):
            best = bits[good[0]], step, int(good[0]) + 1, found[: good[0] + 1]
    if best is None:
        return finest, scores.shape[1], errors_of(finest * np.round(scores / finest), pairs, cosines)
    return best[1:]


def errors_of(
    scores: Float[np.ndarray, "patches components"], pairs: Int[np.ndarray, "2 pairs"], cosines: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " components"]:
    """With the first 1, 2, ... components: 95 % of the products of pairs are at most so far from their cosines."""
    products = np.cumsum(scores[pairs[0]] * scores[pairs[1]], axis=1)
    errors: Float[np.ndarray, " components"] = np.quantile(np.abs(products - cosines[:, None]), SHARE, axis=0)
    return errors


def entropy(values: Float[np.ndarray, " values"]) -> float:
    """Bits that the values take in all, if each is coded by how often it occurs."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(values))).sum())


def pack(codes: Int8[np.ndarray, "patches components"]) -> list[bytes]:
    """Each component deflated, with a code of its own; `b"".join([*packed, END])` is a whole stream, in the order of the components."""
    found = []
    for column in codes.T:
        content, parts = np.ascontiguousarray(column).tobytes(), []
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
            packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
            parts.append(packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH))
        found.append(min(parts, key=len))
    return found


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
