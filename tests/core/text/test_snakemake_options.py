"""Which study a command line of Snakemake is about."""

from pathlib import Path

import pytest

from densewalk.core.text.snakemake_options import place_options, study_file


@pytest.mark.parametrize(
    ("words", "options", "file"),
    [
        (["all", "-n"], "", "config.yaml"),
        (["--directory", "my study", "--cores", "8", "all"], " --directory 'my study'", "my study/config.yaml"),
        (["-d", "a", "all"], " -d a", "a/config.yaml"),
        (["all", "--directory=a"], " --directory=a", "a/config.yaml"),
        (["all", "--configfile", "a.yaml", "b.yaml", "-n"], " --configfile a.yaml b.yaml", "b.yaml"),
        (["-s", "S", "--directory", "a", "all", "--configfile=b.yaml"], " -s S --directory a --configfile=b.yaml", "b.yaml"),
    ],
)
def test_options_of_place_are_kept_as_they_were_given(words, options, file):
    assert place_options(words) == options
    assert study_file(words) == Path(file)
