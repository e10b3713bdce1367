"""The inputs and outputs of every evaluation.

result = evaluate(settings, backbone_path, job)         # UserError: data are missing or damaged; the message names the file
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.data.fingerprint import fingerprint
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evidence.units import Units
from densewalk.models.feature_cache import Dense, FeatureCache
from densewalk.models.interface import Network
from densewalk.models.loading import load
from densewalk.training.progress_files import How
from densewalk.training.state import State


@dataclass(frozen=True)
class Job:
    """The place and means of one evaluation; none of it but the seed changes a number.

    out: folder for images and predictions beside the result. state: folder for resumable state, kept after a failure.
    cache: features that evaluations share. read, keep: the splits whose features are looked up there, and those whose features are
    written there; None: all. tensorboard: write event files of what is trained, too. data: fingerprint of the
    evaluation's files, which is computed where it is needed if it is not given. parts: in how many a process passes its share of a batch.
    deterministic: `execution.deterministic`. network: a network of the user's own, which no file holds; else it is the backbone file's.
    """

    out: Path
    state: Path
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    cache: FeatureCache | None = None
    read: Collection[str] | None = None
    keep: Collection[str] | None = None
    tensorboard: bool = False
    data: str = ""
    parts: int = 1
    deterministic: bool | None = None
    network: Network | None = None

    def cached(self, dense: Dense, backbone_path: Path, split: str, kind: str = "") -> Dense:
        """Share what `dense` computes with all evaluations of the same backbone file; `kind` names it if it is not `Network.dense`."""
        if self.cache is None or (self.read is not None and split not in self.read):
            return dense
        return self.cache.wrap(dense, file_sha256(backbone_path) + kind, keep=self.keep is None or split in self.keep)


@dataclass(frozen=True)
class Result:
    """metrics: name -> value, exactly the names of the settings' METRICS. n: scored units (images, objects), and which.

    units: what the metrics are made of, image by image or object by object (evidence/units.py), for intervals and for what a difference
    lives on; None where nobody has said it. Metrics without a value have no statistic.
    """

    metrics: dict[str, float]
    n: int
    unit: str
    details: dict[str, Any] = field(default_factory=dict)
    units: Units | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Require that the units give the metrics."""
        if self.units is not None:
            self.units.require_scores(self.metrics)


def training_state(settings: EvaluationSettings, backbone: Path, job: Job) -> State:
    """The state of what an evaluation trains: made from this backbone, these settings, this seed and these data, or not resumed."""
    inputs = {
        "backbone": file_sha256(backbone),
        "settings": config_hash([settings.model_dump(mode="json"), job.seed]),
        "data": job.data or fingerprint(settings.data_paths).sha256,
    }
    return State(job.state / "training", inputs, how=How(device=job.device, processes=distributed.world_size()))


def scratch(job: Job, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor in a file of its own in the job's folder of state, whose name is removed at once: it ends with the process."""
    job.state.mkdir(parents=True, exist_ok=True)
    path = job.state / "features.scratch"
    stored = torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype).view(shape)
    path.unlink()
    return stored


def load_network(settings: EvaluationSettings, path: Path, job: Job) -> Network:
    """The network of a file on the job's device, in evaluation mode; UserError if it cannot give what the settings need.

    A network of the user's own is tried out there: parts of it may have stayed behind on another device.
    """
    network = load(path) if job.network is None else job.network
    network.require_abilities(settings.needs, settings.TITLE)
    network.eval().to(job.device)
    network.probe()
    return network


def require_finite(features: Float[Tensor, " batch *dims"], names: Sequence[Any], backbone: str | Path) -> None:
    """Refuse features that are not finite, naming the first such image and the backbone's file: scores of them look like any other.

    Args:
        names: of the images, one each.
    """
    bad = ~features.flatten(1).isfinite().all(1)
    if bad.any():
        first = names[int(bad.nonzero()[0])]
        raise UserError(f"features of {first} are not finite; backbone: {backbone}", todo="check the run or checkpoint it comes from")


def fit_size(size: int, network: Network) -> int:
    """The largest side up to `size` that images may have, but at least one position; UserError if the network takes another one alone."""
    fitting = max(1, size // network.multiple) * network.multiple
    network.require_size(fitting, fitting)
    return fitting
