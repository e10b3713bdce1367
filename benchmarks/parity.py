"""Every reference case of methods and frozen evaluations: our value, the released implementation's, and how far they are apart.

    python benchmarks/parity.py [FOLDER]            # of the reference values, ../shared/parity by default; a minute

Sizes, settings and recorded draws are read from the files, so that a folder with other cases of the same kinds will do. A file's
kind is told by its name, or by its keys where the name is another one. One line for each quantity of each case, as a table in
Markdown. Arrays are compared element by element: `ours` and `theirs` are their means, the difference is the largest of all
elements. Below the table stands what is not compared, and why: kinds that are not in the folder, files of no known kind, and parts of
a file.

Exit status 1 where a value is further away than its file allows, where a file is damaged or lacks a key, or where nothing at all
was compared.
"""

import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script: `benchmarks` is not installed

from benchmarks.reference_values import (
    cis,
    contrastive,
    crw,
    depth,
    dora,
    evidence,
    frozen,
    geometry,
    landmarks,
    mae,
    masked,
    mosic,
    neco,
    paka,
    parts,
    position,
    segments,
    timetuning,
)
from benchmarks.reference_values.rows import Note, Row, compare

__all__ = ["FILES", "Note", "Row", "compare", "kind_of", "main", "rows_of"]
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "parity"
Reader = Callable[[Any], Iterator[Row | Note]]
# kind -> how its rows are made, and patterns of keys that every file of it has
FILES: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "cis": (cis.cis, (r"(.+/)?pred_outside", r"(.+/)?grad_mask")),
    "contrastive_losses": (contrastive.contrastive_losses, (r"process/.+/loss|ntxent_one_process/.+/z0",)),
    "crw": (crw.crw, (r"walks/.+/embeddings",)),
    "davis_jf": (frozen.davis_jf, (r".+/gt", r".+/pred", r".+/n", r".+/J")),
    "davis_propagation": (frozen.davis_propagation, (r".+/hwrk",)),
    "dinov2_parts": (masked.dinov2_parts, (r"positions/.+/resized", r"layer_decay/.+")),
    "dinov2_step_centering": (masked.dinov2_step, (r"group_multipliers/.+", r"steps/0/globals")),
    "dinov2_step_sinkhorn": (masked.dinov2_step, (r"group_multipliers/.+", r"steps/0/drop_path_kept/.+")),
    "dinov2_loss": (parts.dinov2_loss, (r"koleo/.+/x|sinkhorn_(cls|patch)/.+/targets",)),
    "dora_step": (dora.dora_step, (r"mot/heads", r"config/sk_eps")),
    "eval_bootstrap": (evidence.eval_bootstrap, (r"(exact|miou)/.*confusion_a|(clustered|coco|matching)/.*indices|holm/.*adjusted",)),
    "eval_correspondence": (geometry.eval_correspondence, (r"(pair|probe3d)/.+/(trg_bndbox|threshold_scale)",)),
    "eval_depth": (depth.eval_depth, (r"bins/.+/logits|dinov[23]_head/.*weight|metrics/.+/toolbox|loss/.+/sig_warmup",)),
    "eval_depth_train": (depth.eval_depth_train, (r"gt", r".+/loss_norm_lr_beta1", r".+/weight0")),
    "eval_discovery": (geometry.eval_discovery, (r"attention/.+/cls|corloc/owner|tokencut/.+/tau",)),
    "eval_ladder": (evidence.eval_ladder, (r".+/scores", r".+/shapley")),
    "eval_position": (position.eval_position, (r"debias/.+/zero_image|xray/.+/omega2",)),
    "eval_retrieval": (landmarks.eval_retrieval, (r".+/database", r".+/gnd/.+/easy")),
    "eval_vos": (parts.eval_vos, (r".+/categories", r".+/J")),
    "hummingbird": (frozen.hummingbird, (r"cases/.+/fake_weight",)),
    "knn": (frozen.nearest_neighbours, (r".+/train", r".+/vy", r".+/acc\d+")),
    "ibot_loss": (masked.ibot_loss, (r"steps/.+/student_patch",)),
    "ibot_masks": (masked.ibot_masks, (r"(ibot|dinov2)/.+/attempts",)),
    "ibot_step": (masked.ibot_step, (r"config/shared_head", r"steps/0/images/globals")),
    "mae_step": (mae.mae_step, (r".+/noise", r".+/ids_restore")),
    "lost": (frozen.lost, (r".+/feats", r".+/cfg", r".+/scores")),
    "mosic_loss": (mosic.mosic_loss, (r"cases/.+/teacher_scores", r"cases/.+/visible")),
    "mocov3_step": (contrastive.mocov3_step, (r"weights/predictor/.+", r"steps/0/q1")),
    "neco_eval": (frozen.neco_eval, (r"miou/.+/miou|pca/x|process_attentions/.+/attn",)),
    "neco_loss": (neco.neco_loss, (r".+/teacher_gc", r".+/bboxes/gc")),
    "neco_sort": (neco.neco_sort, (r".+/S", r".+/T", r".+/steep_s")),
    "neco_step": (neco.neco_step, (r"student0/cls_token", r"steps/0/loss")),
    "neco_views": (neco.neco_views, (r"(box_arithmetic|cases)/.+/gc",)),
    "paka": (paka.paka, (r"cka/.+/student|roi/.+/tokens",)),
    "pamr": (segments.pamr, (r"cases/.+/dilations", r"cases/.+/refined")),
    "rasa": (position.rasa, (r"rounds/.+/positional|one_dimensional/.*left|svd/.*blank_features",)),
    "stego": (segments.stego, (r"(correlation/.+/coords1|cluster_probe/.+/clusters|crf/guidance)",)),
    "timetuning_eval": (frozen.timetuning_eval, (r"annotations", r"cases/.+/cluster_maps")),
    "timetuning_propagation": (timetuning.timetuning_propagation, (r".+/n_last_frames",)),
    "timetuning_sinkhorn": (timetuning.timetuning_sinkhorn, (r".+/scores", r".+/eps", r".+/q")),
    "timetuning_step": (timetuning.timetuning_step, (r".+/model0/prototypes",)),
}


class Unreadable(Exception):
    """A file that cannot be compared, with the reason in one line."""


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name (`neco_step.npz`, `neco_step_2.npz`), else by its keys; None if it is none.

    Raises:
        Unreadable: it is no file of arrays.
    """
    known = sorted(FILES, key=len, reverse=True)
    named = next((kind for kind in known if re.fullmatch(rf"{kind}([._-].*)?", path.stem)), None)
    if named is not None:
        return named
    with _opened(path) as values:
        return next(
            (kind for kind, (_, keys) in FILES.items() if all(any(re.fullmatch(k, own) for own in values.files) for k in keys)), None
        )


def _opened(path: Path) -> Any:
    """The file's arrays.

    Raises:
        Unreadable: it has none.
    """
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Unreadable(f"{path.name} cannot be read as .npz: {_line(error)}") from error
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise Unreadable(f"{path.name} cannot be read as .npz: it holds one array")
    return found


def rows_of(folder: Path, name: str) -> Iterator[Row | Note]:
    """All rows of one file.

    Raises:
        Unreadable: it is damaged, lacks a key, or an array has another shape than its case's settings say.
    """
    path = folder / f"{name}.npz"
    kind = kind_of(path)
    assert kind in FILES
    found = 0
    try:
        with _opened(path) as values:
            for row in FILES[kind][0](values):
                found += 1
                yield row
    except Unreadable:
        raise
    except KeyError as error:
        raise Unreadable(f"{path.name} is no whole file of kind {kind}: {_line(error)}") from error
    except Exception as error:  # a file from elsewhere can be wrong in any way, and the others are to be compared all the same
        raise Unreadable(f"{path.name}, of kind {kind}, cannot be compared: {type(error).__name__}: {_line(error)}") from error
    if not found:
        raise Unreadable(f"{path.name} has no case of kind {kind}")


def _line(error: BaseException) -> str:
    return (str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__).strip().splitlines()[0]


def main() -> int:
    """Print the table and what is not compared."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not folder.is_dir():
        print(f"{folder} is no folder; give one with reference values (*.npz)")
        return 1
    print("| file | case | quantity | ours | theirs | difference | allowed |", "|---|---|---|---|---|---|---|", sep="\n")
    failed, compared, wrong, notes, kinds = 0, 0, [], [], set()
    for path in sorted(folder.iterdir()):
        if path.suffix != ".npz":
            notes += [] if path.suffix == ".md" else [f"{path.name}: no .npz"]
            continue
        try:
            kind = kind_of(path)
            kinds.add(kind)
            if kind is None:
                notes.append(f"{path.name}: of no known kind")
                continue
            for row in rows_of(folder, path.stem):
                if isinstance(row, Note):
                    notes.append(f"{path.name}, {row.case}: {row.why}")
                    continue
                compared += 1
                failed += not row.holds
                print_row(row, path.stem)
        except Unreadable as error:
            wrong.append(str(error))
    notes += [f"{kind}: no file of this kind in {folder}" for kind in FILES if kind not in kinds]
    for title, lines in (("not compared", notes), ("wrong", wrong)):
        for line in lines:
            print(f"{title}: {line}")
    print(f"{compared} quantities compared, {failed} too far, {len(wrong)} files wrong")
    return 1 if failed or wrong or not compared else 0


def print_row(row: Row, file: str) -> None:
    """One line of the table."""
    mark = "" if row.holds else " **too far**"
    numbers = f"{row.ours:.6g} | {row.theirs:.6g} | {row.difference:.1e}{mark} | {row.allowed:g}"
    print(f"| {file} | {row.case} | {row.quantity} | {numbers} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
