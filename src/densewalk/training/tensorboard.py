"""Learning curves as TensorBoard's event files (execution.tensorboard)."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.training.progress_files import NOT_QUANTITIES, Point


def require_tensorboard() -> None:
    """Raise UserError if the package tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "execution.tensorboard is true, but the package tensorboard is not installed",
            todo="`pip install -r requirements.txt`, or set execution.tensorboard: false",
        )


class EventFile:
    """The event file of one attempt of a training: the points of earlier attempts, then its own.

    It makes TensorBoard forget the earlier attempts (`purge_step`) and repeats their points: the file of a killed attempt may lack
    some, or have some from after the checkpoint. Earlier files stay, because a running TensorBoard stops at one that vanishes.
    """

    def __init__(self, folder: Path, points: Sequence[Point]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second, and is not installed everywhere

        self.writer = SummaryWriter(str(folder), purge_step=0)
        self.add(*points)

    def add(self, *points: Point) -> None:
        """Add points; they are in the file when this returns."""
        for point in points:
            for name, value in point.items():
                if name not in NOT_QUANTITIES:
                    self.writer.add_scalar(name, value, point["step"], walltime=point["time"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


def newest_event_file(folder: Path) -> Path:
    """The event file of the latest attempt, which has the whole curve."""
    return max(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
