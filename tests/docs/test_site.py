"""The site (`make docs`): every page is in its navigation, every setting in its reference, and nothing is loaded from elsewhere."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import yaml

import densewalk
from tests.fixtures.studies import REPOSITORY


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("settings_pages", REPOSITORY / "docs/site/settings_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def paths(part) -> list[str]:
    """All paths of the navigation."""
    if isinstance(part, str):
        return [part]
    return [path for child in (part.values() if isinstance(part, dict) else part) for path in paths(child)]


def test_every_page_is_in_the_navigation_once(pages):
    listed = paths(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted([*pages, "api.md", *(path.name for path in (REPOSITORY / "docs").glob("*.md"))])


def test_every_key_of_the_schema_has_a_line_with_its_meaning(pages):
    schema = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text())
    text = "\n".join(pages.values())
    lines = {re.sub(r"\s+", " ", line) for line in text.splitlines()}
    for model in [schema, *schema["$defs"].values()]:
        for key, part in model.get("properties", {}).items():
            if key not in ("settings", "method", "protocol"):
                found = [line for line in lines if line.startswith(f"| `{key}` |")]
                meaning = " ".join(part.get("description", "").split()).split("|")[0].split("<")[0].split("&")[0].split(">")[0].strip()
                assert any(meaning in line for line in found), (model["title"], key)
    assert all(re.search(r"(?<!\\)\|$", line) and len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines if line.startswith("| `"))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == densewalk.__version__
    assert all(len(reference["authors"]) > 1 and reference["year"] for reference in citation["references"])


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


@pytest.mark.slow
def test_it_builds_with_strict_links_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material (requirements-dev.txt) is not installed here")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 30
    for page in built:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*stylesheet[^>]*href=\"?([^\s\">]+)", text)
        assert not [address for address in loaded if "//" in address], page
