"""The generated city walk: exact ground truth, reproducible, in layouts that the benchmarks' own readers accept."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from numpy.random import default_rng
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.boxes import read_tracks
from densewalk.data.benchmarks.classification import list_imagenet
from densewalk.data.benchmarks.depth import list_depth, read_depth, require_other_scenes
from densewalk.data.benchmarks.video_tasks import list_youtube_tasks
from densewalk.data.image_files import read_mask
from densewalk.data.palette import palette
from densewalk.data.video.probe import probe
from densewalk.synthetic.city.items import ADE, KINDS, WALKING_SPEED
from densewalk.synthetic.city.raster import SUPERSAMPLE, Camera, Raster, Texture, rotation
from densewalk.synthetic.city.street import Street
from densewalk.synthetic.city.walk import Frame, Walk, _Codes
from densewalk.synthetic.generate import MIN_PIXELS, _cut_out, _write_davis, coco_annotations, coco_categories, generate, mask_polygons
from densewalk.synthetic.settings import SyntheticSettings
from tests.fixtures.helpers import shared

SMALL = SyntheticSettings(
    seed=3, seconds=2.0, fps=2.0, width=128, height=80, mask_stride=2,
    ade_train=2, ade_val=1, coco_train=1, coco_val=2, davis_sequences=1, davis_frames=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("city")
    generate(root, SMALL)
    return root


@pytest.fixture(scope="module")
def walk() -> Walk:
    return Walk((11,), seconds=16.0, fps=2.0, width=160, height=96)


@pytest.fixture(scope="module")
def frames(walk: Walk) -> list[Frame]:
    return [walk.frame(number) for number in range(32)]


# -- the walk --------------------------------------------------------------------------------------------------------


def test_a_frame_is_the_same_alone_in_another_walk_object_and_whatever_the_global_random_state(frames: list[Frame]) -> None:
    np.random.seed(5)  # noqa: NPY002  it is the old global state that is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    alone = Walk((11,), seconds=16.0, fps=2.0, width=160, height=96).frame(21)
    for ours, theirs in zip(frames[21][:3], alone[:3], strict=True):
        assert np.array_equal(ours, theirs)
    assert frames[21].coco == alone.coco
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_another_seed_is_another_walk(frames: list[Frame]) -> None:
    other = Walk((12,), seconds=16.0, fps=2.0, width=160, height=96).frame(0)
    assert (other.semantic != frames[0].semantic).mean() > 0.2


def test_shapes_types_and_ids(frames: list[Frame]) -> None:
    for frame in frames:
        assert frame.rgb.shape == (96, 160, 3)
        assert frame.semantic.shape == frame.instances.shape == (96, 160)
        assert frame.semantic.dtype == np.uint8
        assert set(np.unique(frame.semantic)) <= set(ADE.values())
        assert set(np.unique(frame.instances)) - {0} == set(frame.coco)


def test_ade_ids_are_the_official_ones() -> None:
    lines = shared("data/ade20k/ADEChallengeData2016/objectInfo150.txt").read_text().splitlines()[1:]
    official = {int(line.split("\t")[0]): [name.strip() for name in line.split("\t")[4].split(",")] for line in lines}
    for name, value in ADE.items():
        assert name in official[value]


def test_walking_forward_expands_the_image() -> None:
    """Away from the middle of the picture everything moves outwards; played backwards it moves inwards."""
    walk = Walk((11,), seconds=8.0, fps=8.0, width=160, height=96)
    gray = [cv2.cvtColor(walk.frame(number).rgb, cv2.COLOR_RGB2GRAY) for number in range(20, 29)]
    forward = np.mean([_expansion(a, b) for a, b in pairwise(gray)])
    backward = np.mean([_expansion(b, a) for a, b in pairwise(gray)])
    assert forward > 0.01
    assert backward < -0.01


def _expansion(before: np.ndarray, after: np.ndarray) -> float:
    """Slope of the flow's radial component over the radius, its mean (a turn of the camera) taken off."""
    flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 13, 3, 5, 1.1, 0)
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float64)
    place = np.stack([x - x.mean(), y - y.mean()], axis=-1)
    return float(((flow - np.median(flow, axis=(0, 1))) * place).sum() / (place**2).sum())


def test_the_camera_goes_forward_at_walking_pace_and_bobs(walk: Walk) -> None:
    cameras = [walk._camera(time) for time in np.arange(0.0, 12.0, 0.1).tolist()]
    steps = np.diff([walk.position(time) for time in np.arange(0.0, 12.0, 0.1).tolist()]) / 0.1
    assert steps.min() > 0
    assert steps.mean() == pytest.approx(WALKING_SPEED, rel=0.2)
    heights = np.array([camera.place[1] for camera in cameras])
    assert 0.02 < np.ptp(heights) < 0.1
    assert np.ptp([np.arctan2(camera.turn[2, 0], camera.turn[2, 2]) for camera in cameras]) > 0.1


def test_things_enter_leave_and_change_in_size(frames: list[Frame]) -> None:
    areas = _areas(frames)
    seen = areas > 0
    assert (~seen[0] & seen[-1]).sum() >= 5
    assert (seen[0] & ~seen[-1]).sum() >= 5
    assert (areas.max(axis=0) > 4 * np.maximum(areas[seen.argmax(axis=0), np.arange(areas.shape[1])], 1)).sum() >= 5


def _areas(frames: list[Frame]) -> np.ndarray:
    """Visible pixels [frames, identities] of all that COCO knows."""
    known = sorted({identity for frame in frames for identity, category in frame.coco.items() if category})
    return np.array([np.bincount(frame.instances.ravel(), minlength=known[-1] + 1)[known] for frame in frames])


def test_a_category_stays_with_its_identity(frames: list[Frame]) -> None:
    categories: dict[int, set[int]] = {}
    for frame in frames:
        for identity, category in frame.coco.items():
            categories.setdefault(identity, set()).add(category)
    assert all(len(found) == 1 for found in categories.values())


def test_things_hide_one_another(walk: Walk, frames: list[Frame]) -> None:
    """Drawn alone, a thing shows at least what is seen of it in the street; some are hidden altogether, and were seen before and after."""
    areas = _areas(frames) > 0
    between = np.logical_or.accumulate(areas) & np.logical_or.accumulate(areas[::-1])[::-1]
    number, column = np.argwhere(between & ~areas)[0]
    known = sorted({identity for frame in frames for identity, category in frame.coco.items() if category})
    alone = {identity: _alone(walk, int(number), identity) for identity in (known[column], *list(frames[number].coco)[:12])}
    for identity, mask in alone.items():
        visible = frames[number].instances == identity
        assert not (visible & ~mask).any()
    hidden = [identity for identity, mask in alone.items() if mask.sum() > (frames[number].instances == identity).sum()]
    assert len(hidden) >= 3


def _alone(walk: Walk, number: int, identity: int) -> np.ndarray:
    time, codes = number / walk.fps, _Codes()
    camera = walk._camera(time)
    scene = walk._visible(time, camera, codes)
    code = codes.identities.index(identity)
    part = next(first for first in sorted(set(scene.first), reverse=True) if first < code)
    planes = np.concatenate(scene.planes)
    chosen = [index for index, first in enumerate(scene.first) if first == part]
    raster = Raster(camera)
    raster.draw(planes[chosen], [scene.quads[i].texture for i in chosen], np.ones(len(chosen)), [part] * len(chosen))
    return raster.code[1::SUPERSAMPLE, 1::SUPERSAMPLE] == code


def test_classes_differ_in_color_and_texture(frames: list[Frame]) -> None:
    """There is something to learn: statistics of patches tell the classes further down the street three times as well as guessing."""
    x, y = _patches(frames[:16:2])
    u, v = _patches(frames[20::4])
    distance = (((u[:, None] - x) / x.std(axis=0)) ** 2).sum(axis=-1)
    votes = y[np.argpartition(distance, 5, axis=1)[:, :5]]
    guess = np.array([np.bincount(vote).argmax() for vote in votes])
    classes = [value for value in np.intersect1d(y, v) if (v == value).sum() >= 5]
    recall = np.mean([(guess[v == value] == value).mean() for value in classes])
    assert len(classes) >= 6
    assert recall > 3 / len(classes)


def _patches(frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of colors and gradients in patches of 8 x 8 pixels that hardly mix classes, and these classes."""
    features, labels = [], []
    for frame in frames:
        rgb = frame.rgb.astype(np.float64)
        gradients = np.abs(np.stack(np.gradient(rgb.mean(axis=-1)), axis=-1))
        pixels = np.concatenate([rgb, gradients], axis=-1).reshape(12, 8, 20, 8, 5).swapaxes(1, 2).reshape(-1, 64, 5)
        label = frame.semantic.reshape(12, 8, 20, 8).swapaxes(1, 2).reshape(-1, 64)
        pure = (label == label[:, :1]).mean(axis=1) > 0.9
        features.append(np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)[pure])
        labels.append(label[pure, 0])
    return np.concatenate(features), np.concatenate(labels)


# -- drawing ---------------------------------------------------------------------------------------------------------


def test_raster_against_a_ray_per_pixel() -> None:
    """Plain loop: intersect the ray of every pixel with every quad, keep the nearest that faces the camera."""
    rng = default_rng(0)
    camera = Camera(np.array([0.3, 1.6, -0.5]), rotation(0.2, 0.05, 0.1), 20.0, 24, 16, 0.0)
    planes = rng.uniform(-2, 2, (8, 3, 3))
    planes[:, :, 2] += camera.turn.T @ np.array([0.0, 0.0, 5.0]) + camera.place
    planes[0, :, 2] -= camera.turn.T @ np.array([0.0, 0.0, 5.0])  # one reaches behind the camera
    parts = rng.integers(0, 3, (8, 5, 7)).astype(np.uint8)
    textures = [Texture((np.full((5, 7, 3), 9, np.uint8),), part, None) for part in parts]
    raster = Raster(camera)
    raster.draw(planes, textures, np.ones(8), [10 * index for index in range(8)])
    expected, depth = _rays(camera, planes, parts, raster.shape)
    assert (raster.code > 0).mean() > 0.2
    assert (raster.code == expected).mean() > 0.99
    same = (raster.code == expected) & (expected > 0)
    assert np.allclose(1 / raster.inverse_depth[same], depth[same], rtol=1e-3)


def _rays(camera: Camera, planes: np.ndarray, parts: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    code, depth = np.zeros(shape, np.int32), np.full(shape, np.inf)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x = (column - (SUPERSAMPLE * camera.width / 2 - 0.5)) / camera.focal
            y = (row - (SUPERSAMPLE * camera.height / 2 - 0.5)) / camera.focal
            ray = camera.turn.T @ np.array([x, y, 1.0])
            for index, plane in enumerate(planes):
                across, down, corner = plane.T
                if np.linalg.det(camera.turn @ np.stack([across, down, corner - camera.place], axis=1)) <= 0:
                    continue
                distance, a, b = np.linalg.solve(np.stack([ray, -across, -down], axis=1), corner - camera.place)
                if 0 < distance < depth[row, column] and 0 <= a < 1 and 0 <= b < 1 and parts[index, int(b * 5), int(a * 7)]:
                    depth[row, column] = distance
                    code[row, column] = 10 * index + parts[index, int(b * 5), int(a * 7)]
    return code, depth


def test_ground_pixels_lie_on_the_ground() -> None:
    camera = Camera(np.array([4.0, 1.6, -7.0]), rotation(0.4, 0.1, 0.05), 20.0, 24, 16, 0.0)
    x, z, depth, hit = Raster(camera).ground()
    points = camera.matrix @ camera.turn @ (np.stack([x, np.zeros_like(x), z]) - camera.place[:, None])
    rows, columns = np.nonzero(hit)
    assert np.allclose(points[2], depth, rtol=1e-4)
    assert np.allclose(points[:2] / points[2], np.stack([columns, rows]), atol=1e-2)


def test_depth_is_the_distance_along_the_camera_s_axis(walk: Walk, frames: list[Frame]) -> None:
    """Ground pixels lifted by their depth lie at height 0; the sky has none. In float64, from the camera alone."""
    for number in (0, 13, 31):
        frame, camera = frames[number], walk._camera(number / 2)
        ground = np.isin(frame.semantic, [ADE[name] for name in ("road", "sidewalk")]) & (frame.depth < 60)
        assert ground.mean() > 0.1
        rows, columns = np.nonzero(ground)
        x = (columns + 0.75 - camera.width / 2) / camera.focal_pixels
        y = (rows + 0.75 - camera.height / 2) / camera.focal_pixels
        points = frame.depth[ground] * np.stack([x, y, np.ones_like(x)])
        heights = (camera.turn.T @ points + camera.place[:, None])[1]
        assert np.abs(heights).max() < 2e-3
        sky = frame.semantic == ADE["sky"]
        assert (frame.depth[sky] == 0).all()
        assert (frame.depth[~sky] > 0).all()


@given(seed=strategies.integers(0, 50), s=strategies.floats(0, 150), d=strategies.floats(-9, 9))
@settings(max_examples=60, deadline=None)
def test_street_coordinates_and_back(seed: int, s: float, d: float) -> None:
    street = Street.random(default_rng(seed), 200.0)
    x, z = (np.array([value]) for value in street.world(s, d))
    back_s, back_d = street.locate(x, z, s)
    # where arcs meet, a place may belong to the end of one or to the beginning of the next
    assert np.allclose(street.world(back_s.astype(np.float64), back_d.astype(np.float64)), (x, z), atol=1e-3)
    assert back_d[0] == pytest.approx(d, abs=1e-3)


def test_the_street_is_continuous_and_heads_where_it_goes() -> None:
    street = Street.random(default_rng(1), 200.0)
    s = np.arange(0, 200, 0.05)
    x, z = street.world(s, np.zeros_like(s))
    steps = np.hypot(np.diff(x), np.diff(z))
    assert np.allclose(steps, 0.05, rtol=1e-3)
    heading = np.unwrap(np.arctan2(np.diff(x), np.diff(z)))
    assert np.allclose(np.exp(1j * heading), np.exp(1j * street.heading(s[:-1] + 0.025)), atol=5e-3)
    assert np.ptp(heading) > 0.4


# -- layouts ---------------------------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_files_and_no_others(city: Path, tmp_path: Path) -> None:
    old = tmp_path / "coco/train2017/000000000099.jpg"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of a larger data set")
    (tmp_path / "SYNTHETIC.txt").write_text("generated\n")
    generate(tmp_path, SMALL)
    names = sorted(path.relative_to(city) for path in city.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for name in names:
        if name.suffix != ".mp4":
            assert (city / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_receipt_counts_what_is_there(city: Path) -> None:
    receipt = json.loads((city / "receipt.json").read_text())
    assert receipt["settings"] == SMALL.model_dump()
    assert receipt["video"]["frames"] == 4
    assert receipt["video"]["masks"] == len(list((city / "walk_masks").glob("*.png"))) == 2
    for split, ade, coco in (("training", 2, 1), ("validation", 1, 2)):
        assert receipt[split]["ade20k"]["pairs"] == ade
        assert receipt[split]["coco"]["images"] == coco
        assert sum(receipt[split]["ade20k"]["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert receipt[split]["nyu"]["images"] == ade


def test_real_data_is_never_replaced(tmp_path: Path) -> None:
    real = tmp_path / "coco/val2017/000000000139.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"real")
    with pytest.raises(UserError, match="coco"):
        generate(tmp_path, SMALL)
    assert real.read_bytes() == b"real"
    assert not (tmp_path / "SYNTHETIC.txt").exists()


def test_video_is_whole_and_shows_the_walk(city: Path) -> None:
    found = asdict(probe(city / "walk.mp4"))
    assert (found["width"], found["height"]) == (128, 80)
    assert found["frames"] == 4
    assert found["fps"] == pytest.approx(2.0)


def test_masks_of_the_video_follow_classes_txt(city: Path) -> None:
    names = (city / "walk_masks/classes.txt").read_text().split("\n")[:-1]
    assert names == list(ADE)
    walk = Walk((3, 0, 0), seconds=SMALL.seconds, fps=SMALL.fps, width=128, height=80)
    mask = cv2.imread(str(city / "walk_masks/00002.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(np.array(list(ADE.values()))[mask], walk.frame(2).semantic)


def test_ade20k_layout(city: Path) -> None:
    base = city / "ADEChallengeData2016"
    for split, prefix, count in (("training", "ADE_train", 2), ("validation", "ADE_val", 1)):
        images, masks = sorted((base / "images" / split).iterdir()), sorted((base / "annotations" / split).iterdir())
        expected = [f"{prefix}_{number:08d}" for number in range(1, count + 1)]
        assert [path.stem for path in images] == [path.stem for path in masks] == expected
        for image, mask in zip(images, masks, strict=True):
            with Image.open(image) as picture, Image.open(mask) as labels:
                assert labels.mode == "L"
                assert picture.size == labels.size == (128, 80)
                assert set(np.unique(np.asarray(labels))) <= set(ADE.values())


def test_coco_categories_are_the_official_ones() -> None:
    assert coco_categories() == json.loads(shared("data/coco/annotations/instances_val2017.json").read_text())["categories"]


def test_every_coco_category_that_can_appear_has_an_official_id() -> None:
    official = {category["id"]: category["name"] for category in coco_categories()}
    used = {category for kind in KINDS.values() for category in kind.coco if category}
    assert {official[category] for category in used} == {
        "person", "bicycle", "car", "bus", "truck", "traffic light", "stop sign", "bench", "potted plant",
    }  # fmt: skip


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_layout(city: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(city / f"coco/annotations/instances_{split}.json"))
    assert len(coco.getImgIds()) == {"train2017": 1, "val2017": 2}[split]
    assert coco.getAnnIds()
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(city / "coco" / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        taken = np.zeros((image["height"], image["width"]), int)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation)
            assert annotation["iscrowd"] == 0
            assert annotation["area"] == mask.sum() >= 24
            assert annotation["bbox"] == list(cv2.boundingRect(mask))
            taken += mask
        assert taken.max() == 1


def test_coco_masks_are_the_instances(frames: list[Frame]) -> None:
    for frame in frames[::8]:
        annotations = coco_annotations(frame)
        assert len(annotations) > 3
        masks = [_rasterise(annotation["segmentation"], frame.semantic.shape) for annotation in annotations]
        counts = np.bincount(frame.instances.ravel())
        things = [identity for identity, category in sorted(frame.coco.items()) if category and counts[identity] >= 24]
        for identity, mask, annotation in zip(things, masks, annotations, strict=True):
            assert np.array_equal(mask, frame.instances == identity)
            assert annotation["category_id"] == frame.coco[identity]


@given(arrays(bool, (9, 11)))
@settings(max_examples=200, deadline=None)
def test_polygons_cover_exactly_the_mask(mask: np.ndarray) -> None:
    if mask.any():
        polygons = mask_polygons(mask)
        assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
        assert np.array_equal(_rasterise(polygons, mask.shape), mask)


def _rasterise(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


def test_davis_layout(city: Path) -> None:
    base = city / "DAVIS"
    assert (base / "ImageSets/2017/val.txt").read_text() == "walk-00\n"
    assert (base / "ImageSets/2017/train.txt").read_text() == ""
    masks = sorted((base / "Annotations/480p/walk-00").iterdir())
    assert [path.stem for path in masks] == [path.stem for path in sorted((base / "JPEGImages/480p/walk-00").iterdir())]
    assert [path.stem for path in masks] == ["00000", "00001", "00002"]
    values = []
    for path in masks:
        with Image.open(path) as image:
            assert image.mode == "P"
            assert image.getpalette() == palette().ravel().tolist()
            values.append(set(np.unique(np.asarray(image))) - {0})
    assert values[0] == set(range(1, len(values[0]) + 1)) != set()
    assert values[-1] == values[0]


def test_nyu_layout(city: Path) -> None:
    """Depth in millimeters, 0 for the sky and beyond 65.535 m, of the images of the ADE20K layout."""
    (training, _), (scored, _) = (list_depth(city, "nyu", f"nyu_{split}.txt") for split in ("train", "test"))
    assert [len(training), len(scored)] == [2, 1]
    require_other_scenes(training, scored, ("nyu_train.txt", "nyu_test.txt"))
    walk = Walk((3, 1, 0), seconds=96.0, fps=2.0, width=128, height=80)
    for example, number in zip(training, (0, 48), strict=True):
        depth = walk.frame(number).depth
        expected = np.where(depth < 65.5355, depth, 0)
        assert np.abs(read_depth(example) - expected).max() < 6e-4
    assert (city / "ADEChallengeData2016/images/training/ADE_train_00000001.jpg").read_bytes() == training[0].image.read_bytes()


def test_got10k_layout(city: Path) -> None:
    (track,) = read_tracks(city / "GOT-10k")
    assert (track.name, len(track), track.size) == ("walk-00", 3, (128, 80))
    assert track.visible[[0, -1]].all()
    for number in np.flatnonzero(track.visible).tolist():
        mask = cv2.imread(str(city / f"DAVIS/Annotations/480p/walk-00/{number:05d}.png"), cv2.IMREAD_UNCHANGED)
        x, y, width, height = cv2.boundingRect((_object_of(mask) == 1).astype(np.uint8))
        assert track.boxes[number].tolist() == [x, y, x + width, y + height]


def _object_of(mask: np.ndarray) -> np.ndarray:
    """Palette PNGs come as colors from OpenCV, blue first: color back to object."""
    colors = {tuple(color[::-1]): number for number, color in enumerate(palette().tolist()[:16])}
    return np.array([[colors[tuple(pixel)] for pixel in row] for row in mask.tolist()])


def test_imagenet_layout(city: Path) -> None:
    training, validation = list_imagenet(city / "imagenet")
    counts = json.loads((city / "receipt.json").read_text())["imagenet"]
    assert list(counts) == sorted(counts, key=[c["name"].replace(" ", "_") for c in coco_categories()].index)
    assert sorted(counts) == training.names
    assert len(training) == sum(of["training"] for of in counts.values())
    assert len(validation) == sum(of["validation"] for of in counts.values())
    assert len(training.names) >= 2


def test_things_are_cut_out_whole() -> None:
    image = default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    for rows, columns in ((slice(10, 20), slice(20, 25)), (slice(0, 6), slice(50, 60)), (slice(0, 40), slice(0, 60))):
        mask = np.zeros((40, 60), bool)
        mask[rows, columns] = True
        crop = _cut_out(image, mask)
        side = round(1.2 * max(np.ptp(np.nonzero(mask)[0]) + 1, np.ptp(np.nonzero(mask)[1]) + 1))
        assert crop.shape[:2] == (min(side, 40), min(side, 60))
        inside = [np.array_equal(crop[y : y + mask[:, columns.start].sum(), x : x + mask[rows.start].sum()], image[rows, columns])
                  for y in range(crop.shape[0]) for x in range(crop.shape[1])]  # fmt: skip
        assert any(inside)


def test_objects_of_youtube_vos_enter_later(tmp_path: Path) -> None:
    """In the demo's own city; before an object enters, no mask shows it."""
    root = tmp_path / "city"
    (root / "GOT-10k/val").mkdir(parents=True)
    receipt = _write_davis(root, SyntheticSettings(davis_sequences=1))
    tasks = list_youtube_tasks(root / "YouTube-VOS", "valid")
    assert receipt["youtube_vos"]["videos"] == len(tasks) == 1
    firsts = [entry.first for task in tasks for entry in task.entries]
    assert sum(first > 0 for first in firsts) == receipt["youtube_vos"]["objects_that_enter_later"] >= 1
    (task,) = tasks
    assert task.complete
    truth = task.truth()
    for number, entry in enumerate(task.entries, start=1):
        assert not (truth[: entry.first] == number).any()
        assert (truth[entry.first] == number).sum() >= 2 * MIN_PIXELS or entry.first == 0
    davis = np.stack([read_mask(path) for path in sorted((root / "DAVIS/Annotations/480p/walk-00").glob("*.png"))])
    assert all(np.array_equal(davis == n, truth == n) for n in range(1, int(davis.max()) + 1))


def test_palette_is_the_one_of_davis() -> None:
    with Image.open(shared("data/davis/Annotations/480p/blackswan/00000.png")) as image:
        theirs = image.getpalette()
    assert theirs is not None
    assert palette().ravel().tolist()[: len(theirs)] == theirs


# -- settings --------------------------------------------------------------------------------------------------------


def test_the_default_video_is_longer_than_a_minute() -> None:
    defaults = SyntheticSettings()
    assert defaults.frames / defaults.fps >= 60
    assert defaults.frames == 256


@pytest.mark.parametrize("wrong", [{"width": 321}, {"height": 99}, {"seconds": 0}, {"davis_frames": 1}, {"frame_rate": 3}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SyntheticSettings.model_validate(wrong)
