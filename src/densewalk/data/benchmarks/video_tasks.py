"""Videos whose objects are given by masks, each in the frame where it enters: YouTube-VOS and MOSE.

    YouTube-VOS/{train,valid}/{JPEGImages,Annotations}/{video}/00000.{jpg,png}, YouTube-VOS/{train,valid}/meta.json
    MOSE/{train,valid}/{JPEGImages,Annotations}/{video}/00000.{jpg,png}        objects are those of the first frame's mask

The validation sets have the given masks only; where a mask is there for every frame, predictions can be scored here. Listing checks
every file's presence and size, by their headers, and that each given mask shows its object; every error names the file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.files import parse_json
from densewalk.data.benchmarks.paths import choose_names, existing_file, existing_folder, read_text, require_inside, subfolders
from densewalk.data.benchmarks.video_objects import VOID, LabelledVideo, Mask, Masks, check_sizes
from densewalk.data.file_lists import by_key, find_files, frames_in_order
from densewalk.data.image_files import EXTENSIONS

MOST_OBJECTS = VOID - 1


class MetaObject(BaseModel):
    """An object of meta.json: its category, and the frames that show it, the first of which its mask is given in."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    category: str = ""
    frames: list[str] = Field(min_length=1)


class MetaVideo(BaseModel):
    """The objects of a video by their numbers in the masks."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    objects: dict[str, MetaObject] = Field(min_length=1)


class Meta(BaseModel):
    """YouTube-VOS's meta.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    videos: dict[str, MetaVideo] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """An object: its number in the masks, and the number of the frame in which it is given."""

    number: int
    first: int
    category: str = ""


@dataclass(frozen=True)
class VideoTask:
    """A video and its objects.

    masks: by number of the frame. written: numbers of the frames that are predicted. entering: numbers of those in which an object is
    given, also one that is left out here.
    """

    video: LabelledVideo
    masks: dict[int, Path]
    entries: tuple[Entry, ...]
    written: tuple[int, ...]
    entering: frozenset[int]

    def __len__(self) -> int:
        return len(self.video)

    @property
    def name(self) -> str:
        """Of the video."""
        return self.video.name

    @property
    def start(self) -> int:
        """Number of the first frame that an object is given in."""
        return min(entry.first for entry in self.entries)

    @property
    def complete(self) -> bool:
        """True where every predicted frame has a mask."""
        return all(number in self.masks for number in self.written)

    @cached_property
    def numbers(self) -> np.ndarray:
        """What stands for each number of the masks here: 1 for the first object, 2 for the next; 0 for what is none."""
        table = np.zeros(VOID + 1, np.uint8)
        table[[entry.number for entry in self.entries]] = np.arange(1, len(self.entries) + 1)
        return table

    def mask(self, frame: int) -> Mask:
        """The objects 1, 2, ... in a frame that has a mask."""
        one = LabelledVideo(self.name, [self.video.frames[frame]], [self.masks[frame]])
        return self.numbers[one.mask(0)]

    def given(self) -> dict[int, Mask]:
        """Masks of the objects that enter, by the number of their frame; what else these frames show is not given."""
        found = {}
        for frame in sorted({entry.first for entry in self.entries}):
            entering = np.zeros(len(self.entries) + 1, bool)
            entering[1:] = [entry.first == frame for entry in self.entries]
            mask = self.mask(frame)
            found[frame] = np.where(entering[mask], mask, np.uint8(0))
        return found

    def truth(self) -> Masks:
        """Masks of all predicted frames."""
        return np.stack([self.mask(number) for number in self.written])

    def as_in_masks(self, labels: Masks) -> Masks:
        """Labels with the numbers that the masks have."""
        return np.array([0, *(entry.number for entry in self.entries)], np.uint8)[labels]


def list_youtube_tasks(
    root: str | Path, split: str, *, only: Sequence[str] | None = None, fifth: bool = False, first_only: bool = False
) -> list[VideoTask]:
    """List the videos of meta.json.

    Args:
        only: these videos. fifth: see `smallest_hashes`. first_only: leave out objects that enter after the first ones.

    Raises:
        UserError: meta.json names a frame, or a mask, that is not there; the message says which.
    """
    folder = existing_folder(Path(root) / split, "YouTube-VOS's folder")
    meta = existing_file(folder / "meta.json")
    videos = read_meta(meta).videos
    names = choose_names(smallest_hashes(videos) if fifth else sorted(videos), only, meta)
    images, masks = existing_folder(folder / "JPEGImages"), existing_folder(folder / "Annotations")
    return [_youtube_task(images, masks, name, videos[name], meta, first_only=first_only) for name in names]


def read_meta(path: Path) -> Meta:
    """Read meta.json; UserError if it has another form."""
    try:
        return Meta.model_validate(parse_json(read_text(path)))
    except (RecursionError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise UserError(f"{path} is not JSON: {error}", todo="download it again") from error
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        allowed = '{"videos": {name: {"objects": {"1": {"category": ..., "frames": ["00000", ...]}}}}}'
        raise UserError(f"{path}: {where}: {first['msg']}", allowed=allowed, todo="download it again") from error


def smallest_hashes(names: Iterable[str]) -> list[str]:
    """The fifth of the names with the smallest SHA-256, sorted: a choice that anybody can repeat."""
    ordered = sorted(names, key=lambda name: sha256(name.encode()).hexdigest())
    return sorted(ordered[: max(1, round(len(ordered) / 5))])


def _youtube_task(images: Path, masks: Path, name: str, found: MetaVideo, meta: Path, *, first_only: bool) -> VideoTask:
    require_inside(name, f"{meta}: videos")
    files = _files(images, masks, name)
    place = {path.stem: number for number, path in enumerate(files[0])}
    entries, written = [], set()
    for number, thing in found.objects.items():
        where = f"{meta}: video {name}, object {number}"
        if not number.isdecimal() or not 0 < int(number) <= MOST_OBJECTS:
            raise UserError(f"{where} is no number of an object", allowed=f"1 to {MOST_OBJECTS}", todo="download it again")
        if missing := [frame for frame in thing.frames if frame not in place]:
            raise UserError(f"{where} names frame {missing[0]}, which {images / name} has not", todo="download the video again")
        numbers = sorted(place[frame] for frame in thing.frames)
        entries.append(Entry(int(number), numbers[0], thing.category))
        written.update(numbers)
    entering = frozenset(entry.first for entry in entries)
    if first_only:
        entries = [entry for entry in entries if entry.first == min(entering)]
    entries.sort(key=lambda entry: entry.number)
    task = VideoTask(LabelledVideo(name, files[0], []), files[1], tuple(entries), tuple(sorted(written)), entering)
    _require_given(task, masks / name, f"according to {meta}")
    return task


def list_mose(root: str | Path, split: str, *, only: Sequence[str] | None = None, fifth: bool = False) -> list[VideoTask]:
    """List the videos of a split, with the objects of their first masks."""
    folder = existing_folder(Path(root) / split, "MOSE's folder")
    images, masks = existing_folder(folder / "JPEGImages"), existing_folder(folder / "Annotations")
    names = subfolders(masks)
    names = choose_names(smallest_hashes(names) if fifth else names, only, masks)
    return [_mose_task(images, masks, name) for name in names]


def _mose_task(images: Path, masks: Path, name: str) -> VideoTask:
    frames, labels = _files(images, masks, name)
    if 0 not in labels:
        raise UserError(f"{masks / name / frames[0].stem}.png does not exist: the mask of the first frame", todo="download the video again")
    shown = np.unique(LabelledVideo(name, frames[:1], [labels[0]]).mask(0))
    entries = tuple(Entry(int(number), 0) for number in shown if number)
    if not entries:
        raise UserError(f"mask {labels[0]} has no object", todo="the first frame's mask must show every object to follow")
    return VideoTask(LabelledVideo(name, frames, []), labels, entries, tuple(range(len(frames))), frozenset({0}))


def _files(images: Path, masks: Path, name: str) -> tuple[list[Path], dict[int, Path]]:
    """Files of frames, in the order of their numbers, and of masks, by the number of their frame; all are of one size."""
    images, masks = existing_folder(images / name), existing_folder(masks / name)
    frames = by_key(images, frames_in_order(find_files(images, EXTENSIONS, below=False), images))
    labels = by_key(masks, find_files(masks, (".png",), below=False))
    if not frames:
        raise UserError(f"{images} has no frame ({' '.join(EXTENSIONS)})")
    if alone := [key for key in labels if key not in frames]:
        raise UserError(
            f"{masks / labels[alone[0]]} is a mask without a frame: {images} has no {alone[0]}", todo="download the video again"
        )
    paths = [images / file for file in frames.values()]
    found = {number: masks / labels[key] for number, key in enumerate(frames) if key in labels}
    check_sizes(paths, [(paths[number], mask) for number, mask in found.items()])
    return paths, found


def _require_given(task: VideoTask, folder: Path, why: str) -> None:
    """Require that each object is in the mask of its first frame."""
    for first in sorted({entry.first for entry in task.entries}):
        if first not in task.masks:
            path = folder / f"{task.video.frames[first].stem}.png"
            raise UserError(f"{path} does not exist: an object enters there {why}", todo="download the video again")
        shown = set(np.unique(task.mask(first)).tolist())
        for number, entry in enumerate(task.entries, start=1):
            if entry.first == first and number not in shown:
                found = f"mask {task.masks[first]} does not show object {entry.number}, which enters there {why}"
                raise UserError(found, todo="download the video again")
