"""No token or password of an address stands in a record or a log line."""

import io
import json
import logging

import pytest

from densewalk.core.progress import start_logging
from densewalk.core.text.urls import redacted, without_secrets
from densewalk.models.origin import CheckpointFile
from densewalk.study.config import parse_study

CLEAN = [
    "https://example.org/w.pth",
    "https://example.org/w.pth?download=1",
    "https://example.org/w.pth?id=1aB_c-&confirm=t#part",
    "https://example.org:8080/a%20b/w.pth?a=%2F&b=",
    "https://example.org/w.pth?rlkey=w9q3&dl=1",  # which names the file
    "https://[broken",
    "checkpoints/w.pth",
    "",
]
SECRET = {
    "https://example.org/w.pth;sig=hunter2": "https://example.org/w.pth",
    "https://example.org/w.pth;sig=hunter2;v=2": "https://example.org/w.pth;v=2",
    "https://me:hun/hunter2@example.org/w.pth": "https://example.org/w.pth",
    "https://me:hun#hunter2@example.org/w.pth": "https://example.org/w.pth",
    "https://me:hunter2@example.org/w.pth": "https://example.org/w.pth",
    "https://hunter2@example.org:80/w.pth": "https://example.org:80/w.pth",
    "https://example.org/w.pth?token=hunter2&download=1": "https://example.org/w.pth?download=1",
    "https://example.org/w.pth?access_token=hunter2": "https://example.org/w.pth",
    "https://example.org/w.pth?X-Amz-Signature=hunter2&X-Amz-Credential=hunter2&versionId=3": "https://example.org/w.pth?versionId=3",
    "https://example.org/w.pth?Policy=hunter2&Signature=hunter2&Key-Pair-Id=hunter2": "https://example.org/w.pth",
    "https://example.org/w.pth?access_key=hunter2&dl=1#token=hunter2": "https://example.org/w.pth?dl=1",
    "https://example.org/w.pth?sig=hunter2": "https://example.org/w.pth",
    "https://example.org/w.pth?PASSWORD=hunter2#api_key=hunter2": "https://example.org/w.pth",
    "https://example.org/w.pth?hunter2hunter2hunter2hunter2": "https://example.org/w.pth",
    "s3://me:hunter2@bucket/w.pth": "s3://bucket/w.pth",
}


@pytest.mark.parametrize("url", CLEAN)
def test_an_address_without_secrets_stays_as_it_is(url):
    assert without_secrets(url) == url


@pytest.mark.parametrize("url", SECRET)
def test_secrets_are_left_out(url):
    assert without_secrets(url) == SECRET[url]
    assert redacted(f"error: {url}: the server asks") == f"error: {SECRET[url]}: the server asks"


@pytest.mark.parametrize("url", SECRET)
def test_a_study_s_specifications_hold_no_secret_and_a_new_token_changes_no_hash(url):
    def spec(address):
        checkpoints = {"w": {"file": "w.pth", "arch": "vit_nano_patch16", "url": address}}
        study = parse_study({"study": "s", "checkpoints": checkpoints, "runs": {"r": {"method": "none", "init": "w"}}, "evaluations": {}})
        return study.run_spec("r", 0)

    assert "hunter2" not in json.dumps(spec(url).model_dump(mode="json"))
    assert spec(url).hash == spec(SECRET[url]).hash


def test_records_of_earlier_versions_are_read_without_their_secrets():
    content = {"name": "w", "file": "w.pth", "key": None, "sha256": None, "url": "https://me:hunter2@example.org/w.pth"}
    assert CheckpointFile.model_validate(content).url == "https://example.org/w.pth"


def test_log_lines_hold_no_secret(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr("sys.stderr", out := io.StringIO())
    start_logging()
    logging.getLogger("densewalk").error("%s cannot be downloaded", "https://me:hunter2@example.org/w.pth")
    assert out.getvalue().endswith("https://example.org/w.pth cannot be downloaded\n")
