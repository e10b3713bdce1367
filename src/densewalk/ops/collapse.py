"""How much of their space the features of a batch use: 1 where all images have the same features, which is called collapse."""

import torch
from jaxtyping import Float
from torch import Tensor

MOST = 64  # rows: the eigenvalues of their products take less than a millisecond


@torch.no_grad()
def feature_rank(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, ""]:
    """RankMe (https://arxiv.org/abs/2210.02885, equation 1) of the first 64 rows: how many dimensions they use, from 1 to 64.

        s = singular values of the rows
        p = s / sum(s)
        rank = exp(- sum_k p_k ln p_k)

    The squares of the singular values are the eigenvalues of the rows' products with each other.
    """
    rows = features.detach().flatten(0, -2)[:MOST].double()
    with torch.autocast(rows.device.type, enabled=False):
        values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum().clamp(min=1e-300)).sum().exp().float()
