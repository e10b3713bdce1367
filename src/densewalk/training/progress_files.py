"""What a training says about itself in its state folder, for `densewalk status` and for its next attempt. Free of torch.

results/state/{run}-s{seed}-{hash}/
    plan.json             TrainingPlan
    step-00001200.json    Seal of step-00001200.pt
    cost.json             CostRecord, up to the newest checkpoint
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from densewalk.core.settings import Settings
from densewalk.core.typed_files import Model, read_model

NotNegative = Annotated[float, Field(ge=0)]
PLAN = "plan.json"


class TrainingPlan(Settings):
    """Steps in all, and on how many GPUs."""

    steps: int = Field(ge=0)
    gpus: int = Field(ge=0)


class Seal(Settings):
    """A checkpoint's step, and the checksum of its file: one that does not match is passed over."""

    step: int = Field(ge=0)
    sha256: str


class CostRecord(Settings):
    """What a job has cost. None for what the device does not tell, which is never the same as zero.

    seconds: wall time. gpu_hours: of all GPUs. peak_rss_mib: of the largest process. peak_gpu_mib: what torch had allocated at
    once on the fullest GPU. energy_wh: of all GPUs, whoever used them.
    """

    seconds: NotNegative
    gpu_hours: NotNegative | None
    peak_rss_mib: NotNegative
    peak_gpu_mib: NotNegative | None
    energy_wh: NotNegative | None


def read_progress(path: Path, model: type[Model]) -> Model:
    """Read one of these files; a UserError names file and key of what is missing or broken."""
    return read_model(path, model, "file of a training's progress", "delete it and start the job again")
