"""Products are chosen by the kind of processor."""

import pytest
import torch
from torch.nn import functional as F

from densewalk.ops.cpu.linear import HAS_ONEDNN, can_use_onednn, product
from densewalk.ops.cpu.processor import Processor, read_processor, set_processor, this_processor
from tests.fixtures.helpers import PROCESSORS

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model name\t: AMD EPYC

processor\t: 1
vendor_id\t: GenuineIntel
cpu family\t: 6
"""


@pytest.fixture(autouse=True)
def this_one_again():
    yield
    set_processor(None)


def test_the_first_processor_that_linux_lists_is_read(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert read_processor(tmp_path / "cpuinfo") == Processor("AuthenticAMD", 26, torch.backends.cpu.get_cpu_capability())


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nCPU implementer\t: 0x41\n", "cpu family\t: unknown\n"])
def test_any_other_processor_leaves_products_to_torch(text, tmp_path):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    found = read_processor(tmp_path / "cpuinfo")
    assert (found.vendor, found.family, found.onednn_linear, found.full_width) == ("", 0, False, False)


def test_onednn_computes_linear_layers_on_amds_processors_with_avx_512():
    assert [name for name, processor in PROCESSORS.items() if processor.onednn_linear] == ["AMD, AVX-512 by halves", "AMD, AVX-512 in full"]
    assert [name for name, processor in PROCESSORS.items() if processor.full_width] == ["AMD, AVX-512 in full"]


@pytest.mark.skipif(not HAS_ONEDNN, reason="torch has no oneDNN here")
def test_a_processor_that_is_set_decides():
    x, weight = torch.randn(64, 300), torch.randn(200, 300)
    found = {}
    for name, processor in PROCESSORS.items():
        set_processor(processor)
        assert this_processor() is processor
        assert can_use_onednn(x, weight) == processor.onednn_linear
        found[name] = product(x, weight)
    assert torch.equal(found["Intel, AVX-512"], F.linear(x, weight)), "torch's own to the last bit"
    assert torch.equal(found["AMD, AVX-512 by halves"], found["AMD, AVX-512 in full"])
    torch.testing.assert_close(found["AMD, AVX-512 in full"], found["Intel, AVX-512"], rtol=1e-4, atol=1e-4)
