"""The public checkpoints: their list, and how a study names them."""

import pytest

from densewalk import api
from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.models.catalog import Published, public_checkpoint, published
from densewalk.models.timm_models import named_architecture, named_shape
from densewalk.study.config import parse_study

PUBLIC = published()


def study(init, **more):
    return parse_study({"study": "s", "runs": {"a": {"method": "none", "init": init}}, **more})


def test_every_entry_is_complete_and_has_a_known_architecture():
    for name, entry in PUBLIC.items():
        assert named_shape(entry.arch).name == entry.arch
        assert entry.source.startswith("https://")
        assert entry.url is None or entry.url.startswith("https://"), name
    files = [entry.file(name) for name, entry in PUBLIC.items()]
    assert len(set(files)) == len(files)
    checksums = [entry.sha256 for entry in PUBLIC.values() if entry.sha256]
    assert len(set(checksums)) == len(checksums) >= 8


def test_the_family_is_there():
    methods = {entry.labels.method for entry in PUBLIC.values()}
    assert methods >= {
        "DINO",
        "DINOv2",
        "DINOv2R",
        "iBOT",
        "MAE",
        "MoCo-v3",
        "SimCLR",
        "NeCo",
        "TimeT",
        "Leopart",
        "DoRA",
        "DINOv3",
        "Franca",
    }


def test_a_run_names_a_public_checkpoint_and_inherits_its_labels():
    s = study("mae_vitb16")
    init = s.run_spec("a", 0).init
    assert init.file == "checkpoints/mae_vitb16.pth"
    assert init.interpolation == "size"
    assert init.url == "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth"
    assert s.arch_of("a") == "vit_base_patch16"
    assert s.labels_of("a").method == "MAE"
    assert study("dinov2_vits14_reg").run_spec("a", 0).init.sha256 == PUBLIC["dinov2_vits14_reg"].sha256


def test_the_study_s_own_checkpoint_wins():
    s = study("mae_vitb16", checkpoints={"mae_vitb16": {"file": "own.pth", "arch": "vit_nano_patch16"}})
    assert s.run_spec("a", 0).init.file == "own.pth"


def test_a_curation_names_a_public_checkpoint():
    curation = {"data": ["walk"], "duplicates": 0.9}
    more = {"videos": {"walk": {"source": "walk.mp4"}}}
    s = study("mae_vitb16", curations={"less": {**curation, "backbone": "dinov2_vits14_reg"}}, **more)
    spec = s.curation_spec("less")
    assert spec.arch == "vit_small_patch14_reg4"
    assert spec.backbone.file == "checkpoints/dinov2_vits14_reg.pth"
    assert s.checkpoints.keys() == {"mae_vitb16", "dinov2_vits14_reg"}
    s = study("mae_vitb16", curations={"less": {**curation, "backbone": "timm/vit_small_patch16_224.dino"}}, **more)
    assert s.curation_spec("less").backbone.file == "checkpoints/timm/vit_small_patch16_224.dino.safetensors"
    # a run of that name is meant before a public checkpoint
    runs = {"mae_vitb16": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}}
    s = parse_study({"study": "s", "runs": runs, "curations": {"less": {**curation, "backbone": "mae_vitb16"}}, **more})
    assert s.curation_spec("less").backbone.kind == "run"
    with pytest.raises(UserError, match=r"curations.less.backbone: 'dinov9' is neither .* or what `densewalk checkpoints` lists"):
        study("mae_vitb16", curations={"less": {**curation, "backbone": "dinov9"}}, **more)


def test_a_name_of_timms_becomes_a_checkpoint():
    s = study("timm/vit_small_patch16_224.dino")
    assert s.run_spec("a", 0).init.file == "checkpoints/timm/vit_small_patch16_224.dino.safetensors"
    assert s.arch_of("a") == "timm/vit_small_patch16_224.dino"
    assert named_architecture(s.arch_of("a")).dim == 384


def test_hashes_of_studies_without_a_rule_for_positions_stay():
    s = study("w", checkpoints={"w": {"file": "own.pth", "arch": "vit_nano_patch16"}})
    assert s.run_spec("a", 0).init.model_dump(mode="json").keys() == {"kind", "name", "file", "key", "sha256", "url"}


def test_what_cannot_be_used_is_said_at_once():
    with pytest.raises(
        UserError, match=r"'dinov9' is neither a checkpoint nor a run, did you mean .*; allowed: .* `densewalk checkpoints` lists"
    ):
        study("dinov9")


def test_other_statistics_of_pixels_reach_the_study(monkeypatch):
    entry = PUBLIC["mae_vitb16"].model_dump() | {"mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(PUBLIC, "grey", Published.model_validate(entry))
    described = public_checkpoint("grey")[1]
    assert (described["mean"], described["std"]) == ((0.5, 0.5, 0.5), PUBLIC["mae_vitb16"].std)


def test_the_list_is_printed(capsys):
    assert main(["checkpoints"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PUBLIC) + 1
    assert any(line.startswith("dinov2_vits14_reg ") and "f433177089a6" in line for line in lines)
    assert any(line.startswith("dinov3_vits16 ") and line.endswith("by hand") for line in lines)


def test_a_misspelt_network_of_timm_is_one_line(caplog):
    unknown = "unknown architecture 'timm/vit_smal', did you mean"
    for name, message in (("timm/vit_smal", unknown), ("nothing", "no public checkpoint is called")):
        caplog.clear()
        assert main(["fetch", name]) == UserError.exit_status
        assert message in caplog.text
    with pytest.raises(UserError, match=unknown):
        api.load("timm/vit_smal")
