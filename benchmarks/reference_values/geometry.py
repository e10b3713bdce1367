"""Reference values of object discovery."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import cases, compare

from densewalk.data.benchmarks import boxes
from densewalk.evaluations.discovery import tokencut
from densewalk.evaluations.discovery.attention import mask_jaccard, top_mass_mask
from densewalk.evaluations.discovery.regions import bounding_box, component_of, largest_component


def eval_discovery(values: Any) -> Rows:
    """Masks, components and boxes by attention, and IoU of boxes."""
    for case in cases(values, 2, having="cls"):
        rows, columns, patch = values[f"{case}/cfg"].tolist()
        attention = torch.from_numpy(values[f"{case}/cls"]).flatten(1)
        for kind, mass, chosen in (("dora", 0.8, attention.mean(0)), ("one_head", 0.6, attention[min(4, len(attention) - 1)])):
            mask = top_mass_mask(chosen, mass).reshape(rows, columns)
            component = largest_component(mask)
            box = bounding_box(component, patch, columns * patch, rows * patch)
            yield compare("eval_discovery", case, f"mask, {kind}", mask, values[f"{case}/{kind}/mask"], 0)
            yield compare("eval_discovery", case, f"component, {kind}", component, values[f"{case}/{kind}/component"], 0)
            yield compare("eval_discovery", case, f"box, {kind}", box, values[f"{case}/{kind}/box_all_components"], 0)
            released = bounding_box(largest_component(mask, "released"), patch, columns * patch, rows * patch)
            yield compare("eval_discovery", case, f"box as released, {kind}", released, values[f"{case}/{kind}/box_released"], 0)
    for case in cases(values, 1, having="owner"):
        truth, owner = values[f"{case}/gt"].astype(float), values[f"{case}/owner"]
        found = [boxes.iou(values[f"{case}/pred"][o].astype(float), t[None])[0] for t, o in zip(truth, owner, strict=True)]
        yield compare("eval_discovery", case, "IoU of boxes", found, values[f"{case}/iou_released"], 1e-6)
        best = [max(f for f, o in zip(found, owner, strict=True) if o == image) for image in range(len(values[f"{case}/pred"]))]
        yield compare("eval_discovery", case, "CorLoc in %", 100 * np.mean([b >= 0.5 for b in best]), values[f"{case}/CorLoc"], 1e-6)
        yield compare("eval_discovery", case, "mean best IoU in %", 100 * np.mean(best), values[f"{case}/box_jaccard"], 1e-5)
    for case in cases(values, 2, having="tau"):
        yield from _token_cut(values, case)
    masked = [mask_jaccard(values[f"{case}/gt"], values[f"{case}/masks"]) for case in cases(values, 2, having="masks")]
    if masked:
        yield compare("eval_discovery", "jaccard", "best IoU of masks by image", masked, values["jaccard/per_image"], 1e-6)
        yield compare("eval_discovery", "jaccard", "mean in %", 100 * np.mean(masked), values["jaccard/mean"], 1e-5)


def _token_cut(values: Any, case: str) -> Rows:
    """TokenCut's eigenvector, partition, component and box; of tied seeds, any is right. `weighted` was solved in float32."""
    rows, columns, patch, height, width = values[f"{case}/cfg"].tolist()
    cosines = tokencut.similarities(torch.from_numpy(values[f"{case}/feats"]))
    for kind, tolerance in (("binary", 1e-4), ("weighted", 2e-3)):
        graph = tokencut.build_graph(cosines, float(values[f"{case}/tau"]), kind)  # type: ignore[arg-type]
        vector, gap = tokencut.second_eigenvector(graph)
        mask, seed = tokencut.partition(vector)
        own, theirs = vector / np.linalg.norm(vector), values[f"{case}/{kind}/eigenvector"].ravel()
        own, theirs = own * np.sign(own[seed]), theirs / np.linalg.norm(theirs) * np.sign(theirs[seed])
        component = component_of(mask.reshape(rows, columns), seed)
        eigenvalues = values[f"{case}/{kind}/eigenvalues"]
        name = f"{case}/{kind}"
        yield compare("eval_discovery", name, "eigenvector", own, theirs, tolerance)
        yield compare("eval_discovery", name, "eigenvalues' gap", gap, eigenvalues[2] - eigenvalues[1], 0.05)
        yield compare("eval_discovery", name, "a right seed", seed in values[f"{case}/tied_seeds"] or kind == "weighted", True, 0)
        yield compare("eval_discovery", name, "partition", mask.reshape(rows, columns), values[f"{name}/partition"], 0)
        yield compare("eval_discovery", name, "component", component, values[f"{name}/component"], 0)
        yield compare("eval_discovery", name, "box", bounding_box(component, patch, width, height), values[f"{name}/box"], 0)
