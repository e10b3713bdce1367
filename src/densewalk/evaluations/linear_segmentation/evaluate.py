"""Linear segmentation with reduced masks: NeCo's protocol, and the same head scored at full resolution.

    densewalk evaluate --spec '{"protocol": "linear_segmentation", ...}' --backbone backbone.safetensors --state DIR --out FILE

Patch features x of the frozen last layer are interpolated bilinearly to m x m points, m = 100, and a 1x1 convolution is trained on
them by cross-entropy with masks of m x m pixels:

    logits = W bilinear(x) + b = bilinear(W x + b)

The two sides are equal since the weights of an interpolation add up to one; the right one, which is computed here, interpolates
classes instead of feature dimensions. No batch norm. Source: NeCo (https://arxiv.org/abs/2408.11054, section 4) and Leopart
(https://arxiv.org/abs/2204.13101), their released linear_finetune.py. DINOv2's linear segmentation is another protocol: `ade20k_linear`.

    job.out/strip.png           image, ground truth and prediction of some validation images
    job.state/step-*.pt         head and optimiser: every few minutes, where a signal stopped the training, and at its end

The head starts from the job's seed.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from densewalk.core.errors import Interrupted, TrainingError, UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.label_maps import Example, load_class_names, read_example, read_labels
from densewalk.data.images import normalize
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result, require_finite
from densewalk.evaluations.common.dense_features import BATCH, SHOWN, reduced, row, validation_maps, whole_batches
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.metrics.segmentation import Confusion, iou, mean_iou, pixel_accuracy
from densewalk.models.backbone import Backbone
from densewalk.models.feature_cache import Dense
from densewalk.models.loading import load
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State
from densewalk.visualization.overlays import Row, segmentation_strip

log = logging.getLogger("densewalk")
SAVE_SECONDS = 300  # at most this much of the training is lost


def evaluate(settings: LinearSegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Train the head on one frozen backbone and score it.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
        Interrupted: a signal came; the state is saved.
    """
    settings = settings.resolved()
    training, validation = splits(settings, job.seed)
    backbone = load(backbone_path).eval().requires_grad_(False).to(job.device)
    size = max(1, settings.input_size // backbone.patch) * backbone.patch
    head = train(settings, backbone, training, size, job)
    confusion, shown = score(settings, backbone, backbone_path, head, validation, size, job)
    if not confusion.any():
        raise UserError(f"no pixel of the {len(validation)} validation images in {settings.root} is labelled", todo="check `ignore`")
    names = load_class_names(settings.root, settings.label_set, settings.label_values, settings.class_names)
    segmentation_strip(job.out / "strip.png", shown, names, settings.ignored)
    values = iou(confusion).tolist()
    details = {
        "input_size": size,
        "training_images": len(training),
        "pixel_accuracy": 100 * pixel_accuracy(confusion),
        "IoU": {name: None if value != value else round(100 * value, 4) for name, value in zip(names, values, strict=True)},
    }
    value = 100 * mean_iou(confusion, absent="zero" if settings.count_absent_classes else "skip")
    return Result(metrics={"mIoU": value}, n=len(validation), unit="images", details=details)


def describe_data(settings: LinearSegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = splits(settings, seed=0)
    dense_features.open_first(training, validation)
    return {"training images": len(training), "validation images": len(validation)}


def splits(settings: LinearSegmentationSettings, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation images."""
    training = dense_features.split(settings, "training", settings.train_list, settings.train_every)
    validation = dense_features.split(settings, "validation", settings.val_list, settings.val_every, settings.val_offset)
    if settings.train_images is not None:
        if settings.train_images > len(training):
            raise UserError(f"train_images {settings.train_images} of {len(training)}", allowed=f"1 to {len(training)}")
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(derive_seed(seed, "training images")))
        training = [training[i] for i in sorted(order[: settings.train_images].tolist())]
    return training, whole_batches(settings, validation, settings.batch_size)


# -- training --------------------------------------------------------------------------------------------------------


def train(settings: LinearSegmentationSettings, backbone: Backbone, examples: Sequence[Example], size: int, job: Job) -> nn.Linear:
    """The head after all epochs, from the newest intact checkpoint if there is one.

    Raises:
        Interrupted: a signal came; the state is saved.
        TrainingError: the loss is not finite.
    """
    torch.manual_seed(derive_seed(job.seed, "linear_segmentation"))
    head = nn.Linear(backbone.dim, settings.label_values).to(job.device)
    optimizer = torch.optim.SGD(head.parameters(), settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
    state = State(job.state, {})
    batches = [batch for epoch in range(settings.epochs) for batch in epoch_batches(settings, len(examples), epoch, job.seed)]
    done = resume(head, optimizer, state, job.device)
    data = TrainingImages(settings, examples, size, job.seed)
    loader = DataLoader(data, batch_sampler=batches[done:], num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    progress = Progress("linear_segmentation", len(batches), done=done)
    per_epoch, saved = len(batches) // settings.epochs, time.monotonic()
    with stop_signals() as stop:
        for at, (images, masks, items) in enumerate(loader, start=done):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (0.1 if at // per_epoch >= settings.drop_epoch else 1)
            names = [examples[i] for i in items.tolist()]
            loss = step(settings, backbone.dense, head, optimizer, images.to(job.device), masks.to(job.device), names, backbone.source)
            progress.advance(f"loss {loss:.4f}")
            if stop.requested or at + 1 == len(batches) or time.monotonic() - saved >= SAVE_SECONDS:
                state.save(at + 1, {"step": at + 1, "head": head.state_dict(), "optimizer": optimizer.state_dict()})
                saved = time.monotonic()
            if stop.requested and at + 1 < len(batches):
                raise Interrupted(f"stopped by a signal after step {at + 1} of {len(batches)}; the state is saved in {state.folder}")
    progress.close()
    return head


def resume(head: nn.Linear, optimizer: torch.optim.Optimizer, state: State, device: str) -> int:
    """Steps that an earlier attempt has done."""
    content = state.newest(device)
    if content is None:
        return 0
    head.load_state_dict(content["head"])
    optimizer.load_state_dict(content["optimizer"])
    log.info("resuming after step %d", content["step"])
    return int(content["step"])


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
    """One update; gradients of forward passes of a few images add up to the batch's. Gives the batch's mean loss.

    A batch without a labelled pixel has no loss, and changes nothing.
    """
    labels = reduced(masks, settings.mask_size).long()
    labels = torch.where(labels == settings.ignored, -100, labels) if settings.ignored is not None else labels
    counted = int((labels >= 0).sum())
    if not counted:
        return 0.0
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        with torch.no_grad():
            maps = dense(images[part])
        require_finite(maps, names[part], backbone)
        loss = F.cross_entropy(logits(head, maps, (settings.mask_size, settings.mask_size)), labels[part], reduction="sum") / counted
        loss.backward()
        total += loss.item()
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


def epoch_batches(settings: LinearSegmentationSettings, images: int, epoch: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """(epoch, image number) of every batch of an epoch."""
    numbers = list(range(images))
    if not (settings.fixed_order and settings.layout in ("voc", "ade20k")):
        numbers = torch.randperm(images, generator=torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))).tolist()
    for start in range(0, images, settings.batch_size):
        yield [(epoch, i) for i in numbers[start : start + settings.batch_size]]


class TrainingImages(Dataset[tuple[Tensor, Tensor, int]]):
    """A random crop: normalised image [3, size, size], mask [size, size], number. Equal (epoch, number) give equal crops."""

    def __init__(self, settings: LinearSegmentationSettings, examples: Sequence[Example], size: int, seed: int) -> None:
        self.settings, self.examples, self.size, self.seed = settings, examples, size, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int]:  # type: ignore[override]
        epoch, i = item
        image, mask = read_example(self.examples[i])
        seed = derive_seed(self.seed, "crop", epoch, i)
        return *crop(image, torch.from_numpy(mask.astype(np.int32)), self.size, self.settings.crop_scale, seed), i


def crop(
    image: Image.Image, mask: Integer[Tensor, "height width"], size: int, scale: tuple[float, float], seed: int
) -> tuple[Float[Tensor, "3 {size} {size}"], Integer[Tensor, "{size} {size}"]]:
    """The same random crop and flip of image (bilinear) and mask (nearest); the image normalised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        box = T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        flip = torch.rand(()) < 0.5
    x = normalize(TF.to_tensor(TF.resized_crop(image, *box, [size, size], T.InterpolationMode.BILINEAR)))
    labels = TF.resized_crop(mask[None], *box, [size, size], T.InterpolationMode.NEAREST)[0]
    return (x.flip(-1), labels.flip(-1)) if flip else (x, labels)


# -- scoring ---------------------------------------------------------------------------------------------------------


@dataclass
class Scored:
    """Counts, and what is shown."""

    confusion: Confusion
    shown: list[Row] = field(default_factory=list)


@torch.inference_mode()
def score(
    settings: LinearSegmentationSettings,
    backbone: Backbone,
    backbone_path: Path,
    head: nn.Linear,
    examples: Sequence[Example],
    size: int,
    job: Job,
) -> tuple[Int[Tensor, "classes classes"], list[Row]]:
    """Confusion matrix of all validation images, and rows for the picture."""
    result = Scored(Confusion(settings.label_values, ignore=settings.ignored))
    shown = {len(examples) * i // SHOWN for i in range(SHOWN)}
    dense = job.cached(backbone.dense, backbone_path)
    for maps, mask, i in validation_maps(settings, dense, backbone_path, examples, size, job, "validation"):
        target = scored_mask(settings, examples[i], mask)
        prediction = logits(head, maps[None], (target.shape[0], target.shape[1]))[0].argmax(0)
        result.confusion.add(target, prediction)
        if i in shown:
            result.shown.append(row(examples[i], target, prediction))
    return result.confusion.matrix, result.shown


def scored_mask(settings: LinearSegmentationSettings, example: Example, mask: Integer[Tensor, "size size"]) -> Integer[Tensor, "h w"]:
    """The labels that are compared."""
    if settings.scoring == "reduced":
        return reduced(mask[None], settings.mask_size)[0]
    return torch.from_numpy(read_labels(example.mask, example.rule).astype(np.int32)).to(mask.device)
