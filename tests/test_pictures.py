"""Colours of label maps and strips of pictures."""

import numpy as np
from PIL import Image

from densewalk.pictures import NOT_SCORED, Row, palette, segmentation_strip
from tests.helpers import shared


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
    segmentation_strip(tmp_path / "strip.png", rows, ["a", "b", "c"], ignore=255)
    picture = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    colours = {tuple(c) for c in picture.reshape(-1, 3)}
    assert {(200, 200, 200), tuple(palette()[2]), NOT_SCORED, (0, 0, 0)} <= colours
    assert tuple(palette()[1]) not in colours
    segmentation_strip(tmp_path / "again.png", rows, ["a", "b", "c"], ignore=255)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "strip.png").read_bytes()
