"""Learning curves as TensorBoard's event files, beside metrics.jsonl: the only door to torch.utils.tensorboard.

execution: {tensorboard: true}          # in the study's config.yaml
tensorboard --logdir results/state      # while runs train; `--logdir results` shows the finished ones, too
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.training.metrics_file import NOT_QUANTITIES, Point


def require_tensorboard() -> None:
    """Make sure, before anything is trained, that event files can be written.

    Raises:
        UserError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "execution.tensorboard is true, but the package tensorboard is not installed",
            todo="`pip install -r requirements.txt`, or set execution.tensorboard: false",
        )


class Events:
    """The event file of one attempt of a training: the points of earlier attempts, then this one's as they come.

    It begins by telling TensorBoard to forget what it has read of the attempts before (`purge_step`), and holds all points that
    are kept of them: a file that a killed attempt left may lack some, or have some from after the checkpoint. Earlier files stay,
    because a TensorBoard that is looking on stops at one that vanishes.

    Args:
        folder: `tensorboard` in the state folder, made if need be.
        points: of earlier attempts that are kept.
    """

    def __init__(self, folder: Path, points: Sequence[Point]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, and not installed everywhere

        self.writer = SummaryWriter(str(folder), purge_step=0)
        for point in points:
            self._write(point)
        self.writer.flush()

    def add(self, point: Point) -> None:
        """One more point; it is in the file when this returns, whatever becomes of the process."""
        self._write(point)
        self.writer.flush()

    def _write(self, point: Point) -> None:
        for name, value in point.items():
            if name not in NOT_QUANTITIES:
                self.writer.add_scalar(name, value, point["step"], walltime=point["time"])

    def close(self) -> None:
        """No more points come."""
        self.writer.close()


def newest(folder: Path) -> Path:
    """The event file of the latest attempt, which is the whole curve."""
    return max(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
