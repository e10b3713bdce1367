"""Hashes of configurations and files, and seeds derived from them."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def config_hash(value: Any) -> str:
    """Twelve hexadecimal digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:12]


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed from the parts alone, the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(canonical(parts).encode()).digest()[:8], "big") >> 1


def file_sha256(path: str | Path) -> str:
    """The file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: str | Path) -> str:
    """Size and times of a file: as long as they are the same, so is its content."""
    status = Path(path).stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns}, {status.st_ctime_ns}"
