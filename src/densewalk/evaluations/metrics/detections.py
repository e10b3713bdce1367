"""COCO's average precision and recall of detections; every number equals pycocotools' to the last bit. Free of torch.

    found = box_evaluation(read_annotations("instances_val2017.json"), records)       # records: COCO's result format
    found.statistics()["AP"], found.matched(classes)

The arithmetic is that of https://github.com/cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py, in compiled loops over sorted columns
(detections_kernel.py): fifty times as fast, and eight times as fast as faster-coco-eval (benchmarks/boxes.py).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from densewalk.evaluations.metrics.detections_kernel import HIT, IGNORED, accumulate, box_overlaps, match
from densewalk.evidence.average_precision import RECALLS, AveragePrecision

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}  # square pixels
MOST = (1, 10, 100)  # detections of an image and class


@dataclass(frozen=True)
class Rows:
    """Objects or detections in the file's order: ids of image and category, area in square pixels.

    value: of an object 1 if it is a crowd, of a detection its score.
    """

    image: Int[np.ndarray, " rows"]
    category: Int[np.ndarray, " rows"]
    area: Float[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]

    @classmethod
    def of(cls, entries: Sequence[dict[str, Any]], area: Iterable[float], value: Iterable[float]) -> "Rows":
        """Columns of COCO's entries."""
        image, category = (np.fromiter(map(itemgetter(key), entries), np.int64, len(entries)) for key in ("image_id", "category_id"))
        return cls(image, category, *(np.fromiter(column, np.float64, len(entries)) for column in (area, value)))


class Pairs:
    """Objects and the most certain 100 detections of each image and class, sorted by class and image, detections by falling score.

    object_rows, detection_rows: which rows they were. first_object, first_detection, first_overlap: [pairs + 1], where a pair's
    part begins.
    """

    def __init__(self, images: Iterable[int], categories: Iterable[int], objects: Rows, detections: Rows) -> None:
        """Detections of another class are left out, as pycocotools does; AssertionError for those of another image."""
        self.images, self.categories = (np.unique(np.fromiter(ids, np.int64)) for ids in (images, categories))
        if not np.isin(detections.image, self.images).all():
            raise AssertionError("detections of an image that is not in the file")
        object_pairs, detection_pairs = (self._pairs_of(rows) for rows in (objects, detections))
        order = np.argsort(object_pairs, kind="stable")
        self.object_rows = order[object_pairs[order] >= 0]
        order = np.lexsort((-detections.value, detection_pairs))
        order = order[detection_pairs[order] >= 0]
        rank = np.arange(len(order)) - np.searchsorted(detection_pairs[order], detection_pairs[order])
        self.detection_rows, self.rank = order[rank < MOST[-1]], rank[rank < MOST[-1]]
        object_pairs, detection_pairs = object_pairs[self.object_rows], detection_pairs[self.detection_rows]
        pairs = np.union1d(object_pairs, detection_pairs)
        ends = (np.append(np.searchsorted(rows, pairs), len(rows)) for rows in (object_pairs, detection_pairs))
        self.first_object, self.first_detection = ends
        self.first_overlap = np.append(0, np.cumsum(np.diff(self.first_object) * np.diff(self.first_detection)))
        self.object_category, self.object_image = np.divmod(object_pairs, len(self.images))
        self.detection_category, self.detection_image = np.divmod(detection_pairs, len(self.images))
        self.crowd, self.object_area = objects.value[self.object_rows] != 0, objects.area[self.object_rows]
        self.score, self.detection_area = detections.value[self.detection_rows], detections.area[self.detection_rows]

    @classmethod
    def of(cls, content: dict[str, Any], records: Sequence[dict[str, Any]], areas: Iterable[float] | None = None) -> "Pairs":
        """Pairs of a file of instances and results; areas: of the results, whose own `area` is taken without."""
        annotations = content["annotations"]
        crowds = (entry.get("iscrowd", 0) for entry in annotations)
        objects = Rows.of(annotations, map(itemgetter("area"), annotations), crowds)
        given = map(itemgetter("area"), records) if areas is None else areas
        detections = Rows.of(records, given, map(itemgetter("score"), records))
        images, categories = ([entry["id"] for entry in content[part]] for part in ("images", "categories"))
        return cls(images, categories, objects, detections)

    def _pairs_of(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        """The class's place times the number of images plus the image's place; -1 where either is not in the file."""
        (images, known), (categories, named) = _places(self.images, rows.image), _places(self.categories, rows.category)
        return np.where(known & named, categories * len(self.images) + images, -1)

    def box_overlaps(self, objects: Float[np.ndarray, "objects 4"], detections: Float[np.ndarray, "detections 4"]) -> np.ndarray:
        """Overlaps for `Evaluation`, of all boxes in the files' order: x, y, width, height."""
        overlaps = np.empty(self.first_overlap[-1])
        firsts = (self.first_object, self.first_detection, self.first_overlap)
        box_overlaps(objects[self.object_rows], self.crowd, detections[self.detection_rows], *firsts, overlaps)
        return overlaps

    def overlaps(self, of_pair: Mapping[tuple[Any, Any], Any]) -> Float[np.ndarray, " overlaps"]:
        """Overlaps for `Evaluation`, of arrays [detections, objects] by the ids of image and category."""
        both = np.diff(self.first_overlap) > 0
        images = self.images[self.object_image[self.first_object[:-1][both]]].tolist()
        categories = self.categories[self.object_category[self.first_object[:-1][both]]].tolist()
        parts = [np.ravel(of_pair[pair]) for pair in zip(images, categories, strict=True)]
        return np.concatenate([np.empty(0), *parts])


def _places(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the values are among ascending ids, and whether they are."""
    places = np.searchsorted(ids, values)
    places[places == len(ids)] = 0
    return places, ids[places] == values if len(ids) else np.zeros(len(values), bool)


@dataclass(frozen=True)
class Evaluation:
    """Detections matched to objects. overlaps: pair by pair [detections, objects], IoU or the part that is inside a crowd."""

    pairs: Pairs
    overlaps: Float[np.ndarray, " overlaps"]

    @cached_property
    def _ignored(self) -> Bool[np.ndarray, "areas objects"]:
        return self.pairs.crowd | _outside(self.pairs.object_area)

    @cached_property
    def _found(self) -> UInt8[np.ndarray, "detections areas thresholds"]:
        p = self.pairs
        found = np.empty((len(p.score), len(AREAS), len(THRESHOLDS)), np.uint8)
        outside = _outside(p.detection_area)
        match(p.first_object, p.first_detection, p.first_overlap, self.overlaps, p.crowd, self._ignored, outside, THRESHOLDS, found)
        return found

    @cached_property
    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision [areas, most, thresholds, recalls, classes] and recall [areas, most, thresholds, classes]; -1 without objects."""
        p, classes = self.pairs, len(self.pairs.categories)
        objects = np.stack([np.bincount(p.object_category[~ignored], minlength=classes) for ignored in self._ignored], 1)
        order = np.lexsort((-p.score, p.detection_category))  # of equal scores the earlier image first
        first = np.searchsorted(p.detection_category[order], np.arange(classes + 1))
        shape = (len(AREAS), len(MOST), len(THRESHOLDS))
        precision, recall = np.full((*shape, len(RECALLS), classes), -1.0), np.full((*shape, classes), -1.0)
        accumulate(order, first, self._found, p.rank, np.array(MOST), objects, RECALLS, precision, recall)
        return precision, recall

    def statistics(self) -> dict[str, float]:
        """COCO's twelve numbers in 0..1, in its order; -1 where no class has an object of such an area."""
        precision, recall = self.curves
        last = len(MOST) - 1
        cells = {"AP": precision[0, last], "AP50": precision[0, last, 0], "AP75": precision[0, last, 5]}
        sizes = list(AREAS)[1:]
        cells |= {f"AP_{size}": precision[i, last] for i, size in enumerate(sizes, 1)}
        cells |= {f"AR{most}": recall[0, m] for m, most in enumerate(MOST)}
        cells |= {f"AR_{size}": recall[i, last] for i, size in enumerate(sizes, 1)}
        return {name: float(values[values > -1].mean()) if (values > -1).any() else -1.0 for name, values in cells.items()}

    def matched(self, classes: Sequence[str]) -> AveragePrecision:
        """Every image's detections, matched to its objects of any size; classes: names, by ascending id."""
        p = self.pairs
        shape = (len(p.images), len(p.categories))
        rows = np.lexsort((p.detection_category, p.detection_image))
        found = self._found[rows, 0]
        objects = np.zeros(shape, np.int64)
        np.add.at(objects, (p.object_image[~p.crowd], p.object_category[~p.crowd]), 1)
        columns = (p.detection_image[rows], p.detection_category[rows], p.score[rows])
        return AveragePrecision(shape[0], *columns, found == HIT, found == IGNORED, objects, classes=classes)


def _outside(area: Float[np.ndarray, " rows"]) -> Bool[np.ndarray, "areas rows"]:
    return np.stack([(area < low) | (area > high) for low, high in AREAS.values()])


def box_evaluation(content: dict[str, Any], records: Sequence[dict[str, Any]]) -> Evaluation:
    """Evaluate boxes.

    Args:
        content: of a file of instances, which has been checked. records: detections in COCO's result format.
    """
    objects, detections = (_boxes(entries) for entries in (content["annotations"], records))
    pairs = Pairs.of(content, records, detections[:, 2] * detections[:, 3])
    return Evaluation(pairs, pairs.box_overlaps(objects, detections))


def _boxes(entries: Sequence[dict[str, Any]]) -> Float[np.ndarray, "rows 4"]:
    numbers = chain.from_iterable(map(itemgetter("bbox"), entries))
    return np.fromiter(numbers, np.float64, 4 * len(entries)).reshape(-1, 4)


def read_annotations(path: str | Path) -> dict[str, Any]:
    """Read a file of instances, which has been checked."""
    return json.loads(Path(path).read_bytes())  # type: ignore[no-any-return]
