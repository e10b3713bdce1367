"""The count of what a backward pass keeps, on tensors without content, and the plan's formula for it."""

from dataclasses import replace

import pytest
import torch
from benchmarks.gpu.fake import CUDA, fake_gpu, put
from benchmarks.gpu.trainings import small
from benchmarks.memory import as_on_a_gpu, counted, kept

from densewalk.models.architecture import architecture_named
from densewalk.models.loading import create
from densewalk.models.work import kept as formula
from densewalk.study.gpus import BYTES_OF_VALUE

BATCH = 16  # under autocast halved weights are kept, too: few beside so many images
ARCHITECTURES = ("vit_small_patch16", "vit_small_patch14_reg4", "vit_small_patch14_swiglu", "vit_small_patch16_rope")


@pytest.mark.parametrize("precision", BYTES_OF_VALUE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_keep_what_the_plan_says(name, precision):
    arch = architecture_named(name)
    network, side = create(name, seed=0).train().requires_grad_(True), 24 * arch.patch
    with fake_gpu():
        put(network)
        with as_on_a_gpu(precision), counted(network) as found:
            network.dense(torch.empty(BATCH, 3, side, side, device=CUDA))
    assert formula(arch, side) * BATCH * BYTES_OF_VALUE[precision] == pytest.approx(found.bytes, rel=0.15)


@pytest.mark.parametrize("training", small(), ids=lambda training: training.name)
def test_twice_the_batch_keeps_twice_as_much(training):
    larger = replace(training, settings=training.settings.model_copy(update={"batch_size": 2 * training.settings.batch_size}))
    assert kept(larger, "float32") == pytest.approx(2 * kept(training, "float32"), rel=0.1)
