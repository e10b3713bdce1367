"""Check an image folder before anything is trained on it."""

from typing import Any

from densewalk.data.benchmarks.paths import read_list
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_folder import ImageFolder, hash_names
from densewalk.data.receipts import ImagesReceipt, SequencesReceipt
from densewalk.data.settings import ImagesSettings

OPENED = 16  # images, evenly over the folder


def check_images(settings: ImagesSettings, name: str) -> ImagesReceipt | SequencesReceipt:
    """List a folder and open some of its images.

    Raises:
        UserError: the folder is missing (named with what is there instead), empty, or an image cannot be read.
    """
    folder = ImageFolder(settings.source)
    opened = [folder[i] for i in sorted({i * (len(folder) - 1) // (OPENED - 1) for i in range(OPENED)})]
    sizes = sorted(((image.shape[2], image.shape[1]) for image in opened), key=lambda size: size[0] * size[1])
    facts: dict[str, Any] = {
        "name": name,
        "path": settings.source,
        "files": len(folder),
        "listing": hash_names(folder.names),
        "smallest": sizes[0],
        "largest": sizes[-1],
    }
    if settings.layout == "pictures":
        return ImagesReceipt(**facts)
    chosen = None
    if settings.sequence_list is not None:
        chosen = tuple(read_list(settings.sequence_list, todo="correct `sequence_list` or download it"))
    lengths = [len(sequence) for sequence in FrameFolders(settings.source, only=chosen).sequences]
    return SequencesReceipt(**facts, sequences=len(lengths), shortest=min(lengths), longest=max(lengths), chosen=chosen, fps=settings.fps)
