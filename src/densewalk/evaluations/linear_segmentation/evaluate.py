"""Linear segmentation with reduced masks: NeCo's protocol, and the same head scored at full resolution.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Patch features x of the frozen last layer are interpolated bilinearly to m x m points, m = 100, and a 1x1 convolution is trained on
them by cross-entropy with masks of m x m pixels:

    logits = W bilinear(x) + b = bilinear(W x + b)

Both sides are equal because the weights of an interpolation add up to one; the right one, which is computed here, interpolates
classes instead of feature dimensions. No batch norm. Source: NeCo (https://arxiv.org/abs/2408.11054, section 4) and Leopart
(https://arxiv.org/abs/2204.13101), their released linear_finetune.py. DINOv2's linear segmentation is another protocol: `ade20k_linear`.

    job.out/strip.png           image, ground truth and prediction of some validation images
    job.state/training/step-*.pt        head and optimizer: every few minutes, where a signal stopped the training, and at its end

The head starts from the job's seed.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.errors import TrainingError, UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.label_maps import Example, read_labels
from densewalk.data.images import normalize
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result, require_finite, training_state
from densewalk.evaluations.common.dense_features import BATCH, DenseFeatures, list_split, list_validation, read_pair, reduce_masks
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.common.refinement import refined_labels
from densewalk.evaluations.common.shares import in_order, own_batches
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.metrics.image_counts import ImageCounts
from densewalk.evaluations.metrics.segmentation import iou, mean_iou, pixel_accuracy
from densewalk.models.feature_cache import Dense
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State
from densewalk.visualization.overlays import Row

log = logging.getLogger("densewalk")
Numbered = TypeVar("Numbered")
SAVE_SECONDS = 300.0  # at most this much of the training is lost


def evaluate(settings: LinearSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Train the head on one frozen backbone and score it."""
    settings = settings.resolved()
    training, validation = list_splits(settings, job.seed)
    backbone, features = dense_features.load_features(settings, settings.input_size, backbone_path, job)
    features = dense_features.choose_features(settings, backbone, features, training)
    state = training_state(settings, backbone_path, job)
    with state if distributed.rank() == 0 else nullcontext():
        head = train(settings, features, training, state)
    counts, rows = score(settings, features, head, validation)
    confusion = counts.matrix
    dense_features.require_labelled(settings, bool(confusion.any()), len(validation), "validation")
    dense_features.write_strip(settings, job, rows)
    details = {
        "input_size": features.size,
        "training_images": len(training),
        "pixel_accuracy": 100 * pixel_accuracy(confusion),
        **dense_features.iou_details(settings, iou(confusion)),
    }
    absent: Literal["skip", "zero"] = "zero" if settings.count_absent_classes else "skip"
    units = dense_features.image_units(settings, validation, {"mIoU": counts.mean_iou(absent)})
    value = 100 * mean_iou(confusion, absent=absent)
    return Result(metrics={"mIoU": value}, n=len(validation), unit="images", details=details, units=units)


def describe_data(settings: LinearSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = list_splits(settings, seed=0)
    return dense_features.describe_splits({"training images": training, "validation images": validation})


def list_splits(settings: LinearSegmentationSettings, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation images."""
    training = list_split(settings, "training", settings.train_list, settings.train_every)
    validation = list_validation(settings)
    if settings.train_images is not None:
        if settings.train_images > len(training):
            raise UserError(f"train_images {settings.train_images} of {len(training)}", allowed=f"1 to {len(training)}")
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(derive_seed(seed, "training images")))
        training = [training[i] for i in sorted(order[: settings.train_images].tolist())]
    return training, dense_features.whole_batches(settings, validation, settings.batch_size)


def train(settings: LinearSegmentationSettings, features: DenseFeatures, examples: Sequence[Example], state: State) -> nn.Linear:
    """Train through all epochs, from the newest intact checkpoint if there is one.

    The processes share the features and gradients of every batch, and all make the same step.
    """
    job, size = features.job, features.size
    torch.manual_seed(derive_seed(job.seed, "linear_segmentation"))
    head = nn.Linear(features.dim, settings.label_values).to(job.device)
    optimizer = torch.optim.SGD(head.parameters(), settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
    done = 0
    if (content := state.newest(job.device)) is not None:
        head.load_state_dict(content["head"])
        optimizer.load_state_dict(content["optimizer"])
        done = content["step"]
        log.info("resuming after step %d", done)
    batches = [batch for epoch in range(settings.epochs) for batch in epoch_batches(settings, len(examples), epoch, job.seed)]
    data = TrainingImages(settings, examples, size, features.statistics, job.seed)
    own = [[item for part in own_batches(parts_of(batch)) for item in part] for batch in batches]
    sampler = [items for items in own[done:] if items]
    loader = iter(DataLoader(data, batch_sampler=sampler, num_workers=job.workers, worker_init_fn=leave_signals_to_parent))
    nothing = torch.empty(0, 3, size, size), torch.empty(0, size, size, dtype=torch.int32), torch.empty(0, dtype=torch.int64)
    progress = Progress("linear_segmentation", len(batches), done=done)
    steps_per_epoch = len(batches) // settings.epochs
    with stop_signals() as stop:
        saver = PeriodicSaver(state, stop, len(batches), seconds=SAVE_SECONDS, device=torch.device(job.device))
        for at in range(done, len(batches)):
            images, masks, items = next(loader) if own[at] else nothing
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (0.1 if at // steps_per_epoch >= settings.drop_epoch else 1)
            names = [examples[i] for i in items.tolist()]
            loss = step(
                settings, features.dense, head, optimizer, images.to(job.device), masks.to(job.device), names, str(features.backbone)
            )
            progress.advance(f"loss {loss:.4f}")
            if saver.is_due(at + 1):
                saver.save(at + 1, {"step": at + 1, "head": head.state_dict(), "optimizer": optimizer.state_dict()})
    progress.close()
    return head


def step(
    settings: LinearSegmentationSettings,
    dense: Dense,
    head: nn.Linear,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "batch 3 size size"],
    masks: Integer[Tensor, "batch size size"],
    names: Sequence[Example],
    backbone: str = "",
) -> float:
    """One update; gradients of forward passes of a few images add up to the batch's. Returns the batch's mean loss.

    A batch without a labelled pixel has no loss and changes nothing. Of several processes, each passes its parts of the batch, and all
    add up the gradients of all parts in their order: the same weights, to the last bit.
    """
    labels = reduce_masks(masks, settings.mask_size).long() if len(masks) else masks.long()
    labels = torch.where(labels == settings.ignored, -100, labels) if settings.ignored is not None else labels
    counted = int(distributed.all_sum((labels >= 0).sum()))
    if not counted:
        return 0.0
    found = {}
    for number, start in enumerate(range(0, len(images), BATCH)):
        part = slice(start, start + BATCH)
        with torch.no_grad():
            maps = dense(images[part])
        require_finite(maps, names[part], backbone)
        loss = F.cross_entropy(logits(head, maps, (settings.mask_size, settings.mask_size)), labels[part], reduction="sum") / counted
        gradients = [gradient.cpu() for gradient in torch.autograd.grad(loss, [*head.parameters()])]
        found[distributed.rank() + number * distributed.world_size()] = loss.item(), gradients
    parts, total = in_order(found), 0.0
    optimizer.zero_grad(set_to_none=True)
    for value, gradients in parts:
        total += value
        for p, gradient in zip(head.parameters(), gradients, strict=True):
            p.grad = gradient.to(p.device) if p.grad is None else p.grad.add_(gradient.to(p.device))
    if not np.isfinite(total):
        raise TrainingError(f"the loss of the linear head is {total}; lower learning_rate")
    optimizer.step()
    return total


def logits(
    head: nn.Linear, maps: Float[Tensor, "batch dim rows columns"], size: tuple[int, int]
) -> Float[Tensor, "batch classes height width"]:
    """A 1x1 convolution of features interpolated to `size`.

    conv2d(interpolate(maps, size, mode="bilinear"), head.weight[:, :, None, None], head.bias)
    """
    return F.interpolate(F.conv2d(maps, head.weight[:, :, None, None], head.bias), size, mode="bilinear")


def parts_of(batch: Sequence[Numbered]) -> list[Sequence[Numbered]]:
    """What is passed through the backbone at once."""
    return [batch[start : start + BATCH] for start in range(0, len(batch), BATCH)]


def epoch_batches(settings: LinearSegmentationSettings, images: int, epoch: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """(epoch, image number) of every batch of an epoch."""
    numbers = list(range(images))
    if not (settings.fixed_order and settings.layout in ("voc", "ade20k")):
        numbers = torch.randperm(images, generator=torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))).tolist()
    for start in range(0, images, settings.batch_size):
        yield [(epoch, i) for i in numbers[start : start + settings.batch_size]]


class TrainingImages(Dataset[tuple[Tensor, Tensor, int]]):
    """A random crop: normalized image [3, size, size], mask [size, size], number. Equal (epoch, number) give equal crops."""

    def __init__(
        self, settings: LinearSegmentationSettings, examples: Sequence[Example], size: int, statistics: PixelStatistics, seed: int
    ) -> None:
        self.settings, self.examples, self.size, self.statistics, self.seed = settings, examples, size, statistics, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int]:  # type: ignore[override]
        epoch, i = item
        seed = derive_seed(self.seed, "crop", epoch, i)
        return *crop(*read_pair(self.examples[i]), self.size, self.settings.crop_scale, self.statistics, seed), i


def crop(
    image: Image.Image,
    mask: Integer[Tensor, "height width"],
    size: int,
    scale: tuple[float, float],
    statistics: PixelStatistics,
    seed: int,
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """The same random crop and flip of image (bilinear) and mask (nearest); the image normalized."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        box = T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        flip = torch.rand(()) < 0.5
    x = normalize(TF.to_tensor(TF.resized_crop(image, *box, [size, size], T.InterpolationMode.BILINEAR)), statistics)
    labels = TF.resized_crop(mask[None], *box, [size, size], T.InterpolationMode.NEAREST)[0]
    return (x.flip(-1), labels.flip(-1)) if flip else (x, labels)


@torch.inference_mode()
def score(
    settings: LinearSegmentationSettings, features: DenseFeatures, head: nn.Linear, examples: Sequence[Example]
) -> tuple[ImageCounts, list[Row]]:
    """Confusion matrices of all validation images, and rows for the strip."""

    def predict(maps: Tensor, mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
        reduced = settings.scoring == "reduced"
        if reduced:
            target = reduce_masks(mask[None], settings.mask_size)[0]
        else:
            labels = read_labels(examples[number].mask, examples[number].rule, examples[number].still)
            target = torch.from_numpy(labels.astype(np.int32)).to(mask.device)
        refined_at = mask if settings.refine and reduced else target
        scores = logits(head, maps[None], (refined_at.shape[0], refined_at.shape[1]))[0]
        if settings.refine is None:
            return target, scores.argmax(0)
        refined = refined_labels(settings, scores.softmax(0), examples[number])
        return target, reduce_masks(refined[None], settings.mask_size)[0] if reduced else refined

    return dense_features.score_predictions(features, examples, predict, "validation")
