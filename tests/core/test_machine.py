"""The folder of a study and the place of its results, before a workflow starts."""

import os

import pytest

from densewalk.core.errors import UserError
from densewalk.core.machine import require_place


def test_a_file_in_the_place_of_results_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="results is a file where a folder should be; to do: move it away"):
        require_place(tmp_path, tmp_path / "results" / "first")
    (tmp_path / "results").unlink()
    require_place(tmp_path, tmp_path / "results" / "first")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # for root, every folder of a writable disk can be
    with pytest.raises(UserError, match="cannot be written; to do: make it writable, or choose another folder"):
        require_place(tmp_path, tmp_path / "results")
