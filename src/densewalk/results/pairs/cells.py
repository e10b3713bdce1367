"""An interval over test units as text."""

from densewalk.results.pairs.differences import UnitDifference
from densewalk.results.significance import fixed

UNIT_COLUMNS = ("units_low", "units_high", "units_p", "units_p_holm", "n_units", "n_clusters", "units_method")


def unit_cells(found: UnitDifference | None, p_holm: float | None) -> dict[str, str]:
    """The interval over test units in the columns of a table; empty where there is none."""
    if found is None:
        return dict.fromkeys(UNIT_COLUMNS, "")
    return {
        "units_low": fixed(found.low, sign=True),
        "units_high": fixed(found.high, sign=True),
        "units_p": fixed(found.p, 4),
        "units_p_holm": fixed(p_holm, 4),
        "n_units": str(found.units),
        "n_clusters": "" if found.clusters is None else str(found.clusters),
        "units_method": found.method,
    }
