"""DINOv2: Learning Robust Visual Features without Supervision (Oquab et al., TMLR 2024, https://arxiv.org/abs/2304.07193).

iBOT with other parts, as the release has them (section 4 of the paper):

    loss = L_cls + L_patch + 0.1 sum over both masked global views of KoLeo(backbone's CLS)
    masks: half of a process's views, of evenly spread sizes; Sinkhorn or mean centering, the patches' center over masked ones alone
    learning rates by layer, stochastic depth on a subset of the batch, clipping of each network as a whole, temperatures by step

All of these are settings that iBOT has, too (methods/ibot/settings.py).
"""

from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.methods.ibot.method import MaskedDistillation


class DinoV2(MaskedDistillation):
    """One training run of DINOv2."""

    settings: DinoV2Settings


METHOD = DinoV2
