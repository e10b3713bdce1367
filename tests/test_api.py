"""The Python API: the numbers of a study's own job, a wrapped network equal to the network itself, and clear errors."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import densewalk as dw
from densewalk.core.errors import UserError
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.incontext.evaluate import evaluate as evaluate_incontext
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.study.registry import parse_evaluation
from tests.fixtures.dense import write_voc

SETTINGS = {"layout": "voc", "input_size": 32, "neighbours": 3, "memory_size": None}
NANO = "vit_nano_patch16"


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / "voc")
    return tmp_path / "voc"


def wrapped(network, **other):
    promised = {"stride": 16, "dim": network.dim, "pooled": network.pooled, "pooled_dim": network.pooled_dim, **other}
    return dw.wrap(network, dense=network.dense, **promised)


def test_numbers_are_those_of_the_evaluation_itself(voc, tmp_path):
    network = create(NANO, seed=0)
    export_backbone(network, tmp_path / "backbone.safetensors", run="r", config_hash="h")
    settings = parse_evaluation("incontext", {**SETTINGS, "root": str(voc), "dataset": "voc"})
    bare = evaluate_incontext(settings, tmp_path / "backbone.safetensors", Job(tmp_path / "out", tmp_path / "state"))
    found = dw.evaluate("incontext", dw.load(tmp_path / "backbone.safetensors"), root=voc, device="cpu", **SETTINGS)
    assert found.metrics == bare.metrics
    assert (found.n, found.unit, found.details) == (bare.n, bare.unit, bare.details)
    assert found.protocol == settings.protocol


def test_a_wrapped_network_gives_the_numbers_of_the_network_itself(voc):
    network = dw.create(NANO, seed=1)
    own = dw.evaluate("incontext", network, root=voc, device="cpu", **SETTINGS)
    assert dw.evaluate("incontext", wrapped(network), root=voc, device="cpu", **SETTINGS).metrics == own.metrics


def test_the_network_comes_back_as_it_was(voc):
    network = dw.create(NANO, seed=1).train()
    own = wrapped(network)
    own.train()
    dw.evaluate("incontext", own, root=voc, device="cpu", **SETTINGS)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())


def test_pictures_are_kept_where_asked(voc, tmp_path):
    dw.evaluate("incontext", dw.create(NANO), root=voc, device="cpu", out=tmp_path / "pictures", **SETTINGS)
    assert list((tmp_path / "pictures").glob("*.png"))


class Toy(nn.Module):
    """A map of the mean colors of 8 x 8 px, in four channels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, 8)

    def forward(self, images):
        return self.layer(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 16}, r"has shape \(2, 4, 4, 6\); allowed: \(2, 4, 2, 3\), by dim 4 and stride 16"),
        ({"dim": 5}, "by dim 5 and stride 8"),
        ({"dense": lambda x: x.new_full((2, 4, 2, 3), torch.nan)}, "NaN"),
        ({"dense": lambda x: torch.zeros(2, 4, 2, 3, device="meta")}, "is on meta"),
        ({"dense": lambda x: torch.ones(2, 4, 2, 3, dtype=torch.int64)}, "holds int64"),
        ({"dense": lambda x: torch.ones(2, 4, 2, 3)}, "the same for both"),
        ({"dense": lambda x: [x]}, "is a list"),
        ({"dense": lambda x: x.wrong}, "AttributeError"),
        ({"pooled": lambda x: x.mean((2, 3))}, r"pooled of 2 images.*has shape \(2, 3\)"),
    ],
)
def test_a_network_that_breaks_its_promise_is_refused_at_once(change, message):
    toy = Toy()
    with pytest.raises(UserError, match=message):
        dw.wrap(toy, **{"dense": toy, "stride": 8, "dim": 4, **change})


def test_half_the_width_and_half_precision():
    toy = Toy().bfloat16()
    network = dw.wrap(toy, dense=lambda x: toy(x.bfloat16()), stride=8, dim=4)
    assert network.dense(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


def test_a_protocol_that_needs_more_is_refused_by_name(voc):
    toy = Toy()
    network = dw.wrap(toy, dense=toy, stride=8, dim=4, name="toy")
    with pytest.raises(UserError, match=r"needs one vector for each image, which toy .* has not"):
        dw.evaluate("knn", network, root=voc)
    with pytest.raises(UserError, match="keys of a last block"):
        dw.evaluate("discovery", network, root=voc, layout="voc")


@pytest.mark.parametrize(
    ("protocol", "settings", "message"),
    [
        ("incontexts", {}, "no protocol is called 'incontexts', did you mean incontext.; allowed: "),
        ("incontext", {"neighbors": 3}, "neighbors: there is no key 'neighbors' here, did you mean neighbours.; allowed: "),
        ("incontext", {"neighbours": 0}, r"neighbours: .*greater than or equal to 1 \(found 0\)"),
    ],
)
def test_wrong_names_and_values_are_one_clear_error(voc, protocol, settings, message):
    with pytest.raises(UserError, match=message):
        dw.evaluate(protocol, dw.create(NANO), root=voc, **{"layout": "voc", **settings})


def test_unknown_networks_are_refused():
    with pytest.raises(UserError, match="no file and no public checkpoint is called 'dinov9'; allowed: "):
        dw.load("dinov9")


def test_importing_the_package_imports_no_torch():
    code = "import densewalk, sys; assert 'torch' not in sys.modules; densewalk.evaluate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dinov2_vits14", r"network is a str; allowed: what load, create or wrap return; to do: densewalk\.load\(\"dinov2_vits14\"\)"),
        (nn.Conv2d(3, 8, 16, 16), r"network is a Conv2d; .*; to do: densewalk\.wrap\(module, "),
    ],
)
def test_what_is_no_network_is_said_to_be_made_one(given, message):
    with pytest.raises(UserError, match=message):
        dw.evaluate("davis", given, root="data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device: Input should be 'auto', 'cpu' or 'cuda' (found 'gpu')"),
        ({"workers": -1}, "workers: Input should be greater than or equal to 0 (found -1)"),
        ({"seed": -1}, "seed is -1; allowed: a whole number from 0 on"),
        ({"seed": "x"}, "seed is 'x'; allowed: a whole number from 0 on"),
        ({"root": 3}, "root is 3; allowed: a path"),
    ],
)
def test_wrong_arguments_are_one_clear_error(voc, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        dw.evaluate("incontext", dw.create(NANO), **({"root": voc, "device": "cpu"} | SETTINGS | arguments))


@pytest.mark.parametrize(("arch", "seed", "message"), [(NANO, "x", "seed is 'x'"), (NANO, True, "seed is True"), (3, 0, "arch is 3")])
def test_what_names_no_network_is_one_clear_error(arch, seed, message):
    with pytest.raises(UserError, match=message):
        dw.create(arch, seed=seed)
