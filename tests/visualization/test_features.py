"""Pictures of features, against plain loops."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.data.check_images import check_images
from densewalk.data.images import normalize
from densewalk.data.settings import ImagesSettings
from densewalk.data.sources import Source
from densewalk.models.loading import create
from densewalk.visualization.features import (
    GAP,
    OUTLIERS,
    EncodedImage,
    FoundPatch,
    attention_maps,
    brightness,
    crop_around,
    draw_features,
    nearest_patches,
    patch_squares,
    principal_components,
    select_images,
)
from densewalk.visualization.overlays import FOUND_COLOR
from densewalk.visualization.patch_codes import codes_of, patches_path, read_patches
from densewalk.visualization.settings import PictureSettings

COLOR = tuple(int(FOUND_COLOR[i : i + 2], 16) for i in (1, 3, 5))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- principal components ----------------------------------------------------------------------------------------------


def test_components_are_those_of_the_covariance():
    patches, anchor = noise(60, 8) * torch.tensor([9.0, 6, 4, 1, 1, 1, 1, 1]), noise(60, seed=1)
    shown, shares = principal_components(patches, anchor)
    x = patches.numpy().astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)  # ascending
    for i in range(3):
        score = x @ vectors[:, -1 - i]
        rises = sum(s * (a - float(anchor.double().mean())) for s, a in zip(score, anchor.double().tolist(), strict=True))
        score = sorted(enumerate(score if rises >= 0 else -score), key=lambda pair: pair[1])
        ordered = [value for _, value in score]
        low, high = (np.quantile(ordered, q) for q in (OUTLIERS, 1 - OUTLIERS))
        for place, value in score:
            assert shown[place, i] == pytest.approx(min(1.0, max(0.0, (value - low) / (high - low))), abs=1e-5)
        assert shares[i] == pytest.approx(values[-1 - i] / values.sum(), rel=1e-5)


def test_equal_backbones_in_another_basis_have_equal_colors():
    patches, anchor = noise(40, 6), noise(40, seed=1)
    turned = patches @ torch.linalg.qr(noise(6, 6, seed=2))[0]
    np.testing.assert_allclose(principal_components(patches, anchor)[0], principal_components(turned, anchor)[0], atol=1e-4)
    np.testing.assert_allclose(principal_components(patches, anchor)[0], principal_components(-patches, anchor)[0], atol=1e-4)


def test_a_backbone_that_sees_no_difference_is_drawn_too():
    shown, shares = principal_components(torch.ones(12, 5), noise(12))
    assert shown.shape == (12, 3)
    assert np.isfinite(shown).all()
    assert shares == [0.0, 0.0, 0.0]


def test_brightness_is_the_mean_of_each_patch():
    image = torch.randint(0, 256, (3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = brightness(image, 4)
    for row in range(2):
        for column in range(3):
            square = [float(image[c, 4 * row + y, 4 * column + x]) for c in range(3) for y in range(4) for x in range(4)]
            assert float(found[3 * row + column]) == pytest.approx(sum(square) / len(square), rel=1e-5)


def test_every_patch_becomes_a_square():
    values = np.linspace(0, 1, 18, dtype=np.float32).reshape(6, 3)
    picture = patch_squares(values, (2, 3), 4)
    assert picture.shape == (8, 12, 3)
    for y in range(8):
        for x in range(12):
            assert picture[y, x].tolist() == [round(255 * float(v)) for v in values[3 * (y // 4) + x // 4]]


# -- attention ---------------------------------------------------------------------------------------------------------


def test_attention_of_each_head_goes_from_black_to_white():
    attention = torch.tensor([[0.125, 0.25, 0.375, 0.25], [0.05, 0.05, 0.05, 0.05]])
    picture = attention_maps(attention, (2, 2), 3)
    assert picture.shape == (6, 6 + GAP + 6, 3)
    assert [picture[y, x, 0] for y, x in ((0, 0), (0, 3), (3, 0), (3, 3))] == [0, 128, 255, 128]
    assert (picture[:, 6 : 6 + GAP] == 128).all()
    assert (picture[:, 6 + GAP :] == 0).all(), "a head that looks everywhere alike"


# -- nearest patches ---------------------------------------------------------------------------------------------------


def test_nearest_patches_are_those_of_a_plain_search():
    grids = [(2, 3), (3, 3), (2, 2), (3, 2), (2, 3)]
    seen = [EncodedImage(noise(h * w, 5, seed=i), (h, w)) for i, (h, w) in enumerate(grids)]
    query, count = 1, 3
    found = nearest_patches(seen, query, count)
    assert found[0] == FoundPatch(1, 1, 1, 1.0)
    vector = seen[1].features[4].tolist()
    best = []
    for i, other in enumerate(seen):
        if i == query:
            continue
        candidates = []
        for p, patch in enumerate(other.features.tolist()):
            dot = sum(a * b for a, b in zip(vector, patch, strict=True))
            candidates.append((dot / math.sqrt(sum(a * a for a in vector)) / math.sqrt(sum(b * b for b in patch)), p))
        similarity, p = max(candidates)
        best.append((similarity, i, *divmod(p, grids[i][1])))
    expected = sorted(best, reverse=True)[:count]
    assert [(f.image, f.row, f.column) for f in found[1:]] == [(i, y, x) for _, i, y, x in expected]
    assert [f.similarity for f in found[1:]] == pytest.approx([s for s, *_ in expected], abs=1e-6)


def test_a_patch_is_outlined_and_what_is_beyond_the_edge_is_black():
    image = torch.full((3, 16, 16), 200, dtype=torch.uint8)
    picture = crop_around(image, FoundPatch(0, 0, 3, 1.0), patch=4, around=1)
    assert picture.shape == (12, 12, 3)
    assert (picture[:4] == 0).all(axis=-1)[:2].all(), "above the picture"
    assert (picture[5, 9:] == 0).all(), "to its right"
    assert tuple(picture[4, 6]) == COLOR
    assert tuple(picture[10, 1]) == (200, 200, 200)


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    """Two folders, of five and of two pictures."""
    made = []
    for name, count in (("many", 5), ("few", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture = np.random.default_rng(10 * count + i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
        made.append(Source(name, check_images(ImagesSettings(source=str(tmp_path / name)), name)))
    return made


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [("many", 2)]),
        (4, [("many", 1), ("many", 3), ("few", 0), ("few", 1)]),
        (50, [*(("many", i) for i in range(5)), *(("few", i) for i in range(2))]),
    ],
)
def test_images_are_shared_out_among_sources_and_spread_within(sources, count, expected):
    found = list(select_images(sources, count, PictureSettings(short_side=32), 16))
    assert [(image.source, image.number) for image in found] == expected
    assert all(min(image.pixels.shape[1:]) == 32 and image.pixels.shape[2] % 16 == 0 for image in found)


def test_all_images_of_a_trained_backbone(sources, tmp_path):
    before, after = (create("vit_nano_patch16", seed=seed).eval() for seed in (0, 1))
    settings = PictureSettings(images=3, searched=4, short_side=32)
    for name in ("one", "two"):
        draw_features(after, before, sources, settings, tmp_path / name / "features.json")
    facts = json.loads((tmp_path / "one" / "features.json").read_text())
    assert [(i["source"], i["number"]) for i in facts["images"]] == [("many", 1), ("many", 3), ("few", 1)]
    assert (facts["heads"], facts["nearest"]) == (after.arch.heads, True)
    assert all(0 < sum(i["variance"]) <= 1 for i in facts["images"])
    names = {f"{kind}_{i}.png" for kind in ("image", "pca", "attention") for i in range(3)} | {"nearest.png", "patches.json"}
    assert {p.name for p in (tmp_path / "one" / "features").iterdir()} == names
    for name in names:
        one, two = (tmp_path / folder / "features" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), "equal weights give equal files"
    with Image.open(tmp_path / "one" / "features" / "image_0.png") as image, Image.open(tmp_path / "one" / "features" / "pca_0.png") as pca:
        assert image.size == pca.size
    with Image.open(tmp_path / "one" / "features" / "attention_0.png") as attention:
        assert attention.width == after.arch.heads * (image.width + GAP) - GAP


def test_codes_are_those_of_the_images_features_and_of_a_clip(sources, tmp_path):
    for video in ("one", "two"):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for i in range(9):
            pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "frames" / video / f"{i:05d}.png")
    frames = ImagesSettings(source=str(tmp_path / "frames"), layout="sequences", fps=4)
    sources.append(Source("frames", check_images(frames, "frames")))
    network = create("vit_nano_patch16", seed=0).eval()
    settings = PictureSettings(images=3, short_side=48, components=64, clip_frames=3, clip_spacing=0.6)
    draw_features(network, None, sources, settings, tmp_path / "f.json")
    found = read_patches(patches_path(tmp_path / "f.json"))
    assert [(i.name, i.source, i.seconds) for i in found.images[3:]] == [(f"clip_{k}", "frames", k * 0.5) for k in range(3)]
    assert [(i.source, i.number) for i in found.images[:3]] == [
        (i["source"], i["number"]) for i in json.loads((tmp_path / "f.json").read_text())["images"]
    ]
    decoded, true = [], []
    for image in found.images:
        with Image.open(tmp_path / "f" / f"{image.name}.png") as opened:
            pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
        maps = network.dense(normalize(pixels / 255, network.statistics)[None])[0].detach()
        assert maps.shape[1:] == (image.rows, image.columns)
        true.append(torch.nn.functional.normalize(maps.flatten(1).T, dim=1))
        decoded.append(torch.from_numpy(codes_of(image, len(found.scales)) * np.array(found.scales)))
    cosines, products = torch.cat(true) @ torch.cat(true).T, torch.cat(decoded) @ torch.cat(decoded).T
    assert float((cosines - products).abs().max()) < 0.25
    assert float((cosines - products).abs().quantile(0.95)) == pytest.approx(found.errors[-1], abs=0.003)
    assert found.errors[-1] <= settings.similarity_error


def test_without_a_clip_that_fits_or_without_components_there_is_none(sources, tmp_path, caplog):
    (tmp_path / "short" / "one").mkdir(parents=True)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "short" / "one" / "00000.png")
    short = Source("short", check_images(ImagesSettings(source=str(tmp_path / "short"), layout="sequences", fps=4), "short"))
    network = create("vit_nano_patch16", seed=0).eval()
    draw_features(network, None, [*sources, short], PictureSettings(images=2, short_side=32), tmp_path / "f.json")
    assert [i.name for i in read_patches(patches_path(tmp_path / "f.json")).images] == ["image_0", "image_1"]
    assert "no clip is drawn of short" in caplog.text
    draw_features(network, None, sources, PictureSettings(images=1, short_side=32, components=0), tmp_path / "f.json")
    assert not patches_path(tmp_path / "f.json").exists(), "nor are earlier ones left"


def test_a_backbone_that_was_taken_over_has_no_before(sources, tmp_path):
    draw_features(create("vit_nano_patch16", seed=0).eval(), None, sources, PictureSettings(images=1, short_side=32), tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["nearest"] is False
    assert not (tmp_path / "f" / "nearest.png").exists()


def test_a_single_image_has_no_neighbors_but_is_drawn(sources, tmp_path):
    network = create("vit_nano_patch16", seed=0).eval()
    for path in sorted((tmp_path / "many").iterdir())[1:]:
        path.unlink()
    one = [Source("many", check_images(ImagesSettings(source=str(tmp_path / "many")), "again"))]
    draw_features(network, network, one, PictureSettings(short_side=32), tmp_path / "f.json")
    assert len(json.loads((tmp_path / "f.json").read_text())["images"]) == 1
