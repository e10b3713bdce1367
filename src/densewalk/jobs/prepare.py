"""Prepare training data: generate a city walk, transcode a video, check an image folder.

densewalk generate      --settings JSON --root data/city
densewalk prepare-video --settings JSON --out results/data/NAME.mp4 --receipt results/data/NAME.json
densewalk check-images  --settings JSON --receipt results/data/NAME.json
"""

from pathlib import Path

from densewalk.data.check_images import check_images
from densewalk.data.receipts import write_receipt
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.data.video.transcode import transcode
from densewalk.synthetic.generate import generate
from densewalk.synthetic.settings import SyntheticSettings


def generate_walk(settings: SyntheticSettings, root: Path) -> None:
    """Write the synthetic city walk below `root`; its receipt.json comes last."""
    generate(root, settings)


def prepare_video(settings: VideoSettings, target: Path, receipt: Path) -> None:
    """Make a video's training copy, then its receipt."""
    write_receipt(receipt, transcode(settings, target))


def prepare_images(settings: ImagesSettings, receipt: Path) -> None:
    """Check an image folder and write its receipt, which takes its name from the file's."""
    write_receipt(receipt, check_images(settings, receipt.stem))
