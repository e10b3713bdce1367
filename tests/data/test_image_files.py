"""One reader of images and masks: every orientation, depth and kind of file, against what a viewer shows."""

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from densewalk.core.errors import UserError
from densewalk.data.image_files import TURNS, read_color_numbers, read_header, read_image, read_mask, require_depth_bits, require_fit
from densewalk.data.images import read_rgb

ORIENTATIONS = range(1, 9)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def colors(height=4, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path, array, orientation=1, **options):
    """Store an array with an EXIF tag."""
    tagged = {"exif": exif(orientation)} if orientation != 1 else {}
    Image.fromarray(array).save(path, **tagged, **options)
    return path


def shown(array, orientation):
    """What Pillow's own turn makes of it."""
    return np.asarray(Image.fromarray(array).transpose(TURNS[orientation]) if orientation in TURNS else Image.fromarray(array))


# -- orientation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_images_are_shown_as_viewers_do(tmp_path, name, orientation):
    options = {"lossless": True} if name == "a.webp" else {}
    path = write(tmp_path / name, colors(), orientation, **options)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert np.array_equal(read_rgb(path).permute(1, 2, 0).numpy(), expected)
    assert read_header(path).shown == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("drawn", ["shown", "stored", "tagged"])
@pytest.mark.parametrize("size", [(4, 6), (5, 5)])
def test_a_mask_lies_on_its_image_or_is_refused(tmp_path, orientation, drawn, size):
    """Every pixel's label is a function of its color, so that a mask which lies wrong is seen."""
    picture = colors(*size)
    stored = picture[..., 0]
    image = write(tmp_path / "a.png", picture, orientation)
    mask = write(tmp_path / "m.png", shown(stored, orientation) if drawn == "shown" else stored, orientation if drawn == "tagged" else 1)
    tells = orientation == 1 or drawn == "tagged" or (orientation >= 5 and size[0] != size[1])
    if not tells:
        for attempt in (read_mask, require_fit):
            with pytest.raises(
                UserError, match=rf"a\.png has the EXIF orientation {orientation}, and its mask .*m\.png would fit"
            ) as error:
                attempt(mask, image)
            assert "auto-orient" in str(error.value)
        return
    require_fit(mask, image)
    assert np.array_equal(read_mask(mask, image), np.asarray(read_image(image))[..., 0])


@pytest.mark.parametrize("array", [colors(), colors()[..., 0]])
def test_a_turned_tiff_is_refused(tmp_path, array):
    for read in (read_image, read_mask, read_header):
        with pytest.raises(UserError, match=r"a\.tif is a TIFF file with an orientation"):
            read(write(tmp_path / "a.tif", array, 6))
    assert read_image(write(tmp_path / "a.tif", array)).size == (6, 4)


def test_masks_turned_unlike_their_image_or_of_another_size_are_refused(tmp_path):
    image = write(tmp_path / "a.png", colors())
    for orientation in (3, 6):
        with pytest.raises(UserError, match=rf"m\.png has the EXIF orientation {orientation}, its image .*a\.png has 1"):
            read_mask(write(tmp_path / "m.png", colors()[..., 0], orientation), image)
    with pytest.raises(UserError, match=r"m\.png is 4x6, but .*a\.png is 6x4"):
        read_mask(write(tmp_path / "m.png", colors(6, 4)[..., 0]), image)
    with pytest.raises(UserError, match=r"m\.png is 7x4, but .*b\.jpg is 4x6"):
        read_mask(write(tmp_path / "m.png", colors(4, 7)[..., 0]), write(tmp_path / "b.jpg", colors(), 6))
    with pytest.raises(UserError, match="of a video frame has the EXIF orientation 3"):
        read_mask(write(tmp_path / "m.png", colors()[..., 0], 3))


def test_panoptic_masks_are_turned_alike(tmp_path):
    picture = colors()
    image = write(tmp_path / "a.png", picture, 6)
    write(tmp_path / "m.png", picture)
    expected = np.asarray(read_image(image)).astype(int) @ (1, 256, 65_536)
    assert np.array_equal(read_color_numbers(tmp_path / "m.png", image), expected)


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, tag):
    tags = Image.Exif()
    tags[0x0112] = tag
    Image.fromarray(colors()).save(tmp_path / "a.png", exif=tags)
    assert read_header(tmp_path / "a.png").shown == read_image(tmp_path / "a.png").size


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80))
def test_damaged_exif_is_no_error_and_one_rule(tmp_path, data):
    path = tmp_path / "a.png"
    Image.fromarray(colors()).save(path, exif=b"Exif\0\0" + data)
    assert read_header(path).shown == read_image(path).size


def test_a_tag_behind_the_pixels_counts(tmp_path):
    """PNG's chunks come in any order: the header alone must say the same as the decoded file."""
    path = write(tmp_path / "a.png", colors())
    tag_behind_pixels(path, 6)
    assert read_header(path).shown == read_image(path).size == (4, 6)


def tag_behind_pixels(path, orientation):
    plain, body = path.read_bytes(), b"eXIf" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(plain[:-12] + chunk + plain[-12:])


# -- depths and kinds --------------------------------------------------------------------------------------------------


def png(path: Path, rows: bytes, width: int, height: int, depth: int, kind: int) -> Path:
    """Write a PNG of any depth and color type, which Pillow cannot."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


@given(st.integers(0, 65_535))
def test_sixteen_bits_become_eight_alike_in_gray_and_color(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("depths")
    gray = png(folder / "gray.png", rows(np.full((2, 3), value)), 3, 2, 16, 0)
    found = [np.asarray(read_image(gray))]
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        values = np.full((2, 3 * channels), value)
        if kind in (4, 6):
            values[:, channels - 1 :: channels] = 40_000  # alpha
        found.append(np.asarray(read_image(png(folder / f"{kind}.png", rows(values), 3, 2, 16, kind))))
    assert all((image == value >> 8).all() for image in found)
    assert (read_mask(gray) == value).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["gray", "palette"])
def test_masks_hold_the_numbers_that_are_stored(tmp_path, depth, kind):
    """Pillow and OpenCV make shades of the numbers of a gray image of 2 or 4 bits: id 3 would be 51."""
    if kind == "palette" and depth == 16:
        return
    ids = np.arange(8).reshape(1, 8) % 2**depth if depth < 16 else np.arange(8).reshape(1, 8) * 9000
    bits = "".join(f"{int(v):0{depth}b}" for v in ids[0])
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    path = png(tmp_path / "m.png", row, 8, 1, depth, 0 if kind == "gray" else 3)
    if kind == "palette":
        data = path.read_bytes()
        body = b"PLTE" + bytes(range(200, 200 - 2**depth * 3 // 3, -1)[: 2**depth]) * 3 if depth < 8 else b"PLTE" + bytes(768)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        path.write_bytes(data[:33] + chunk + data[33:])
    assert read_mask(path).tolist() == ids.tolist()
    assert read_mask(path).dtype.kind == "u"


@pytest.mark.parametrize("name", ["plain.png", "late_tag.png", "plain.tif", "lzw.tif", "big.tif", "plain.pgm"])
def test_depth_of_16_bits_is_taken_as_it_is(tmp_path, name):
    path, values = tmp_path / name, np.array([[0, 1, 4000], [300, 40_000, 65_535]], np.uint16)
    if name == "big.tif":
        Image.frombytes("I;16B", (3, 2), values.astype(">u2").tobytes()).save(path)
    elif name == "plain.pgm":
        path.write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path, **({"compression": "tiff_lzw"} if "lzw" in name else {}))
    if name == "late_tag.png":
        tag_behind_pixels(path, 6)
    require_depth_bits(path, read_header(path), "1000 a meter", "save it again")
    assert np.array_equal(read_mask(path, image=path), np.rot90(values, -1) if name == "late_tag.png" else values)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int32.tif", "has 32 bits"),
        ("int32_lzw.tif", "has 32 bits"),
        ("float.tif", "has a floating-point number"),
        ("gray.png", "has 8 bits"),
        ("bits.png", "has 1 bit"),
        ("palette.png", "has a palette"),
        ("colors.png", "has RGB"),
        ("two_channels.png", "has RGBA"),
        ("scaled.pgm", "has no plain 16 bits"),  # Pillow makes 65535 of its 1000
        ("lossy.jp2", "has no plain 16 bits"),
    ],
)
def test_depth_of_other_bits_is_named(tmp_path, name, said):
    path, values = tmp_path / name, np.array([[0, 1, 400], [300, 700, 1000]], np.uint16)
    if name == "two_channels.png":
        png(path, b"".join(b"\0" + np.repeat(row, 2).astype(">u2").tobytes() for row in values), 3, 2, 16, 4)
    elif name == "scaled.pgm":
        path.write_bytes(b"P5 3 2 1000\n" + values.astype(">u2").tobytes())
    elif name == "lossy.jp2":
        Image.fromarray(values).save(path)
    else:
        kinds = {"int32": np.int32, "float": np.float32, "bits": bool}
        image = Image.fromarray(values.astype(next((kind for start, kind in kinds.items() if name.startswith(start)), np.uint8)))
        modes = {"palette.png": "P", "colors.png": "RGB"}
        image.convert(modes.get(name, image.mode)).save(path, **({"compression": "tiff_lzw"} if "lzw" in name else {}))
    with pytest.raises(UserError) as error:
        require_depth_bits(path, read_header(path), "1000 a meter", "save it again")
    assert str(error.value) == f"depth map {path} {said} a pixel; allowed: one channel of 16 bits, 1000 a meter; to do: save it again"


def test_alpha_and_palette_are_colors_of_an_image_and_no_mask(tmp_path):
    picture = colors()
    rgba = np.concatenate([picture, np.full((4, 6, 1), 7, np.uint8)], axis=2)
    assert np.array_equal(np.asarray(read_image(write(tmp_path / "a.png", rgba))), picture)
    assert read_image(write(tmp_path / "la.png", rgba[..., 2:])).mode == "RGB"
    for name in ("a.png", "la.png"):
        with pytest.raises(UserError, match=rf"{name} is a color image"):
            read_mask(tmp_path / name)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int) - picture).mean() < 60
    assert np.array_equal(np.asarray(read_image(write(tmp_path / "1.png", picture[..., 0] > 99)))[..., 0], (picture[..., 0] > 99) * 255)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("WEBP", {"lossless": True}), ("JPEG2000", {})])
def test_a_mask_of_a_lossy_format_is_refused_whatever_its_name(tmp_path, kind, options):
    Image.fromarray(colors()[..., 0]).save(tmp_path / "m.png", format=kind, **options)
    with pytest.raises(UserError, match=rf"m\.png is a {kind} file, which does not keep exact values"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(tmp_path, kind):
    first, *more = (Image.fromarray(colors(seed=seed)) for seed in range(3))
    first.save(tmp_path / "a.png", format=kind, save_all=True, append_images=more)
    for read in (read_image, read_mask, read_header):
        with pytest.raises(UserError, match=r"a\.png is an animation or has several pages"):
            read(tmp_path / "a.png")


def test_a_cameras_picture_with_previews_is_its_first(tmp_path):
    first, second = (Image.fromarray(colors(seed=seed)) for seed in range(2))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "b.jpg", format="JPEG")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg")), np.asarray(read_image(tmp_path / "b.jpg")))


@pytest.mark.parametrize("make", ["fifo", "socket", "folder", "nothing", "loop", "empty"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, make):
    path = tmp_path / "a.png"
    deeds = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nothing": lambda: path.symlink_to(tmp_path / "gone"),
        "loop": lambda: path.symlink_to(path),
        "empty": path.touch,
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    }
    deeds[make]()
    for read in (read_image, read_mask, read_header):
        with pytest.raises(UserError, match=r"a\.png"):
            read(path)


def named(read, path):
    """Read the file, or be told that it is this one."""
    try:
        read(path)
    except UserError as error:
        return path.name in str(error)
    return True


DAMAGE = {"at": st.integers(0, 400), "noise": st.binary(min_size=1, max_size=9), "cut": st.booleans()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"]), **DAMAGE)
def test_damaged_files_are_read_or_named(tmp_path, kind, at, noise, cut):
    path = tmp_path / "a.png"
    Image.fromarray(colors(16, 16)).save(path, format=kind)
    whole = path.read_bytes()
    at = at % len(whole)
    path.write_bytes(whole[:at] if cut else whole[:at] + noise + whole[at + len(noise) :])
    assert all(named(read, path) for read in (read_image, read_mask, read_header, read_color_numbers))
