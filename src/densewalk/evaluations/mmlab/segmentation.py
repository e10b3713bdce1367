"""Missing parts of mmsegmentation: DINOv2's linear head, data sets by list and label rule, tests at several sizes, an exact mIoU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Integer
from mmcv.transforms import BaseTransform
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads import decode_head
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from densewalk.data.benchmarks.label_maps import read_labels
from densewalk.data.benchmarks.label_rules import IGNORE, LabelRule
from densewalk.evaluations.metrics.image_counts import Counted, ImageCounts, counted
from densewalk.evaluations.mmlab import images  # noqa: F401  registers the reader of images
from densewalk.evaluations.mmlab.experiment import PREFIX
from densewalk.evaluations.mmlab.processes import GatheredMetric

toolbox_accuracy = decode_head.accuracy


def accuracy(
    logits: Float[Tensor, "batch classes rows columns"], labels: Integer[Tensor, "batch rows columns"], *, ignore_index: int
) -> Float[Tensor, " 1"]:
    """Per cent of a batch's pixels whose class has the largest logit, for the learning curve; mmsegmentation's value.

    Its `topk` over the classes takes four times as long on a CPU: 6 to 18 % of an iteration of a linear head on 150 classes.
    """
    if logits.dtype != torch.float32:  # fewer digits have ties
        return toolbox_accuracy(logits, labels, ignore_index=ignore_index)
    logits, wanted = logits.detach(), labels != ignore_index
    own = logits.gather(1, labels.where(wanted, 0)[:, None])[:, 0]
    eps = torch.finfo(torch.float32).eps
    right = ((own == logits.amax(dim=1)) & wanted).sum().float()[None]
    return (right + eps) * (100.0 / (wanted.sum().item() + eps))


decode_head.accuracy = accuracy


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """A 1x1 convolution on the maps (concatenated, with `input_transform: resize_concat`), with or without batch normalization.

    With: DINOv2, https://arxiv.org/abs/2304.07193, section 7.4, which normalizes over all its processes, as is done here. Without: iBOT, https://arxiv.org/abs/2111.07832.
    """

    def __init__(self, *, batch_norm: bool, **kwargs: Any) -> None:
        super().__init__(dropout_ratio=0.0, **kwargs)
        if self.in_channels != self.channels and sum(self.in_channels) != self.channels:
            raise ValueError(f"a linear head has as many channels as its input: {self.in_channels}, not {self.channels}")
        self.bn = nn.BatchNorm2d(self.channels) if batch_norm else nn.Identity()

    def forward(self, maps: Sequence[Float[Tensor, "batch dim rows columns"]]) -> Float[Tensor, "batch classes rows columns"]:
        """Logits at the maps' resolution."""
        return self.cls_seg(self.bn(self._transform_inputs(maps)))


@DATASETS.register_module()
class LabelledImages(BaseSegDataset):
    """Pairs of image and mask files.

    Args:
        pairs: paths of images and their masks. classes: names of the classes.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], *, classes: Sequence[str], **kwargs: Any) -> None:
        self.pairs = pairs
        super().__init__(metainfo={"classes": tuple(classes)}, ignore_index=IGNORE, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per pair."""
        return [{"img_path": image, "seg_map_path": mask, "seg_fields": []} for image, mask in self.pairs]


@TRANSFORMS.register_module()
class LoadClasses(BaseTransform):
    """A mask as classes by a label rule. The toolbox's own loading knows one rule (`reduce_zero_label`), takes any pixel value for a
    class, and cuts 16 bits down to 8 without a warning.
    """

    def __init__(self, rule: LabelRule) -> None:
        self.rule = rule

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds `gt_seg_map`, uint8."""
        results["gt_seg_map"] = read_labels(Path(results["seg_map_path"]), self.rule, Path(results["img_path"]))
        results["seg_fields"].append("gt_seg_map")
        return results


@MODELS.register_module()
class AveragedViews(nn.Module):
    """A segmentor whose softmax is averaged over several views of every test image.

        for view, weight in zip(views, weights):                # a view is an image at one size, mirrored or not
            total += weight * softmax(resize(unflip(logits(view)), size of the image itself))
        prediction = argmax(total / sum(weights))

    as in mmsegmentation's test-time augmentation, which keeps the softmax of all views at once: 12 views of 150 classes at 2000 x
    1500 px are 22 GB.

    Args:
        segmentor: resizes its logits. weights: of the views, in the order of the data set's `TestTimeAug`.
    """

    def __init__(self, segmentor: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.segmentor, self.weights = segmentor, weights

    def test_step(self, data: dict[str, list[Any]]) -> list[Any]:
        """The one image of a batch; `data` has a list of views under every key."""
        total: Tensor | None = None
        for i, weight in enumerate(self.weights):
            (sample,) = self.segmentor.test_step({key: views[i] for key, views in data.items()})  # type: ignore[operator]
            scores = weight * sample.seg_logits.data.softmax(dim=0)
            total = scores if total is None else total.add_(scores)
        assert total is not None
        sample.pred_sem_seg.data = total.argmax(dim=0, keepdim=True)
        return [sample]


@METRICS.register_module()
class SegmentationScore(GatheredMetric):
    """The confusion matrix of the whole test set, in exact counts, and the first few predictions.

    mmsegmentation's own metric adds up float32 histograms and rounds to two decimals; otherwise the numbers are the same.

    Args:
        shown: how many predictions are kept for `strip.png`.
    """

    default_prefix = PREFIX

    def __init__(self, classes: int, *, shown: int = 0) -> None:
        super().__init__()
        self.classes, self.shown = classes, shown

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the images of a batch."""
        for sample in data_samples:
            prediction = sample["pred_sem_seg"]["data"].squeeze(0)
            target = sample["gt_sem_seg"]["data"].squeeze(0).to(prediction.device)
            kept = prediction.cpu().to(torch.uint8) if len(self.results) < self.shown else None
            self.results.append((sample["img_path"], counted(target, prediction, self.classes, self.classes, ignore=IGNORE), kept))

    def compute_metrics(self, results: list[tuple[str, Counted, Integer[Tensor, "height width"] | None]]) -> dict[str, Any]:
        """The confusion matrix of all images and that of each, and the kept predictions by image path."""
        kept = [(path, prediction) for path, _, prediction in results if prediction is not None]
        counts = ImageCounts.of([c for _, c, _ in results], self.classes, self.classes)
        return {"confusion": counts.matrix, "counts": counts, "shown": dict(kept[: self.shown])}
