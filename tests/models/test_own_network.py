"""A network of the user's own, by the function that builds it: the same numbers through API, study and bench, and one clear error."""

import json
import math
import re
import sys

import pytest
import torch
from safetensors import safe_open

import densewalk as dw
from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.evaluations.common.base import Job, load_network
from densewalk.jobs.bench import run as bench
from densewalk.jobs.bench.networks import network_of
from densewalk.jobs.bench.study import offered
from densewalk.jobs.evaluate import evaluate
from densewalk.jobs.train import make_backbone
from densewalk.models.families.own_code import find_code, require_function
from densewalk.models.loading import create, load
from densewalk.study.config import load_study, parse_study
from densewalk.study.registry import parse_evaluation
from densewalk.study.specs import RunSpec, read_spec
from densewalk.training.execution import Execution
from tests.evaluations.test_bad_input import write_davis, write_imagenet

SOURCE = """
import torch
from torch import nn

import densewalk


class Net(nn.Module):
    stride, dim = 8, 6

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6)
        self.register_buffer("calls", torch.tensor(2**40 + 1))

    def dense(self, images):
        return self.norm(self.layer(images))

    def pooled(self, images):
        return self.dense(images).mean((2, 3))


def build():
    return Net()


def wrapped():
    net = Net().double()
    return densewalk.wrap(net, dense=lambda x: net.dense(x.double()), stride=8, dim=6, mean=(0.5, 0.5, 0.5))
"""
CPU = Execution(device="cpu", workers=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study's folder with mynet.py and the package lab, whose module net is the same; Python forgets both afterwards."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/__init__.py").touch()
    for name in ("mynet.py", "lab/net.py"):
        (tmp_path / name).write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mynet", "lab", "lab.net"):
        sys.modules.pop(name, None)


def study_of(name="mynet:build", **evaluations):
    return {"study": "s", "runs": {"mine": {"method": "none", "backbone": name}}, "evaluations": evaluations}


def made(study, run, out):
    """The file of a run's backbone, made as its job makes it."""
    spec = study.run_spec(run, 0)
    make_backbone(spec, None, [], out / "state", out, CPU)
    return out / "backbone.safetensors"


def numbers(study, out, run="mine"):
    """Metrics of all of a study's evaluations, made as jobs make them."""
    file, found = made(study, run, out), {}
    for name in study.evaluations:
        evaluate(study.evaluation_spec(run, 0, name), file, out / "state" / name, out / f"{name}.json", CPU)
        found[name] = json.loads((out / f"{name}.json").read_text())["metrics"]
    return found


def test_api_study_and_bench_give_the_same_numbers(folder, monkeypatch, capsys):
    write_davis(folder / "sets" / "DAVIS")
    write_imagenet(folder / "sets" / "imagenet")

    def run_jobs(command, where, roots):
        assert roots == []  # the study lies in the folder below the module's
        numbers(load_study("bench/config.yaml"), folder / "bench/results/mynet_build/s0", "mynet_build")
        return 0

    for name, small in {"davis": {"short_side": 64}, "knn": {"resize": 32, "size": 32}}.items():
        entry = offered()[name]
        monkeypatch.setitem(offered(), name, entry.model_copy(update={"settings": {**entry.settings, **small}}))
    monkeypatch.setattr(bench, "_run", run_jobs)  # the same jobs without Snakemake
    assert main(["bench", "mynet:build", "--data", "sets", "--protocols", "davis,knn"]) == 0
    printed = capsys.readouterr().out
    assert f"mynet_build: its jobs run your own code, build of {folder / 'mynet.py'}" in printed
    written = load_study("bench/config.yaml")
    assert written.runs["mynet_build"].backbone == "mynet:build", "the name as it was given, no path of this machine"
    of_bench = {name: json.loads((folder / f"bench/results/mynet_build/s0/{name}.json").read_text()) for name in ("davis", "knn")}
    assert f"{of_bench['davis']['metrics']['J&F']:.2f}" in printed

    entries = {name: e.model_dump(mode="json", exclude_none=True) for name, e in written.evaluations.items()}
    study = parse_study(study_of(**entries))
    assert numbers(study, folder / "results") == {name: record["metrics"] for name, record in of_bench.items()}
    assert study.run_spec("mine", 0).hash == written.run_spec("mynet_build", 0).hash  # wherever its file is named from

    for name, e in written.evaluations.items():
        settings = e.settings.model_dump(exclude={"root", "dataset"}, exclude_none=True)
        found = dw.evaluate(e.protocol, dw.load("mynet:build"), root=e.settings.root, device="cpu", **settings)
        measured = {key: value for key, value in found.metrics.items() if not math.isnan(value)}
        assert measured == {key: value for key, value in of_bench[name]["metrics"].items() if value is not None}


def test_bench_keeps_the_module_s_name_and_its_jobs_find_it(folder, monkeypatch):
    """In the study's folder, in the one above, and elsewhere by PYTHONPATH, which Snakemake and its jobs get."""
    monkeypatch.setattr(sys, "path", [str(folder), *(place for place in sys.path if place != str(folder))])  # as for `python -m densewalk`
    network = network_of("lab.net:build", None, None)
    assert network.init == {"backbone": "lab.net:build"}
    assert network_of("lab/net.py:build", None, None).init == {"backbone": f"{folder}/lab/net.py:build"}
    elsewhere, below = folder / "far/away", folder / "bench"
    elsewhere.mkdir(parents=True)
    assert bench.modules_elsewhere([network], folder) == bench.modules_elsewhere([network], below) == []
    assert bench.modules_elsewhere([network], elsewhere) == [str(folder)]
    command = [sys.executable, "-c", "import importlib.util; assert importlib.util.find_spec('lab.net').origin"]
    assert bench._run(command, elsewhere) != 0
    assert bench._run(command, elsewhere, [str(folder)]) == 0
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert bench.modules_elsewhere([network], elsewhere) == [], "the user has said where it is"
    below.mkdir()
    (below / "lab").mkdir()
    (below / "lab/net.py").write_text("another one")
    with pytest.raises(UserError, match=r"lab.net is .*bench/lab/net.py in the study's folder, not .*lab/net.py; to do: name its file"):
        bench.modules_elsewhere([network], below)


def test_an_export_gives_the_network_again_in_its_own_precision(folder):
    for name in ("mynet:build", "mynet:wrapped", "lab.net:build", "lab/net.py:build"):
        study = parse_study(study_of(name))
        file = made(study, "mine", folder / "out")
        before, after = create(f"python/{name}", seed=0), load(file)
        images = torch.randn(1, 3, 16, 24)
        assert torch.equal(before.eval().dense(images), after.eval().dense(images))
        assert after.statistics == before.statistics
        assert after.module.calls == 2**40 + 1
        assert (folder / "out/card.md").read_text().count("a network of the user's own") == 1
    with safe_open(folder / "out/backbone.safetensors", "pt") as written:
        assert written.metadata()["source"] == find_code("lab.net:build").sha256


def test_the_seed_draws_the_weights_and_the_source_is_in_the_hash(folder):
    one, other = (create("python/mynet:build", seed=seed).module.layer.weight for seed in (0, 1))
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    create("python/mynet:build", seed=0)
    assert torch.equal(torch.rand(1), expected)
    before = parse_study(study_of()).run_spec("mine", 0)
    assert before.code == find_code("mynet:build").sha256
    (folder / "mynet.py").write_text(SOURCE + "\n")
    assert parse_study(study_of()).run_spec("mine", 0).hash != before.hash
    with pytest.raises(UserError, match=r"the file of python/mynet:build has changed .*start snakemake again"):
        make_backbone(before, None, [], folder / "state", folder / "out", CPU)


def test_a_file_of_weights_is_taken_strictly(folder):
    net = create("python/mynet:build", seed=5)
    state = net.module.state_dict()
    torch.save({"epoch": 3, "state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}}, "w.pth")
    assert torch.equal(load("w.pth", "python/mynet:build").module.layer.weight, state["layer.weight"])
    torch.save({"teacher": state, "student": {k: v + 1 for k, v in state.items()}}, "two.pth")
    assert torch.equal(load("two.pth", "python/mynet:build", key="student").module.layer.weight, state["layer.weight"] + 1)
    torch.save({k: v for k, v in state.items() if k != "norm.bias"}, "less.pth")
    torch.save({**state, "layer.bias": torch.full((6,), torch.nan)}, "nan.pth")
    for file, key, message in [
        ("two.pth", None, "not expected: student.*missing: |missing: .*not expected: student"),
        ("two.pth", "head", "has no network 'head'; allowed: student, teacher"),
        ("less.pth", None, "missing: norm.bias"),
        ("nan.pth", None, "layer.bias holds NaN"),
    ]:
        with pytest.raises(UserError, match=message):
            load(file, "python/mynet:build", key=key)
    study = study_of()
    study |= {"checkpoints": {"w": {"file": "w.pth", "arch": "python/mynet:build"}}, "runs": {"mine": {"method": "none", "init": "w"}}}
    assert parse_study(study).run_spec("mine", 0).code == find_code("mynet:build").sha256


def test_check_says_that_it_runs_the_user_s_own_code(folder, capsys, caplog):
    (folder / "deeper").mkdir()
    (folder / "config.yaml").write_text(json.dumps(study_of("lab.net:build")))
    assert main(["check", "config.yaml"]) == 0
    assert f"mine: its jobs run your own code, build of {folder / 'lab/net.py'} (sha256 " in capsys.readouterr().out
    (folder / "deeper/config.yaml").write_text(json.dumps(study_of("other:build")))
    assert main(["check", "deeper/config.yaml"]) == 2
    assert f"there is no module other for the network other:build; allowed: a module in {folder / 'deeper'}" in caplog.text
    (folder / "deeper/other.py").write_text("raise SystemError  # never imported by check\n\ndef build():\n    ...\n")
    assert main(["check", "deeper/config.yaml"]) == 0
    assert "were not looked at: densewalk doctor --config deeper/config.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("def build():\n    raise SystemError\n", True),
        ("try:\n    from lab import build\nexcept ImportError:\n    build = None\n", True),
        ("from lab import make as build\n", True),
        ("from lab import *\n", True),
        ("def __getattr__(name):\n    return name\n", True),
        ("if True:\n    build, other = 1, 2\n", True),
        ("def built():\n    build = 1\n", False),
        ("class Net:\n    def build(self): ...\n", False),
        ("import build_tools\nprint(build)\n", False),
    ],
)
def test_a_function_that_the_text_does_not_bind_is_named_and_nothing_runs(tmp_path, text, is_there):
    file = tmp_path / "net_of_text.py"
    file.write_text(f"raise_if_run = 1 / 0\n{text}")
    code = find_code(f"{file}:build")
    if is_there:
        require_function(code)
        return
    with pytest.raises(UserError, match=r"net_of_text\.py has no function build"):
        require_function(code)
    file.write_text("def build(:\n")
    with pytest.raises(UserError, match="is no Python"):
        require_function(find_code(f"{file}:build"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "mynet"}, r"runs.mine.backbone: 'mynet' is not the name of a function; allowed: package.module:function"),
        ({"backbone": "mynet:build", "arch": "vit_nano_patch16"}, "give no init and no arch with it"),
        ({"backbone": "mynet:build", "method": "dino"}, "runs.mine.backbone: "),
        ({"backbone": "mynet:build", "init": "start"}, "name python/mynet:build as the `arch` of a checkpoint"),
    ],
)
def test_studies_that_cannot_be(change, message):
    study = study_of()
    study["runs"] = {"start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}, "mine": {"method": "none", **change}}
    with pytest.raises(UserError, match=re.escape(message)):
        parse_study(study)


def test_methods_do_not_train_it_and_evaluations_that_need_more_refuse_it():
    study = study_of(d={"protocol": "discovery", "settings": {"root": "d", "dataset": "d", "layout": "voc"}})
    with pytest.raises(UserError, match=r"discovery needs keys of a last block's attention, which mine \(python/mynet:build\) has not"):
        parse_study(study)
    study = study_of()
    study |= {"videos": {"v": {"source": "v.mp4"}}}
    study["runs"]["more"] = {"method": "dino", "init": "mine", "data": ["v"], "settings": {"preset": "small_video"}}
    with pytest.raises(UserError, match="dino trains plain vision transformers only, not python/mynet:build"):
        parse_study(study)


BROKEN = {
    "raise ValueError('no weights')": r"python/broken:build: ValueError: no weights \(.*broken.py, line 6\)",
    "return 3": "returns a int; allowed: a torch module",
    "return nn.Conv2d(3, 6, 8, 8)": "returns a Conv2d without dense, dim",
    "net = Net(); net.stride = 16; return net": r"has shape \(2, 6, 4, 6\); allowed: \(2, 6, 2, 3\), by dim 6 and stride 16",
    "net = Net(); net.dim = 12; return net": r"allowed: \(2, 12, 2, 3\), by dim 12 and stride 8",
    "net = Net(); net.layer.weight.data.fill_(float('nan')); return net": "dense of 2 images of 16 x 24 px holds NaN",
    "net = Net(); net.dense = lambda x: torch.zeros(2, 6, 2, 3, device='meta'); return net": "is on meta; allowed: the images' device, cpu",
    "net = Net(); net.stride = 8.0; return net": "stride is 8.0; allowed: a whole number above 0",
    "net = Net(); net.std = (1, 1, 0); return net": r"std is \(1, 1, 0\); allowed: finite numbers above 0",
    "net = Net(); net.dense = 3; return net": "dense is a int; allowed: a function of images",
}


@pytest.mark.parametrize("body", BROKEN)
def test_a_broken_network_is_one_clear_error(folder, body):
    (folder / "broken.py").write_text(f"import torch\nfrom torch import nn\nfrom mynet import Net\n\ndef build():\n    {body}\n")
    sys.modules.pop("broken", None)
    with pytest.raises(UserError, match=BROKEN[body]):
        create("python/broken:build", seed=0)
    sys.modules.pop("broken", None)


def test_modules_that_cannot_be_imported_or_found(folder):
    (folder / "json.py").write_text(SOURCE)
    (folder / "later.py").write_text("\nimport not_installed_here\n")
    for name, message in [
        ("json:build", r"json is .*json/__init__.py, not .*json.py; to do: rename your file"),
        ("later:build", r"later.py cannot be imported: ModuleNotFoundError: .*not_installed_here.*line 2"),
        ("mynet:create", r"mynet.py has no function create"),
        ("nowhere/net.py:build", "there is no file nowhere/net.py"),
    ]:
        with pytest.raises(UserError, match=message):
            create(f"python/{name}", seed=0)


def test_state_outside_of_the_module_is_noticed(folder):
    """What a function draws at each call would be another network in every evaluation."""
    (folder / "hidden.py").write_text(
        "import os, torch, densewalk\nfrom torch import nn\n\ndef build():\n"
        "    w = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(int.from_bytes(os.urandom(4), 'big')))\n"
        "    return densewalk.wrap(nn.Identity(), dense=lambda x: nn.functional.conv2d(x, w, stride=8), stride=8, dim=6)\n"
    )
    file = made(parse_study(study_of("hidden:build")), "mine", folder / "out")
    with pytest.raises(UserError, match=r"python/hidden:build gives other features than when .*in the module's state_dict"):
        load(file)
    sys.modules.pop("hidden")


def test_heads_train_on_features_of_a_network_that_works_in_inference_mode():
    net = torch.nn.Conv2d(3, 4, 8, 8)
    own = dw.wrap(net, dense=torch.inference_mode()(net.forward), stride=8, dim=4)
    head = torch.nn.Conv2d(4, 2, 1)
    head(own.dense(torch.randn(1, 3, 8, 8))).sum().backward()
    assert head.weight.grad is not None


def test_the_network_is_tried_out_where_it_will_work(folder, monkeypatch):
    """After it has been moved: parts of it may have stayed on another device."""
    own, seen = dw.load("mynet:build"), []
    monkeypatch.setattr(type(own), "probe", lambda self: seen.append(next(self.parameters()).device.type))
    settings = parse_evaluation("knn", {"root": "r", "dataset": "d"})
    load_network(settings, folder, Job(folder, folder, device="meta", network=own))
    assert seen == ["meta"]


def test_a_specification_with_code_is_read_again(folder):
    spec = parse_study(study_of()).run_spec("mine", 0)
    spec.write(folder)
    assert read_spec(spec.path(folder), RunSpec) == spec


def test_a_network_that_contains_itself_is_one_clear_error():
    module = torch.nn.Conv2d(3, 8, 4, 4)
    module.add_module("itself", module)
    with pytest.raises(UserError, match="Conv2d: the module contains itself; to do: keep such a reference out of its modules"):
        dw.wrap(module, dense=module, stride=4, dim=8)
