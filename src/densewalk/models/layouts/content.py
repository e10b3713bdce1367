"""Read a file of weights: its tensors under dotted names, and its metadata. Nothing in it is executed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.text.quoting import one_line
from densewalk.models.layouts.file_kinds import file_kind, folder_kind


def read_content(path: Path) -> tuple[Any, dict[str, str]]:
    """Read a file's content and its metadata; execute nothing in it."""
    require_file(path, todo="download it or correct the path")
    metadata: dict[str, str] = {}
    try:
        if _is_safetensors(path):
            with safe_open(path, "pt") as file:
                metadata.update(file.metadata() or {})
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([*((_Inert, name) for name in INERT), (_Entries, "collections.defaultdict")]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read safely: {_why_unreadable(path, error)}", todo="use a file of tensors only"
        ) from error
    return content, metadata


def require_file(path: Path, todo: str) -> None:
    """UserError if there is no file of this name; a folder is described."""
    if path.is_dir():
        raise UserError(f"checkpoint {path} is {folder_kind(path)}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", todo=todo)


def _why_unreadable(path: Path, error: Exception) -> str:
    """One sentence. torch's own words are not passed on: they advise to load what is not safe."""
    if isinstance(error, PermissionError):
        return "nobody has given you the right to read it"
    if kind := file_kind(path):
        return f"it is {kind}"
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds a {foreign[1]}, which is not known to be harmless"
    if _is_safetensors(path):
        return f"it is no whole file of safetensors ({one_line(str(error))[:200]})"
    return "it is cut off, damaged, or none of torch's"


def _is_safetensors(path: Path) -> bool:
    """By name or content (8 bytes of length, then JSON): hand-made downloads have any name."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


# harmless objects in training checkpoints
INERT = (
    "argparse.Namespace",
    "builtins.getattr",  # which mmengine's history needs
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pathlib.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    # a configuration of Hydra, and the types that it names
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "UnionNode")),
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")),
    "typing.Any",
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str")),
)


class _Inert:
    """Replaces each of them: their own code is neither imported nor run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the content."""


class _Entries:
    """Replaces a defaultdict by a dictionary: torch puts entries into no other kind."""

    def __new__(cls, *_: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def flat_content(content: Any, path: Path) -> dict[str, Tensor]:
    """All tensors of a file under dotted names."""
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    try:
        return _flat(content)
    except UserError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error


def _flat(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of nested dictionaries under dotted names; UserError if nested endlessly, or if two have one name."""
    flat: dict[str, Tensor] = {}
    for name, value in _leaves(content):
        if name in flat:
            raise UserError(f"two tensors are called {name}", todo="leave one of them out of the file")
        flat[name] = value
    return flat


def _leaves(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors; UserError if nested endlessly."""
    if depth > 32:
        raise UserError("dictionaries in dictionaries without an end", todo="use a file of tensors only")
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.", depth + 1)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    """UserError for a tensor that is no plain array of finite floating-point numbers; those are cast to float32."""
    for key, value in weights.items():
        problem = None
        if value.is_meta:
            problem = "is a meta tensor, which has a shape and no numbers"
        elif value.is_quantized:
            problem = "is quantized"
        elif value.is_nested:
            problem = "is a nested tensor"
        elif value.layout != torch.strided:
            problem = f"is sparse ({str(value.layout).removeprefix('torch.')})"
        elif value.dtype not in FLOATS and not key.endswith(".bias_mask"):
            problem = f"holds {str(value.dtype).removeprefix('torch.')}"
        elif value.dtype in FLOATS and not value.to(torch.float32).isfinite().all():
            problem = "holds NaN or infinite numbers" if not value.isfinite().all() else "holds numbers that are too large for float32"
        if problem:
            todo = "take the file of the weights in float32, float16 or bfloat16"
            raise UserError(f"checkpoint {path}: {one_line(key)[:120]} {problem}", allowed="finite floating-point numbers", todo=todo)


def require_same_keys(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, source: str) -> None:
    """UserError with keys that are missing, left over or misshapen."""
    misshapen = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    problems = {
        "missing": own.keys() - weights.keys(),
        "not expected": weights.keys() - own.keys(),
        "wrong shape": [f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in misshapen],
    }
    found = [f"{label}: {some_of(sorted(keys))}" for label, keys in problems.items() if keys]
    if found:
        raise UserError(f"{source} does not fit the network; " + "; ".join(found), todo="check `arch` and which file this is")


def some_of(keys: list[str], most: int = 6) -> str:
    """The first few keys, for a message, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(one_line(key)[:120] for key in keys[:most]) + more
