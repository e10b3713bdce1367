"""Images read from a folder, a tar and a zip archive, and how long their lists take: CPU seconds of one process, in turns.

python benchmarks/archives.py                    # 2,000 JPEGs of 500 x 375: under a minute
python benchmarks/archives.py --images 20000
"""

import argparse
import os
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from densewalk.data.image_files import read_image
from densewalk.data.image_folder import ImageFolder
from densewalk.data.storage.archives import open_archive
from densewalk.data.storage.index import read_index

FOLDERS = 20


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DENSEWALK_CACHE"] = f"{folder}/cache"
        places = write(Path(folder), args.images)
        print(f"{'list of':16} {'first ms':>10} {'kept ms':>10}")
        for place in places[1:]:
            print(
                f"{place.name:16} {1e3 * seconds(lambda p=place: read_index(p)):10.1f} {1e3 * seconds(lambda p=place: read_index(p)):10.1f}"
            )
        names = ImageFolder(places[0]).names
        order = np.random.default_rng(0).permutation(len(names))
        print(f"{'read and decode':16} {'ms/image':>10} {'ratio':>10}    bytes alone {'ms/image':>10} {'ratio':>10}")
        decoded, raw = [[min(one(place, names, order) for _ in range(args.rounds)) for place in places] for one in (decode, read)]
        for place, a, b in zip(places, decoded, raw, strict=True):
            print(f"{place.name:16} {1e3 * a:10.3f} {a / decoded[0]:10.3f} {'':15} {1e3 * b:10.4f} {b / raw[0]:10.3f}")


def write(folder: Path, images: int) -> list[Path]:
    """A folder of folders, and archives of it."""
    loose, generator = folder / "loose", np.random.default_rng(0)
    smooth = generator.integers(0, 256, (16, 12, 16, 3)).astype(np.uint8)
    for i in range(images):
        path = loose / f"{i % FOLDERS:02}" / f"{i:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth[i % 16]).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(loose, arcname="images")
    with zipfile.ZipFile(folder / "images.zip", "w") as stored:
        for path in sorted(loose.rglob("*.jpg")):
            stored.write(path, path.relative_to(loose))
    return [loose, folder / "images.tar", folder / "images.zip"]


def decode(place: Path, names: list[str], order: np.ndarray) -> float:
    """CPU seconds of an image as a training reads it."""
    return seconds(lambda: [read_image(place / names[i]).close() for i in order]) / len(names)


def read(place: Path, names: list[str], order: np.ndarray) -> float:
    """CPU seconds of an image's bytes."""
    if place.is_dir():
        return seconds(lambda: [(place / names[i]).read_bytes() for i in order]) / len(names)
    return seconds(lambda: [open_archive(place).read(names[i]) for i in order]) / len(names)


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
