"""Reference values of the frozen evaluations: an iterator of rows for each kind of file."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.reference_values.rows import Note, Row, cases, compare, has, optional
from torch import Tensor
from torch.nn import functional as F

from densewalk.data.benchmarks import boxes
from densewalk.evaluations.common import label_propagation
from densewalk.evaluations.discovery import lost as lost_module
from densewalk.evaluations.discovery.regions import bounding_box, component_of
from densewalk.evaluations.incontext import retrieval
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.knn import evaluate as knn
from densewalk.evaluations.metrics.davis import jf, statistics
from densewalk.evaluations.metrics.segmentation import Confusion, confusion_matrix, hungarian, match_clusters, mean_iou, reassign
from densewalk.evaluations.video_segmentation.evaluate import match_and_score
from densewalk.evaluations.video_segmentation.propagation import propagation_score
from densewalk.evidence.matching import Matching
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center, spherical_kmeans
from densewalk.ops.label_propagation import Rule, propagate
from densewalk.ops.search.nearest_neighbors import nearest

Rows = Iterator[Row | Note]


def davis_jf(values: Any) -> Rows:
    """J and F of the official tool."""
    for case in cases(values, having="gt"):
        j, f = jf(values[f"{case}/gt"], values[f"{case}/pred"], int(values[f"{case}/n"]))
        yield compare("davis_jf", case, "J", j, values[f"{case}/J"], 0)
        yield compare("davis_jf", case, "F", f, values[f"{case}/F"], 0)
        if has(values, f"{case}/stats"):
            found = np.stack([statistics(j), statistics(f)], 1)
            yield compare("davis_jf", case, "mean, recall, decay", found, values[f"{case}/stats"], 1e-12)


def davis_propagation(values: Any) -> Rows:
    """DINO's label propagation and stretching of channels."""
    for case in cases(values, having="hwrk"):
        height, width, radius, top_k = values[f"{case}/hwrk"].tolist()
        features = F.normalize(torch.from_numpy(values[f"{case}/feats"]), dim=-1)[:, None]
        labels = torch.from_numpy(values[f"{case}/segs"]).flatten(2)[:, None]
        theirs = torch.from_numpy(values[f"{case}/out"]).flatten(1)
        temperature = optional(values, (f"{case}/temperature", f"{case}/T"), 0.1)
        rule = Rule((height, width), radius, top_k, len(labels), temperature)
        ours = propagate(list(features[:-1]), list(labels), features[-1], rule)[0]
        yield compare("davis_propagation", case, "soft labels", ours, theirs, 2e-5)
        best = theirs.topk(2, dim=0).values
        sure = best[0] - best[1] > 4e-5 if len(theirs) > 1 else torch.ones(theirs.shape[1], dtype=torch.bool)
        yield compare("davis_propagation", case, "labels", ours.argmax(0)[sure], theirs.argmax(0)[sure], 0)
    for case in cases(values, having="x"):
        stretched = label_propagation.normalize_channels(torch.from_numpy(values[f"{case}/x"]), constant_channel_wins=True)
        yield compare("davis_propagation", case, "stretched channels (released)", stretched, values[f"{case}/y"], 1e-6)


def hummingbird(values: Any) -> Rows:
    """open-hummingbird-eval from images to mIoU, its fake projection being the backbone and its choice of patches given."""
    for name in cases(values, 2, having="fake_weight"):
        case = {k.removeprefix(f"{name}/"): torch.from_numpy(values[k]) for k in values.files if _numbers_of(values, k, name)}
        size, neighbours = int(case["size"]), int(case["n_neighbours"])
        settings = IncontextSettings(root=".", dataset="", layout="voc", compat="released", input_size=size, neighbours=neighbours)
        settings = settings.model_copy(
            update={"temperature": optional(values, (f"{name}/temperature", f"{name}/beta"), settings.temperature)}
        )
        memory = _hummingbird_memory(case)
        yield compare("hummingbird", name, "memory features", memory.features, case["feature_memory"], 1e-5)
        yield compare("hummingbird", name, "memory labels", memory.labels, case["label_memory"], 1e-6)
        confusion = Confusion(int(case["num_classes"]), ignore=int(case["ignore_index"]))
        mixtures, predictions = [], []
        for maps, masks in _hummingbird_batches(case, "val"):
            for features, mask in zip(maps, masks, strict=True):
                similarity, index = nearest(memory.features, F.normalize(features.flatten(1).T, dim=1), neighbours)
                mixtures.append(retrieval.mix_labels(memory, similarity, index, settings.temperature))
                predictions.append(retrieval.retrieve(memory, features, settings, tuple(mask.shape)))
                confusion.add(mask, predictions[-1])
        yield compare("hummingbird", name, "label mixture", torch.stack(mixtures), case["label_hat"], 2e-6)
        yield compare("hummingbird", name, "predicted labels", torch.stack(predictions), case["pred"], 0)
        matched = reassign(confusion.matrix, hungarian(confusion.matrix))
        for quantity, matrix, key in (("mIoU", confusion.matrix, "identity"), ("mIoU, Hungarian", matched, "hungarian")):
            yield compare("hummingbird", name, quantity, mean_iou(matrix, absent="zero"), case[f"miou_{key}"], 1e-6)


def _numbers_of(values: Any, key: str, case: str) -> bool:
    return key.startswith(f"{case}/") and values[key].dtype.kind != "U"


def _hummingbird_batches(case: dict[str, Tensor], split: str) -> Iterator[tuple[Tensor, Tensor]]:
    for i in sorted({int(k.split("/")[1]) for k in case if k.startswith(f"{split}/")}):
        images, masks = case[f"{split}/{i}/0"], case[f"{split}/{i}/1"]
        yield F.conv2d(images, case["fake_weight"], stride=int(case["patch_size"])), (masks[:, 0] * 255).round().int()


def _hummingbird_memory(case: dict[str, Tensor]) -> retrieval.Memory:
    """All patches, or the recorded ones; ignored pixels are class 0, as released."""
    patch, classes = int(case["patch_size"]), int(case["num_classes"])
    features, labels, number = [], [], 0
    for _ in range(int(case["augmentation_epoch"])):
        for maps, masks in _hummingbird_batches(case, "train"):
            found = retrieval.patch_labels(torch.where(masks == 255, 0, masks), patch, classes, ignore=None)
            everything = torch.arange(found.shape[1]).expand(len(maps), -1)
            chosen = case.get(f"sampled_indices/{number}", everything)
            features += [F.normalize(m.flatten(1).T[rows], dim=1) for m, rows in zip(maps, chosen, strict=True)]
            labels += [m[rows] for m, rows in zip(found, chosen, strict=True)]
            number += 1
    return retrieval.Memory(torch.cat(features), torch.cat(labels))


def nearest_neighbours(values: Any) -> Rows:
    """DINO's weighted k-NN."""
    for case in cases(values, having="train"):
        train, ty, test, vy = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("train", "ty", "test", "vy"))
        ks = sorted(int(k.removeprefix(f"{case}/acc")) for k in values.files if k.startswith(f"{case}/acc"))
        similarity, index = nearest(train, test, ks[-1])
        temperature = optional(values, (f"{case}/T", f"{case}/temperature"), 0.07)
        predictions = knn.vote(similarity, ty[index], int(values[f"{case}/nc"]), ks, temperature)
        for k, prediction in zip(ks, predictions, strict=True):
            if has(values, f"{case}/rank{k}"):
                yield compare("knn", case, f"predicted class, k {k}", prediction, values[f"{case}/rank{k}"][:, 0], 0)
            accuracy = 100 * (prediction == vy).double().mean()
            yield compare("knn", case, f"top-1 in %, k {k}", accuracy, values[f"{case}/acc{k}"][0], 1e-9)


def lost(values: Any) -> Rows:
    """LOST's degrees, seed and box; any order of equal degrees is right."""
    for case in cases(values, having="cfg"):
        x = torch.from_numpy(values[f"{case}/feats"])[0]
        yield compare("lost", case, "degrees", lost_module.degrees(x), -values[f"{case}/scores"], 0)
        tie_at_seed, tie_at_cut = values[f"{case}/tie"].tolist()
        theirs, orders = values[f"{case}/pred"], _orders(len(x)) if tie_at_seed or tie_at_cut else _orders(len(x), 0)
        box, seed = _lost_box(x, values[f"{case}/cfg"].tolist(), next(orders))
        while (box != theirs).any() and (order := next(orders, None)) is not None:
            box, seed = _lost_box(x, values[f"{case}/cfg"].tolist(), order)
        if not tie_at_seed:
            yield compare("lost", case, "seed", seed, values[f"{case}/seed"], 0)
        yield compare("lost", case, "box", box, theirs, 0)
    for case in cases(values, having="gt"):
        overlaps = boxes.iou(values[f"{case}/b"].astype(float), values[f"{case}/gt"].astype(float))
        yield compare("lost", case, "IoU of boxes", overlaps, values[f"{case}/y"], 1e-6)


def _orders(count: int, others: int = 500) -> Iterator[Tensor]:
    """Orders in which equal degrees may stand: the patches' own, its reverse, and some random ones."""
    yield torch.arange(count)
    if others:
        yield torch.arange(count).flip(0)
        generator = torch.Generator().manual_seed(0)
        yield from (torch.randperm(count, generator=generator) for _ in range(others))


def _lost_box(x: Tensor, cfg: list[int], order: Tensor) -> tuple[np.ndarray, int]:
    """LOST's box and seed, if the patches stand in this order."""
    rows, columns, patch, height, width, k = cfg
    ordered, first = lost_module.lost(x[order], k)
    mask = np.empty_like(ordered)
    mask[order.numpy()] = ordered
    seed = int(order[first])
    return bounding_box(component_of(mask.reshape(rows, columns), seed), patch, width, height), seed


def neco_eval(values: Any) -> Rows:
    """NeCo's matched mIoU, principal components, clusters and attention masks."""
    for case in cases(values, 2, having="miou"):
        k, c, gt, pred, miou, linear, many = (values[f"{case}/{n}"] for n in ("K", "C", "gt", "pred", "miou", "linear", "many_to_one"))
        confusion = confusion_matrix(torch.from_numpy(gt), torch.from_numpy(pred), int(c), int(k))
        if not linear:
            confusion = reassign(confusion, match_clusters(confusion, _matching(many, values[f"{case}/precision"])))
        yield compare("neco_eval", case, "mIoU", mean_iou(confusion, absent="zero"), miou, 1e-6)
    if has(values, "pca/x"):
        x, z = torch.from_numpy(values["pca/x"]), torch.from_numpy(values["pca/z"])
        found = PrincipalComponents(x).project(x, int(values["pca/pca_dim"]))
        yield compare("neco_eval", "pca", "components but for their signs", found * (found * z).sum(0).sign(), z, 2e-4)
        for case in cases(values, 2, having="assign"):
            yield _clusters(values, case, z)
    for case in cases(values, 2, having="attn"):
        attention, mask = (torch.from_numpy(values[f"{case}/{n}"])[:, 0] for n in ("attn", "mask"))
        yield compare("neco_eval", case, "attention mask", foreground_masks(attention, float(values[f"{case}/threshold"])), mask, 0)


def _matching(many: Any, precision: Any) -> Matching:
    if not many:
        return "hungarian"
    return "many_to_one" if precision else "many_to_one_iou"


def _clusters(values: Any, case: str, z: Tensor) -> Row:
    """Another start gives other clusters: they must not be looser."""
    theirs, count = torch.from_numpy(values[f"{case}/assign"]).flatten(), int(values[f"{case}/K"])
    spherical = bool(values[f"{case}/spherical"])
    points = F.normalize(z, dim=1) if spherical else z
    fit = spherical_kmeans if spherical else kmeans
    ours = nearest_center(points, fit(z, count, seed=int(values[f"{case}/seed"]), iterations=100, restarts=5))
    spreads = [_spread(points, labels) for labels in (ours, theirs)]
    excess = max(0.0, spreads[0] / spreads[1] - 1)
    return Row("neco_eval", case, "squared distances within clusters, relative excess", *spreads, excess, 0.01)


def _spread(x: Tensor, labels: Tensor) -> float:
    return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in labels.unique())


def timetuning_eval(values: Any) -> Rows:
    """Time-Tuning's frame-wise, sample-wise and dataset-wise mIoU of given clusters."""
    labels = torch.from_numpy(values["annotations"])
    clips, frames, *size = labels.shape
    for case in cases(values, 2, having="cluster_maps"):
        protocol, many = str(values[f"{case}/protocol"]), bool(values[f"{case}/many_to_one"])
        groups = {"frame-wise": (clips * frames, 1), "sample-wise": (clips, frames), "dataset-wise": (1, clips * frames)}[protocol]
        maps = torch.from_numpy(values[f"{case}/cluster_maps"].astype(np.int64)).view(*groups, *size)
        how = _matching(many, values[f"{case}/precision"])
        pairs = zip(labels.view(*groups, *size), maps, strict=True)
        scores = [match_and_score(t, m, int(maps.max()) + 1, how)[0] for t, m in pairs]
        yield compare("timetuning_eval", case, f"mIoU, {protocol}, {how}", np.mean(scores), values[f"{case}/score"], 1e-6)
    if has(values, "propagation_score"):
        truth = values["annotations"]
        score = propagation_score(truth, np.roll(truth, 1, axis=-1), running_sums=True, skip_missed_frames=True)
        yield compare("timetuning_eval", "propagation", "score of labels moved by a pixel", score, values["propagation_score"], 1e-12)
