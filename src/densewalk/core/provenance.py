"""Commit, versions and machine, for records."""

import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from densewalk.core.settings import Settings

PACKAGES = ("torch", "torchvision", "timm", "numpy", "mmsegmentation", "mmdet", "onedl-mmengine", "mmcv-lite", "decord", "av", "snakemake")


class Provenance(Settings):
    """Which code made something, with which packages, on which machine. dirty: tracked files differed from the commit."""

    commit: str
    dirty: bool
    versions: dict[str, str]
    host: str

    @property
    def code(self) -> str:
        """The commit in short, and whether it was changed."""
        return self.commit[:12] + ("+dirty" if self.dirty else "")


UNKNOWN = "unknown"


@lru_cache
def commit() -> tuple[str, bool]:
    """The checkout's commit ("unknown" outside one), and True if tracked files differ."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN, False


@lru_cache
def versions() -> dict[str, str]:
    """Versions of Python, densewalk and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("densewalk", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def current() -> Provenance:
    """The provenance of what this process makes."""
    return Provenance.model_validate(record())


def record() -> dict[str, Any]:
    """The facts that every record of a job contains."""
    sha, dirty = commit()
    return {"commit": sha, "dirty": dirty, "versions": versions(), "host": platform.node()}
