import errno
import fcntl
import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.data.download import fetch as download
from densewalk.data.download.fetch import fetch, receipt_path
from tests.fixtures.server import serving

PIECE = 65_536
BODY = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def files():
    with serving({"w.pth": BODY}) as served:
        yield served


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_with_its_receipt_and_is_not_fetched_twice(tmp_path, files):
    receipt = fetch(files.url("w.pth"), tmp_path / "a" / "w.pth", sha256=SHA, size=len(BODY))
    assert (tmp_path / "a" / "w.pth").read_bytes() == BODY
    assert receipt == read_json(receipt_path(tmp_path / "a" / "w.pth"))
    assert {k: receipt[k] for k in ("url", "sha256", "bytes", "name")} == {
        "url": files.url("w.pth"),
        "sha256": SHA,
        "bytes": len(BODY),
        "name": "w.pth",
    }
    assert fetch(files.url("w.pth"), tmp_path / "a" / "w.pth", sha256=SHA) == receipt
    assert len(files.requests) == 1
    assert names(tmp_path / "a") == ["w.pth", "w.pth.receipt.json"]


def test_a_cut_connection_is_resumed_where_it_was(tmp_path, files):
    files.cuts = [16 * PIECE, 8 * PIECE]
    fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert files.requests == [("w.pth", None), ("w.pth", "bytes=1048576-"), ("w.pth", "bytes=1572864-")]


def test_another_call_goes_on_where_the_first_gave_up(tmp_path, files):
    files.cuts = [11 * PIECE, 0, 0, 0]
    with pytest.raises(UserError, match=r"cannot be downloaded: .*; 720896 bytes are kept; to do: try again later"):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert names(tmp_path) == [".w.pth.part", ".w.pth.part.json"]  # nothing under the file's name
    fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert files.requests[-1] == ("w.pth", "bytes=720896-")
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert names(tmp_path) == ["w.pth", "w.pth.receipt.json"]


def test_a_file_that_was_replaced_meanwhile_starts_over(tmp_path, files):
    files.cuts = [11 * PIECE, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    files.content["w.pth"] = bytes(len(BODY))
    fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == bytes(len(BODY))


def test_a_part_of_another_address_is_not_gone_on_with(tmp_path, files):
    files.content["v.pth"], files.tag = bytes(len(BODY)), '"v1"'
    files.cuts = [11 * PIECE, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    fetch(files.url("v.pth"), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == bytes(len(BODY))


@pytest.mark.parametrize("lack", ["resumes", "tagged"])
def test_a_server_that_cannot_resume_safely_is_asked_for_the_whole(tmp_path, files, lack):
    setattr(files, lack, False)
    files.cuts = [700_000]
    fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_a_part_that_was_whole_already_only_needs_its_name(tmp_path, files):
    files.cuts = [len(BODY) - 1, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    (tmp_path / ".w.pth.part").write_bytes(BODY)
    fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_a_busy_server_is_asked_again(tmp_path, files):
    files.failures = [503, 429]
    fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)
    assert len(files.requests) == 3


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, f"sha256 {SHA} instead of 0000"),
        ({"md5": "0" * 32}, "md5 .* instead of 0000"),
        ({"size": 4_000_000}, "3000000 bytes instead of 4000000"),
        ({"size": 2_000_000}, "has 3000000 bytes instead of 2000000"),
    ],
)
def test_another_file_than_expected_leaves_nothing(tmp_path, files, known, message):
    with pytest.raises(UserError, match=message):
        fetch(files.url("w.pth"), tmp_path / "w.pth", **known)
    assert names(tmp_path) == []


def test_the_first_download_is_trusted_and_holds(tmp_path, files):
    fetch(files.url("w.pth"), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(BODY[:-1] + b"x")
    with pytest.raises(UserError, match=rf"w.pth has sha256 .*, but its receipt of 20.* says {SHA}"):
        fetch(files.url("w.pth"), tmp_path / "w.pth")


def test_a_file_of_one_s_own_gets_a_receipt(tmp_path, files):
    (tmp_path / "w.pth").write_bytes(BODY)
    assert fetch(files.url("w.pth"), tmp_path / "w.pth", md5=hashlib.md5(BODY).hexdigest())["sha256"] == SHA
    assert files.requests == []
    assert receipt_path(tmp_path / "w.pth").exists()
    (tmp_path / "v.pth").write_bytes(b"other")
    with pytest.raises(UserError, match=r"v.pth: sha256 .* instead of .*; to do: remove it"):
        fetch(files.url("w.pth"), tmp_path / "v.pth", sha256=SHA)


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "answered 404 Not Found; to do: look where"), (403, r"asks for an account \(403\); to do: get it by hand")],
)
def test_a_refusal_is_one_clear_error(tmp_path, files, status, message):
    files.failures = [status]
    with pytest.raises(UserError, match=message):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert names(tmp_path) == []


def test_a_page_is_no_file(tmp_path, files):
    files.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="sent a page instead of a file; to do: open it in a browser"):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert names(tmp_path) == []


def test_no_network_is_one_clear_error(tmp_path):
    with serving({}) as gone:
        address = gone.url("w.pth")
    with pytest.raises(UserError, match=r"cannot be downloaded: .*; to do: try again later"):
        fetch(address, tmp_path / "w.pth")
    assert names(tmp_path) == []


def test_two_processes_do_not_write_one_file(tmp_path, files):
    with open(tmp_path / ".w.pth.part", "ab") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being downloaded by another process"):
            fetch(files.url("w.pth"), tmp_path / "w.pth")


def test_a_full_disk_is_said_before(tmp_path, files, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="has 1000 bytes free, 3000000 are needed; to do: make room"):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert names(tmp_path) == []


def test_the_command_fetches_what_can_be_fetched_and_says_what_not(tmp_path, files, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    checkpoints = {
        "good": {"file": "c/good.pth", "arch": "vit_nano_patch16", "url": files.url("w.pth"), "sha256": SHA},
        "unknown": {"file": "c/unknown.pth", "arch": "vit_nano_patch16"},
    }
    runs = {"a": {"method": "none", "init": "good"}, "b": {"method": "none", "init": "ibot_vits16"}}
    (tmp_path / "config.yaml").write_text(json.dumps({"study": "s", "checkpoints": checkpoints, "runs": runs}))
    assert main(["fetch", "--config", "config.yaml"]) == UserError.exit_status
    assert capsys.readouterr().out == f"c/good.pth  sha256 {SHA}\n"
    assert (tmp_path / "c" / "good.pth").read_bytes() == BODY
    assert "unknown cannot be downloaded by itself: nothing says where it comes from; to do: save it as c/unknown.pth" in caplog.text
    assert "ibot_vits16 cannot be downloaded by itself: open https://drive.google.com" in caplog.text
    assert "to do: save it as checkpoints/ibot_vits16.pth" in caplog.text
    assert "not fetched: unknown, ibot_vits16" in caplog.text
    assert main(["fetch", "no_such"]) == UserError.exit_status
    assert "no public checkpoint is called 'no_such'" in caplog.text


def half_there(folder, files, size):
    """A download that was cut after `size` bytes."""
    files.cuts = [size, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(files.url("w.pth"), folder / "w.pth")


def test_a_server_that_goes_on_somewhere_else_is_asked_for_the_whole(tmp_path, files):
    half_there(tmp_path, files, 11 * PIECE)
    files.misplaced = 100
    fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert files.requests[-1] == ("w.pth", None)


def test_a_part_that_is_longer_than_the_file_is_not_taken_for_it(tmp_path, files):
    half_there(tmp_path, files, 11 * PIECE)
    (tmp_path / ".w.pth.part").write_bytes(BODY + b"rubbish")
    fetch(files.url("w.pth"), tmp_path / "w.pth")  # without any published checksum
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_a_disk_that_fills_up_meanwhile_is_one_clear_error(tmp_path, files, monkeypatch):
    class Full:
        def __init__(self, *_, **__):
            self.done = 0

        def advance(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download, "Progress", Full)
        with pytest.raises(UserError, match=r"\.w.pth.part cannot be written: No space left on device; to do: make room"):
            fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)
    assert files.requests[-1][1] is not None  # went on


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/w.pth", "w.pth", "http://[1/w.pth", "file:///etc/passwd"])
def test_what_is_no_address_is_one_clear_error(tmp_path, address):
    with pytest.raises(UserError, match=r"cannot be downloaded: .*; to do: correct the address"):
        fetch(address, tmp_path / "w.pth")
    assert names(tmp_path) == []


def test_who_waits_for_the_lock_does_not_write_into_the_finished_file(tmp_path, files, monkeypatch):
    part, real = tmp_path / ".w.pth.part", fcntl.flock

    def finished_meanwhile(file, how):
        part.write_bytes(BODY)
        part.rename(tmp_path / "w.pth")
        real(file, how)

    monkeypatch.setattr(download.fcntl, "flock", finished_meanwhile)
    with pytest.raises(UserError, match="has just been downloaded by another process; to do: try again"):
        fetch(files.url("w.pth"), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert files.requests == []


def test_many_processes_fetch_one_file_once(tmp_path, files):
    def one(_):
        try:
            return fetch(files.url("w.pth"), tmp_path / "w.pth", sha256=SHA)["sha256"]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert SHA in found
    assert all(f == SHA or "another process" in f for f in found)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert names(tmp_path) == ["w.pth", "w.pth.receipt.json"]


def test_a_secure_address_does_not_lead_to_an_open_one(tmp_path, files, monkeypatch):
    real = download.requests.get
    monkeypatch.setattr(download.requests, "get", lambda url, **more: real(files.url("w.pth"), **more))
    with pytest.raises(UserError, match=r"https://example.org/w.pth leads to http://127.0.0.1.*, which anybody on the way may change"):
        fetch("https://example.org/w.pth", tmp_path / "w.pth")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("make", "message"), [(Path.mkdir, "w.pth is no file"), (Path.touch, "w.pth.receipt.json is no receipt")])
def test_what_stands_in_the_way_is_named(tmp_path, files, make, message):
    make(tmp_path / "w.pth")
    (tmp_path / "w.pth.receipt.json").write_text("[]")
    with pytest.raises(UserError, match=message):
        fetch(files.url("w.pth"), tmp_path / "w.pth")


def test_an_error_without_words_has_its_name(tmp_path, monkeypatch):
    def slow(*_, **__):
        raise download.requests.Timeout

    monkeypatch.setattr(download.requests, "get", slow)
    with pytest.raises(UserError, match="cannot be downloaded: Timeout; to do: try again later"):
        fetch("http://127.0.0.1/w.pth", tmp_path / "w.pth")
