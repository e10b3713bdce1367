"""Array shapes and types are checked in the numerical modules while the tests run, and nowhere else. No test looks at a time."""

import re
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

SOURCE = Path(__file__).resolve().parents[1] / "src"
FOLDERS = "data evaluations methods models ops synthetic training visualization"
# free of tensors (pydantic reads their annotations itself), what other libraries call with types of theirs, and what is compiled
EXCLUDED = re.compile(
    r"settings|origin|receipts|presets|protocol_name|recipes|catalog|download|mmlab|training/(?!method|schedules)|cpu/|video/(?!clips)|_kernel|visualization/strips|feature_cache|label_maps|blocks"
)


def numerical_modules() -> list[str]:
    """Names of all modules whose arrays are checked."""
    files = [file for folder in FOLDERS.split() for file in sorted((SOURCE / "densewalk" / folder).rglob("*.py"))]
    inside = [file.relative_to(SOURCE).with_suffix("").as_posix() for file in files if file.name != "__init__.py"]
    return [name.replace("/", ".") for name in inside if not EXCLUDED.search(name)]


install_import_hook([*numerical_modules(), "densewalk.core.distributed"], "beartype.beartype")

import torch  # noqa: E402  after the hook, so that the modules are imported through it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """One thread, whatever a command that an earlier test ran has set.

    More threads than cores make small networks many times slower, and a forked process hangs in its first parallel loop.
    """
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no GPU that torch can use here"))


def pytest_assertrepr_compare(op, left, right):
    """Say where two long byte strings differ: pytest's own comparison of two weight files takes an hour."""
    if op == "==" and isinstance(left, bytes) and isinstance(right, bytes) and max(len(left), len(right)) > 10_000:
        first = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
        return [f"{len(left)} bytes == {len(right)} bytes", f"first difference at byte {first}"]
    return None


settings.register_profile("densewalk", deadline=None)
settings.load_profile("densewalk")
