"""The attention's foreground: against the released implementation and a plain loop."""

import numpy as np
import torch

from densewalk.ops.attention_mask import drop_small_groups, foreground_masks
from tests.fixtures.helpers import shared


def test_the_foreground_equals_the_releases():
    with np.load(shared("parity/neco_eval.npz")) as file:
        attention, expected = (torch.from_numpy(file[f"process_attentions/0/{k}"])[:, 0] for k in ("attn", "mask"))
        mass = float(file["process_attentions/0/threshold"])
    assert torch.equal(foreground_masks(attention, mass), expected > 0)


def test_specks_are_groups_of_one_or_two_by_eight_neighbors():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)
    expected = mask.copy()
    expected[0, 4] = expected[1, 4] = expected[4, 0] = False
    assert drop_small_groups(mask).tolist() == expected.tolist()


def test_the_mass_is_held_by_the_fewest_patches():
    """Where a broad hill holds all attention, blurring and specks change nothing of note."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    hill = torch.exp(-((rows - 5) ** 2 + (columns - 6) ** 2) / 8)[None]
    previous = torch.zeros(1, 12, 12, dtype=torch.bool)
    for mass in (0.2, 0.5, 0.8):
        mask = foreground_masks(hill, mass)
        assert float(hill[mask].sum() / hill.sum()) > mass - 0.03
        assert bool((mask | ~previous).all())
        assert int(mask.sum()) > int(previous.sum())
        previous = mask
