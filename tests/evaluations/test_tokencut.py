"""TokenCut's cut against the generalized problem solved densely, images with one thing in them, and cuts that are not defined."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from densewalk.evaluations.common.base import Job
from densewalk.evaluations.discovery import evaluate as discovery
from densewalk.evaluations.discovery import tokencut
from densewalk.evaluations.discovery.regions import component_of
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.models.export import export_backbone
from densewalk.models.interface import Network
from densewalk.models.loading import create
from tests.fixtures.layouts import write_coco


def random_features(patches, dim=24, seed=0):
    """Three groups of patches with noise."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(3, dim))
    return torch.from_numpy(centers[rng.integers(0, 3, patches)] + 0.9 * rng.normal(size=(patches, dim)))


def plain(x, tau, kind):
    """The definition: the second-smallest generalized eigenpair of D - W and D, and the next eigenvalue."""
    f = [row / np.linalg.norm(row) for row in x.numpy()]
    n = len(f)
    w = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            cosine = float(f[i] @ f[j])
            w[i, j] = (1.0 if cosine > tau else 1e-5) if kind == "binary" else (cosine if cosine >= tau else 1e-5)
    d = np.diag(w.sum(1))
    values, vectors = scipy.linalg.eigh(d - w, d)
    return w, vectors[:, 1], values[2] - values[1]


@pytest.mark.parametrize("patches", [20, tokencut.DENSE, 150])
@pytest.mark.parametrize("kind", ["binary", "weighted"])
def test_the_second_eigenvector_equals_the_dense_generalized_solution(patches, kind):
    x = random_features(patches)
    w, expected, gap = plain(x, 0.2, kind)
    graph = tokencut.build_graph(tokencut.similarities(x), 0.2, kind)
    assert np.allclose(graph, w, rtol=0, atol=1e-12)
    vector, found_gap = tokencut.second_eigenvector(graph)
    vector, expected = vector / np.linalg.norm(vector), expected / np.linalg.norm(expected)
    at = np.abs(expected).argmax()
    assert np.allclose(vector * np.sign(vector[at] * expected[at]), expected, rtol=0, atol=1e-9)
    assert found_gap == pytest.approx(gap, abs=3e-2 if patches > tokencut.DENSE else 1e-10)


@pytest.mark.parametrize("kind", ["binary", "weighted"])
def test_a_graph_of_few_similar_pairs_is_multiplied_sparsely(kind, monkeypatch):
    """More noise leaves few cosines above tau: the product and the vector are those of the whole matrix."""
    x = random_features(150) + 2.2 * torch.from_numpy(np.random.default_rng(5).normal(size=(150, 24)))
    w, expected, gap = plain(x, 0.45, kind)
    graph = tokencut.build_graph(tokencut.similarities(x), 0.45, kind)
    assert 0 < (graph > tokencut.WEAK).mean() < tokencut.SPARSE
    vector = np.random.default_rng(0).normal(size=150)
    monkeypatch.setattr(tokencut, "dsymv", None)  # of the whole matrix
    assert np.allclose(tokencut.multiplier(graph)(vector), w @ vector, rtol=1e-12, atol=1e-12)
    found, found_gap = tokencut.second_eigenvector(graph)
    found, expected = found / np.linalg.norm(found), expected / np.linalg.norm(expected)
    at = np.abs(expected).argmax()
    assert np.allclose(found * np.sign(found[at] * expected[at]), expected, rtol=0, atol=1e-8)
    assert found_gap == pytest.approx(gap, abs=3e-2)


def test_the_same_vector_comes_every_time():
    graph = tokencut.build_graph(tokencut.similarities(random_features(200)), 0.2, "binary")
    assert np.array_equal(tokencut.second_eigenvector(graph)[0], tokencut.second_eigenvector(graph)[0])


def test_what_lanczos_cannot_solve_is_solved_densely(monkeypatch):
    graph = tokencut.build_graph(tokencut.similarities(random_features(100)), 0.2, "binary")
    expected = tokencut.second_eigenvector(graph)

    def fails(*_, **__):
        raise tokencut.ArpackNoConvergence("no convergence (%s)", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(tokencut, "eigsh", fails)
    vector, gap = tokencut.second_eigenvector(graph)
    assert np.allclose(np.abs(vector), np.abs(expected[0]), atol=1e-9)
    assert gap == pytest.approx(expected[1], abs=3e-2)


def test_the_partition_holds_the_seed_whatever_the_vector_s_sign():
    vector = np.array([0.1, 0.2, -0.9, -0.1, 0.05])
    for sign in (1, -1):
        mask, seed = tokencut.partition(sign * vector)
        assert seed == 2
        assert mask.tolist() == [False, False, True, False, False]
    mask, seed = tokencut.partition(np.array([0.5, -0.5 - 1e-12, 0.0]))
    assert seed == 0, "equal but for rounding: the first"


@pytest.mark.parametrize("patches", [60, 160])
def test_a_repeated_eigenvalue_is_noticed(patches):
    """Three groups of equal size that have nothing in common: any of them may be cut off."""
    x = torch.eye(3, dtype=torch.float64).repeat_interleave(patches // 3, dim=0)[: patches // 3 * 3]
    _, gap = tokencut.second_eigenvector(tokencut.build_graph(tokencut.similarities(x), 0.2, "binary"))
    assert gap < tokencut.REPEATED
    x[: patches // 6, 1] = 0.6
    _, gap = tokencut.second_eigenvector(tokencut.build_graph(tokencut.similarities(x), 0.2, "binary"))
    assert gap > tokencut.REPEATED


def test_a_patch_like_no_other_is_the_cut_and_is_noticed():
    x = torch.zeros(100, 2, dtype=torch.float64)
    x[:, 0], x[37] = 1, torch.tensor([0.0, 1.0])
    graph = tokencut.build_graph(tokencut.similarities(x), 0.2, "binary")
    mask, seed = tokencut.partition(tokencut.second_eigenvector(graph)[0])
    assert (seed, mask.sum()) == (37, 1)
    assert tokencut.is_isolated(graph, seed)
    assert not tokencut.is_isolated(graph, 0)


def test_one_patch_is_one_component():
    vector, gap = tokencut.second_eigenvector(np.ones((1, 1)))
    mask, seed = tokencut.partition(vector)
    assert component_of(mask.reshape(1, 1), seed).all()
    assert gap == float("inf")


class ObjectFeatures(Network):
    """A network that sees which patches the image's bright object covers: two directions, of the object and of the rest."""

    def projections(self, images, kind):
        bright = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)[0, 0].flatten() > 0
        return torch.stack([bright.double(), (~bright).double()], dim=1)[None]


def write_bright_objects(root):
    """Images of 80 x 48 px that are black but for a white object of whole patches, and its box in COCO's layout."""
    (root / "val").mkdir(parents=True)
    boxes = [(8, 8, 24, 16), (40, 16, 32, 24), (0, 0, 16, 24)]
    images, annotations = [], []
    for number, (x, y, width, height) in enumerate(boxes, start=1):
        image = np.zeros((48, 80, 3), np.uint8)
        image[y : y + height, x : x + width] = 255
        Image.fromarray(image).save(root / f"val/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 48})
        box = {"bbox": [x, y, width, height], "area": width * height}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "objects.json").write_text(json.dumps(content))


def test_features_that_see_the_object_score_100(tmp_path, monkeypatch):
    write_bright_objects(tmp_path / "data")
    network = ObjectFeatures(create("vit_nano_patch8", seed=0).arch)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: network)
    settings = DiscoverySettings(
        root=str(tmp_path / "data"),
        dataset="x",
        layout="coco",
        images="val",
        annotations="objects.json",
        method="tokencut",
        taus=[0.0, 0.5],
    )
    result = discovery.evaluate(settings, tmp_path / "none", Job(out=tmp_path / "out", state=tmp_path))
    assert (result.metrics["CorLoc"], result.metrics["Jaccard_box"]) == (100, 100)
    assert result.metrics["CorLoc_position"] == 0
    assert result.details["CorLoc_by_tau"] == {"0": 100, "0.2": 100, "0.5": 100}
    assert result.details["repeated_eigenvalue"] == result.details["isolated_seed"] == 0


def test_the_best_threshold_is_chosen_on_the_scored_images(tmp_path):
    path = tmp_path / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    write_coco(tmp_path / "data")
    taus = [0.0, 0.2, 0.6, 0.9]
    alone = {}
    for tau in taus:
        settings = DiscoverySettings(root=str(tmp_path / "data"), dataset="x", layout="coco", method="tokencut", features="output", tau=tau)
        alone[tau] = discovery.evaluate(settings, path, Job(out=tmp_path / "one", state=tmp_path)).metrics
    settings = DiscoverySettings(
        root=str(tmp_path / "data"), dataset="x", layout="coco", method="tokencut", features="output", taus=taus, select="best"
    )
    result = discovery.evaluate(settings, path, Job(out=tmp_path / "out", state=tmp_path))
    assert result.details["CorLoc_by_tau"] == {f"{tau:g}": alone[tau]["CorLoc"] for tau in taus}
    assert result.metrics["CorLoc"] == max(metrics["CorLoc"] for metrics in alone.values())
    assert result.metrics["Jaccard_box"] == alone[result.details["tau"]]["Jaccard_box"]


@pytest.mark.parametrize("kind", ["queries", "keys", "values"])
def test_projections_are_the_last_block_s_without_cls_and_registers(kind):
    network = create("vit_micro_patch14_reg4", seed=0).eval()
    image = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    seen = {}
    network.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _m, _i, out: seen.update(qkv=out))
    start = 96 * ("queries", "keys", "values").index(kind)
    with torch.no_grad():
        network.run(*network.embed(image))
        assert torch.allclose(network.projections(image, kind), seen["qkv"][:, 5:, start : start + 96], atol=1e-6)
