"""Settings of curations."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.settings import PathText, Seed, Settings, Unique


class RetrievalSettings(Settings):
    """Keep what is like the images of a reference folder."""

    source: PathText
    """The folder of reference images, relative to the study's folder."""
    by: Literal["samples", "clusters"] = "samples"
    """`samples`: the pool's nearest images of each reference. `clusters`: whole k-means clusters of the pool that references fall
    into."""
    neighbours: int = Field(default=4, ge=1)
    """`samples`: how many nearest images of each reference are kept."""
    clusters: int = Field(default=100, ge=1)
    """`clusters`: how many there are; fewer where the pool has fewer images."""
    least_references: int = Field(default=1, ge=1)
    """`clusters`: a cluster is kept if so many references or more are nearest to its center."""


class CurationSettings(Settings):
    """A pool of single images without near duplicates, or of those like a reference set (DINOv2, https://arxiv.org/abs/2304.07193,
    section 3), by the cosine similarity of a backbone's CLS tokens. Runs name it in their `data` like any other."""

    data: Annotated[list[str], Unique] = Field(min_length=1)
    """Videos and folders of images to choose from."""
    backbone: str
    """The name of the checkpoint or run that compares images; a public checkpoint's will do (`densewalk checkpoints` lists them)."""
    seed: Seed | None = None
    """The backbone's seed, if it is a run: by default its first; and the seed of k-means."""
    spacing_seconds: float = Field(default=1.0, gt=0)
    """Distance of the frames of a video that are looked at; only such frames are ever kept."""
    size: int = Field(default=224, ge=16)
    """Images are resized to a square of this side, whatever their shape (so does SSCD, https://arxiv.org/abs/2202.10261)."""
    duplicates: float | None = Field(default=None, gt=-1, le=1)
    """Two images at least this similar are near duplicates, and so is what a chain of them connects: the first of all stays.
    Null keeps all. A good value depends on the backbone: the receipt says how similar neighbors are."""
    retrieve: RetrievalSettings | None = None
    """Keep only what is like these images; null keeps all."""

    @model_validator(mode="after")
    def chooses_something(self) -> Self:
        """A curation that keeps everything is a typing error."""
        if self.duplicates is None and self.retrieve is None:
            raise ValueError("set duplicates, retrieve or both; a curation without either keeps everything")
        return self
