"""Linear layers by torch's own product (MKL) and by ours (oneDNN), one thread: forward, and both gradients.

    python -m benchmarks.products

Gflop/s of CPU time, the best of several runs in turns, in the sizes of ViT-S and of NeCo's head.
"""

import argparse
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from densewalk.ops.cpu.linear import linear
from densewalk.ops.cpu.processor import this_processor

SIZES = ((2952, 384, 1152), (2952, 384, 384), (2952, 384, 1536), (2952, 1536, 384), (2832, 2048, 2048), (197, 384, 1536), (16, 384, 1536))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"oneDNN is {'used' if this_processor().onednn_linear else 'not used: both are torch'} on this processor")
    print(f"{'rows x in x out':<20}{'torch':>12}{'ours':>12}{'faster':>9}   (forward and backward)")
    for rows, fan_in, fan_out in SIZES:
        parts = [torch.randn(shape, requires_grad=True) for shape in ((rows, fan_in), (fan_out, fan_in), (fan_out,))]
        gradient = torch.randn(rows, fan_out)
        seconds = {product: float("inf") for product in (F.linear, linear)}
        for _ in range(options.runs):
            for product in seconds:
                seconds[product] = min(seconds[product], timed(product, parts, gradient))
        rates = [3 * 2 * rows * fan_in * fan_out / 1e9 / taken for taken in seconds.values()]
        print(f"{f'{rows} x {fan_in} x {fan_out}':<20}{rates[0]:12.0f}{rates[1]:12.0f}{rates[1] / rates[0]:8.2f}x")


def timed(product: object, parts: list[Tensor], gradient: Tensor) -> float:
    """CPU seconds of the product and its three gradients."""
    begun = time.process_time()
    torch.autograd.grad(product(*parts), parts, gradient)  # type: ignore[operator]
    return time.process_time() - begun


if __name__ == "__main__":
    main()
