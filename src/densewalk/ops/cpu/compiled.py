"""Loops over numbers, compiled by numba at their first call; rows are divided among as many threads as torch uses.

@compiled()
def double_rows(x, result): ...

over_rows(lambda rows: double_rows(x[rows], result[rows]), len(x))
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
from numba.extending import intrinsic, is_jitted

from densewalk.ops.cpu.kernel_cache import cache_kernel


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile to machine code that runs beside other threads, kept on disk if numba finds a folder for it. options: of numba.njit."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel = numba.njit(nogil=True, error_model="numpy", **options)(function)
        if is_jitted(kernel):  # not with NUMBA_DISABLE_JIT
            cache_kernel(kernel)
        return kernel  # type: ignore[no-any-return]

    return compile_function


def over_rows(work: Callable[[slice], None], rows: int) -> None:
    """Call `work` for slices that together are all rows, in torch's number of threads."""
    import torch  # late: not all that compile have it

    step = max(1, -(-rows // torch.get_num_threads()))
    slices = [slice(i, i + step) for i in range(0, rows, step)]
    if len(slices) == 1:
        work(slices[0])
    elif slices:
        with ThreadPoolExecutor(len(slices)) as pool:
            list(pool.map(work, slices))


@intrinsic  # type: ignore[untyped-decorator]
def fused_multiply_add(context: Any, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """In compiled functions: x y + z of three floats, rounded once, as torch's `add` with `alpha` and `addcmul` do on a CPU."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return x(x, x, x), generate
