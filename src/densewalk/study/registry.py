"""The methods and evaluations that a study may name: one folder each, found by looking. Free of torch.

methods/{name}/settings.py        SETTINGS = MyMethodSettings             methods/{name}/method.py         METHOD = MyMethod, or a function
evaluations/{name}/settings.py    SETTINGS = {"protocol": MySettings}     evaluations/{name}/evaluate.py   evaluate, describe_data
"""

import importlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import densewalk.evaluations
import densewalk.methods
from densewalk.core.metric import Metric
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.training.settings import MethodSettings


def _settings_of_folders(package: ModuleType, beside: str) -> Iterator[tuple[str, Any]]:
    """Name and SETTINGS of each folder of the package that holds the file `beside`.

    Raises:
        AssertionError: such a folder has no settings.py, or that has no SETTINGS.
    """
    for name in sorted(path.parent.name for folder in package.__path__ for path in Path(folder).glob(f"*/{beside}")):
        try:
            settings = importlib.import_module(f"{package.__name__}.{name}.settings").SETTINGS
        except (ModuleNotFoundError, AttributeError) as error:
            raise AssertionError(f"{package.__name__}.{name}: settings.py must define SETTINGS (docs/adding.md): {error}") from error
        yield name, settings


@lru_cache
def methods() -> dict[str, type[MethodSettings]]:
    """Method -> its settings."""
    return dict(_settings_of_folders(densewalk.methods, "method.py"))


@lru_cache
def evaluations() -> dict[str, type[EvaluationSettings]]:
    """Protocol -> its settings, in the order of the folders' names."""
    return {name: settings for _, name, settings in _protocols()}


def metrics_of_tables() -> dict[str, dict[str, Metric]]:
    """Table -> the metrics of all its evaluations."""
    found: dict[str, dict[str, Metric]] = {}
    for settings in evaluations().values():
        found.setdefault(settings.TABLE, {}).update(settings.METRICS)
    return found


def _protocols() -> Iterator[tuple[str, str, type[EvaluationSettings]]]:
    for folder, protocols in _settings_of_folders(densewalk.evaluations, "evaluate.py"):
        yield from ((folder, name, settings) for name, settings in protocols.items())


def method_class(name: str) -> Any:
    """The method's class, or the function of one that trains nothing; imports torch."""
    return importlib.import_module(f"densewalk.methods.{name}.method").METHOD


def evaluation_module(protocol: str) -> Any:
    """The module with `evaluate` and `describe_data`; imports torch."""
    return importlib.import_module(f"densewalk.evaluations.{evaluation_folder(protocol)}.evaluate")


def evaluation_folder(protocol: str) -> str:
    """The folder of densewalk.evaluations that a protocol is in."""
    return next(folder for folder, name, _ in _protocols() if name == protocol)


def parse_training(method: str, settings: dict[str, Any]) -> MethodSettings:
    """The settings of a run's specification."""
    return methods()[method].model_validate(settings)


def parse_evaluation(protocol: str, settings: dict[str, Any]) -> EvaluationSettings:
    """The settings of an evaluation's specification."""
    return evaluations()[protocol].model_validate(settings)
