"""The tiny study, run to its end once for all tests of the real workflow."""

import shutil

import pytest

from tests.fixtures import cluster
from tests.fixtures.cluster import Cluster
from tests.fixtures.studies import TINY, snakemake, write_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The tiny study, run to its end once."""
    folder = write_study(tmp_path_factory.mktemp("study"), TINY)
    snakemake(folder, "all")
    return folder


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study that a test may change; times are kept, so that nothing looks newer than it is."""
    folder = tmp_path / "study"
    shutil.copytree(finished, folder, copy_function=shutil.copy2, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running Slurm, one for each file of tests."""
    reason = cluster.missing()
    if reason:
        pytest.skip(f"no Slurm cluster can be started here: {reason}")
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started
