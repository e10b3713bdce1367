"""Training steps of Cascade Mask R-CNN at 800 x 1344 px, batch after batch twice as large, until the GPU is full."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.report import Finding, Setting
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from densewalk.evaluations.coco.experiment import detector
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.mmlab import detection, ops, vit  # noqa: F401  register the parts
from densewalk.evaluations.mmlab.experiment import adamw
from densewalk.evaluations.mmlab.processes import update
from densewalk.evaluations.mmlab.runner import precision
from densewalk.models.architecture import architecture_named
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.study.gpus import USABLE, Share, gigabytes

OBJECTS = 12  # of an image; COCO has 7 on average
CLASSES = 80


def check(setting: Setting) -> Iterator[Finding]:
    """Loss and update as the evaluation makes them."""
    ops.install()
    arch = architecture_named("vit_nano_patch16" if setting.small else "vit_small_patch16")
    weights = setting.folder / "backbone.safetensors"
    export_backbone(create(arch.name, seed=0), weights, run="gpu-check", config_hash="0")
    settings = CocoSettings(root="x", dataset="COCO", head="cascade")
    if setting.small:
        settings = settings.model_copy(update={"channels": 32, "rois_per_image": 16, "proposals": 32})
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(detector(settings, str(weights), arch, classes=CLASSES)))
        model = model.to(setting.device).train()
        optimizer = build_optim_wrapper(model, precision(setting.device) | adamw(1e-4, 0.05))
    sizes = (1,) if setting.small else (1, 2, 4, 8, 16, 32)
    height, width = (96, 128) if setting.small else (800, 1344)
    largest, peak, expected = 0, 0.0, 1
    for size in sizes:
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
            total = torch.cuda.get_device_properties(setting.device).total_memory / 1e9
            work = settings.model_copy(update={"batch_size": size}).work(arch)
            expected = size if gigabytes(work, "bfloat16", Share(), arch) <= USABLE * total else expected
        try:
            with DefaultScope.overwrite_default_scope("mmdet"):
                logs = update(model, optimizer, [batch(size, height, width)])
        except torch.OutOfMemoryError:
            break
        largest = size
        if setting.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(setting.device) / 2**30
    yield Finding(f"largest batch of {sizes[-1]} that fits (plan: bound)", largest, at_least=expected)
    yield Finding(f"GiB at most, batch {largest}", peak, at_least=0)
    yield Finding("loss", logs["loss"].item(), at_least=0)


def batch(size: int, height: int, width: int) -> dict[str, list[Any]]:
    """Noise with boxes and masks of them."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(size):
        corner = np.stack([rng.integers(0, width // 2, OBJECTS), rng.integers(0, height // 2, OBJECTS)], axis=1)
        boxes = np.concatenate([corner, corner + rng.integers(16, min(height, width) // 2, (OBJECTS, 2))], axis=1)
        masks = np.zeros((OBJECTS, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(metainfo={"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes).float(),
            labels=torch.from_numpy(rng.integers(0, CLASSES, OBJECTS)),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = [torch.from_numpy(rng.integers(0, 255, (3, height, width), np.uint8)) for _ in range(size)]
    return {"inputs": images, "data_samples": samples}
