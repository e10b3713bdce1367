"""What is drawn of a backbone's features: results/{run}/s{seed}/features.json. Free of torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from densewalk.core.hashing import config_hash
from densewalk.core.settings import Settings, is_null
from densewalk.core.typed_files import read_model
from densewalk.visualization.settings import PictureSettings


class DrawnImage(Settings):
    """An image by its source and its number there. variance: the shares that the first three principal components hold."""

    source: str
    number: int = Field(ge=0)
    variance: list[Annotated[float, Field(ge=0, le=1)]]


class FeaturesRecord(Settings):
    """The drawn images in order. heads: of the CLS token's attention; 0 for a network without.

    nearest: patches before and after training are drawn, too.

    config_hash: see `drawing_hash`; backbone_sha256: of the file that was drawn. None in records of earlier versions.
    """

    images: list[DrawnImage]
    heads: int = Field(ge=0)
    nearest: bool
    config_hash: str | None = Field(default=None, exclude_if=is_null)
    backbone_sha256: str | None = Field(default=None, exclude_if=is_null)


def drawing_hash(run_hash: str, settings: PictureSettings) -> str:
    """Hash of what decides the images of a run's features, but for the sources' names."""
    return config_hash([run_hash, settings.model_dump(mode="json", exclude={"sources"})])


def read_features(path: Path) -> FeaturesRecord:
    """Read the record of a backbone's drawn features; a UserError names file and key of what is missing or broken."""
    return read_model(path, FeaturesRecord, "record of drawn features", "delete it, so that it is made again (snakemake does so)")
