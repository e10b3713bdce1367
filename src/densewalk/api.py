"""The Python API: load or wrap a backbone, evaluate it by any protocol, in a notebook or a program, without Snakemake.

    import densewalk as dw

    net = dw.load("dinov2_vits14")                                      # or a file, or dw.wrap(my_module, ...)
    result = dw.evaluate("davis", net, root="data/DAVIS")
    result.metrics["J&F"]

The numbers are those that a study gives: the same settings, with the same defaults and messages, and the same code.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD, Channels, PixelStatistics
from densewalk.core.text.complaints import complaints, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from densewalk.evaluations.common.settings import EvaluationSettings
    from densewalk.models.interface import Network

__all__ = ["Evaluation", "create", "evaluate", "load", "protocols", "wrap"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    metrics: name -> value. n, unit: what was scored, and how many. details: more numbers, of the evaluation's own, such as the IoU of
    each class. protocol: its name in the tables; published_protocol: its name in published.csv, None where any setting differs.
    settings: all of them, with their defaults.
    """

    protocol: str
    metrics: dict[str, float]
    n: int
    unit: str
    published_protocol: str | None
    settings: "EvaluationSettings" = field(repr=False)
    details: dict[str, Any] = field(repr=False)


def protocols() -> dict[str, "type[EvaluationSettings]"]:
    """Name -> settings of every evaluation; `help(protocols()["davis"])` lists what may be set."""
    from densewalk.study.registry import evaluations

    return dict(evaluations())


def load(name_or_file: str | Path, arch: str | None = None, *, key: str | None = None, stride: int | None = None) -> "Network":
    """Load a backbone: a public checkpoint by its name, a run's `backbone.safetensors`, or any file or folder that a study may name.

    Args:
        name_or_file: a name that `densewalk checkpoints` lists, or `timm/` and a name of timm's, which is downloaded below
            `data/checkpoints` where it is not there yet; or a path; or a function of your own that builds one, `package.module:function`
            or `folder/file.py:function`, which is imported and called.
        arch: of a file that does not say it, as in a study. key, stride: see `checkpoints` in docs/study_file.md.

    Raises:
        UserError: no such name or file, or the file does not fit.
    """
    from densewalk.models.catalog import Checkpoint, public_checkpoint, published
    from densewalk.models.families.own_code import FORMS, OWN, is_own_code
    from densewalk.models.loading import load as load_file

    if is_own_code(str(name_or_file).removeprefix(OWN)):
        return create(f"{OWN}{str(name_or_file).removeprefix(OWN)}")
    if Path(name_or_file).exists():
        return load_file(name_or_file, arch, key=key, stride=stride)
    try:
        public = public_checkpoint(str(name_or_file))
    except ValueError as error:
        raise UserError(str(error)) from error
    if public is None:
        raise UserError(
            f"no file and no public checkpoint is called '{name_or_file}'", allowed=f"a path, timm/NAME, {FORMS}, {', '.join(published())}"
        )
    name, described = public
    checkpoint = Checkpoint.model_validate(described)
    if not Path(checkpoint.file).exists():
        from densewalk.jobs.fetch import fetch_checkpoint

        fetch_checkpoint(name, checkpoint)
    statistics = PixelStatistics(checkpoint.mean, checkpoint.std) if checkpoint.mean and checkpoint.std else None
    given = {"key": key or checkpoint.key, "interpolation": checkpoint.interpolation, "statistics": statistics}
    return load_file(checkpoint.file, arch or checkpoint.arch, stride=stride or checkpoint.stride, **given)  # type: ignore[arg-type]


def create(arch: str, *, seed: int = 0) -> "Network":
    """A backbone with random weights: the floor under every other. `arch` as in a study."""
    from densewalk.models.loading import create as create_network

    return create_network(arch, seed=seed)


def wrap(
    module: "nn.Module",
    *,
    dense: Callable[[Any], Any],
    stride: int,
    dim: int,
    pooled: Callable[[Any], Any] | None = None,
    pooled_dim: int | None = None,
    multiple: int | None = None,
    size: int | None = None,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    name: str | None = None,
) -> "Network":
    """A network of your own for every evaluation of frozen features. Your code runs as it is.

    Args:
        dense: images [b, 3, h, w] -> maps [b, dim, h / stride, w / stride]. pooled: images -> vectors [b, pooled_dim], pooled_dim is `dim`
            if not given; without it, evaluations of whole images refuse the network.
        multiple: sides of images are multiples of it; `stride` if not given. size: the only side that images may have; None for any.
        mean, std: of pixels in 0..1, by which images are normalized before they come to the functions.

    Raises:
        UserError: a probe of two images does not give what is promised here.
    """
    from densewalk.models.families.wrapped import wrap as wrap_module

    return wrap_module(
        module,
        dense=dense,
        stride=stride,
        dim=dim,
        pooled=pooled,
        pooled_dim=pooled_dim,
        multiple=multiple,
        size=size,
        mean=mean,
        std=std,
        name=name,
    )


def evaluate(
    protocol: str,
    network: "Network",
    *,
    root: str | Path,
    dataset: str | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    out: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a backbone by one protocol.

    Args:
        protocol: one of `protocols()`. root: folder of the data. dataset: its name in tables; that of the folder if not given.
        device: `auto` takes a GPU where there is one. workers: processes that read images.
        out: folder for images and predictions; none are kept if not given.
        settings: of the protocol, by name; defaults as in a study.

    Raises:
        UserError: an unknown protocol or setting, missing or damaged data, or a network that cannot give what the protocol needs.
    """
    from densewalk.core import distributed
    from densewalk.evaluations.common.base import Job
    from densewalk.models.export import export_backbone
    from densewalk.models.families.wrapped import WrappedNetwork
    from densewalk.study.registry import evaluation_module

    given = _settings(protocol, {"root": str(root), "dataset": dataset or Path(root).absolute().name, **settings})
    network.require_abilities(given.needs, given.TITLE)
    with tempfile.TemporaryDirectory(prefix="densewalk-") as temporary:
        file, place = Path(temporary) / "backbone.safetensors", Path(temporary) / "out" if out is None else Path(out)
        export_backbone(network, file, run="", config_hash="")
        own = network if isinstance(network, WrappedNetwork) else None
        where = str(distributed.local_device(device))
        job = Job(place, Path(temporary) / "state", seed, where, workers, network=own)
        with _as_it_was(network):
            found = evaluation_module(protocol).evaluate(given, file, job)
    return Evaluation(given.protocol, found.metrics, found.n, found.unit, given.published_protocol, given, found.details)


class _as_it_was:
    """Give a network back as it came: its mode, its device, and which of its parameters have gradients."""

    def __init__(self, network: "Network") -> None:
        self.network = network
        self.modes = {m: m.training for m in network.modules()}
        self.gradients = {p: p.requires_grad for p in network.parameters()}
        self.device = next(iter(self.gradients)).device if self.gradients else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode
        if self.device is not None:
            self.network.to(self.device)
        for parameter, on in self.gradients.items():
            parameter.requires_grad_(on)


def _settings(protocol: str, given: dict[str, Any]) -> "EvaluationSettings":
    """The protocol's settings; UserError in the words of a study's messages."""
    from densewalk.study.registry import parse_evaluation

    known = protocols()
    if protocol not in known:
        raise UserError(f"no protocol is called '{protocol}'{did_you_mean(protocol, known)}", allowed=", ".join(known))
    try:
        return parse_evaluation(protocol, given)
    except ValidationError as error:
        raise UserError(f"{protocol}: {'; '.join(complaints(error, known[protocol]))}") from error
