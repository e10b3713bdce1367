"""Geometric correspondence: matching against plain loops, views against the released steps, known features through the whole evaluation."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.object_views import read_view_depth, read_views
from densewalk.data.images import denormalize
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.geometric_correspondence import evaluate as navi
from densewalk.evaluations.geometric_correspondence import matching
from densewalk.evaluations.geometric_correspondence.pairs import choose_pairs, turned_by
from densewalk.evaluations.geometric_correspondence.settings import GeometricCorrespondenceSettings
from densewalk.evaluations.geometric_correspondence.views import cut_image, see_object
from densewalk.models.interface import Network
from densewalk.models.loading import create
from tests.fixtures.dense import write_backbone
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import RADII, write_navi


def settings_of(root=".", **values):
    return GeometricCorrespondenceSettings(root=str(root), dataset="toys", **values).resolved()


# -- matching ----------------------------------------------------------------------------------------------------------


def loop(source, target, count, weight):
    """The best matches, place by place, in float64."""
    found = []
    for i, a in enumerate(source.double().numpy()):
        distances = []
        for j, b in enumerate(target.double().numpy()):
            distances.append((1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), j))
        (d1, near), (d2, _) = sorted(distances)[:2]
        ratio = 1 - max(d1, 1e-9) / max(d2, 1e-9)
        found.append((-(ratio if weight == "ratio" else 1 - d1), i, near))
    return [(i, j) for _, i, j in sorted(found)[:count]]


@pytest.mark.parametrize("weight", ["ratio", "similarity"])
@pytest.mark.parametrize("count", [7, 1000])
def test_matches_equal_the_loop(weight, count):
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(30, 4, generator=generator), torch.randn(25, 4, generator=generator)
    matches = matching.match_places(source, target, count, weight)
    assert list(zip(matches.source.tolist(), matches.target.tolist(), strict=True)) == loop(source, target, count, weight)
    assert len(matches.source) == min(count, 30)


def test_near_neighbors_are_told_apart_beyond_float32():
    """Cosine distances of 2e-10 and 8e-10: products of float32 give both as 0 or noise."""
    target = torch.tensor([[1.0, 2e-5], [1.0, -4e-5], [0.0, 1.0]])
    source = torch.tensor([[1.0, 0.0], [1.0, 1e-2]])
    found = matching.exact_distances(F.normalize(source), F.normalize(target), torch.tensor([[0, 1], [0, 1]]))
    assert found[0].tolist() == pytest.approx([2e-10, 8e-10], rel=1e-3)
    assert matching.match_places(1e3 * source, target, 2, "ratio").target.tolist() == [0, 0]


def test_equal_features_weigh_nothing():
    assert matching.ratio_weights(torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.2, 0.4]])).tolist() == pytest.approx([0, 1, 0.5])
    same = torch.ones(5, 3)
    assert matching.match_places(same, same, 3, "ratio").source.tolist() == [0, 1, 2], "of equally good matches the first"


def test_weights_and_bins_equal_the_recorded_ones():
    values = np.load(shared("parity/eval_correspondence.npz"))
    weights = matching.ratio_weights(torch.from_numpy(values["navi/nearest_two"]))
    assert np.allclose(weights, values["navi/weight"], atol=1e-4)
    best = weights.sort(descending=True, stable=True).indices[: len(values["navi/top50"])]
    assert np.array_equal(np.sort(best), values["navi/top50"])
    bins = matching.means_of_bins(values["navi/recall"].astype(float), values["navi/angle"], navi.ANGLES)
    assert np.allclose([mean for mean, _ in bins], values["navi/bins"], atol=1e-4)
    assert sum(count for _, count in bins) <= len(values["navi/angle"])


def test_features_between_patches_are_those_of_the_enlarged_map():
    maps = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = np.divmod(np.arange(20 * 20), 20)
    shares = (np.stack([columns, rows], axis=1) + 0.5) / 20
    up = F.interpolate(maps[None], (20, 20), mode="bicubic")[0].flatten(1).T
    for crop in (True, False):  # nothing was padded
        assert torch.allclose(matching.sample_map(maps, shares, 80, 80, crop_padding=crop), up, atol=1e-9)
    # 72 px with 4 px of zeros on each side, at every pixel: the middle of the map of 80 px
    rows, columns = np.divmod(np.arange(72 * 72), 72)
    shares = (np.stack([columns, rows], axis=1) + 0.5) / 72
    whole = F.interpolate(maps[None], (80, 80), mode="bicubic")[0]
    cut = whole[:, 4:76, 4:76].flatten(1).T
    assert torch.allclose(matching.sample_map(maps, shares, 72, 80, crop_padding=True), cut, atol=1e-9)
    squeezed = F.interpolate(maps[None], (72, 72), mode="bicubic")[0].flatten(1).T
    assert torch.allclose(matching.sample_map(maps, shares, 72, 80, crop_padding=False), squeezed, atol=1e-9)


def test_floors_and_ceiling_equal_loops():
    rng = np.random.default_rng(0)
    source, target = rng.uniform(0, 0.06, (40, 3)), rng.uniform(0, 0.06, (30, 3))
    distances = np.array([[np.linalg.norm(a - b) for b in target] for a in source])
    for i, threshold in enumerate((0.01, 0.02, 0.05)):
        assert matching.by_chance(source, target)[i] == pytest.approx((distances < threshold).mean())
        close = sum(row.min() < threshold for row in distances)
        assert matching.at_most(source, target, 25)[i] == min(25, close) / 25
        assert matching.at_most(source, target, 1000)[i] == close / 40
        assert matching.shares_below(distances[0])[i] == np.mean([d < threshold for d in distances[0]])
    places, others = rng.uniform(0, 1, (9, 2)), rng.uniform(0, 1, (8, 2))
    matches = matching.by_position(places, others)
    assert matches.target.tolist() == [int(np.argmin([np.hypot(*(a - b)) for b in others])) for a in places]
    errors = matching.distances_3d(source, target, matching.Matches(np.array([3, 0]), np.array([1, 29])))
    assert errors.tolist() == pytest.approx([distances[3, 1], distances[0, 29]])


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_navi(tmp_path_factory.mktemp("navi"))


@pytest.mark.parametrize("point", ["center", "corner"])
def test_places_lie_on_the_object_and_are_seen_where_they_are(root, point):
    settings = settings_of(point=point)
    for view in read_views(root):
        seen = see_object(view, 128, settings)
        assert abs(np.median(np.linalg.norm(seen.points / RADII, axis=1)) - 1) < 2e-3
        rays, _ = view.project(seen.points.astype(float))
        assert np.allclose(seen.square.rays_of(seen.square.shares_of(rays) * seen.square.side + seen.square.corner), rays)
        apart = 128 * (seen.square.shares_of(rays) - seen.shares)  # in pixels of the square
        pixel = 128 / seen.square.side
        limits = (-pixel, pixel) if point == "center" else (-2 - pixel, pixel - 1)
        assert (apart > limits[0] - 1e-3).all()
        assert (apart < limits[1] + 1e-3).all()
        # the color under a place says the same point; not at the edge, where it is mixed with the background
        image = cut_image(view, seen.square, 128)
        inside = cv2.erode(np.isin(np.arange(32 * 32), seen.index).reshape(32, 32).astype(np.uint8), np.ones((3, 3)), borderValue=0)
        keep = inside.ravel()[seen.index] > 0
        rows, columns = np.divmod(seen.index[keep], 32)
        first = 2 if point == "center" else 0
        colors = image[4 * rows + first, 4 * columns + first]
        assert np.median(abs(128 + 1000 * seen.points[keep] - colors)) < 2


def test_the_square_holds_the_object_and_lies_in_the_middle_square(root):
    for view in read_views(root):
        depth, (height, width) = read_view_depth(view), view.size
        square = see_object(view, 64, settings_of()).square
        (x, y), side = square.corner, square.side
        top, left = (height - 60) // 2, (width - 60) // 2
        middle = depth[top : top + 60, left : left + 60]
        rows, columns = (np.flatnonzero(middle.any(axis=axis)) for axis in (1, 0))
        assert side == max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        assert y - top <= rows[0] <= rows[-1] < y - top + side
        assert x - left <= columns[0] <= columns[-1] < x - left + side
        assert 0 <= x - left <= 60 - side


def released(view, side):
    """The image [side, side, 3], points of the camera [3, side, side] of probe3d's steps by the libraries' functions that it calls."""
    image, stored = Image.open(view.image).convert("RGB"), Image.open(view.depth)
    factor = 1024 / min(image.size)
    size = int(image.width * factor), int(image.height * factor)
    image, stored = image.resize(size, Image.Resampling.BILINEAR), np.array(stored.resize(size, Image.Resampling.NEAREST))
    depth = np.divide(655.35, stored.astype(float), out=np.zeros(stored.shape), where=stored > 0)

    def smaller(x):
        return CenterCrop(side)(Resize(side, InterpolationMode.NEAREST)(x))

    pixels = smaller(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    z = smaller(torch.from_numpy(depth)[None])[0].numpy()
    focal = view.focal * side / min(view.size)
    rows, columns = np.mgrid[:side, :side] + 0.5
    xyz = np.stack([(columns - side / 2) / focal * z, (rows - side / 2) / focal * z, z])
    shown = np.argwhere(z > 0)
    low, high = shown.min(0), shown.max(0)
    length = (high - low).max()
    pad = length - (high - low)
    start = low - pad // 2
    if (start < 0).any() or (start + length > side).any():
        start = (low - pad).clip(0)
    cut = slice(start[0], start[0] + length), slice(start[1], start[1] + length)
    enlarged = [cv2.resize(x[cut], (side, side), interpolation=cv2.INTER_NEAREST) for x in (pixels.permute(1, 2, 0).numpy(), *xyz)]
    return enlarged[0], np.stack(enlarged[1:])


@pytest.mark.parametrize("size", [(60, 80), (150, 140), (50, 120)])
def test_released_views_are_those_of_the_released_steps(tmp_path, size):
    """Pixels and points equal, but where an index is a whole number up to rounding."""
    write_navi(tmp_path, things=1, size=size)
    for view in read_views(tmp_path):
        image, xyz = released(view, 96)
        seen = see_object(view, 96, settings_of(compat="released"))
        assert (cut_image(view, seen.square, 96) == image).mean() > 0.97
        grid = F.interpolate(torch.from_numpy(xyz)[None], scale_factor=0.25, mode="nearest")[0].flatten(1).numpy().T
        index = np.flatnonzero(grid[:, 2] > 0)
        assert len(np.setxor1d(index, seen.index)) <= 2
        both = np.intersect1d(index, seen.index)
        points = dict(zip(seen.index.tolist(), seen.points, strict=True))
        ours = np.array([points[i] for i in both]) @ view.rotation.T + view.translation
        assert np.quantile(np.linalg.norm(ours - grid[both], axis=1), 0.97) < 1e-6


def test_a_view_without_the_object_in_its_middle_is_named(tmp_path):
    write_navi(tmp_path, things=1)
    view = read_views(tmp_path)[1]
    stored = np.zeros((60, 80), np.uint16)
    stored[:, :8] = 1000
    Image.fromarray(stored).save(view.depth)
    for compat in ("paper", "released"):
        with pytest.raises(UserError, match=rf"{view.depth} shows nothing of the object in the middle square"):
            see_object(view, 64, settings_of(compat=compat))
    stored[30, 40] = 1000
    Image.fromarray(stored).save(view.depth)
    with pytest.raises(UserError, match=rf"{view.depth} shows the object at 1 of 1 x 1 places"):
        see_object(view, 64, settings_of(cell=64))
    write_navi(tmp_path / "again", things=1)
    (tmp_path / "again/thing_0/wild_set/depth/001.png").write_bytes(view.depth.read_bytes())
    write_backbone(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"again/thing_0/wild_set/depth/001\.png shows the object at 1 of"):
        run(tmp_path, tmp_path / "again", cell=64, size=64, every=1)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_are_of_one_object_within_the_angle_and_every_fourth(root):
    views = read_views(root)
    pairs, alone = choose_pairs(views, settings_of(every=1, max_angle=90))
    assert len(pairs) + alone == len(views)
    for pair in pairs:
        assert pair.source.thing == pair.target.thing
        assert pair.source.name != pair.target.name
        turn = pair.target.rotation @ pair.source.rotation.T
        assert pair.angle == pytest.approx(np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])), abs=1e-5)
        assert 0 < pair.angle <= 90
    every = {pair.source.name: pair.name for pair in pairs}
    some, _ = choose_pairs(views, settings_of(every=4, max_angle=90))
    assert [pair.name for pair in some] == [every[view.name] for view in views[::4] if view.name in every]


def test_pairs_follow_from_the_seed_and_the_object_alone(root):
    views = read_views(root)
    names = [pair.name for pair in choose_pairs(views, settings_of(every=1))[0]]
    assert names == [pair.name for pair in choose_pairs(views, settings_of(every=1))[0]]
    assert names != [pair.name for pair in choose_pairs(views, settings_of(every=1, pair_seed=9))[0]]
    second = [pair.name for pair in choose_pairs(views[5:], settings_of(every=1))[0]]
    assert second == [name for name in names if name.startswith("thing_1")]


def test_views_without_partner_are_counted_or_refused(root):
    views = read_views(root)
    angles = turned_by(np.stack([view.rotation for view in views[:5]]))
    nearest = np.sort(angles, axis=1)[:, 1]
    pairs, alone = choose_pairs(views[:5], settings_of(every=1, max_angle=float(np.median(nearest))))
    assert len(pairs) + alone == 5
    assert alone == (nearest > np.median(nearest)).sum() > 0
    with pytest.raises(UserError, match="none of 5 views has a partner"):
        choose_pairs(views[:5], settings_of(every=1, max_angle=1))


# -- the whole evaluation ----------------------------------------------------------------------------------------------


class ColorFeatures(Network):
    """Features of the point that a place's color says, so that the cosine falls with the distance of points; counts images."""

    seen = 0

    def dense(self, images):
        type(self).seen += 1
        points = (255 * denormalize(F.avg_pool2d(images, 4), self.statistics) - 128) / 1000
        angles = torch.cat([points * scale for scale in (8.0, 25.0)], dim=1)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def levels(self, images, numbers, *, norm):
        assert numbers == [self.depth - 1]
        assert not norm
        return [self.dense(images)]


class NoiseFeatures(ColorFeatures):
    """Features of nothing."""

    def dense(self, images):
        shape = (1, 16, images.shape[-2] // 4, images.shape[-1] // 4)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(1e4 * images.abs().sum()) % 2**31))


def network_of(kind):
    network = kind(create("vit_nano_patch8", seed=0).arch)
    network.multiple = 4
    kind.seen = 0
    return network


def run(tmp_path, root, network=None, **values):
    """The evaluation of small data."""
    job = Job(out=tmp_path / "out", state=tmp_path, network=network)
    settings = GeometricCorrespondenceSettings(root=str(root), dataset="toys", **values)
    return navi.evaluate(settings, tmp_path / "b.safetensors", job)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """Larger images, and enough views that most have a partner nearby."""
    return write_navi(tmp_path_factory.mktemp("sharp"), views=9, size=(192, 256), seed=3)


@pytest.mark.parametrize(("preset", "compat"), [("probe3d", "paper"), ("probe3d", "released"), ("dinov3", "paper")])
def test_perfect_features_find_every_point(tmp_path, sharp, preset, compat):
    network = network_of(ColorFeatures)
    values = {"size": 256, "patches": None, "every": 1, "max_angle": 80, "matches": 300, "compat": compat}
    result = run(tmp_path, sharp, network, preset=preset, **values)
    assert result.details["ceiling"] == pytest.approx({"1cm": 100, "2cm": 100, "5cm": 100}, abs=3)
    assert result.metrics["recall@1cm"] > 0.95 * result.details["ceiling"]["1cm"]
    assert result.metrics["recall@2cm"] > 99
    assert result.metrics["recall@5cm"] == pytest.approx(100, abs=1), "a few at the edge, whose color is mixed with the background"
    assert result.metrics["recall"] == pytest.approx(np.mean([result.metrics[f"recall@{n}cm"] for n in (1, 2, 5)]))
    assert result.metrics["recall_position"] < 50
    assert result.metrics["recall_chance"] < 30
    pairs, _ = choose_pairs(read_views(sharp), settings_of(every=1, max_angle=80))
    assert ColorFeatures.seen == len({view.name for pair in pairs for view in (pair.source, pair.target)}), "each view once"
    assert (result.n, result.unit) == (len(pairs), "pairs")
    assert result.details["pairs_with_fewer_matches"] == 0
    assert (tmp_path / "out/strip.png").is_file()


def test_random_features_are_right_by_chance(tmp_path, sharp):
    result = run(tmp_path, sharp, network_of(NoiseFeatures), size=256, every=1)
    assert result.metrics["recall"] == pytest.approx(result.metrics["recall_chance"], abs=1.5)
    for name, chance in result.details["chance"].items():
        assert result.metrics[f"recall@{name}"] == pytest.approx(chance, abs=2.5)


def test_a_moved_camera_moves_the_points_by_as_much(root):
    view = read_views(root)[0]
    moved = replace(view, translation=view.translation + np.array((0.018, 0.024, 0)))
    points, others = (see_object(one, 64, settings_of()).points for one in (view, moved))
    same = np.arange(len(points))
    assert np.allclose(matching.distances_3d(points, others, matching.Matches(same, same)), 0.03, atol=1e-6)


def test_a_wrong_pose_is_the_error_that_is_measured(tmp_path, sharp):
    """Every second view's camera is moved by 3 cm: what is matched rightly between two kinds of views is 3 cm off."""
    write_navi(tmp_path / "data", views=9, size=(192, 256), seed=3)
    for path in (tmp_path / "data").glob("*/wild_set/annotations.json"):
        entries = json.loads(path.read_text())
        for entry in entries[::2]:
            entry["camera"]["t"] = (np.array(entry["camera"]["t"]) + np.array((18, 24, 0))).tolist()  # millimeters, in the camera's axes
        path.write_text(json.dumps(entries))
    values = {"size": 256, "every": 1, "max_angle": 80, "matches": 300}
    result = run(tmp_path, tmp_path / "data", network_of(ColorFeatures), **values)
    right = run(tmp_path, sharp, network_of(ColorFeatures), **values)
    assert result.units.ids == right.units.ids
    views = {view.name: view for view in read_views(tmp_path / "data")}
    for i, name in enumerate(result.units.ids):
        stem, target = name.rsplit("/", 1)
        pair = [views[stem], views[f"{stem.split('/')[0]}/{target}"]]
        shifts = [view.rotation.T @ np.array([0.018, 0.024, 0]) * (int(view.image.stem) % 2 == 0) for view in pair]
        off = np.linalg.norm(shifts[0] - shifts[1])
        for metric, threshold in (("recall@1cm", 0.01), ("recall@2cm", 0.02), ("recall@5cm", 0.05)):
            if off > threshold + 0.008:
                assert result.units.statistics[metric].values[i] < 0.05, (name, metric, off)
            if off < threshold - 0.012:
                assert result.units.statistics[metric].values[i] > 0.9, (name, metric, off)
    assert result.metrics["recall@2cm"] < 70 < right.metrics["recall@2cm"]


def swap(camera):
    """The last number of the quaternion is w."""
    camera["q"] = [*camera["q"][1:], camera["q"][0]]


def invert(camera):
    """The camera's pose in the object's axes instead of the object's in the camera's."""
    w, x, y, z = camera["q"]
    camera["q"], camera["t"] = [w, -x, -y, -z], (-navi_rotation([w, x, y, z]).T @ camera["t"]).tolist()


def in_meters(camera):
    camera["t"] = [value / 1000 for value in camera["t"]]


@pytest.mark.parametrize("change", [swap, invert, in_meters])
def test_poses_of_another_convention_are_refused_or_score_worse(tmp_path, change):
    write_navi(tmp_path / "right", views=9)
    shutil.copytree(tmp_path / "right", tmp_path / "wrong")
    for path in (tmp_path / "wrong").glob("*/wild_set/annotations.json"):
        entries = json.loads(path.read_text())
        for entry in entries:
            change(entry["camera"])
        path.write_text(json.dumps(entries))
    network, values = network_of(ColorFeatures), {"size": 64, "every": 1}
    right = run(tmp_path, tmp_path / "right", network, **values)
    if change is swap:  # a rotation about the object's middle all the same
        assert run(tmp_path, tmp_path / "wrong", network, **values).metrics["recall@2cm"] < 0.5 * right.metrics["recall@2cm"]
        return
    with pytest.raises(UserError, match="of their points within 5 cm of each other: the cameras do not fit the depths"):
        run(tmp_path, tmp_path / "wrong", network, **values)


def navi_rotation(q):
    w, x, y, z = q
    return cv2.Rodrigues(2 * np.arctan2(np.linalg.norm([x, y, z]), w) * np.array([x, y, z]) / np.linalg.norm([x, y, z]))[0]


@pytest.mark.parametrize("preset", ["probe3d", "dinov3"])
def test_whole_evaluation(tmp_path, root, preset):
    write_backbone(tmp_path / "b.safetensors")
    result = run(tmp_path, root, preset=preset, size=60, patches=None, every=1)  # 60 px are padded to 64
    assert list(result.metrics) == list(GeometricCorrespondenceSettings.METRICS)
    assert result.metrics["recall@1cm"] <= result.metrics["recall@2cm"] <= result.metrics["recall@5cm"]
    result.units.require_scores(result.metrics)
    assert result.units.cluster == "object"
    assert set(result.units.clusters) == {"thing_0", "thing_1"}
    assert sum(one["pairs"] for one in result.details["recall@2cm_by_angle"].values()) == result.n
    assert result.details["pairs_with_fewer_matches"] == result.n
    other = run(tmp_path, root, preset=preset, size=60, patches=None, every=1, compat="released")
    assert other.metrics != result.metrics
    assert other.units.ids == result.units.ids


def test_describe_data(root):
    assert navi.describe_data(settings_of(root, every=1)) == {"objects": 2, "views": 10, "pairs": 7}


# -- settings ----------------------------------------------------------------------------------------------------------


def test_presets_and_names():
    ours, theirs = (GeometricCorrespondenceSettings(root=".", dataset="NAVI", preset=preset) for preset in ("probe3d", "dinov3"))
    assert (ours.side(14), ours.side(16), theirs.side(14), theirs.side(16), theirs.side(None)) == (512, 512, 448, 512, 512)
    assert (ours.weight, ours.final_norm, ours.needs) == ("ratio", False, {"levels"})
    assert (theirs.weight, theirs.final_norm, theirs.needs) == ("similarity", True, {"dense"})
    assert (ours.matches, ours.every, ours.max_angle) == (theirs.matches, theirs.every, theirs.max_angle) == (1000, 4, 120)
    names = {ours.protocol, theirs.protocol}
    changes = ({"size": 448}, {"cell": 2}, {"weight": "similarity"}, {"matches": 500}, {"every": 1}, {"max_angle": 90}, {"pair_seed": 1})
    for change in (*changes, {"compat": "released"}, {"resize": "nearest"}, {"point": "corner"}, {"crop_padding": False}):
        names.add(GeometricCorrespondenceSettings(root=".", dataset="NAVI", **change).protocol)
    assert len(names) == 2 + len(changes) + 4
    assert ours.published_protocol is theirs.published_protocol is None
    released = GeometricCorrespondenceSettings(root=".", dataset="NAVI", compat="released").resolved()
    assert (released.resize, released.point, released.crop_padding) == ("nearest", "corner", False)
    with pytest.raises(ValidationError, match="preset 'navi' is unknown"):
        GeometricCorrespondenceSettings(root=".", dataset="NAVI", preset="navi")
