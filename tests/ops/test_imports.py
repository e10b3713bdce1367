"""Jobs start without torch's compiler, transformers and pycocotools; each works as ever when it is asked for."""

import subprocess
import sys

import pytest

LIGHT = """
import sys
import densewalk.study.specs
from densewalk.ops.cpu.imports import import_without_compiler
import_without_compiler()
import densewalk.jobs.evaluate, densewalk.jobs.train, densewalk.evaluations.davis.evaluate
assert "torch._dynamo" not in sys.modules
import timm, torch, torchvision
assert torch.compiler.disable.__module__ == "torch.compiler"
assert "torch._dynamo.utils" not in sys.modules
boxes = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), 2)
assert boxes.shape == (1, 1, 2, 2) and (boxes == 1).all()
net = timm.create_model("naflexvit_base_patch16_gap", embed_dim=8, depth=1, num_heads=1, num_classes=0)
assert net(torch.ones(1, 3, 32, 32)).shape == (1, 8)
"""
WITHOUT = """
import sys
import densewalk.evaluations.mmlab.detection, densewalk.evaluations.mmlab.segmentation
assert "transformers" not in sys.modules
from mmdet.datasets.api_wrappers import COCO
from mmdet.structures.mask import structures
assert COCO.__mro__[1].__module__.startswith("faster_coco_eval.") and structures.maskUtils.__name__.startswith("faster_coco_eval.")
import transformers, pycocotools.coco, pycocotools.mask
assert transformers.BertConfig
assert pycocotools.coco.COCO.__module__ == "pycocotools.coco" and pycocotools.mask._mask.__name__ == "pycocotools._mask"
before = {name: module for name, module in sys.modules.items() if name.startswith("pycocotools")}
with densewalk.evaluations.mmlab.imports.toolbox_imports():
    from pycocotools.coco import COCO
    assert COCO.__module__.startswith("faster_coco_eval.")
assert before == {name: module for name, module in sys.modules.items() if name.startswith("pycocotools")}
"""


@pytest.mark.parametrize("code", [LIGHT, WITHOUT], ids=["compiler", "transformers and pycocotools"])
def test_jobs_import_neither(code):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
