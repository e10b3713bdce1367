"""Learning rate and beta1 of AdamW at each step, as the two releases have them.

T steps, W of them warm-up, eta the largest learning rate, c(x) = (1 + cos(pi x)) / 2 the half cosine from 1 to 0.

    dinov2    lr(s) = eta (1e-8 + (1 - 1e-8) c(s / T)),  for s < W times 1 - (1 - s / W) (1 - 0.001)
              beta1(s): a half cosine from 0.95 to 0.85 at step 0.3 T - 1, then one back to 0.95 at step T - 1
    dinov3    lr(s) = eta / 1000 + eta c(s / T) s / W                    for s < W
                      eta' + (eta - eta') c((s + 1) / T), eta' = eta / 25000      after it
              beta1(s) = 0 for s < W (released) or 0.85, then 0.95 - 0.1 c((s - W) / (T - W))
"""

import numpy as np
from jaxtyping import Float

from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.training.schedules import Schedule

LOW, HIGH = 0.85, 0.95  # of beta1


def schedules(settings: DepthSettings) -> tuple[Schedule, Schedule]:
    """Learning rate and beta1 of every step."""
    total, warmup, peak = settings.iterations, settings.warmup, settings.learning_rate
    if settings.schedule == "dinov2":
        return dinov2_lr(total, warmup, peak), dinov2_beta1(total)
    return dinov3_lr(total, warmup, peak), dinov3_beta1(total, warmup, 0.0 if settings.zero_beta1_in_warmup else LOW)


def half_cosine(x: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """From 1 at 0 to 0 at 1."""
    return (1 + np.cos(np.pi * x)) / 2


def dinov2_lr(total: int, warmup: int, peak: float) -> Schedule:
    """Half a cosine to almost 0, times a linear warm-up."""
    s = np.arange(total)
    rising = np.where(s < warmup, 1 - (1 - s / max(1, warmup)) * (1 - 0.001), 1.0)
    return peak * (1e-8 + (1 - 1e-8) * half_cosine(s / total)) * rising


def dinov2_beta1(total: int) -> Schedule:
    """0.95 to 0.85 and back: the momentum of a one-cycle schedule."""
    s = np.arange(total)
    turn = 0.3 * total - 1
    first = LOW + (HIGH - LOW) * half_cosine(s / turn) if turn > 0 else np.full(total, HIGH)
    second = HIGH - (HIGH - LOW) * half_cosine((s - turn) / max(1.0, total - 1 - turn))
    return np.where(s <= turn, first, second)


def dinov3_lr(total: int, warmup: int, peak: float) -> Schedule:
    """A warm-up along the cosine, then the cosine itself, one step ahead."""
    s = np.arange(total)
    least = peak / 25 / 1000
    rising = peak / 1000 + peak * half_cosine(s / total) * s / max(1, warmup)
    return np.where(s < warmup, rising, least + (peak - least) * half_cosine((s + 1) / total))


def dinov3_beta1(total: int, warmup: int, first: float) -> Schedule:
    """`first` in the warm-up, then 0.85 to 0.95."""
    s = np.arange(total)
    return np.where(s < warmup, first, HIGH - (HIGH - LOW) * half_cosine((s - warmup) / max(1, total - warmup)))
