"""Codes of patches: their products are the cosines, and their file is checked."""

import base64
import json
import math

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.visualization.patch_codes import CodedImage, PatchCodes, codes_of, make_codes, read_patches, to_text, write_patches
from densewalk.visualization.record import DrawnImage, FeaturesRecord


def features(*grids, dim=96, seed=0):
    """Patches whose variances fall like those of a network's features, around a common mean."""
    generator = np.random.default_rng(seed)
    spread = 8 * np.arange(1, dim + 1) ** -1.0
    mean = generator.standard_normal(dim)
    return [mean + spread * generator.standard_normal((patches, dim)) for patches in grids]


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def test_products_of_codes_are_close_to_the_cosines_and_the_error_says_how_close():
    images = features(30, 50)
    found = make_codes(images, 24)
    assert [codes.shape for codes in found.codes] == [(30, 24), (50, 24)]
    assert all(codes.dtype == np.int8 for codes in found.codes)
    every, codes = np.concatenate(images), np.concatenate(found.codes).astype(float)
    differences = []
    for i in range(0, 80, 3):
        for j in range(0, 80, 2):
            product = sum(s * s * a * b for s, a, b in zip(found.scales, codes[i], codes[j], strict=True))
            differences.append(abs(product - cosine(every[i].tolist(), every[j].tolist())))
    assert np.quantile(differences, 0.95) == pytest.approx(found.errors[-1], rel=0.15)
    assert found.errors[-1] < 0.03
    assert max(differences) < 0.1


def test_with_as_many_components_as_dimensions_only_rounding_is_left():
    found = make_codes(features(40, 40, dim=16), 64)
    assert found.scales.shape == (16,)
    assert found.errors[-1] < 0.01
    assert all(np.diff(found.errors)[:8] < 0), "more components, less error"


def test_codes_depend_neither_on_the_basis_nor_on_the_length_of_features():
    images = features(60)
    turned = [f @ np.linalg.qr(np.random.default_rng(1).standard_normal((96, 96)))[0] * 7 for f in images]
    one, other = make_codes(images, 12), make_codes(turned, 12)

    def products(made):
        codes = made.codes[0] * made.scales
        return codes @ codes.T

    np.testing.assert_allclose(products(one), products(other), atol=0.02)


def test_patches_without_any_features_are_similar_to_nothing():
    found = make_codes([np.concatenate([features(10)[0], np.zeros((1, 96))])], 8)
    assert not found.codes[0][-1].any()
    assert np.isfinite(found.scales).all()
    assert (make_codes([np.zeros((5, 4))], 3).errors == 0).all()


def coded(codes, **changed):
    image = {"name": "image_0", "source": "walk", "number": 3, "rows": 2, "columns": 3, "codes": codes}
    return {"version": 1, "scales": [0.1, 0.2], "errors": [0.3, 0.1], "images": [image | changed]}


def test_a_file_is_read_as_it_was_written(tmp_path):
    codes = np.arange(-6, 6, dtype=np.int8).reshape(6, 2)
    content = PatchCodes.model_validate(coded(to_text(codes), seconds=0.5, name="clip_0"))
    write_patches(tmp_path / "patches.json", content)
    found = read_patches(tmp_path / "patches.json")
    assert found == content
    np.testing.assert_array_equal(codes_of(found.images[0], 2), codes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": [coded("?")["images"][0]]}, "image_0 are no base64"),
        ({"images": [coded(base64.b64encode(b"12345").decode())["images"][0]]}, "image_0 has 5 codes; allowed: 12"),
        ({"errors": [0.1]}, "2 scales and 1 errors"),
        ({"version": 2}, "version"),
        ({"scales": [0.1, -1.0]}, "scales"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, changed, message):
    path = tmp_path / "patches.json"
    path.write_text(json.dumps(coded(base64.b64encode(bytes(12)).decode()) | changed))
    with pytest.raises(UserError, match=message) as error:
        read_patches(path)
    assert str(path) in str(error.value)


def test_codes_of_other_features_than_the_record_beside_them_are_refused(tmp_path):
    path = tmp_path / "patches.json"
    write_patches(path, PatchCodes.model_validate(coded(base64.b64encode(bytes(12)).decode()) | {"backbone_sha256": "a"}))
    drawn = [DrawnImage(source="walk", number=3, variance=[0.5])]
    read_patches(path, FeaturesRecord(images=drawn, heads=0, nearest=False, backbone_sha256="a"))
    with pytest.raises(UserError, match="backbone_sha256 differs"):
        read_patches(path, FeaturesRecord(images=drawn, heads=0, nearest=False, backbone_sha256="b"))
    with pytest.raises(UserError, match="other images"):
        read_patches(path, FeaturesRecord(images=[], heads=0, nearest=False, backbone_sha256="a"))


def test_a_name_is_one_of_a_picture_and_no_path():
    with pytest.raises(ValueError, match="name"):
        CodedImage(name="../../secret", source="walk", number=0, rows=1, columns=1, codes="")
