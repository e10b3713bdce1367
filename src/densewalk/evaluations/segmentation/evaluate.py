"""Semantic segmentation through mmsegmentation, on ADE20K and in other layouts: a linear head on the frozen backbone (DINOv2's or
iBOT's), and UPerNet fine-tuned as by iBOT.

    densewalk evaluate --spec '{"protocol": "ade20k_linear", ...}' --backbone backbone.safetensors --state DIR --out FILE

Settings name the sources, `settings.layouts` the classes. What all share (BEiT's recipe, https://arxiv.org/abs/2106.08254, used by
iBOT, DoRA and DINOv2): random resize by 0.5 to 2, crop of which one class fills at most 3/4, flip, photometric distortion; AdamW
with betas 0.9 and 0.999; linear warm-up and linear decay; cross-entropy over the classes; one test image at a time, logits resized
to the image's own size before the argmax. mIoU accumulates intersections and unions over the whole set.

Test at several sizes ("ms"): the image is resized to a short side of max(crop, ratio * short_side) px for each ratio, and once
more mirrored; the softmax of the logits, at the image's own size, is averaged over all of them (iBOT's rule, after SETR,
https://arxiv.org/abs/2012.15840: a small size would not fill one window). Sizes that coincide are computed once and count as often as
they are named.

Deliberate deviations: the learning rate is that of mmsegmentation 0.x, in which the published results were made (decay from
the first iteration, multiplied by the warm-up; 1.x starts the decay after the warm-up, 1 % more). One process has the whole
batch, so that batch normalisation needs no synchronisation. Counts are exact integers. An image whose sides are no multiples
of the patch is padded evenly on both ends (DINOv2's rule), for UPerNet too. Arithmetic is bfloat16 on CUDA (fp16 in iBOT).
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.data.benchmarks.label_maps import (
    Example,
    list_ade20k,
    list_cityscapes,
    list_coco_stuff,
    list_folders,
    list_voc,
    load_class_names,
    read_example,
    read_image,
)
from densewalk.data.benchmarks.label_rules import NAMES
from densewalk.data.images import EXTENSIONS, read_mask
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.metrics.segmentation import iou, mean_iou, pixel_accuracy
from densewalk.evaluations.mmlab.experiment import Config, Experiment, default_levels, scales
from densewalk.evaluations.segmentation.recipes import LinearSettings, SegmentationSettings, UpernetSettings
from densewalk.evaluations.segmentation.settings import LayoutData
from densewalk.models.architecture import Architecture
from densewalk.models.loading import load
from densewalk.visualization.overlays import Row, segmentation_strip

CHECKED = 200  # masks whose labels are looked at before training: all of a small set, evenly spaced ones of a large set
SHOWN = 4  # predictions in the picture
UNLIMITED = 99_999_999  # a long side that is never reached
# ImageNet's mean and standard deviation, of pixels in 0..255
NORMALIZATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}


def evaluate(settings: SegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Train a head on (or the whole of) one backbone and score it; a strip of predictions goes to `job.out`/strip.png.

    Raises:
        UserError: data missing, damaged or with labels beyond the classes; the message names the file.
        Interrupted: a signal came; the state is saved.
    """
    training, validation = check_data(settings)
    arch = load(backbone_path).arch
    # imported late: the toolboxes take seconds, and what is wrong with the data has been said by now
    from densewalk.evaluations.mmlab import segmentation  # noqa: F401
    from densewalk.evaluations.mmlab.runner import run

    inputs = {"backbone": file_sha256(backbone_path), "settings": config_hash([settings.model_dump(mode="json"), job.seed])}
    found = run(experiment(settings, str(backbone_path), arch, training, validation), job, inputs)
    names = class_names(settings)
    write_strip(job.out / "strip.png", settings, validation, found["shown"], names)
    return score(found["confusion"], names, len(validation))


def describe_data(settings: SegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = check_data(settings)
    return {"training images": len(training), "validation images": len(validation)}


# -- data ------------------------------------------------------------------------------------------------------------


def check_data(settings: SegmentationSettings) -> tuple[list[Example], list[Example]]:
    """The training and validation pairs.

    Raises:
        UserError: a folder is missing or empty, an image has no mask or a mask no image, or a mask is not one.
    """
    training, validation = splits(settings)
    for examples in (training, validation):
        for example in examples[:: max(1, len(examples) // CHECKED)]:
            read_example(example)
    return training, validation


def splits(settings: SegmentationSettings) -> tuple[list[Example], list[Example]]:
    """The two halves as their layout lists them, without a look into the files."""
    training, validation = settings.splits if isinstance(settings, LayoutData) else ("training", "validation")
    halves = list_half(settings, training), list_half(settings, validation)
    both = {example.image for example in halves[0]} & {example.image for example in halves[1]}
    if both:
        raise UserError(f"{min(both)} is in the training and in the validation half", todo="correct `training` and `validation`")
    return halves


def list_half(settings: SegmentationSettings, split: str) -> list[Example]:
    """One half of the data."""
    root, rule = Path(settings.root), settings.rule
    if not isinstance(settings, LayoutData):
        examples = list_ade20k(root, split, rule)
        return require_masks(examples, examples[0].image.parent)
    if settings.layout == "folders":
        images, masks = root / (settings.images or "images") / split, root / (settings.masks or "annotations") / split
        return require_masks(list_folders(images, masks, rule), images)
    if settings.layout == "voc":
        return list_voc(root, split, settings.masks or "SegmentationClass", rule)
    if settings.layout == "cityscapes":
        return list_cityscapes(root, split, train_ids=rule)
    return list_coco_stuff(root, split, rule)


def require_masks(examples: list[Example], folder: Path) -> list[Example]:
    """The examples; images of `folder` without a mask are refused: leaving them out would change the benchmark."""
    images = {path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS}
    alone = sorted(images - {example.image for example in examples})
    if alone:
        found = f"{len(alone)} images in {folder} have no mask, e.g. {alone[0].name}"
        raise UserError(found, todo="complete annotations/ or remove the images")
    return examples


def class_names(settings: SegmentationSettings) -> list[str]:
    """Names of the classes, in their order; numbers where there are none."""
    values = settings.rule.values
    layout, given = (settings.layout, settings.class_names) if isinstance(settings, LayoutData) else ("ade20k", None)
    names = load_class_names(settings.root, layout, max(values) + 1, given)
    if layout in NAMES:
        return names
    return [names[v] for v in values] if len(names) == max(values) + 1 else [f"class {v}" for v in values]


# -- the experiment --------------------------------------------------------------------------------------------------


def experiment(
    settings: SegmentationSettings, backbone: str, arch: Architecture, training: list[Example], validation: list[Example]
) -> Experiment:
    """Everything in mmsegmentation's configuration dictionaries."""
    if isinstance(settings, UpernetSettings):
        model, building = upernet(settings, backbone, arch)
    else:
        assert isinstance(settings, LinearSettings)
        model, building = linear(settings, backbone, arch)
    optimizer = {"type": "AdamW", "lr": settings.learning_rate, "betas": (0.9, 0.999), "weight_decay": settings.weight_decay}
    return Experiment(
        scope="mmseg",
        model=model | {"data_preprocessor": preprocessor(settings), "test_cfg": window(settings)},
        optimizer={"optimizer": optimizer, **building},
        schedules=schedules(settings),
        training=dataset(settings, training, training_pipeline(settings)),
        test=dataset(settings, validation, test_pipeline(settings)) | {"test_mode": True},
        metric={"type": "SegmentationScore", "classes": len(settings.rule.values), "shown": SHOWN},
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        test_model=averaging(settings) if settings.multi_scale else None,
    )


def linear(settings: LinearSettings, backbone: str, arch: Architecture) -> tuple[Config, Config]:
    """The frozen backbone with a linear head, and how its optimiser is built: plainly."""
    levels = default_levels(arch.depth) if settings.layers == "spread" else list(range(arch.depth - settings.layers, arch.depth))
    if levels[0] < 0 or len(set(levels)) < len(levels):
        raise UserError(f"layers {settings.layers}: {arch.name} has {arch.depth} blocks", todo="lower layers")
    many = len(levels) > 1
    head = {
        "type": "LinearHead",
        "batch_norm": settings.batch_norm,
        "in_channels": [arch.dim] * len(levels) if many else arch.dim,
        "in_index": list(range(len(levels))) if many else 0,
        "input_transform": "resize_concat" if many else None,
        "channels": arch.dim * len(levels),
        **prediction(settings),
    }
    network = vit(settings, backbone, levels) | {"frozen": True}
    return {"type": "EncoderDecoder", "backbone": network, "decode_head": head}, {}


def upernet(settings: UpernetSettings, backbone: str, arch: Architecture) -> tuple[Config, Config]:
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
    }
    decay = {"rate": settings.layer_decay, "decay_position_embedding": settings.decay_position_embedding}
    return model, {"constructor": "LayerDecayConstructor", "paramwise_cfg": decay}


def vit(settings: SegmentationSettings, backbone: str, levels: list[int]) -> Config:
    """The backbone's configuration."""
    return {"type": "DensewalkBackbone", "path": backbone, "levels": levels, "final_norm": settings.final_norm, "padding": "centre"}


def prediction(settings: SegmentationSettings, weight: float = 1.0) -> Config:
    """What all heads share."""
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}
    # out_channels is named so that two classes are not taken for one and its complement
    classes = len(settings.rule.values)
    return {"num_classes": classes, "out_channels": classes, "align_corners": False, "loss_decode": loss}


def window(settings: SegmentationSettings) -> Config:
    """How a test image is cut."""
    if not settings.slide:
        return {"mode": "whole"}
    return {"mode": "slide", "crop_size": (settings.crop, settings.crop), "stride": (settings.stride, settings.stride)}


def averaging(settings: SegmentationSettings) -> Config:
    """How the views of `test_pipeline` are put together: each size, plain and mirrored, as often as it is named."""
    return {"type": "AveragedViews", "weights": [n for n in Counter(test_sides(settings)).values() for _ in ("plain", "mirrored")]}


def preprocessor(settings: SegmentationSettings) -> Config:
    """Normalisation, and padding of crops from images smaller than the crop."""
    crop = (settings.crop, settings.crop)
    return {"type": "SegDataPreProcessor", "size": crop, "pad_val": 0, "seg_pad_val": 255, **NORMALIZATION}


def schedules(settings: SegmentationSettings) -> list[Config]:
    """lr(t) = lr (1 - t / iterations) (1 - (1 - t / warmup)(1 - 1e-6)), the last factor while t < warmup.

    mmengine's schedulers multiply what they find, so two that begin together give the product. They reach their last factor
    one step before `end`.
    """
    decay = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": 0, "end": settings.iterations + 1, "by_epoch": False}
    warm = {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": settings.warmup + 1, "by_epoch": False}
    return [warm, decay] if settings.warmup else [decay]


def dataset(settings: SegmentationSettings, examples: list[Example], pipeline: list[Config]) -> Config:
    """Pairs of files as a data set."""
    return {
        "type": "LabelledImages",
        "pairs": [(str(example.image), str(example.mask)) for example in examples],
        "classes": class_names(settings),
        "pipeline": pipeline,
    }


def training_pipeline(settings: SegmentationSettings) -> list[Config]:
    """Loading and augmentation."""
    ratios = {"ratio_range": settings.scale_range, "keep_ratio": True}
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadClasses", "rule": settings.rule},
        {"type": "RandomResize", "scale": (settings.long_side or UNLIMITED, settings.short_side), **ratios},
        {"type": "RandomCrop", "crop_size": (settings.crop, settings.crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]


def test_pipeline(settings: SegmentationSettings) -> list[Config]:
    """Loading; the mask keeps its own size."""
    load, mask, pack = {"type": "LoadImageFromFile"}, {"type": "LoadClasses", "rule": settings.rule}, {"type": "PackSegInputs"}
    if not settings.multi_scale:
        scale = (settings.long_side or UNLIMITED, settings.short_side)
        return [load, {"type": "Resize", "scale": scale, "keep_ratio": True}, mask, pack]
    sizes = [{"type": "Resize", "scale": (UNLIMITED, side), "keep_ratio": True} for side in dict.fromkeys(test_sides(settings))]
    mirrored = [{"type": "RandomFlip", "prob": probability} for probability in (0.0, 1.0)]
    return [load, {"type": "TestTimeAug", "transforms": [sizes, mirrored, [mask], [pack]]}]


def test_sides(settings: SegmentationSettings) -> list[int]:
    """Short sides of the test images with `multi_scale`, one for each ratio."""
    return [max(settings.crop, int(ratio * settings.short_side)) for ratio in settings.test_ratios]


# -- results ---------------------------------------------------------------------------------------------------------


def score(confusion: Any, names: list[str], images: int) -> Result:
    """The metrics of a confusion matrix (rows ground truth), and every class's IoU."""
    recall = confusion.diagonal().double() / confusion.sum(1)
    metrics = {"mIoU": 100 * mean_iou(confusion), "mAcc": 100 * float(recall.nanmean()), "aAcc": 100 * pixel_accuracy(confusion)}
    values = enumerate(zip(names, iou(confusion).tolist(), strict=True), start=1)
    by_class = {f"{i} {name}": round(100 * value, 2) for i, (name, value) in values if not math.isnan(value)}
    return Result(metrics, n=images, unit="images", details={"IoU": by_class})


def write_strip(path: Path, settings: SegmentationSettings, validation: list[Example], shown: dict[str, Any], names: list[str]) -> None:
    """The first few test images with ground truth and prediction, in the colours of the masks' own labels."""
    values = np.array(settings.rule.values)
    rows = []
    for example in validation:
        if str(example.image) in shown:
            prediction = values[shown[str(example.image)].numpy()]
            rows.append(Row(example.image.stem, np.asarray(read_image(example)), read_mask(example.mask), prediction))
    by_label = dict(zip(settings.rule.values, names, strict=True))
    segmentation_strip(path, rows, [by_label.get(v, "") for v in range(max(settings.rule.values) + 1)], ignore=settings.rule.ignored)
