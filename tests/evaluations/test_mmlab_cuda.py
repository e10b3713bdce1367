"""The toolboxes' models on tensors that claim to be on a GPU and hold nothing: which kernels are asked for, and how much memory is kept."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densewalk.evaluations.coco import experiment as mmdet
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.mmlab import detection, segmentation  # noqa: F401  registers the parts
from densewalk.evaluations.segmentation import experiment as mmseg
from densewalk.evaluations.segmentation.settings import Ade20kUpernetSettings
from densewalk.models.architecture import architecture_named
from densewalk.models.work import kept
from densewalk.ops.deterministic import deterministic_kernels, is_deterministic
from densewalk.study.gpus import BYTES_OF_VALUE

SMALL = architecture_named("vit_small_patch16")
CUDA = torch.device("cuda")


def on_gpu(scope, config):
    """A part of a model whose tensors claim to be on a GPU; inside a FakeTensorMode."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), DefaultScope.overwrite_default_scope(scope):
        part = MODELS.build(ConfigDict(config))
    for module in part.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, device=CUDA))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
    return part.train()


class Names(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.add(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


@contextmanager
def half(monkeypatch):
    """Autocast as on a GPU. float16, which is as large as bfloat16: torch asks a GPU that is not there whether it has the latter."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with torch.autocast("cuda", dtype=torch.float16):
        yield


def upernet():
    return Ade20kUpernetSettings(root="x", dataset="ADE20K")


@pytest.mark.parametrize(("asked", "decomposed"), [(None, False), (False, False), (True, True)])
def test_bilinear_upsampling_is_one_kernel_unless_determinism_is_asked_for(asked, decomposed):
    config = mmseg.upernet(upernet(), "x", SMALL)["decode_head"]
    with FakeTensorMode(), Names() as names, deterministic_kernels(asked, CUDA):
        maps = [torch.empty(2, 384, side, side, device=CUDA) for side in (128, 64, 32, 16)]
        logits = on_gpu("mmseg", config)(maps)
        scaled = F.interpolate(logits, size=(512, 512), mode="bilinear")
    assert scaled.shape == (2, 150, 512, 512)
    assert scaled.device.type == "cuda"
    assert ("upsample_bilinear2d" in names.called) == (not decomposed)
    assert ("_unsafe_index" in names.called) == decomposed


def test_determinism_is_the_default_on_a_cpu_only_and_ends_with_its_block():
    cpu = torch.device("cpu")
    assert [is_deterministic(None, device) for device in (cpu, CUDA)] == [True, False]
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, fill()
    with deterministic_kernels(None, cpu):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert not fill()
        with deterministic_kernels(None, CUDA):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, fill()) == before


def fill():
    return torch.utils.deterministic.fill_uninitialized_memory


# -- memory ------------------------------------------------------------------------------------------------------------------


class Kept:
    """Bytes of the tensors that the backward pass will read, each storage once, without parameters."""

    def __init__(self, *parts):
        self.parameters = {p.untyped_storage()._cdata for part in parts for p in part.parameters()}
        self.found, self.alive = {}, []

    def pack(self, x):
        storage = x.untyped_storage()
        if storage._cdata not in self.parameters:
            self.found[storage._cdata] = storage.nbytes()
            self.alive.append(x)
        return x

    @property
    def bytes(self):
        return sum(self.found.values())


@contextmanager
def counted(stack, monkeypatch, *parts):
    """Count what is kept inside the block."""
    found = Kept(*parts)
    stack.enter_context(torch.autograd.graph.saved_tensors_hooks(found.pack, lambda x: x))
    stack.enter_context(half(monkeypatch))
    yield found


def test_upernets_heads_keep_what_the_plan_says(monkeypatch):
    settings, batch = upernet(), 2
    model = mmseg.upernet(settings, "x", SMALL)
    with FakeTensorMode(), ExitStack() as stack:
        parts = [on_gpu("mmseg", model[name]) for name in ("neck", "decode_head", "auxiliary_head")]
        neck, head, auxiliary = parts
        with counted(stack, monkeypatch, *parts) as found:
            maps = neck([torch.empty(batch, 384, 32, 32, device=CUDA, requires_grad=True) for _ in range(4)])
            target = torch.empty(batch, 512, 512, dtype=torch.long, device=CUDA)
            for logits in (head(maps), auxiliary(maps)):
                F.cross_entropy(F.interpolate(logits, size=(512, 512), mode="bilinear"), target, ignore_index=255)
    planned = settings.work(SMALL).outside / settings.batch_size * BYTES_OF_VALUE["bfloat16"]
    assert planned == pytest.approx(found.bytes / batch, rel=0.1)


@pytest.mark.parametrize("name", ["cascade", "maskrcnn"])
def test_detectors_keep_what_the_plan_says(monkeypatch, name):
    """Images of 800 x 1344 px with 512 regions, a quarter of which have a mask: the most that there can be."""
    settings, batch = CocoSettings(root="x", dataset="COCO", head=name), 2
    model, regions, cascade = mmdet.detector(settings, "x", SMALL, classes=80), 512 * batch, name == "cascade"
    roi = model["roi_head"]
    boxes = roi["bbox_head"] if cascade else [roi["bbox_head"]]
    with FakeTensorMode(), ExitStack() as stack:
        neck, proposals = on_gpu("mmdet", model["neck"]), on_gpu("mmdet", model["rpn_head"])
        heads = [(on_gpu("mmdet", box), on_gpu("mmdet", roi["mask_head"])) for box in boxes]
        with counted(stack, monkeypatch, neck, proposals, *(part for pair in heads for part in pair)) as found:
            maps = neck([torch.empty(batch, 384, 50, 84, device=CUDA, requires_grad=True) for _ in range(4 if cascade else 1)])
            proposals(maps)
            for box, mask in heads:
                box(torch.empty(regions, 256, 7, 7, device=CUDA, requires_grad=True))
                logits = mask(torch.empty(regions // 4, 256, 14, 14, device=CUDA, requires_grad=True))
                own = logits[torch.arange(regions // 4, device=CUDA), torch.zeros(regions // 4, dtype=torch.long, device=CUDA)]
                F.binary_cross_entropy_with_logits(own.float(), torch.empty(regions // 4, 28, 28, device=CUDA))
    planned = settings.work(SMALL).outside / settings.batch_size * BYTES_OF_VALUE["bfloat16"]
    assert planned == pytest.approx(found.bytes / batch, rel=0.1)


def test_blocks_are_counted_beside_the_heads():
    settings = CocoSettings(root="x", dataset="COCO")
    work = settings.work(SMALL)
    assert work.kept - work.outside == pytest.approx(32 * kept(SMALL, 800, 1333))
