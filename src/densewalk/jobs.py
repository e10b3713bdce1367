"""What the workflow's jobs do: read a specification, do the work, write the result with its provenance.

results/{run}/s{seed}/backbone.safetensors, run.json, card.md, metrics.jsonl, training/*.png, tensorboard/ (if asked for)
results/{run}/s{seed}/{evaluation}.json, {evaluation}/...
results/{run}/s{seed}/features.json, features/*.png
"""

import importlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from densewalk import distributed, loop
from densewalk.backbone import Backbone, create, load
from densewalk.blocks import CompiledBlocks
from densewalk.checkpoint import State, export_backbone, read_json, write_card, write_json
from densewalk.config import parse_evaluation, parse_training
from densewalk.cost import metered
from densewalk.curation import curate as choose
from densewalk.errors import UserError
from densewalk.evals.base import Job, Result
from densewalk.events import require_tensorboard
from densewalk.feature_cache import FeatureCache
from densewalk.methods.base import Method, Source
from densewalk.progress import log
from densewalk.provenance import config_hash, file_sha256, record
from densewalk.settings.data import CurationSettings
from densewalk.settings.execution import Execution
from densewalk.settings.pictures import PictureSettings

METHODS = {
    "dora": ("densewalk.methods.dora", "Dora"),
    "dino": ("densewalk.methods.dino", "Dino"),
    "neco": ("densewalk.methods.neco", "Neco"),
    "timetuning": ("densewalk.methods.timetuning", "TimeTuning"),
}
EVALUATIONS = {
    "ade20k_linear": "densewalk.evals.ade20k",
    "ade20k_upernet": "densewalk.evals.ade20k",
    "segmentation_linear": "densewalk.evals.ade20k",
    "segmentation_upernet": "densewalk.evals.ade20k",
    "coco": "densewalk.evals.coco",
    "davis": "densewalk.evals.davis",
    "incontext": "densewalk.evals.incontext",
    "video_segmentation": "densewalk.evals.video_segmentation",
    "knn": "densewalk.evals.knn",
    "linear": "densewalk.evals.linear",
    "discovery": "densewalk.evals.discovery",
    "tracking": "densewalk.evals.tracking",
    "linear_segmentation": "densewalk.evals.linear_segmentation",
    "overcluster": "densewalk.evals.overcluster",
    "unsupervised_segmentation": "densewalk.evals.unsupervised_segmentation",
}


# -- runs ------------------------------------------------------------------------------------------------------------


def run(spec: dict[str, Any], init: Path | None, receipts: Sequence[Path], state: Path, out: Path, execution: Execution) -> None:
    """Make one run's backbone: train it, or for a baseline take it over.

    Args:
        spec: `Study.run_spec`.
        init: the initial backbone's file, unless it is random.
        receipts: of the prepared data, in the specification's order.
        state: folder of the resumable state. out: folder of the results.
    """
    backbone = initial_backbone(spec, init)
    loaded = str(backbone.report) if backbone.report else None
    if spec["method"] == "none":
        hand_on(backbone, spec, out, training=None, loaded=loaded)
        return
    if execution.tensorboard:
        require_tensorboard()
    sources = [source for path, name in zip(receipts, spec["data"], strict=True) for source in read_sources(path, name)]
    inputs = {str(path): file_sha256(path) for path in [*receipts, *([init] if init else [])]}
    device = distributed.local_device(execution.device)
    with distributed.process_group(device):
        if distributed.rank() > 0:
            train(spec, backbone, sources, State(state, inputs), execution, device)
            return
        with State(state, inputs) as held:
            method, data, trained = train(spec, backbone, sources, held, execution, device)
            training = {
                "steps": trained.steps,
                "samples_seen": trained.samples,
                **trained.cost.record(),
                "processes": distributed.world_size(),
                "device": str(device),
                "execution": execution.model_dump(mode="json"),
            }
            draw(method, data, out / "training")
            loop.keep_curves(held.folder, out, tensorboard=execution.tensorboard)
            hand_on(method.export(), spec, out, training, loaded)


def initial_backbone(spec: dict[str, Any], init: Path | None) -> Backbone:
    """Random weights of the run's seed, or the given file's."""
    if spec["init"]["kind"] == "random":
        return create(spec["arch"], seed=spec["seed"])
    assert init is not None
    return read_backbone(spec["init"], spec["arch"], init)


def read_backbone(described: dict[str, Any], arch: str, file: Path) -> Backbone:
    """A checkpoint's or a run's backbone.

    Raises:
        UserError: the file is missing, has another checksum, or does not fit the architecture.
    """
    if not file.is_file():
        url = described.get("url")
        todo = f"`densewalk fetch` where there is a network, or download {url}" if url else "put it there or correct `file`"
        raise UserError(f"checkpoint {file} does not exist", todo=todo)
    expected = described.get("sha256")
    if expected and (found := file_sha256(file)) != expected:
        raise UserError(f"{file} has sha256 {found}, expected {expected}", todo="download it again")
    # a run's own export knows its architecture, which NeCo may have changed by dropping the registers
    own = None if described["kind"] == "run" else arch
    backbone = load(file, own, key=described.get("key"), interpolation=described.get("interpolation"))
    log.info("%s", backbone.report)
    return backbone


def read_sources(receipt: Path, name: str) -> list[Source]:
    """A prepared data set by its receipt; for a curation, what is kept of each that it chose from."""
    content = read_json(receipt)
    if content["kind"] == "curation":
        return [Source(n, r["kind"], Path(r["path"]), r) for n, r in content["sources"].items() if r["kept"]]
    return [Source(name=name, kind=content["kind"], path=Path(content["path"]), receipt=content)]


def train(
    spec: dict[str, Any], backbone: Backbone, sources: Sequence[Source], state: State, execution: Execution, device: torch.device
) -> tuple[Method, "Dataset[Any]", loop.Trained]:
    """Build the method and train it to the end; the method, the data set and what was spent."""
    settings = parse_training(spec["method"], spec["settings"])
    parts = execution.parts_of(spec["run"])
    if obstacle := settings.obstacle_to_parts(parts, distributed.world_size()):
        raise UserError(obstacle, todo="correct execution.accumulate")
    module, name = METHODS[spec["method"]]
    kind = getattr(importlib.import_module(module), name)
    data = kind.dataset(settings, sources)
    total, per_epoch = settings.total_steps(len(data))
    log.info("%s, seed %d: %d samples, %d steps of batch %d", spec["run"], spec["seed"], len(data), total, settings.batch_size)
    if distributed.rank() == 0:  # for `densewalk status`
        write_json(state.folder / "plan.json", {"steps": total, "gpus": distributed.world_size() if device.type == "cuda" else 0})
    torch.manual_seed(spec["seed"])
    method = kind(settings, backbone, total, per_epoch, spec["seed"])
    method.diagnostics = state.folder
    compiled = CompiledBlocks() if execution.compile else None
    for part in method.modules():
        if isinstance(part, Backbone):
            part.gradient_checkpointing = execution.gradient_checkpointing
            part.through = compiled or part.through
    trained = loop.train(
        method,
        data,
        batch_size=settings.batch_size,
        seed=spec["seed"],
        state=state,
        execution=execution,
        device=device,
        parts=parts,
    )
    return method, data, trained


def draw(method: Method, data: "Dataset[Any]", folder: Path) -> None:
    """The method's pictures of what it has learnt, in place of those of an earlier training."""
    if folder.is_dir():
        shutil.rmtree(folder)
    with torch.no_grad():
        method.eval().pictures(data, folder)


def hand_on(backbone: Backbone, spec: dict[str, Any], out: Path, training: dict[str, Any] | None, loaded: str | None) -> None:
    """Write the backbone with its card and record; the backbone comes last, so that its existence means all is there.

    Args:
        loaded: what was taken from the initial backbone's file.
    """
    sha = config_hash(spec)
    facts = record()
    compat = parse_training(spec["method"], spec["settings"]).deviations if "settings" in spec else ""
    init = spec["init"].get("name", "random weights")
    made = {"config_hash": sha, "arch": backbone.arch.name, "compat": compat, "spec": spec, "training": training, "loaded": loaded}
    write_json(out / "run.json", {**made, **facts})
    described = {"run": spec["run"], "seed": spec["seed"], "method": spec["method"], "compat": compat or "-", "init": init}
    data = ", ".join(spec.get("data", {})) or "no data"
    known = {"data": data, "config_hash": sha, "commit": facts["commit"], "loaded": f"\nInitial weights: {loaded}.\n" if loaded else ""}
    write_card(backbone, out / "card.md", {**described, **known})
    export_backbone(backbone, out / "backbone.safetensors", run=f"{spec['run']}-s{spec['seed']}", config_hash=sha)
    log.info("wrote %s", out / "backbone.safetensors")


# -- curation --------------------------------------------------------------------------------------------------------


def curate(spec: dict[str, Any], backbone: Path, receipts: Sequence[Path], out: Path, execution: Execution) -> None:
    """Choose what runs are to be trained on.

    Args:
        spec: `Study.curation_spec`.
        backbone: what compares pictures. receipts: of the data, in the specification's order.
        out: the receipt; the list of all pictures and the sheet lie beside it.
    """
    network = read_backbone(spec["backbone"], spec["arch"], backbone).eval().to(distributed.local_device(execution.device))
    sources = [source for path, name in zip(receipts, spec["data"], strict=True) for source in read_sources(path, name)]
    cls = feature_cache(execution).around(network.cls, f"cls {file_sha256(backbone)} {spec['backbone'].get('key')}")
    choose(CurationSettings.model_validate(spec["settings"]), sources, network, cls, out, workers=execution.workers)


def feature_cache(execution: Execution) -> FeatureCache:
    """The folder of features that jobs share."""
    return FeatureCache(Path(os.environ.get("DENSEWALK_CACHE", "results/cache")), int(execution.cache_gib * 2**30))


# -- pictures --------------------------------------------------------------------------------------------------------


def features(
    spec: dict[str, Any], init: Path | None, backbone: Path, receipts: Sequence[Path], settings: PictureSettings, out: Path, device: str
) -> None:
    """Draw what one run's backbone makes of a few pictures, beside what it was trained from.

    Args:
        spec: `Study.run_spec`. init: as in `run`. receipts: of the data whose pictures are shown.
    """
    from densewalk.gallery import draw_features

    sources = [source for path in receipts for source in read_sources(path, path.stem)]
    where = distributed.local_device(device)
    before = initial_backbone(spec, init).eval().to(where) if spec["method"] != "none" else None
    draw_features(load(backbone).eval().to(where), before, sources, settings, out)


# -- evaluations -----------------------------------------------------------------------------------------------------


def evaluate(spec: dict[str, Any], backbone: Path, state: Path, out: Path, execution: Execution) -> None:
    """Evaluate one backbone by one protocol and write the result record `out`.

    Args:
        spec: `Study.evaluation_spec`.
        state: folder of the resumable state.
    """
    settings = parse_evaluation(spec["protocol"], spec["settings"])
    if execution.tensorboard:
        require_tensorboard()
    run_record = read_json(backbone.with_name("run.json"))
    module = importlib.import_module(EVALUATIONS[spec["protocol"]])
    device = distributed.local_device(execution.device)
    with State(state, {"backbone": file_sha256(backbone)}), metered(state / "cost.json", device) as meter:
        job = Job(out.with_suffix(""), state, spec["seed"], str(device), execution.workers, feature_cache(execution), execution.tensorboard)
        result = module.evaluate(settings, backbone, job)
    require_metrics(result, settings.METRICS)
    content = {
        "run": spec["run"],
        "seed": spec["seed"],
        "method": run_record["spec"]["method"],
        "init": run_record["spec"]["init"].get("name", "random"),
        "init_kind": run_record["spec"]["init"]["kind"],
        "init_seed": run_record["spec"]["init"].get("seed"),
        "arch": run_record["arch"],
        "compat": run_record["compat"],
        "labels": spec["labels"],
        "task": settings.TASK,
        "evaluation": spec["evaluation"],
        "dataset": settings.dataset,
        "protocol": settings.protocol,
        "published_protocol": settings.published_protocol,
        "published_metrics": settings.PUBLISHED_METRICS,
        "version": settings.VERSION,
        "metrics": {name: None if math.isnan(value) else value for name, value in result.metrics.items()},
        "n": result.n,
        "unit": result.unit,
        "details": result.details,
        "config_hash": config_hash(spec),
        "run_hash": spec["run_hash"],
        "device": str(device),
        **meter.total().record(),
        "training": run_record["training"],
        "spec": spec,
        **record(),
    }
    write_json(out, content)
    log.info("%s", ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items()))


def require_metrics(result: Result, promised: dict[str, str]) -> None:
    """An evaluation delivers the metrics it promises: a column must not vanish from a table unseen."""
    if set(result.metrics) != set(promised):
        raise AssertionError(f"metrics {sorted(result.metrics)} instead of {sorted(promised)}")
