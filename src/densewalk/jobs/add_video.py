"""Look at a user's own video or folder of frames: a report, a contact sheet, and a study to begin with.

densewalk add-video walk.mp4 --out study/config.yaml
densewalk add-video walk.mp4 --masks walk_masks --ignore 255 --out study/config.yaml
densewalk add-video frames --fps 25 --masks masks --out study/config.yaml
"""

import shlex
import sys
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS
from densewalk.jobs.examine_video import Findings, examine_frames, examine_video
from densewalk.jobs.starter_study import find_masks, format_study


def add_video(
    source: Path,
    out: Path | None,
    sheet: Path | None = None,
    *,
    whole: bool | None = None,
    fps: float | None = None,
    masks: Path | None = None,
    ignore: int | None = None,
) -> None:
    """Print the report, draw the sheet, and write a study to `out` or print it.

    Args:
        source: a video file, or a folder of frames. sheet: by default beside `out`, with the source's name.
        whole: look at every frame; by default of a short video only. fps: of a folder of frames.
        masks: folder of masks of some frames of a video, or of all frames of a folder; the study then has an evaluation on them.
        ignore: the label of pixels that count for nothing; by default 255 where the masks hold it.

    Raises:
        UserError: `out` exists, no video, nothing in it can be trained on, or masks that do not fit it.
    """
    folder = out.parent if out else Path()
    if out and out.exists():
        raise UserError(f"{out} exists", todo="give another --out, or copy what `--out -` prints into it")
    if ignore is not None and masks is None:
        raise UserError("--ignore is the label of pixels in --masks", todo="give --masks, too")
    if masks is not None and not masks.is_dir():
        raise UserError(f"--masks {masks} is no folder", allowed="a folder of masks (docs/own_masks.md)", todo="correct the path")
    sheet = sheet or folder / f"{source.resolve().stem}.png"
    findings = examine(source, sheet, whole=whole, fps=fps)
    labeled = find_masks(findings, masks, ignore) if masks else None
    print(f"{findings.report()}\nsheet       {sheet}", file=sys.stdout if out else sys.stderr)
    text = format_study(findings, folder, labeled)
    if out is None:
        print(text, end="")
        return
    with atomic_write(out) as temporary:
        temporary.write_text(text)
    print(f"study       {out}; next, `densewalk doctor --config {shlex.quote(str(out))}`")
    if out.name == "config.yaml":
        print(f"to run it   `snakemake --directory {shlex.quote(str(folder.resolve()))} --cores all all`, in the folder of the Snakefile")


def examine(source: Path, sheet: Path, *, whole: bool | None, fps: float | None) -> Findings:
    """Look at a video file or at a folder of frames.

    Raises:
        UserError: a folder without `fps`, or a video with it.
    """
    if source.is_dir():
        if fps is None:
            raise UserError(describe_folder(source), todo="give the frames a second: --fps 25")
        return examine_frames(source, sheet, fps)
    if fps is not None:
        raise UserError(f"--fps is for a folder of frames; {source} says its own", todo="leave --fps out")
    return examine_video(source, sheet, whole=whole)


def describe_folder(folder: Path) -> str:
    """Say what a folder is that was given in a video's place."""
    names = find_files(folder, EXTENSIONS)
    if not names:
        raise UserError(f"{folder} is a folder without images", allowed="a video file, or a folder of frames (.jpg, .png, ...)")
    return f"{folder} is a folder of {len(names)} frames ({names[0]} to {names[-1]}), not a video: no file says how fast they were taken"
