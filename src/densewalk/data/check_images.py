"""Check an image folder before anything is trained on it, and write its receipt."""

from pathlib import Path
from typing import Any, Literal

from densewalk.core.errors import UserError
from densewalk.core.files import write_json
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_folder import ImageFolder, listing

# pictures that `check_images` opens, spread over the folder
SAMPLE = 16


def check_images(
    root: str | Path,
    receipt_path: str | Path,
    layout: Literal["pictures", "sequences"] = "pictures",
    chosen: str | Path | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    """Look at a folder before anything is trained on it: list it, open some pictures, write the receipt.

    Args:
        chosen: a text file with the names of the sequences to use. fps: their frames a second, if known.

    Returns:
        The receipt: kind, name, path, files, `listing` (sha256 of all names: adding a file changes it), smallest and largest
        [width, height] of the opened pictures, and for sequences their number, their shortest and longest length, the
        names of those that were chosen (None for all), and fps.

    Raises:
        UserError: the folder is missing (named with what is there instead), empty, or a picture cannot be read.
    """
    folder = ImageFolder(root)
    sample = sorted({i * (len(folder) - 1) // (SAMPLE - 1) for i in range(SAMPLE)})
    sizes = sorted((list(folder[i].shape[:0:-1]) for i in sample), key=lambda size: size[0] * size[1])
    receipt: dict[str, Any] = {
        "kind": "images" if layout == "pictures" else "sequences",
        "name": Path(receipt_path).stem,
        "path": str(root),
        "files": len(folder),
        "listing": listing(folder.names),
        "smallest": sizes[0],
        "largest": sizes[-1],
    }
    if layout == "sequences":
        names = read_list(chosen) if chosen is not None else None
        lengths = [len(sequence) for sequence in FrameFolders(root, only=names).sequences]
        receipt |= {"sequences": len(lengths), "shortest": min(lengths), "longest": max(lengths), "chosen": names, "fps": fps}
    write_json(receipt_path, receipt)
    return receipt


def read_list(path: str | Path) -> list[str]:
    """The names in a text file, one a line, e.g. DAVIS's ImageSets/2017/train.txt.

    Raises:
        UserError: the file is missing or empty.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"list {path} is no text", todo="correct `sequence_list` or download it again") from error
    except FileNotFoundError as error:
        raise UserError(f"list {path} does not exist", todo="correct `sequence_list` or download it") from error
    if not names:
        raise UserError(f"list {path} is empty", todo="correct `sequence_list` or leave it out")
    return names
