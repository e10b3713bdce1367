"""What a backbone makes of a few pictures: principal components, attention, nearest patches before and after training.

    densewalk features --spec JSON --backbone FILE [--init FILE] --data RECEIPT... --settings JSON --out results/dora/s0/features.json

    features.json                   what is shown: sources and numbers of the pictures, variance that the components hold
    features/image_0.png ...        the picture as the network gets it
    features/pca_0.png ...          its patches' first three principal components as red, green and blue
    features/attention_0.png ...    what the CLS token of the last block attends to, one map for each head, side by side
    features/nearest.png            the patches nearest to the centre of some pictures, by the initial backbone and by this one

All runs of a study see the same pictures, at sizes that differ by less than a patch. Nothing is picked by hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.files import atomic_write, write_json
from densewalk.data.augmentation import resized_crop
from densewalk.data.images import normalize
from densewalk.data.sources import Source, open_images
from densewalk.models.backbone import Backbone, LastBlock, Tokens
from densewalk.visualization.overlays import FOUND_COLOUR, with_boxes
from densewalk.visualization.panels import Panel, write_panels
from densewalk.visualization.settings import PictureSettings

QUERIES, NEAREST = 3, 6  # rows and columns of nearest.png
OUTLIERS = 0.02  # of a component's values, on either side, are cut off before it is stretched to 0..1
GAP = 4  # pixels between two heads
Grid = tuple[int, int]


@dataclass(frozen=True)
class Shot:
    """One picture and where it comes from."""

    source: str
    number: int
    image: UInt8[Tensor, "3 height width"]


@torch.inference_mode()
def draw_features(backbone: Backbone, before: Backbone | None, sources: Sequence[Source], settings: PictureSettings, out: Path) -> None:
    """Draw all pictures of one backbone; `out` (JSON) comes last.

    Args:
        before: what it was trained from; None for a backbone that was taken over as it is.
    """
    folder, shown = out.with_suffix(""), []
    for i, shot in enumerate(shots(sources, settings.images, settings, backbone.patch)):
        seen = look(backbone, shot)
        components, variance = principal_components(seen.tokens.patches[0], brightness(shot.image, backbone.patch))
        save(folder / f"image_{i}.png", shot.image.permute(1, 2, 0).numpy())
        save(folder / f"pca_{i}.png", enlarged(components, seen.tokens.grid, backbone.patch))
        save(folder / f"attention_{i}.png", attention_maps(seen, backbone.patch))
        shown.append({"source": shot.source, "number": shot.number, "variance": [round(v, 4) for v in variance]})
    compared = before is not None and settings.images > 0
    if before is not None and compared:
        draw_nearest(folder / "nearest.png", before, backbone, list(shots(sources, settings.searched, settings, backbone.patch)))
    write_json(out, {"images": shown, "heads": backbone.arch.heads, "nearest": compared})


def shots(sources: Sequence[Source], count: int, settings: PictureSettings, patch: int) -> Iterator[Shot]:
    """At most `count` pictures, as equally many of each source as that allows, evenly spread in each."""
    for i, source in enumerate(sources):
        data = open_images(source)
        share = len(range(i, count, len(sources)))
        for number in evenly_spaced(len(data), share) if share else []:  # type: ignore[arg-type]
            frames = data[number]
            yield Shot(source.name, number, uncut(frames.reshape(-1, *frames.shape[-3:]), settings.short_side, patch)[0])


def look(backbone: Backbone, shot: Shot) -> LastBlock:
    """The last block's output for one picture, patches and attention on the CPU."""
    device = next(backbone.parameters()).device
    seen = backbone.last_block(normalize(shot.image / 255)[None].to(device))
    tokens = replace(seen.tokens, patches=seen.tokens.patches.float().cpu())
    return replace(seen, tokens=tokens, cls_attention=seen.cls_attention.float().cpu())


# -- principal components ----------------------------------------------------------------------------------------------


def principal_components(
    patches: Float[Tensor, "patches dim"], anchor: Float[Tensor, " patches"]
) -> tuple[Float[np.ndarray, "patches 3"], list[float]]:
    """The first three principal components of one picture's patches, each stretched to 0..1, and their shares of the variance.

    X = patches - mean = U S V^T,  component_i = U_i S_i

    A component's sign is arbitrary. It is chosen so that the component rises with `anchor`, which depends on the picture alone:
    else two equal backbones could have opposite colours.
    """
    centred = patches.double() - patches.double().mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = u[:, :3] * s[:3]
    signs = torch.where((scores * (anchor.double() - anchor.double().mean())[:, None]).sum(dim=0) < 0, -1.0, 1.0)
    scores = scores * signs
    low, high = scores.quantile(OUTLIERS, dim=0), scores.quantile(1 - OUTLIERS, dim=0)
    stretched = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return stretched.float().numpy(), (s[:3] ** 2 / (s**2).sum().clamp(min=1e-12)).tolist()


def brightness(image: UInt8[Tensor, "3 height width"], patch: int) -> Float[Tensor, " patches"]:
    """Mean of the pixels of each patch."""
    return F.avg_pool2d(image.float().mean(dim=0)[None], patch).flatten()


def enlarged(values: Float[np.ndarray, "patches 3"], grid: Grid, patch: int) -> UInt8[np.ndarray, "height width 3"]:
    """Values in 0..1 as a picture in which every patch is a square."""
    squares = np.round(255 * values).astype(np.uint8).reshape(*grid, 3)
    return squares.repeat(patch, axis=0).repeat(patch, axis=1)


# -- attention ---------------------------------------------------------------------------------------------------------


def attention_maps(seen: LastBlock, patch: int) -> UInt8[np.ndarray, "height width 3"]:
    """Each head's attention of CLS to the patches, from its smallest value (black) to its largest (white), heads from left to right."""
    low, high = seen.cls_attention[0].aminmax(dim=1, keepdim=True)
    bright = ((seen.cls_attention[0] - low) / (high - low).clamp(min=1e-12)).numpy()
    pictures_ = [enlarged(head[:, None].repeat(3, axis=1), seen.tokens.grid, patch) for head in bright]
    gap = np.full((pictures_[0].shape[0], GAP, 3), 128, np.uint8)
    return np.concatenate([part for picture in pictures_ for part in (picture, gap)][:-1], axis=1)


# -- nearest patches ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A patch in one of the pictures."""

    shot: int
    row: int
    column: int
    similarity: float


def draw_nearest(path: Path, before: Backbone, after: Backbone, shots_: Sequence[Shot]) -> None:
    """For the centre patch of some pictures, its nearest patches in the other pictures by two backbones, one line each."""
    seen = {name: [look(network, shot).tokens for shot in shots_] for name, network in (("before", before), ("after", after))}
    lines = []
    for query in evenly_spaced(len(shots_), QUERIES):
        for name, tokens in seen.items():
            found = nearest(tokens, query, NEAREST)
            first, *others = [cut(shots_[f.shot].image, f, after.patch) for f in found]
            panels = [Panel(image, f"{f.similarity:.2f}") for image, f in zip(others, found[1:], strict=True)]
            lines.append([Panel(first, f"{name} training"), *panels])
    write_panels(path, lines, width=1.3)


def nearest(tokens: Sequence[Tokens], query: int, count: int) -> list[Found]:
    """The centre patch of picture `query`, then the `count` patches of other pictures with the largest cosine similarity.

    At most one patch of each picture, so that neighbours in one picture do not fill the line.
    """
    rows, columns = tokens[query].grid
    centre = (rows // 2) * columns + columns // 2
    vector = F.normalize(tokens[query].patches[0, centre], dim=0)
    best = []
    for i, t in enumerate(tokens):
        similarity, at = (F.normalize(t.patches[0], dim=1) @ vector).max(dim=0)
        best.append(Found(i, int(at) // t.grid[1], int(at) % t.grid[1], float(similarity)))
    others = sorted((f for f in best if f.shot != query), key=lambda f: -f.similarity)
    return [Found(query, rows // 2, columns // 2, 1.0), *others[:count]]


def cut(image: UInt8[Tensor, "3 height width"], found: Found, patch: int, around: int = 3) -> UInt8[np.ndarray, "side side 3"]:
    """The patch, outlined, with `around` patches on each side, black beyond the picture's edge."""
    margin = around * patch
    top, left = found.row * patch, found.column * patch
    padded = F.pad(image, (margin,) * 4)[:, top : top + 2 * margin + patch, left : left + 2 * margin + patch]
    box = np.array([[margin, margin, margin + patch, margin + patch]], dtype=float)
    return with_boxes(padded.permute(1, 2, 0).contiguous().numpy(), box, FOUND_COLOUR)


def save(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Write a PNG."""
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def uncut(frames: UInt8[Tensor, "frames 3 height width"], short_side: int, patch: int) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """Whole frames whose short side is about `short_side` and whose both sides are whole patches, for pictures."""
    height, width = frames.shape[-2:]
    scale = short_side / min(height, width) / patch
    size = (max(1, round(height * scale)) * patch, max(1, round(width * scale)) * patch)
    return resized_crop(frames, (0, 0, height, width), size)


def evenly_spaced(length: int, wanted: int) -> list[int]:
    """At most `wanted` of `length` numbers, evenly apart and away from the ends."""
    wanted = min(wanted, length)
    return [length * (2 * i + 1) // (2 * wanted) for i in range(wanted)]
