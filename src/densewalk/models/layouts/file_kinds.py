"""Say what a file is that should hold a backbone's weights and does not."""

import tarfile
import zipfile
from pathlib import Path

# first bytes -> what the file is, and what to do
STARTS: dict[bytes, str] = {
    b"version https://git-lfs": "a pointer of Git LFS instead of the file: run `git lfs pull` where it comes from",
    b"\x1f\x8b": "compressed by gzip: unpack it by gunzip",
    b"BZh": "compressed by bzip2: unpack it by bunzip2",
    b"\xfd7zXZ": "compressed by xz: unpack it by unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it by unzstd",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file, as Keras writes: convert it to a file of torch's",
    b"\x93NUMPY": "an array of NumPy's: convert it to a file of torch's",
    b"GGUF": "a GGUF file: take the model's safetensors",
}
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")


def folder_kind(path: Path) -> str:
    """What a folder is that stands in a checkpoint's place."""
    if (path / ".metadata").is_file() or any(path.glob("*.distcp")):
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
        return f"a folder of torch's distributed checkpoints: convert it by `{convert}`, and name that file"
    weights = sorted(p.name for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin") for p in path.glob(pattern))
    return f"a folder: name a file in it, such as {weights[0]}" if weights else "a folder without a file of weights: name a file"


def file_kind(path: Path) -> str | None:
    """What a file is by its first bytes, with what to do; None if it looks like one of torch's or safetensors'."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "empty: copy or download it again"
    if not start.strip(b"\0"):
        return "nothing but zeros at its start: a copy or download that did not end; repeat it"
    for first, kind in STARTS.items():
        if start.startswith(first):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(WEB_PAGE):
        return "a web page instead of the file: open its address in a browser, and save what the page offers"
    if start.startswith(b"PK"):
        return _zip_kind(path)
    if tarfile.is_tarfile(path):
        return "a tar archive: unpack it, and name the file of weights in it"
    return _text_kind(start)


def _zip_kind(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return "cut off: copy or download it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {Path(name).name for name in names}
    if "constants.pkl" in inside:
        return "a TorchScript program: save the `state_dict` of its model instead"
    if "data.pkl" in inside:
        return None
    if any(name.endswith(".npy") for name in names):
        return "arrays of NumPy's: convert them to a file of torch's"
    return f"a zip archive of {len(names)} other files{f' ({names[0][:60]} ...)' if names else ''}: unpack it"


def _text_kind(start: bytes) -> str | None:
    """A text file; of bytes that end within a letter, too."""
    text = start.decode("utf-8", errors="ignore")
    if len(text.encode()) < len(start) - 3 or any(not (letter.isprintable() or letter in "\t\r\n\f") for letter in text):
        return None
    if '"weight_map"' in text or '"total_size"' in text:
        return "the index of a checkpoint in several files: join them into one file"
    return f"a text file that begins with {text.strip()[:40]!r}"
