"""Communities: groups that are there, and modularity against every partition of a small network."""

from itertools import product

import numpy as np
import pytest

from densewalk.evaluations.unsupervised_segmentation.communities import find_communities


def two_groups():
    """Nodes 0-2 and 3-5 with weak links between them; 6 stands alone."""
    weights = np.zeros((7, 7))
    for group in ((0, 1, 2), (3, 4, 5)):
        weights[np.ix_(group, group)] = 1.0
    weights[2, 3] = weights[3, 2] = 0.1
    return weights


def test_groups_are_found_numbered_by_their_first_nodes():
    assert find_communities(two_groups(), wanted=2, seed=0).tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_the_number_that_is_wanted_decides_the_resolution():
    assert find_communities(two_groups(), wanted=1, seed=0).tolist() == [0, 0, 0, 0, 0, 0, 1]


def modularity(weights, labels):
    degrees, total, value = weights.sum(1), weights.sum(), 0.0
    for i in range(len(weights)):
        for j in range(len(weights)):
            if labels[i] == labels[j]:
                value += weights[i, j] - degrees[i] * degrees[j] / total
    return value


@pytest.mark.parametrize("seed", range(3))
def test_no_other_partition_has_a_larger_modularity(seed):
    """At resolution 1, which counts where several give the wanted number: all 3^6 labelings of six nodes."""
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((6, 6)) + 3 * np.kron(np.eye(2), np.ones((3, 3))), 1)
    weights += weights.T
    found = find_communities(weights, wanted=2, seed=seed)
    best = max(modularity(weights, labels) for labels in product(range(3), repeat=6))
    assert modularity(weights, found) == pytest.approx(best)


def test_without_an_edge_every_node_is_alone():
    assert find_communities(np.zeros((3, 3)), wanted=2, seed=0).tolist() == [0, 1, 2]


def test_a_node_is_no_neighbor_of_itself():
    weights = two_groups() + np.diag([1000.0] * 7)
    assert find_communities(weights, wanted=2, seed=0).tolist() == [0, 0, 0, 1, 1, 1, 2]
