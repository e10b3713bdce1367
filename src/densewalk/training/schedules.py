"""Schedules as arrays with one value per optimizer step."""

import numpy as np
from numpy.typing import NDArray

Schedule = NDArray[np.float64]


def cosine(base: float, final: float, total: int, *, warmup: int = 0, start: float = 0.0) -> Schedule:
    """Linear warm-up from `start` to `base`, then half a cosine towards `final`.

    s[i] = start + (base - start) i / (warmup - 1)                          for i < warmup
    s[i] = final + (base - final) (1 + cos(pi (i - warmup) / (total - warmup))) / 2   after it

    The value `final` itself lies one step past the end, as in DINO (https://arxiv.org/abs/2104.14294, released schedules).
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up of {warmup} steps does not fit into {total} steps")
    rise = np.linspace(start, base, warmup)
    progress = np.arange(total - warmup) / max(1, total - warmup)
    return np.concatenate([rise, final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))])


def per_step(base: float, final: float, total: int, *, warmup: float) -> Schedule:
    """MAE's and MoCo v3's rule: a warm-up that begins with exactly 0 and ends below `base`, then half a cosine towards `final`.

    s[i] = base i / warmup                                                              for i < warmup, which may be a fraction
    s[i] = final + (base - final) (1 + cos(pi (i - warmup) / (total - warmup))) / 2     after it
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up of {warmup} steps does not fit into {total} steps")
    steps = np.arange(total)
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * (steps - warmup) / max(1, total - warmup)))
    return np.where(steps < warmup, base * steps / max(1, warmup), falling)


def constant(value: float, total: int) -> Schedule:
    """`value` at each of `total` steps."""
    return np.full(total, value)


def linear_then_constant(start: float, value: float, total: int, *, warmup: int) -> Schedule:
    """From `start` to `value` in `warmup` steps, then `value` (DINO's teacher temperature). A shorter training ends on the way."""
    return np.concatenate([np.linspace(start, value, warmup), np.full(max(0, total - warmup), value)])[:total]
