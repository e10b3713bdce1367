"""How the cost of planning, tables and page grows with a study: CPU seconds and memory of the commands, by result records.

    python benchmarks/growth.py [--records 100 400 1600] [--folder DIR]

A study with so many records is written as its jobs would leave it: four evaluations of each run, every other run trained, with
learning curves and images. Each command is a process of its own, as the workflow starts it.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from densewalk.study.config import Study, parse_study
from densewalk.study.runs import TrainedRun

REPOSITORY = Path(__file__).resolve().parents[1]
EVALUATIONS = {
    "davis": {"root": "data", "dataset": "DAVIS-2017"},
    "incontext": {"root": "data", "dataset": "PascalVOC", "layout": "voc"},
    "overcluster": {"root": "data", "dataset": "PascalVOC", "layout": "voc"},
    "video_segmentation": {"root": "data", "dataset": "DAVIS-2017", "layout": "davis"},
}
POINTS = 300  # of a learning curve
TRAINING = {"seconds": 3600.0, "gpu_hours": 4.0, "peak_rss_mib": 9000.0, "peak_gpu_mib": 30000.0, "energy_wh": 900.0}
PROVENANCE = {"commit": "0123456789abcdef" * 2, "dirty": False, "host": "node1", "versions": {"torch": "2.14.1", "python": "3.11.7"}}
SNAKEMAKE = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", "planned", "-n", "-q", "all", "--"]
OURS = [sys.executable, "-m", "densewalk"]
COMMANDS = {
    "snakemake -n": [*SNAKEMAKE, "all"],
    **{name: [*OURS, name, "config.yaml"] for name in ("check", "plan", "status")},
    **{f"table {name}": [*OURS, "tables", "--table", name, "--out", f"{name}.csv", "results"] for name in ("all", "incontext")},
    "report": [*OURS, "report", "config.yaml"],
}


def config_of(runs: int) -> dict:
    """A study of so many runs: baselines and trainings built on them in turn."""
    made: dict = {}
    for i in range(runs):
        if i % 2:
            made[f"neco_{i}"] = {
                "method": "neco",
                "init": f"start_{i - 1}",
                "data": ["pictures"],
                "settings": {"steps": 1000 + i, "preset": "small/neco_dino"},
            }
        else:
            made[f"start_{i}"] = {"method": "none", "init": "random", "arch": "vit_small_patch16", "seeds": [0]}
    evaluations = {name: {"protocol": name, "settings": settings} for name, settings in EVALUATIONS.items()}
    images = {"pictures": {"source": "data/pictures"}}
    return {"study": f"{runs} runs", "images": images, "runs": made, "evaluations": evaluations}


def write_study(folder: Path, runs: int) -> None:
    """The study's configuration, twice: once with everything that its jobs leave, once without."""
    config = config_of(runs)
    (folder / "planned").mkdir(parents=True)
    for place in (folder, folder / "planned"):
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    study = parse_study(config)
    noise = np.random.default_rng(0).integers(0, 256, (120, 800, 3), dtype=np.uint8)
    for run, seed in study.jobs():
        write_run(study, folder / "results" / run / f"s{seed}", run, seed, noise)
    for run, seed, evaluation in study.evaluation_jobs():
        write_result(study, folder / "results" / run / f"s{seed}", run, seed, evaluation, noise)


def write_run(study: Study, folder: Path, run: str, seed: int, noise: np.ndarray) -> None:
    """A backbone's record, learning curve and images."""
    (folder / "features").mkdir(parents=True)
    (folder / "backbone.safetensors").touch()
    spec, trained = study.run_spec(run, seed), isinstance(study.runs[run], TrainedRun)
    facts = {"config_hash": spec.hash, "arch": spec.arch, "compat": "paper" if trained else "", "loaded": None, **PROVENANCE}
    training = training_of(study, run) if trained else None
    content = {**facts, "spec": json.loads(spec.model_dump_json(exclude={"settings", "data"})), "training": training}
    (folder / "run.json").write_text(json.dumps(content))
    if trained:
        points = [{"step": i, "time": 1.5 * i, "loss": math.exp(-i / 100), "lr": 1e-5, "entropy": 2 + 1 / (i + 1)} for i in range(POINTS)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    Image.fromarray(noise).save(folder / "features" / "0.png")


def training_of(study: Study, run: str) -> dict:
    """What a training cost."""
    return {
        **TRAINING,
        "steps": study.runs[run].settings.steps,
        "samples_seen": 45_000,
        "processes": 1,
        "device": "cuda:0",
        "execution": {},
    }


def write_result(study: Study, folder: Path, run: str, seed: int, evaluation: str, noise: np.ndarray) -> None:
    """A result record and its strip of images."""
    spec, settings = study.evaluation_spec(run, seed, evaluation), study.evaluations[evaluation].settings
    own, trained = study.run_spec(run, seed), isinstance(study.runs[run], TrainedRun)
    values = np.random.default_rng([seed, len(run), *run.encode()]).uniform(20, 80, len(settings.METRICS))
    content = {"run": run, "seed": seed, "method": own.method, "arch": own.arch, "compat": "paper" if trained else ""}
    content.update(init=own.init.kind if own.init.kind == "random" else own.init.name, init_kind=own.init.kind)
    content.update(init_seed=own.init.seed if own.init.kind == "run" else None, labels=None, task=settings.TABLE)
    content.update(evaluation=evaluation, dataset=settings.dataset, protocol=settings.protocol, version=settings.VERSION)
    content.update(published_protocol=settings.published_protocol, published_metrics=settings.PUBLISHED_METRICS)
    content.update(metrics=dict(zip(settings.METRICS, values.tolist(), strict=True)), n=1449, unit="images", details={})
    content.update(config_hash=spec.hash, run_hash=own.hash, device="cuda:0", spec={}, **TRAINING, **PROVENANCE)
    content.update(training=training_of(study, run) if trained else None)
    (folder / f"{evaluation}.json").write_text(json.dumps(content))
    (folder / evaluation).mkdir()
    Image.fromarray(noise).save(folder / evaluation / "strip.png")


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and MiB of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(["/usr/bin/env", *command], cwd=folder, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, nargs="+", default=[100, 400, 1600])
    arguments.add_argument("--folder", type=Path, help="where the studies are written (default: a temporary folder)")
    arguments.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS), metavar="COMMAND")
    args = arguments.parse_args()
    seconds: dict[str, list[str]] = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as temporary:
        for records in args.records:
            folder = (args.folder or Path(temporary)) / str(records)
            if not folder.exists():
                write_study(folder, records // len(EVALUATIONS))
            for name in args.only:
                spent, _ = measured(COMMANDS[name], folder)
                seconds[name].append(f"{spent:.1f}")
                print(f"{records} records, {name}: {spent:.2f} CPU-s", file=sys.stderr)
    print(f"| CPU seconds | {' | '.join(f'{records} records' for records in args.records)} |")
    print(f"|---|{'---|' * len(args.records)}")
    for name, row in seconds.items():
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
