"""What every evaluation takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.models.feature_cache import Dense, FeatureCache


@dataclass(frozen=True)
class Job:
    """Where and how one evaluation runs; none of it changes a number.

    out: folder for pictures and predictions beside the result. state: folder for resumable state, kept after a failure.
    cache: features that evaluations share; none without it. tensorboard: whether what is trained writes event files, too.
    """

    out: Path
    state: Path
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    cache: FeatureCache | None = None
    tensorboard: bool = False

    def cached(self, dense: Dense, backbone_path: Path, what: str = "") -> Dense:
        """`dense`, sharing what it computes with all evaluations of the same backbone file.

        Args:
            what: names what `dense` gives where it is not `Backbone.dense`.
        """
        return dense if self.cache is None else self.cache.wrap(dense, file_sha256(backbone_path) + what)


@dataclass(frozen=True)
class Result:
    """metrics: name -> value, exactly the names of the settings' METRICS. n: scored units (images, objects), and which."""

    metrics: dict[str, float]
    n: int
    unit: str
    details: dict[str, Any] = field(default_factory=dict)


def require_finite(features: Float[Tensor, " batch *dims"], names: Sequence[Any], backbone: str | Path) -> None:
    """Refuse features that are no numbers: any score of them would look like one.

    Args:
        names: of the pictures, one each. backbone: file that the features are of.

    Raises:
        UserError: they are not finite; the message names the first such picture and the backbone.
    """
    bad = ~features.flatten(1).isfinite().all(1)
    if bad.any():
        first = names[int(bad.nonzero()[0])]
        raise UserError(f"features of {first} are not finite; backbone: {backbone}", todo="check the run or checkpoint it comes from")
