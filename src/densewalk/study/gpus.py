"""GPUs that a plan may be made for, from their makers' data sheets: dense products, without sparsity."""

from dataclasses import dataclass

from densewalk.core.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """bfloat16, float32: peak in 10^12 operations a second (float32 without TF32, as torch computes it); gigabytes: of memory."""

    bfloat16: float
    float32: float
    gigabytes: float


GPUS = {
    "v100": Gpu(125, 15.7, 32),  # float16: it has no bfloat16
    "rtx3090": Gpu(71, 35.6, 24),
    "rtx4090": Gpu(165, 82.6, 24),
    "a6000": Gpu(155, 38.7, 48),
    "l40s": Gpu(362, 91.6, 48),
    "a100": Gpu(312, 19.5, 80),
    "h100": Gpu(989, 67, 80),
    "h200": Gpu(989, 67, 141),
    "b200": Gpu(2250, 80, 192),
    "mi300x": Gpu(1307, 163, 192),
}


def gpu_named(name: str) -> Gpu:
    """The GPU of this name; UserError if it is not listed."""
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name} is not known", allowed=", ".join(GPUS))
    return GPUS[name.lower()]
