"""Detection and instance segmentation on COCO through mmdetection: iBOT's Cascade Mask R-CNN, or a plain Mask R-CNN.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

`cascade` is the detector of iBOT (https://arxiv.org/abs/2111.07832, https://github.com/bytedance/ibot, evaluation/
object_detection), which DoRA follows: four maps brought to strides 4 to 32, FPN, three stages (IoU 0.5, 0.6, 0.7) of four
convolutions and one linear layer, GIoU loss of weight 10 on decoded boxes, four-convolution mask head. `maskrcnn`: ViTDet's simple
pyramid from the last map, Mask R-CNN's standard heads. Both: AdamW with layer decay, a tenth of the learning rate after 8 and 11 of
12 epochs, images of 480 to 800 px, test at 800 px, the 100 best detections per image.

Deliberate deviations: position embeddings are interpolated for each batch from the file's grid (iBOT resamples them to 800 x 1008
px when it loads, and again for each batch). Batch normalization sees the batches of all processes, as published. Losses are means over the
regions of a process's share of the batch, and images are padded to the largest of it, as in the released code: one process, two and parts
differ by that. Arithmetic is bfloat16 on
CUDA (fp16 in iBOT), of boxes and pyramid float32. For patch 14 the levels' strides are 3.5 to 56; anchors keep their sizes.

    job.out/detections_val2017_{bbox,segm}.json     in COCO's result format, which its evaluation servers take
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from densewalk.core import distributed
from densewalk.core.files import atomic_write
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS, read_image
from densewalk.evaluations.coco.data import check_data
from densewalk.evaluations.coco.experiment import experiment
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.base import Job, Result, load_network, training_state
from densewalk.evidence.units import Units, image_ids


def evaluate(settings: CocoSettings, backbone_path: Path, job: Job) -> Result:
    """Train a detector on one backbone and score it; its detections go to `job.out`."""
    training, validation = check_data(settings)
    arch = load_network(settings, backbone_path, job).arch
    # imported late: the toolboxes take seconds, and errors in the data have been found by now
    from densewalk.evaluations.mmlab import detection  # noqa: F401
    from densewalk.evaluations.mmlab.runner import run

    found = run(experiment(settings, str(backbone_path), arch, training, validation), job, training_state(settings, backbone_path, job))
    if distributed.rank() > 0:  # process 0 has the predictions of all, and writes them
        return Result({}, n=validation.count, unit="images")
    for kind, records in (("bbox", found.pop("boxes")), ("segm", found.pop("masks"))):
        with atomic_write(job.out / f"detections_val2017_{kind}.json") as temporary:
            temporary.write_text(json.dumps(records, separators=(",", ":")))
    units: Units = found.pop("units")
    metrics = {name: found.pop(name, math.nan) for name in settings.METRICS}
    units = replace(units, ids=image_ids([validation.images / name for name in units.ids], settings.root))
    return Result(metrics, n=validation.count, unit="images", details=found, units=units if units.statistics else None)


def describe_data(settings: CocoSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = check_data(settings)
    for split in (training, validation):
        read_image(split.images / find_files(split.images, EXTENSIONS)[0])
    return {"training images": training.count, "validation images": validation.count}
