"""Codes of patches: their products are the cosines, and their file is checked."""

import base64
import json
import math
import zlib

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.visualization.patch_codes import (
    END,
    STEPS,
    CodedImage,
    PatchCodes,
    choose,
    codes_of,
    make_codes,
    pack,
    read_patches,
    to_text,
    write_patches,
)
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
    count = found.codes[0].shape[1]
    assert [codes.shape for codes in found.codes] == [(30, count), (50, count)]
    assert 4 <= count <= 24
    assert all(codes.dtype == np.int8 for codes in found.codes)
    every, codes = np.concatenate(images), np.concatenate(found.codes).astype(float)
    differences = []
    for i in range(0, 80, 3):
        for j in range(0, 80, 2):
            product = sum(s * s * a * b for s, a, b in zip(found.scales, codes[i], codes[j], strict=True))
            differences.append(abs(product - cosine(every[i].tolist(), every[j].tolist())))
    assert np.quantile(differences, 0.95) == pytest.approx(found.errors[-1], rel=0.15)
    assert 0.03 < found.errors[-1] <= 0.05, "as coarse as is allowed"
    assert max(differences) < 0.15


def test_the_chosen_code_has_the_fewest_bits_of_all_that_are_good_enough():
    unit = np.concatenate(features(60, 60))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = unit @ np.linalg.eigh(unit.T @ unit)[1][:, ::-1][:, :12]
    pairs = np.random.default_rng(2).integers(120, size=(2, 3000))
    cosines = (unit[pairs[0]] * unit[pairs[1]]).sum(1)

    def error(step, count):
        rounded = step * np.round(scores[:, :count] / step) if step else scores[:, :count]
        return np.quantile(np.abs((rounded[pairs[0]] * rounded[pairs[1]]).sum(1) - cosines), 0.95)

    def bits(step, count):
        columns = [np.round(scores[:, k] / step).tolist() for k in range(count)]
        return sum(-math.log2(column.count(value) / len(column)) for column in columns for value in column)

    allowed = max(0.05, 1.1 * error(0, 12))
    candidates = [(bits(step, n), step, n) for step in STEPS for n in range(1, 13) if error(step, n) <= allowed]
    step, count, errors = choose(scores, pairs, cosines, 0.05)
    assert (step, count) == min(candidates)[1:]
    assert errors[-1] == pytest.approx(error(step, count))


def test_with_as_many_components_as_dimensions_only_rounding_is_left():
    found = make_codes(features(40, 40, dim=16), 64, error=0.0)
    assert found.scales.shape == (16,)
    assert found.errors[-1] < 0.015
    assert all(np.diff(found.errors)[:8] < 0), "more components, less error"


def test_features_that_few_components_cannot_tell_lose_a_tenth_at_most():
    flat = np.random.default_rng(3).standard_normal((200, 64))
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    basis = np.linalg.eigh(unit.T @ unit)[1][:, ::-1][:, :16]
    kept = unit @ basis @ basis.T
    least = np.quantile(np.abs(kept @ kept.T - unit @ unit.T), 0.95)
    assert least > 0.1
    found = make_codes([flat], 16)
    codes = found.codes[0] * found.scales
    assert np.quantile(np.abs(codes @ codes.T - unit @ unit.T), 0.95) < 1.13 * least
    assert sum(map(len, pack(found.codes[0]))) < 0.6 * 200 * 16


def test_packed_components_are_one_deflated_stream_of_any_number_of_them():
    codes = np.round(np.random.default_rng(1).normal(0, [30, 5, 1, 0.2], (700, 4))).astype(np.int8)
    packed = pack(codes)
    for count in (1, 3, 4):
        content = zlib.decompress(b"".join([*packed[:count], END]), -15)
        np.testing.assert_array_equal(np.frombuffer(content, np.int8).reshape(count, 700), codes[:, :count].T)
    assert [len(part) for part in packed] == sorted((len(part) for part in packed), reverse=True)
    assert len(packed[3]) < 700 / 5


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
