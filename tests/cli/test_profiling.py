"""Profiles of jobs."""

import pstats
from pathlib import Path

import pytest
from benchmarks import profiles

from densewalk.cli.profiling import VARIABLE, profiled


def busy(times, by=1):
    return sum(i // by for i in range(times))


def test_a_job_leaves_its_profile_under_the_name_of_its_output_also_if_it_fails(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "profiles"))
    with pytest.raises(ZeroDivisionError), profiled(Path("results/walk/s0/davis.json")):
        busy(10, by=0)
    (found,) = (tmp_path / "profiles").iterdir()
    assert found.name == "results-walk-s0-davis.json.prof"
    assert any(name == "busy" for _, _, name in pstats.Stats(str(found)).stats)
    monkeypatch.setenv("RANK", "1")
    with profiled(Path("/results/walk/s0")):
        busy(10)
    assert (tmp_path / "profiles/results-walk-s0-rank1.prof").is_file()


@pytest.mark.parametrize(("folder", "output"), [("", Path("a")), ("profiles", None)])
def test_without_a_folder_or_an_output_nothing_is_written(folder, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, folder)
    with profiled(output):
        busy(10)
    assert not list(tmp_path.iterdir())


def test_the_longest_jobs_come_first_with_the_functions_that_took_most(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for name, times in (("short", 10), ("long", 300_000), ("middle", 30_000)):
        with profiled(Path(name)):
            busy(times)
    profiles.main([str(tmp_path), "--jobs", "2", "--functions", "2"])
    head, _, _, _, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("3 jobs, ")
    assert first.startswith("| `long` | ")
    assert "test_profiling.<genexpr>" in first
    assert second.startswith("| `middle` | ")


def test_a_folder_without_profiles_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        profiles.main([str(tmp_path)])
    assert f"{tmp_path} holds no profile" in capsys.readouterr().err
