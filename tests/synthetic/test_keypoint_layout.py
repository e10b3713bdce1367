"""Points of one thing in two images: through the cameras, not hidden, and perfect features find all of them."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.data.benchmarks.keypoints import read_pairs
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.correspondence import evaluate as correspondence
from densewalk.evaluations.correspondence.settings import CorrespondenceSettings
from densewalk.models.interface import Network
from densewalk.models.loading import create
from densewalk.synthetic.city.correspondence import Sight, follow, rigid_things, sight_of
from densewalk.synthetic.city.raster import Camera, rotation
from densewalk.synthetic.city.walk import Walk
from densewalk.synthetic.generate import coco_categories
from densewalk.synthetic.keypoint_layout import SHORTEST, KeypointLayout

NAMES = {c["id"]: c["name"] for c in coco_categories()}
AXES = np.eye(3, 4)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A walk of six frames, and what was written of it."""
    root = tmp_path_factory.mktemp("pairs")
    layout, walk = KeypointLayout(root, NAMES, most=6), Walk((3,), seconds=8.0, fps=2.0, width=200, height=120)
    frames = [walk.frame(i) for i in range(6)]
    layout.add("walk", walk, 0, frames)
    return root, walk, frames, layout.finish()


# -- geometry ----------------------------------------------------------------------------------------------------------


def nearest_sheet(x, camera_x):
    """Which of two sheets a ray to place x at depth 1 meets first: 4 m away with x in [-1, 0], 8 m away with x in [-3, 3]; 0 if none."""
    for depth, low, high in ((4.0, -1.0, 0.0), (8.0, -3.0, 3.0)):
        if low <= camera_x + depth * x <= high:
            return depth
    return 0.0


def sheets(camera_x, width=64, height=24):
    """A thing of these two sheets, as a camera sees it that looks north."""
    camera = Camera(np.array([camera_x, 0.0, 0.0]), rotation(0.0, 0.0, 0.0), 40.0, width, height, 0.0)
    row = np.array([nearest_sheet((c + 0.75 - width / 2) / 40, camera_x) for c in range(width)])
    depth = np.repeat(row[None], height, axis=0)
    return Sight(camera, AXES, depth > 0, depth)


def test_a_thing_hides_a_part_of_itself():
    source, target = sheets(-2.5), sheets(0.5)
    places, found, seen = follow(source, target)
    hidden = shown = 0
    for (x, y), (u, v), is_seen in zip(places, found, seen, strict=True):
        depth = nearest_sheet((x - 32) / 40, -2.5)
        across = -2.5 + depth * (x - 32) / 40
        assert (u, v) == pytest.approx(((across - 0.5) / depth * 40 + 32, y))
        assert not is_seen or nearest_sheet((u - 32) / 40, 0.5) == depth
        column, apart = int(np.floor(u - 0.75 + 1e-9)), u - 0.75
        around = [nearest_sheet((c + 0.75 - 32) / 40, 0.5) for c in (column, column + 1)] if 0 <= column < 63 else [0.0]
        weighted = set(around[:1] if abs(apart - column) < 1e-6 else around)
        assert is_seen == (0 not in around and weighted == {depth}), "seen wherever this sheet alone is around the place"
        hidden += not is_seen and depth == 8 and 0 <= u < 64
        shown += bool(is_seen)
    assert hidden > 50
    assert shown > 200


def test_points_of_the_city_lie_on_the_same_paint(city):
    """The color at both places is that of one point of a texture; at another point of the same thing it is not."""
    _, walk, frames, _ = city
    same, other = [], []
    for first in range(4):
        for identity in rigid_things(walk, frames[first]):
            sights = [sight_of(walk, i, frames[i], identity) for i in (first, first + 2)]
            places, found, seen = follow(*sights)
            if seen.sum() >= 30:
                before, after = color_at(frames[first].rgb, places[seen]), color_at(frames[first + 2].rgb, found[seen])
                same.append(np.median(np.abs(before - after).mean(1)))
                other.append(np.median(np.abs(before - np.random.default_rng(0).permutation(after)).mean(1)))
    assert len(same) >= 6
    assert np.mean(same) < 0.3 * np.mean(other)


def color_at(image, places):
    """The color at places x, y from the top left corner, between the pixels' centers."""
    x, y = (places - 0.5).astype(np.float32).T
    return cv2.remap(image, x[:, None], y[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0].astype(float)


# -- layout ------------------------------------------------------------------------------------------------------------


def test_the_layout_is_spairs(city):
    root, _, frames, receipt = city
    pairs = read_pairs(root, "test")
    assert sum(receipt["pairs"].values()) == len(pairs) >= 6
    assert receipt["points"] == sum(len(pair.source_points) for pair in pairs)
    assert receipt["images"] == len(list((root / "SPair-71k/JPEGImages").rglob("*.jpg")))
    for pair in pairs:
        assert 4 <= len(pair.source_points) <= 6
        assert max(pair.box[2:] - pair.box[:2]) >= SHORTEST
        inside = (pair.target_points >= pair.box[:2]) & (pair.target_points <= pair.box[2:])
        assert inside.all()
        frame = frames[int(pair.target.stem.removeprefix("walk_"))]
        columns, rows = np.round(pair.target_points - 0.75).astype(int).T
        (seen,) = set(frame.instances[rows, columns].tolist())
        assert NAMES[frame.coco[seen]] == pair.category
    content = json.loads(next((root / "SPair-71k/PairAnnotation/test").iterdir()).read_text())
    assert content["viewpoint_variation"] in (0, 1, 2)


def test_a_sequence_without_a_common_point_writes_no_list(tmp_path):
    assert KeypointLayout(tmp_path, NAMES, most=6).finish() == {"pairs": {}, "points": 0, "images": 0}
    assert not list(tmp_path.iterdir())


# -- perfect features through the whole evaluation ---------------------------------------------------------------------


class SurfaceFeatures(Network):
    """A position for each pixel: which thing is there, and which of its points, so that the cosine falls with their distance."""

    def know(self, walk, frames, root):
        self.multiple, self.maps, self.computed = 1, {}, 0
        for path in (root / "SPair-71k/JPEGImages").rglob("*.jpg"):
            number = int(path.stem.removeprefix("walk_"))
            self.maps[np.asarray(Image.open(path)).tobytes()] = surface(walk, number, frames[number])

    def dense(self, images):
        self.computed += 1
        shown = images[0] * torch.tensor(self.statistics.std)[:, None, None] + torch.tensor(self.statistics.mean)[:, None, None]
        return self.maps[(255 * shown).round().byte().permute(1, 2, 0).numpy().tobytes()][None]


def surface(walk, number, frame):
    """Cosines and sines of the things' own coordinates at three scales, and a random code of each thing."""
    height, width = frame.depth.shape
    found = np.zeros((height, width, 18 + 64), np.float32)
    for identity in np.unique(frame.instances):
        mask = frame.instances == identity
        found[mask, 18:] = np.random.default_rng(identity).normal(size=64) / 2
        if identity in rigid_things(walk, frame):
            sight = sight_of(walk, number, frame, int(identity))
            rows, columns = np.nonzero(mask)
            own = sight.lift(np.stack([columns, rows], axis=1) + 0.75, sight.depth[mask])
            angles = np.concatenate([own * scale for scale in (0.2, 0.8, 3.2)], axis=1)
            found[mask, :18] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return torch.from_numpy(found).permute(2, 0, 1)


def test_perfect_features_find_every_point(city, tmp_path, monkeypatch):
    root, walk, frames, receipt = city
    network = SurfaceFeatures(create("vit_nano_patch8", seed=0).arch)
    network.know(walk, frames, root)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: network)
    settings = CorrespondenceSettings(root=str(root), dataset="city", size=120)
    result = correspondence.evaluate(settings, tmp_path / "b.safetensors", Job(out=tmp_path / "out", state=tmp_path))
    assert result.metrics["PCK@0.1"] == 100
    assert result.details["averages"]["PCK@0.1"] == dict.fromkeys(result.details["averages"]["PCK@0.1"], 100)
    assert result.metrics["PCK@0.1_position"] < 60, "the things have moved in the image"
    assert network.computed == receipt["images"], "each image once, however many pairs it is in"
    assert result.n > receipt["images"] / 2
