"""COCO's score of boxes and masks; that of masks by faster-coco-eval, whose twelve statistics are pycocotools' at a tenth of the time."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from jaxtyping import Bool
from mmengine.registry import METRICS
from torch import Tensor

from densewalk.evaluations.metrics.detections import Evaluation, Pairs, box_evaluation, read_annotations
from densewalk.evaluations.mmlab import images, pyramid  # noqa: F401  registers the reader of images and the pyramids
from densewalk.evaluations.mmlab.experiment import PREFIX
from densewalk.evaluations.mmlab.processes import GatheredMetric
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
    content = read_annotations(annotations)
    if kind == "bbox":
        evaluation = box_evaluation(content, found)
        values = evaluation.statistics()
    else:
        evaluation, values = mask_evaluation(content, found)
    suffix = "box" if kind == "bbox" else "mask"
    scores = {f"{name}_{suffix}": 100 * values[name] for name in STATISTICS if values[name] >= 0}
    names, classes = (
        {entry["id"]: entry[key] for entry in content[part]} for part, key in (("images", "file_name"), ("categories", "name"))
    )
    matched = evaluation.matched([classes[i] for i in evaluation.pairs.categories.tolist()])
    parts = {"AP": matched, "AP50": matched.at(0), "AP75": matched.at(5)}
    statistics = {f"{name}_{suffix}": part for name, part in parts.items() if f"{name}_{suffix}" in scores}
    return scores, Units([names[i] for i in evaluation.pairs.images.tolist()], "image", statistics)


def mask_evaluation(content: dict[str, Any], found: list[dict[str, Any]]) -> tuple[Evaluation, dict[str, float]]:
    """Masks by faster-coco-eval: what it needs most of its time for are the overlaps of run lengths."""
    truth = COCO(content)
    # copies, since loading adds entries
    results = truth.loadRes([dict(record) for record in found])
    evaluation = COCOeval_faster(truth, results, "segm", print_function=log.debug)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    pairs = Pairs.of(content, results.dataset["annotations"])
    first = evaluation.stats[: len(STATISTICS)].tolist()  # recalls follow
    return Evaluation(pairs, pairs.overlaps(evaluation.ious)), dict(zip(STATISTICS, first, strict=True))
