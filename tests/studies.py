"""A study of seconds, for tests of the real workflow."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

TRAINING = {"steps": 2, "batch_size": 2, "global_size": 64, "local_size": 32}
TINY = {
    "study": "Tiny study",
    "synthetic": {
        "root": "data",
        "seconds": 8,
        "fps": 4,
        "width": 128,
        "height": 96,
        "mask_stride": 2,
        "ade_train": 2,
        "ade_val": 2,
        "coco_train": 4,
        "coco_val": 2,
        "davis_sequences": 2,
        "davis_frames": 4,
    },
    "videos": {"walk": {"source": "data/walk.mp4", "short_side": 96}},
    "images": {"coco": {"source": "data/coco/train2017"}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16", "seeds": [0, 1]},
        "dora": {
            "method": "dora",
            "init": "random",
            "arch": "vit_nano_patch16",
            "data": ["walk"],
            "settings": {**TRAINING, "frames": 2, "out_dim": 64, "local_crops": 2, "warmup_epochs": 0},
        },
        "neco_dora": {"method": "neco", "init": "dora", "data": ["coco"], "settings": TRAINING},
    },
    "evaluations": {
        "davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "synthetic DAVIS layout", "short_side": 96}},
        "incontext": {
            "protocol": "incontext",
            "settings": {
                "root": "data",
                "dataset": "synthetic walk",
                "layout": "video",
                "images": "walk.mp4",
                "masks": "walk_masks",
                "num_classes": 22,
                "input_size": 96,
                "augmentation_epochs": 0,
            },
        },
    },
    "execution": {"device": "cpu", "workers": 0},
}


def write_study(folder: Path, study: dict) -> Path:
    """A study folder with its config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def snakemake(folder: Path, *arguments: str, check: bool = True, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user does, on the study in `folder`; `within` is a command that runs it, such as `unshare`."""
    command = [*within, sys.executable, "-m", "snakemake", "--directory", str(folder), "--cores", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


def planned(folder: Path, *arguments: str) -> set[str]:
    """The first output of each job that a dry run announces."""
    text = snakemake(folder, "-n", *arguments).stdout
    return {match.split(",")[0] for match in re.findall(r"^    output: (\S+)", text, flags=re.MULTILINE)}
