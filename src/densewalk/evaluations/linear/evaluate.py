"""Linear classification with frozen features: DINO's protocol, DoRA's and DINOv2's.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

A classifier W x + b sees the CLS tokens of the last blocks, each after the final norm, side by side, and where asked for the
mean of the last block's patch tokens behind them. Training: random crops (8 to 100 % of the area) and flips, cross-entropy, SGD
with momentum, without weight decay, half a cosine to 0; W from N(0, 0.01), b = 0. Validation: center crops.

All classifiers of a recipe train together on one forward pass of the backbone. Features of the validation images are computed once
and kept (ImageNet-1k, ViT-S: 0.4 GB). Training resumes from `job.state` and gives what an uninterrupted one gives.

Deliberate deviations: incomplete batches are dropped (less than one in a thousand on ImageNet-1k). DINO's code interleaves CLS
and mean patch, which permutes the columns of W and nothing else.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from densewalk.core.errors import TrainingError, UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import Progress
from densewalk.data.augmentation.crops import random_resized_crop_box
from densewalk.data.augmentation.draws import maybe
from densewalk.data.benchmarks.classification import ClassifiedImages, list_imagenet
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite, training_state
from densewalk.evaluations.common.image_features import CenterCrops, crop_features, describe_classification, require_multiple
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.linear.settings import LinearSettings
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, image_ids
from densewalk.models.interface import Network
from densewalk.training.sampler import Item, StepSampler
from densewalk.training.schedules import Schedule, cosine
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State

log = logging.getLogger("densewalk")
History = list[dict[str, float]]  # of each epoch: name of a classifier -> accuracy in percent
Right = dict[str, Bool[Tensor, " images"]]  # `best` and `last`: which images a classifier has right
Tokens = Float[Tensor, "batch slots dim"]
Classes = Int[Tensor, " batch"]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of random crops: torchvision's defaults
SAVE_SECONDS = 600.0  # between two checkpoints: at most this much work is lost without a signal
CHUNK = 512  # validation images that are classified at once: 0.1 GB of logits for 52 classifiers of 1000 classes


def evaluate(settings: LinearSettings, backbone_path: Path, job: Job) -> Result:
    """Train the classifiers on one backbone's features and score them."""
    settings = settings.resolved()
    training, validation = list_imagenet(settings.root, settings.training, settings.validation)
    per_epoch, rates = schedule(settings, len(training))
    backbone = load_network(settings, backbone_path, job)
    require_multiple(settings.size, backbone)
    heads = Heads(settings, backbone.pooled_dim, len(training.names), job.seed)
    if heads.blocks > backbone.depth:
        raise UserError(f"blocks {heads.blocks}, but the backbone has {backbone.depth}", todo="lower `blocks`")
    with training_state(settings, backbone_path, job) as state:
        history, right = train(settings, heads.to(job.device), backbone, (training, validation), per_epoch, rates, state, job)
    statistics = {f"top1_{name}": MeanOfUnits(flags.cpu().double().numpy(), scale=100.0) for name, flags in right.items()}
    units = Units(image_ids(validation.paths, settings.root), "image", statistics) if statistics else None
    return replace(summarize(history, training, validation), units=units)


def describe_data(settings: LinearSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    return describe_classification(settings.root, settings.training, settings.validation)


def summarize(history: History, training: ClassifiedImages, validation: ClassifiedImages) -> Result:
    """Best over all epochs and classifiers, best after the last epoch, and which they were."""
    best = [max(epoch, key=lambda name: epoch[name]) for epoch in history]
    peak = max(range(len(history)), key=lambda e: history[e][best[e]])
    details = {
        "best": {"epoch": peak + 1, "classifier": best[peak]},
        "last": history[-1],
        "best_of_each_epoch": [epoch[name] for epoch, name in zip(history, best, strict=True)],
        "classes": len(training.names),
        "training_images": len(training),
    }
    metrics = {"top1_best": history[peak][best[peak]], "top1_last": history[-1][best[-1]]}
    return Result(metrics=metrics, n=len(validation), unit="images", details=details)


def schedule(settings: LinearSettings, images: int) -> tuple[int, Schedule]:
    """Steps of an epoch, and each step's factor of the learning rates: half a cosine to 0 over the steps or over the epochs."""
    assert settings.batch_size is not None
    assert settings.epochs is not None
    if settings.batch_size > images:
        raise UserError(f"batch_size {settings.batch_size} is larger than the data set ({images} images)", todo="lower batch_size")
    per_epoch = settings.epoch_steps or images // settings.batch_size
    if settings.decay == "step":
        return per_epoch, cosine(1.0, 0.0, settings.epochs * per_epoch)
    return per_epoch, np.repeat(cosine(1.0, 0.0, settings.epochs), per_epoch)


class Heads(nn.Module):
    """All classifiers of a grid. Each has its own parameters, so the sum of their losses gives each its own gradient.

    Attributes:
        blocks: last blocks whose CLS tokens any of them needs.
        kinds: name -> (number of blocks, with mean patch token, learning rate).
    """

    def __init__(self, settings: LinearSettings, dim: int, classes: int, seed: int) -> None:
        super().__init__()
        assert settings.learning_rates is not None
        assert settings.batch_size is not None
        kinds = settings.features_for(dim)
        self.blocks = max(count for count, _ in kinds)
        self.kinds = {
            f"{count} block{'s' * (count > 1)}{' and mean patch' * pool}, lr {rate:g}": (count, pool, rate * settings.batch_size / 256)
            for count, pool in kinds
            for rate in settings.learning_rates
        }
        layers = [nn.Linear((count + pool) * dim, classes) for count, pool, _ in self.kinds.values()]
        self.layers = nn.ModuleList(layers)
        generator = torch.Generator().manual_seed(derive_seed(seed, "classifiers"))
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> Float[Tensor, "heads batch classes"]:
        """Every classifier's logits from the tokens of `frozen_tokens`."""
        logits = [
            layer(tokens[:, self.blocks - count : self.blocks + pool].flatten(1))
            for layer, (count, pool, _) in zip(self.layers, self.kinds.values(), strict=True)
        ]
        return torch.stack(logits)

    def optimizer(self, momentum: float) -> torch.optim.SGD:
        """SGD with a group, and so a learning rate, for each classifier."""
        rates = [rate for _, _, rate in self.kinds.values()]
        groups = [{"params": list(layer.parameters()), "base": rate} for layer, rate in zip(self.layers, rates, strict=True)]
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)


@torch.no_grad()
def frozen_tokens(backbone: Network, images: Float[Tensor, "batch 3 height width"], blocks: int) -> Tokens:
    """CLS after each of the last `blocks` blocks, then the last block's mean patch token; without CLS the pooled vector alone."""
    return backbone.block_tokens(images, blocks) if "block_tokens" in backbone.abilities else backbone.pooled(images)[:, None]


def train(
    settings: LinearSettings,
    heads: Heads,
    backbone: Network,
    splits: tuple[ClassifiedImages, ClassifiedImages],
    per_epoch: int,
    rates: Schedule,
    state: State,
    job: Job,
) -> tuple[History, Right]:
    """Train to the last step, from the newest intact checkpoint if there is one.

    Returns:
        The accuracies after each epoch, and which images the best and the last one's best classifier has right. A checkpoint of an earlier
        version does not say so of what came before it.
    """
    assert settings.batch_size is not None
    training, validation = splits
    optimizer, done, history = heads.optimizer(settings.momentum), 0, []
    right: Right = {}
    if (content := state.newest(job.device)) is not None:
        heads.load_state_dict(content["heads"])
        optimizer.load_state_dict(content["optimizer"])
        done, history, right = content["step"], content["history"], content.get("right", {})
        log.info("resuming after step %d", done)
    sampler = StepSampler(len(training), settings.batch_size, job.seed, done, len(rates))
    data = RandomCrops(training, settings, backbone.statistics)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=job.workers, worker_init_fn=leave_signals_to_parent)
    progress, fixed = Progress("linear", len(rates), done=done), None
    with stop_signals() as stop:
        saver = PeriodicSaver(state, stop, len(rates), seconds=SAVE_SECONDS)
        for at, (images, targets, numbers) in enumerate(loader, start=done):
            tokens = frozen_tokens(backbone, images.to(job.device), heads.blocks)
            require_finite(tokens, [training.paths[i] for i in numbers.tolist()], backbone.source)
            step(heads, optimizer, tokens, targets.to(job.device), rates[at])
            if (at + 1) % per_epoch == 0:
                fixed = fixed or validation_tokens(settings, backbone, heads.blocks, validation, job)
                found, flags = accuracies(heads, *fixed)
                note_right(right, history, found, flags)
                history.append(found)
            progress.advance(f"top1 {max(history[-1].values()):.2f}" if history else "")
            if saver.is_due(at + 1):
                content = {"step": at + 1, "heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
                saver.save(at + 1, content | {"right": right})
    progress.close()
    return history, right


def note_right(right: Right, history: History, found: dict[str, float], flags: Bool[Tensor, "heads images"]) -> None:
    """Note which images the best classifier of an epoch has right, as the last, and as the best if none before was as good."""
    name = max(found, key=lambda n: found[n])
    right["last"] = flags[list(found).index(name)]
    if not history or found[name] > max(max(epoch.values()) for epoch in history):
        right["best"] = right["last"]


def step(heads: Heads, optimizer: torch.optim.SGD, tokens: Tokens, targets: Classes, rate: float) -> None:
    """One update of every classifier by its own cross-entropy."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * float(rate)
    logits = heads(tokens)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(logits)), reduction="none")
    optimizer.zero_grad(set_to_none=True)
    (losses.sum() / len(targets)).backward()
    optimizer.step()


@torch.no_grad()
def accuracies(heads: Heads, tokens: Tokens, targets: Classes) -> tuple[dict[str, float], Bool[Tensor, "heads images"]]:
    """Top-1 of every classifier in percent, and which images it has right; one that has diverged has 0 and none. All of them are a
    TrainingError."""
    alive = torch.ones(len(heads.kinds), dtype=torch.bool, device=targets.device)
    parts = []
    for part, classes in zip(tokens.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = heads(part)
        alive &= logits.isfinite().flatten(1).all(1)
        parts.append(logits.argmax(-1) == classes)
    if not alive.any():
        raise TrainingError("the logits of all classifiers are not finite: lower learning_rates")
    right = torch.cat(parts, dim=1) & alive[:, None]
    return dict(zip(heads.kinds, (100 * right.sum(1).double() / len(targets)).tolist(), strict=True)), right


def validation_tokens(
    settings: LinearSettings, backbone: Network, blocks: int, split: ClassifiedImages, job: Job
) -> tuple[Tokens, Classes]:
    """Tokens and classes of the validation images."""
    crops, compute = (
        CenterCrops(split, settings.resize, settings.size, backbone.statistics),
        partial(frozen_tokens, backbone, blocks=blocks),
    )
    tokens, classes = zip(*crop_features(compute, crops, job, "validation features", backbone.source), strict=True)
    return torch.cat(tokens), torch.cat(classes)


class RandomCrops(Dataset[tuple[Tensor, int, int]]):
    """Normalized image [3, size, size], class, number: random crop and flip, drawn from the item's seed."""

    def __init__(self, split: ClassifiedImages, settings: LinearSettings, statistics: PixelStatistics) -> None:
        self.split, self.size, self.statistics = split, settings.size, statistics
        self.filter = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[settings.interpolation or "bilinear"]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: Item) -> tuple[Tensor, int, int]:
        image = read_image(self.split.paths[item.index])
        generator = torch.Generator().manual_seed(item.seed)
        top, left, height, width = random_resized_crop_box(image.height, image.width, SCALE, RATIO, generator)
        crop = image.crop((left, top, left + width, top + height)).resize((self.size, self.size), self.filter)
        x = normalize(TF.to_tensor(crop), self.statistics)
        return x.flip(-1) if maybe(0.5, generator) else x, self.split.targets[item.index], item.index
