"""Folders of images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS
from densewalk.data.images import read_rgb
from densewalk.data.receipts import ImagesReceipt
from densewalk.data.storage.places import advice_on_archives, is_folder, resolve


class ImageFolder(Dataset[Tensor]):
    """All images below a folder or in a tar or zip archive, sorted by path; `[i]` is uint8 [3, height, width] RGB.

    Raises:
        UserError: no such folder, or no image in it; later, an image that cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = _existing(Path(root))
        # strings, not paths: a million of them are copied to every worker
        self.names = find_images(self.root)
        if not self.names:
            raise UserError(f"{root} holds no image", allowed=" ".join(EXTENSIONS), todo="correct `source` or download the images")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return read_rgb(self.root / self.names[index])


def open_image_folder(receipt: ImagesReceipt) -> ImageFolder:
    """Open a checked folder; of a curated one, which must not have changed, what was kept."""
    folder = ImageFolder(receipt.path)
    if receipt.kept is not None:
        if hash_names(folder.names) != receipt.listing:
            raise UserError(f"{folder.root} has changed since its images were chosen", todo="delete its receipt in results/data")
        folder.names = [folder.names[i] for i in receipt.kept]
    return folder


def find_images(root: str | Path) -> list[str]:
    """Find all image files below a folder; see `find_files`."""
    return find_files(root, EXTENSIONS)


def hash_names(names: Sequence[str]) -> str:
    """Sha256 of the names of a folder's files: which there are, not what is in them."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _existing(root: Path) -> Path:
    place = resolve(root)
    if is_folder(place):
        return place
    if advice := advice_on_archives(root):
        raise UserError(f"folder {root} does not exist", todo=advice)
    parent = next(parent for parent in root.absolute().parents if parent.is_dir())
    found = sorted(p.name for p in parent.iterdir() if p.is_dir())[:8]
    raise UserError(
        f"folder {root} does not exist",
        allowed=f"folders in {parent}: {', '.join(found) or 'none'}",
        todo="correct `source` or download the images",
    )
