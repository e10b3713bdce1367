"""Settings of the images that are drawn of every backbone's features."""

from typing import Annotated

from pydantic import Field

from densewalk.core.settings import Settings, Unique


class PictureSettings(Settings):
    """The same few images for every run, so that backbones can be compared by eye. They change no number."""

    sources: Annotated[list[str], Unique] | None = None
    """Names of videos or image folders; all by default."""
    images: int = Field(default=4, ge=0, le=12)
    """Images shown, evenly spread over the sources and within them; 0 draws none."""
    searched: int = Field(default=24, ge=2)
    """Images in which the nearest patches are searched."""
    short_side: int = Field(default=320, ge=32)
    """Shorter side of the network's input in pixels, rounded to whole patches."""
    components: int = Field(default=24, ge=0, le=64)
    """Numbers that are kept of each patch at most, so that the page can be asked which patches are similar to one; 0 keeps none."""
    similarity_error: float = Field(default=0.05, ge=0, le=1)
    """95 % of the similarities on the page are at most so far from the cosine, by as few and as coarse numbers as do it. Where `components`
    numbers cannot, 1.1 times what they reach."""
    clip_frames: int = Field(default=6, ge=0, le=16)
    """Frames of one clip of the first video, through which a patch's similarity is shown; 0 takes none."""
    clip_spacing: float = Field(default=0.5, gt=0)
    """Seconds between two frames of the clip."""
