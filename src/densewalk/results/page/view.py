"""The report's contents as its template gets them. Text is text until the template escapes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from densewalk.results.missing import Output

Facts = Sequence[tuple[str, str]]  # name and value


@dataclass(frozen=True)
class GainCell:
    """A run's difference in one evaluation, or a floor's value. seeds: differences by seed; empty text for what there is not.

    units: the interval over test units; tie: it holds 0, or p is above 0.05.
    """

    text: str
    interval: str = ""
    best: bool = False
    note: str = ""
    seeds: str = ""
    units: str = ""
    tie: bool = False


@dataclass(frozen=True)
class GainRow:
    """A run, or a floor."""

    run: str
    is_floor: bool
    cells: Sequence[GainCell]


@dataclass(frozen=True)
class GainTable:
    """Differences to each run's start, or to the baseline. columns: evaluation and metric."""

    heading: str
    text: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[GainRow]

    @property
    def has_units(self) -> bool:
        """True if any difference has an interval over test units."""
        return any(cell.units for row in self.rows for cell in row.cells)


@dataclass(frozen=True)
class MovedRow:
    """A test unit or a class that gained or lost: its own score before and after, and the difference."""

    kind: str
    name: str
    before: str
    after: str
    difference: str


@dataclass(frozen=True)
class GainPlace:
    """Where the difference of a run to a reference lives. text: how many units gained and lost. images: of units, the reference's first."""

    heading: str
    text: str
    gained: Sequence[MovedRow]
    lost: Sequence[MovedRow]
    images: Sequence["Image"]


@dataclass(frozen=True)
class Chart:
    """A chart with its heading; note: stands below it. counted: it is by counted work."""

    title: str
    svg: Markup
    note: str = ""
    counted: bool = False


@dataclass(frozen=True)
class Image:
    """An image as a data address. title: in words for who does not see it. label, note: stand below it."""

    title: str
    data: Markup
    width: int
    height: int
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Number:
    """A cell of a metric's column; empty text for what there is not. best: of its column."""

    mean: str
    interval: str
    published: str
    published_delta: str
    best: bool


@dataclass(frozen=True)
class Row:
    """A run in the table of an evaluation. gap: what is missing of it. how: its numbers were made; empty without numbers.

    other: by code or packages that are not those of the page.
    """

    id: str
    run: str
    gap: str
    numbers: Sequence[Number]
    cells: Sequence[str]
    how: Facts
    other: bool


@dataclass(frozen=True)
class EvaluationTable:
    """The table of one evaluation. same: in all rows, above the table. shared: by all rows, below it."""

    name: str
    label: str
    columns: Sequence[str]
    rows: Sequence[Row]
    metrics: Facts
    same: Facts
    shared: Facts
    has_intervals: bool
    about_intervals: str
    has_best: bool
    classes: Sequence[Chart]


@dataclass(frozen=True)
class Section:
    """The evaluations of one table of the study."""

    name: str
    heading: str
    tables: Sequence[EvaluationTable]


@dataclass(frozen=True)
class LadderPart:
    """Which setting makes which part of a difference.

    rows: step, values, share, its interval, what it adds in this order and from either end.
    """

    heading: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


@dataclass(frozen=True)
class Features:
    """Images of backbones' features.

    drawn: source and number of each image. components: of each run, one for each image, None of one that it has not seen.
    without_attention: runs whose networks have none.
    """

    images: Sequence[Image]
    drawn: Sequence[tuple[str, int]]
    components: dict[str, list[Image | None]]
    attention: list[Image]
    without_attention: list[str]
    nearest: list[Image]


@dataclass(frozen=True)
class AskedImage:
    """An image whose patches can be asked. element: id of the image on the page. frame: of a clip, which nothing else shows."""

    title: str
    element: str
    frame: Image | None


@dataclass(frozen=True)
class AskedPatches:
    """Codes of the patches of all images. runs: what the script reads of each. left_out: runs that the page has no room for."""

    images: Sequence[AskedImage]
    runs: Mapping[str, Mapping[str, object]]
    components: int
    left_out: Sequence[str]

    @property
    def described(self) -> list[dict[str, str]]:
        """What the script reads of the images."""
        return [{"title": image.title, "element": image.element} for image in self.images]


@dataclass(frozen=True)
class AskedVotes:
    """Who voted for patches. images: in base64. evaluations: of each, what the script reads of each run. left_out: without room."""

    images: Sequence[str]
    evaluations: Mapping[str, Mapping[str, object]]
    left_out: Sequence[str]


@dataclass(frozen=True)
class PredictionGroup:
    """Images of one name, one for each run. legend: label -> color, of all of them."""

    name: str
    images: Sequence[Image]
    legend: Mapping[str, str]


@dataclass(frozen=True)
class Predictions:
    """Images of one evaluation. more: that are not shown."""

    evaluation: str
    shows: str
    groups: Sequence[PredictionGroup]
    more: int


@dataclass(frozen=True)
class NumberTable:
    """A whole table, as `results/tables` has it. lines: of the file; shown: the first of them."""

    name: str
    lines: int
    shown: pd.DataFrame


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order. legend: of the charts of costs. lacking: how much is missing. results: their folder.

    stale: reason -> what other code has made. rising: losses that end higher than they began.
    """

    title: str
    facts: Facts
    missing: Sequence[Output]
    lacking: str
    stale: Mapping[str, Sequence[str]]
    diagram: Markup
    legend: Markup | None
    gains: Sequence[GainTable]
    places: Sequence[GainPlace]
    rising: Sequence[str]
    costs: Sequence[Chart]
    sections: Sequence[Section]
    ladders: Sequence[LadderPart]
    features: Features | None
    asked: AskedPatches | None
    votes: AskedVotes | None
    training: Sequence[Image]
    predictions: Sequence[Predictions]
    curves: Sequence[Chart]
    numbers: Sequence[NumberTable]
    results: str
    version: str
    commit: str
