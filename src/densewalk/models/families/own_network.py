"""Build a network by the user's own function, and take over the weights of a file. This runs the user's code.

def build():                                   # in mynet.py
    net = MyNet()
    return densewalk.wrap(net, dense=net.maps, stride=16, dim=384)      # or a module that has dense, stride and dim itself
"""

import importlib
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET, PixelStatistics
from densewalk.models.families.own_code import OwnCode, find_code
from densewalk.models.families.wrapped import WrappedNetwork, wrap
from densewalk.models.interface import LoadReport
from densewalk.models.layouts.content import flat_content, require_numbers
from densewalk.models.layouts.key_names import WRAPPERS, without_wrappers

NEEDED = ("dense", "stride", "dim")
CONTAINERS = ("state_dict", "model", "module")  # of a file's tensors
CLOSE = 1e-2  # of the largest value: features of one network on two machines are nearer than that


def build_own(name: str, *, seed: int) -> WrappedNetwork:
    """Call the function `python/...`, and check what it returns; torch's global random state is the seed's inside, and does not change.

    Raises:
        UserError: no such function, whatever it raises, or a network that is not what it says (`WrappedNetwork.probe`).
    """
    code = find_code(name)
    function = getattr(_imported(code), code.function, None)
    if not callable(function):
        raise UserError(f"{code.file} has no function {code.function}", todo="correct the name after the colon")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = function()
        except Exception as error:  # the user's code: whatever it raises is said, with its place
            raise UserError(f"{name}: {_said(error, code.file)}") from error
        network = _wrapped(made, name)
    network.arch = replace(network.arch, name=name, source=code.sha256, seed=seed)
    network.probe()
    return network


def load_own(content: Any, metadata: Mapping[str, str], name: str, path: Path, key: str | None) -> WrappedNetwork:
    """The network of a function with a file's weights; of an export it must give what it gave when that was written.

    Args:
        key: name of the dictionary in the file that has the network's tensors.

    Raises:
        UserError: see `build_own`; the weights do not fit; or code or features have changed since the export.
    """
    network = build_own(name, seed=int(metadata.get("seed", "0")))
    arch = network.arch
    if metadata.get("source", arch.source) != arch.source:
        raise UserError(
            f"{find_code(name).file} has changed since {path} was written",
            todo="start snakemake again, which makes the run again; or put the file back",
        )
    weights = flat_content(content, path)
    if "arch" not in metadata:  # no export of this project's
        weights = _inside(weights, network.module.state_dict(), key, path)
        require_numbers({k: v for k, v in weights.items() if v.is_floating_point()}, path)
    elif key is not None:
        raise UserError(f"{path} holds one network, not '{key}'", todo="leave `key` out")
    network.take_weights(weights, str(path))
    network.report = LoadReport(str(path), "", len(weights), sum(w.numel() for w in weights.values()))
    network.probe()
    if "probe" in metadata:
        _require_same(torch.tensor(json.loads(metadata["probe"])), network.probed, name, path)
    return network


def _imported(code: OwnCode) -> ModuleType:
    """The module; its folder stays where Python looks for modules, since it may import others of it later."""
    if str(code.root) not in sys.path:
        sys.path.insert(0, str(code.root))
    try:
        module = importlib.import_module(code.module)
    except Exception as error:  # the user's code
        raise UserError(f"{code.file} cannot be imported: {_said(error, code.file)}") from error
    if module.__file__ is None or Path(module.__file__).resolve() != code.file.resolve():
        raise UserError(f"{code.module} is {module.__file__ or 'a module of Python itself'}, not {code.file}", todo="rename your file")
    return module


def _said(error: Exception, file: Path) -> str:
    """An error of the user's code in words, with the last line of the user's file that led to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == file.resolve()]
    place = f" ({file}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _wrapped(made: object, name: str) -> WrappedNetwork:
    """The returned network; a module says itself what `densewalk.wrap` would be told."""
    if isinstance(made, WrappedNetwork):
        return made
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} returns a {type(made).__name__}", allowed="a torch module, or what densewalk.wrap returns")
    if missing := [need for need in NEEDED if not hasattr(made, need)]:
        raise UserError(
            f"{name} returns a {type(made).__name__} without {', '.join(missing)}",
            allowed=f"a module with {', '.join(NEEDED)} (and pooled, pooled_dim, multiple, size, mean, std, if you like)",
            todo="add them, or return densewalk.wrap(module, dense=..., stride=..., dim=...)",
        )
    own: Any = made
    usual: PixelStatistics = getattr(made, "statistics", IMAGENET)
    pooled = getattr(made, "pooled", None)
    return wrap(
        made,
        dense=own.dense,
        stride=own.stride,
        dim=own.dim,
        pooled=pooled,
        pooled_dim=getattr(made, "pooled_dim", None),
        multiple=getattr(made, "multiple", None),
        size=getattr(made, "size", None),
        mean=getattr(made, "mean", usual.mean),
        std=getattr(made, "std", usual.std),
        name=name,
    )


def _inside(flat: Mapping[str, Tensor], own: Mapping[str, Tensor], key: str | None, path: Path) -> dict[str, Tensor]:
    """The tensors of one network in a file: those in the dictionary `key`, or in one of the usual ones."""
    flat = without_wrappers(flat, WRAPPERS)
    if key is not None:
        chosen = {k.removeprefix(f"{key}."): v for k, v in flat.items() if k.startswith(f"{key}.")}
        if not chosen:
            raise UserError(f"checkpoint {path} has no network '{key}'", allowed=", ".join(sorted({k.split(".")[0] for k in flat})))
        return chosen
    while own.keys() != flat.keys() and (outer := {k.partition(".")[0] for k in flat}) <= set(CONTAINERS) and len(outer) == 1:
        flat = {k.partition(".")[2]: v for k, v in flat.items()}
    return dict(flat)


def _require_same(before: Tensor, now: Tensor, name: str, path: Path) -> None:
    """Refuse a network whose features are others than those of the export that its weights are from."""
    if before.shape != now.shape or (before - now).abs().max() > CLOSE * before.abs().max():
        raise UserError(
            f"{name} gives other features than when {path} was written",
            allowed="networks whose whole state is in the returned module's parameters and buffers, and which draw nothing at random",
            todo="keep everything that is learned or drawn in the module's state_dict",
        )
