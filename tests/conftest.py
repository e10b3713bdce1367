"""Array shapes and types are checked in the numerical modules while the tests run, and nowhere else. No test looks at a time."""

from hypothesis import settings
from jaxtyping import install_import_hook

NUMERICAL = (
    "backbone boxes communities distributed evals foreground gallery heads images methods nearest propagation schedules segmentation"
    " sinkhorn sorting synthetic teacher video views"
)
install_import_hook([f"densewalk.{name}" for name in NUMERICAL.split()], "beartype.beartype")

import torch  # noqa: E402  after the hook, so that the modules are imported through it

torch.set_num_threads(1)

settings.register_profile("densewalk", deadline=None)
settings.load_profile("densewalk")
