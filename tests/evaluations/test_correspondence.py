"""Correspondence: read-outs against plain loops, perfect features through the whole evaluation, and what it counts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.keypoints import read_pairs
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.correspondence import evaluate as correspondence
from densewalk.evaluations.correspondence.readouts import View, dift, enlarged_lengths, insid3, own, probe3d, same_place
from densewalk.evaluations.correspondence.settings import CorrespondenceSettings
from densewalk.models.interface import Network
from densewalk.models.loading import create
from tests.fixtures.dense import write_backbone
from tests.fixtures.layouts import write_spair

READOUTS = ["own", "dift", "insid3", "probe3d"]


def views(dim=5, seed=0, sizes=((37, 24), (30, 41)), grids=((4, 6), (5, 4)), side=None):
    """A source and a target of random features in float64."""
    rng = np.random.default_rng(seed)
    return [View(torch.from_numpy(rng.normal(size=(dim, *grid))), *size, side) for size, grid in zip(sizes, grids, strict=True)]


def bilinear(maps, row, column):
    """The map between its patches, clamped at its border."""
    rows, columns = maps.shape[1:]
    row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
    r, c = min(int(row), rows - 2), min(int(column), columns - 2)
    a, b = row - r, column - c
    top = (1 - b) * maps[:, r, c] + b * maps[:, r, c + 1]
    bottom = (1 - b) * maps[:, r + 1, c] + b * maps[:, r + 1, c + 1]
    return (1 - a) * top + a * bottom


def most_similar(vector, maps):
    """Row and column of the largest cosine."""
    best, place = -2.0, None
    for r in range(maps.shape[1]):
        for c in range(maps.shape[2]):
            cosine = vector @ maps[:, r, c] / np.linalg.norm(vector) / np.linalg.norm(maps[:, r, c])
            if cosine > best:
                best, place = cosine, (r, c)
    return place


def test_own_readout_equals_the_loop():
    source, target = views()
    points = torch.tensor([[0.0, 0.0], [20.5, 11.0], [36.0, 23.9]], dtype=torch.float64)
    maps, other = source.maps.numpy(), target.maps.numpy()
    unit = maps / np.linalg.norm(maps, axis=0)
    for point, found in zip(points.tolist(), own(source, target, points).tolist(), strict=True):
        vector = bilinear(unit, point[1] * 4 / 24 - 0.5, point[0] * 6 / 37 - 0.5)
        r, c = most_similar(vector, other)
        assert found == pytest.approx([(c + 0.5) * 30 / 4, (r + 0.5) * 41 / 5], abs=1e-4)


def test_dift_equals_enlarged_maps():
    source, target = views()
    points = torch.tensor([[0.0, 0.0], [20.0, 11.0], [36.0, 23.0]], dtype=torch.float64)
    up = [F.interpolate(v.maps[None], (v.height, v.width), mode="bilinear", align_corners=False)[0].numpy() for v in (source, target)]
    for point, found in zip(points.long().tolist(), dift(source, target, points).tolist(), strict=True):
        r, c = most_similar(up[0][:, point[1], point[0]], up[1])
        assert found == [c, r]
    lengths = enlarged_lengths(target.maps, target.height, target.width)
    assert np.allclose(lengths, np.linalg.norm(up[1], axis=0), rtol=1e-6)


def test_insid3_equals_the_loop():
    source, target = views()
    point = [20.5, 11.0]
    x, y = (min(max(round(p * n / size), 0), n - 1) for p, n, size in zip(point, (6, 4), (37, 24), strict=True))
    vector, maps = source.maps.numpy()[:, y, x], target.maps.numpy()
    r0, c0 = most_similar(vector, maps)
    weights, where = [], []
    for r in range(5):
        for c in range(4):
            cosine = vector @ maps[:, r, c] / np.linalg.norm(vector) / np.linalg.norm(maps[:, r, c])
            weights.append(np.exp(cosine * np.exp(-((r - r0) ** 2 + (c - c0) ** 2) / (2 * 3.0**2)) / 0.1))
            where.append((c * 30 / 4, r * 41 / 5))
    expected = np.average(where, axis=0, weights=weights)
    found = insid3(source, target, torch.tensor([point], dtype=torch.float64), window=3.0, temperature=0.1)
    assert found[0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_probe3d_equals_the_loop():
    source, target = views(grids=((5, 5), (5, 5)), side=41)
    points = torch.tensor([[20.5, 11.0], [3.0, 23.0]], dtype=torch.float64)
    unit = (source.maps / source.maps.norm(dim=0)).numpy()
    for point, found in zip(points.tolist(), probe3d(source, target, points).tolist(), strict=True):
        vector = bilinear(unit, point[1] * 4 / 41, point[0] * 4 / 41)  # corners aligned: 0 is the first patch, the side is the last
        r, c = most_similar(vector, target.maps.numpy())
        assert found == pytest.approx([c * 41 / 5, r * 41 / 5], abs=1e-4)


class PositionFeatures(Network):
    """Features that say where in the image a patch is, by its relative place, and nothing else."""

    seen: list[tuple[int, int]]

    def dense(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        rows, columns = images.shape[-2] // 8, images.shape[-1] // 8
        y, x = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
        angle = torch.stack(torch.meshgrid(y, x, indexing="ij")) * np.pi / 2
        return torch.cat([angle.cos(), angle.sin()])[None]


def run(tmp_path, monkeypatch=None, network=None, **settings):
    """The evaluation of the small data."""
    if not (tmp_path / "data").exists():
        write_spair(tmp_path / "data")
    if network is not None:
        monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: network)
    parsed = CorrespondenceSettings(root=str(tmp_path / "data"), dataset="toy", **settings)
    return correspondence.evaluate(parsed, tmp_path / "b.safetensors", Job(out=tmp_path / "out", state=tmp_path))


@pytest.mark.parametrize("readout", ["own", "dift", "insid3"])
def test_features_that_say_the_place_score_as_the_same_place(tmp_path, monkeypatch, readout):
    """All keypoints of the small data have the same relative places: such features are perfect, through the whole evaluation."""
    network = PositionFeatures(create("vit_nano_patch8", seed=0).arch)
    network.seen = []
    result = run(tmp_path, monkeypatch, network, readout=readout, size=256, **({"temperature": 1e-4} if readout == "insid3" else {}))
    assert {name: result.metrics[name] for name in ("PCK@0.1", "PCK@0.15", "PCK@0.2", "PCK@0.1_position")} == dict.fromkeys(
        ("PCK@0.1", "PCK@0.15", "PCK@0.2", "PCK@0.1_position"), 100.0
    )
    assert len(network.seen) == 5, "each of five images once, for four pairs"
    assert (result.n, result.unit) == (4, "pairs")
    assert (tmp_path / "out/strip.png").is_file()


def test_features_of_identity_find_each_patch_in_the_same_map():
    """Every read-out finds each patch within its own convention."""
    maps = torch.eye(36, dtype=torch.float64).reshape(36, 6, 6)
    view = View(maps, 60, 60, 60)
    grid = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="xy"), dim=-1).reshape(-1, 2).double()
    assert (own(view, view, 10 * grid + 5) - (10 * grid + 5)).abs().max() < 1e-3
    assert (insid3(view, view, 10 * grid, temperature=1e-4) - 10 * grid).abs().max() < 1e-3
    # aligned corners: the last patch is read at the image's edge, and predicted at its own corner
    assert (probe3d(view, view, 12 * grid) - 10 * grid).abs().max() < 1e-3
    found, points = dift(view, view, 10 * grid + 4), 10 * grid + 4
    # an enlarged map is constant from its edge to the first patch's center: all these pixels are equally similar, and the first is taken
    assert torch.equal(found, torch.where(points == 4, 0.0, points))


def test_a_wrong_place_is_not_correct(tmp_path):
    write_spair(tmp_path / "data")
    pair = read_pairs(tmp_path / "data", "test")[0]
    settings = CorrespondenceSettings(root=".", dataset="x").resolved()
    longer = max(pair.box[2] - pair.box[0], pair.box[3] - pair.box[1])
    error = np.array([0.1 * longer, 0.1 * longer + 1e-9]) / longer
    assert correspondence.is_correct(error, 0.1, settings).tolist() == [True, False]
    assert not correspondence.is_correct(np.array([0.1]), 0.1, settings.model_copy(update={"readout": "probe3d"})).any()


def test_four_averages_equal_the_loop():
    correct, total, names = np.array([1, 3, 0, 2]), np.array([2, 3, 4, 4]), np.array(["a", "a", "b", "b"])
    found = correspondence.four_averages(correct, total, names)
    assert found["image", "pairs"] == pytest.approx(100 * (1 / 2 + 1 + 0 + 1 / 2) / 4)
    assert found["point", "pairs"] == pytest.approx(100 * 6 / 13)
    assert found["image", "categories"] == pytest.approx(100 * ((0.75) + (0.25)) / 2)
    assert found["point", "categories"] == pytest.approx(100 * (4 / 5 + 2 / 8) / 2)


@pytest.mark.parametrize("readout", READOUTS)
def test_whole_evaluation(tmp_path, readout):
    write_backbone(tmp_path / "b.safetensors")
    result = run(tmp_path, readout=readout, size=64)
    assert list(result.metrics) == list(CorrespondenceSettings.METRICS)
    assert result.metrics["PCK@0.05"] <= result.metrics["PCK@0.1"] <= result.metrics["PCK@0.2"]
    assert result.metrics["PCK@0.1_position"] == 100
    average = "by point over categories" if readout == "probe3d" else "by image over pairs"
    assert result.details["averages"]["PCK@0.1"][average] == result.metrics["PCK@0.1"]
    result.units.require_scores(result.metrics)
    by_point = run(tmp_path, readout=readout, size=64, average="point", over="pairs")
    by_point.units.require_scores(by_point.metrics)
    by_category = run(tmp_path, readout=readout, size=64, average="image", over="categories")
    by_category.units.require_scores(by_category.metrics)
    assert by_category.metrics["PCK@0.1"] == result.details["averages"]["PCK@0.1"]["by image over categories"]
    assert by_point.metrics["PCK@0.1"] == result.details["averages"]["PCK@0.1"]["by point over pairs"]


def test_some_pairs_of_each_category(tmp_path):
    write_spair(tmp_path / "data")
    pairs = read_pairs(tmp_path / "data", "test")
    chosen = correspondence.choose_pairs(pairs, 2)
    assert [sum(pair.category == name for pair in chosen) for name in ("cat", "car")] == [2, 1]
    assert chosen == correspondence.choose_pairs(pairs, 2)
    assert correspondence.choose_pairs(pairs, None) == pairs


def test_images_are_seen_as_each_code_shows_them():
    network = create("vit_nano_patch8", seed=0)
    image = Image.new("RGB", (51, 32), "black")
    settings = CorrespondenceSettings(root=".", dataset="x", size=64)
    resized = {}
    for readout in READOUTS:
        resized[readout], side = correspondence.resize(image, settings.model_copy(update={"readout": readout}), network)
        assert side == (51 if readout == "probe3d" else None)
    assert resized["own"].size == (104, 64)  # 102 is nearer to 13 patches than to 12
    low = correspondence.resize(Image.new("RGB", (49, 32)), settings, network)[0]
    assert low.size == (96, 64)
    assert resized["dift"].size == resized["insid3"].size == resized["probe3d"].size == (64, 64)
    assert np.asarray(resized["probe3d"])[:38].max() == 0
    assert np.asarray(resized["probe3d"])[45:].min() == 255


def test_same_place():
    source, target = views()
    assert same_place(source, target, torch.tensor([[37.0, 12.0]]))[0].tolist() == pytest.approx([30, 20.5])


def test_protocol_names():
    base = {"root": ".", "dataset": "SPair-71k"}
    names = [CorrespondenceSettings(**base, readout=readout).protocol for readout in READOUTS]
    assert len(set(names)) == 4
    insid3_settings = CorrespondenceSettings(**base, readout="insid3")
    assert insid3_settings.published_protocol == "PCK by image, 768 px, windowed soft-argmax (INSID3)"
    assert CorrespondenceSettings(**base, readout="insid3", size=768).published_protocol == insid3_settings.published_protocol
    for change in ({"size": 512}, {"window": 5.0}, {"average": "point"}, {"readout": "own"}, {"split": "val"}, {"pairs_per_category": 9}):
        assert CorrespondenceSettings(**{**base, "readout": "insid3", **change}).published_protocol is None, change
        assert CorrespondenceSettings(**{**base, "readout": "insid3", **change}).protocol != insid3_settings.protocol
    with pytest.raises(ValidationError, match="readout"):
        CorrespondenceSettings(**base, readout="nearest")


def change(root, name, **values):
    """Change fields of a pair's annotation, or remove them (None)."""
    path = root / f"PairAnnotation/test/{name}.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"src_kps": [[10, 7], [41, 22], [30, 15]]}, r"src_kps\[1\]: the keypoint 41, 22 lies outside the image of 40x30"),
        ({"trg_kps": [[-1, 7], [20, 22], [30, 15]]}, r"trg_kps\[0\]: the keypoint -1, 7 lies outside"),
        ({"trg_kps": [[9, 7]]}, "has 3 keypoints src_kps and 1 trg_kps"),
        ({"trg_imsize": [48, 36, 3]}, "width and height are swapped"),
        ({"trg_bndbox": [2, 2, 2, 30]}, "allowed: x0 < x1"),
        ({"src_kps": [[1, 2, 3]]}, r"src_kps.0"),
        ({"src_kps": []}, "src_kps"),
        ({"category": "dog"}, "is of the pair a-b:dog"),
        ({"src_imname": None}, "src_imname: Field required"),
    ],
)
def test_bad_annotations_are_named(tmp_path, values, said):
    write_spair(tmp_path)
    path = change(tmp_path, "000000-a-b:cat", **values)
    with pytest.raises(UserError, match=said) as error:
        read_pairs(tmp_path, "test")
    assert path.name in str(error.value)


@pytest.mark.parametrize("side", ["src", "trg"])
@pytest.mark.parametrize(
    "box",
    [
        [1, 1, 3600, 4800],  # would make PCK 100 for anything
        [-500, -500, 36, 48],
        [2, 2, 46, 34],  # x and y swapped: the image is 36 wide and 48 high
        [2, 2, 34, 52],
    ],
)
def test_a_box_that_leaves_its_image_is_named(tmp_path, side, box):
    write_spair(tmp_path)
    name = {"src": "000002-b-c:cat", "trg": "000000-a-b:cat"}[side]
    path = change(tmp_path, name, **{f"{side}_bndbox": box})
    said = f"{path}, {side}_bndbox: the box {', '.join(map(str, box))} leaves the image of 36x48; allowed: x0, y0, x1, y1 in pixels"
    with pytest.raises(UserError) as error:
        read_pairs(tmp_path, "test")
    assert str(error.value) == f"{said}; to do: correct the annotation"


@pytest.mark.parametrize("box", [[0, 0, 36, 48], [1, 1, 36, 48], [1, 1, 37, 49], [-2, -2, 38, 50]])
def test_a_box_may_touch_the_border_and_count_from_one(tmp_path, box):
    write_spair(tmp_path)
    change(tmp_path, "000000-a-b:cat", trg_bndbox=box)
    assert read_pairs(tmp_path, "test")[0].box.tolist() == box


def test_bad_lists_and_files_are_named(tmp_path):
    write_spair(tmp_path)
    layout = tmp_path / "Layout/large/test.txt"
    lines = layout.read_text()
    for text, said in (
        ("cat\n", "line 1: 'cat' names no pair"),
        (lines + "000009-a-c:cat\n", r"000009-a-c:cat\.json does not exist"),
        (lines + lines.splitlines()[0] + "\n", "counted twice"),
    ):
        layout.write_text(text)
        with pytest.raises(UserError, match=said):
            read_pairs(tmp_path, "test")
    layout.write_text(lines)
    with pytest.raises(UserError, match=r"val\.txt does not exist"):
        read_pairs(tmp_path, "val")
    (tmp_path / "PairAnnotation/test/000000-a-b:cat.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_pairs(tmp_path, "test")
    write_spair(tmp_path / "again")
    (tmp_path / "again/JPEGImages/car/e.jpg").unlink()
    with pytest.raises(UserError, match=r"car/e\.jpg does not exist"):
        read_pairs(tmp_path / "again", "test")
