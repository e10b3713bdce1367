"""Files that are complete as soon as they exist, and the resumable state of a job.

results/state/{run}-s{seed}-{hash}/
    .lock                 held by the process that trains
    inputs.json           fingerprints of what the job was started with
    plan.json             steps in all, and on how many GPUs
    step-00001200.pt      networks, optimiser, step          (newest two are kept)
    step-00001200.json    its sha256: a file that does not match is passed over
    metrics.jsonl         one line per logged step
    cost.json             time, memory and energy spent up to the newest checkpoint
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from densewalk.backbone import Architecture, Backbone
from densewalk.errors import UserError
from densewalk.provenance import file_sha256

log = logging.getLogger("densewalk")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes `path`'s place when the block ends well and is removed when it does not.

    The folder is made here, late on purpose: a workflow may have removed an empty one meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers keep what they write from everyone else
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN is refused, since no other reader would take it."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The file's content.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo="correct it, or remove it so that it is made again") from error
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path} is not JSON: {error}", todo="delete it, so that it is made again") from error


class StateBusy(UserError):
    """Another process is working in this state folder."""


class State:
    """The resumable state of one job. Use it as a context manager: the block holds the folder's lock.

    Args:
        inputs: name -> fingerprint of every input file. State that was made from other inputs is set aside, never resumed.

    Raises:
        StateBusy: the lock is held, for instance by a job that a killed workflow left behind.
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
        self._set_stale_aside()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _set_stale_aside(self) -> None:
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
        """Write a checkpoint, then its checksum, then remove the oldest ones.

        Raises:
            UserError: it cannot be written, for instance because the disk is full. The checkpoints before it are intact.
        """
        path = self.folder / f"step-{step:08d}.pt"
        try:
            with atomic_write(path) as temporary:
                torch.save(dict(content), temporary)
                digest = file_sha256(temporary)
            write_json(path.with_suffix(".json"), {"step": step, "sha256": digest})
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
            seal = path.with_suffix(".json")
            if seal.exists() and read_json(seal)["sha256"] == file_sha256(path):
                return torch.load(path, map_location=map_location, weights_only=True)
            log.warning("%s is damaged or incomplete: falling back to the checkpoint before it", path)
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


# -- what a run hands on ---------------------------------------------------------------------------------------------


def export_backbone(backbone: Backbone, path: str | Path, *, run: str, config_hash: str) -> None:
    """The network as safetensors with timm's key names; its metadata says all that loading it needs."""
    arch = backbone.arch
    weights = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in backbone.vit.state_dict().items()}
    metadata = {"format": "pt", "arch": arch.name, "interpolation": arch.interpolation, "run": run, "config_hash": config_hash}
    if arch.periods is not None:
        metadata["periods"] = json.dumps(arch.periods)
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in any, so that equal networks gave unequal files.

    A file is eight bytes with the length of its header, the header (JSON, filled up with spaces), and the tensors.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))


CARD = """---
library_name: timm
tags: [densewalk, {method}]
---
# {run} (seed {seed})

{arch} by method `{method}` (compat: {compat}) from {init}, on {data}. Configuration {config_hash}, commit {commit}.
{loaded}
```python
import timm, torch
from safetensors.torch import load_file
model = {constructor}
model.load_state_dict(load_file("backbone.safetensors"))
{periods}patch_tokens = model.forward_features(images)[:, model.num_prefix_tokens:]  # images normalised with ImageNet's mean and std
```

{positions}
`run.json` beside this file holds the whole configuration and what the run cost.
"""


def write_card(backbone: Backbone, path: str | Path, facts: Mapping[str, Any]) -> None:
    """The model card: what this is and the lines that load it."""
    a = backbone.arch
    periods = f"model.rope.periods.copy_(torch.tensor({list(a.periods)}))  # Meta's\n" if a.periods is not None else ""
    positions = (
        "Positions are rotary: any size will do."
        if a.rope
        else f"At other sizes than {a.image} px, position embeddings were resampled by rule `{a.interpolation}` here; timm's own rule is "
        "`antialias`."
    )
    text = CARD.format(constructor=_constructor(a), periods=periods, positions=positions, arch=a.name, **facts)
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _constructor(a: Architecture) -> str:
    """The expression that makes an architecture's network with timm alone."""
    shared = (
        f"img_size={a.image}, patch_size={a.patch}, embed_dim={a.dim}, depth={a.depth}, num_heads={a.heads}, num_classes=0, "
        "dynamic_img_size=True"
    )
    if a.rope:
        swiglu = ", swiglu_mlp=True, swiglu_align_to=8" if a.swiglu else ""
        rotary = "use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type='dinov3', rope_temperature=100.0, rope_rotate_half=True"
        norm = "norm_layer=lambda dim, **more: timm.layers.LayerNorm(dim, eps=1e-5, **more)"
        prefix = f"global_pool='token', init_values=1e-5, num_reg_tokens={a.registers}"
        return f"timm.models.eva.Eva({shared}, {prefix}{swiglu}, {rotary}, {norm})"
    scale = ", init_values=1e-5" if a.layer_scale else ""
    if a.swiglu:
        scale += f", mlp_ratio={2 * a.hidden + 0.5} / {a.dim}, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU"
    registers = f", reg_tokens={a.registers}, no_embed_class=True" if a.registers else ""
    return f"timm.models.VisionTransformer({shared}{scale}{registers})"
