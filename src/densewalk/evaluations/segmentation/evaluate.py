"""Semantic segmentation through mmsegmentation, on ADE20K and in other layouts: a linear head on the frozen backbone (DINOv2's or
iBOT's), and UPerNet fine-tuned as by iBOT.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

The settings name the sources. All share BEiT's recipe (https://arxiv.org/abs/2106.08254): random resize by 0.5 to 2, crop of which
one class fills at most 3/4, flip, photometric distortion; AdamW with betas 0.9 and 0.999; linear warm-up and linear decay;
cross-entropy; one test image at a time, logits resized to the image's own size before the argmax.

Test at several sizes ("ms"): the image is resized to a short side of max(crop, ratio * short_side) px for each ratio, and once
more mirrored; the softmax of the logits, at the image's own size, is averaged over all of them (iBOT's rule, after SETR,
https://arxiv.org/abs/2012.15840). Equal sizes are computed once and count as often as they are named.

Deliberate deviations: the learning rate is that of mmsegmentation 0.x, in which the published results were made (decay from
the first iteration, multiplied by the warm-up; 1.x starts the decay after the warm-up, 1 % more). Counts are exact
integers. An image whose sides are no multiples of the patch is padded evenly on both ends (DINOv2's rule), for UPerNet too.
Arithmetic is bfloat16 on CUDA (fp16 in iBOT).
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densewalk.core import distributed
from densewalk.data.benchmarks.label_maps import Example, read_image
from densewalk.data.image_files import read_mask
from densewalk.evaluations.common.base import Job, Result, load_network, training_state
from densewalk.evaluations.metrics.segmentation import iou, mean_iou, pixel_accuracy
from densewalk.evaluations.segmentation.data import check_data, class_names
from densewalk.evaluations.segmentation.experiment import experiment
from densewalk.evaluations.segmentation.recipes import SegmentationSettings
from densewalk.evidence.units import Units, image_ids
from densewalk.visualization.overlays import Row, write_segmentation_strip


def evaluate(settings: SegmentationSettings, backbone_path: Path, job: Job) -> Result:
    """Train a head on (or the whole of) one backbone and score it; a strip of predictions goes to `job.out`/strip.png."""
    training, validation = check_data(settings)
    arch = load_network(settings, backbone_path, job).arch
    # imported late: the toolboxes take seconds, and errors in the data have been found by now
    from densewalk.evaluations.mmlab import segmentation  # noqa: F401
    from densewalk.evaluations.mmlab.runner import run

    found = run(experiment(settings, str(backbone_path), arch, training, validation), job, training_state(settings, backbone_path, job))
    if distributed.rank() > 0:  # process 0 has the predictions of all, and writes them
        return Result({}, n=len(validation), unit="images")
    names = class_names(settings)
    write_strip(job.out / "strip.png", settings, validation, found["shown"], names)
    counts = found["counts"]
    statistics = {"mIoU": counts.mean_iou(), "mAcc": counts.mean_accuracy(), "aAcc": counts.pixel_accuracy()}
    units = Units(image_ids([example.image for example in validation], settings.root), "image", statistics)
    return replace(summarize(found["confusion"], names, len(validation)), units=units)


def describe_data(settings: SegmentationSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = check_data(settings)
    return {"training images": len(training), "validation images": len(validation)}


def summarize(confusion: Any, names: list[str], images: int) -> Result:
    """The metrics of a confusion matrix (rows ground truth), and every class's IoU."""
    recall = confusion.diagonal().double() / confusion.sum(1)
    metrics = {"mIoU": 100 * mean_iou(confusion), "mAcc": 100 * float(recall.nanmean()), "aAcc": 100 * pixel_accuracy(confusion)}
    values = enumerate(zip(names, iou(confusion).tolist(), strict=True), start=1)
    by_class = {f"{i} {name}": round(100 * value, 2) for i, (name, value) in values if not math.isnan(value)}
    return Result(metrics, n=images, unit="images", details={"IoU": by_class})


def write_strip(path: Path, settings: SegmentationSettings, validation: list[Example], shown: dict[str, Any], names: list[str]) -> None:
    """Write the first few test images with ground truth and prediction, in the colors of the masks' own labels."""
    values = np.array(settings.rule.values)
    rows = []
    for example in validation:
        if str(example.image) in shown:
            prediction = values[shown[str(example.image)].numpy()]
            rows.append(Row(example.image.stem, np.asarray(read_image(example)), read_mask(example.mask, example.still), prediction))
    by_label = dict(zip(settings.rule.values, names, strict=True))
    write_segmentation_strip(path, rows, [by_label.get(v, "") for v in range(max(settings.rule.values) + 1)], ignore=settings.rule.ignored)
