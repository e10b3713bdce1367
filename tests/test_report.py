"""The report page: complete, self-contained, and honest about what is missing."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from densewalk.report import read_curve, report_folder, write_report
from densewalk.tables import write_all, write_cost_table, write_task_table
from tests.test_tables import DINO, TRAINED, record

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """What the tests ask of a page; refuses unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.open, self.tags, self.words, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data.strip())
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(word for word in self.words if word)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write_study(results):
    """Two runs, two tasks, curves and pictures, as jobs leave them."""
    walk = {"method": "dora", "init": "random", "compat": "paper", "training": TRAINED}
    davis = {"task": "davis", "evaluation": "davis", "dataset": "DAVIS-2017", "published_protocol": None, "unit": "objects"}
    records = [
        record("walk", 0, {"mIoU": 40.0, "mIoU_hungarian": 42.0}, **walk),
        record("walk", 1, {"mIoU": 41.0, "mIoU_hungarian": 44.0}, **walk),
        record("dino_s16", 0, {"mIoU": 46.123, "mIoU_hungarian": 48.456}, labels=DINO),
        record("dino_s16", 0, {"J&F": 61.8, "J_decay": None}, **davis),
    ]
    paths = []
    for one in records:
        folder = results / one["run"] / f"s{one['seed']}"
        paths.append(folder / f"{one['evaluation']}.json")
        (folder / one["evaluation"]).mkdir(parents=True)
        (folder / "backbone.safetensors").touch()
        paths[-1].write_text(json.dumps(one))
        Image.fromarray(np.full((20, 3000, 3), 120, np.uint8)).save(folder / one["evaluation"] / "strip.png")
        if one["training"]:
            lines = [{"step": s, "time": 0.0, "loss": 3.0 / (s + 1), "lr": 0.1, "teacher_entropy": 7.0 - s / 10} for s in range(20)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for task in ("incontext", "davis"):
        write_task_table(paths, task, results / "tables" / f"{task}.csv")
    write_all(paths, results / "tables" / "all.csv")
    write_cost_table(paths, results / "tables" / "cost.csv")
    return paths


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    records = write_study(results)
    report_folder(results, "Walk & <b>talk</b>", results / "report.html", expected=records)
    return Page((results / "report.html").read_text())


def test_everything_is_on_the_page(page):
    assert page.headings == [
        "Walk & <b>talk</b>",
        "Video object segmentation (DAVIS)",
        "In-context segmentation",
        "Learning curves",
        "Pictures",
        "Every number",
    ]
    for text in (
        "40.50 ± 6.35",
        "46.12",
        "published 48.70 (-0.24)",
        "61.80",
        "dense NN, fraction 1, 512 px",
        "NeCo paper via DIP paper Tab. 1",
    ):
        assert text in page.text
    assert "incomplete" not in page.text


def test_each_number_says_how_it_was_made(page):
    assert page.text.count("config hash") == 3
    assert len([link for link in page.of("a") if link["href"].startswith("#how-")]) == 3
    assert "snakemake --cores all --force results/walk/s0/incontext_voc.json results/walk/s1/incontext_voc.json" in page.text
    assert "1449 images" in page.text
    assert "0123456789ab" in page.text


def test_the_page_needs_no_network(page):
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "@import" not in page.source
    addresses = [a.get("src") or a.get("href") for _, a in page.tags if a.get("src") or a.get("href")]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_accessibility(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")]
    assert set(inside) <= set(ids)
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("img")) == 3
    assert all(image["alt"] for image in page.of("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert len(page.of("svg")) == 1
    assert all(th.get("scope") for th in page.of("th"))
    assert all(int(image["width"]) <= 1600 for image in page.of("img"))


def test_curves_show_every_quantity_and_seed(page):
    for word in ("loss", "lr", "teacher_entropy", "s0", "s1"):
        assert word in page.words
    assert "#010203" not in "".join(str(tag) for tag in page.tags)


def test_equal_results_give_equal_bytes(tmp_path):
    records = write_study(tmp_path)
    for name in ("a", "b"):
        report_folder(tmp_path, "t", tmp_path / f"{name}.html", expected=records)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_missing_results_are_named(tmp_path):
    records = write_study(tmp_path)
    (tmp_path / "state" / "walk-s2-0123456789ab").mkdir(parents=True)
    (tmp_path / "state" / "walk-s0-incontext_voc-0123456789ab").mkdir()
    expected = [*records, tmp_path / "walk" / "s2" / "davis.json"]
    report_folder(tmp_path, "t", tmp_path / "report.html", expected=expected)
    page = Page((tmp_path / "report.html").read_text())
    assert "This page is incomplete: 2 results are missing." in page.text
    assert "walk, seed 2: davis" in page.text
    assert "walk, seed 2: training has not ended" in page.text
    assert "walk, seed 0: training has not ended" not in page.text


def test_a_study_without_any_result_still_gives_a_page(tmp_path):
    write_report(tmp_path / "report.html", "t", {}, {}, {}, ["walk, seed 0: davis"])
    page = Page((tmp_path / "report.html").read_text())
    assert "1 result is missing" in page.text
    assert "There is no result yet." in page.text
    write_task_table([], "coco", tmp_path / "coco.csv")
    write_report(tmp_path / "report.html", "t", {"coco": tmp_path / "coco.csv"}, {}, {})
    assert "No run has a result here yet." in Page((tmp_path / "report.html").read_text()).text


def test_a_curve_that_is_still_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 10, "loss": 0.5, "extra": 2.0}\n{"step": 20, "lo')
    curve = read_curve(path)
    assert curve["loss"] == [1.0, 0.5]
    np.testing.assert_equal(curve["extra"], [float("nan"), 2.0])
    path.write_text("")
    write_report(tmp_path / "report.html", "t", {}, {"walk/s0": path}, {})
    assert "<svg" not in (tmp_path / "report.html").read_text()
