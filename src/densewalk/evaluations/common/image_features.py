"""Images of a classification data set as a frozen backbone gets them."""

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.classification import ClassifiedImages, list_imagenet
from densewalk.data.images import normalize, read_rgb, read_stored
from densewalk.models.backbone import Backbone

BATCH = 64  # images per forward pass


# -- pictures to features ----------------------------------------------------------------------------------------------


def require_multiple(size: int, backbone: Backbone) -> None:
    """A crop that patches do not fill is refused."""
    if size % backbone.patch:
        raise UserError(f"size {size} is no multiple of the patch size", allowed=f"multiples of {backbone.patch}", todo="change `size`")


class CentreCrops(Dataset[tuple[Tensor, int, int]]):
    """Normalised picture [3, size, size], class, number: shorter side to `resize` by Pillow's bicubic filter, centre crop."""

    def __init__(self, split: ClassifiedImages, resize: int, size: int) -> None:
        self.split, self.resize, self.size = split, resize, size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        return centre_crop(read_stored(self.split.paths[i]), self.resize, self.size), self.split.targets[i], i


def centre_crop(image: Image.Image, resize: int, size: int) -> Float[Tensor, "3 {size} {size}"]:
    """The evaluation view of DINO and DINOv2."""
    resized = TF.resize(image, [resize], TF.InterpolationMode.BICUBIC)
    return normalize(TF.to_tensor(TF.center_crop(resized, [size, size])))


def describe_classification(root: str, training: str, validation: str) -> dict[str, int]:
    """Count images and classes of both splits, and open the first image of each."""
    splits = list_imagenet(root, training, validation)
    for split in splits:
        read_rgb(split.paths[0])
    return {"training images": len(splits[0]), "validation images": len(splits[1]), "classes": len(splits[0].names)}
