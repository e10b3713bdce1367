"""The networks that `densewalk bench` is given, as a study's runs and checkpoints. Free of torch.

dinov2_vits14                     a public checkpoint, or timm/ and a name of timm's
results/dora/s0/backbone.safetensors    a file of this project, which says its architecture
weights.pth                       any other file, with --arch and perhaps --key
clip-vit-base-patch16             a folder of Hugging Face's
random/vit_small_patch16          new weights: a floor
mypackage.mynet:build             a function of the user's own that builds the network; it is imported and run
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.core.text.complaints import did_you_mean
from densewalk.models.architecture import HUGGING_FACE, HUGGING_FACE_FAMILIES, known_architecture
from densewalk.models.catalog import public_checkpoint, published
from densewalk.models.families.own_code import OwnCode, find_code, is_own_code, require_function

RANDOM = "random/"
ENDS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
PLAIN_STEMS = ("backbone", "model", "checkpoint", "pytorch_model", "weights")  # which do not tell one network from another
MOST_HEADER = 100 << 20  # bytes of a safetensors file's header


@dataclass(frozen=True)
class BenchNetwork:
    """One row: name and content of its run, and its entry of `checkpoints`, if it has one. code: the user's own, if it is."""

    run: str
    init: dict[str, Any]
    checkpoint: dict[str, Any] | None = None
    code: OwnCode | None = None


def network_of(given: str, arch: str | None, key: str | None) -> BenchNetwork:
    """What a study says of a network.

    Args:
        given: a name, file or folder. arch, key: of a file of weights that does not say its architecture.

    Raises:
        UserError: neither a name that is known nor a file.
    """
    if given.startswith(RANDOM):
        name = _architecture(given.removeprefix(RANDOM), given)
        return BenchNetwork(as_name(f"random_{name}"), {"init": "random", "arch": name})
    if is_own_code(given):
        code = find_code(given)
        require_function(code)
        name = code.file.parent.name if code.file.stem == "__init__" else code.file.stem
        # a module by its name, which is the same on every machine; a file by its path, because the study lies in another folder
        backbone = f"{code.file.resolve()}:{code.function}" if ".py:" in given else given
        return BenchNetwork(as_name(f"{name}_{code.function}"), {"backbone": backbone}, code=code)
    if Path(given).exists() or given.endswith(ENDS):
        return _of_file(Path(given), arch, key)
    try:
        found = public_checkpoint(given)
        if given.startswith("timm/"):
            known_architecture(given)
    except ValueError as error:
        raise UserError(f"{given}: {error}") from error
    if found is None:
        near = did_you_mean(given, published())
        raise UserError(
            f"{given} is neither a public checkpoint nor a file or folder{near}",
            allowed="what `densewalk checkpoints` lists, timm/NAME, random/ARCHITECTURE, a file of weights, or package.module:function",
        )
    return BenchNetwork(as_name(f"bench_{found[0].removeprefix('timm_')}"), {"init": given})


def as_name(text: str) -> str:
    """A key of a study: lower-case letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if re.match("[a-z]", name) else f"net_{name}".rstrip("_")


def _of_file(path: Path, arch: str | None, key: str | None) -> BenchNetwork:
    """A file of weights, or the one in a folder of Hugging Face's."""
    if path.is_dir():
        path, arch = path / "model.safetensors", arch or _family_of(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist", todo="correct the path")
    own = _metadata(path).get("arch")
    if own is None and arch is None:
        raise UserError(f"{path} does not say its architecture", todo="give --arch, e.g. --arch vit_small_patch16 or --arch timm/resnet50")
    parents = [part for part in (path.parent.parent.name, path.parent.name) if part]
    stem = "_".join([*parents, path.stem] if path.stem in PLAIN_STEMS else [path.stem])
    entry = {"file": str(path.resolve()), "arch": _architecture(own or str(arch), str(path)), **({} if key is None else {"key": key})}
    return BenchNetwork(as_name(stem), {}, entry)


def _architecture(name: str, where: str) -> str:
    try:
        return known_architecture(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _family_of(folder: Path) -> str:
    """`huggingface/` and the family that config.json names."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if not isinstance(config, dict):
        raise UserError(f"{folder} is a folder without config.json", todo="name a file of weights, or a folder of Hugging Face's")
    family = str(config.get("model_type")).removesuffix("_vision_model")
    if family not in HUGGING_FACE_FAMILIES:
        raise UserError(f"{folder}/config.json: model_type {family}", allowed=", ".join(HUGGING_FACE_FAMILIES))
    return f"{HUGGING_FACE}{family}"


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of any other file."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if 0 < length <= MOST_HEADER else b""
    if not text.startswith(b"{"):
        return {}
    try:
        found = json.loads(text).get("__metadata__", {})
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
