"""`nms` and `roi_align`, which stand in for mmcv's, on the GPU against the CPU, with gradients and without any box."""

from collections.abc import Iterator

import torch
from benchmarks.gpu.report import Finding, Setting
from torch import Tensor

from densewalk.evaluations.mmlab import ops


def check(setting: Setting) -> Iterator[Finding]:
    """Many boxes, and none."""
    ops.install()
    from mmcv.ops import RoIAlign, nms

    def kept(boxes: Tensor, scores: Tensor) -> Tensor:
        return nms(boxes, scores, iou_threshold=0.7)[1].cpu()

    def pooled(maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        maps = maps.clone().requires_grad_()
        out = RoIAlign(7, spatial_scale=0.25, sampling_ratio=0, aligned=True)(maps, rois)
        (out * torch.linspace(-1, 1, 49, device=out.device).view(7, 7)).sum().backward()
        assert maps.grad is not None
        return out.detach().cpu(), maps.grad.cpu()

    g = torch.Generator().manual_seed(0)
    count = 200 if setting.small else 4000
    corners = 400 * torch.rand(count, 2, generator=g)
    boxes = torch.cat([corners, corners + 10 + 120 * torch.rand(count, 2, generator=g)], dim=1)
    scores = torch.rand(count, generator=g)
    maps = torch.randn(2, 16, 128, 128, generator=g)
    rois = torch.cat([torch.randint(2, (count, 1), generator=g), boxes], dim=1)
    here = setting.device
    same = torch.equal(kept(boxes, scores), kept(boxes.to(here), scores.to(here)))
    yield Finding(f"nms keeps the same of {count} boxes as on the CPU", float(same), at_least=1)
    yield Finding("nms keeps how many of no boxes", len(kept(boxes[:0].to(here), scores[:0].to(here))), at_most=0)
    expected, found = pooled(maps, rois), pooled(maps.to(here), rois.to(here))
    for name, one, other in zip(("output", "gradient"), expected, found, strict=True):
        yield Finding(f"roi_align's {name} against the CPU", ((one - other).abs().max() / one.abs().max()).item(), at_most=1e-4)
    out, gradient = pooled(maps.to(here), rois[:0].to(here))
    yield Finding("roi_align of no boxes: outputs, and their gradient", float(len(out) + gradient.abs().sum()), at_most=0)
