"""Make one run's backbone: train it, or for a baseline take it over.

results/{run}/s{seed}/backbone.safetensors, run.json, card.md, metrics.jsonl, training/*.png, tensorboard/ (if asked for)
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import log
from densewalk.core.provenance import record
from densewalk.core.typed_files import write_model
from densewalk.data.sources import Source
from densewalk.jobs.inputs import initial_backbone, read_data
from densewalk.models.backbone import Backbone
from densewalk.models.blocks import CompiledBlocks
from densewalk.models.export import export_backbone, write_card
from densewalk.results.records import MadeRun, RunRecord, TrainingRecord
from densewalk.study.registry import method_class
from densewalk.study.specs import RunSpec
from densewalk.training import learning_curve, loop
from densewalk.training.execution import Execution
from densewalk.training.method import Method
from densewalk.training.progress_files import PLAN, TrainingPlan
from densewalk.training.state import State
from densewalk.training.tensorboard import require_tensorboard


def make_backbone(spec: RunSpec, init: Path | None, receipts: Sequence[Path], state: Path, out: Path, execution: Execution) -> None:
    """Make one run's backbone: train it, or for a baseline take it over.

    Args:
        init: file of the initial backbone, unless it is random. receipts: of the prepared data, in the specification's order.
        state: folder of the resumable state. out: folder of the results.
    """
    backbone = initial_backbone(spec, init)
    loaded = str(backbone.report) if backbone.report else None
    if spec.settings is None:
        export_run(backbone, spec, out, training=None, loaded=loaded)
        return
    if execution.tensorboard:
        require_tensorboard()
    sources = read_data(receipts, spec.data or {})
    inputs = {str(path): file_sha256(path) for path in [*receipts, *([init] if init else [])]}
    device = distributed.local_device(execution.device)
    with distributed.process_group(device):
        if distributed.rank() > 0:
            train(spec, backbone, sources, State(state, inputs), execution, device)
            return
        with State(state, inputs) as held:
            method, data, trained = train(spec, backbone, sources, held, execution, device)
            training = TrainingRecord(
                steps=trained.steps,
                samples_seen=trained.samples,
                **trained.cost.record(),  # type: ignore[arg-type]
                processes=distributed.world_size(),
                device=str(device),
                execution=execution.model_dump(mode="json"),
            )
            draw_images(method, data, out / "training")
            learning_curve.copy_learning_curve(held.folder, out, tensorboard=execution.tensorboard)
            export_run(method.export(), spec, out, training, loaded)


def train(
    spec: RunSpec, backbone: Backbone, sources: Sequence[Source], state: State, execution: Execution, device: torch.device
) -> tuple[Method, "Dataset[Any]", loop.Trained]:
    """Build the method and train it to the end; the method, the data set and what was spent."""
    assert spec.settings is not None
    settings, parts = spec.settings, execution.parts_of(spec.run)
    if obstacle := settings.obstacle_to_parts(parts, distributed.world_size()):
        raise UserError(obstacle, todo="correct execution.accumulate")
    kind = method_class(spec.method)
    data = kind.dataset(settings, sources)
    total, per_epoch = settings.total_steps(len(data))
    log.info("%s, seed %d: %d samples, %d steps of batch %d", spec.run, spec.seed, len(data), total, settings.batch_size)
    if distributed.rank() == 0:  # for `densewalk status`
        gpus = distributed.world_size() if device.type == "cuda" else 0
        write_model(state.folder / PLAN, TrainingPlan(steps=total, gpus=gpus))
    torch.manual_seed(spec.seed)
    method = kind(settings, backbone, total, per_epoch, spec.seed)
    method.diagnostics = state.folder
    compiled = CompiledBlocks() if execution.compile else None
    for part in method.modules():
        if isinstance(part, Backbone):
            part.gradient_checkpointing = execution.gradient_checkpointing
            part.run_blocks = compiled or part.run_blocks
    trained = loop.train(
        method,
        data,
        batch_size=settings.batch_size,
        seed=spec.seed,
        state=state,
        execution=execution,
        device=device,
        parts=parts,
    )
    return method, data, trained


def draw_images(method: Method, data: "Dataset[Any]", folder: Path) -> None:
    """Draw the method's images of what it has learned, in place of those of an earlier training."""
    if folder.is_dir():
        shutil.rmtree(folder)
    with torch.no_grad():
        method.eval().pictures(data, folder)


def export_run(backbone: Backbone, spec: RunSpec, out: Path, training: TrainingRecord | None, loaded: str | None) -> None:
    """Write the backbone with its card and record; the backbone comes last, so that its existence means all is there.

    Args:
        loaded: what was taken from the initial backbone's file.
    """
    compat = spec.settings.deviations if spec.settings else ""
    made = MadeRun.model_validate(spec.model_dump(mode="json"))
    run = RunRecord(
        config_hash=spec.hash,
        arch=backbone.arch.name,
        compat=compat,
        version=spec.version,
        spec=made,
        training=training,
        loaded=loaded,
        **record(),
    )
    write_model(out / "run.json", run)
    facts = {
        "run": spec.run,
        "seed": spec.seed,
        "method": spec.method,
        "compat": compat or "-",
        "init": "random weights" if spec.init.kind == "random" else spec.init.name,
        "data": ", ".join(spec.data or {}) or "no data",
        "config_hash": spec.hash,
        "commit": run.commit,
        "loaded": f"\nInitial weights: {loaded}.\n" if loaded else "",
    }
    write_card(backbone, out / "card.md", facts)
    export_backbone(backbone, out / "backbone.safetensors", run=f"{spec.run}-s{spec.seed}", config_hash=spec.hash)
    log.info("wrote %s", out / "backbone.safetensors")
