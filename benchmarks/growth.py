"""How the cost of planning, tables and page grows with a study: CPU seconds and memory of the commands, by result records.

    python -m benchmarks.growth [--records 100 400 1600] [--folder DIR]

A study with so many records is written as its jobs would leave it: four evaluations of each run, every other run trained, with
learning curves and images. Each command is a process of its own, as the workflow starts it. benchmarks/all.py writes the exponents of
these and of what grows with images, a memory and a pool to docs/performance.md.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from benchmarks.measure import medians
from PIL import Image
from torch.nn import functional as F

from densewalk.curation.select import choose
from densewalk.curation.settings import CurationSettings
from densewalk.data.image_folder import ImageFolder
from densewalk.ops.search.nearest_neighbors import nearest
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


# -- exponents -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amounts:
    """Once, four times and 16 times so many records, images, entries of a memory and frames of a pool."""

    records: tuple[int, ...]
    images: int
    entries: int
    pool: int


def page(amounts: Amounts) -> str:
    """How CPU time grows with each amount, in Markdown."""
    lines = ["| | amounts | CPU s | exponent of the last step | of the whole |", "|---|---|---|---|---|"]
    lines += [growth_line(what, found) for what, found in (*of_records(amounts.records), *of_arrays(amounts))]
    return "\n".join(lines) + (
        "\n\nAn exponent of 1 is twice the time for twice the amount. Commands are processes of their own, whose start takes time, too;\n"
        "the last step has the smallest share of it. Each run of a study has four records, every other run was trained."
    )


def growth_line(what: str, found: dict[int, float]) -> str:
    """Seconds by amount, and the slopes of their logarithms."""
    (first, *_, before, last) = found.items()
    slopes = [math.log(last[1] / other[1]) / math.log(last[0] / other[0]) for other in (before, first)]
    seconds = ", ".join(f"{taken:.3g}" for taken in found.values())
    return f"| {what} | {', '.join(f'{amount:,}' for amount in found)} | {seconds} | {slopes[0]:.2f} | {slopes[1]:.2f} |"


def of_records(counts: Sequence[int]) -> Iterator[tuple[str, dict[int, float]]]:
    """Each command, by records."""
    with tempfile.TemporaryDirectory() as temporary:
        for records in counts:
            write_study(Path(temporary, str(records)), records // len(EVALUATIONS))
        for name, command in COMMANDS.items() if counts else ():
            yield f"{name}, by records", {records: measured(command, Path(temporary, str(records)))[0] for records in counts}


def of_arrays(amounts: Amounts) -> Iterator[tuple[str, dict[int, float]]]:
    """What runs in this process."""
    yield "listing a folder, by images", {n: listing_seconds(n) for n in times_four(amounts.images)}
    features = F.normalize(torch.randn(16 * max(amounts.entries, amounts.pool), 384, generator=torch.Generator().manual_seed(0)), dim=1)
    searches = {str(n): lambda n=n: nearest(features[:n], features[:200], 30) for n in times_four(amounts.entries)}
    yield "exact search of 200 queries, by entries of the memory", {int(n): taken for n, taken in medians(searches, 3).items()}
    settings = CurationSettings(data=["pool"], backbone="any", duplicates=0.9)
    choices = {str(n): lambda n=n: choose(features[:n], None, settings) for n in times_four(amounts.pool)}
    yield "groups of duplicates, by frames of the pool", {int(n): taken for n, taken in medians(choices, 3).items()}


def times_four(amount: int) -> list[int]:
    """Once, four times, 16 times."""
    return [amount, 4 * amount, 16 * amount]


def listing_seconds(images: int) -> float:
    """CPU seconds of the list of so many files in folders of 1,000."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(images):
            path = Path(folder, str(i // 1000), f"{i}.jpg")
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return medians({"list": lambda: ImageFolder(folder)}, 3)["list"]


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
