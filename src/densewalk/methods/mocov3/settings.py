"""Settings of MoCo v3."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.settings import Difference, LearningRate
from densewalk.methods.simclr.settings import ContrastiveSettings, Count
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, parameters, vit


class MocoV3Settings(ContrastiveSettings):
    """MoCo v3 (https://arxiv.org/abs/2104.02057) on video frames or images; defaults are the published recipe for ViT-S (CONFIG.md).

    The released code is https://github.com/facebookresearch/moco-v3 at commit c349e6e. `compat` changes nothing. Its ViT-S has 12 heads:
    `arch: vit_small12_patch16` is published, `vit_small_patch16` has 6.
    """

    VERSION: ClassVar[int] = 2
    """2: with `positions: sincos` the table is that of images of `size`, no longer one of the architecture's size, resampled."""

    TITLE: ClassVar[str] = "MoCo v3"
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("the network begins with Xavier's uniform weights", "with timm's", "vits.py:33-55"),
        Difference("views made by Pillow", "by torch: pixels differ in the last digits", "main_moco.py:240-270"),
        Difference("half precision", "as `execution.precision` says; losses and batch normalization in float32", "main_moco.py"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # CONFIG.md: the smaller batch that its authors document for ViT-S
        "batch_1024": {"batch_size": 1024},
        # vit_micro_patch16 from scratch on a video of minutes, of which every frame is a sample
        "small_video": {
            "size": 96,
            "projector_hidden": 256,
            "predictor_hidden": 256,
            "out_dim": 64,
            "frame_seconds": 0.0,
            "scale": (0.2, 1.0),
            "batch_size": 32,
            "steps": 300,
            "lr": 1e-3 * 256 / 32,
            "warmup_epochs": 2,
        },
    }

    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the softmax over all keys."""
    projector_hidden: Count = 4096
    """Width of the projector's two hidden layers."""
    predictor_hidden: Count = 4096
    """Width of the predictor's hidden layer; the momentum network has no predictor."""
    out_dim: Count = 256
    """Width of queries and keys."""
    teacher_momentum: float = Field(default=0.99, ge=0, le=1)
    """Share of the old momentum network in each update at the start, rising to 1 along a cosine."""
    freeze_patch_embed: bool = True
    """The patches' projection stays as it begins: the paper's way to a stable training."""
    positions: Literal["sincos", "kept"] = "sincos"
    """`sincos`: positions are sines and cosines and do not learn, as published. `kept`: those it begins with are trained on, for a start
    from a checkpoint with positions of its own."""

    lr: LearningRate = Field(default=1.5e-4, gt=0)
    """Peak learning rate per 256 samples of the batch; the rate used is lr * batch_size / 256. It falls to 0 along a cosine."""
    warmup_epochs: float = Field(default=40, ge=0)
    """Linear warm-up of the learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay, on biases and norms, too."""

    def step_work(self, arch: Architecture) -> Work:
        """Two views for each network, the predictor, and all pairs of queries and keys."""
        views, projector = 2 * self.batch_size, [arch.dim, self.projector_hidden, self.projector_hidden, self.out_dim]
        predictor = [self.out_dim, self.predictor_hidden, self.out_dim]
        base = vit(arch, self.size, cls_only=True) + mlp(projector)
        flops = views * (base + LEARN * (base + mlp(predictor)) + 2 * 2.0 * self.batch_size * self.out_dim)
        network = parameters(arch) + mlp_parameters(projector)
        return Work(flops, kept=views * kept(arch, self.size), learnt=network + mlp_parameters(predictor), fixed=network)


SETTINGS = MocoV3Settings
