"""A cache of features on disk, shared between evaluations.

    cache = FeatureCache(folder, limit=20 * 2**30)
    dense = cache.wrap(backbone.dense, backbone_sha256)
    maps = dense(images)                # read from the folder, or computed and written there

    results/cache/{2 digits}/{62 digits}.safetensors        with the checksum of its content

An entry is one batch, read or computed as a whole: a hit is bit for bit what a miss was. Its name is a hash of everything that its
features depend on: the backbone file, the normalized pixels, and device, threads (of a CPU) and version of torch, which change the last
bits. Which features are kept follows from the study: those that a job reads twice, or that another one will read.
Several jobs may use a folder at once: entries appear atomically, and one that another job removes is a miss.
"""

import hashlib
import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.hashing import config_hash

log = logging.getLogger("densewalk")
Dense = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch dim rows columns"]]
VERSION = 1  # increase it if the same backbone file and pixels give other features


@dataclass(frozen=True)
class FeatureCache:
    """A folder of at most `limit` bytes (0: none), from which the least recently used go first."""

    folder: Path
    limit: int

    def wrap(self, dense: Dense, backbone: str, *, keep: bool = True) -> Dense:
        """`dense` with this cache.

        Args:
            backbone: a fingerprint of what it depends on but images. keep: write what is not there; False where nobody will read it.
        """
        if not self.limit:
            return dense

        def cached(images: Tensor) -> Tensor:
            path = self.path(images, backbone)
            maps = read_entry(path)
            if maps is None:
                maps = dense(images)
                if keep:
                    self.write(path, maps)
            return maps.to(images.device)

        return cached

    def path(self, images: Float[Tensor, "batch 3 height width"], backbone: str) -> Path:
        """The entry of a batch."""
        pixels = hashlib.sha256(images.detach().cpu().contiguous().numpy().data).hexdigest()
        threads = torch.get_num_threads() if images.device.type == "cpu" else 0
        maker = [str(torch.__version__), images.device.type, threads, str(images.dtype), list(images.shape)]
        name = hashlib.sha256(f"{VERSION} {backbone} {pixels} {config_hash(maker)}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def write(self, path: Path, maps: Float[Tensor, "batch dim rows columns"]) -> None:
        """Write an entry and remove old ones. A full disk does not stop an evaluation."""
        content = maps.detach().cpu().contiguous()
        if content.nbytes > self.limit or not content.isfinite().all():
            return
        try:
            with atomic_write(path) as temporary:
                save_file({"maps": content}, temporary, metadata={"crc32": checksum(content)})
        except (OSError, UserError) as error:
            log.warning("features are not kept: %s", error)
        self.remove_oldest()

    def remove_oldest(self) -> None:
        """Remove the least recently used entries until the rest fits."""
        entries = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another job removed it
            entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def read_entry(path: Path) -> Float[Tensor, "batch dim rows columns"] | None:
    """Read an entry and mark it as used; None if there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            maps, expected = file.get_tensor("maps"), (file.metadata() or {}).get("crc32")
        if checksum(maps) == expected:
            os.utime(path)
            return maps
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        pass
    log.warning("%s is damaged: its features are computed again", path)
    return None


def checksum(maps: Tensor) -> str:
    """CRC-32 of the content."""
    return f"{zlib.crc32(maps.contiguous().numpy().data):08x}"
