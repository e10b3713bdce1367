"""The matrix products that a processor computes fastest: by its maker and model, never by a timing.

So a training that resumes on the same kind of processor goes on with the same rounding. torch leaves float32 products to MKL; oneDNN, which
torch contains, too, computes them as well. Measured on one thread (benchmarks/products.py, docs/environment.md):

    Intel, AVX-512             MKL uses AVX-512: steps take 0.9 of oneDNN's time
    AMD, AVX-512 by halves     oneDNN is 1.1 times as fast as MKL, which uses AVX2; torch's attention takes 0.6 of the time of ours
    AMD, AVX-512 in full       oneDNN is twice as fast as MKL, and our attention, made of its products, faster than torch's
    AVX2, and all others       MKL
"""

from dataclasses import dataclass
from pathlib import Path

import torch

AMD = "AuthenticAMD"
FULL_WIDTH = 26  # AMD's first family (Zen 5) that computes 512 bits at once; family 25 (Zen 4) computes two halves


@dataclass(frozen=True)
class Processor:
    """A kind of processor: its maker, the maker's number of its family, and the widest instructions that torch uses on it."""

    vendor: str
    family: int
    capability: str

    @property
    def onednn_linear(self) -> bool:
        """oneDNN computes linear layers."""
        return self.vendor == AMD and self.capability == "AVX512"

    @property
    def full_width(self) -> bool:
        """oneDNN computes linear layers twice as fast as MKL: whatever consists of products gains from it."""
        return self.onednn_linear and self.family >= FULL_WIDTH


def read_processor(cpuinfo: Path) -> Processor:
    """The first processor that Linux lists; of unknown make where there is no such file."""
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    family = facts.get("cpu family", "")
    return Processor(facts.get("vendor_id", ""), int(family) if family.isdecimal() else 0, torch.backends.cpu.get_cpu_capability())


_here = read_processor(Path("/proc/cpuinfo"))
_chosen = _here


def set_processor(processor: Processor | None) -> None:
    """Choose products as for this processor, or again for the one that there is: for tests and comparisons."""
    global _chosen
    _chosen = processor or _here


def this_processor() -> Processor:
    """The one that this process runs on, or that was set."""
    return _chosen
