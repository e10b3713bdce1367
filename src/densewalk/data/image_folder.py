"""Folders of images."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.images import EXTENSIONS, read_rgb

# -- folders ---------------------------------------------------------------------------------------------------------


class ImageFolder(Dataset[Tensor]):
    """All pictures below a folder, sorted by path; `[i]` is uint8 [3, height, width] RGB.

    Args:
        receipt: `check_images`'s, with `kept` (ascending numbers) for those pictures only.

    Raises:
        UserError: no such folder, no picture in it, or other ones than those the kept were chosen from; later, a picture that
            cannot be read.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = EXTENSIONS, *, receipt: Mapping[str, Any] | None = None) -> None:
        self.root = _existing(Path(root))
        # strings, not paths: a million of them are copied to every worker
        self.names = sorted(_pictures(self.root, extensions))
        if not self.names:
            raise UserError(f"{root} holds no picture", allowed=" ".join(extensions), todo="correct `source` or download the pictures")
        if receipt is not None and "kept" in receipt:
            if listing(self.names) != receipt["listing"]:
                raise UserError(f"{root} has changed since its pictures were chosen", todo="delete its receipt in results/data")
            self.names = [self.names[i] for i in receipt["kept"]]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return read_rgb(self.root / self.names[index])


def listing(names: Sequence[str]) -> str:
    """A fingerprint of a folder: which files there are, not what is in them."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _existing(root: Path) -> Path:
    if root.is_dir():
        return root
    there = next(parent for parent in root.absolute().parents if parent.is_dir())
    found = sorted(p.name for p in there.iterdir() if p.is_dir())[:8]
    raise UserError(
        f"folder {root} does not exist",
        allowed=f"folders in {there}: {', '.join(found) or 'none'}",
        todo="correct `source` or download the pictures",
    )


def _pictures(root: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Paths relative to `root`; links are followed, hidden files are not pictures."""
    for folder, _, files in os.walk(root, followlinks=True):
        below = os.path.relpath(folder, root)
        for file in files:
            if file.lower().endswith(tuple(extensions)) and not file.startswith("."):
                yield os.path.normpath(os.path.join(below, file))
