"""NAVI's layout: cameras against an independent projection, and every file that is not what it should be is named."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.object_views import read_view_depth, read_views, rotation_of
from tests.fixtures.layouts import RADII, write_navi


@pytest.fixture
def root(tmp_path):
    return write_navi(tmp_path / "navi_v1")


def change(root, entry=1, thing="thing_0", **values):
    """Change fields of an entry, or remove them (None); those of the camera have names that begin with camera_."""
    path = root / thing / "wild_set/annotations.json"
    entries = json.loads(path.read_text())
    for name, value in values.items():
        part, key = (entries[entry]["camera"], name.removeprefix("camera_")) if name.startswith("camera_") else (entries[entry], name)
        part[key] = value
        if value is None:
            del part[key]
    path.write_text(json.dumps(entries))
    return path


# -- conventions -------------------------------------------------------------------------------------------------------


def test_a_quaternion_is_w_x_y_z_of_any_length():
    rng = np.random.default_rng(0)
    for turn in [Rotation.random(rng=rng) for _ in range(20)]:
        x, y, z, w = turn.as_quat()
        assert np.allclose(rotation_of(np.array([w, x, y, z])), turn.as_matrix(), atol=1e-12)
        assert np.allclose(rotation_of(-1.7 * np.array([w, x, y, z])), turn.as_matrix(), atol=1e-12)
    quarter = np.sqrt(0.5)  # about z: x becomes y
    assert np.allclose(rotation_of(np.array([quarter, 0, 0, quarter])) @ [1, 0, 0], [0, 1, 0])


def test_points_are_seen_where_opencv_projects_them(root):
    """OpenCV's axes are right, down, forward, and its pose takes the object to the camera."""
    points = np.random.default_rng(1).uniform(-0.1, 0.1, (30, 3))
    for view, entry in zip(read_views(root)[:5], json.loads((root / "thing_0/wild_set/annotations.json").read_text()), strict=True):
        camera, (height, width) = entry["camera"], entry["image_size"]
        w, x, y, z = camera["q"]
        matrix = np.array([[camera["focal_length"], 0, width / 2], [0, camera["focal_length"], height / 2], [0, 0, 1]])
        pose = Rotation.from_quat([x, y, z, w]).as_rotvec(), np.array(camera["t"])
        expected = cv2.projectPoints(1000 * points, *pose, matrix, None)[0][:, 0]
        rays, depth = view.project(points)
        assert np.allclose(rays * view.focal + (width / 2, height / 2), expected, atol=1e-6)
        assert np.allclose(view.lift(rays, depth), points, atol=1e-12)
        assert view.size == (height, width)


def test_depth_and_pose_give_the_surface(root):
    for view in read_views(root):
        depth = read_view_depth(view)
        rows, columns = np.nonzero(depth)
        rays = (np.stack([columns, rows], axis=1) + 0.5 - np.array(view.size[::-1]) / 2) / view.focal
        points = view.lift(rays, depth[rows, columns])
        # 16 bits hold 45 cm to 0.3 mm; a slanted ray shows the edge with more than that
        assert abs(np.median(np.linalg.norm(points / RADII, axis=1)) - 1) < 2e-3
        colors = np.asarray(Image.open(view.image))[rows, columns]
        assert np.quantile(abs(128 + 1000 * points - colors).max(1), 0.95) < 1


def test_views_are_sorted_and_other_folders_left_out(root):
    (root / "custom_splits/pairwise_pixel_correspondences").mkdir(parents=True)
    (root / "thing_2/multiview-00-pixel_5").mkdir(parents=True)
    (root / "thing_0/wild_set/images/downsampled_000.png").write_bytes(b"of probe3d's preparation")
    path = root / "thing_1/wild_set/annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    names = [view.name for view in read_views(root.parent)]
    assert names == [f"thing_{thing}/{view:03d}" for thing in (0, 1) for view in range(5)]


def test_depth_lies_on_the_upright_image_whatever_its_tag_says(root):
    """NAVI's depth maps are drawn on the upright image; also a half turn, which fits both ways, is no question."""
    before = read_views(root)[0]
    image = Image.open(before.image)
    tags = Image.Exif()
    tags[0x0112] = 3
    image.transpose(Image.Transpose.ROTATE_180).save(before.image, exif=tags)
    view = read_views(root)[0]
    assert view.size == before.size
    assert np.array_equal(read_view_depth(view), read_view_depth(before))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"camera": None}, r"1\.camera: Field required"),
        ({"camera_q": None}, r"1\.camera\.q: Field required"),
        ({"camera_t": [1.0, 2.0]}, r"1\.camera\.t: List should have at least 3"),
        ({"camera_t": [1.0, 2.0, float("nan")]}, r"1\.camera\.t\.2: Input should be a finite number"),
        ({"camera_focal_length": 0}, r"1\.camera\.focal_length: Input should be greater than 0"),
        ({"camera_q": [0, 0, 0, 0]}, r"entry 1 \(image 001\.png\): camera\.q 0, 0, 0, 0 is no rotation"),
        ({"camera_q": [40, 10, 0, 3]}, "is no rotation; allowed: a quaternion w, x, y, z of length 1"),
        ({"image_size": [80, 60]}, r"says image_size 80, 60, but .*001\.png is 60 high and 80 wide \(height and width are swapped\)"),
        ({"image_size": [61, 80]}, r"says image_size 61, 80, but .*images/001\.png is 60 high"),
        ({"image_size": ["60", "80"]}, r"1\.image_size\.0: Input should be a valid integer"),
        ({"filename": "000.png"}, r"entry 1: 000 has an entry already"),
        ({"filename": "../000.png"}, r"entry 1: '\.\./000\.png' is no file inside its folder"),
        ({"filename": "009.png"}, r"image .*images/009\.png does not exist"),
    ],
)
def test_bad_annotations_are_named(root, values, said):
    path = change(root, **values)
    with pytest.raises(UserError, match=said) as error:
        read_views(root)
    assert str(path) in str(error.value)


def test_an_image_without_pose_is_named(root):
    path = root / "thing_1/wild_set/annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(UserError, match=r"thing_1/wild_set/images/000\.png has no pose: .*annotations\.json does not name it"):
        read_views(root)


def test_bad_depth_maps_are_named(root):
    path = root / "thing_0/wild_set/depth/001.png"
    stored = np.asarray(Image.open(path))
    for values, said in (
        ((stored >> 8).astype(np.uint8), "has 8 bits a pixel; allowed: one channel of 16 bits"),
        (np.repeat(stored.astype(np.uint8)[..., None], 3, axis=2), "has RGB a pixel"),
        (stored.T, r"001\.png is 80 high and 60 wide \(height and width are swapped\)"),
        (stored[1:], "is 59 high and 80 wide"),
    ):
        Image.fromarray(values).save(path)
        with pytest.raises(UserError, match=said) as error:
            read_views(root)
        assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=rf"depth map {path} does not exist"):
        read_views(root)


def test_a_depth_map_of_32_bits_is_named(root):
    path = root / "thing_0/wild_set/depth/001.png"
    Image.fromarray(np.asarray(Image.open(path)).astype(np.int32)).save(path, format="TIFF")
    with pytest.raises(UserError, match=rf"depth map {path} has 32 bits a pixel; allowed: one channel of 16 bits"):
        read_views(root)


def test_an_empty_depth_map_is_named(root):
    path = root / "thing_0/wild_set/depth/001.png"
    Image.fromarray(np.zeros((60, 80), np.uint16)).save(path)
    with pytest.raises(UserError, match=rf"{path} shows nothing of the object: it is 0 everywhere"):
        read_view_depth(read_views(root)[1])


def test_bad_files_and_folders_are_named(root, tmp_path):
    with pytest.raises(UserError, match=r"the folder of NAVI's objects, .*nowhere does not exist"):
        read_views(tmp_path / "nowhere")
    (tmp_path / "empty/thing").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty holds no object; allowed: folders \{object\}/wild_set"):
        read_views(tmp_path / "empty")
    path = root / "thing_0/wild_set/annotations.json"
    for text, said in (("[", "is no JSON"), ("{}", "the file: Input should be a valid list"), ("[]", "names no image")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_views(root)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} does not exist"):
        read_views(root)
