"""Reference values of the contrastive random walk: transitions, losses and gradients, and the weights of its label propagation."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, children, compare, has, relative
from torch.nn import functional as F

from densewalk.methods.crw.walk import Draws, chains, cycle_accuracy, cycle_loss, transitions


def crw(values: Any) -> Rows:
    """Every recorded walk."""
    for number in children(values, "walks"):
        case = f"walks/{number}"
        raw = torch.from_numpy(values[f"{case}/embeddings"]).requires_grad_()
        nodes = F.normalize(raw, dim=1).permute(0, 2, 3, 1)  # [b, t, n, c]
        yield compare("crw", case, "nodes", nodes.permute(0, 3, 1, 2).detach(), values[f"{case}/nodes"], 1e-6)
        draws = None
        if has(values, f"{case}/draws/forward"):
            draws = Draws(*(torch.from_numpy(values[f"{case}/draws/{way}"]) for way in ("forward", "backward")))
        temperature, dropout = (float(values[f"{case}/config/{k}"]) for k in ("temperature", "edge_dropout"))
        there, back = transitions(nodes, temperature, dropout, draws, inherited=True)
        yield compare("crw", case, "way there", there.detach(), values[f"{case}/forward"], 2e-5)
        yield compare("crw", case, "way back", back.detach(), values[f"{case}/backward"], 2e-5)
        walks = list(chains(there, back))[1:]  # the release leaves out the cycle over two frames
        losses = [cycle_loss(*walk) for walk in walks]
        for k, (loss, walk) in enumerate(zip(losses, walks, strict=True)):
            yield relative("crw", case, f"loss of cycle {k}, relative", loss.item(), values[f"{case}/cycle_loss/{k}"], 1e-4)
            yield compare("crw", case, f"accuracy of cycle {k}", cycle_accuracy(*walk), values[f"{case}/cycle_accuracy/{k}"], 1e-6)
        total = torch.stack(losses).mean()
        yield relative("crw", case, "loss, relative", total.item(), values[f"{case}/loss"].item(), 1e-4)
        (gradient,) = torch.autograd.grad(total, raw)
        yield relative("crw", case, "gradient, relative", gradient, values[f"{case}/grad"], 1e-3)
    if children(values, "propagation"):
        yield Note("crw", "propagation", "an evaluation's rule that is not here: a window by Euclidean distance")
