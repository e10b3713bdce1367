"""The resumable state of a job.

results/state/{run}-s{seed}-{hash}/
    .lock                 held by the process that trains
    inputs.json           fingerprints of what the job was started with
    plan.json             steps in all, and on how many GPUs
    step-00001200.pt      networks, optimizer, step          (newest two are kept)
    step-00001200.json    its sha256, its inputs and who made it: a file that does not match is ignored
    metrics.jsonl         one line per logged step
    cost.json             time, memory and energy spent up to the newest checkpoint

Nothing is resumed unless both the folder or the checkpoint's own seal say that it was made from the same inputs. The record of inputs
is removed before anything else that is stale and written after it: a process that is killed in between leaves nothing to resume.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from densewalk.core import provenance
from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, read_json, write_json
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.core.typed_files import write_model
from densewalk.training.processes.agreement import newest_common_step
from densewalk.training.progress_files import HOLDER, Attempt, How, Seal, joined, read_or_none, read_progress

log = logging.getLogger("densewalk")
INPUTS = "inputs.json"
OWN = (".lock", HOLDER)


class StateBusy(UserError):
    """Another process works in this folder, e.g. a job that a killed workflow left running."""


class State:
    """The resumable state of one job; a context manager that holds the folder's lock.

    inputs: name -> fingerprint of everything that the state depends on. State from other inputs is removed.
    former: the same inputs as earlier versions recorded them, so that their states are resumed, too; newer: names in it that still earlier
    ones do not record.
    how: steps are made from now on, for the record of who made the weights.
    """

    def __init__(
        self,
        folder: str | Path,
        inputs: Mapping[str, str],
        *,
        keep: int = 2,
        how: How | None = None,
        former: Mapping[str, str] | None = None,
        newer: frozenset[str] = frozenset(),
    ) -> None:
        self.folder, self.inputs, self.keep, self.how, self.newer = Path(folder), dict(inputs), keep, how or How(), newer
        self.former = self.inputs if former is None else dict(former)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock", timeout=0)
        self.made: tuple[Attempt, ...] = ()
        self.code = provenance.record()  # as the process begins: files may change while it runs

    def __enter__(self) -> "State":
        holder = self.folder / HOLDER
        try:
            self.lock.acquire()
        except Timeout as error:
            who = holder.read_text() if holder.exists() else "unknown"
            raise StateBusy(
                f"{self.folder} is being worked in by {who}", todo="wait for that job or cancel it; what it writes is not lost"
            ) from error
        try:
            for left in list(self.folder.rglob(".*.tmp*")):  # of a process that was killed while it wrote
                _remove(left)
            job = os.environ.get("SLURM_JOB_ID")
            with atomic_write(holder) as temporary:
                temporary.write_text(f"process {os.getpid()} on {os.uname().nodename}" + (f", Slurm job {job}" if job else ""))
            self._remove_stale()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / HOLDER).unlink(missing_ok=True)
        self.lock.release()

    @property
    def fingerprint(self) -> str:
        """Hash of the inputs, as seals hold it."""
        return config_hash(self.inputs)

    def _remove_stale(self) -> None:
        """Remove what was made from other inputs, or from nobody knows which; `inputs.json` goes first and comes last."""
        recorded = self._recorded()
        if recorded == self.inputs:
            return
        if not self._continues(recorded) and not (recorded is None and self._has_own_checkpoint()):
            left = [path for path in self.folder.iterdir() if path.name not in OWN]
            if left:
                reason = "its record of inputs is missing or damaged" if recorded is None else "its inputs have changed"
                log.info("%s is not used, since %s: the job starts from the beginning", self.folder, reason)
            for path in sorted(left, key=lambda p: p.name != INPUTS):
                _remove(path)
        elif recorded is not None:
            self._seal_again(config_hash(recorded))
        write_json(self.folder / INPUTS, self.inputs)

    def _seal_again(self, former: str) -> None:
        """Seal checkpoints by the inputs as they are recorded now, so that later changes of an earlier version's names do not count."""
        for path in self._checkpoints():
            seal = read_or_none(path.with_suffix(".json"), Seal)
            if seal is not None and seal.inputs in (None, former):
                write_model(path.with_suffix(".json"), seal.model_copy(update={"inputs": self.fingerprint}))

    def _recorded(self) -> dict[str, str] | None:
        """The recorded inputs; None if there is no record, or, with a warning, a damaged one."""
        path = self.folder / INPUTS
        if not path.exists():
            return None
        try:
            content = read_json(path)
        except UserError as error:
            log.warning("passed over: %s", error.found)
            return None
        if isinstance(content, dict) and bool(content) == bool(self.inputs) and all(isinstance(v, str) for v in content.values()):
            return content
        log.warning("passed over: %s is no record of a state's inputs", path)
        return None

    def _continues(self, recorded: Mapping[str, str] | None) -> bool:
        """True if the record is this job's, perhaps by a version that recorded less."""
        if recorded is None:
            return False
        return recorded == self.inputs or recorded == {k: v for k, v in self.former.items() if k in recorded or k not in self.newer}

    def _has_own_checkpoint(self) -> bool:
        seals = (read_or_none(path.with_suffix(".json"), Seal) for path in self._checkpoints())
        own = (self.fingerprint, config_hash(self.former))
        return any(seal is not None and seal.inputs in own for seal in seals)

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint and its seal, remove the oldest; UserError if the disk is full."""
        path = self._checkpoint(step)
        made = joined(self.made, Attempt(until=step, **self.how.model_dump(), **self.code))
        try:
            with atomic_write(path) as temporary:
                torch.save(dict(content), temporary)
                digest = file_sha256(temporary)
            write_model(path.with_suffix(".json"), Seal(step=step, sha256=digest, inputs=self.fingerprint, made=made))
        except (OSError, RuntimeError) as error:  # torch's writer turns the system's errors into RuntimeErrors
            free = shutil.disk_usage(self.folder).free / 2**20
            raise UserError(
                f"{path} cannot be written with {free:.0f} MiB free: {str(error).splitlines()[0]}",
                todo="make room and start again: the job goes on from the checkpoint before",
            ) from error
        self.made = made
        sealed = [p for p in self._checkpoints() if p.with_suffix(".json").exists()]
        for old in {*self._checkpoints()} - {*sealed[: self.keep]}:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)

    def newest(self, map_location: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest intact checkpoint that was made from these inputs, or None; `made` says by whom.

        Of several processes, all call it, and all get the newest one that each of them can read.

        Raises:
            UserError: some of the processes can read checkpoints, but all of them none.
        """
        step = newest_common_step(self._newest_step, self.folder)
        if step is None:
            return None
        path = self._checkpoint(step)
        self.made = read_progress(path.with_suffix(".json"), Seal).attempts
        return torch.load(path, map_location=map_location, weights_only=True)

    def _newest_step(self, most: int | None) -> int | None:
        """Step of the newest checkpoint, not above `most`, that is intact and was made from these inputs."""
        accepted = {self.fingerprint, config_hash(self.former), *([None] if self._continues(self._recorded()) else [])}
        for path in self._checkpoints():
            if most is not None and path.name > self._checkpoint(most).name:
                continue
            seal = _seal_of(path)
            if seal is None:
                log.warning("%s is damaged or incomplete: falling back to the checkpoint before it", path)
            elif seal.inputs not in accepted:
                log.warning("%s was made from other inputs: it is not used", path)
            else:
                return int(path.stem.removeprefix("step-"))
        return None

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def forget(folder: Path) -> None:
    """Remove what a state folder holds, so that its job starts from the beginning; StateBusy if somebody works in it."""
    with State(folder, {"start": "again"}):
        pass


def _seal_of(checkpoint: Path) -> Seal | None:
    """The checkpoint's seal; None if it is missing or damaged, or another file's."""
    seal = read_or_none(checkpoint.with_suffix(".json"), Seal)
    try:
        return seal if seal is not None and seal.sha256 == file_sha256(checkpoint) else None
    except OSError as error:
        log.warning("%s cannot be read: %s", checkpoint, error.strerror)
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
