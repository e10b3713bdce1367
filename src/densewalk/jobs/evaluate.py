"""Evaluate one backbone by one protocol.

results/{run}/s{seed}/{evaluation}.json, {evaluation}.units.npz, {evaluation}/...
"""

import math
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from densewalk.core import distributed, provenance
from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.core.machine import usable_workers
from densewalk.core.progress import log
from densewalk.core.typed_files import write_model
from densewalk.data.fingerprint import fingerprint
from densewalk.evaluations.common.base import Job, Result
from densewalk.evidence.units import units_path, write_units
from densewalk.jobs.inputs import feature_cache
from densewalk.models.origin import RunBackbone
from densewalk.results.records import ResultRecord, RunRecord, read_run
from densewalk.study.registry import evaluation_module
from densewalk.study.specs import EvaluationSpec
from densewalk.training.cost import metered
from densewalk.training.execution import Execution
from densewalk.training.progress_files import newest_seal
from densewalk.training.state import State
from densewalk.training.tensorboard import require_tensorboard

PATIENCE = timedelta(days=1)  # one process clusters or searches on the CPU while the others wait; one that ends is noticed at once


def evaluate(
    spec: EvaluationSpec,
    backbone: Path,
    state: Path,
    out: Path,
    execution: Execution,
    *,
    read: Collection[str] = (),
    keep: Collection[str] = (),
) -> None:
    """Evaluate one backbone by one protocol.

    Args:
        state: folder of the resumable state. out: the result record. read: splits whose features another job may have kept. keep: splits
            whose features another job will read. What this evaluation itself reads more than once is kept in any case.
    """
    again = {split for split, found in spec.settings.feature_reads().items() if found.passes > 1}
    if execution.tensorboard:
        require_tensorboard()
    made = read_run(backbone.with_name("run.json"))
    device, sha256 = distributed.local_device(execution.device), file_sha256(backbone)
    made_by, data = provenance.current(), fingerprint(spec.settings.data_paths)
    uses = {"read": {*read, *keep, *again}, "keep": {*keep, *again}}
    with distributed.process_group(device, patience=PATIENCE):
        first, held = distributed.rank() == 0, State(state, {"backbone": sha256})
        with held if first else nullcontext(), metered(state / "cost.json", device, goes_on=has_progress(state)) as meter:
            job = Job(
                out.with_suffix(""),
                state,
                spec.seed,
                str(device),
                usable_workers(execution.workers),
                feature_cache(execution),
                tensorboard=execution.tensorboard,
                data=data.sha256,
                parts=parts_of(spec, execution),
                deterministic=execution.deterministic,
                read=uses["read"],
                keep=uses["keep"],
            )
            result = evaluation_module(spec.protocol).evaluate(spec.settings, backbone, job)
        cost = meter.total()
    if not first:
        return
    head = newest_seal(state / "training")
    require_metrics(result, spec.settings.METRICS)
    attempts = head.attempts if head else ()
    facts = cost.record() | made_by.model_dump()
    found = make_record(spec, made, result, device=str(device), data=data, backbone_sha256=sha256, made=attempts, **facts)
    write_with_units(out, found, result)
    log.info("%s", ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items()))


def has_progress(state: Path) -> bool:
    """True if a head that was trained, or a part of it, is saved: evaluations save in folders of their state."""
    return state.is_dir() and any(path.is_dir() for path in state.iterdir())


def parts_of(spec: EvaluationSpec, execution: Execution) -> int:
    """In how many parts a process passes its share of a batch; UserError if it does not split so."""
    parts = execution.accumulate_evaluations.get(spec.evaluation, 1)
    if obstacle := spec.settings.obstacle_to_parts(parts, distributed.world_size()):
        raise UserError(obstacle, todo="correct execution.accumulate_evaluations or the number of GPUs")
    return parts


def write_with_units(out: Path, record: ResultRecord, result: Result) -> None:
    """Write the record, and before it what its numbers are made of: a record with a file of another attempt is never there."""
    if result.units is None:
        units_path(out).unlink(missing_ok=True)
    else:
        assert record.backbone_sha256 is not None
        hashes = {"config_hash": record.config_hash, "run_hash": record.run_hash, "backbone_sha256": record.backbone_sha256}
        write_units(out, result.units, **hashes)
    write_model(out, record)


def make_record(spec: EvaluationSpec, run: RunRecord, result: Result, **facts: Any) -> ResultRecord:
    """The record of a result.

    Args:
        run: of the backbone. facts: on how the result came about, by the record's fields.
    """
    settings, init = spec.settings, run.spec.init
    return ResultRecord(
        run=spec.run,
        seed=spec.seed,
        method=run.spec.method,
        init=init.name,
        init_kind=init.kind,
        init_seed=init.seed if isinstance(init, RunBackbone) else None,
        arch=run.arch,
        compat=run.compat,
        method_version=run.version,
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
        training=run.training,
        spec=spec.model_dump(mode="json"),
        **facts,
    )


def require_metrics(result: Result, promised: Iterable[str]) -> None:
    """Require the metrics that an evaluation promises: a column must not vanish from a table unseen."""
    if set(result.metrics) != set(promised):
        raise AssertionError(f"metrics {sorted(result.metrics)} instead of {sorted(promised)}")
