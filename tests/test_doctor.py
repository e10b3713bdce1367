"""`densewalk doctor` on real data in the real layouts, on broken copies of them, and on checkpoints of every fate."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from densewalk import doctor
from densewalk.__main__ import main
from densewalk.backbone import Architecture
from densewalk.config import load_study, parse_evaluation, parse_study
from densewalk.doctor import READERS, data_of, examine
from densewalk.errors import UserError
from densewalk.jobs import EVALUATIONS
from densewalk.provenance import file_sha256
from tests.helpers import shared
from tests.official import official_weights

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


def settings(protocol, root, more):
    return parse_evaluation(protocol, {"root": str(root), "dataset": "mini", **more})


def test_every_protocol_has_its_reader():
    assert READERS.keys() == EVALUATIONS.keys()


@pytest.mark.parametrize("name", REAL)
def test_real_folders_are_counted(name):
    protocol, folder, more, counts = REAL[name]
    assert counts in data_of(protocol, settings(protocol, shared(f"data/{folder}"), more))


# what is done to a copy -> what is said
BROKEN = {
    "ade20k, an image without mask": ("ade20k", "annotations/validation/*1.png", "remove", "have no mask"),
    "ade20k, a mask cut off": (
        "ade20k",
        "annotations/training/*1.png",
        "cut",
        r"000001.png cannot be read as a picture: .*; to do: download it again",
    ),
    "coco, an image missing": ("coco", "val2017/*.jpg", "remove", r"lists 1 images that are not in .*val2017"),
    "coco, annotations cut off": ("coco", "annotations/instances_train2017.json", "cut", "is not JSON"),
    "coco, no annotations": ("coco", "annotations/instances_val2017.json", "remove", r"instances_val2017.json does not exist"),
    "davis, a mask missing": ("davis", "Annotations/480p/blackswan/00003.png", "remove", r"mask .*blackswan/00003.png does not exist"),
    "voc, a mask missing": ("voc", "SegmentationClass/*.png", "remove", r"lists .* but .* does not exist"),
    "voc, no list": ("voc", "ImageSets/Segmentation/trainaug.txt", "remove", r"trainaug.txt does not exist; allowed: train, val"),
    "imagenet, a picture cut off": ("imagenet", "train/*/*.JPEG", "cut", "cannot be read as a picture"),
}


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
    weights = official_weights(Architecture.named(arch))
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
        "wrong": "instead of 0000",
        "hostile": "cannot be read safely: it holds a ",
        "cut": "cannot be read safely",
        "missing": "missing.pth does not exist; to do: densewalk fetch --config CONFIG",
    }.items():
        assert " problem " in lines[f"checkpoints.{name}"]
        assert problem in lines[f"checkpoints.{name}"]
    assert not (tmp_path / "marker").exists()


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
    assert "5 sequences, 219 pictures" in found["images.davis"].found
    assert "no.mp4 does not exist" in found["videos.gone"].problem
    assert "folder no does not exist" in found["images.none"].problem


def test_the_machine_alone_is_well_and_what_it_lacks_is_said(monkeypatch, capsys):
    assert main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "undecodable", lambda _: ["av1"])
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    assert main(["doctor", "--slurm"]) == UserError.exit_status
    shown = capsys.readouterr().out
    for problem in ("PyAV does not decode av1", "sbatch, squeue, scancel, sacct not found", "1.0 GiB free in"):
        assert problem in shown


def test_the_paper_scale_study_is_examined_without_a_traceback():
    study = load_study(Path(__file__).parents[1] / "config.yaml")
    subjects = {f.subject for f in examine(study)}
    assert {f"evaluations.{name}" for name in study.evaluations} <= subjects
