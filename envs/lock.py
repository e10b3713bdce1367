"""Write requirements.lock and requirements-mm.lock: every package in one version with the sha256 of its files, for all supported Pythons.

    .venv/bin/python envs/lock.py            # make lock: renew both from requirements*.txt; versions stay where they still fit
    .venv/bin/python envs/lock.py --check    # exit status 1 and one line if a lock is older than what it was made from; no network

The second lock is of the OpenMMLab packages, which are installed without their own requirements, so that opencv-python stays out.
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "requirements.lock": ("requirements.txt", "requirements-dev.txt"),
    "requirements-mm.lock": ("requirements-mm.txt",),
}
OPTIONS = ("--universal", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--quiet")


def pins(text: str) -> set[str]:
    """`name==version` of each line, the name in the form that package indexes compare."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, flags=re.MULTILINE)
    return {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, version in found}


def supported(root: Path) -> str:
    """`requires-python` of pyproject.toml."""
    (found,) = re.findall(r'^requires-python = "(.*)"$', (root / "pyproject.toml").read_text(), flags=re.MULTILINE)
    return found


def head(root: Path, sources: tuple[str, ...]) -> str:
    """First line of a lock: what it is made from, and the sha256 of that."""
    content = "\n".join([supported(root), *((root / source).read_text() for source in sources)])
    return f"# by `make lock` from {', '.join(sources)} and requires-python: {hashlib.sha256(content.encode()).hexdigest()}\n"


def problems(root: Path) -> list[str]:
    """What is wrong with the locks, by file: stale, or without a pin of a requirement, or with the package that must stay out."""
    found = []
    for name, sources in LOCKS.items():
        lock = (root / name).read_text() if (root / name).exists() else ""
        missing = sorted({pin for source in sources for pin in pins((root / source).read_text())} - pins(lock))
        if not lock.startswith(head(root, sources)):
            found.append(f"{name}: {', '.join(sources)} or requires-python has changed since it was made: run make lock")
        if missing:
            found.append(f"{name}: has no {', '.join(missing)}: run make lock")
        if any(pin.startswith("opencv-python==") for pin in pins(lock)):
            found.append(f"{name}: has opencv-python, which must stay out (docs/environment.md)")
    return found


def renew(root: Path) -> None:
    """Resolve all requirements for every supported Python."""
    first = re.findall(r">=(\d+\.\d+)", supported(root))[0]
    for name, sources in LOCKS.items():
        options = [*OPTIONS, *(["--no-deps"] if name == "requirements-mm.lock" else [])]
        uv = Path(sys.executable).with_name("uv")
        command = [uv, "pip", "compile", *options, "--python-version", first, *sources, "--output-file", name]
        subprocess.run(command, cwd=root, check=True)
        path = root / name
        path.write_text(head(root, sources) + path.read_text())


def main() -> int:
    """Renew the locks, or check them."""
    if "--check" not in sys.argv[1:]:
        renew(ROOT)
    found = problems(ROOT)
    print("\n".join(found) or "the locks fit the requirements")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
