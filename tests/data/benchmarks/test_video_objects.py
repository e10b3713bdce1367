"""YouTube-VOS's layout and pictures of label maps; DAVIS's layout is tested with its evaluation (test_davis.py)."""

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.video_objects import LabelledVideo, list_davis, list_youtube_vos, write_labels
from densewalk.visualization.strips import write_strip
from tests.fixtures.helpers import shared


def pictures(folder, numbers, size=(20, 30)):
    folder.mkdir(parents=True)
    for n in numbers:
        Image.fromarray(np.full((*size, 3), n, np.uint8)).save(folder / f"{n:05d}.jpg")


@pytest.fixture
def root(tmp_path):
    pictures(tmp_path / "train/JPEGImages/aa", range(0, 30, 5))
    masks = np.zeros((6, 20, 30), np.uint8)
    masks[2:, :5, :5] = 2
    masks[:, 10:] = 255
    write_labels(tmp_path / "masks", masks)
    (tmp_path / "train/Annotations/aa").mkdir(parents=True)
    for i in (0, 2, 4):  # every other frame has a mask
        (tmp_path / f"masks/{i:05d}.png").rename(tmp_path / f"train/Annotations/aa/{5 * i:05d}.png")
    return tmp_path


def test_youtube_vos_takes_frames_with_a_mask(root):
    (sequence,) = list_youtube_vos(root)
    assert [f.name for f in sequence.frames] == ["00000.jpg", "00010.jpg", "00020.jpg"]
    assert sequence.image(1).mean() == pytest.approx(10, abs=2)
    assert np.unique(sequence.truth()).tolist() == [0, 2]
    assert np.unique(sequence.truth(keep_void=True)).tolist() == [0, 2, 255]


def test_missing_parts_are_named(root):
    with pytest.raises(UserError, match=r"does not list bb; allowed: aa"):
        list_youtube_vos(root, only=["bb"])
    with pytest.raises(UserError, match=r"val does not exist"):
        list_youtube_vos(root, split="val")
    for path in (root / "train/Annotations/aa").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"JPEGImages/aa has no frame .* with a mask"):
        list_youtube_vos(root)


def test_labels_round_trip(root):
    labels = np.arange(600, dtype=np.uint16).reshape(1, 20, 30).astype(np.uint8)
    write_labels(root / "out", labels)
    sequence = LabelledVideo("x", [], [root / "out/00000.png"])
    assert np.array_equal(sequence.mask(0, keep_void=True), labels[0])


def test_strip_has_a_row_for_each_label_map(root):
    (sequence,) = list_youtube_vos(root)
    write_strip(root / "strip.png", sequence, [sequence.truth(), 1 - sequence.truth() // 2], shown=2)
    assert Image.open(root / "strip.png").size == (60, 40)


def test_real_davis_is_listed():
    names = [s.name for s in list_davis(shared("data/davis"))]
    assert names == ["blackswan", "libby", "schoolgirls"]
