"""A training started by torchrun: collectives of nccl, a signal that saves and stops it, and its resumption.

python -m benchmarks.gpu.processes FOLDER cuda      # what torchrun starts; writes FOLDER/found.json
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.report import Finding, Setting
from benchmarks.gpu.trainings import Training, dino
from torch import Tensor
from torch import distributed as dist

from densewalk.core import distributed
from densewalk.core.errors import Interrupted
from densewalk.methods.dino.method import Dino
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.state import State

STEPS, STOPPED_AFTER = 6, 3
LIMIT = 150  # seconds


def check(setting: Setting) -> Iterator[Finding]:
    """As many processes as there are GPUs, at most two; one in a rehearsal, which is as on a machine with one GPU."""
    count = min(2, max(1, torch.cuda.device_count()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*torchrun, "-m", "benchmarks.gpu.processes", str(setting.folder), setting.device.type]
    root = Path(__file__).resolve().parents[2]
    threads = {"OMP_NUM_THREADS": "1"} if setting.small else {}
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        timeout=None if setting.small else LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"torchrun ended with {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}\n{done.stderr[-4000:]}")
    found = json.loads((setting.folder / "found.json").read_text())
    title = f"{count} x {'nccl' if setting.device.type == 'cuda' else 'gloo'}"
    yield Finding(f"{title}: sum, gathering and objects are right: 1 is yes", found["collectives"], at_least=1)
    yield Finding(f"{title}: steps done when SIGUSR1 had stopped it", found["stopped"], STOPPED_AFTER, STOPPED_AFTER)
    yield Finding(f"{title}: weights of all processes equal: 1 is yes", found["agree"], at_least=1)
    # attention's backward pass adds in any order on a GPU, and AdamW makes much of gradients near zero
    yield Finding(f"{title}: resumed against uninterrupted weights, of their way", found["apart"], at_most=0 if setting.small else 0.05)


class Signaled(Dino):
    """DINO that the first process stops by a signal, as a scheduler does."""

    stops = False

    def after_update(self, step: int) -> None:
        """Send the signal to this process itself."""
        super().after_update(step)
        if self.stops and step + 1 == STOPPED_AFTER and distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def training_of(small: bool) -> Training:
    """What is trained."""
    if small:
        sizes: dict[str, Any] = {"global_size": 64, "local_size": 32, "out_dim": 64, "head_hidden": 32, "head_bottleneck": 16}
        training = dino("vit_nano_patch16", (96, 128), batch_size=4, local_crops=2, **sizes)
    else:
        training = dino("vit_small_patch16", batch_size=8, local_crops=2, out_dim=4096)
    return replace(training, kind=Signaled)


def train(folder: Path, device: torch.device, *, stops: bool = False) -> Tensor:
    """All weights after the training, flat; `Interrupted` if it stops."""
    small = device.type == "cpu"
    training = training_of(small)
    method = training.method()
    assert isinstance(method, Signaled)
    method.total_steps, method.stops = STEPS, stops
    execution = Execution(workers=0 if small else 2, checkpoint_minutes=60, metrics_every=1)
    size, state = training.settings.batch_size, State(folder, {"data": "noise"})
    with state if distributed.rank() == 0 else nullcontext(), deterministic_kernels(True, device):
        done = loop.train(method, training.data, batch_size=size, seed=0, state=state, execution=execution, device=device)
    return flat(done.method)


def flat(method: torch.nn.Module) -> Tensor:
    """All its tensors in one."""
    return torch.cat([x.detach().flatten().float().cpu() for x in method.state_dict().values()])


def collectives(device: torch.device) -> bool:
    """Sum, gathering of tensors and of objects, through the group that a training uses."""
    x = torch.full((5,), float(dist.get_rank() + 1), device=device)
    parts, objects = [torch.empty_like(x) for _ in range(dist.get_world_size())], [None] * dist.get_world_size()
    dist.all_gather(parts, x)
    dist.all_gather_object(objects, dist.get_rank())
    dist.all_reduce(x)
    ranks = range(dist.get_world_size())
    return objects == [*ranks] and all((parts[r] == r + 1).all() for r in ranks) and bool((x == sum(r + 1 for r in ranks)).all())


def main(folder: Path, device: torch.device) -> None:
    """Train without interruption, then with one; compare."""
    small = device.type == "cpu"
    if not dist.is_initialized():  # a single process: the same group, which a training does without
        if not small:
            torch.cuda.set_device(device)
        dist.init_process_group("gloo" if small else "cpu:gloo,cuda:nccl")
    right = collectives(device)
    expected = train(folder / "whole", device)
    stopped = 0
    try:
        train(folder / "stopped", device, stops=True)
    except Interrupted:
        stopped = max(int(path.stem.rsplit("-", 1)[1]) for path in (folder / "stopped").glob("step-*.pt"))
    found = train(folder / "stopped", device)
    others = distributed.all_objects(found.double().sum().item())
    if distributed.rank() == 0:
        start = flat(training_of(small).method())
        apart = ((found - expected).norm() / (expected - start).norm()).item()
        result = {"collectives": float(right), "stopped": stopped, "agree": float(len({*others}) == 1), "apart": apart}
        (folder / "found.json").write_text(json.dumps(result))
    dist.barrier()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    here = distributed.local_device(sys.argv[2])
    if here.type == "cpu":
        torch.set_num_threads(1)
    with distributed.process_group(here):
        main(Path(sys.argv[1]), here)
