"""What mmsegmentation lacks: DINOv2's linear head, data sets by list, and an exact mIoU."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, MODELS
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from densewalk.mmlab.experiment import PREFIX
from densewalk.segmentation import Confusion

IGNORE = 255


@MODELS.register_module()
class BatchNormLinearHead(BaseDecodeHead):
    """Batch normalisation and a 1x1 convolution on the maps (concatenated, with `input_transform: resize_concat`).

    https://arxiv.org/abs/2304.07193, section 7.4. DINOv2 normalises over all its processes; so does one process with all images.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dropout_ratio=0.0, **kwargs)
        if self.in_channels != self.channels and sum(self.in_channels) != self.channels:
            raise ValueError(f"a linear head has as many channels as its input: {self.in_channels}, not {self.channels}")
        self.bn = nn.BatchNorm2d(self.channels)

    def forward(self, maps: Sequence[Float[Tensor, "batch dim rows columns"]]) -> Float[Tensor, "batch classes rows columns"]:
        """Logits at the maps' resolution."""
        return self.cls_seg(self.bn(self._transform_inputs(maps)))


@DATASETS.register_module()
class LabelledImages(BaseSegDataset):
    """Pairs of image and mask files.

    Args:
        pairs: paths of images and their masks. first_label_ignored: label 0 is ignored and label k is class k - 1.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], *, classes: Sequence[str], first_label_ignored: bool, **kwargs: Any) -> None:
        self.pairs = pairs
        super().__init__(metainfo={"classes": tuple(classes)}, reduce_zero_label=first_label_ignored, ignore_index=IGNORE, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per pair."""
        shared = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
        return [{"img_path": image, "seg_map_path": mask, "seg_fields": [], **shared} for image, mask in self.pairs]


@METRICS.register_module()
class SegmentationScore(BaseMetric):
    """The confusion matrix of the whole test set, in exact counts, and the first few predictions.

    mmsegmentation's own metric adds up float32 histograms and rounds to two decimals; otherwise the numbers are the same.

    Args:
        shown: how many predictions are kept for a picture.
    """

    default_prefix = PREFIX

    def __init__(self, classes: int, *, shown: int = 0) -> None:
        super().__init__()
        self.confusion, self.shown = Confusion(classes, ignore=IGNORE), shown

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the images of a batch."""
        for sample in data_samples:
            prediction = sample["pred_sem_seg"]["data"].squeeze(0)
            self.confusion.add(sample["gt_sem_seg"]["data"].squeeze(0).to(prediction.device), prediction)
            kept = len(self.results) < self.shown
            self.results.append((sample["img_path"], prediction.cpu().to(torch.uint8)) if kept else None)

    def compute_metrics(self, results: list[tuple[str, Integer[Tensor, "height width"]] | None]) -> dict[str, Any]:
        """The matrix, rows ground truth, and the kept predictions by image path."""
        return {"confusion": self.confusion.matrix, "shown": dict(r for r in results if r is not None)}
