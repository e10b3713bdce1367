"""Box and mask AP by faster-coco-eval, whose twelve statistics are pycocotools' at a tenth of the time."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from jaxtyping import Bool
from mmengine.registry import METRICS
from torch import Tensor

from densewalk.evaluations.mmlab import images, pyramid  # noqa: F401  registers the reader of images and the pyramids
from densewalk.evaluations.mmlab.experiment import PREFIX
from densewalk.evaluations.mmlab.processes import GatheredMetric
from densewalk.evidence.average_precision import AveragePrecision
from densewalk.evidence.statistics import Statistic
from densewalk.evidence.units import Units

log = logging.getLogger("densewalk")
STATISTICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@METRICS.register_module()
class CocoScore(GatheredMetric):
    """COCO's AP of boxes and masks, at most 100 detections per image.

    Args:
        annotations: the instances file. category_ids: COCO's id of each label.
    """

    default_prefix = PREFIX

    def __init__(self, annotations: str, category_ids: Sequence[int]) -> None:
        super().__init__()
        self.annotations, self.category_ids = annotations, category_ids

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep a batch's detections in COCO's result format, one list per image."""
        for sample in data_samples:
            self.results.append(detections(sample["img_id"], sample["pred_instances"], self.category_ids))

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """`AP_box` and so on, in percent; size bins without a ground truth are left out. `boxes` and `masks`: the detections as
        COCO's servers take them."""
        found = [detection for image in results for detection in image]
        boxes = [{k: v for k, v in d.items() if k != "segmentation"} for d in found]
        # without its box, a mask's own area decides its size bin
        masks = [{k: v for k, v in d.items() if k != "bbox"} for d in found]
        (of_boxes, box_units), (of_masks, mask_units) = (
            average_precision(self.annotations, records, kind) for records, kind in ((boxes, "bbox"), (masks, "segm"))
        )
        return of_boxes | of_masks | {"boxes": boxes, "masks": masks, "units": replace(box_units, statistics=_both(box_units, mask_units))}


def _both(a: Units, b: Units) -> dict[str, Statistic]:
    return {**a.statistics, **b.statistics}


def detections(image: int, instances: dict[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's predictions as COCO result records: x, y, width, height; the mask as compressed run lengths."""
    labels = instances["labels"].tolist()
    masks = encode(instances["masks"]) if labels else []
    records = []
    for label, score, (x1, y1, x2, y2), mask in zip(labels, instances["scores"].tolist(), instances["bboxes"].tolist(), masks, strict=True):
        box = [x1, y1, x2 - x1, y2 - y1]
        records.append({"image_id": image, "category_id": category_ids[label], "score": score, "bbox": box, "segmentation": mask})
    return records


def encode(masks: Bool[Tensor, "masks height width"]) -> list[dict[str, Any]]:
    """Run lengths of binary masks, `counts` as text, as in COCO's files."""
    encoded = rle.encode(np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": mask["size"], "counts": mask["counts"].decode("ascii")} for mask in encoded]


def average_precision(annotations: str, found: list[dict[str, Any]], kind: str) -> tuple[dict[str, float], Units]:
    """The six AP statistics in percent, named `AP_box`, `AP50_mask`, ...; those of size bins without a ground truth are left out.

    No detection at all is AP 0. The second part is what AP, AP50 and AP75 are made of; its ids are the images' file names.
    """
    truth = COCO(annotations)
    # copies, since loading adds entries
    evaluation = COCOeval_faster(truth, truth.loadRes([dict(record) for record in found]), kind, print_function=log.debug)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    suffix = "box" if kind == "bbox" else "mask"
    values = zip(STATISTICS, evaluation.stats, strict=False)
    scores = {f"{name}_{suffix}": 100 * float(value) for name, value in values if value >= 0}
    matched = matched_detections(evaluation)
    parts = {"AP": matched, "AP50": matched.at(0), "AP75": matched.at(5)}
    statistics = {f"{name}_{suffix}": part for name, part in parts.items() if f"{name}_{suffix}" in scores}
    return scores, Units([truth.imgs[i]["file_name"] for i in evaluation.params.imgIds], "image", statistics)


def matched_detections(evaluation: COCOeval_faster) -> AveragePrecision:
    """Every image's detections, the most certain 100 of each class, matched to its objects of any size."""
    from densewalk.evidence.average_precision_kernel import match_detections

    options = evaluation.params
    objects = np.zeros((len(options.imgIds), len(options.catIds)), np.int64)
    rows: list[tuple[np.ndarray, ...]] = []
    for (image, i), (category, k) in product(_numbered(options.imgIds), _numbered(options.catIds)):
        truth = evaluation.gt_dataset.get_instances([image], [category], True)[0][0]
        records = evaluation.dt_dataset.get_instances([image], [category], True)[0][0]
        if not len(truth) and not len(records):
            continue
        crowd = np.array([bool(o.get("iscrowd", 0)) for o in truth], np.bool_)
        objects[i, k] = (~crowd).sum()
        if not len(records):
            continue
        certain = -np.sort([-d["score"] for d in records], kind="stable")[: options.maxDets[-1]]
        ious = np.asarray(evaluation.ious[image, category], np.float64).reshape(len(certain), len(truth))
        order = np.argsort(crowd, kind="stable")
        flags = match_detections(ious[:, order], crowd[order], np.asarray(options.iouThrs))
        rows.append((np.full(len(certain), i), np.full(len(certain), k), certain, *flags))
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), *np.zeros((2, 0, len(options.iouThrs)), np.bool_))
    image_of, category_of, score, tp, ignored = (np.concatenate(column) for column in zip(empty, *rows, strict=True))
    classes = [evaluation.cocoGt.cats[category]["name"] for category in options.catIds]
    return AveragePrecision(len(objects), image_of, category_of, score, tp, ignored, objects, classes=classes)


def _numbered(values: Iterable[Any]) -> list[tuple[Any, int]]:
    return [(value, i) for i, value in enumerate(values)]
