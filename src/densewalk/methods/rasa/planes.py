"""The planes that RASA takes out, and the loss of a round."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

MATRIX_TYPE = torch.float64


def place_targets(rows: int, columns: int) -> Float[Tensor, "places 2"]:
    """(row / (rows - 1), column / (columns - 1)) of each place, row by row."""
    axes = [torch.arange(count) / max(1, count - 1) for count in (rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def round_loss(weight: Float[Tensor, "2 dim"], features: Float[Tensor, "batch places dim"], targets: Float[Tensor, "places 2"]) -> Tensor:
    """mean (sigmoid(w z) - (row, column))^2 over images, places and both coordinates."""
    return ((features @ weight.T).sigmoid() - targets).square().mean()


def orthonormal_rows(
    weight: Float[Tensor, "directions dim"], earlier: Float[Tensor, "planes dim"] | None = None
) -> Float[Tensor, "directions dim"]:
    """Gram-Schmidt, in the order of the rows; with `earlier` orthonormal rows also orthogonal to these.

    for i in range(directions):
        q_i = w_i - sum over j < i of (w_i . q_j) q_j;    q_i = q_i / |q_i|

    A row that depends on others is 0: it has no direction of its own.
    """
    done = [] if earlier is None else list(earlier.to(MATRIX_TYPE))
    first = len(done)
    precision = 4 * torch.finfo(weight.dtype).eps  # of what it was rounded to
    for given in weight.to(MATRIX_TYPE):
        row = given
        for _ in range(2):  # once more: what rounding has left
            for q in done:
                row = row - (row @ q) * q
        done.append(row / row.norm() if row.norm() > precision * given.norm() else torch.zeros_like(row))
    return torch.stack(done[first:])


def removal_matrix(weights: Sequence[Float[Tensor, "2 dim"]], dim: int, *, orthogonal: bool) -> Float[Tensor, "dim dim"]:
    """L = product over the rounds of (I - Q_t^T Q_t), the first round's on the right; Q_t the orthonormal rows of w_t.

    orthogonal: take earlier planes out of each w_t first, so that L = I - Q^T Q with all rows Q.
    """
    matrix = torch.eye(dim, dtype=MATRIX_TYPE)
    planes: list[Tensor] = []
    for weight in weights:
        earlier = torch.cat(planes) if orthogonal and planes else None
        rows = orthonormal_rows(weight.detach().cpu(), earlier)
        planes.append(rows)
        matrix = matrix - rows.T @ (rows @ matrix)
    return matrix
