"""Evaluate one backbone by one protocol.

results/{run}/s{seed}/{evaluation}.json, {evaluation}/...
"""

import importlib
import math
from pathlib import Path
from typing import Any

from densewalk.core import distributed
from densewalk.core.files import read_json, write_json
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.core.progress import log
from densewalk.core.provenance import record
from densewalk.evaluations.common.base import Job, Result
from densewalk.jobs.inputs import feature_cache
from densewalk.study.registry import parse_evaluation
from densewalk.training.cost import metered
from densewalk.training.execution import Execution
from densewalk.training.state import State
from densewalk.training.tensorboard import require_tensorboard

EVALUATIONS = {
    "ade20k_linear": "densewalk.evaluations.segmentation.evaluate",
    "ade20k_upernet": "densewalk.evaluations.segmentation.evaluate",
    "segmentation_linear": "densewalk.evaluations.segmentation.evaluate",
    "segmentation_upernet": "densewalk.evaluations.segmentation.evaluate",
    "coco": "densewalk.evaluations.coco.evaluate",
    "davis": "densewalk.evaluations.davis.evaluate",
    "incontext": "densewalk.evaluations.incontext.evaluate",
    "video_segmentation": "densewalk.evaluations.video_segmentation.evaluate",
    "knn": "densewalk.evaluations.knn.evaluate",
    "linear": "densewalk.evaluations.linear.evaluate",
    "discovery": "densewalk.evaluations.discovery.evaluate",
    "tracking": "densewalk.evaluations.tracking.evaluate",
    "linear_segmentation": "densewalk.evaluations.linear_segmentation.evaluate",
    "overcluster": "densewalk.evaluations.overcluster.evaluate",
    "unsupervised_segmentation": "densewalk.evaluations.unsupervised_segmentation.evaluate",
}


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
