"""Communities of a weighted network. The only door to networkx.

    groups = communities(weights, wanted=20, seed=0)

Louvain's method (https://arxiv.org/abs/0803.0476) maximises modularity,

    sum over pairs i, j of one community of (w_ij - resolution * d_i d_j / sum of all w),   d_i = sum over j of w_ij

whose resolution decides between few large communities and many small ones.
"""

import networkx as nx
import numpy as np
from jaxtyping import Float, Int

RESOLUTIONS = np.geomspace(0.01, 100, 41)


def communities(weights: Float[np.ndarray, "nodes nodes"], *, wanted: int, seed: int) -> Int[np.ndarray, " nodes"]:
    """Each node's community: 0, 1, ... in the order of their first nodes.

    Args:
        weights: symmetric and not negative; 0 is no edge, and the diagonal counts for nothing.
        wanted: of all `RESOLUTIONS` the one counts that makes the number of communities with an edge nearest to this, the nearest
            to 1 where several do. A node without an edge is a community of its own at every resolution.
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
