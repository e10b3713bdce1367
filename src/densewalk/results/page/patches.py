"""The part of the page that can be asked: which patches are similar to this one, by two backbones."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from densewalk.results.page.images import embed
from densewalk.results.page.view import AskedImage, AskedPatches, Image
from densewalk.visualization.patch_codes import END, PatchCodes, codes_of, pack, patches_path, read_patches
from densewalk.visualization.record import read_features

MOST_BYTES = 4_500_000  # of all codes as text: with more runs or images, fewer components of each
FEWEST = 8  # components, below which similarities say little: beyond that, further runs are left out
Key = tuple[str, int, float | None]  # source, number, seconds of a clip's frame


def asked_patches(folders: Mapping[str, Path], drawn: Sequence[tuple[str, int]]) -> AskedPatches | None:
    """The codes of all runs' patches; None where no run has any.

    Args:
        drawn: source and number of each image that the page shows: `picture-{its place}` is its element.
    """
    records = {run: folder / "features.json" for run, folder in folders.items() if (folder / "features.json").is_file()}
    known = {run: path for run, record in records.items() if (path := patches_path(record)).is_file()}
    found = {run: codes for run, path in known.items() if (codes := read_patches(path, read_features(records[run]))).images}
    if not found:
        return None
    packed = {run: pack(np.concatenate([codes_of(i, len(codes.scales)) for i in codes.images])) for run, codes in found.items()}
    components, shown = fit({run: [len(part) for part in parts] for run, parts in packed.items()})
    images: dict[Key, AskedImage] = {}
    for run in shown:
        for image in found[run].images:
            key = (image.source, image.number, image.seconds)
            if key in images:
                continue
            if image.seconds is None:
                images[key] = AskedImage(f"{image.source}, image {image.number}", f"picture-{drawn.index(key[:2])}", None)
            else:
                title = f"{image.source}, clip, {image.seconds:g} s"
                images[key] = AskedImage(title, f"frame-{len(images)}", _frame(title, known[run].with_name(f"{image.name}.png")))
    ordered = {key: images[key] for key in sorted(images, key=lambda key: key[2] is not None)}  # images, then the clip's frames
    return AskedPatches(
        images=list(ordered.values()),
        runs={run: _described(found[run], packed[run], list(ordered), components) for run in shown},
        components=components,
        left_out=[run for run in found if run not in shown],
    )


def fit(sizes: Mapping[str, Sequence[int]]) -> tuple[int, list[str]]:
    """How many components of each patch, and the codes of which runs, the page can hold.

    Args:
        sizes: of each run, bytes of its packed components.
    """
    most = MOST_BYTES * 3 // 4
    fewest = min(FEWEST, *map(len, sizes.values()))
    sums = np.cumsum([sum(own[:fewest]) for own in sizes.values()])
    shown = [run for run, total in zip(sizes, sums, strict=True) if total <= most or total == sums[0]]
    whole = max(len(sizes[run]) for run in shown)
    fitting = [count for count in range(fewest, whole + 1) if sum(sum(sizes[run][:count]) for run in shown) <= most]
    return max(fitting, default=fewest), shown


def _frame(title: str, path: Path) -> Image:
    return embed(title, path, height=None)


def _described(codes: PatchCodes, packed: Sequence[bytes], keys: Sequence[Key], components: int) -> dict[str, object]:
    """What the script reads of a run: its images are those of `keys`, each with rows, columns and its first patch; None of an unseen one.

    codes: a deflated stream in base64: the first component of all patches of all images, then the second, ...
    """
    count = min(components, len(codes.scales))
    own: dict[Key, list[int]] = {}
    first = 0
    for image in codes.images:
        own[image.source, image.number, image.seconds] = [image.rows, image.columns, first]
        first += image.rows * image.columns
    return {
        "scales": codes.scales[:count],
        "error": codes.errors[count - 1],
        "images": [own.get(key) for key in keys],
        "codes": base64.b64encode(b"".join([*packed[:count], END])).decode(),
    }
