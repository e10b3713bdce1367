"""The public data sets: downloaded, unpacked, and looked at by the readers that will read them.

    densewalk data coco            # or with the workflow: snakemake results/data/sets/coco.json
    densewalk data cityscapes      # which only a person can get: prints the steps, or checks what is there

What there is to do stands in datasets.yaml. Archives are kept in FOLDER/.downloads until all of them are unpacked and checked.
"""

import json
import shutil
import subprocess
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, model_validator

from densewalk.archives import unpack
from densewalk.checkpoint import atomic_write, read_json, write_json
from densewalk.config import parse_evaluation
from densewalk.doctor import data_of
from densewalk.download import fetch, receipt_path, verify
from densewalk.errors import UserError
from densewalk.progress import log
from densewalk.settings.base import Settings
from densewalk.video import probe


class Archive(Settings):
    """One file to download and unpack."""

    url: str
    sha256: str | None = None
    md5: str | None = None
    into: str = "."
    nested: list[str] = []

    @property
    def name(self) -> str:
        """The file's name on the server."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


class Dataset(Settings):
    """One entry of datasets.yaml."""

    folder: str
    source: str
    licence: str
    archives: list[Archive] = []
    manual: list[str] = []
    videos: bool = False
    trainaug: str | None = None
    check: dict[str, Any] | None = Field(default=None)
    counts: str | None = None

    @model_validator(mode="after")
    def one_way(self) -> Self:
        """Archives, or steps for a person."""
        if bool(self.archives) == bool(self.manual):
            raise ValueError("give one of archives and manual")
        return self


@lru_cache
def datasets() -> dict[str, Dataset]:
    """All known data sets by name."""
    content = yaml.safe_load(files("densewalk").joinpath("datasets.yaml").read_text())
    return {name: Dataset.model_validate(entry) for name, entry in content.items()}


def prepare(name: str, receipt: Path) -> str:
    """Have the data set, check it and write the receipt; what was found.

    Raises:
        UserError: no such data set, a download or an archive fails, something is missing, or a person has to do something first.
    """
    if name not in datasets():
        raise UserError(f"no data set is called '{name}'", allowed=", ".join(datasets()))
    dataset = datasets()[name]
    if dataset.manual:
        _require_by_hand(name, dataset)
    fetched = read_json(receipt)["archives"] if receipt.is_file() else {}
    try:
        found = inspect(name, dataset)
    except UserError:
        if dataset.manual:
            raise
        fetched = {archive.url: _install(dataset, archive, fetched) for archive in dataset.archives}
        if dataset.trainaug:
            write_trainaug(Path(dataset.folder) / dataset.trainaug)
        found = inspect(name, dataset)
    write_json(receipt, {"name": name, "source": dataset.source, "licence": dataset.licence, "found": found, "archives": fetched})
    shutil.rmtree(_downloads(dataset), ignore_errors=True)
    return found


def _require_by_hand(name: str, dataset: Dataset) -> None:
    """Print the steps where nothing is there yet."""
    if dataset.videos or not Path(dataset.folder).is_dir():
        steps = "; ".join(f"({number}) {step}" for number, step in enumerate(dataset.manual, start=1))
        again = "" if dataset.videos else f"; ({len(dataset.manual) + 1}) densewalk data {name}, which checks it"
        raise UserError(f"{name} ({dataset.licence}) is got by hand", todo=steps + again)


def inspect(name: str, dataset: Dataset) -> str:
    """What the evaluation's readers find, compared with what the whole set holds.

    Raises:
        UserError: something is missing or damaged, with the exact folder, or the counts differ.
    """
    assert dataset.check is not None
    settings = parse_evaluation(dataset.check["protocol"], {**dataset.check["settings"], "dataset": name})
    try:
        found = data_of(dataset.check["protocol"], settings)
    except UserError as error:
        again = "; ".join(dataset.manual) or f"remove what is incomplete and run densewalk data {name} again"
        raise UserError(f"{name}: {error}", todo=again) from error
    if dataset.counts and not found.endswith(f": {dataset.counts}"):
        raise UserError(f"{name} is incomplete: {found}", allowed=dataset.counts, todo=f"look at {dataset.source}")
    return found


def _downloads(dataset: Dataset) -> Path:
    return Path(dataset.folder) / ".downloads"


def _install(dataset: Dataset, archive: Archive, earlier: dict[str, Any]) -> dict[str, Any]:
    """Download and unpack one archive, unless the receipt says that this was done; the archive's receipt."""
    folder, path = Path(dataset.folder) / archive.into, _downloads(dataset) / archive.name
    if archive.url in earlier:
        return dict(earlier[archive.url])
    record = fetch(archive.url, path, sha256=archive.sha256, md5=archive.md5)
    unpack(path, folder)
    for inner in archive.nested:
        unpack(folder / inner, (folder / inner).parent)
    return record


def write_trainaug(root: Path) -> None:
    """ImageSets/Segmentation/trainaug.txt, which no archive has: every image with a mask in SegmentationClassAug but those of val."""
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "trainaug.txt").exists():
        return
    held_out = set((lists / "val.txt").read_text().split())
    names = sorted(mask.stem for mask in (root / "SegmentationClassAug").glob("*.png") if mask.stem not in held_out)
    with atomic_write(lists / "trainaug.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))


# -- videos ------------------------------------------------------------------------------------------------------------


def fetch_video(address: str, target: Path, *, codec: str = "avc1", height: int = 1080) -> dict[str, Any]:
    """A video by yt-dlp, which resumes by itself; its receipt with id, fps and sha256.

    Args:
        codec: the beginning of yt-dlp's vcodec: avc1 (H.264, up to 1080 lines), vp9, av01. height: lines, at most.

    Raises:
        UserError: yt-dlp is not installed or fails, or what came is no video.
    """
    if shutil.which("yt-dlp") is None:
        raise UserError("yt-dlp is not installed", todo="pip install yt-dlp, or download the video by hand and name it as `source`")
    if target.exists():
        return verify(target, url=address)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part{target.suffix}")
    choice = f"bestvideo[vcodec^={codec}][height<={height}]"
    command = ["yt-dlp", "--no-playlist", "--continue", "--print-json", "--no-simulate", "-f", choice, "-o", str(part), "--", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not part.is_file():
        last = (done.stderr.strip() or "no file came").splitlines()[-1]
        raise UserError(f"yt-dlp: {last}", todo=f"look which formats there are: yt-dlp -F {address}")
    info, facts = probe(part), json.loads(done.stdout.strip().splitlines()[-1])
    part.rename(target)
    known = {"id": facts["id"], "format": facts.get("format_id"), "codec": info.codec, "height": info.height, "fps": info.fps}
    receipt = {**verify(target, url=address), **known}
    write_json(receipt_path(target), receipt)
    log.info("%s: %s, %d lines, %.2f fps", target, info.codec, info.height, info.fps)
    return receipt
