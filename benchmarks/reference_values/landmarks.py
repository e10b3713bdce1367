"""Reference values of landmark retrieval."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, cases, compare

from densewalk.evaluations.retrieval.scores import CUTS, DIFFICULTIES, average_precision, positions, precision_at, rank


def eval_retrieval(values: Any) -> Rows:
    """Rankings, and AP and precisions of every difficulty; the revisited benchmark's own code."""
    for case in cases(values, having="database"):
        database, queries = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("database", "queries"))
        rankings = np.stack([rank(database, query) for query in queries])
        yield compare("eval_retrieval", case, "rankings", rankings.T, values[f"{case}/ranks"], 0)
        for difficulty, sorts in DIFFICULTIES.items():
            found = []
            for q, ranking in enumerate(rankings):
                positives, junk = (np.concatenate([values[f"{case}/gnd/{q}/{kind}"] for kind in kinds]) for kinds in sorts)
                found.append(positions(ranking, positives, junk))
            precisions = [100 * average_precision(p) for p in found]
            yield compare("eval_retrieval", case, f"AP in %, {difficulty}", precisions, values[f"{case}/{difficulty}/AP"], 1e-9)
            at = [100 * np.nanmean([precision_at(p, cut) for p in found]) for cut in CUTS]
            yield compare("eval_retrieval", case, f"mP in %, {difficulty}", at, values[f"{case}/{difficulty}/mP"], 1e-9)
    for other in ("multi_scale", "copydays"):
        if cases(values, 1).count(other):
            yield Note("eval_retrieval", other, "in tests/evaluations/test_retrieval.py" if other == "multi_scale" else "not here")
