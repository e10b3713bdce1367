"""The part of the page that says which labelled patches voted for a patch, in in-context evaluations."""

from collections.abc import Mapping
from pathlib import Path

from densewalk.results.page.view import AskedVotes
from densewalk.results.plan import Plan
from densewalk.visualization.votes import Votes, read_votes

MOST_BYTES = 3_500_000  # of votes and images as text, of all runs and evaluations


def asked_votes(plan: Plan, folders: Mapping[str, Path], names: Mapping[str, Mapping[str, str]]) -> AskedVotes | None:
    """The votes of all runs of the evaluations that keep them, as far as there is room; None where there are none.

    Args:
        names: of classes for readers, by evaluation.
    """
    images: dict[str, int] = {}  # image -> its number on the page, since runs share them
    found: dict[str, dict[str, object]] = {}
    left_out, size = [], 0
    for evaluation, planned in plan.evaluations.items():
        for run in planned.runs:
            path = folders[run] / evaluation / "votes.json"
            if not (path.is_file() and (folders[run] / f"{evaluation}.json").is_file()):
                continue
            votes = read_votes(path)
            new = dict.fromkeys(image for image in _images(votes) if image not in images)
            texts = (text for q in votes.queries for text in (q.voters, q.predicted, q.share, q.truth, q.mixture))
            needed = sum(map(len, new)) + sum(map(len, texts))
            if size + needed > MOST_BYTES and found:
                left_out.append(f"{run} in {evaluation}")
                continue
            size += needed
            images |= {image: len(images) + i for i, image in enumerate(new)}
            found.setdefault(evaluation, {})[run] = _described(votes, images, names.get(evaluation, {}))
    return AskedVotes(list(images), found, left_out) if found else None


def _images(votes: Votes) -> list[str]:
    return [query.image for query in votes.queries] + [m.image for m in votes.memory if m.image is not None]


def _described(votes: Votes, images: Mapping[str, int], shown: Mapping[str, str]) -> dict[str, object]:
    """What the script reads of the votes; images by their numbers."""
    return {
        "rows": votes.rows,
        "columns": votes.columns,
        "voters": votes.voters,
        "classes": votes.classes,
        "labels": [shown.get(label, label) for label in votes.labels],
        "memory": [[m.name, None if m.image is None else images[m.image]] for m in votes.memory],
        "queries": [[q.name, images[q.image], q.predicted, q.share, q.truth, q.voters, q.mixture] for q in votes.queries],
    }
