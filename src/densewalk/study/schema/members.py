"""The models of a study's runs and evaluations: one union each, of all methods and all protocols. Free of torch.

Jobs do without them: building these takes half a second, and a job's own file names its method or protocol.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, create_model

from densewalk.core.text.complaints import did_you_mean
from densewalk.study.registry import evaluations, methods
from densewalk.study.runs import BaseEvaluation, Baseline, BaseRun, ChangedRun, TaughtRun, TrainedRun
from densewalk.training.settings import MethodSettings, TrainingSettings


def _model(name: str, base: type, tag: str, settings: type, suffix: str) -> Any:
    """A member of the union of runs or evaluations: `tag` says which, `settings` what may be set."""
    title = "".join(part.capitalize() for part in name.split("_")) + suffix
    tagged: Any = {tag: (Literal[name], ...), "settings": (settings, ...)}
    return create_model(title, __base__=base, __doc__=settings.__doc__, **tagged)


# in the order of the evaluations, several of which may share a table
TABLES = tuple(dict.fromkeys(settings.TABLE for settings in evaluations().values()))


def _base(settings: type[MethodSettings]) -> type[BaseRun]:
    """What a run of a method may say besides its settings."""
    if not issubclass(settings, TrainingSettings):
        return ChangedRun
    return TaughtRun if settings.TEACHERS else TrainedRun


def _known_table(name: str) -> str:
    if name not in TABLES:
        raise ValueError(f"no such table: '{name}'{did_you_mean(name, TABLES)}; allowed: {', '.join(TABLES)}")
    return name


Table = Annotated[str, AfterValidator(_known_table), Field(json_schema_extra={"enum": [*TABLES]})]
if TYPE_CHECKING:
    Run = BaseRun
    Evaluation = BaseEvaluation
else:
    _RUNS = [_model(name, _base(settings), "method", settings, "Run") for name, settings in methods().items()]
    _EVALUATIONS = [_model(name, BaseEvaluation, "protocol", settings, "") for name, settings in evaluations().items()]
    Run = Annotated[Union[Baseline, *_RUNS], Field(discriminator="method")]
    Evaluation = Annotated[Union[*_EVALUATIONS], Field(discriminator="protocol")]
