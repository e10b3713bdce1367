"""Principal components against numpy's singular value decomposition, k-means on clusters that are there."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center, spherical_kmeans
from tests.fixtures.helpers import shared


def blobs(clusters=4, each=50, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 20 * torch.randn(clusters, dim, generator=generator)
    labels = torch.arange(clusters).repeat_interleave(each)
    return centers[labels] + torch.randn(len(labels), dim, generator=generator), labels


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


def test_components_equal_those_of_the_scaled_singular_value_decomposition():
    x = blobs()[0] * torch.tensor([1.0, 10, 0.1, 3, 5, 1]) + 7
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    u, s, _ = np.linalg.svd(scaled, full_matrices=False)
    ours = PrincipalComponents(x).project(x, 3).double().numpy()
    assert np.allclose(np.abs(ours), np.abs(u[:, :3] * s[:3]), atol=1e-4)


def test_constant_dimensions_and_too_few_of_them_do_no_harm():
    x = torch.cat([blobs(dim=3)[0], torch.ones(200, 1)], dim=1)
    result = PrincipalComponents(x).project(x, 50)
    assert result.shape == (200, 4)
    assert result.isfinite().all()
    assert result[:, 3].abs().max() < 1e-5


def test_components_do_not_depend_on_the_parts_they_were_added_in():
    x = blobs()[0] + 1000
    parts = PrincipalComponents()
    for part in x.split(70):
        parts.add(part)
    whole = PrincipalComponents(x).project(x, 2)
    assert torch.allclose(parts.project(x, 2).abs(), whole.abs(), atol=1e-3)


def test_kmeans_finds_clusters_and_repeats_itself():
    x, labels = blobs()
    centers = kmeans(x, 4, seed=0)
    assert same_partition(nearest_center(x, centers), labels)
    assert torch.equal(centers, kmeans(x, 4, seed=0))


def test_kmeans_of_many_points_uses_a_sample_of_them():
    x, labels = blobs(each=5000)
    centers = kmeans(x, 4, seed=1, points_per_cluster=32)
    assert same_partition(nearest_center(x, centers), labels)
    means = torch.stack([x[labels == k].mean(0) for k in range(4)])
    assert 0.05 < torch.cdist(centers, means).min(dim=1).values.max() < 1.5, "means of the sample, not of all points"


def test_no_more_clusters_than_points():
    assert kmeans(torch.randn(3, 2), 5, seed=0).shape == (3, 2)


def test_nearest_center_is_the_euclidean_one():
    x, centers = torch.randn(2, 50, 3), torch.randn(7, 3)
    assert torch.equal(nearest_center(x, centers), torch.cdist(x, centers.expand(2, -1, -1)).argmin(-1))


# -- the released code's numbers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    with np.load(shared("parity/neco_eval.npz")) as file:
        return {k: torch.from_numpy(np.array(file[k])) for k in ("pca/x", "pca/z", "cluster/0/assign", "cluster/0/K")}


def test_components_equal_the_releases(released):
    ours, theirs = (x.double() for x in (PrincipalComponents(released["pca/x"]).project(released["pca/x"], 50), released["pca/z"]))
    sign = (ours * theirs).sum(0).sign()
    assert (ours * sign - theirs).abs().max() < 1e-3 * theirs.abs().max()


def spread(x, labels):
    """Sum of squared distances to the mean of each cluster."""
    return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in labels.unique())


def test_clusters_are_as_tight_as_the_releases(released):
    # both start from random points, so that the partitions differ where the data has no clear clusters
    x, theirs, k = released["pca/z"], released["cluster/0/assign"].flatten(), int(released["cluster/0/K"])
    ours = nearest_center(x, kmeans(x, k, seed=0, iterations=100))
    assert len(ours.unique()) == len(theirs.unique()) == k
    assert spread(x, ours) < 1.01 * spread(x, theirs)


def test_spherical_kmeans_goes_by_the_angle_alone():
    x, labels = blobs()
    lengths = torch.linspace(0.01, 5, len(x))[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    centers = spherical_kmeans(F.normalize(x, dim=-1) * lengths[:, None], 4, seed=0)
    assert torch.allclose(centers.norm(dim=-1), torch.ones(4))
    assert same_partition(nearest_center(x, centers), labels)
    expected = torch.stack([F.normalize(F.normalize(x[labels == k], dim=-1).sum(0), dim=-1) for k in range(4)])
    assert torch.allclose((centers @ expected.T).amax(0), torch.ones(4), atol=1e-5)
    assert torch.equal(centers, spherical_kmeans(F.normalize(x, dim=-1) * lengths[:, None], 4, seed=0))


def test_spherical_kmeans_of_fewer_points_than_clusters():
    assert spherical_kmeans(torch.eye(3), 5, seed=0).shape == (3, 3)


def test_one_eigendecomposition_serves_all_images(monkeypatch):
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    fitted, calls, eigh = PrincipalComponents(x), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(matrix) or eigh(matrix))
    project = fitted.projection(4)
    parts = torch.cat([project(part) for part in x.split(7)])
    assert len(calls) == 1
    torch.testing.assert_close(parts, fitted.project(x, 4))
