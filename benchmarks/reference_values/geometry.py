"""Reference values of object discovery and of correspondence."""

from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import cases, compare

from densewalk.data.benchmarks import boxes
from densewalk.evaluations.correspondence.evaluate import four_averages
from densewalk.evaluations.correspondence.readouts import View, dift, insid3, probe3d
from densewalk.evaluations.discovery import tokencut
from densewalk.evaluations.discovery.attention import mask_jaccard, top_mass_mask
from densewalk.evaluations.discovery.regions import bounding_box, component_of, largest_component
from densewalk.evaluations.geometric_correspondence import matching


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


def eval_correspondence(values: Any) -> Rows:
    """Predictions and scores of the three released read-outs."""
    found: dict[str, list[np.ndarray]] = {"dift": [], "insid3": []}
    names, pairs = [], cases(values, 2, having="trg_bndbox")
    for case in pairs:
        heights_widths = values[f"{case}/sizes"].tolist()
        source, target = (
            View(torch.from_numpy(values[f"{case}/{side}_feats"]), *heights_widths[2 * i : 2 * i + 2][::-1])
            for i, side in enumerate(("src", "trg"))
        )
        points, truth = torch.from_numpy(values[f"{case}/src_kps"]).float(), values[f"{case}/trg_kps"]
        corners = values[f"{case}/trg_bndbox"]
        longer = (corners[2:] - corners[:2]).max()
        names.append(str(values[f"{case}/category"]))
        for kind, readout, tolerance in (("dift", dift, 0), ("insid3", insid3, 2e-3)):
            predicted = readout(source, target, points).double().numpy()
            found[kind].append(np.linalg.norm(predicted - truth, axis=1) / longer)
            yield compare("eval_correspondence", case, f"prediction, {kind}", predicted, values[f"{case}/{kind}_pred"], tolerance)
        yield compare("eval_correspondence", case, "correct, dift", found["dift"][-1] <= 0.1, values[f"{case}/dift_correct"], 0)
    if pairs:
        yield from _averages(values, found, np.array(names))
    errors: list[float] = []
    for case in cases(values, 2, having="threshold_scale"):
        size, visible = int(values[f"{case}/size"]), values[f"{case}/index"]
        source, target = (View(maps, size, size, size) for maps in torch.from_numpy(values[f"{case}/feats"]))
        points, truth = (values[f"{case}/kps_{side}"][visible, :2] for side in ("src", "trg"))
        predicted = probe3d(source, target, torch.from_numpy(points).float()).double().numpy()
        error = np.linalg.norm(predicted - truth, axis=1) / size / float(values[f"{case}/threshold_scale"])
        errors += error.tolist()
        yield compare("eval_correspondence", case, "error, probe3d", error, values[f"{case}/error"], 1e-4)
    if errors:
        recall = 100 * float(np.mean(np.array(errors) < 0.1))
        yield compare("eval_correspondence", "probe3d", "recall at 0.1 in %", recall, values["probe3d/recall_0.1"], 1e-4)
    if cases(values, 1).count("navi"):
        yield from _matches_in_3d(values)


def _matches_in_3d(values: Any) -> Rows:
    """Weights of matches by the ratio of distances, the best ones, and recalls by angle."""
    weights = matching.ratio_weights(torch.from_numpy(values["navi/nearest_two"]))
    best = weights.sort(descending=True, stable=True).indices[: len(values["navi/top50"])]
    bins = matching.means_of_bins(values["navi/recall"].astype(float), values["navi/angle"], (0.0, 30.0, 60.0, 90.0, 120.0))
    yield compare("eval_correspondence", "navi", "weights", weights, values["navi/weight"], 1e-4)
    yield compare("eval_correspondence", "navi", "best matches", np.sort(best), values["navi/top50"], 0)
    yield compare("eval_correspondence", "navi", "recall by angle", [mean for mean, _ in bins], values["navi/bins"], 1e-4)


def _averages(values: Any, found: dict[str, list[np.ndarray]], names: np.ndarray) -> Rows:
    """PCK by image and by point, over pairs and categories."""
    total = np.array([len(errors) for errors in found["dift"]])

    def averages(kind: str, alpha: float) -> dict[tuple[str, str], float]:
        return four_averages(np.array([(errors <= alpha).sum() for errors in found[kind]]), total, names)

    own = averages("dift", 0.1)
    yield compare("eval_correspondence", "dift", "PCK by image in %", own["image", "pairs"], values["dift/per_image"], 1e-9)
    yield compare("eval_correspondence", "dift", "PCK by point in %", own["point", "pairs"], values["dift/per_point"], 1e-9)
    of_categories = [own[average, "categories"] for average in ("image", "point")]
    yield compare("eval_correspondence", "dift", "means of categories in %", of_categories, values["dift/mean_of_categories"], 1e-9)
    curves = [averages("insid3", alpha) for alpha in values["insid3/alphas"].tolist()]
    for key, which in (
        ("by_image", ("image", "pairs")),
        ("by_point", ("point", "pairs")),
        ("by_image_mean_of_categories", ("image", "categories")),
    ):
        ours = [curve[which] / 100 for curve in curves]
        yield compare("eval_correspondence", "insid3", f"PCK, {key}", ours, values[f"insid3/{key}"], 1e-6)
