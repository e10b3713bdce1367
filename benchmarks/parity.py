"""Every reference case of the frozen evaluations: our value, the released implementation's, and how far they are apart.

    python benchmarks/parity.py [FOLDER]            # of the reference values, ../shared/parity by default; some seconds

One line for each quantity of each case, as a table in Markdown. Exit status 1 where one is further away than its file allows.
Arrays are compared element by element: `ours` and `theirs` are their means, the difference is the largest of all elements.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densewalk.data.benchmarks import boxes
from densewalk.evaluations.common import label_propagation
from densewalk.evaluations.discovery import evaluate as discovery
from densewalk.evaluations.incontext import retrieval
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.knn import evaluate as knn
from densewalk.evaluations.metrics.davis import jf, statistics
from densewalk.evaluations.metrics.segmentation import Confusion, confusion_matrix, hungarian, many_to_one, mean_iou, reassign
from densewalk.evaluations.video_segmentation.evaluate import match_and_score
from densewalk.ops.attention_mask import foreground_masks
from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center
from densewalk.ops.label_propagation import Rule, propagate
from densewalk.ops.nearest_neighbors import nearest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "parity"


@dataclass(frozen=True)
class Row:
    """One quantity of one case. allowed: largest difference; 0 is equal to the bit."""

    file: str
    case: str
    quantity: str
    ours: float
    theirs: float
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough; NaN is not."""
        return self.difference <= self.allowed


def compare(file: str, case: str, quantity: str, ours: Any, theirs: Any, allowed: float) -> Row:
    """Element by element; NaN in the same place is equal."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        raise ValueError(f"{file}, {case}, {quantity}: shape {a.shape}, expected {b.shape}")
    same = np.isnan(a) & np.isnan(b)
    difference = float(np.where(same, 0, np.abs(a - b)).max()) if a.size else 0.0
    return Row(file, case, quantity, float(np.nanmean(a)), float(np.nanmean(b)), difference, allowed)


def cases(values: Any, depth: int = 1) -> list[str]:
    """The names that the keys begin with."""
    return sorted({"/".join(key.split("/")[:depth]) for key in values.files})


# -- one file each -----------------------------------------------------------------------------------------------------


def davis_jf(values: Any) -> Iterator[Row]:
    """J and F of the official tool."""
    for case in cases(values):
        j, f = jf(values[f"{case}/gt"], values[f"{case}/pred"], int(values[f"{case}/n"]))
        yield compare("davis_jf", case, "J", j, values[f"{case}/J"], 0)
        yield compare("davis_jf", case, "F", f, values[f"{case}/F"], 0)
        yield compare("davis_jf", case, "mean, recall, decay", np.stack([statistics(j), statistics(f)], 1), values[f"{case}/stats"], 1e-12)


def davis_propagation(values: Any) -> Iterator[Row]:
    """DINO's label propagation and stretching of channels."""
    for case in (c for c in cases(values) if c != "norm_mask"):
        height, width, radius, top_k = values[f"{case}/hwrk"].tolist()
        features = F.normalize(torch.from_numpy(values[f"{case}/feats"]), dim=-1)[:, None]
        labels = torch.from_numpy(values[f"{case}/segs"]).flatten(2)[:, None]
        theirs = torch.from_numpy(values[f"{case}/out"]).flatten(1)
        ours = propagate(list(features[:-1]), list(labels), features[-1], Rule((height, width), radius, top_k, 7))[0]
        yield compare("davis_propagation", case, "soft labels", ours, theirs, 2e-5)
        yield compare("davis_propagation", case, "labels", ours.argmax(0), theirs.argmax(0), 0)
    stretched = label_propagation.normalize_channels(torch.from_numpy(values["norm_mask/x"]), constant_channel_wins=True)
    yield compare("davis_propagation", "norm_mask", "stretched channels (released)", stretched, values["norm_mask/y"], 1e-6)


def hummingbird(values: Any) -> Iterator[Row]:
    """open-hummingbird-eval from images to mIoU, its fake projection being the backbone and its choice of patches given."""
    settings = IncontextSettings(root=".", dataset="", layout="voc", compat="released", input_size=112)
    for name in (c for c in cases(values, 2) if c.startswith("cases/")):
        case = {k.removeprefix(f"{name}/"): torch.from_numpy(values[k]) for k in values.files if _numbers_of(values, k, name)}
        memory = _hummingbird_memory(case)
        yield compare("hummingbird", name, "memory features", memory.features, case["feature_memory"], 1e-5)
        yield compare("hummingbird", name, "memory labels", memory.labels, case["label_memory"], 1e-6)
        confusion = Confusion(int(case["num_classes"]), ignore=255)
        mixtures, predictions = [], []
        for maps, masks in _hummingbird_batches(case, "val"):
            for features, mask in zip(maps, masks, strict=True):
                similarity, index = nearest(memory.features, F.normalize(features.flatten(1).T, dim=1), settings.neighbours)
                mixtures.append(retrieval.mix_labels(memory, similarity, index, settings.temperature))
                predictions.append(retrieval.retrieve(memory, features, settings, (112, 112)))
                confusion.add(mask, predictions[-1])
        yield compare("hummingbird", name, "label mixture", torch.stack(mixtures), case["label_hat"], 2e-6)
        yield compare("hummingbird", name, "predicted labels", torch.stack(predictions), case["pred"], 0)
        matched = reassign(confusion.matrix, hungarian(confusion.matrix))
        for quantity, matrix, key in (("mIoU", confusion.matrix, "identity"), ("mIoU, Hungarian", matched, "hungarian")):
            yield compare("hummingbird", name, quantity, mean_iou(matrix, absent="zero"), case[f"miou_{key}"], 1e-6)


def _numbers_of(values: Any, key: str, case: str) -> bool:
    return key.startswith(f"{case}/") and values[key].dtype.kind != "U"


def _hummingbird_batches(case: dict[str, Tensor], split: str) -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(len({k.split("/")[1] for k in case if k.startswith(f"{split}/")})):
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


def nearest_neighbors(values: Any) -> Iterator[Row]:
    """DINO's weighted k-NN."""
    for case in cases(values):
        train, ty, test, vy = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("train", "ty", "test", "vy"))
        ks = sorted(int(k.removeprefix(f"{case}/acc")) for k in values.files if k.startswith(f"{case}/acc"))
        similarity, index = nearest(train, test, ks[-1])
        predictions = knn.vote(similarity, ty[index], int(values[f"{case}/nc"]), ks, 0.07)
        for k, prediction in zip(ks, predictions, strict=True):
            yield compare("knn", case, f"predicted class, k {k}", prediction, values[f"{case}/rank{k}"][:, 0], 0)
            accuracy = 100 * (prediction == vy).double().mean()
            yield compare("knn", case, f"top-1 in %, k {k}", accuracy, values[f"{case}/acc{k}"][0], 1e-9)


def lost(values: Any) -> Iterator[Row]:
    """LOST's degrees, seed and box; any order of equal degrees is right."""
    for case in (c for c in cases(values) if c.startswith("l")):
        x = torch.from_numpy(values[f"{case}/feats"])[0]
        rows, columns, patch, height, width, k = values[f"{case}/cfg"].tolist()
        mask, seed = discovery.lost(x, k)
        box = discovery.bounding_box(discovery.component_of(mask.reshape(rows, columns), seed), patch, width, height)
        yield compare("lost", case, "degrees", discovery.degrees(x), -values[f"{case}/scores"], 0)
        if not values[f"{case}/tie"][0]:
            yield compare("lost", case, "seed", seed, values[f"{case}/seed"], 0)
        yield compare("lost", case, "box", box, values[f"{case}/pred"], 0)
    overlaps = boxes.iou(values["iou/b"].astype(float), values["iou/gt"].astype(float))
    yield compare("lost", "iou", "IoU of boxes", overlaps, values["iou/y"], 1e-6)


def neco_eval(values: Any) -> Iterator[Row]:
    """NeCo's matched mIoU, principal components, clusters and attention masks."""
    for case in (c for c in cases(values, 2) if c.startswith("miou/")):
        k, c, gt, pred, miou, linear, many = (values[f"{case}/{n}"] for n in ("K", "C", "gt", "pred", "miou", "linear", "many_to_one"))
        confusion = confusion_matrix(torch.from_numpy(gt), torch.from_numpy(pred), int(c), int(k))
        if not linear:
            confusion = reassign(confusion, many_to_one(confusion) if many else hungarian(confusion))
        yield compare("neco_eval", case, "mIoU", mean_iou(confusion, absent="zero"), miou, 1e-6)
    x, z = torch.from_numpy(values["pca/x"]), torch.from_numpy(values["pca/z"])
    found = PrincipalComponents(x).project(x, int(values["pca/pca_dim"]))
    yield compare("neco_eval", "pca", "components but for their signs", found * (found * z).sum(0).sign(), z, 2e-4)
    for case in (c for c in cases(values, 2) if c.startswith("cluster/")):
        theirs, count = torch.from_numpy(values[f"{case}/assign"]).flatten(), int(values[f"{case}/K"])
        ours = nearest_center(z, kmeans(z, count, seed=0, iterations=100, restarts=5))
        spreads = [_spread(z, labels) for labels in (ours, theirs)]
        excess = max(0.0, spreads[0] / spreads[1] - 1)  # another start gives other clusters: they must not be looser
        yield Row("neco_eval", case, "squared distances within clusters, relative excess", *spreads, excess, 0.01)
    for case in (c for c in cases(values, 2) if c.startswith("process_attentions/")):
        attention, mask = (torch.from_numpy(values[f"{case}/{n}"])[:, 0] for n in ("attn", "mask"))
        yield compare("neco_eval", case, "attention mask", foreground_masks(attention, float(values[f"{case}/threshold"])), mask, 0)


def _spread(x: Tensor, labels: Tensor) -> float:
    return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in labels.unique())


def timetuning_eval(values: Any) -> Iterator[Row]:
    """Time-Tuning's frame-wise, sample-wise and dataset-wise mIoU of given clusters."""
    labels = torch.from_numpy(values["annotations"])
    clips, frames, *size = labels.shape
    for case in (c for c in cases(values, 2) if c.startswith("cases/")):
        protocol = str(values[f"{case}/protocol"])
        groups = {"frame-wise": (clips * frames, 1), "sample-wise": (clips, frames), "dataset-wise": (1, clips * frames)}[protocol]
        maps = torch.from_numpy(values[f"{case}/cluster_maps"].astype(np.int64)).view(*groups, *size)
        how = "many_to_one" if values[f"{case}/many_to_one"] else "hungarian"
        pairs = zip(labels.view(*groups, *size), maps, strict=True)
        scores = [match_and_score(t, m, int(maps.max()) + 1, how)[0] for t, m in pairs]
        yield compare("timetuning_eval", case, f"mIoU, {protocol}, {how}", np.mean(scores), values[f"{case}/score"], 1e-6)


FILES = {
    "davis_jf": davis_jf,
    "davis_propagation": davis_propagation,
    "hummingbird": hummingbird,
    "knn": nearest_neighbors,
    "lost": lost,
    "neco_eval": neco_eval,
    "timetuning_eval": timetuning_eval,
}


def rows_of(folder: Path, name: str) -> Iterator[Row]:
    """All rows of one file."""
    with np.load(folder / f"{name}.npz") as values:
        yield from FILES[name](values)


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    print("| file | case | quantity | ours | theirs | difference | allowed |", "|---|---|---|---|---|---|---|", sep="\n")
    failed = 0
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for row in (row for name in FILES for row in rows_of(folder, name)):
        failed += not row.holds
        mark = "" if row.holds else " **too far**"
        numbers = f"{row.ours:.6g} | {row.theirs:.6g} | {row.difference:.1e}{mark} | {row.allowed:g}"
        print(f"| {row.file} | {row.case} | {row.quantity} | {numbers} |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
