import shutil

import pytest
import torch

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.training.state import State
from tests.fixtures.processes import in_processes


def newest(folder):
    content = State(folder / str(distributed.rank()), {"data": "noise"}).newest()
    return content and int(content["step"])


@pytest.fixture
def folders(tmp_path):
    """The same two checkpoints, as two nodes see them."""
    for rank in range(2):
        with State(tmp_path / str(rank), {"data": "noise"}) as state:
            for step in (4, 5):
                state.save(step, {"step": step, "weights": torch.zeros(2000)})
    return tmp_path


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1000])


def test_all_processes_resume_the_newest_step(folders):
    assert in_processes(newest, 2, folders, folders) == [5, 5]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_cut_short_for_one_process_sends_all_to_the_step_before(folders, rank):
    cut_short(folders / str(rank) / "step-00000005.pt")
    assert in_processes(newest, 2, folders, folders) == [4, 4]


def test_files_of_different_steps_cut_short_end_all_processes_with_one_line(folders):
    cut_short(folders / "0" / "step-00000005.pt")
    cut_short(folders / "1" / "step-00000004.pt")
    errors = in_processes(newest, 2, folders, folders)
    assert all(isinstance(error, UserError) for error in errors)
    assert "no checkpoint that all processes can read; the newest: process 0 step 4, process 1 step 5" in str(errors[0])
    assert str(errors[0]).splitlines() == [str(errors[0])]


def test_a_process_without_any_checkpoint_ends_all(folders):
    shutil.rmtree(folders / "1")
    first, second = in_processes(newest, 2, folders, folders)
    assert "process 0 step 5, process 1 none" in str(first)
    assert isinstance(second, UserError)


def test_without_any_checkpoint_all_begin(tmp_path):
    assert in_processes(newest, 2, tmp_path, tmp_path) == [None, None]
