"""The one reader of image and mask files: upright RGB, and the numbers a mask stores. Free of torch.

Rules, for training, every evaluation, strips and the page alike (docs/data_layouts.md):

    image = read_image("a.jpg")                    # RGB, 8 bits, turned as its EXIF orientation says
    labels = read_mask("a.png", image="a.jpg")     # what the file stores, turned as the image is

Everything that is wrong with a file is a UserError that names it.
"""

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.storage.archives import split_archive
from densewalk.data.storage.places import open_file

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TODO = "download it again or remove it"
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COLORS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # modes that Pillow converts to RGB
GRAY = ("P", "L", "1", "I")  # modes of masks, besides 16 bits
KINDS = {"L": "8 bits", "P": "a palette", "1": "1 bit", "F": "a floating-point number", **dict.fromkeys(("I", "I;16"), "no plain 16 bits")}
LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000")  # their values are not those that were saved
EXACT = "an indexed or grayscale PNG whose pixel values are the labels"
UNTAG = "turn the pixels and remove the tag (exiftran -ai, or mogrify -auto-orient), or remove the tag if the labels fit the stored pixels"

Labels = Integer[np.ndarray, "height width"]
Numbers = Integer[np.ndarray, "_ _"]  # stored or turned


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels: stored width and height, Pillow's mode, EXIF orientation (1 to 8; 1 is upright).

    layout: how a pixel is stored, in Pillow's terms. A mode is what Pillow makes of it: `I` of 16 bits as of 32.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    layout: str = ""

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as a viewer shows the image."""
        return _turned_size(self.size, self.orientation)


def read_header(path: str | Path) -> Header:
    """Read size, mode and orientation without decoding the pixels."""
    with _open(path) as image:
        layout = _layout(image)
        if image.format == "PNG" and _has_late_text(path):
            _load(image, path)
        return replace(_header(image), layout=layout)


def read_image(path: str | Path, *, todo: str = TODO) -> Image.Image:
    """Read an image as RGB, upright (EXIF).

    Gray is repeated in the three channels, palettes are looked up, transparency is dropped, of 16 bits the upper 8 are kept.

    Raises:
        UserError: missing, damaged, no file, animated, or more than 16 bits per channel.
    """
    image = _load(_open(path, todo), path, todo)
    turn = TURNS.get(_orientation(image))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow and OpenCV do with 16-bit RGB
    elif image.mode not in COLORS:
        raise UserError(
            f"{path} has pixels of another kind ({image.mode})", allowed="8 or 16 bits per channel, gray, RGB or CMYK", todo=todo
        )
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette may hold transparent colors
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def read_mask(path: str | Path, image: str | Path | None = None) -> Labels:
    """Read the numbers that a mask stores, never its colors: an indexed or grayscale image of 1 to 16 bits, or of 32.

    Args:
        image: the image that the mask belongs to: the mask must have its size, and is turned as `mask_turn` says. None for a frame
            of a video, which has no EXIF.

    Raises:
        UserError: unreadable, in color, of a format that does not keep values, of another size, or turned unlike its image.
    """
    file = _open(path)
    factor = _gray_factor(file)
    _load(file, path)
    if file.format in LOSSY:
        raise UserError(f"mask {path} is a {file.format} file, which does not keep exact values", allowed=EXACT)
    if file.mode not in GRAY and not file.mode.startswith("I;16"):
        raise UserError(f"mask {path} is a color image ({file.mode})", allowed=EXACT)
    values = np.asarray(file)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    return _as_shown(values if factor == 1 else values // factor, path, _header(file), image)


def read_color_numbers(path: str | Path, image: str | Path | None = None) -> Int64[np.ndarray, "height width"]:
    """Red + 256 green + 256^2 blue of a panoptic PNG; `image` as for `read_mask`."""
    file = _open(path)
    kind = _raw_mode(file) or file.mode
    _load(file, path)
    if kind != "RGB" or file.format in LOSSY:
        lossy = f", {file.format}" if file.format in LOSSY else ""
        raise UserError(f"mask {path} is no panoptic PNG ({kind}{lossy})", allowed="RGB of 8 bits", todo="download it again")
    numbers = np.asarray(file, dtype=np.int64) @ (1, 256, 65_536)
    return _as_shown(numbers, path, _header(file), image)


def require_fit(mask: str | Path, image: str | Path) -> None:
    """Check by the headers alone that a mask has the size and orientation of its image."""
    mask_turn(mask, read_header(mask), image, read_header(image))


def mask_turn(mask: str | Path, header: Header, image: str | Path, picture: Header) -> int:
    """Return the EXIF orientation by which a mask's stored pixels have to be turned to lie on its upright image; 1 is not at all.

    | orientation of the mask file | the image's                                        | the mask is                             |
    | as the image's               | any                                                | turned like the image                   |
    | none                         | 5 to 8, and only the turned image has its size     | taken as it is: drawn as a viewer shows |
    | none                         | 5 to 8, and only the stored image has its size     | turned like the image: drawn on pixels  |
    | none                         | 2 to 4, or of a square image: both have its size   | refused: nothing tells which it is      |
    | another                      | any                                                | refused                                 |

    Raises:
        UserError: refused, or of another size.
    """
    if header.orientation == picture.orientation:
        _require_size(mask, header.size, image, picture.size)
        return picture.orientation
    if header.orientation != 1:
        found = f"mask {mask} has the EXIF orientation {header.orientation}, its image {image} has {picture.orientation}"
        raise UserError(found, todo="turn the pixels of both and remove the tags (mogrify -auto-orient)")
    if picture.size != picture.shown and header.size == picture.size:
        return picture.orientation
    _require_size(mask, header.size, image, picture.shown)
    if picture.size == picture.shown:
        found = f"{image} has the EXIF orientation {picture.orientation}, and its mask {mask} would fit before and after the turn"
        raise UserError(found, todo=UNTAG)
    return 1


def require_upright_labels(image: str | Path, header: Header, size: tuple[int, int] | None, where: str) -> None:
    """Check that boxes or polygons can only mean the upright image: `size` is the width and height that their file states.

    Raises:
        UserError: the image is tagged, and the stated size does not tell that the labels were made on the turned image; or the
            stated size is another one.
    """
    if header.orientation != 1 and (size is None or header.size == header.shown):
        raise UserError(f"{image} has the EXIF orientation {header.orientation}, and nothing tells whether {where} fits", todo=UNTAG)
    if size is not None and size != header.shown:
        swapped = " (width and height are swapped)" if size == header.shown[::-1] else ""
        raise UserError(f"{where} says {_by(size)}{swapped}, but {image} is {_by(header.shown)}", todo="correct the annotation file")


def require_depth_bits(path: str | Path, header: Header, units: str, todo: str) -> None:
    """Check that a depth map stores one channel of 16 bits.

    Raises:
        UserError: it stores something else, or what Pillow does not keep as it is: a PGM of another maximum, JPEG 2000.
    """
    if header.layout.startswith("I;16"):
        return
    kind = f"{header.layout[2:4]} bits" if header.layout.startswith("I;") else KINDS.get(header.mode, header.mode)
    raise UserError(f"depth map {path} has {kind} a pixel", allowed=f"one channel of 16 bits, {units}", todo=todo)


def _as_shown(values: Numbers, path: str | Path, header: Header, image: str | Path | None) -> Numbers:
    """Turn a mask as its image is turned."""
    if image is not None:
        return np.ascontiguousarray(_turned(values, mask_turn(path, header, image, read_header(image))))
    if header.orientation != 1:
        raise UserError(f"mask {path} of a video frame has the EXIF orientation {header.orientation}", todo=UNTAG)
    return values


def _turned(values: Numbers, orientation: int) -> Numbers:
    """Turn an array as TURNS turns an image."""
    quarter_turns = {3: 2, 6: 3, 7: 2, 8: 1}.get(orientation, 0)
    mirrored = {2: values[:, ::-1], 4: values[::-1], 5: values.T, 7: values.T}.get(orientation, values)
    return np.rot90(mirrored, quarter_turns)


def _turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def _require_size(mask: str | Path, found: tuple[int, int], image: str | Path, wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise UserError(f"{mask} is {_by(found)}, but {image} is {_by(wanted)}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# -- files -------------------------------------------------------------------------------------------------------------


def _open(path: str | Path, todo: str = TODO) -> Image.Image:
    """Open a regular file that holds one still image, also one in an archive."""
    try:
        if inside := split_archive(path):
            image = Image.open(io.BytesIO(inside[0].read(inside[1])))
        elif stat.S_ISREG(os.stat(path).st_mode):
            image = Image.open(path)
        else:  # a FIFO would wait for ever
            raise UserError(f"{path} is no file", todo="remove it")
        # cameras write MPO: the picture, then previews
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except FileNotFoundError as error:
        missing = "correct the path or download it" if todo == TODO else todo
        raise UserError(f"{path} cannot be read as an image: it does not exist", todo=missing) from error
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they come upon in damaged bytes
        raise _unreadable(path, error, todo) from error
    if several:
        raise UserError(f"{path} is an animation or has several pages", allowed="one image a file", todo="save its frames as files")
    if image.format == "TIFF" and _orientation(image) != 1:  # Pillow turns some kinds of them itself, and loses the tag of others
        raise UserError(f"{path} is a TIFF file with an orientation", todo="save it as PNG")
    return image


def _load(image: Image.Image, path: str | Path, todo: str = TODO) -> Image.Image:
    """Decode a file completely, so that a truncated one is an error here and not later."""
    try:
        image.load()
    except Exception as error:
        raise _unreadable(path, error, todo) from error
    return image


def _unreadable(path: str | Path, error: Exception, todo: str) -> UserError:
    return UserError(f"{path} cannot be read as an image: {error or type(error).__name__}", todo=todo)


def _header(image: Image.Image) -> Header:
    return Header(image.size, image.mode, _orientation(image))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 where there is none, or none that can be read: viewers then show the stored pixels."""
    try:
        found = Image.Image.getexif(image).get(ORIENTATION, 1)  # PNG's own would decode the pixels first
    except Exception:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


def _has_late_text(path: str | Path) -> bool:
    """Say whether a PNG has metadata behind its pixels, where a header alone does not show them."""
    with open_file(path) as file:
        file.seek(8)
        behind = False
        while len(start := file.read(8)) == 8:
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            behind = behind or kind == b"IDAT"
            if behind and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _gray_factor(image: Image.Image) -> int:
    """By how much Pillow multiplies the numbers of an image of 2 or 4 bits, to make them shades from 0 to 255."""
    return {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)


def _raw_mode(image: Image.Image) -> str:
    """Layout of the stored pixels before they are decoded, in Pillow's terms; empty if unknown."""
    tile = getattr(image, "tile", [])
    raw = tile[0].args if tile else ""
    return raw if isinstance(raw, str) else ""


def _layout(image: Image.Image) -> str:
    """The same, also of formats that say more: TIFF names the layout, then lines and compression."""
    tile = getattr(image, "tile", [])
    raw = tile[0].args if tile else ""
    first = raw[0] if isinstance(raw, tuple) and raw else raw
    return first if isinstance(first, str) else ""


def leaves_image(corners: Sequence[int | float], size: tuple[int, int], slack: float | None = None) -> bool:
    """Say whether x0, y0, x1, y1 leave an image by more than `slack` pixels; None: two pixels and a fiftieth of its side.

    Boxes of public annotations count from 0 or 1, are rounded, and are drawn a little over the border.

    Args:
        size: width and height.
    """
    wide, high = (2 + side / 50 if slack is None else slack for side in size)
    return min(corners[0] + wide, corners[1] + high) < 0 or corners[2] > size[0] + wide or corners[3] > size[1] + high
