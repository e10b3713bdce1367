"""Colors and outlines of labels over photos: they can be told from what is below them, and are the same for all predictions."""

import numpy as np
import pytest
from PIL import Image

from densewalk.data.palette import palette
from densewalk.visualization.label_colors import CLEAR, LOW, oklab, overlay_colors
from densewalk.visualization.overlays import with_boxes
from densewalk.visualization.strips import draw_labels, write_rows


def photo(below, rest, size=(24, 36)):
    """A frame whose left half, label 1, has one color with a little noise, and its right half another."""
    noise = np.random.default_rng(0).integers(0, 12, (*size, 3))
    image = np.where(np.arange(size[1])[:, None] < size[1] // 2, np.array(below), np.array(rest)) // 2 * 2 + noise - 6
    labels = np.zeros(size, np.uint8)
    labels[6:18, 4 : size[1] // 2] = 1
    return np.clip(image, 0, 255).astype(np.uint8), labels


def test_oklab_equals_its_published_pairs():
    """White is (1, 0, 0), and gray has no color; red is (0.628, 0.225, 0.126) by the formula's author."""
    found = oklab(np.array([[255, 255, 255], [128, 128, 128], [255, 0, 0]], np.uint8))
    np.testing.assert_allclose(found[0], [1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(found[1, 1:], 0, atol=1e-4)
    np.testing.assert_allclose(found[2], [0.62796, 0.22486, 0.12585], atol=1e-3)


@pytest.mark.parametrize("below", CLEAR)
def test_no_label_has_the_color_of_what_is_below_it(below):
    image, labels = photo(below, (120, 120, 120))
    color = overlay_colors([image], [labels])[1]
    apart = np.linalg.norm(oklab(image[labels == 1]) - oklab(color[None]), axis=1)
    assert np.quantile(apart, LOW) > 0.2, "0.02 is a just noticeable difference"
    assert tuple(color) in CLEAR


def test_colors_equal_the_loop():
    image, labels = photo((213, 94, 0), (80, 160, 90))
    labels[:4, 20:] = 5
    found = overlay_colors([image, image[:, ::-1]], [labels, labels[:, ::-1]])
    free = [list(c) for c in CLEAR]
    chosen = []
    frames, maps = np.concatenate([image, image[:, ::-1]]), np.concatenate([labels, labels[:, ::-1]])
    for label in (1, 5, 2, 3, 4, 6, 7):
        pixels = frames[maps == label] if label in (1, 5) else frames.reshape(-1, 3)
        some = oklab(pixels[:: -(-len(pixels) // 1024)])
        score = {}
        for color in free:
            own = oklab(np.array([color], np.uint8))[0]
            others = [float(np.linalg.norm(own - oklab(np.array([c], np.uint8))[0])) / 2 for c in chosen]
            score[tuple(color)] = min([float(np.quantile([np.linalg.norm(p - own) for p in some], LOW)), *others])
        best = max(score, key=score.get)
        assert tuple(found[label]) == best
        chosen.append(best)
        free.remove(list(best))
    assert len({tuple(c) for c in found}) == 256
    assert found[0].tolist() == palette()[0].tolist()


def test_a_strip_s_colors_do_not_depend_on_the_prediction(tmp_path):
    image, labels = photo((30, 60, 30), (200, 200, 200), size=(240, 360))
    for name, predicted in (("a", 0 * labels), ("b", np.full_like(labels, 7))):
        write_rows(tmp_path / f"{name}.png", [([image], [labels]), ([image], [predicted])], width=1000)
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert a.shape == (480, 360, 3)
    assert np.array_equal(a[:240], b[:240])
    assert np.array_equal(a[240:], image), "without labels the photo is as it is"
    assert not np.array_equal(b[240:], image)


def test_a_label_is_tinted_outlined_and_parted_from_the_photo():
    image = np.full((24, 36, 3), 100, np.uint8)
    labels = np.zeros((24, 36), np.uint8)
    labels[6:18, 6:18], labels[6:18, 18:24] = 1, 2
    colors = np.zeros((256, 3), np.uint8)
    colors[1], colors[2] = (250, 0, 0), (0, 0, 250)
    drawn = draw_labels(image, labels, colors)
    for y in range(24):
        for x in range(36):
            window = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            label = labels[y, x]
            if label and (window != label).any():
                expected = colors[label]
            elif label:
                expected = np.round(0.6 * image[y, x] + 0.4 * colors[label])
            else:
                expected = 0 * image[y, x] if window.any() else image[y, x]
            assert drawn[y, x].tolist() == expected.tolist(), (y, x)


@pytest.mark.parametrize("paper", [(86, 180, 233), (255, 255, 255), (0, 0, 0)])
def test_a_box_is_seen_on_its_own_color(paper):
    image = np.full((120, 160, 3), paper, np.uint8)
    drawn = with_boxes(image, np.array([[40.0, 30.0, 100.0, 90.0]]), "#56b4e9")
    line = drawn[30:33, 70].tolist()
    assert [86, 180, 233] in line
    assert drawn[29, 70].tolist() == [0, 0, 0]
    assert drawn[60, 70].tolist() == list(paper), "the inside stays"
    assert (drawn != image).any()
