"""The resumable state of a job.

results/state/{run}-s{seed}-{hash}/
    .lock                 held by the process that trains
    inputs.json           fingerprints of what the job was started with
    plan.json             steps in all, and on how many GPUs
    step-00001200.pt      networks, optimizer, step          (newest two are kept)
    step-00001200.json    its sha256: a file that does not match is ignored
    metrics.jsonl         one line per logged step
    cost.json             time, memory and energy spent up to the newest checkpoint
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, read_json, write_json
from densewalk.core.hashing import file_sha256
from densewalk.core.typed_files import write_model
from densewalk.training.progress_files import Seal, read_progress

log = logging.getLogger("densewalk")


class StateBusy(UserError):
    """Another process works in this folder, e.g. a job that a killed workflow left running."""


class State:
    """The resumable state of one job; a context manager that holds the folder's lock.

    inputs: name -> fingerprint of every input file. State from other inputs is removed.
    """

    def __init__(self, folder: str | Path, inputs: Mapping[str, str], *, keep: int = 2) -> None:
        self.folder, self.inputs, self.keep = Path(folder), dict(inputs), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> "State":
        holder = self.folder / ".holder"
        try:
            self.lock.acquire()
        except Timeout as error:
            who = holder.read_text() if holder.exists() else "unknown"
            raise StateBusy(
                f"{self.folder} is being worked in by {who}", todo="wait for that job or cancel it; what it writes is not lost"
            ) from error
        job = os.environ.get("SLURM_JOB_ID")
        for left in self.folder.rglob(".*.tmp*"):  # of a process that was killed while it wrote
            left.unlink()
        holder.write_text(f"process {os.getpid()} on {os.uname().nodename}" + (f", Slurm job {job}" if job else ""))
        self._remove_stale()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _remove_stale(self) -> None:
        record = self.folder / "inputs.json"
        if record.exists() and read_json(record) != self.inputs:
            log.info("inputs of %s have changed: its contents are not used", self.folder)
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in (".lock", ".holder"):
                    path.unlink()
        write_json(record, self.inputs)

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint and its checksum, remove the oldest; UserError if the disk is full."""
        path = self.folder / f"step-{step:08d}.pt"
        try:
            with atomic_write(path) as temporary:
                torch.save(dict(content), temporary)
                digest = file_sha256(temporary)
            write_model(path.with_suffix(".json"), Seal(step=step, sha256=digest))
        except (OSError, RuntimeError) as error:  # torch's writer turns the system's errors into RuntimeErrors
            free = shutil.disk_usage(self.folder).free / 2**20
            raise UserError(
                f"{path} cannot be written with {free:.0f} MiB free: {str(error).splitlines()[0]}",
                todo="make room and start again: the job goes on from the checkpoint before",
            ) from error
        sealed = [p for p in self._checkpoints() if p.with_suffix(".json").exists()]
        for old in {*self._checkpoints()} - {*sealed[: self.keep]}:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)

    def newest(self, map_location: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest intact checkpoint, or None."""
        for path in self._checkpoints():
            if _is_intact(path):
                return torch.load(path, map_location=map_location, weights_only=True)
            log.warning("%s is damaged or incomplete: falling back to the checkpoint before it", path)
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def _is_intact(checkpoint: Path) -> bool:
    try:
        return read_progress(checkpoint.with_suffix(".json"), Seal).sha256 == file_sha256(checkpoint)
    except UserError:  # the seal is missing or broken
        return False
