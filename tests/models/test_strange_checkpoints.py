"""Files in a checkpoint's place: those with wrappers in their names are loaded, everything else is one sentence that says what it is."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from densewalk.core.errors import UserError
from densewalk.models.loading import create, load

ARCH = "vit_nano_patch16"
WEIGHTS = create(ARCH, seed=3).vit.state_dict()
UNSAFE = ("weights_only", "unsafe", "arbitrary code", "trust")  # torch's advice


def wrapped(inside="", outside="", blocks=""):
    """The weights with parts of names that wrappers add: before all names, inside of all blocks, or of their attention."""
    names = {k: k for k in WEIGHTS}
    if blocks:
        names = {k: ".".join([*k.split(".")[:2], blocks, *k.split(".")[2:]]) if k.startswith("blocks.") else k for k in names}
    if inside:
        names = {k: n.replace(".attn.", f".attn.{inside}.") for k, n in names.items()}
    return {outside + names[k]: v for k, v in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        wrapped(blocks="_orig_mod"),
        wrapped(outside="_orig_mod."),
        wrapped(blocks="_fsdp_wrapped_module", outside="_fsdp_wrapped_module."),
        wrapped(blocks="_checkpoint_wrapped_module"),
        wrapped(blocks="_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod", outside="module._orig_mod."),
        wrapped(blocks="module", outside="module."),
        wrapped(inside="module"),
        wrapped(inside="_orig_mod.module", outside="_forward_module."),
        {"teacher": wrapped(outside="module.backbone.", blocks="_orig_mod"), "epoch": 3},
        {"state_dict": {**wrapped(outside="_orig_mod.model."), "_orig_mod.model.head.weight": torch.ones(2)}},
    ],
)
def test_names_of_wrapped_modules_are_loaded(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    backbone = load(tmp_path / "w.pth", ARCH)
    assert all(torch.equal(v, WEIGHTS[k]) for k, v in backbone.vit.state_dict().items())
    assert len(backbone.vit.state_dict()) == len(WEIGHTS)
    assert "taken off" in str(backbone.report)


def test_a_whole_network_may_be_called_module(tmp_path):
    other = {k: v + 1 for k, v in WEIGHTS.items()}
    torch.save({"module": WEIGHTS, "ema": other}, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth", ARCH, key="module").vit.norm.weight, WEIGHTS["norm.weight"])
    assert torch.equal(load(tmp_path / "w.pth", ARCH, key="ema").vit.norm.weight, other["norm.weight"])


def test_floating_point_numbers_are_cast(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({k: v.to(dtype) for k, v in WEIGHTS.items()}, tmp_path / "w.pth")
        loaded = load(tmp_path / "w.pth", ARCH).vit.state_dict()
        assert all(torch.equal(loaded[k], v.to(dtype).float()) for k, v in WEIGHTS.items())


def torch_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archive(kind, names=("readme.txt",), content=b"hello"):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def numpy_bytes(write, *arrays):
    buffer = io.BytesIO()
    write(buffer, *arrays)
    return buffer.getvalue()


GOOD = torch_bytes(WEIGHTS)
FILES = {
    "html": (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page instead of the file"),
    "html with a mark": (b"\xef\xbb\xbf<html>", "it is a web page"),
    "xml error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "it is a pointer of Git LFS instead of the file"),
    "empty": (b"", "it is empty"),
    "zeros": (bytes(5000), "it is nothing but zeros"),
    "gz": (gzip.compress(GOOD), "it is compressed by gzip: unpack it by gunzip"),
    "gz of text": (gzip.compress(b"hello"), "it is compressed by gzip"),
    "zip": (archive("zip"), "it is a zip archive of 1 other files (readme.txt ...): unpack it"),
    "zip of nothing": (archive("zip", ()), "it is a zip archive of 0 other files"),
    "zip of weights": (archive("zip", ("w.pth",), GOOD), "it is a zip archive of 1 other files (w.pth ...)"),
    "npz": (numpy_bytes(np.savez, np.ones(3)), "it is arrays of NumPy's"),
    "npy": (numpy_bytes(np.save, np.ones(3)), "it is an array of NumPy's"),
    "tar": (archive("tar"), "it is a tar archive"),
    "text": (b"http://example.org/weights.pth\n", "it is a text file that begins with 'http://example.org/weights.pth'"),
    "umlauts": ("Größe\n".encode() * 200, "it is a text file"),
    "json": (b'{"error": "not found"}', 'it is a text file that begins with \'{"error"'),
    "index": (json.dumps({"metadata": {"total_size": 3}, "weight_map": {}}).encode(), "it is the index of a checkpoint in several files"),
    "pdf": (b"%PDF-1.7 ...", "it is a PDF document"),
    "png": (b"\x89PNG\r\n\x1a\n....", "it is a PNG image"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    "pickle": (pickle.dumps({"a": [1, 2, 3]}), "cannot be read safely: "),
    "pickle of numpy": (pickle.dumps({"a": np.ones(3)}), "cannot be read safely: "),
    "cut": (GOOD[: len(GOOD) // 2], "it is cut off: copy or download it again"),
    "cut within its head": (GOOD[:100], "it is cut off"),
    "noise": (np.random.default_rng(0).bytes(4000), "it is cut off, damaged, or none of torch's"),
    "a list": (torch_bytes([1, 2]), "holds a list, not a dictionary of tensors"),
    "a tensor": (torch_bytes(torch.ones(3)), "holds a Tensor, not a dictionary of tensors"),
    "a module": (torch_bytes(torch.nn.Linear(2, 2)), "it holds a torch.nn.modules.linear.Linear, which is not known to be harmless"),
}


def refusal(path, **options):
    """The one line that refuses a file; it names the file and never advises to load what is not safe."""
    with pytest.raises(UserError) as caught:
        load(path, ARCH, **options)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert not [word for word in UNSAFE if word in message.lower()], message
    return message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind_is_named(tmp_path, case, suffix):
    content, expected = FILES[case]
    (tmp_path / f"w{suffix}").write_bytes(content)
    message = refusal(tmp_path / f"w{suffix}")
    if suffix == ".pth":
        assert expected in message, message


def test_a_folder_of_distributed_checkpoints_is_named(tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": WEIGHTS}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert "is a folder of torch's distributed checkpoints: convert it by `python -m torch.distributed.checkpoint" in refusal(
        tmp_path / "dcp"
    )
    (tmp_path / "hf").mkdir()
    assert "is a folder without a file of weights" in refusal(tmp_path / "hf")
    save_file(WEIGHTS, tmp_path / "hf" / "model.safetensors")
    assert "is a folder: name a file in it, such as model.safetensors" in refusal(tmp_path / "hf")


def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript program" in refusal(tmp_path / "w.pt")


def altered(key, value):
    return {**WEIGHTS, key: value}


QKV, NORM = "blocks.0.attn.qkv.weight", "norm.weight"
TENSORS = {
    "bool": (altered(NORM, WEIGHTS[NORM].bool()), "norm.weight holds bool"),
    "int64": (altered(NORM, WEIGHTS[NORM].long()), "norm.weight holds int64"),
    "uint8": (altered(NORM, WEIGHTS[NORM].byte()), "norm.weight holds uint8"),
    "complex64": (altered(NORM, WEIGHTS[NORM].to(torch.complex64)), "norm.weight holds complex64"),
    "float8": (altered(NORM, WEIGHTS[NORM].to(torch.float8_e4m3fn)), "norm.weight holds float8_e4m3fn"),
    "nan": (altered(NORM, WEIGHTS[NORM] * torch.nan), "norm.weight holds NaN or infinite numbers"),
    "inf": (altered(QKV, WEIGHTS[QKV] + torch.inf), f"{QKV} holds NaN or infinite numbers"),
    "too large": (altered(NORM, WEIGHTS[NORM].double() * 1e300), "norm.weight holds numbers that are too large for float32"),
    "sparse": (altered(QKV, WEIGHTS[QKV].to_sparse()), f"{QKV} is sparse (sparse_coo)"),
    "nested": (altered(QKV, torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), f"{QKV} is a nested tensor"),
    "sparse rows": (altered(QKV, WEIGHTS[QKV].to_sparse_csr()), f"{QKV} is sparse (sparse_csr)"),
    "meta": (altered(QKV, WEIGHTS[QKV].to("meta")), f"{QKV} is a meta tensor"),
    "quantized": (altered(QKV, torch.quantize_per_tensor(WEIGHTS[QKV], 0.1, 0, torch.qint8)), f"{QKV} is quantized"),
    "two become one, wrappers": (
        altered("norm._orig_mod.weight", WEIGHTS[NORM]),
        "the keys norm.weight and norm._orig_mod.weight both become",
    ),
    "two become one, module": (altered("norm.module.weight", WEIGHTS[NORM]), "the keys norm.weight and norm.module.weight both become"),
    "two become one, chunks": (
        {**{k.replace("blocks.", "blocks.0."): v for k, v in WEIGHTS.items()}, "blocks.1.0.norm1.weight": WEIGHTS["blocks.0.norm1.weight"]},
        "the keys blocks.0.0.norm1.weight and blocks.1.0.norm1.weight both become blocks.0.norm1.weight",
    ),
    "two become one, layouts": (altered("ln1.weight", WEIGHTS[NORM]), "the keys norm.weight and ln1.weight both become norm.weight"),
    "two become one, nested": ({**WEIGHTS, "norm": {"weight": WEIGHTS[NORM]}}, "two tensors are called norm.weight"),
    "registers twice": ({**WEIGHTS, "register_tokens": torch.zeros(1, 4, 48), "reg_token": torch.zeros(1, 4, 48)}, "both become reg_token"),
    "flat table": (altered("pos_embed", WEIGHTS["pos_embed"].flatten()), "wrong shape: pos_embed (9456,) instead of (any, any, 48)"),
    "registers of another width": ({**WEIGHTS, "register_tokens": torch.zeros(1, 4, 7)}, "wrong shape: register_tokens (1, 4, 7)"),
    "registers without a table": (
        {**{k: v for k, v in WEIGHTS.items() if k != "pos_embed"}, "register_tokens": torch.zeros(1, 4, 48)},
        "missing: pos_embed",
    ),
    "no rows in the table": (altered("pos_embed", torch.zeros(1, 0, 48)), "wrong shape: pos_embed"),
    "scalars": ({k: torch.zeros(()) for k in WEIGHTS}, "wrong shape"),
    "a line break in a key": (altered("a\nb", torch.ones(1)), "not expected: a b"),
    "flattened by FSDP": (
        {"cls_token": WEIGHTS["cls_token"], "_fsdp_wrapped_module._flat_param": torch.ones(9)},
        "not expected: _flat_param",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_no_weights_are_named(tmp_path, case):
    content, expected = TENSORS[case]
    torch.save(content, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert expected in message, message


def test_what_is_not_the_backbone_s_may_hold_anything(tmp_path):
    torch.save({"model": {**WEIGHTS, "head.steps": torch.tensor([True])}, "optimizer": {"step": torch.tensor(3)}}, tmp_path / "w.pth")
    assert load(tmp_path / "w.pth", ARCH).report.dropped == {"head": 1, "optimizer.step": 1}
