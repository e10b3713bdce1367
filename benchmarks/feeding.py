"""Cost of feeding each method: CPU seconds and bytes of a sample in a data-loading process, and CPU seconds of its views after that.

    python -m benchmarks.feeding                         # a minute
    python -m benchmarks.feeding --samples 2 --repeat 1 --fps 4

A loading process reads (decodes) and cuts. It reads clips from the training copy of a generated walk in 960 x 540, and JPEGs of
640 x 480 and 854 x 480. Float32 is what the views would take as a sample. One thread, CPU seconds of this process, the fewest of
several runs. Views are made in turns with torch's operators for colors and blur (benchmarks/colors.py). The last table compares the two
ways of resizing the local crops of a DoRA clip (data/augmentation/resize.py).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import in_turns
from benchmarks.video import generate, walk
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.resize import resize_by_products, resized_crops
from densewalk.data.augmentation.views import make_views
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_folder import ImageFolder
from densewalk.data.settings import VideoSettings
from densewalk.data.stretches import Video
from densewalk.data.video.clips import VideoClips
from densewalk.data.video.transcode import transcode
from densewalk.methods.dino import augmentation as dino
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora import augmentation as dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.neco import augmentation as neco
from densewalk.methods.neco.settings import NecoSettings
from densewalk.methods.timetuning import clips as timetuning
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.ops.cpu.switch import set_cpu_kernels
from densewalk.training.sampler import Item

CPU = torch.device("cpu")
CLIP_SECONDS = 7.5  # of the walk: a clip of DoRA takes 7
JPEGS = 8
COLUMNS = {  # and their widths
    "reading, CPU s": 14,
    "cutting, CPU s": 14,
    "MiB": 8,
    "views, CPU s": 14,
    "by operators": 14,
    "float32 MiB": 12,
}


class Decoded(Dataset[Tensor]):
    """The same decoded image or clip again and again, channels last in memory as readers give it."""

    def __init__(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).movedim(-1, -3)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels


def methods() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Title -> the data set of a method's defaults, and what makes views of a batch of it."""
    images, clips, short = Decoded(480, 640, 3), Decoded(8, 540, 960, 3), Decoded(4, 480, 854, 3)
    once, twice = DoraSettings(compat="released").resolved(), DoraSettings(global_views=2).resolved()
    tuned = TimeTuningSettings().resolved()
    video = Video(lambda _: short[0], 0, 100)
    return {
        "DoRA, clip of 8 frames": (dora.DoraClips(clips, once), lambda b: dora.make_views(b, once, CPU)),
        "DoRA, two global views": (dora.DoraClips(clips, twice), lambda b: dora.make_views(b, twice, CPU)),
        "DINO": (dino.DinoCrops(images, DinoSettings()), lambda b: make_views(b, CPU)),
        "NeCo, 518 px": (neco.NecoCrops(images, NecoSettings()), lambda b: neco.make_views(b, CPU)),
        "Time-Tuning": (timetuning.ClipDataset([video] * 1000, tuned), lambda b: timetuning.make_views(b, tuned, CPU)),
    }


def readings(folder: Path, fps: int) -> dict[str, Callable[[int], Any]]:
    """The beginning of a method's title -> what reads its sample number i, decoded, from files as studies have them."""
    generate(folder / "walk.mp4", 540, CLIP_SECONDS, fps)
    clips = VideoClips(transcode(VideoSettings(source=str(folder / "walk.mp4"), short_side=540), folder / "copy.mp4"), 8, 1.0)
    for name, width, height in (("images", 640, 480), ("sequences/first", 854, 480)):
        (folder / name).mkdir(parents=True)
        for number, picture in enumerate(walk(width, height, JPEGS)):
            Image.fromarray(picture).save(folder / name / f"{number:05d}.jpg", quality=90)
    images, sequences = ImageFolder(folder / "images"), FrameFolders(folder / "sequences")
    image = lambda i: images[i % len(images)]  # noqa: E731
    return {
        "DoRA": lambda i: clips[i % len(clips)],
        "DINO": image,
        "NeCo": image,
        "Time-Tuning": lambda i: sequences.read(0, range(i % 4, i % 4 + 4)),
    }


def cpu_seconds(function: Callable[[], Any], repeat: int) -> float:
    """The fewest of several runs after one that warms up."""
    function()
    spent = []
    for _ in range(repeat):
        begun = time.process_time()
        function()
        spent.append(time.process_time() - begun)
    return min(spent)


def mebibytes(batch: Any) -> float:
    """Size of all tensors of a sample or batch."""
    tensors = batch.values() if isinstance(batch, dict) else [batch]
    return sum(x.nbytes for x in tensors) / 2**20


def row(data: Any, views: Callable[[Any], Any], read: Callable[[int], Any], samples: int, repeat: int) -> str:
    """One line of the table."""
    decode = cpu_seconds(lambda: [read(i) for i in range(samples)], repeat) / samples
    items = [Item(i, seed=i) for i in range(samples)]
    batch = default_collate([data[item] for item in items])
    load = cpu_seconds(lambda: [data[item] for item in items], repeat) / samples

    def by_operators() -> Any:
        set_cpu_kernels(False)
        made = views(batch)
        set_cpu_kernels(True)
        return made

    make, plain = (min(seconds) / samples for seconds in in_turns({"here": lambda: views(batch), "plain": by_operators}, repeat).values())
    made = views(batch)
    floats = sum(x.numel() for x in (made.values() if isinstance(made, dict) else [made])) * 4 / 2**20 / samples
    return f"{decode:14.4f} {load:14.4f} {mebibytes(batch) / samples:8.2f} {make:14.4f} {plain:14.4f} {floats:12.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4, help="of each batch")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--fps", type=int, default=30, help="of the generated walk")
    options = parser.parse_args()
    torch.set_num_threads(1)

    columns = "".join(f" {name:>{width}}" for name, width in COLUMNS.items())
    print(f"{'':26}{columns}   a sample")
    with tempfile.TemporaryDirectory() as folder:
        files = readings(Path(folder), options.fps)
        for title, (data, views) in methods().items():
            read = next(read for name, read in files.items() if title.startswith(name))
            print(f"{title:26} {row(data, views, read, options.samples, options.repeat)}")

    settings = DoraSettings().resolved()
    sample = dora.DoraClips(Decoded(8, 540, 960, 3), settings)[Item(0, seed=0)]
    clip, boxes = sample["clip"].permute(0, 3, 1, 2), sample["local_boxes"].transpose(0, 1)
    ways = {"torch's kernel for uint8": resized_crops, "matrix products": resize_by_products}
    print(f"\n{'local crops of a clip':26} {'CPU s':>14}")
    results = []
    for name, way in ways.items():
        results.append(way(clip, boxes, settings.local_size, InterpolationMode.BICUBIC).int())
        run = lambda way=way: way(clip, boxes, settings.local_size, InterpolationMode.BICUBIC)  # noqa: E731
        print(f"{name:26} {cpu_seconds(run, options.repeat):14.4f}")
    apart = (results[0] - results[1]).abs()
    print(f"at most {int(apart.max())} of 256 levels apart, {100 * (apart > 0).float().mean():.2f} % of the pixels")


if __name__ == "__main__":
    main()
