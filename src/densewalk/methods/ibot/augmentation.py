"""DINO's crops, and how much of each global view is masked."""

from collections.abc import Sequence
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.methods.dino.augmentation import DinoCrops
from densewalk.methods.ibot.masks import BlockRule, batch_shares, draw_blocks, draw_single, view_shares
from densewalk.methods.ibot.settings import MaskedDistillationSettings
from densewalk.training.sampler import Item


class MaskedCrops(Dataset[dict[str, Tensor]]):
    """The samples of `DinoCrops`, and `mask_share` and `mask_seed` [2]: share of a global view's patches that is masked, 0 for none.

    A loader reads a process's whole batch at once (`__getitems__`), so that shares can be dealt out among its views; whether it is
    then passed in parts does not matter. They depend on the seeds of the batch's samples alone.
    """

    def __init__(self, images: "Dataset[Tensor]", settings: MaskedDistillationSettings) -> None:
        self.crops, self.settings = DinoCrops(images, settings), settings

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """The samples of a batch."""
        s = self.settings
        if s.mask_rule == "view":
            shares = [view_shares(2, s.mask_probability, s.mask_ratio, Random(f"share {item.seed}")) for item in items]
        else:
            draws = Random("shares " + " ".join(str(item.seed) for item in items))
            dealt = batch_shares(2 * len(items), s.mask_probability, s.mask_ratio, draws)
            shares = [dealt[i :: len(items)] for i in range(len(items))]  # all first views come before all second ones
        samples = []
        for item, own in zip(items, shares, strict=True):
            seeds = [Random(f"mask {item.seed} {view}").getrandbits(62) for view in range(2)]
            masks = {"mask_share": torch.tensor(own, dtype=torch.float64), "mask_seed": torch.tensor(seeds)}
            samples.append({**self.crops[item], **masks})
        return samples


def make_masks(
    shares: Float[Tensor, "batch views"],
    seeds: Int[Tensor, "batch views"],
    grid: tuple[int, int],
    rule: BlockRule,
    *,
    whole: bool,
    single: bool,
) -> Bool[Tensor, "views batch patches"]:
    """The masks of a batch.

    whole: targets are whole numbers. single: of single patches.
    """
    masks, patches = [], grid[0] * grid[1]
    for share, seed in zip(shares.T.flatten().tolist(), seeds.T.flatten().tolist(), strict=True):
        target, draws = share * patches, Random(seed)
        target = int(target) if whole or single else target
        mask = draw_single(grid, int(target), draws) if single else draw_blocks(grid, target, rule, draws)
        masks.append(torch.from_numpy(mask).flatten())
    return torch.stack(masks).unflatten(0, (shares.shape[1], shares.shape[0]))
