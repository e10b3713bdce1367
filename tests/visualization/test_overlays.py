"""Colors of label maps, tints of objects, and strips of images."""

import numpy as np
import pytest
from PIL import Image

from densewalk.data.palette import palette
from densewalk.visualization.overlays import (
    NOT_SCORED,
    Row,
    TrackedClip,
    object_colors,
    tint_objects,
    write_segmentation_strip,
    write_tracking_strip,
)
from densewalk.visualization.panels import read_legend
from tests.fixtures.helpers import shared


def test_palette_equals_the_loop():
    expected = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for position in range(8):
            for channel in range(3):
                expected[label, channel] |= (label >> (3 * position + channel) & 1) << (7 - position)
    assert np.array_equal(palette(), expected)
    assert palette(3).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert tuple(expected[255]) == NOT_SCORED


def test_palette_is_davis_s():
    mask = Image.open(next(shared("data/davis/Annotations/480p/schoolgirls").glob("*.png")))
    assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3)[:8], palette(8))


def test_strip_shows_all_rows_and_legend_the_labels_that_occur(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:], labels[:5] = 2, 255
    rows = [Row(f"row {i}", np.full((40, 60, 3), 200, np.uint8), labels, np.zeros((40, 60), np.int64)) for i in range(2)]
    write_segmentation_strip(tmp_path / "strip.png", rows, ["a", "b", "c"], ignore=255)
    picture = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    colors = {tuple(c) for c in picture.reshape(-1, 3)}
    assert {(200, 200, 200), tuple(palette()[2]), NOT_SCORED, (0, 0, 0)} <= colors
    assert tuple(palette()[1]) not in colors
    write_segmentation_strip(tmp_path / "again.png", rows, ["a", "b", "c"], ignore=255)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "strip.png").read_bytes()


def test_tint_equals_the_loop():
    rng = np.random.default_rng(0)
    frame, masks, colors = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), rng.random((3, 2, 3)), object_colors(3)
    masks[:, 1, 2] = 0
    picture = tint_objects(frame, masks, colors)
    for y in range(4):
        for x in range(6):
            held = masks[:, y // 2, x // 2]
            gray = float(frame[y, x] @ [0.299, 0.587, 0.114])
            tint = sum(m * c for m, c in zip(held, colors, strict=True)) / held.sum() if held.any() else 0
            expected = (1 - 0.7 * max(held)) * gray + 0.7 * max(held) * 255 * tint
            np.testing.assert_allclose(picture[y, x], np.broadcast_to(expected, 3), atol=0.51)
    assert len(set(picture[2, 4])) == 1  # nobody's patch stays gray


def test_tint_refuses_a_frame_of_broken_patches():
    with pytest.raises(ValueError, match="5 x 6 px is not made of 2 x 3"):
        tint_objects(np.zeros((5, 6, 3), np.uint8), np.zeros((1, 2, 3)), object_colors(1))


def test_tracking_strip_gives_each_object_its_color(tmp_path):
    masks = np.zeros((3, 2, 2, 4))
    for i in range(3):
        masks[i, :, :, i] = 1
    clip = TrackedClip("clip 0 of 1", np.zeros((2, 40, 80, 3), np.uint8), masks)
    write_tracking_strip(tmp_path / "deep" / "objects.png", [clip, clip])
    picture = np.asarray(Image.open(tmp_path / "deep" / "objects.png").convert("RGB"))
    found = {tuple(c) for c in picture.reshape(-1, 3)}
    # seven tenths of each color on black in the frames, and the colors themselves in the legend
    colors = 255 * object_colors(3)
    assert {tuple(c) for c in np.round(colors).astype(int).tolist()} | {(0, 0, 0)} <= found
    assert {tuple(c) for c in np.round(0.7 * colors).astype(int).tolist()} <= found
    write_tracking_strip(tmp_path / "again.png", [clip, clip])
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "deep" / "objects.png").read_bytes()


def test_a_strip_says_its_legend_and_where_it_begins(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 2
    rows = [Row("row", np.full((40, 60, 3), 200, np.uint8), labels, labels)]
    write_segmentation_strip(tmp_path / "strip.png", rows, ["a", "b", "c"], ignore=255)
    legend = read_legend(tmp_path / "strip.png")
    assert legend.colors == {"a": "#000000", "c": "#008000", "not scored": "#e0e0c0"}
    picture = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    assert 0 < legend.top < len(picture)
    assert (picture[legend.top :] != 255).any(), "it is below"
    assert (picture[legend.top - 8 : legend.top] != 255).any(), "close to the images"
    assert NOT_SCORED not in {tuple(c) for c in picture[: legend.top].reshape(-1, 3)}, "and only there"
    write_segmentation_strip(tmp_path / "whole.png", rows, ["a", "b", "c"])
    assert "not scored" not in read_legend(tmp_path / "whole.png").colors
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    assert read_legend(tmp_path / "other.png") is None
