"""Semantic segmentation on ADE20K through mmsegmentation: DINOv2's frozen linear head, and UPerNet fine-tuned as by iBOT.

    densewalk evaluate --spec '{"protocol": "ade20k_linear", ...}' --backbone backbone.safetensors --state DIR --out FILE

Settings name the sources. What both share (BEiT's recipe, https://arxiv.org/abs/2106.08254, used by iBOT, DoRA and DINOv2):
random resize by 0.5 to 2, crop of which one class fills at most 3/4, flip, photometric distortion; AdamW with betas 0.9 and
0.999; linear warm-up and linear decay; cross-entropy over classes 1 to 150, `other` ignored; one test image at a time,
logits resized to the image's own size before the argmax. mIoU accumulates intersections and unions over the whole set.

Deliberate deviations: the learning rate is that of mmsegmentation 0.x, in which the published results were made (decay from
the first iteration, multiplied by the warm-up; 1.x starts the decay after the warm-up, 1 % more). One process has the whole
batch, so that batch normalisation needs no synchronisation. Counts are exact integers. An image whose sides are no multiples
of the patch is padded evenly on both ends (DINOv2's rule), for UPerNet too. Arithmetic is bfloat16 on CUDA (fp16 in iBOT).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from densewalk import labelled
from densewalk.backbone import Architecture, load
from densewalk.errors import UserError
from densewalk.evals.base import Job, Result
from densewalk.labelled import Example
from densewalk.mmlab.experiment import Config, Experiment, default_levels, scales
from densewalk.pictures import Row, segmentation_strip
from densewalk.provenance import config_hash, file_sha256
from densewalk.segmentation import iou, mean_iou, pixel_accuracy
from densewalk.settings.ade20k import Ade20kLinearSettings, Ade20kSettings, Ade20kUpernetSettings

CHECKED = 200  # masks whose labels are looked at before training: all of a small set, evenly spaced ones of a large set
SHOWN = 4  # predictions in the picture
UNLIMITED = 99_999_999  # a long side that is never reached
# ImageNet's mean and standard deviation, of pixels in 0..255
NORMALIZATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}


def evaluate(settings: Ade20kSettings, backbone_path: Path, job: Job) -> Result:
    """Train a head on (or the whole of) one backbone and score it; a strip of predictions goes to `job.out`/strip.png.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
        Interrupted: a signal came; the state is saved.
    """
    training, validation = check_data(settings)
    arch = load(backbone_path).arch
    # imported late: the toolboxes take seconds, and what is wrong with the data has been said by now
    from densewalk.mmlab import segmentation  # noqa: F401
    from densewalk.mmlab.runner import run

    inputs = {"backbone": file_sha256(backbone_path), "settings": config_hash([settings.model_dump(mode="json"), job.seed])}
    found = run(experiment(settings, str(backbone_path), arch, training, validation), job, inputs)
    names = class_names(settings)
    write_strip(job.out / "strip.png", settings, validation, found["shown"], names)
    return score(found["confusion"], names, len(validation))


# -- data ------------------------------------------------------------------------------------------------------------


def check_data(settings: Ade20kSettings) -> tuple[list[Example], list[Example]]:
    """The training and validation pairs.

    Raises:
        UserError: a folder is missing or empty, an image has no mask or a mask no image, or a mask is not one (see `labelled`).
    """
    sets = []
    for split in ("training", "validation"):
        examples = labelled.ade20k(settings.root, split)
        require_masks(examples)
        for example in examples[:: max(1, len(examples) // CHECKED)]:
            labelled.read(example, label_values=settings.classes + 1, ignore=None)
        sets.append(examples)
    return sets[0], sets[1]


def require_masks(examples: list[Example]) -> None:
    """Refuse images without a mask: leaving them out would change the benchmark."""
    folder = examples[0].image.parent
    images = {path for path in folder.iterdir() if path.suffix.lower() in labelled.IMAGE_SUFFIXES}
    alone = sorted(images - {example.image for example in examples})
    if alone:
        found = f"{len(alone)} images in {folder} have no mask, e.g. {alone[0].name}"
        raise UserError(found, todo="complete annotations/ or remove the images")


def class_names(settings: Ade20kSettings) -> list[str]:
    """Names of the classes, without the ignored `other`."""
    names = labelled.class_names(settings.root, "ade20k", settings.classes + 1)
    if len(names) != settings.classes + 1:
        names = [f"class {i}" for i in range(settings.classes + 1)]
    return names[1:]


# -- the experiment --------------------------------------------------------------------------------------------------


def experiment(
    settings: Ade20kSettings, backbone: str, arch: Architecture, training: list[Example], validation: list[Example]
) -> Experiment:
    """Everything in mmsegmentation's configuration dictionaries."""
    if isinstance(settings, Ade20kUpernetSettings):
        model, building = upernet(settings, backbone, arch)
    else:
        assert isinstance(settings, Ade20kLinearSettings)
        model, building = linear(settings, backbone, arch)
    optimizer = {"type": "AdamW", "lr": settings.learning_rate, "betas": (0.9, 0.999), "weight_decay": settings.weight_decay}
    return Experiment(
        scope="mmseg",
        model=model | {"data_preprocessor": preprocessor(settings)},
        optimizer={"optimizer": optimizer, **building},
        schedules=schedules(settings),
        training=dataset(settings, training, training_pipeline(settings)),
        test=dataset(settings, validation, test_pipeline(settings)) | {"test_mode": True},
        metric={"type": "SegmentationScore", "classes": settings.classes, "shown": SHOWN},
        iterations=settings.iterations,
        batch_size=settings.batch_size,
    )


def linear(settings: Ade20kLinearSettings, backbone: str, arch: Architecture) -> tuple[Config, Config]:
    """The frozen backbone with a linear head, and how its optimiser is built: plainly."""
    if settings.layers > arch.depth:
        raise UserError(f"layers {settings.layers}: {arch.name} has {arch.depth} blocks", todo="lower layers")
    many = settings.layers > 1
    head = {
        "type": "BatchNormLinearHead",
        "in_channels": [arch.dim] * settings.layers if many else arch.dim,
        "in_index": list(range(settings.layers)) if many else 0,
        "input_transform": "resize_concat" if many else None,
        "channels": arch.dim * settings.layers,
        **prediction(settings),
    }
    levels = list(range(arch.depth - settings.layers, arch.depth))
    network = vit(settings, backbone, levels) | {"frozen": True}
    return {"type": "EncoderDecoder", "backbone": network, "decode_head": head, "test_cfg": {"mode": "whole"}}, {}


def upernet(settings: Ade20kUpernetSettings, backbone: str, arch: Architecture) -> tuple[Config, Config]:
    """The trainable backbone with UPerNet, and how its optimiser is built: with layer-wise decay."""
    levels = settings.levels or default_levels(arch.depth)
    if levels != sorted(levels) or not 0 <= levels[0] <= levels[-1] < arch.depth:
        raise UserError(f"levels {levels} do not fit {arch.name}", allowed=f"ascending block numbers from 0 to {arch.depth - 1}")
    norm = {"type": "BN"}
    network = vit(settings, backbone, levels) | {"drop_path": settings.drop_path, "gradient_checkpointing": settings.gradient_checkpointing}
    model = {
        "type": "EncoderDecoder",
        "backbone": network,
        "neck": {"type": "Feature2Pyramid", "embed_dim": arch.dim, "rescales": list(scales(arch.patch)), "norm_cfg": norm},
        "decode_head": {
            "type": "UPerHead",
            "in_channels": [arch.dim] * 4,
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": settings.channels or arch.dim,
            "dropout_ratio": 0.1,
            "norm_cfg": norm,
            **prediction(settings),
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": arch.dim,
            "in_index": 2,
            "channels": settings.auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0.1,
            "norm_cfg": norm,
            **prediction(settings, settings.auxiliary_weight),
        },
        "test_cfg": window(settings),
    }
    decay = {"rate": settings.layer_decay, "decay_position_embedding": settings.decay_position_embedding}
    return model, {"constructor": "LayerDecayConstructor", "paramwise_cfg": decay}


def vit(settings: Ade20kSettings, backbone: str, levels: list[int]) -> Config:
    """The backbone's configuration."""
    return {"type": "DensewalkBackbone", "path": backbone, "levels": levels, "final_norm": settings.final_norm, "padding": "centre"}


def prediction(settings: Ade20kSettings, weight: float = 1.0) -> Config:
    """What all heads share."""
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}
    # out_channels is named so that two classes are not taken for one and its complement
    return {"num_classes": settings.classes, "out_channels": settings.classes, "align_corners": False, "loss_decode": loss}


def window(settings: Ade20kUpernetSettings) -> Config:
    """How a test image is cut."""
    if not settings.slide:
        return {"mode": "whole"}
    return {"mode": "slide", "crop_size": (settings.crop, settings.crop), "stride": (settings.stride, settings.stride)}


def preprocessor(settings: Ade20kSettings) -> Config:
    """Normalisation, and padding of crops from images smaller than the crop."""
    crop = (settings.crop, settings.crop)
    return {"type": "SegDataPreProcessor", "size": crop, "pad_val": 0, "seg_pad_val": 255, **NORMALIZATION}


def schedules(settings: Ade20kSettings) -> list[Config]:
    """lr(t) = lr (1 - t / iterations) (1 - (1 - t / warmup)(1 - 1e-6)), the last factor while t < warmup.

    mmengine's schedulers multiply what they find, so two that begin together give the product. They reach their last factor
    one step before `end`.
    """
    decay = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": 0, "end": settings.iterations + 1, "by_epoch": False}
    warm = {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": settings.warmup + 1, "by_epoch": False}
    return [warm, decay] if settings.warmup else [decay]


def dataset(settings: Ade20kSettings, examples: list[Example], pipeline: list[Config]) -> Config:
    """Pairs of files as a data set; label 0 becomes 255, k becomes k - 1."""
    return {
        "type": "LabelledImages",
        "pairs": [(str(example.image), str(example.mask)) for example in examples],
        "classes": class_names(settings),
        "first_label_ignored": True,
        "pipeline": pipeline,
    }


def training_pipeline(settings: Ade20kSettings) -> list[Config]:
    """Loading and augmentation."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": limits(settings), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (settings.crop, settings.crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]


def test_pipeline(settings: Ade20kSettings) -> list[Config]:
    """Loading; the mask keeps its own size."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": limits(settings), "keep_ratio": True},
        {"type": "LoadAnnotations"},
        {"type": "PackSegInputs"},
    ]


def limits(settings: Ade20kSettings) -> tuple[int, int]:
    """Limits of the long and the short side."""
    return (settings.long_side if isinstance(settings, Ade20kUpernetSettings) else UNLIMITED), settings.short_side


# -- results ---------------------------------------------------------------------------------------------------------


def score(confusion: Any, names: list[str], images: int) -> Result:
    """The metrics of a confusion matrix (rows ground truth), and every class's IoU."""
    recall = confusion.diagonal().double() / confusion.sum(1)
    metrics = {"mIoU": 100 * mean_iou(confusion), "mAcc": 100 * float(recall.nanmean()), "aAcc": 100 * pixel_accuracy(confusion)}
    values = enumerate(zip(names, iou(confusion).tolist(), strict=True), start=1)
    by_class = {f"{i} {name}": round(100 * value, 2) for i, (name, value) in values if not math.isnan(value)}
    return Result(metrics, n=images, unit="images", details={"IoU": by_class})


def write_strip(path: Path, settings: Ade20kSettings, validation: list[Example], shown: dict[str, Any], names: list[str]) -> None:
    """The first few test images with ground truth and prediction; labels as in the masks, 0 is ignored."""
    rows = []
    for example in validation:
        if str(example.image) in shown:
            image, mask = labelled.read(example, label_values=settings.classes + 1, ignore=None)
            rows.append(Row(example.image.stem, np.asarray(image), mask, shown[str(example.image)].numpy() + 1))
    segmentation_strip(path, rows, ["other", *names], ignore=0)
