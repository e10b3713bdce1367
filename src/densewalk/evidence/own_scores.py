"""The score of each unit by itself: where a difference between two rows lives. Free of torch."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from densewalk.evidence.average_precision import AveragePrecision
from densewalk.evidence.groups import MeanOfGroups
from densewalk.evidence.runs import MeanOfRuns
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, RatioOfSums, Statistic

BLOCK = 256  # units that are scored at once


def own_scores(statistic: Statistic) -> Float[np.ndarray, " units"] | None:
    """The score of each unit alone; NaN where it has none, None of a kind that is nothing for single units.

    mIoU and AP of an image: over the classes that it holds. Clusters keep the classes that all images together give them.
    """
    match statistic:
        case MeanOfUnits():
            return statistic.scale * np.asarray(statistic.values, np.float64)
        case RatioOfSums() | MeanOfGroups():
            with np.errstate(invalid="ignore", divide="ignore"):
                return statistic.scale * np.asarray(statistic.correct / statistic.total, np.float64)
        case MeanIoU():
            intersection, union = statistic.dense()
            iou = np.where(union > 0, intersection / np.maximum(union, 1), 0)
            with np.errstate(invalid="ignore"):
                return statistic.scale * iou.sum(1) / (union > 0).sum(1)
        case AveragePrecision():
            return statistic.of_images()
        case MatchedIoU():
            return _of_single_units(replace(statistic, fixed=True, absent="skip"))
        case MeanOfRuns():
            found = [own for run in statistic.runs if (own := own_scores(run)) is not None]
            return np.mean(found, axis=0) if len(found) == len(statistic.runs) else None
    return None


def class_scores(statistic: Statistic) -> dict[str, float]:
    """AP of each class that has an object; nothing of other kinds, whose records hold the values of classes."""
    if not isinstance(statistic, AveragePrecision):
        return {}
    values = statistic.of_classes().tolist()
    names = statistic.classes or [str(number) for number in range(len(values))]
    return {name: value for name, value in zip(names, values, strict=True) if value == value}


def _of_single_units(statistic: MatchedIoU) -> Float[np.ndarray, " units"]:
    """Score units one by one; those without a counted pixel have no score."""
    known = np.unique(statistic.unit)
    found = np.full(statistic.units, np.nan)
    for start in range(0, len(known), BLOCK):
        part = known[start : start + BLOCK]
        weights = np.zeros((len(part), statistic.units))
        weights[np.arange(len(part)), part] = 1
        found[part] = statistic.of_weights(weights)
    return found
