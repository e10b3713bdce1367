"""GPUs that a plan may be made for, from their makers' data sheets: dense products, without sparsity; and what fits into their memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from densewalk.core.errors import UserError
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, kept_widths, parameters

BYTES_OF_VALUE = {"bfloat16": 2.6, "float32": 4.0}  # that the backward pass reads; some stay float32 under autocast
WITH_OPTIMIZER = 16  # bytes of a learnt parameter: itself, its gradient, two moments of AdamW
CONTEXT = 1.5e9  # bytes that CUDA and its libraries take on a GPU
USABLE = 0.9  # of a GPU's memory: the rest is lost between blocks of different sizes
MOST_PROCESSES = 16  # that are proposed


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


@dataclass(frozen=True)
class Share:
    """How a training's batch is divided, whether blocks are computed again, and weights divided among processes (None: they cannot be)."""

    processes: int = 1
    parts: int = 1
    recomputed: bool = False
    sharded: bool | None = None


def gigabytes(work: Work, precision: str, share: Share, arch: Architecture) -> float:
    """Memory of one GPU: parameters, and what the backward pass reads of one part of a process's share of the batch."""
    blocks = float(work.kept - work.outside)
    if share.recomputed:  # of a block its input alone, and one whole block at a time
        blocks *= 1 / kept_widths(arch) + 1 / arch.depth
    kept = (blocks + work.outside) / share.processes / share.parts
    weights = [WITH_OPTIMIZER * _held(work.learnt, share, arch), 4 * _held(work.fixed, share, arch)]
    return (CONTEXT + sum(weights) + BYTES_OF_VALUE[precision] * kept) / 1e9


def _held(weights: float, share: Share, arch: Architecture) -> float:
    """Weights of a network and its heads that one process holds: sharded are all blocks but the last, of which one is whole at a time."""
    if not share.sharded or share.processes == 1:
        return weights
    blocks = min(weights, parameters(arch, arch.depth - 1))
    return weights - blocks * (1 - 1 / share.processes) + min(weights, parameters(arch, 1))


def fits(memory: float, gpu: Gpu) -> bool:
    """True if so many gigabytes can be had on a GPU."""
    return memory <= USABLE * gpu.gigabytes


def smallest(memory: float) -> float | None:
    """Gigabytes of the smallest listed GPU that has room; None if no GPU has."""
    return min((gpu.gigabytes for gpu in GPUS.values() if fits(memory, gpu)), default=None)


def ways_to_fit(
    memory: Callable[[Share], float], share: Share, gpu: Gpu, obstacle: Callable[[int, int], str | None]
) -> Iterator[tuple[str, float]]:
    """Each single change that makes a training fit into a GPU, with the gigabytes that are left of it.

    Args:
        obstacle: why the batch cannot be passed in so many parts by so many processes, or None.
    """
    candidates = [] if share.recomputed else [[("gradient_checkpointing", replace(share, recomputed=True))]]
    powers = [2**i for i in range(1, MOST_PROCESSES.bit_length())]
    parts = [(f"in {n} parts", replace(share, parts=n)) for n in powers if n > share.parts and not obstacle(n, share.processes)]
    more = [(f"gpu={n}", replace(share, processes=n)) for n in powers if n > share.processes and not obstacle(share.parts, n)]
    if share.processes > 1 and share.sharded is False:
        candidates.append([("shard", replace(share, sharded=True))])
    for group in [*candidates, parts, more]:
        found = next(((name, memory(other)) for name, other in group if fits(memory(other), gpu)), None)
        if found is not None:
            yield found
