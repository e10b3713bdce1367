"""What several tests need."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """A file or folder of the reference material that lies beside a development checkout; the test is skipped without it."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"reference material {name} is not beside this checkout (see docs/testing.md)")
    return path
