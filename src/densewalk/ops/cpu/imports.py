"""Import torchvision and timm without torch's compiler: 2 of the 4 s of CPU that they cost every job.

Both only ask it a question or mark functions that it shall leave alone, and get their answer when such a function is called. A job that
compiles or optimizes imports the compiler itself, when it does.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def import_without_compiler() -> None:
    """Import both, unless the compiler is there already."""
    if COMPILER in sys.modules:
        return
    import torch.compiler

    asked = ModuleType(f"{COMPILER}.utils")
    asked.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    disable = torch.compiler.disable
    sys.modules[asked.__name__] = asked
    torch.compiler.disable = _later(disable)
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    finally:
        torch.compiler.disable = disable
        del sys.modules[asked.__name__]


def _is_compile_supported(device: str) -> bool:
    """The compiler's own answer, for torchvision.ops.roi_align."""
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device)


def _later(disable: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compiler.disable, as a decorator that does its work when the function is called."""

    def decorator(function: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None) -> Callable[..., Any]:
        if function is None:
            return functools.partial(decorator, recursive=recursive, reason=reason)

        @functools.wraps(function)
        def called(*args: Any, **more: Any) -> Any:
            return disable(function, recursive, reason=reason)(*args, **more)

        return called

    return decorator
