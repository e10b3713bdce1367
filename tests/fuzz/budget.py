"""How much is tried: the same examples every time, or more and others by DENSEWALK_FUZZ (docs/testing.md).

DENSEWALK_FUZZ=20 pytest tests/fuzz      twenty times as many examples, drawn again; a failure prints how to repeat it
"""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("DENSEWALK_FUZZ", "1"))


def examples(count: int) -> settings:
    """The settings of a test that tries `count` examples in a usual run."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
