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
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD, Channels, PixelStatistics
from densewalk.core.text.complaints import brief, complaints, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from densewalk.evaluations.common.settings import EvaluationSettings
    from densewalk.models.interface import Network

M = TypeVar("M", bound=BaseModel)

__all__ = ["Evaluation", "create", "evaluate", "load", "protocols", "wrap"]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. It cannot be changed.

    Attributes:
        protocol: name of the protocol in the tables. It names every setting that changes the number and differs from the default.
        metrics: name -> value. Each protocol's settings say the units, most are percent in 0..100:
            `protocols()["davis"].METRICS` has unit, meaning and direction of each name.
        n: number of scored units.
        unit: what was scored, such as `objects` or `images`.
        published_protocol: name of the protocol in `published.csv`; None where any setting differs from the published one, so that the
            number must not be compared with published ones.
        settings: all settings, with those that were left at their defaults.
        details: more numbers, of the evaluation's own, such as the IoU of each class.

    Example:
        result = dw.evaluate("davis", dw.load("dinov2_vits14"), root="data/DAVIS", short_side=240)
        print(f"J&F {result.metrics['J&F']:.1f} over {result.n} {result.unit}")
        if result.published_protocol is None:
            print("not comparable with published numbers:", result.protocol)
    """

    protocol: str
    metrics: dict[str, float]
    n: int
    unit: str
    published_protocol: str | None
    settings: "EvaluationSettings" = field(repr=False)
    details: dict[str, Any] = field(repr=False)


def protocols() -> dict[str, "type[EvaluationSettings]"]:
    """List the protocols of evaluations: name -> class of its settings, as in `evaluations` of a study.

    `help(dw.protocols()["davis"])` says what may be set. [Settings of the evaluations](settings/evaluations.md) has all of them.

    Returns:
        a new dictionary. Of each class, `model_fields` has names and defaults of the settings, `METRICS` the numbers of a result,
        `NEEDS` the abilities that a network must have.

    Example:
        davis = dw.protocols()["davis"]
        davis.model_fields["short_side"].default  # pixels
        davis.METRICS["J&F"].unit
    """
    from densewalk.study.registry import evaluations

    return dict(evaluations())


def load(name_or_file: str | Path, arch: str | None = None, *, key: str | None = None, stride: int | None = None) -> "Network":
    """Load a backbone: a public checkpoint by its name, a run's `backbone.safetensors`, or any file or folder that a study may name.

    Args:
        name_or_file: a path; or a name that `densewalk checkpoints` lists, or `timm/` and a name of timm's, which is downloaded below
            `data/checkpoints` where it is not there yet; or a function of your own that builds a network, `package.module:function` or
            `folder/file.py:function`, which is imported and called.
        arch: architecture of a file that does not say it, as in a study. Files of this project and public names say it.
        key: which network of a training checkpoint with several: a part of its name, such as `teacher`.
        stride: pixels per position of the dense map, of networks with stages; that of the last stage if not given.

    Returns:
        the network, on the CPU and in float32, unless code of your own builds it otherwise.

    Raises:
        UserError: there is no such name or file, a download fails, or the weights do not fit the architecture. The message lists the
            tensors that are missing, left over or of another shape.

    Example:
        net = dw.load("dinov2_vits14")
        print(net.arch.name, net.dim, net.stride)
    """
    from densewalk.models.catalog import known_checkpoint, published
    from densewalk.models.families.own_code import FORMS, OWN, is_own_code
    from densewalk.models.loading import load as load_file

    if is_own_code(str(name_or_file).removeprefix(OWN)):
        return create(f"{OWN}{str(name_or_file).removeprefix(OWN)}")
    if Path(name_or_file).exists():
        return load_file(name_or_file, arch, key=key, stride=stride)
    public = known_checkpoint(str(name_or_file))
    if public is None:
        raise UserError(
            f"no file and no public checkpoint is called '{name_or_file}'", allowed=f"a path, timm/NAME, {FORMS}, {', '.join(published())}"
        )
    name, checkpoint = public
    if not Path(checkpoint.file).exists():
        from densewalk.jobs.fetch import fetch_checkpoint

        fetch_checkpoint(name, checkpoint)
    statistics = PixelStatistics(checkpoint.mean, checkpoint.std) if checkpoint.mean and checkpoint.std else None
    given = {"key": key or checkpoint.key, "interpolation": checkpoint.interpolation, "statistics": statistics}
    return load_file(checkpoint.file, arch or checkpoint.arch, stride=stride or checkpoint.stride, **given)  # type: ignore[arg-type]


def create(arch: str, *, seed: int = 0) -> "Network":
    """Create a backbone with random weights: the floor under every other.

    Args:
        arch: name of the architecture, as in a study, such as `vit_small_patch16` or `timm/resnet50`.
        seed: of the weights. torch's own random state does not change.

    Returns:
        the network, on the CPU and in float32, unless code of your own builds it otherwise.

    Raises:
        UserError: no architecture has this name, or the code of your own behind it fails.

    Example:
        import torch

        floor = dw.create("vit_small_patch16", seed=0)
        maps = floor.dense(torch.zeros(2, 3, 224, 224))
        assert maps.shape == (2, 384, 14, 14)
    """
    from densewalk.models.loading import create as create_network

    _require("arch", arch, str, "a name, such as vit_small_patch16")
    _require_seed(seed)
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
    """Wrap a network of your own, for every evaluation of frozen features. Your code runs as it is.

    Args:
        module: the module whose parameters the functions use. It is moved to the evaluation's device and back.
        dense: images [batch, 3, height, width] -> maps [batch, dim, height / stride, width / stride], floating point.
        stride: pixels per position of the map.
        dim: channels of the map.
        pooled: images -> vectors [batch, pooled_dim]. Without it, evaluations of whole images refuse the network.
        pooled_dim: length of the vectors; `dim` if not given.
        multiple: sides of images are multiples of it; `stride` if not given.
        size: the only side that images may have, in pixels; None for any.
        mean: of red, green and blue in 0..1, subtracted before images come to the functions.
        std: by which they are then divided.
        name: in messages and results; that of the module's class if not given.

    Returns:
        the network; it shares the module's parameters.

    Raises:
        UserError: maps or vectors of two random images have another shape, device or type than said here, are not finite, or are equal;
            or a number here is out of range.

    Example:
        from torch import nn

        module = nn.Conv2d(3, 64, 16, 16)
        net = dw.wrap(module, dense=module, pooled=lambda images: module(images).mean((2, 3)), stride=16, dim=64)
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
        protocol: one of the names of `protocols()`.
        network: from `load`, `create` or `wrap`. It comes back as it was: mode, device, gradients.
        root: folder of the data. [Data layouts](data_layouts.md) says what is in it.
        dataset: its name in tables; that of the folder if not given. Published numbers belong to one name.
        seed: of everything random: sampled images, new heads, the order of training.
        device: `cpu`, `cuda`, or `auto`, which takes a GPU where there is one.
        workers: processes that read images; 0 reads in this one.
        out: folder for images and predictions; none are kept if not given.
        settings: of the protocol, by name; defaults as in a study.

    Returns:
        metrics, what was scored, and the settings.

    Raises:
        UserError: the protocol or a setting is unknown or out of range, data are missing or damaged, or the network cannot give what the
            protocol needs.
        TrainingError: the loss of a head that is trained is not finite. It is in `densewalk.core.errors`, too.

    Example:
        net = dw.load("dinov2_vits14")
        result = dw.evaluate("davis", net, root="data/DAVIS", short_side=240, out="predictions")
        print(result.metrics["J&F"])
    """
    from densewalk.core import distributed
    from densewalk.evaluations.common.base import Job
    from densewalk.models.export import export_backbone
    from densewalk.models.families.wrapped import WrappedNetwork
    from densewalk.study.registry import evaluation_module
    from densewalk.training.execution import Execution

    _require_network(network)
    _require("root", root, str | Path, "a path")
    _require_seed(seed)
    execution = _checked(Execution, {"device": device, "workers": workers})
    given = _settings(protocol, {"root": str(root), "dataset": dataset or Path(root).absolute().name, **settings})
    network.require_abilities(given.needs, given.TITLE)
    with tempfile.TemporaryDirectory(prefix="densewalk-") as temporary:
        file, place = Path(temporary) / "backbone.safetensors", Path(temporary) / "out" if out is None else Path(out)
        export_backbone(network, file, run="", config_hash="")
        own = network if isinstance(network, WrappedNetwork) else None
        where = str(distributed.local_device(execution.device))
        job = Job(place, Path(temporary) / "state", seed, where, execution.workers, network=own)
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


def _require(name: str, value: object, kind: Any, allowed: str) -> None:
    """Refuse an argument of another type."""
    if not isinstance(value, kind):
        raise UserError(f"{name} is {brief(value)}", allowed=allowed)


def _require_network(network: object) -> None:
    """Refuse what is no network yet, and say how it becomes one."""
    from densewalk.models.interface import Network

    if not isinstance(network, Network):
        named = isinstance(network, str | Path)
        todo = f'densewalk.load("{network}")' if named else "densewalk.wrap(module, dense=..., stride=..., dim=...)"
        raise UserError(f"network is a {type(network).__name__}", allowed="what load, create or wrap return", todo=todo)


def _require_seed(seed: object) -> None:
    """Refuse what a study would refuse as a seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed is {brief(seed)}", allowed="a whole number from 0 on, below 2^63")


def _checked(model: type[M], given: dict[str, Any]) -> M:
    """Settings of this model; UserError in the words of a study's messages."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError("; ".join(complaints(error, model))) from error


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
