"""UPerNet with deterministic kernels and without: the same logits, and what determinism costs."""

from collections.abc import Iterator

import torch
from benchmarks.gpu.report import Finding, Setting, seconds_of
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.evaluations.mmlab import segmentation  # noqa: F401  registers the parts
from densewalk.evaluations.segmentation import experiment
from densewalk.evaluations.segmentation.settings import Ade20kUpernetSettings
from densewalk.models.architecture import architecture_named
from densewalk.ops.deterministic import deterministic_kernels


def check(setting: Setting) -> Iterator[Finding]:
    """Neck, head and upsampled logits, forward and backward, of maps as a ViT-S gives them for crops of 512 px."""
    settings = Ade20kUpernetSettings(root="x", dataset="ADE20K")
    arch = architecture_named("vit_nano_patch16" if setting.small else "vit_small_patch16")
    model = experiment.upernet(settings, "x", arch)
    with DefaultScope.overwrite_default_scope("mmseg"):
        parts = nn.Sequential(*(MODELS.build(ConfigDict(model[name])) for name in ("neck", "decode_head"))).to(setting.device)
    batch, side, crop = (2, 4, 64) if setting.small else (4, 32, 512)
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, arch.dim, side, side, generator=g).to(setting.device).requires_grad_() for _ in range(4)]
    target = torch.randint(150, (batch, crop, crop), generator=g).to(setting.device)
    for module in parts.modules():  # dropout would differ
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0

    def run() -> Tensor:
        logits = F.interpolate(parts(maps), size=(crop, crop), mode="bilinear")
        loss = F.cross_entropy(logits, target, ignore_index=255)
        loss.backward()
        return loss.detach()

    found: dict[bool, tuple[float, float, float]] = {}
    for deterministic in (False, True):
        with deterministic_kernels(deterministic, setting.device), torch.autocast(setting.device.type, torch.bfloat16):
            loss = run().item()
            if setting.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(setting.device)
            seconds = seconds_of(setting, (run() for _ in range(2 if setting.small else 6)))
            peak = torch.cuda.max_memory_allocated(setting.device) / 2**30 if setting.device.type == "cuda" else 0.0
        found[deterministic] = loss, seconds, peak
    free, fixed = found[False], found[True]
    yield Finding("loss with deterministic kernels against without", abs(fixed[0] - free[0]) / free[0], at_most=1e-3)
    yield Finding(f"batch {batch}, without: milliseconds of forward and backward", 1e3 * free[1], at_least=0)
    yield Finding(f"batch {batch}, without: GiB at most", free[2], at_least=0)
    yield Finding("with: how many times as long", fixed[1] / free[1], at_least=0)
    yield Finding("with: GiB at most", fixed[2], at_least=0)
