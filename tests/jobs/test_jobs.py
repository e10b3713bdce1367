"""What a training job leaves behind beside the backbone."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from densewalk.jobs import train as train_job
from densewalk.models.origin import CheckpointFile
from densewalk.models.timm_models import named_architecture
from densewalk.study.specs import RunSpec
from densewalk.training.execution import Execution
from tests.fixtures.official import official_weights
from tests.fixtures.toy import Noise, Toy


class Drawing(Toy):
    """Writes down how it was asked to draw."""

    def pictures(self, data, folder):
        folder.mkdir(parents=True)
        (folder / f"{len(data)}-{self.training}-{torch.is_grad_enabled()}.png").touch()


def test_images_replace_those_of_an_earlier_training(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "old.png").touch()
    train_job.draw_images(Drawing(1).train(), Noise(), folder)
    assert [path.name for path in folder.iterdir()] == ["12-False-False.png"]


def test_most_methods_have_no_images(tmp_path):
    train_job.draw_images(Toy(1), Noise(), tmp_path / "training")
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("arch", ["vit_nano_patch16", "vit_nano_patch14_reg4_swiglu"])
def test_the_card_says_what_was_loaded_and_how_to_load_the_result(tmp_path, arch):
    torch.save({"teacher": official_weights(named_architecture(arch)), "epoch": 3}, tmp_path / "weights.pth")
    init = CheckpointFile(name="w", file="weights.pth", key=None, sha256=None, url=None)
    spec = RunSpec(run="r", seed=0, method="none", arch=arch, init=init)
    train_job.make_backbone(spec, tmp_path / "weights.pth", [], tmp_path / "state", tmp_path / "out", Execution())
    card = (tmp_path / "out" / "card.md").read_text()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "tensors of network teacher taken" in record["loaded"]
    assert f"Initial weights: {record['loaded']}." in card
    constructor = next(line for line in card.splitlines() if line.startswith("model = ")).removeprefix("model = ")
    model = eval(constructor, {"timm": timm, "torch": torch})
    model.load_state_dict(load_file(tmp_path / "out" / "backbone.safetensors"))
