"""COCO's average precision of boxes in turns with pycocotools and faster-coco-eval: CPU milliseconds on one thread.

    python -m benchmarks.boxes                      # two minutes
    python -m benchmarks.boxes --images 2 4 --repeat 1

Everything is measured in this process, in turns; medians. Each reads the annotation file, takes the detections as COCO's result records and
computes the twelve statistics, which are equal up to rounding. What is computed here holds the detections of every image for its
intervals, too. The floor is reading the file and copying all boxes into an array.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import Row, table

from densewalk.evaluations.metrics.detections import box_evaluation, read_annotations

CLASSES, OBJECTS, DETECTIONS = 80, 7, 100  # of COCO; per image


def box_file(images: int, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """An annotation file with polygons, and detections: three near each object, the others anywhere."""
    rng = np.random.default_rng(0)
    annotations, records = [], []
    for image in range(1, images + 1):
        for _ in range(OBJECTS):
            size = np.exp(rng.uniform(2, 5.5, 2)).clip(max=400)
            box = np.concatenate([rng.uniform(0, [640 - size[0], 480 - size[1]]), size])
            category = int(rng.integers(1, CLASSES + 1))
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": int(rng.random() < 0.01)}
            polygon = (box[:2] + box[2:] * rng.random((20, 2))).round(2).ravel().tolist()
            annotations.append(entry | {"bbox": box.round(2).tolist(), "area": float(0.7 * size.prod()), "segmentation": [polygon]})
            records += [record(image, category, box + rng.normal(0, 0.08, 4) * size.mean(), rng.beta(2, 2)) for _ in range(3)]
        for _ in range(DETECTIONS - 3 * OBJECTS):
            box = np.concatenate([rng.uniform(0, 300, 2), np.exp(rng.uniform(2, 5, 2))])
            records.append(record(image, int(rng.integers(1, CLASSES + 1)), box, rng.beta(1, 4)))
    pictures = [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)]
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": categories}))
    return file, records


def record(image: int, category: int, box: np.ndarray, score: float) -> dict[str, Any]:
    """A detection in COCO's result format."""
    return {"image_id": image, "category_id": category, "score": round(float(score), 4), "bbox": np.maximum(box, 1).round(2).tolist()}


def here(file: Path, records: list[dict[str, Any]]) -> list[float]:
    """The twelve statistics, and what intervals are made of."""
    content = read_annotations(file)
    found = box_evaluation(content, records)
    found.matched([entry["name"] for entry in content["categories"]])
    return list(found.statistics().values())


def by_library(name: str, file: Path, records: list[dict[str, Any]]) -> list[float]:
    """The twelve statistics; the records are copied, since loading adds entries."""
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    with contextlib.redirect_stdout(None):
        truth = COCO(str(file))
        evaluation = Evaluation(truth, truth.loadRes([dict(entry) for entry in records]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:12]]


def floor(file: Path, records: list[dict[str, Any]]) -> np.ndarray:
    """Read the file and copy the boxes."""
    json.loads(file.read_bytes())
    return np.array([entry["bbox"] for entry in records])


def row(images: int, repeat: int) -> Row:
    """One number of images."""
    with tempfile.TemporaryDirectory() as folder:
        data = box_file(images, Path(folder))
        rivals = {name: lambda name=name: by_library(name, *data) for name in ("pycocotools", "faster-coco-eval")}
        expected = here(*data)
        for name in rivals:
            np.testing.assert_allclose(by_library(name, *data), expected, rtol=0, atol=1e-12, err_msg=name)
        what = f"AP of boxes, {images} images, {len(data[1])} detections"
        reading = ("reading the file and the boxes", lambda: floor(*data))
        return Row.of(what, lambda: here(*data), reading, rivals, repeat)


def rows(every: Sequence[int], repeat: int) -> Iterator[Row]:
    """A row for each number of images."""
    for images in every:
        yield row(images, repeat)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 300])
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print(table(rows(args.images, args.repeat)))


if __name__ == "__main__":
    main()
