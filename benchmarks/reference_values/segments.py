"""Reference values of segmentation by frozen features: the refinement of label maps."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import children, compare, has

from densewalk.ops import pamr as refinement


def pamr(values: Any) -> Rows:
    """Every recorded refinement."""
    for number in children(values, "cases"):
        case = f"cases/{number}"
        images, scores = (torch.from_numpy(values[f"{case}/{key}"]) for key in ("image", "mask"))
        dilations = values[f"{case}/dilations"].reshape(-1).tolist()
        if has(values, f"{case}/std"):
            deviation = refinement.color_deviation(images, dilations)
            yield compare("pamr", case, "standard deviation", deviation[:, :, None], values[f"{case}/std"], 1e-5)
        refined = refinement.pamr(images, scores, iterations=int(values[f"{case}/iterations"]), dilations=dilations)
        yield compare("pamr", case, "refined", refined, values[f"{case}/refined"], 1e-4)
