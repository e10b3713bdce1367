"""Random walks over the nodes of a clip, there and back."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-20  # in the logarithm of a share that may be exactly 0
CUT = -1e10  # of the affinity of an edge that is cut; a node without edges goes anywhere
Nodes = Float[Tensor, "batch frames nodes dim"]
Steps = Float[Tensor, "edges batch nodes nodes"]
Chain = Float[Tensor, "batch nodes nodes"]


class Draws(NamedTuple):
    """Uniform numbers for the edges of the ways there and back: those below the dropout are cut."""

    there: Steps
    back: Steps


def draw_edges(nodes: Nodes) -> Draws:
    """Numbers for all edges, those of the way there first, from torch's global generator as stochastic depth's."""
    batch, frames, count, _ = nodes.shape
    there, back = (torch.rand(frames - 1, batch, count, count, device=nodes.device) for _ in range(2))
    return Draws(there, back)


def transitions(nodes: Nodes, temperature: float, dropout: float, draws: Draws | None, *, inherited: bool) -> tuple[Steps, Steps]:
    """Probabilities of going from each node of frame t to those of frame t + 1 (F_t), and back (G_t).

        A_t = q_t q_{t + 1}^T;   F_t = softmax_rows(A_t / temperature);   G_t = softmax_rows(A_t^T / temperature)

    An edge that is cut has the share 0, and the others of its row share the rest.

    Args:
        nodes: of unit length. draws: None cuts nothing. inherited: G_t cuts what F_t does, beside its own.
    """
    there = torch.einsum("btnc,btmc->tbnm", nodes[:, :-1], nodes[:, 1:])
    back = there.transpose(2, 3)
    if draws is not None:
        cut = draws.there < dropout
        cut_back = (draws.back < dropout) | cut.transpose(2, 3) if inherited else draws.back < dropout
        there, back = there.masked_fill(cut, CUT), back.masked_fill(cut_back, CUT)
    return (there / temperature).softmax(dim=-1), (back / temperature).softmax(dim=-1)


def chains(there: Steps, back: Steps) -> Iterator[tuple[Chain, Chain]]:
    """The ways F_0 ... F_k and G_k ... G_0 for k = 0, 1, ...: each is the one before times one more step."""
    ahead, behind = there[0], back[0]
    yield ahead, behind
    for forth, home in zip(there[1:], back[1:], strict=True):
        ahead, behind = ahead @ forth, home @ behind
        yield ahead, behind


def cycle_loss(ahead: Chain, behind: Chain) -> Float[Tensor, ""]:
    """Mean over nodes of - ln of the share of walks that return, of those that arrive anywhere.

        P = ahead @ behind
        loss = mean over n of - ln (P[n, n] + epsilon) + ln sum over m of (P[n, m] + epsilon)

    P itself is not needed: its diagonal and the sums of its rows are products of a matrix and a vector.
    """
    returning = torch.einsum("bnm,bmn->bn", ahead, behind)
    arriving = torch.einsum("bnm,bm->bn", ahead, behind.sum(dim=2))
    return ((arriving + EPSILON * ahead.shape[1]).log() - (returning + EPSILON).log()).mean()


@torch.no_grad()
def cycle_accuracy(ahead: Chain, behind: Chain) -> Float[Tensor, ""]:
    """Share of the nodes whose walks return to them more often than to any other one."""
    found = (ahead @ behind).argmax(dim=2)
    return (found == torch.arange(ahead.shape[1], device=ahead.device)).float().mean()
