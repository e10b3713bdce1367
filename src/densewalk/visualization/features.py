"""Draw a backbone's features on a few images: principal components, attention, nearest patches before and after training.

    densewalk features --spec FILE --backbone FILE [--init FILE] --data RECEIPT... --settings JSON --out results/dora/s0/features.json

    features.json                   what is drawn (record.py)
    features/image_0.png ...        the image as the network gets it
    features/pca_0.png ...          its patches' first three principal components as red, green and blue
    features/attention_0.png ...    attention of the CLS token in the last block, one map for each head, side by side, if it has any
    features/nearest.png            the patches nearest to the center of some images, by the initial backbone and by this one
    features/clip_0.png ...         frames of one clip
    features/patches.json           codes of all patches of images and frames (patch_codes.py)

All runs of a study see the same images, at sizes that differ by less than a patch. Nothing is picked by hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.progress import log
from densewalk.core.typed_files import write_model
from densewalk.data.augmentation.crops import resized_crop
from densewalk.data.images import normalize
from densewalk.data.receipts import ImagesReceipt
from densewalk.data.sources import Source, open_clips, open_images
from densewalk.models.interface import Network
from densewalk.visualization.overlays import FOUND_COLOR, with_boxes
from densewalk.visualization.panels import Panel, write_panels
from densewalk.visualization.patch_codes import CodedImage, PatchCodes, make_codes, patches_path, to_text, write_patches
from densewalk.visualization.record import DrawnImage, FeaturesRecord
from densewalk.visualization.settings import PictureSettings

QUERIES, NEAREST = 3, 6  # rows and columns of nearest.png
OUTLIERS = 0.02  # share of a component's values, at either end, that is cut off before it is stretched to 0..1
GAP = 4  # pixels between two heads
Grid = tuple[int, int]


@dataclass(frozen=True)
class EncodedImage:
    """Features of an image, on the CPU: of each position, and each head's attention of the CLS token if the network has one."""

    features: Float[Tensor, "patches dim"]
    grid: Grid
    attention: Float[Tensor, "heads patches"] | None = None


@dataclass(frozen=True)
class SourceImage:
    """An image and where it comes from."""

    source: str
    number: int
    pixels: UInt8[Tensor, "3 height width"]


@dataclass(frozen=True)
class CodedPatches:
    """An image of which patches are coded. name: of its PNG, without the end. seconds: of a clip's frame, after the first one."""

    name: str
    image: SourceImage
    encoded: EncodedImage
    seconds: float | None = None


@torch.inference_mode()
def draw_features(
    backbone: Network, before: Network | None, sources: Sequence[Source], settings: PictureSettings, out: Path, **marks: str
) -> None:
    """Draw the features of one backbone; `out` (JSON) is written last.

    Args:
        before: what it was trained from; None for a backbone that was taken over as it is. marks: of the record, see FeaturesRecord.
    """
    folder, drawn, coded = out.with_suffix(""), [], []
    patches_path(out).unlink(missing_ok=True)  # those of other settings, which may write none
    for i, image in enumerate(select_images(sources, settings.images, settings, backbone.multiple)):
        encoded = encode_image(backbone, image)
        components, variance = principal_components(encoded.features, brightness(image.pixels, backbone.stride))
        write_png(folder / f"image_{i}.png", image.pixels.permute(1, 2, 0).numpy())
        write_png(folder / f"pca_{i}.png", patch_squares(components, encoded.grid, backbone.stride))
        if encoded.attention is not None:
            write_png(folder / f"attention_{i}.png", attention_maps(encoded.attention, encoded.grid, backbone.stride))
        drawn.append(DrawnImage(source=image.source, number=image.number, variance=[round(v, 4) for v in variance]))
        coded.append(CodedPatches(f"image_{i}", image, encoded))
    if settings.components and drawn:
        frames, spacing = select_clip(sources, settings, backbone.multiple)
        for i, frame in enumerate(frames):
            write_png(folder / f"clip_{i}.png", frame.pixels.permute(1, 2, 0).numpy())
            coded.append(CodedPatches(f"clip_{i}", frame, encode_image(backbone, frame), seconds=round(i * spacing, 3)))
        write_codes(patches_path(out), coded, settings, marks)
    if settings.images == 0:
        before = None
    if before is not None:
        searched = list(select_images(sources, settings.searched, settings, backbone.multiple))
        draw_nearest(folder / "nearest.png", before, backbone, searched)
    write_model(out, FeaturesRecord(images=drawn, heads=backbone.heads, nearest=before is not None, **marks))


def select_images(sources: Sequence[Source], count: int, settings: PictureSettings, patch: int) -> Iterator[SourceImage]:
    """At most `count` images, equally many of each source if possible, evenly spaced in each."""
    for i, source in enumerate(sources):
        data = open_images(source)
        share = len(range(i, count, len(sources)))
        for number in evenly_spaced(len(data), share) if share else []:  # type: ignore[arg-type]
            frames = data[number]
            yield SourceImage(source.name, number, resize_to_patches(frames.reshape(-1, *frames.shape[-3:]), settings.short_side, patch)[0])


def select_clip(sources: Sequence[Source], settings: PictureSettings, patch: int) -> tuple[list[SourceImage], float]:
    """The frames of one clip from the middle of the first source in which one fits, and the seconds between two; none of single images."""
    for source in sources if settings.clip_frames else []:
        fps = None if isinstance(source.receipt, ImagesReceipt) else source.receipt.fps
        if fps is None:
            continue
        spacing = max(1, round(settings.clip_spacing * fps)) / fps  # whole frames
        try:
            clips = open_clips(source, settings.clip_frames, spacing)
        except UserError as error:
            log.warning("no clip is drawn of %s: %s", source.name, error)
            continue
        number = evenly_spaced(len(clips), 1)[0]  # type: ignore[arg-type]
        frames = resize_to_patches(clips[number], settings.short_side, patch)
        return [SourceImage(source.name, number, frame) for frame in frames], spacing
    return [], 0.0


def write_codes(path: Path, images: Sequence[CodedPatches], settings: PictureSettings, marks: Mapping[str, str]) -> None:
    """Code the patches of all images in one basis. marks: as of the record."""
    made = make_codes([image.encoded.features.numpy() for image in images], settings.components, settings.similarity_error)
    described = [
        CodedImage(
            name=image.name,
            source=image.image.source,
            number=image.image.number,
            seconds=image.seconds,
            rows=image.encoded.grid[0],
            columns=image.encoded.grid[1],
            codes=to_text(codes),
        )
        for image, codes in zip(images, made.codes, strict=True)
    ]
    errors = [round(error, 4) for error in made.errors.tolist()]
    of = {"config_hash": marks.get("config_hash"), "backbone_sha256": marks.get("backbone_sha256")}
    write_patches(path, PatchCodes(scales=made.scales.tolist(), errors=errors, images=described).model_copy(update=of))


def encode_image(backbone: Network, image: SourceImage) -> EncodedImage:
    """A network's features of one image, and its attention where there is one."""
    device = next(backbone.parameters()).device
    x = normalize(image.pixels / 255, backbone.statistics)[None].to(device)
    maps, attention = backbone.dense_and_attention(x) if "attention" in backbone.abilities else (backbone.dense(x), None)
    features = maps[0].flatten(1).T.float().cpu()
    return EncodedImage(features, (maps.shape[2], maps.shape[3]), None if attention is None else attention[0].flatten(1).float().cpu())


def principal_components(
    patches: Float[Tensor, "patches dim"], anchor: Float[Tensor, " patches"]
) -> tuple[Float[np.ndarray, "patches 3"], list[float]]:
    """The first three principal components of one image's patches, each stretched to 0..1, and their shares of the variance.

    X = patches - mean = U S V^T,  component_i = U_i S_i

    A component's sign is arbitrary. It is chosen so that the component rises with `anchor`, which depends on the image alone:
    else two equal backbones could have opposite colors.
    """
    centered = patches.double() - patches.double().mean(dim=0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    scores = u[:, :3] * s[:3]
    signs = torch.where((scores * (anchor.double() - anchor.double().mean())[:, None]).sum(dim=0) < 0, -1.0, 1.0)
    scores = scores * signs
    low, high = scores.quantile(OUTLIERS, dim=0), scores.quantile(1 - OUTLIERS, dim=0)
    stretched = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return stretched.float().numpy(), (s[:3] ** 2 / (s**2).sum().clamp(min=1e-12)).tolist()


def brightness(image: UInt8[Tensor, "3 height width"], patch: int) -> Float[Tensor, " patches"]:
    """Mean of the pixels of each patch."""
    return F.avg_pool2d(image.float().mean(dim=0)[None], patch).flatten()


def patch_squares(values: Float[np.ndarray, "patches 3"], grid: Grid, patch: int) -> UInt8[np.ndarray, "height width 3"]:
    """An image in which every patch is a square of its color in 0..1."""
    squares = np.round(255 * values).astype(np.uint8).reshape(*grid, 3)
    return squares.repeat(patch, axis=0).repeat(patch, axis=1)


def attention_maps(attention: Float[Tensor, "heads patches"], grid: Grid, patch: int) -> UInt8[np.ndarray, "height width 3"]:
    """Each head's attention of CLS to the patches, from its smallest value (black) to its largest (white), heads from left to right."""
    low, high = attention.aminmax(dim=1, keepdim=True)
    stretched = ((attention - low) / (high - low).clamp(min=1e-12)).numpy()
    maps = [patch_squares(head[:, None].repeat(3, axis=1), grid, patch) for head in stretched]
    gap = np.full((maps[0].shape[0], GAP, 3), 128, np.uint8)
    return np.concatenate([part for image in maps for part in (image, gap)][:-1], axis=1)


@dataclass(frozen=True)
class FoundPatch:
    """A patch in one of the images."""

    image: int
    row: int
    column: int
    similarity: float


def draw_nearest(path: Path, before: Network, after: Network, images: Sequence[SourceImage]) -> None:
    """Draw the center patch of some images and its nearest patches in the others by two backbones, one line each."""
    encoded = {name: [encode_image(network, image) for image in images] for name, network in (("before", before), ("after", after))}
    lines = []
    for query in evenly_spaced(len(images), QUERIES):
        for name, all_features in encoded.items():
            found = nearest_patches(all_features, query, NEAREST)
            first, *others = [crop_around(images[f.image].pixels, f, after.stride) for f in found]
            panels = [Panel(crop, f"{f.similarity:.2f}") for crop, f in zip(others, found[1:], strict=True)]
            lines.append([Panel(first, f"{name} training"), *panels])
    write_panels(path, lines, width=1.3)


def nearest_patches(encoded: Sequence[EncodedImage], query: int, count: int) -> list[FoundPatch]:
    """The center patch of image `query`, then the `count` patches of other images with the largest cosine similarity.

    At most one patch of each image, so that neighbors in one image do not fill the line.
    """
    rows, columns = encoded[query].grid
    center = (rows // 2) * columns + columns // 2
    vector = F.normalize(encoded[query].features[center], dim=0)
    best = []
    for i, image in enumerate(encoded):
        similarity, at = (F.normalize(image.features, dim=1) @ vector).max(dim=0)
        best.append(FoundPatch(i, int(at) // image.grid[1], int(at) % image.grid[1], float(similarity)))
    others = sorted((f for f in best if f.image != query), key=lambda f: -f.similarity)
    return [FoundPatch(query, rows // 2, columns // 2, 1.0), *others[:count]]


def crop_around(image: UInt8[Tensor, "3 height width"], found: FoundPatch, patch: int, around: int = 3) -> UInt8[np.ndarray, "side side 3"]:
    """The patch, outlined, with `around` patches on each side, black beyond the image's edge."""
    margin = around * patch
    top, left = found.row * patch, found.column * patch
    padded = F.pad(image, (margin,) * 4)[:, top : top + 2 * margin + patch, left : left + 2 * margin + patch]
    box = np.array([[margin, margin, margin + patch, margin + patch]], dtype=float)
    return with_boxes(padded.permute(1, 2, 0).contiguous().numpy(), box, FOUND_COLOR)


def write_png(path: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Write a PNG file."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def resize_to_patches(
    frames: UInt8[Tensor, "frames 3 height width"], short_side: int, patch: int
) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """Resize whole frames to a short side of about `short_side` and both sides of whole patches."""
    height, width = frames.shape[-2:]
    scale = short_side / min(height, width) / patch
    size = (max(1, round(height * scale)) * patch, max(1, round(width * scale)) * patch)
    return resized_crop(frames, (0, 0, height, width), size)


def evenly_spaced(length: int, wanted: int) -> list[int]:
    """At most `wanted` of `length` numbers, evenly apart and away from the ends."""
    wanted = min(wanted, length)
    return [length * (2 * i + 1) // (2 * wanted) for i in range(wanted)]
