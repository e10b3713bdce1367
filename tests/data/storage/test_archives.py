"""Archives in place of folders: the same names, bytes and fingerprints as loose files; what is hostile or damaged is refused by name."""

import io
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.classification import list_imagenet
from densewalk.data.benchmarks.label_maps import list_ade20k, list_voc, read_example
from densewalk.data.benchmarks.label_rules import identity_rule
from densewalk.data.benchmarks.paths import existing_folder, read_list
from densewalk.data.check_images import check_images
from densewalk.data.contents import Contents
from densewalk.data.file_lists import find_files
from densewalk.data.fingerprint import fingerprint
from densewalk.data.image_files import read_header, read_image, read_mask
from densewalk.data.image_folder import ImageFolder
from densewalk.data.settings import ImagesSettings
from densewalk.data.storage import archives, index
from densewalk.data.storage.archives import open_archive, split_archive
from densewalk.data.storage.places import is_file, is_folder, resolve
from densewalk.data.video.clips import VideoClips  # noqa: F401  imported before a fork

KINDS = ["tar", "zip", "deflated.zip"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEWALK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "archives"


def draw(path, seed, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(path)


def loose(folder):
    """A folder with folders, of which one sorts before and one behind the files, and hidden files."""
    for seed, name in enumerate(("b/2.jpg", "a.png", "b.jpg", "Z/1.png", "b/c/3.webp", "b.d/4.bmp", "z.jpeg")):
        draw(folder / name, seed)
    (folder / "list.txt").write_text("a\nb\n")
    (folder / ".hidden.jpg").write_bytes(b"x")
    return folder


def pack(folder, target, top=""):
    """The folder as an archive, by the same tools as a user's."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if "deflated" in target.name else zipfile.ZIP_STORED) as made:
            for path in files:
                made.write(path, f"{top}{path.relative_to(folder)}")
    else:
        with tarfile.open(target, "w") as made:
            made.add(folder, arcname=top or ".")
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["", "own"])
def test_an_archive_is_the_folder_that_it_was_made_of(tmp_path, kind, top):
    """Names, pixels, headers, listing and fingerprint; also where the archive holds the folder itself, as COCO's do."""
    folder = loose(tmp_path / "x")
    archive = tmp_path / f"y.{kind}"
    archive = pack(folder, archive, f"{archive.stem}/" if top else "")
    one, other = ImageFolder(folder), ImageFolder(archive)
    assert one.names == other.names
    assert len(one) == 7
    for i in range(len(one)):
        assert torch.equal(one[i], other[i])
        assert read_header(one.root / one.names[i]) == read_header(other.root / one.names[i])
    assert find_files(archive / "b", (".jpg", ".webp")) == find_files(folder / "b", (".jpg", ".webp")) == ["2.jpg", "c/3.webp"]
    assert find_files(archive, (".jpg",), below=False) == ["b.jpg"]
    assert fingerprint([folder], sizes_only=True) == fingerprint([archive], sizes_only=True)
    receipts = [check_images(ImagesSettings(source=str(path)), "x") for path in (folder, archive)]
    assert receipts[0].model_copy(update={"path": ""}) == receipts[1].model_copy(update={"path": ""})
    contents = Contents(tmp_path / "contents.json")
    assert contents.of(folder) == contents.of(archive)


NAMES = st.lists(st.sampled_from(["a", "b", "B", "a.b", "z", "0", "é"]), min_size=1, max_size=3).map("/".join)


@settings(max_examples=30, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=8))
def test_fingerprints_agree_whatever_the_names(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("f") / "x"
    kept = sorted(name for name in names if not any(other.startswith(f"{name}/") for other in names))
    for number, name in enumerate(kept):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1" * number)
    archive = pack(folder, folder.parent / "y.tar")
    assert fingerprint([folder], sizes_only=True) == fingerprint([archive], sizes_only=True)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_takes_the_place_of_a_missing_folder(tmp_path, kind):
    folder = loose(tmp_path / "x")
    expected = [ImageFolder(folder)[i] for i in range(7)]
    content, print_before = Contents(tmp_path / "c.json").of(folder), fingerprint([folder], sizes_only=True)
    archive = pack(folder, tmp_path / f"x.{kind}", "x/")
    assert resolve(folder) == folder  # a folder that exists is taken
    folder.rename(tmp_path / "away")
    assert resolve(folder / "b" / "2.jpg") == archive / "b" / "2.jpg"
    assert is_file(folder / "b/2.jpg")
    assert is_folder(folder / "b")
    assert not is_file(folder / "b")
    assert not is_folder(folder / "no")
    found = ImageFolder(folder)
    assert found.root == archive
    assert all(torch.equal(found[i], expected[i]) for i in range(7))
    assert Contents(tmp_path / "c.json").of(folder) == content
    assert fingerprint([folder], sizes_only=True) == print_before
    assert read_list(folder / "list.txt", todo="") == ["a", "b"]
    pack(tmp_path / "away", tmp_path / f"x.{'zip' if kind == 'tar' else 'tar'}")
    with pytest.raises(UserError, match="are both there"):
        resolve(folder)


def test_content_follows_the_archive_and_is_not_listed_again(tmp_path, monkeypatch):
    folder = loose(tmp_path / "x")
    archive = pack(folder, tmp_path / "y.tar")
    contents = Contents(tmp_path / "contents.json")
    before = contents.of(archive)
    contents.save()
    again = Contents(tmp_path / "contents.json")
    monkeypatch.setattr("densewalk.data.contents.folder_content", lambda _: pytest.fail("listed again"))
    assert again.of(archive) == before
    monkeypatch.undo()
    draw(folder / "new.jpg", 9)
    pack(folder, archive)
    assert Contents(tmp_path / "contents.json").of(archive) != before


# -- evaluation data ---------------------------------------------------------------------------------------------------


def test_ade20k_imagenet_and_voc_are_read_from_archives(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            draw(tmp_path / f"ade/images/{split}/{i}.jpg", i)
            mask = tmp_path / f"ade/annotations/{split}/{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((10, 12), i, np.uint8)).save(mask)
    rule = identity_rule(151, 0)
    expected = [read_example(e) for e in list_ade20k(tmp_path / "ade", "training", rule)]
    for part in ("images/training", "annotations/training", "images/validation", "annotations/validation"):
        pack(tmp_path / "ade" / part, tmp_path / f"ade/{part}.tar", part.split("/")[1])
        for path in (tmp_path / "ade" / part).iterdir():
            path.unlink()
        (tmp_path / "ade" / part).rmdir()
    found = [read_example(e) for e in list_ade20k(tmp_path / "ade", "training", rule)]
    assert len(found) == 3
    for (image, labels), (image_, labels_) in zip(found, expected, strict=True):
        assert np.array_equal(image, image_)
        assert np.array_equal(labels, labels_)

    for split in ("train", "val"):
        for name in ("n01", "n02"):
            draw(tmp_path / f"in/{split}/{name}/{split}.JPEG".replace("JPEG", "jpg"), 1)
        pack(tmp_path / "in" / split, tmp_path / f"in/{split}.zip")
        (tmp_path / "in" / split).rename(tmp_path / f"away_{split}")
    training, validation = list_imagenet(tmp_path / "in")
    assert (training.names, training.targets, len(validation)) == (["n01", "n02"], [0, 1], 2)
    assert read_image(training.paths[1]).size == (12, 10)

    root = tmp_path / "voc" / "VOC2012"
    draw(root / "JPEGImages/1.jpg", 1)
    (root / "SegmentationClass").mkdir()
    Image.fromarray(np.ones((10, 12), np.uint8)).save(root / "SegmentationClass/1.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("1\n")
    (tmp_path / "whole").mkdir()
    pack(root, tmp_path / "whole" / "VOC2012.zip", "VOC2012/")
    (example,) = list_voc(tmp_path / "whole", "val", "SegmentationClass", identity_rule(21, 255))
    assert read_mask(example.mask, example.image).max() == 1


# -- processes ---------------------------------------------------------------------------------------------------------


def test_workers_read_the_same_images_with_handles_of_their_own(tmp_path):
    """Also after the parent has opened the archive; a worker that is not forked gets a pickled folder and knows no archive."""
    archive = pack(loose(tmp_path / "x"), tmp_path / "x.tar")
    folder = ImageFolder(archive)
    expected = [folder[i] for i in range(len(folder))]
    loader = DataLoader(folder, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
    copied = pickle.loads(pickle.dumps(folder))
    archives._ARCHIVES.clear()
    assert torch.equal(copied[3], expected[3])


def _handle(path, queue):
    archive = open_archive(path)
    archive.read("a.png")
    queue.put((archive._process, archive._listed_by))


def test_a_forked_process_opens_its_own_handle_and_lists_nothing(tmp_path):
    archive = open_archive(pack(loose(tmp_path / "x"), tmp_path / "x.zip"))
    archive.read("a.png")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_handle, args=(archive.path, queue))
    child.start()
    process, listed_by = queue.get(timeout=60)
    child.join()
    assert (process, listed_by) == (child.pid, os.getpid())
    assert archive.read("a.png") == (tmp_path / "x" / "a.png").read_bytes()


# -- the kept index ----------------------------------------------------------------------------------------------------


def many(path, count=index.KEPT):
    with tarfile.open(path, "w") as made:
        for i in range(count):
            made.addfile(tarfile.TarInfo(f"{i:06}.jpg"))
    return path


def test_the_list_of_a_large_archive_is_kept_and_made_again_when_it_changes(tmp_path, cache, monkeypatch):
    path = many(tmp_path / "x.tar")
    assert len(index.read_index(path).names) == index.KEPT
    (kept,) = cache.iterdir()
    monkeypatch.setattr(index, "_make_index", lambda *_: pytest.fail("listed again"))
    assert index.read_index(path).names[-1] == f"{index.KEPT - 1:06}.jpg"
    monkeypatch.undo()
    status = path.stat()
    with tarfile.open(path, "r:") as tar:
        offset = tar.getmember("000000.jpg").offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 6] = b"zzzzzz"
    content[offset + 148 : offset + 156] = b"%06o\0 " % (
        sum(content[offset : offset + 148]) + 256 + sum(content[offset + 156 : offset + 512])
    )
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time as before: the head tells
    assert index.read_index(path).names[-1] == "zzzzzz.jpg"
    kept.write_bytes(kept.read_bytes()[:1000])
    assert index.read_index(path).names[-1] == "zzzzzz.jpg"


def test_an_archive_that_is_replaced_is_listed_again_unless_it_is_in_use(tmp_path):
    folder = loose(tmp_path / "x")
    path = pack(folder, tmp_path / "y.tar")
    assert len(find_files(path, (".jpg",))) == 2
    draw(folder / "new.jpg", 9)
    pack(folder, path)
    assert len(find_files(path, (".jpg",))) == 3
    inherited = open_archive(path)
    inherited._listed_by = -1  # as in a worker
    draw(folder / "newer.jpg", 9)
    pack(folder, path)
    with pytest.raises(UserError, match="has changed while it was in use"):
        inherited.read("new.jpg")
    archives._ARCHIVES.clear()


# -- what is refused ---------------------------------------------------------------------------------------------------


def hostile(path, *entries):
    with tarfile.open(path, "w") as made:
        for name, kind in (("ok.jpg", tarfile.REGTYPE), *entries):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "ok.jpg"
            info.size = 3 if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("link.jpg", tarfile.SYMTYPE, "'link.jpg', a link"),
        ("hard.jpg", tarfile.LNKTYPE, "'hard.jpg', a link"),
        ("pipe.jpg", tarfile.FIFOTYPE, "'pipe.jpg', a device"),
        ("null.jpg", tarfile.CHRTYPE, "'null.jpg', a device"),
        ("../out.jpg", tarfile.REGTYPE, "'../out.jpg', which lies outside"),
        ("/etc/out.jpg", tarfile.REGTYPE, "'/etc/out.jpg', which lies outside"),
        ("./ok.jpg", tarfile.REGTYPE, "'ok.jpg' twice"),
        ("ok.jpg/in.jpg", tarfile.REGTYPE, "as a file and as a folder"),
        ("new\nline.jpg", tarfile.REGTYPE, "printable"),
    ],
)
def test_hostile_entries_are_refused_by_name(tmp_path, name, kind, message):
    with pytest.raises(UserError) as error:
        ImageFolder(hostile(tmp_path / "x.tar", (name, kind)))
    assert message in str(error.value)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_archives_are_refused_with_what_to_do(tmp_path, compression):
    for name in (f"x.tar.{compression}", "y.tar"):
        with tarfile.open(tmp_path / name, f"w:{compression}") as made:
            made.addfile(tarfile.TarInfo("a.jpg"))
    for place in ("x", f"x.tar.{compression}"):
        with pytest.raises(UserError, match=r"is compressed, and cannot be read in place: uncompress it to \.tar or \.zip, or unpack it"):
            ImageFolder(tmp_path / place)
        with pytest.raises(UserError, match="is compressed"):
            existing_folder(tmp_path / place)
    with pytest.raises(UserError, match=r"y\.tar is compressed .*to do: uncompress it"):
        ImageFolder(tmp_path / "y.tar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archives_are_refused(tmp_path, kind, share):
    path = pack(loose(tmp_path / "x"), tmp_path / f"y.{kind}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)].rstrip(b"\0"))
    with pytest.raises(UserError, match=r"y.* (is no whole tar or zip|does not begin)"):
        ImageFolder(path)


def test_a_flipped_bit_in_a_zip_is_found(tmp_path):
    path = pack(loose(tmp_path / "x"), tmp_path / "y.zip")
    with zipfile.ZipFile(path) as made:
        info = made.getinfo("a.png")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 60] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png is damaged: its checksum is another one"):
        read_image(path / "a.png")


def test_a_file_that_is_not_there_and_checkpoints_that_are_called_tar(tmp_path):
    path = pack(loose(tmp_path / "x"), tmp_path / "y.tar")
    with pytest.raises(UserError, match=r"y\.tar/no\.jpg cannot be read as an image: it does not exist"):
        read_image(path / "no.jpg")
    weights = tmp_path / "moco.pth.tar"
    weights.write_bytes(b"PK\x03\x04 weights")
    assert split_archive(weights) is None
    assert Contents(tmp_path / "c.json").of(weights) is not None
    assert not list(Path(tmp_path).glob("cache/archives/*"))
