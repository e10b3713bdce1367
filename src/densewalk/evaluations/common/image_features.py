"""Images of a classification data set as a frozen backbone takes them."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import track
from densewalk.data.benchmarks.classification import ClassifiedImages, list_imagenet
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, require_finite
from densewalk.evaluations.common.shares import batches_of
from densewalk.models.interface import Network
from densewalk.training.signals import leave_signals_to_parent

BATCH = 64  # images per forward pass


def require_multiple(size: int, backbone: Network) -> None:
    """Refuse a crop that is not made of whole patches."""
    if size % backbone.multiple:
        raise UserError(f"size {size} is no multiple of the patch size", allowed=f"multiples of {backbone.multiple}", todo="change `size`")
    backbone.require_size(size, size)


class CenterCrops(Dataset[tuple[Tensor, int, int]]):
    """Normalized image [3, size, size], class, number."""

    def __init__(self, split: ClassifiedImages, resize: int, size: int, statistics: PixelStatistics) -> None:
        self.split, self.resize, self.size, self.statistics = split, resize, size, statistics

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        x = center_crop(read_image(self.split.paths[i]), self.resize, self.size, self.statistics)
        return x, self.split.targets[i], i


def center_crop(image: Image.Image, resize: int, size: int, statistics: PixelStatistics) -> Float[Tensor, "3 {size} {size}"]:
    """The validation transform of DINO and DINOv2: short side to `resize` by Pillow's bicubic filter, center crop, normalization."""
    resized = TF.resize(image, [resize], TF.InterpolationMode.BICUBIC)
    return normalize(TF.to_tensor(TF.center_crop(resized, [size, size])), statistics)


def crop_features(
    compute: Callable[[Tensor], Tensor], crops: CenterCrops, job: Job, label: str, backbone: str, batches: list[list[int]] | None = None
) -> Iterator[tuple[Float[Tensor, " batch *dims"], Int[Tensor, " batch"]]]:
    """Features and classes, batch by batch in the split's order; `label` goes with the progress, `backbone` with an error.

    batches: the numbers of each batch's images; those of all images if None.
    """
    own = batches_of(len(crops), BATCH) if batches is None else batches
    loader = DataLoader(crops, batch_sampler=own, num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    for images, classes, numbers in track(loader, label):
        with torch.inference_mode():
            features = compute(images.to(job.device))
        require_finite(features, [crops.split.paths[i] for i in numbers.tolist()], backbone)
        yield features, classes.to(job.device)


def describe_classification(root: str, training: str, validation: str) -> dict[str, int]:
    """Count images and classes of both splits, and open the first image of each."""
    splits = list_imagenet(root, training, validation)
    for split in splits:
        read_image(split.paths[0])
    return {"training images": len(splits[0]), "validation images": len(splits[1]), "classes": len(splits[0].names)}
