"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, https://arxiv.org/abs/2111.06377).

Three quarters of an image's patches are removed. The encoder sees the rest, a decoder predicts the pixels of what is removed.

    x       = patches with their positions, those with the smallest random numbers left    section 3, `encode`
    z       = encoder(CLS, x)                                                              `encode`
    p       = decoder(z and a learned vector for each removed patch, in place)             `Decoder`
    loss    = mean over removed patches of mean (p - pixels) ** 2                          `reconstruction_loss`

The decoder's last layer is computed for removed patches alone. The export is the encoder. Its CLS token has no loss of its own:
evaluate patches or their mean. An epoch on a video is every usable frame once; frames that look alike do no harm, since no image is
another one's negative.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.augmentation.views import make_views
from densewalk.data.sources import Source, open_images
from densewalk.methods.mae.augmentation import MaeCrops, draw_noise
from densewalk.methods.mae.network import Decoder, Images, Order, patchify, reconstruction_loss, scale_of, take, unpatchify
from densewalk.methods.mae.settings import MaeSettings
from densewalk.models.backbone import Backbone
from densewalk.models.surgery import with_fixed_positions
from densewalk.ops.collapse import feature_rank
from densewalk.training.method import Method, ParamGroup, decay_groups
from densewalk.training.sampler import Item
from densewalk.training.schedules import constant, per_step
from densewalk.visualization.strips import write_rows

IMAGES_SHOWN = 4  # in the image of a finished training


class Mae(Method):
    """One training run of MAE.

    Raises:
        UserError: the size is no multiple of the patch size, all patches are left or none, the network has rotary positions, or it
            was loaded with positions that would be lost.
    """

    def __init__(self, settings: MaeSettings, backbone: Backbone, total_steps: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__(settings, total_steps, steps_per_epoch)
        self.settings = settings
        settings.require_network(backbone.arch)
        side = settings.size // backbone.patch
        self.grid = (side, side)
        self.patches = self.grid[0] * self.grid[1]
        if settings.positions == "sincos":
            backbone = with_fixed_positions(backbone, settings.size, first="column")
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "mae"))
            self.decoder = Decoder(backbone.dim, settings.decoder(backbone.patch), self.grid)

    @staticmethod
    def dataset(settings: MaeSettings, sources: Sequence[Source]) -> "Dataset[dict[str, Tensor]]":
        """A crop of every usable frame of every video and of every image."""
        return MaeCrops(ConcatDataset([open_images(source) for source in sources]), settings)

    def param_groups(self) -> list[ParamGroup]:
        """Encoder and decoder, with and without weight decay."""
        s, total = self.settings, self.total_steps
        warmup = s.warmup_epochs * self.steps_per_epoch
        if obstacle := s.warmup_obstacle(total, self.steps_per_epoch):
            raise UserError(obstacle)
        lr = per_step(s.lr * s.batch_size / 256, s.min_lr, total, warmup=warmup)
        groups = decay_groups("all", list(self.named_parameters()), lr, constant(s.weight_decay, total))
        for group in groups:
            group.extra["betas"] = tuple(s.betas)
        return groups

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Flips, and the order of each image's patches."""
        order = draw_noise(batch["mask_seed"], self.patches).argsort(dim=1)
        return {"images": make_views(batch, device, ("crop",))["crop"][:, 0], "order": order.to(device, non_blocking=True)}

    def step(self, batch: dict[str, Tensor], step: int, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of `images` [b, 3, h, w] and the `order` [b, n] in which their patches are left and removed."""
        images, order = batch["images"], batch["order"]
        latent = self.encode(images, order)  # [b, 1 + visible, d]
        predicted = self.decoder(latent, order)  # [b, removed, 3 p p]
        target = take(patchify(images, self.backbone.patch), order[:, latent.shape[1] - 1 :])
        loss = reconstruction_loss(predicted, target, norm_pix=self.settings.norm_pix_loss)
        return loss, {"feature_rank": feature_rank(latent[:, 1:].mean(dim=1))}

    def encode(self, images: Images, order: Order) -> Float[Tensor, "batch visible dim"]:
        """CLS and the patches that are left, after the final norm."""
        network = self.backbone
        x, grid = network.embed(images)
        visible = take(x[:, network.prefix :], order[:, : self.settings.visible(self.patches)])
        x = network.run(torch.cat([x[:, : network.prefix], visible], dim=1), grid)
        x = network.vit.norm(x)
        return torch.cat([x[:, :1], x[:, network.prefix :]], dim=1)

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some images, the patches that are left, and the decoder's prediction of the others."""
        device, patch = self.decoder.mask_token.device, self.backbone.patch
        count = min(IMAGES_SHOWN, len(data))  # type: ignore[arg-type]
        chosen: Any = [data[Item(i * len(data) // count, seed=0)] for i in range(count)]  # type: ignore[arg-type]
        batch = {name: torch.stack([sample[name] for sample in chosen]) for name in chosen[0]}
        views = self.prepare(batch, device)
        latent, order = self.encode(views["images"], views["order"]), views["order"]
        patches = patchify(views["images"], patch)
        removed = order[:, latent.shape[1] - 1 :, None].expand(-1, -1, patches.shape[2])
        predicted = self.decoder(latent, order).float()
        if self.settings.norm_pix_loss:
            mean, deviation = scale_of(patches.gather(1, removed))
            predicted = predicted * deviation + mean
        rows = [patches, patches.scatter(1, removed, 0.0), patches.scatter(1, removed, predicted)]
        write_rows(folder / "reconstructions.png", [levels(unpatchify(row, self.grid, patch)) for row in rows])

    def export(self) -> Backbone:
        """The encoder."""
        return self.backbone


def levels(images: Images) -> tuple[Any, Any]:
    """Normalized images as 8-bit pixels, with no labels, for a row of an image."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels, 0 * pixels[..., 0]


METHOD = Mae
