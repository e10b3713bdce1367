"""Stretches of frames that belong together: segments of video files, sequences of frames, and images, which do not move."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_folder import ImageFolder, open_image_folder
from densewalk.data.receipts import SequencesReceipt, VideoReceipt
from densewalk.data.sources import Source
from densewalk.data.video.clips import VideoClips


@dataclass(frozen=True)
class Video:
    """A stretch of frames that belong together: `read` takes frame numbers, of which `start` to `start + length` are the video's.

    sequence: its number among those of a folder. still: it is one image, which is read as any frame.
    """

    read: Callable[[Sequence[int]], Tensor]
    start: int
    length: int
    sequence: int = 0
    still: bool = False


def videos_of(source: Source, seconds: float, least: int) -> list[Video]:
    """The videos of a source: a file's segments, a folder's sequences, or each image of a folder.

    Args:
        seconds: about the length of a segment. least: frames of the shortest segment.

    Raises:
        UserError: a video file without a segment of `least` frames.
    """
    receipt = source.receipt
    if isinstance(receipt, VideoReceipt):
        reader = VideoClips(receipt, 1, 1.0)
        parts = segments(receipt, seconds, least)
        if not parts:
            raise UserError(f"{source.name}: no usable part without a scene cut has {least} frames", todo="lower frames")
        return [Video(reader.read, start, end - start) for start, end in parts]
    if isinstance(receipt, SequencesReceipt):
        folders = FrameFolders(receipt.path, only=receipt.chosen)
        return [Video(partial(folders.read, i), 0, len(frames), i) for i, frames in enumerate(folders.sequences)]
    images = open_image_folder(receipt)
    return [Video(partial(repeat_image, images), i, 1, i, still=True) for i in range(len(images))]


def repeat_image(images: ImageFolder, indices: Sequence[int]) -> Tensor:
    """The first image asked for, as all frames."""
    return images[indices[0]].expand(len(indices), -1, -1, -1)


def segments(receipt: VideoReceipt, seconds: float, least: int) -> list[tuple[int, int]]:
    """Even pieces of the usable parts of a video, as [start, end) frames: about `seconds` long, without a cut, `least` frames or more.

    If a curation chose frames, only the pieces that hold one.
    """
    found = []
    for start, end in receipt.usable:
        edges = [start, *(cut for cut in receipt.cuts if start < cut < end), end]
        for a, b in pairwise(edges):
            count = max(1, round((b - a) / (seconds * receipt.fps)))
            marks = [a + (b - a) * i // count for i in range(count + 1)]
            found += [(x, y) for x, y in pairwise(marks) if y - x >= least]
    kept = receipt.kept
    return found if kept is None else [(x, y) for x, y in found if bisect_left(kept, x) < bisect_left(kept, y)]
