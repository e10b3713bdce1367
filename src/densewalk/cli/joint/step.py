"""Become a step of the Slurm job that this process is in, which runs the jobs of an entry. Only Python's own modules.

    python -P -m densewalk.cli.joint.step FOLDER srun OPTION ...

Slurm warns the processes of steps before the time limit, and those of a step alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

# of Slurm's variables, what srun needs; the others are the size of the calling step, and srun would take them for its own
KEPT = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR", "SLURM_SUBMIT_HOST")
SIZES = ("SLURM_", "SRUN_", "SBATCH_")


def step_environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables that srun shall see."""
    return {name: value for name, value in own.items() if name in KEPT or not name.startswith(SIZES)}


def main(arguments: Sequence[str]) -> NoReturn:
    """Become srun."""
    folder, *srun = arguments
    command = [*srun, sys.executable, "-P", "-m", "densewalk.cli.joint.node", folder]
    os.execvpe(command[0], command, step_environment(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
