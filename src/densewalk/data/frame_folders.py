"""Videos as folders of numbered images, in the layout of DAVIS and YouTube-VOS."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.file_lists import frames_in_order
from densewalk.data.image_folder import ImageFolder
from densewalk.data.images import read_rgb


class FrameFolders:
    """Sequences of frames: every folder with images below `root` is one.

    Attributes:
        names: the sequences' folders relative to `root`, sorted.
        sequences: for each the paths of its frames, sorted by number.

    Args:
        only: names of the sequences to use; all by default.

    Raises:
        UserError: no such folder, no image in it, masks among the frames' folders, two frames of one
            number, or a name in `only` that is not there.
    """

    def __init__(self, root: str | Path, *, only: Collection[str] | None = None) -> None:
        images = ImageFolder(root)
        self.root = images.root
        folders: dict[str, list[str]] = {}
        for name in images.names:
            folders.setdefault(os.path.dirname(name), []).append(name)
        _require_no_masks(self.root, folders)
        missing = sorted(set(only or ()) - folders.keys())
        if missing:
            raise UserError(f"{root} has no sequence {missing[0]} ({len(missing)} of {len(only or ())} listed ones are missing)")
        self.names = sorted(folders if only is None else only)
        self.sequences = [[os.path.join(self.root, name) for name in frames_in_order(folders[folder], root)] for folder in self.names]

    def __len__(self) -> int:
        return len(self.sequences)

    def read(self, sequence: int, indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """Read frames of one sequence in the order asked for; they must have one size."""
        paths = [self.sequences[sequence][i] for i in indices]
        frames = [read_rgb(path) for path in paths]
        for path, frame in zip(paths, frames, strict=True):
            if frame.shape != frames[0].shape:
                found = f"{path} is {_size(frame)}, but {paths[0]} is {_size(frames[0])}"
                raise UserError(found, allowed="frames of one size in each folder")
        return torch.stack(frames)


class FrameClips(Dataset[Tensor]):
    """All clips of some sequences, one for each frame from which a whole clip follows.

    `[i]` is uint8 [frames, 3, height, width] RGB. Sequences shorter than a clip have none.

    Args:
        frames: per clip. stride: from one frame of a clip to the next.

    Raises:
        UserError: no sequence is long enough; later, a frame that cannot be read or has another size.
    """

    def __init__(self, folders: FrameFolders, frames: int, stride: int) -> None:
        self.folders = folders
        self.span = range(0, frames * stride, stride) if frames > 1 else range(1)
        lengths = [len(sequence) for sequence in folders.sequences]
        self.starts = [(sequence, start) for sequence, length in enumerate(lengths) for start in range(length - self.span[-1])]
        if not self.starts:
            found = f"a clip of {frames} frames, every {stride} frames, takes {self.span[-1] + 1}; the longest sequence has {max(lengths)}"
            raise UserError(f"{folders.root}: {found}", todo="take fewer frames or a smaller spacing")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> UInt8[Tensor, "frames 3 height width"]:
        sequence, start = self.starts[index]
        return self.folders.read(sequence, [start + n for n in self.span])


def _require_no_masks(root: Path, folders: Collection[str]) -> None:
    """Raise if a benchmark's folder was given with its masks, which are no frames to train on."""
    masks = next((folder for folder in sorted(folders) if "Annotations" in Path(folder).parts), None)
    if masks is not None:
        frames = sorted({str(Path(f).parent) for f in folders if "JPEGImages" in Path(f).parts})
        allowed = ", ".join(str(root / f) for f in frames) or "a folder of frames alone"
        raise UserError(
            f"{root} holds masks ({masks}), which would be taken for a video", allowed=allowed, todo="point `source` to the frames"
        )


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
