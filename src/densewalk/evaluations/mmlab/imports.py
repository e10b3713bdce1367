"""Import the toolboxes without transformers, which they look for and nothing here uses: two seconds of every job, where it is installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_transformers() -> Iterator[None]:
    """Let `import transformers` fail inside, unless it has been imported before.

    mmengine then registers no Adafactor, and mmdet none of its text encoders; both ask first whether it is there.
    """
    if "transformers" in sys.modules:
        yield
        return
    sys.modules["transformers"] = None  # type: ignore[assignment]  # what Python takes for a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules["transformers"]
