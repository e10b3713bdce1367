"""Where the gains on the page live: test units, classes, and images of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from densewalk.results.gain import Gain, gains
from densewalk.results.page.gains import first_metrics
from densewalk.results.page.images import embed
from densewalk.results.page.view import GainPlace, Image, MovedRow
from densewalk.results.pairs.differences import Differences
from densewalk.results.pairs.where import Moved, Where, where
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.significance import fixed, partners
from densewalk.results.tables import grouped

PICTURED = 4  # differences that are shown with images: the largest in comparison with their intervals


def gain_places(plan: Plan, records: Sequence[ResultRecord], differences: Differences, folders: Mapping[str, Path]) -> list[GainPlace]:
    """A part for each difference of the page that has an interval over test units."""
    firsts, groups = first_metrics(plan), grouped(records)
    all_gains = gains(records, plan.metrics_of_tables(), plan.baseline, differences)
    shown = [g for g in all_gains if firsts.get(g.evaluation) == g.metric and g.units is not None and g.reference is not None]
    pictured = sorted(range(len(shown)), key=lambda i: -_clarity(shown[i]))[:PICTURED]
    places, seen = [], set()
    for i, gain in enumerate(shown):
        assert gain.reference is not None
        if (gain.run, gain.reference, gain.evaluation) in seen:  # the start may be the baseline, too
            continue
        seen.add((gain.run, gain.reference, gain.evaluation))
        pairs = [(b, a) for a, b in partners(groups[gain.run, gain.evaluation], groups[gain.reference, gain.evaluation])]
        found = where(pairs, gain.metric, differences)
        if found is not None:
            places.append(_place(gain, found, _images(gain, found, folders) if i in pictured else []))
    return places


def _clarity(gain: Gain) -> float:
    """The size of a difference in half-widths of its interval."""
    assert gain.units is not None
    return abs(gain.units.difference) / max(gain.units.high - gain.units.low, 1e-9)


def _place(gain: Gain, found: Where, images: Sequence[Image]) -> GainPlace:
    gained, lost = found.moved
    assert gain.units is not None
    heading = f"{gain.evaluation}, {gain.metric}: {gain.run} against {gain.reference}, {fixed(gain.units.difference, sign=True)}"
    text = f"Of {gain.units.drawn}, {gained} gained and {lost} lost."
    gain_rows, loss_rows = (
        [_row(kind, m) for kind, parts in ((found.unit, found.units), ("class", found.classes)) for m in parts[side]] for side in (0, 1)
    )
    return GainPlace(heading, text, gain_rows, loss_rows, images)


def _row(kind: str, moved: Moved) -> MovedRow:
    return MovedRow(kind, moved.name, fixed(moved.before), fixed(moved.after), fixed(moved.difference, sign=True))


def _images(gain: Gain, found: Where, folders: Mapping[str, Path]) -> list[Image]:
    """The images of the unit that gained most and of the one that lost most, by reference and run, as far as there are any."""
    images = []
    for title, end in (("gained most", found.units[0]), ("lost most", found.units[1])):
        for moved in end[:1]:
            name = moved.cluster or moved.name
            for run in [r for r in (gain.reference, gain.run) if r is not None and r in folders]:
                path = folders[run] / gain.evaluation / f"{name}.png"
                if path.is_file():
                    images.append(embed(f"{name}, which {title}, by {run}", path, label=f"{name} ({title}), {run}"))
    return images
