"""The page's images: features of the backbones, trainings, predictions.

They are of each run's first seed. Of an evaluation with many images the first few are shown; the others lie in its folder.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from densewalk.data.image_files import read_image
from densewalk.results.page.view import Features, Image, PredictionGroup, Predictions
from densewalk.results.plan import Plan, PlannedEvaluation
from densewalk.visualization.overlays import NOT_SCORED_TEXT
from densewalk.visualization.panels import read_legend
from densewalk.visualization.record import DrawnImage, FeaturesRecord, read_features

WIDTH = 1600  # pixels of the widest image on the page
SMALL = 30_000  # bytes up to which a file is shown as it is
OF_EVALUATION = 3  # images of each evaluation and run


def features(folders: Mapping[str, Path]) -> Features | None:
    """Images of the backbones' features, a line for each run; None without any."""
    records = {run: read_features(path) for run, folder in folders.items() if (path := folder / "features.json").is_file()}
    records = {run: record for run, record in records.items() if record.images}
    if not records:
        return None
    # every run has seen the same images, unless one of them was drawn before the study was changed
    images: dict[tuple[str, int], Image] = {}
    for run, record in records.items():
        for i, drawn in enumerate(record.images):
            if (drawn.source, drawn.number) not in images:
                images[drawn.source, drawn.number] = embed(_title(drawn), folders[run] / "features" / f"image_{i}.png")
    found = Features(images=list(images.values()), drawn=list(images), components={}, attention=[], without_attention=[], nearest=[])
    for run, record in records.items():
        folder = folders[run] / "features"
        found.components[run] = _components(run, folder, list(images), record)
        if record.heads:
            title = f"attention of the CLS token of {run} in {_title(record.images[0])}, by {record.heads} heads"
            found.attention.append(embed(title, folder / "attention_0.png", label=run))
        else:
            found.without_attention.append(run)
        if record.nearest:
            title = f"nearest patches of three patches, before and after the training of {run}"
            found.nearest.append(embed(title, folder / "nearest.png", label=run))
    return found


def _title(drawn: DrawnImage) -> str:
    return f"{drawn.source}, image {drawn.number}"


def _components(run: str, folder: Path, images: Sequence[tuple[str, int]], record: FeaturesRecord) -> list[Image | None]:
    """A run's components of each of the page's images; None of one that it has not seen."""
    cells: dict[tuple[str, int], Image] = {}
    for i, drawn in enumerate(record.images):
        image = embed(f"principal components of {run} for {_title(drawn)}", folder / f"pca_{i}.png")
        cells[drawn.source, drawn.number] = replace(image, note=f"{100 * sum(drawn.variance):.0f} % of the variance")
    return [cells.get(key) for key in images]


def training_images(plan: Plan, folders: Mapping[str, Path]) -> list[Image]:
    """The methods' own images of finished trainings."""
    images = []
    for run, folder in folders.items():
        for path in sorted((folder / "training").glob("*.png")):
            label, note = f"{run}, training: {path.stem}", plan.runs[run].captions.get(path.stem, "")
            images.append(embed(f"{label}. {note}".strip(), path, label=label, note=note))
    return images


def predictions(plan: Plan, folders: Mapping[str, Path], names: Mapping[str, Mapping[str, str]]) -> list[Predictions]:
    """The evaluations' images, those of all runs side by side; only where there is a result: else they are of a broken attempt.

    Args:
        names: of classes for readers, by evaluation.
    """
    found = []
    for evaluation, planned in plan.evaluations.items():
        paths: dict[str, dict[str, Path]] = defaultdict(dict)  # name -> run -> file
        for run in planned.runs:
            if (folders[run] / f"{evaluation}.json").is_file():
                for path in (folders[run] / evaluation).glob("*.png"):
                    paths[path.stem][run] = path
        groups = [_prediction_group(planned, name, paths[name], names.get(evaluation, {})) for name in sorted(paths)[:OF_EVALUATION]]
        if groups:
            shows = planned.caption(run="a run", name="a sequence")
            found.append(Predictions(evaluation, shows, groups, more=len(paths) - len(groups)))
    return found


def _prediction_group(planned: PlannedEvaluation, name: str, paths: Mapping[str, Path], shown: Mapping[str, str]) -> PredictionGroup:
    """One image of each run. Their legends become one, and are cut off the images. shown: names of classes for readers."""
    images: list[Image] = []
    colors: dict[str, str] = {}
    for run, path in paths.items():
        legend = read_legend(path)
        images.append(embed(planned.caption(run=run, name=name), path, label=run, height=legend.top if legend else None))
        colors |= {shown.get(label, label): color for label, color in legend.colors.items()} if legend else {}
    if NOT_SCORED_TEXT in colors:
        colors[NOT_SCORED_TEXT] = colors.pop(NOT_SCORED_TEXT)  # the last one
    return PredictionGroup("images" if name == "strip" else name, images, colors)


def embed(title: str, path: Path, *, label: str = "", note: str = "", height: int | None = None) -> Image:
    """An image file as a data address, reduced to what a page can show. height: rows of pixels that are shown; all by default."""
    image = read_image(path, todo=f"delete it, or {path.parent}.json, so that it is made again")
    if height is None and path.stat().st_size <= SMALL and image.width <= WIDTH and path.suffix == ".png":
        kind, content = "png", path.read_bytes()
    else:
        image = image.crop((0, 0, image.width, height or image.height))
        image.thumbnail((WIDTH, WIDTH * 4))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=85, method=4)
        kind, content = "webp", buffer.getvalue()
    data = Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
    return Image(title, data, image.width, image.height, label, note)
