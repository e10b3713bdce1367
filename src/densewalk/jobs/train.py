"""Make one run's backbone: train it, or for a baseline take it over.

results/{run}/s{seed}/backbone.safetensors, run.json, card.md, metrics.jsonl, training/*.png, tensorboard/ (if asked for)
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from densewalk.core import distributed, provenance
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, file_sha256, file_stamp
from densewalk.core.progress import log
from densewalk.core.provenance import UNKNOWN, Provenance
from densewalk.core.typed_files import write_model
from densewalk.data.contents import contents_of
from densewalk.data.fingerprint import fingerprint
from densewalk.data.receipts import CuratedReceipt, VideoReceipt, read_receipt
from densewalk.data.sources import Source, stage_source
from densewalk.jobs.inputs import initial_backbone, make_method, read_data, read_teachers, require_trainable
from densewalk.jobs.length import planned_length
from densewalk.models.architecture import shape_of
from densewalk.models.backbone import Backbone
from densewalk.models.export import export_backbone, write_card
from densewalk.models.interface import Network
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.results.records import FileRecord, InputContents, MadeRun, RunRecord, TrainingRecord
from densewalk.study.registry import method_class
from densewalk.study.specs import RunSpec
from densewalk.training import learning_curve, loop
from densewalk.training.execution import Execution
from densewalk.training.method import Method
from densewalk.training.progress_files import PLAN, PLANNED_LENGTH, How, PlannedLength, TrainingPlan
from densewalk.training.settings import TrainingSettings
from densewalk.training.state import State
from densewalk.training.tensorboard import require_tensorboard


@dataclass(frozen=True)
class Inputs:
    """What a run was made from.

    files: the initial backbone and the receipts, by path. data: fingerprints of the folders of images, by path. code: of this process.
    loaded: what was taken from the initial backbone's file. contents: of the initial backbone and of the data. choices: what curations
    keep of these.
    """

    files: dict[str, FileRecord]
    data: dict[str, str]
    code: Provenance
    loaded: str | None
    contents: InputContents
    choices: dict[str, str]

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of all that the training's state depends on: contents, whatever their files are called."""
        init = {} if self.contents.init is None else {"initial backbone": self.contents.init}
        data, teachers, named = (
            {f"{kind} {number}": content for number, content in enumerate(contents)}
            for kind, contents in (("data", self.contents.data), ("teacher", self.contents.teachers), ("file", self.contents.files))
        )
        return init | data | self.choices | teachers | named

    def former_fingerprints(self) -> dict[str, str]:
        """The same as earlier versions recorded it, by path."""
        return {path: file.sha256 for path, file in self.files.items()} | {f"folder {name}": value for name, value in self.data.items()}


def make_backbone(
    spec: RunSpec,
    init: Path | None,
    receipts: Sequence[Path],
    state: Path,
    out: Path,
    execution: Execution,
    *,
    teachers: Sequence[Path] = (),
) -> None:
    """Make one run's backbone: train it, change it, or for a baseline take it over.

    Args:
        init: file of the initial backbone, unless it is random. receipts: of the prepared data, in the specification's order.
        state: folder of the resumable state. out: folder of the results. teachers: files of the networks that it learns from, in order.
    """
    files = read_files([init] if init and init.is_file() else [])  # `initial_backbone` says what to do about one that is not there
    of_init = files[str(init)].sha256 if str(init) in files else None
    network = initial_backbone(spec, init)
    loaded = str(network.report) if network.report else None
    if spec.settings is not None and isinstance(network, Backbone):
        network.set_motion_decoder(None)  # another method's: what changes the features would leave it as it was
    if not isinstance(spec.settings, TrainingSettings):
        if spec.settings is not None:
            network = method_class(spec.method)(spec.settings, network)
        export_run(network, spec, out, None, Inputs(files, {}, provenance.current(), loaded, InputContents(init=of_init, data=[]), {}))
        return
    backbone = require_trainable(network, spec.method)
    if execution.tensorboard:
        require_tensorboard()
    sources = read_data(receipts, spec.data or {})
    taught_by = read_files([file for file in teachers if file.is_file()])
    networks = read_teachers(spec, teachers)
    named = read_files(named_files(spec))
    files = read_files(receipts) | files | taught_by | named
    contents = input_contents(of_init, receipts, *([file.sha256 for file in read.values()] for read in (taught_by, named)))
    inputs = Inputs(files, folder_fingerprints(sources), provenance.current(), loaded, contents, choices(sources))
    for source in sources:
        stage_source(source)
    device = distributed.local_device(execution.device)
    with distributed.process_group(device):
        length = planned_length(spec, backbone, sources, contents, state, execution, device, networks)
        held = open_state(state, inputs, length, execution, device)
        if distributed.rank() > 0:
            train(spec, backbone, sources, held, execution, device, networks, length)
            return
        with held:
            method, data, trained = train(spec, backbone, sources, held, execution, device, networks, length)
            training = training_record(spec, spec.settings, trained, held, length)
            draw_images(method, data, out / "training")
            learning_curve.copy_learning_curve(held.folder, out, tensorboard=execution.tensorboard)
            export_run(method.export(), spec, out, training, inputs)


def open_state(state: Path, inputs: Inputs, length: PlannedLength | None, execution: Execution, device: torch.device) -> State:
    """The resumable state, not yet held. The steps of a measured budget are one of its inputs: schedules of another length are no part of
    the same training."""
    how = How(device=str(device), processes=distributed.world_size(), execution=execution.model_dump(mode="json"))
    if length is not None:
        return State(state, inputs.fingerprints() | {"steps": str(length.steps)}, how=how)
    former, newer = inputs.former_fingerprints(), frozenset(f"folder {name}" for name in inputs.data)
    return State(state, inputs.fingerprints(), how=how, former=former, newer=newer)


def training_record(
    spec: RunSpec, settings: TrainingSettings, trained: loop.Trained, held: State, length: PlannedLength | None
) -> TrainingRecord:
    """What a finished training was."""
    shape = shape_of(spec.arch)
    return TrainingRecord(
        steps=trained.steps,
        samples_seen=trained.samples,
        samples_unit=settings.SAMPLES,
        **trained.cost.record(),  # type: ignore[arg-type]
        **held.made[-1].model_dump(include={"device", "processes", "execution"}),
        made=held.made,
        teraflop=None if shape is None else trained.steps * settings.step_work(shape).flops / 1e12,
        length=length,
    )


def named_files(spec: RunSpec) -> list[Path]:
    """The files that the settings name.

    Raises:
        UserError: one is not there.
    """
    paths = [Path(path) for path in spec.settings.files()] if spec.settings else []
    for path in paths:
        if not path.is_file():
            raise UserError(f"file {path} of run {spec.run} does not exist", todo="put it there, or correct the run's settings")
    return paths


def input_contents(init: str | None, receipts: Sequence[Path], teachers: list[str], files: list[str]) -> InputContents:
    """By content, what a training is made from. init, teachers: sha256 of the backbones. files: of those that the settings name."""
    read = [read_receipt(path) for path in receipts]
    return InputContents(
        init=init,
        data=[content for receipt in read for content in contents_of(receipt)],
        curated=[r.backbone_sha256 for r in read if isinstance(r, CuratedReceipt) and r.backbone_sha256 is not None],
        teachers=teachers,
        files=files,
    )


def read_files(paths: Sequence[Path]) -> dict[str, FileRecord]:
    """The records of files that are about to be read."""
    return {str(path): FileRecord(sha256=file_sha256(path), stamp=file_stamp(path)) for path in paths}


def choices(sources: Sequence[Source]) -> dict[str, str]:
    """Fingerprints of what curations keep."""
    kept = {number: getattr(source.receipt, "kept", None) for number, source in enumerate(sources)}
    return {f"kept {number}": config_hash(chosen) for number, chosen in kept.items() if chosen is not None}


def folder_fingerprints(sources: Sequence[Source]) -> dict[str, str]:
    """Fingerprints of the folders of images, whose receipts know names only; by names and sizes, which copying does not change."""
    paths = [source.receipt.path for source in sources if not isinstance(source.receipt, VideoReceipt)]
    return {path: fingerprint([path], sizes_only=True).sha256 for path in paths}


def train(
    spec: RunSpec,
    backbone: Backbone,
    sources: Sequence[Source],
    state: State,
    execution: Execution,
    device: torch.device,
    teachers: Sequence[Network] = (),
    length: PlannedLength | None = None,
) -> tuple[Method, "Dataset[Any]", loop.Trained]:
    """Build the method and train it to the end; the method, the data set and what was spent. length: of a measured budget."""
    assert isinstance(spec.settings, TrainingSettings)
    settings, parts = spec.settings, execution.parts_of(spec.run)
    if obstacle := settings.obstacle_to_parts(parts, distributed.world_size()):
        raise UserError(obstacle, todo="correct execution.accumulate")
    if length is not None:
        settings = settings.of_steps(length.steps)
    data = method_class(spec.method).dataset(settings, sources)
    total, _ = settings.total_steps(len(data))
    log.info("%s, seed %d: %d samples, %d steps of batch %d", spec.run, spec.seed, len(data), total, settings.batch_size)
    if distributed.rank() == 0:
        if length is not None:
            write_model(state.folder / PLANNED_LENGTH, length)
        gpus = distributed.world_size() if device.type == "cuda" else 0
        write_model(state.folder / PLAN, TrainingPlan(steps=total, gpus=gpus))  # for `densewalk status`
    method = make_method(spec, settings, backbone, len(data), execution, teachers)
    method.diagnostics = state.folder
    with deterministic_kernels(execution.deterministic, device):
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
    return trained.method, data, trained


def draw_images(method: Method, data: "Dataset[Any]", folder: Path) -> None:
    """Draw the method's images of what it has learned, in place of those of an earlier training."""
    if folder.is_dir():
        shutil.rmtree(folder)
    with torch.no_grad():
        method.eval().pictures(data, folder)


def export_run(backbone: Network, spec: RunSpec, out: Path, training: TrainingRecord | None, inputs: Inputs) -> None:
    """Write the backbone with its card and record; the backbone comes last, so that its existence means all is there."""
    compat = spec.settings.deviations if spec.settings else ""
    made = MadeRun.model_validate(spec.model_dump(mode="json"))
    maker: Provenance = training.made[-1] if training and training.made else inputs.code
    code = {name: getattr(maker, name) for name in Provenance.model_fields}
    run = RunRecord(
        config_hash=spec.hash,
        arch=backbone.arch.name,
        compat=compat,
        version=spec.version,
        spec=made,
        training=training,
        loaded=inputs.loaded,
        files=inputs.files,
        data=inputs.data,
        contents=inputs.contents,
        exported=None if (maker.code, maker.versions) == (inputs.code.code, inputs.code.versions) else inputs.code,
        **code,
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
        "commit": run.code,
        "loaded": f"\nInitial weights: {inputs.loaded}.\n" if inputs.loaded else "",
        "made": "\n".join(f"- {line}" for line in origin_lines(run)),
    }
    write_card(backbone, out / "card.md", facts)
    export_backbone(backbone, out / "backbone.safetensors", run=f"{spec.run}-s{spec.seed}", config_hash=spec.hash)
    log.info("wrote %s", out / "backbone.safetensors")


def origin_lines(run: RunRecord) -> list[str]:
    """Sentences on what made the weights: steps, code, precision and device of each attempt, and the files that were read."""
    lines, first = [], 1
    for attempt in run.training.made if run.training else ():
        precision, version = attempt.execution.get("precision", "unknown precision"), attempt.versions.get("torch", UNKNOWN)
        how = f"torch {version}, {precision}, {attempt.processes} x {attempt.device}"
        lines.append(f"steps {first} to {attempt.until}: commit {attempt.code}, {how}")
        first = attempt.until + 1
    if run.exported:
        lines.append(f"written by commit {run.exported.code}, which did not train it")
    if not lines:
        lines.append(f"commit {run.code}, without a training")
    return lines + [f"read: `{path}`, sha256 {file.sha256}" for path, file in run.files.items()]
