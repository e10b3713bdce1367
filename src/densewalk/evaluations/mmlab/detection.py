"""Box and mask AP by faster-coco-eval, whose twelve statistics are pycocotools' at a tenth of the time."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool
from mmengine.registry import METRICS
from pycocotools import mask as rle
from torch import Tensor

from densewalk.evaluations.mmlab import images, pyramid  # noqa: F401  registers the reader of images and the pyramids
from densewalk.evaluations.mmlab.experiment import PREFIX
from densewalk.evaluations.mmlab.processes import GatheredMetric

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
        scores = average_precision(self.annotations, boxes, "bbox") | average_precision(self.annotations, masks, "segm")
        return scores | {"boxes": boxes, "masks": masks}


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


def average_precision(annotations: str, found: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """The six AP statistics in percent, named `AP_box`, `AP50_mask`, ...; those of size bins without a ground truth are left out.

    No detection at all is AP 0.
    """
    truth = COCO(annotations)
    # copies, since loading adds entries
    evaluation = COCOeval_faster(truth, truth.loadRes([dict(record) for record in found]), kind, print_function=log.debug)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    suffix = "box" if kind == "bbox" else "mask"
    return {f"{name}_{suffix}": 100 * float(value) for name, value in zip(STATISTICS, evaluation.stats, strict=False) if value >= 0}
