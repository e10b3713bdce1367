"""densewalk: what one long video and a few GPU-hours do for dense image representations.

The names of the Python API (api.py) are imported when they are first used: the command line does without torch where it can.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densewalk.api import Evaluation, create, evaluate, load, protocols, wrap

__all__ = ["Evaluation", "__version__", "create", "evaluate", "load", "protocols", "wrap"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'densewalk' has no attribute '{name}'")
    import densewalk.api

    return getattr(densewalk.api, name)
