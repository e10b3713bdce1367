"""Evaluate one backbone by one protocol.

results/{run}/s{seed}/{evaluation}.json, {evaluation}/...
"""

import math
from collections.abc import Iterable
from pathlib import Path

from densewalk.core import distributed
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import log
from densewalk.core.provenance import record
from densewalk.core.typed_files import write_model
from densewalk.evaluations.common.base import Job, Result
from densewalk.jobs.inputs import feature_cache
from densewalk.models.origin import RunBackbone
from densewalk.results.records import ResultRecord, read_run
from densewalk.study.registry import evaluation_module
from densewalk.study.specs import EvaluationSpec
from densewalk.training.cost import metered
from densewalk.training.execution import Execution
from densewalk.training.state import State
from densewalk.training.tensorboard import require_tensorboard


def evaluate(spec: EvaluationSpec, backbone: Path, state: Path, out: Path, execution: Execution) -> None:
    """Evaluate one backbone by one protocol; `state` is the folder of the resumable state, `out` the result record."""
    if execution.tensorboard:
        require_tensorboard()
    made = read_run(backbone.with_name("run.json"))
    device = distributed.local_device(execution.device)
    with State(state, {"backbone": file_sha256(backbone)}), metered(state / "cost.json", device) as meter:
        job = Job(out.with_suffix(""), state, spec.seed, str(device), execution.workers, feature_cache(execution), execution.tensorboard)
        result = evaluation_module(spec.protocol).evaluate(spec.settings, backbone, job)
    settings, init = spec.settings, made.spec.init
    require_metrics(result, settings.METRICS)
    found = ResultRecord(
        run=spec.run,
        seed=spec.seed,
        method=made.spec.method,
        init=init.name,
        init_kind=init.kind,
        init_seed=init.seed if isinstance(init, RunBackbone) else None,
        arch=made.arch,
        compat=made.compat,
        method_version=made.version,
        labels=spec.labels,
        task=settings.TABLE,
        evaluation=spec.evaluation,
        dataset=settings.dataset,
        protocol=settings.protocol,
        published_protocol=settings.published_protocol,
        published_metrics=settings.PUBLISHED_METRICS,
        version=spec.version,
        metrics={name: None if math.isnan(value) else value for name, value in result.metrics.items()},
        n=result.n,
        unit=result.unit,
        details=result.details,
        config_hash=spec.hash,
        run_hash=spec.run_hash,
        device=str(device),
        **meter.total().record(),  # type: ignore[arg-type]
        training=made.training,
        spec=spec.model_dump(mode="json"),
        **record(),
    )
    write_model(out, found)
    log.info("%s", ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items()))


def require_metrics(result: Result, promised: Iterable[str]) -> None:
    """Require the metrics that an evaluation promises: a column must not vanish from a table unseen."""
    if set(result.metrics) != set(promised):
        raise AssertionError(f"metrics {sorted(result.metrics)} instead of {sorted(promised)}")
