"""How jobs are run. Nothing here enters a hash, and changing it reruns nothing, but `budget`: it says how long trainings are."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from densewalk.core.resources import Resources
from densewalk.core.settings import Settings, is_null
from densewalk.training.budget.settings import Budget

Parts = Annotated[int, Field(ge=1)]
VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})", re.ASCII)


def _stage(folder: str) -> str:
    """A folder, absolute or beginning with a variable; ValueError for what only a shell would understand."""
    if not folder.startswith(("/", "$")):
        raise ValueError(f"{folder!r} is no absolute path, and does not begin with a variable such as $TMPDIR")
    if not folder.isprintable() or any(sign in VARIABLE.sub("", folder) for sign in "$`{}*?~"):
        raise ValueError(f"{folder!r} holds more than names and variables; allowed: $NAME and ${{NAME}}")
    return folder


class Execution(Settings):
    """Machine matters, the same for every job of a study."""

    budget: Budget | None = Field(default=None, exclude_if=is_null)
    """What each training may spend, whatever its preset says: of every run that gives no `epochs`, `steps` or `budget` itself. The one
    key here that enters the hashes of runs: `teraflop` as a number of steps, a measured unit as it is."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`."""
    workers: int = Field(default=4, ge=0, le=1024)
    """Data-loading processes per training process, or of an evaluation; 0 loads in the process itself. A job asks for a CPU for each of
    them, and starts no more than it has CPUs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast precision of training. Recorded with every result; the losses are computed in float32 either way."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: about a third more time, far less memory."""
    accumulate: Parts | dict[str, Parts] = 1
    """Parts in which a training process passes its share of the batch, one after the other, for one update: less memory, the same
    gradient. A number for all runs, or numbers by run (`{dora_venice: 4}`). Refused where a step looks across the samples of its batch."""
    accumulate_evaluations: dict[str, Parts] = {}
    """The same for evaluations that train on batches, by name (`{coco: 4}`). Refused where batch normalization looks across the batch."""
    deterministic: bool | None = None
    """Deterministic kernels while something is trained. By default on a CPU, where a resumed training equals an uninterrupted one bit for
    bit, and not on a GPU, where torch then replaces bilinear upsampling by something slow that needs many times the memory."""
    shard: bool = False
    """Each training process holds a part of the blocks' weights, gradients and optimizer states (FSDP2), of students and teachers: for
    ViT-L and larger networks. Checkpoints are those of an unsharded training. Not together with `compile`."""
    compile: bool = False
    """Compile the backbones' blocks with torch.compile. Where that fails, a line in the log says so and they run as they are."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """Time between two checkpoints of a training; at most this much is lost."""
    log_seconds: float = Field(default=30.0, gt=0)
    """Time between two progress lines in a log file."""
    metrics_every: int = Field(default=10, ge=1)
    """Steps between two points of the learning curve."""
    tensorboard: bool = False
    """Write the learning curves as TensorBoard's event files, too, next to each metrics.jsonl: `tensorboard --logdir results/state`."""
    stage: Annotated[str, AfterValidator(_stage)] | None = None
    """Folder on the disk of the node where a job runs, e.g. $TMPDIR: training copies of videos and archives of images are copied there
    once per node, and read there. Variables ($NAME, ${NAME}) are those of the job. Where a copy cannot be made, the data are read where
    they lie. null copies nothing."""
    cache_gib: float = Field(default=20.0, ge=0)
    """Size that the folder of shared features may have (results/cache, or $DENSEWALK_CACHE); 0 keeps none."""

    @model_validator(mode="after")
    def sharded_blocks_are_not_compiled(self) -> Self:
        """Refuse `shard` together with `compile`."""
        if self.shard and self.compile:
            raise ValueError("shard and compile cannot be combined; set one of them to false")
        return self

    def parts_of(self, run: str) -> int:
        """In how many parts a training process of this run passes its share of the batch."""
        return self.accumulate.get(run, 1) if isinstance(self.accumulate, dict) else self.accumulate

    def gpus_of(self, resources: Resources) -> int:
        """GPUs that a job asks for: none for a study on the CPU."""
        return 0 if self.device == "cpu" else resources.gpu

    def cpus_of(self, resources: Resources) -> int:
        """CPUs that a job asks for: a study on the CPU one, any other what its kind does, and one for each data-loading process."""
        return 1 if self.device == "cpu" else max(resources.threads, self.workers * resources.gpu)

    def within(self, cpus: int, processes: int = 1) -> Self:
        """The same with no more data-loading processes than CPUs of a node, which its training processes share."""
        return self.model_copy(update={"workers": min(self.workers, max(1, cpus // processes))})
