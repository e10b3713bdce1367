"""Start the fork server of a run of the workflow, and end it with the driver. Free of torch."""

import atexit
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from densewalk.cli.forkserver.protocol import ADDRESS, GPUS, LATER, OFF, THREADS, socket_name
from densewalk.study.registry import evaluation_folder

SERVER = [sys.executable, "-P", "-m", "densewalk.cli.forkserver.server"]  # -P: no module of the folder where the driver is
COMPILER = "torch._dynamo"  # torch's optimizers import it when they are made
TRAIN_HEADS = ("coco", "depth", "linear", "linear_segmentation", "segmentation", "stego")
TOOLBOXES = {"segmentation": "densewalk.evaluations.mmlab.segmentation", "coco": "densewalk.evaluations.mmlab.detection"}
LAST = {  # of rules whose jobs come late: they wait for others
    "features": ["densewalk.jobs.features", COMPILER],
    "table": ["densewalk.results.tables", "densewalk.results.gain"],
    "report": ["densewalk.results.page.page"],
}
# imported between jobs: the first job shall not wait for them
IMPORTED_LATER = (*TOOLBOXES.values(), COMPILER, *(module for modules in LAST.values() for module in modules))
WORTH = 2  # jobs: one alone imports what it needs as fast


@dataclass(frozen=True)
class ForkServer:
    """A server that was started."""

    address: str
    process: "subprocess.Popen[bytes]"

    def end(self) -> None:
        """End the server; the processes of jobs are their commands' and stay."""
        self.process.kill()
        self.process.wait()


def start_server(modules: Iterable[str]) -> ForkServer:
    """Start a server that imports these modules; requests may come at once, and wait until it has imported what all jobs need."""
    address = secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_name(address))
        listener.listen(128)
        process = subprocess.Popen(
            [*SERVER, str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=environment_of_jobs(os.environ),
            start_new_session=True,  # Ctrl-C is not for it
        )
    return ForkServer(address, process)


def modules_of(rules: Mapping[str, int]) -> list[str]:
    """Modules that the jobs of a run of the workflow use; none if a server is not worth it.

    Args:
        rules: name of a rule -> number of its jobs.

    Returns:
        Those that are imported before the first job, LATER, and those that are imported between jobs.
    """
    toolboxes = not has_gpu()
    found: dict[str, None] = {}
    served = 0
    for rule, count in rules.items():
        modules = _modules_of_rule(rule)
        served += count * bool(modules)
        if toolboxes or not TOOLBOXES.keys() & {module.split(".")[-2] for module in modules}:
            found |= dict.fromkeys(modules)
    later = [module for module in found if module in IMPORTED_LATER]
    return [*(module for module in found if module not in later), LATER, *later] if served >= WORTH else []


def has_gpu() -> bool:
    """True if this machine shows a GPU: the toolboxes touch it when they are imported, and what is forked after that cannot use it."""
    return any(f"/dev/{name}".startswith(GPUS) for name in os.listdir("/dev"))


def _modules_of_rule(rule: str) -> list[str]:
    kind, _, name = rule.partition("_")
    if kind == "evaluate":
        folder = evaluation_folder(name)
        toolbox = [TOOLBOXES[folder]] if folder in TOOLBOXES else []
        return [f"densewalk.evaluations.{folder}.evaluate", *toolbox, *([COMPILER] if folder in TRAIN_HEADS else [])]
    if kind == "train":
        return [f"densewalk.methods.{name}.method", COMPILER]
    return LAST.get(rule) or {"baseline": ["densewalk.jobs.train"], "curate": ["densewalk.jobs.curate"]}.get(rule, [])


def environment_of_jobs(own: Mapping[str, str]) -> dict[str, str]:
    """What Snakemake gives its jobs, with one thread: libraries start theirs when they are loaded, and a fork has none of them."""
    return {**own, **dict.fromkeys(THREADS, "1")}


def serve_jobs(rules: Mapping[str, int]) -> None:
    """Start a server for the jobs of this process, if it is worth it and the user has not switched it off; it ends with this process."""
    if os.environ.get(ADDRESS) == OFF:
        return
    os.environ.pop(ADDRESS, None)  # of another run of the workflow, which has started this one
    if modules := modules_of(rules):
        server = start_server(modules)
        atexit.register(server.end)
        os.environ[ADDRESS] = server.address
