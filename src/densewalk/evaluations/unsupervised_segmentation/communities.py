"""Clusters that occur together: their co-occurrence, and the communities of this network. The only user of networkx.

    groups = find_communities(weights, wanted=20, seed=0)

Louvain's method (https://arxiv.org/abs/0803.0476) maximizes modularity,

    sum over pairs i, j of one community of (w_ij - resolution * d_i d_j / sum of all w),   d_i = sum over j of w_ij

whose resolution decides between few large communities and many small ones.
"""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

RESOLUTIONS = np.geomspace(0.01, 100, 41)
ANGLES = tuple(eighth / 4 for eighth in range(8))  # of pi
MISTYPED_ANGLES = tuple(4 / 3 if angle == 5 / 4 else angle for angle in ANGLES)  # the released code's


def offsets(angles: Sequence[float]) -> list[tuple[int, int]]:
    """Rows down and columns right at distances 1 and 2, rounded to whole patches: diagonal neighbors are there twice."""
    steps = [(np.sin(angle * np.pi), np.cos(angle * np.pi)) for angle in angles]
    return [(round(distance * down), round(distance * right)) for distance in (1, 2) for down, right in steps]


def cooccurrence(
    labels: Int[Tensor, "images rows columns"], clusters: int, *, mistyped_angle: bool = False
) -> Float[np.ndarray, "{clusters} {clusters}"]:
    """Share of each cluster in each other one's neighborhood, mean over the images where it has one; 0 is the background.

    for image:
        for p, offset in offsets(ANGLES):
            if p and p + offset lie in the image and in the foreground:
                C[labels[p], labels[p + offset]] += 1
        C[i, i] = 0 for all i
        for i with a neighbor: total[i] += C[i] / sum(C[i]);  count[i] += 1
    share[i] = total[i] / count[i]
    """
    around = offsets(MISTYPED_ANGLES if mistyped_angle else ANGLES)
    total, count = np.zeros((clusters, clusters)), np.zeros((clusters, 1))
    for image in labels.numpy():
        pairs = np.concatenate([_pairs(image, *offset) for offset in around])
        pairs = pairs[(pairs > 0).all(1)] - 1
        met = np.bincount(pairs @ (clusters, 1), minlength=clusters**2).reshape(clusters, clusters)
        np.fill_diagonal(met, 0)  # a cluster is no neighbor of itself
        neighbors = met.sum(1, keepdims=True)
        total += met / np.maximum(neighbors, 1)
        count += neighbors > 0
    return total / np.maximum(count, 1)


def _pairs(image: Int[np.ndarray, "rows columns"], down: int, right: int) -> Int[np.ndarray, "pairs 2"]:
    """Labels of all p and p + (down, right) within the image."""
    rows, columns = image.shape
    first = image[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
    second = image[max(0, down) : rows - max(0, -down), max(0, right) : columns - max(0, -right)]
    return np.stack([first.ravel(), second.ravel()], axis=1)


def find_communities(weights: Float[np.ndarray, "nodes nodes"], *, wanted: int, seed: int) -> Int[np.ndarray, " nodes"]:
    """Each node's community: 0, 1, ... in the order of their first nodes.

    Args:
        weights: symmetric and not negative; 0 is no edge, and the diagonal counts for nothing.
        wanted: the resolution is chosen whose number of communities with an edge is nearest to this, the nearest to 1 among
            several. A node without an edge is a community of its own at every resolution.
    """
    rows, columns = np.nonzero(np.triu(weights, 1))
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(len(weights)))
    graph.add_weighted_edges_from((int(i), int(j), float(weights[i, j])) for i, j in zip(rows, columns, strict=True))
    tried = sorted(RESOLUTIONS, key=lambda resolution: abs(np.log(resolution)))
    found = [nx.community.louvain_communities(graph, resolution=resolution, seed=seed) for resolution in tried]
    best = min(found, key=lambda groups: abs(sum(len(group) > 1 for group in groups) - wanted))
    numbers = np.empty(len(weights), dtype=np.int64)
    for number, group in enumerate(sorted(best, key=min)):
        numbers[list(group)] = number
    return numbers
