"""What every evaluation takes and gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densewalk.feature_cache import Dense, FeatureCache
from densewalk.provenance import file_sha256


@dataclass(frozen=True)
class Job:
    """Where and how one evaluation runs; none of it changes a number.

    out: folder for pictures and predictions beside the result. state: folder for resumable state, kept after a failure.
    cache: features that evaluations share; none without it.
    """

    out: Path
    state: Path
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    cache: FeatureCache | None = None

    def cached(self, dense: Dense, backbone_path: Path, what: str = "") -> Dense:
        """`dense`, sharing what it computes with all evaluations of the same backbone file.

        Args:
            what: names what `dense` gives where it is not `Backbone.dense`.
        """
        return dense if self.cache is None else self.cache.around(dense, file_sha256(backbone_path) + what)


@dataclass(frozen=True)
class Result:
    """metrics: name -> value, exactly the names of the settings' METRICS. n: scored units (images, objects), and which."""

    metrics: dict[str, float]
    n: int
    unit: str
    details: dict[str, Any] = field(default_factory=dict)
