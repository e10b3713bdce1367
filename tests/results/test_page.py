"""The report page: complete, self-contained, and honest about what is missing."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core import provenance
from densewalk.core.files import write_json
from densewalk.core.metric import Ceiling, Metric
from densewalk.core.provenance import Provenance
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.methods.dino.losses import teacher_entropies
from densewalk.methods.dora.settings import DoraSettings
from densewalk.results.page.charts import COLORS, Point, cost_and_quality, learning_curves
from densewalk.results.page.evaluation_tables import best_of
from densewalk.results.page.images import features
from densewalk.results.page.page import duration, report, with_code
from densewalk.results.page.sections import costs, read_curve
from densewalk.results.plan import Plan
from densewalk.study import registry
from densewalk.visualization.overlays import Row, write_segmentation_strip
from tests.fixtures.pages import PLAN, write_study
from tests.fixtures.records import TRAINED, record, run_record, typed

VOID = {"meta", "link", "br", "img", "wbr"}


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


def write_page(results, plan=PLAN):
    report(Plan.model_validate(plan), results, results / "report.html")
    return Page((results / "report.html").read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    write_study(results)
    return write_page(results)


def test_an_axis_does_not_stretch_hundredths():
    for values, span in (((30.0, 30.05), 1.5), ((30.0, 40.0), 8)):
        points = [Point(f"run{i}", "dora", float(i), value, 0.01, None) for i, value in enumerate(values)]
        svg = cost_and_quality("e", "mIoU", points, "GPU", ["dora"])
        axis = svg[svg.index('id="cost_e-matplotlib.axis_2"') :]
        ticks = [float(tick) for tick in re.findall(r">(\d+\.?\d*)</text>", axis)]
        assert max(ticks) - min(ticks) >= span


def test_a_ceiling_is_drawn_and_a_rising_loss_is_said(tmp_path):
    write_study(tmp_path)
    plan = copy.deepcopy(PLAN)
    assert "ends higher" not in write_page(tmp_path, plan).text
    plan["runs"]["walk"]["ceilings"] = {"teacher_entropy": {"value": 11.09, "text": "ln 65536"}}
    lines = [{"step": s, "time": 0.0, "loss": 1 + s / 10, "teacher_entropy": 7.0} for s in range(20)]
    (tmp_path / "walk/s1/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_page(tmp_path, plan)
    assert "ln 65536" in page.text
    assert "teacher_entropy is at most ln 65536" in page.source
    assert "Dashed: the largest value that is possible." in page.text
    assert "The loss of 1 training ends higher than it began." in page.text
    assert "walk, seed 1 (1.15 to 2.75)" in page.words
    assert page.text.count("ends higher than it began") == 1


def test_entropies_of_self_distillation_have_a_ceiling():
    ceilings = DoraSettings(steps=1, out_dim=1024).ceilings()
    assert ceilings["teacher_entropy"] == Ceiling(math.log(1024), "ln 1024")
    even = torch.full((2, 1024), 1 / 1024)
    for name, value in teacher_entropies(even).items():
        assert float(value) == pytest.approx(ceilings[name].value)


def test_everything_is_on_the_page(page):
    assert page.headings == [
        "Walk & <b>talk</b>",
        "The study",
        "Cost and quality",
        "In-context segmentation",
        "Video object segmentation (DAVIS)",
        "Predictions",
        "Learning curves",
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


def test_a_study_in_a_folder_of_its_own_is_made_again_by_its_directory(tmp_path, monkeypatch):
    folder = tmp_path / "my study"
    write_study(folder / "results")
    (folder / "config.yaml").touch()
    monkeypatch.chdir(folder)
    text = write_page(folder / "results").text
    assert f"snakemake --directory '{folder}' --cores all --force results/dino_s16/s0/davis.json" in text
    assert "are for the folder of the Snakefile" in text
    (folder / "config.yaml").unlink()
    assert f"--directory '{folder}' --configfile STUDY.yaml --cores all" in write_page(folder / "results").text


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
    assert all(th.get("scope") for th in page.of("th"))
    assert all(int(image["width"]) <= 1600 for image in page.of("img"))


def test_curves_show_every_quantity_and_seed(page):
    for word in ("loss", "lr", "teacher_entropy", "s0", "s1"):
        assert word in page.words
    assert "#010203" not in "".join(str(tag) for tag in page.tags)


def test_equal_results_give_equal_bytes(tmp_path):
    write_study(tmp_path)
    assert write_page(tmp_path).source == write_page(tmp_path).source


def test_what_is_missing_is_said_at_the_top_and_in_the_cells(tmp_path):
    write_study(tmp_path)
    (tmp_path / "walk" / "s1" / "incontext_voc.json").unlink()
    (tmp_path / "dino_s16" / "s0" / "davis.json").unlink()
    log = tmp_path / "logs" / "dino_s16" / "s0" / "davis.log"
    log.parent.mkdir(parents=True)
    log.write_text("12:00 begun\n12:01 error: data/DAVIS does not exist; to do: download it\n")
    page = write_page(tmp_path)
    assert "This page is incomplete: 2 of 4 results are missing." in page.text
    assert "dino_s16, seed 0: davis has failed (12:01 error: data/DAVIS does not exist; to do: download it)" in page.text
    assert "walk, seed 1: incontext_voc is not started" in page.text
    assert "only 1 of 2 seeds: not started" in page.words
    assert "missing: failed" in page.words


def test_of_many_missing_things_five_are_shown_and_the_others_folded(tmp_path):
    write_study(tmp_path)
    plan = copy.deepcopy(PLAN)
    plan["runs"]["walk"]["seeds"] = list(range(9))
    plan["hashes"] |= {f"walk/s{seed}/incontext_voc": f"{seed:012d}" for seed in range(9)}
    page = write_page(tmp_path, plan)
    note = re.search(r'<div class="missing".*?</div>', page.source, flags=re.DOTALL).group(0)
    shown, folded = note.split("<details>")
    assert shown.count("<li>") == 5
    assert "<summary>2 more</summary>" in folded
    assert folded.count("<li>") == 2
    few = re.search(r'<div class="missing".*?</div>', write_page(tmp_path / "none", PLAN).source, flags=re.DOTALL).group(0)
    assert few.count("<li>") == 3
    assert "<details>" not in few


def test_predictions_are_folded_and_have_one_legend(tmp_path):
    write_study(tmp_path)
    labels = np.zeros((40, 60), np.uint8)
    for run, label in (("walk", 1), ("dino_s16", 2)):
        rows = [Row("image 0", np.full((40, 60, 3), 200, np.uint8), labels, np.full_like(labels, label))]
        write_segmentation_strip(tmp_path / run / "s0/incontext_voc/strip.png", rows, ["ground", "tree", "car"], ignore=255)
    plan = copy.deepcopy(PLAN)
    plan["runs"] = {name: {**run, "seeds": [0]} for name, run in plan["runs"].items()}
    page = write_page(tmp_path, plan)
    section = page.source[page.source.index('<section aria-labelledby="predictions">') :]
    section = section[: section.index('<section aria-labelledby="curves">')]
    assert re.findall(r"<details[^>]*>", section) == ['<details data-name="images">', '<details data-name="images">'], "none is open"
    legend = re.findall(r'<rect [^>]*fill="([^"]+)"/></svg>([^<]+)</li>', section)
    assert legend == [("#000000", "ground"), ("#800000", "tree"), ("#008000", "car"), ("#e0e0c0", "not scored")]
    heights = [int(image["height"]) for image in page.of("img")[:2]]
    whole = Image.open(tmp_path / "walk/s0/incontext_voc/strip.png").height
    assert max(heights) < whole - 10, "the drawn legend is cut off"


def test_every_evaluation_that_draws_says_what():
    folders = [folder for folder in files("densewalk.evaluations").iterdir() if folder.joinpath("settings.py").is_file()]
    drawing = [f.name for f in folders if f.joinpath("evaluate.py").is_file() and ".png" in f.joinpath("evaluate.py").read_text()]
    assert len(drawing) >= 8
    settings = {e.__module__.split(".")[2]: e for e in registry.evaluations().values()}
    default = EvaluationSettings.PICTURES
    assert [name for name in drawing if default == settings[name].PICTURES] == []


def test_a_study_without_any_result_still_gives_a_page(tmp_path):
    page = write_page(tmp_path)
    assert "This page is incomplete: 4 of 4 results are missing." in page.text
    assert "walk, seed 0: the training is not started; 1 result of it" in page.text
    assert "dino_s16, seed 0: the backbone is not made yet; 2 results of it" in page.text
    assert "densewalk tables --table davis --out davis.csv results" in page.text


def test_a_curve_of_one_point_is_seen():
    drawn = [learning_curves("r", {"s0": {"step": [0, 5][:n], "loss": [1.0, 2.0][:n]}}, {}) for n in (1, 2)]
    assert [len(re.findall(r'<g clip-path="[^"]*">\s*<use ', svg)) for svg in drawn] == [1, 0]


def test_a_curve_that_is_still_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time": 1.0, "loss": 1.0}\n{"step": 10, "time": 2.0, "loss": 0.5, "extra": 2.0}\n{"step": 20, "lo')
    curve = read_curve(path)
    assert curve["loss"] == [1.0, 0.5]
    np.testing.assert_equal(curve["extra"], [float("nan"), 2.0])


def test_the_curve_of_a_training_under_way_is_on_the_page(tmp_path):
    write_study(tmp_path)
    (tmp_path / "walk" / "s1" / "metrics.jsonl").unlink()
    state = tmp_path / "state" / "walk-s1-0123456789ab"
    state.mkdir(parents=True)
    (state / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "loss": 1.0, "only_here": 2.0}\n{"step": 10, "lo')
    assert "only_here" in write_page(tmp_path).words


def test_what_other_code_has_made_is_flagged_at_the_top_and_in_its_row(tmp_path, monkeypatch):
    write_study(tmp_path)
    result = json.loads((tmp_path / "walk" / "s1" / "incontext_voc.json").read_text())
    code = {name: result[name] for name in Provenance.model_fields}
    monkeypatch.setattr(provenance, "current", lambda: Provenance(**code))
    page = write_page(tmp_path)
    assert "Not everything was made by the code" not in page.text
    assert "made by other code" not in page.words
    versions = result["versions"] | {"torch": "1.0"}
    write_json(tmp_path / "walk" / "s1" / "incontext_voc.json", result | {"commit": "b" * 40, "versions": versions})
    page = write_page(tmp_path)
    assert "Not everything was made by the code and packages that made this page." in page.words
    assert f"made by commit bbbbbbbbbbbb, not {code['commit'][:12]}: 1 output walk, seed 1: incontext_voc" in page.text
    assert f"torch 1.0, not {code['versions']['torch']}: 1 output walk, seed 1: incontext_voc" in page.text
    assert page.words.count("made by other code") == 1


def test_a_result_of_another_configuration_is_shown_and_flagged(tmp_path):
    write_study(tmp_path)
    changed = copy.deepcopy(PLAN)
    changed["hashes"]["walk/s1/incontext_voc"] = "another"
    page = write_page(tmp_path, changed)
    assert "This page is incomplete: 1 output is outdated." in page.text
    assert "walk, seed 1: incontext_voc is outdated (made by another configuration than the study's is now" in page.text
    assert "1 of 2 seeds outdated" in page.words
    assert "1 result outdated" in page.words, "in the diagram, too"
    assert "40.50 ± 6.35" in page.text


def test_what_is_the_same_in_all_rows_stands_above_the_table_once(page):
    table = evaluation_of(page)
    assert "protocol dense NN, fraction 1, 512 px" in table["above"]
    assert table["headings"] == ["run", "mIoU", "mIoU_hungarian", "method", "init", "compat", "seeds"]


def evaluation_of(page):
    """What stands above the first table, and its headings."""
    above = page.text[page.text.index("In-context segmentation", page.text.index("Data and initial weights are on the left")) :]
    headings = re.search(r"<thead><tr>(.*?)</tr></thead>", page.source, flags=re.DOTALL).group(1)
    return {"above": above[:300], "headings": [re.sub("<[^>]+>", "", h) for h in re.findall(r"<button[^>]*>(.*?)</button>", headings)]}


@pytest.mark.parametrize(
    ("metric", "best"),
    [(Metric("%"), {"b"}), (Metric("% lost", better="lower"), {"a"}), (Metric("% of copying", "a floor", better=None), set())],
)
def test_the_best_of_a_column_goes_by_its_direction(metric, best):
    values = {"a": {"m": 1.0, "n": 2.0}, "b": {"m": 3.0, "n": 2.0, "o": 5.0}, "c": {"m": None, "n": 2.0}}
    groups = {run: [typed(record(run, seed, of_run, init=run)) for seed in (0, 1)] for run, of_run in values.items()}
    assert best_of(groups, ["m", "n", "o"], {"m": metric}) == {(run, "m") for run in best}, "where all are equal, none is best"
    alone = {run: group[:1] for run, group in groups.items()}
    assert best_of(alone, ["m"], {"m": metric}) == set(), "nothing is called the best on one seed"


@pytest.mark.parametrize(("hours", "text"), [(0.0432, "156 s"), (0.999, "59.9 min"), (1.0, "1 h"), (31.42, "31.4 h"), (0.0, "0 s")])
def test_times_have_a_unit(hours, text):
    assert duration(hours) == text


def test_text_in_backticks_is_code():
    assert with_code("a `b < c` d") == "a <code>b &lt; c</code> d"


def test_a_training_without_results_counts_among_what_was_spent(tmp_path):
    write_study(tmp_path)
    for seed in (0, 1):
        (tmp_path / "walk" / f"s{seed}" / "run.json").write_text(
            json.dumps(run_record("walk", seed, training={**TRAINED, "gpu_hours": 2.0}))
        )
        (tmp_path / "walk" / f"s{seed}" / "incontext_voc.json").unlink()
    page = write_page(tmp_path)
    assert "4 h" in page.words
    assert "2 of 2" in page.words


FROM_SCRATCH = {"method": "dora", "init": "random", "init_kind": "random"}


def test_cost_says_whose_time_it_is():
    def charts(*gpu_hours, **cost):
        records = [
            typed(record(f"r{i}", 0, {"mIoU": 1.0 + i}, training={**TRAINED, "gpu_hours": hours, **cost}, **FROM_SCRATCH))
            for i, hours in enumerate(gpu_hours)
        ]
        runs = {r.run: {"method": "dora", "init": "random", "arch": "vit_small_patch16", "data": [], "seeds": [0]} for r in records}
        evaluations = {"incontext_voc": {**PLAN["evaluations"]["incontext_voc"], "runs": list(runs)}}
        hashes = {f"{run}/s0/incontext_voc": "" for run in runs}
        plan = Plan.model_validate({**PLAN, "runs": runs, "evaluations": evaluations, "hashes": hashes})
        return str(costs(plan, records)[0].svg)

    assert "GPU seconds, initial runs included" in charts(1.0, 1.0)
    assert "mIoU by CPU seconds: r0 80 s" in charts(None, None, cpu_seconds=80.0)
    assert "mIoU by seconds × processes: r0 120 s" in charts(None, None), "CPU time is not known of an earlier version's record"
    assert ">seconds × processes" in charts(1.0, None), "a GPU's and a CPU's time are not called by one of the two"


def test_quality_is_drawn_by_counted_work_where_it_is_known():
    """A training on another one is to the right of it by its own work; one that was not counted is left out."""

    def charts(*counted):
        chain = [FROM_SCRATCH, {"method": "neco", "init": "r0", "init_kind": "run", "init_seed": 0}]
        pairs = enumerate(zip(counted, chain, strict=True))
        records = [typed(record(f"r{i}", 0, {"mIoU": 1.0 + i}, training={**TRAINED, "teraflop": t}, **how)) for i, (t, how) in pairs]
        runs = {r.run: {"method": r.method, "init": r.init, "arch": r.arch, "data": [], "seeds": [0]} for r in records}
        evaluations = {"incontext_voc": {**PLAN["evaluations"]["incontext_voc"], "runs": list(runs)}}
        hashes = {f"{run}/s0/incontext_voc": "" for run in runs}
        return costs(Plan.model_validate({**PLAN, "runs": runs, "evaluations": evaluations, "hashes": hashes}), records)

    by_time, chart = charts(120.0, 30.0)
    assert [by_time.counted, chart.counted] == [False, True], "the page folds the latter"
    assert chart.title == "incontext_voc: mIoU by counted work"
    assert "mIoU by counted teraflop: r0 120 teraflop, 1.00; r1 150 teraflop, 2.00" in chart.svg
    assert "r0 1.2 petaflop" in charts(1200.0, 30.0)[1].svg
    assert [len(charts(*counted)) for counted in ((None, None), (120.0, None))] == [1, 1]


def test_a_method_has_one_color_and_marker_on_the_whole_page():
    methods = ["none", "dora", "neco"]
    points = [Point("a", "neco", 0.1, 1.0, 0.0, None), Point("b", "none", 0.2, 2.0, 0.0, None)]
    for chosen in (points, points[::-1], points[:1]):
        svg = str(cost_and_quality("e", "mIoU", chosen, "GPU", methods))
        assert COLORS[2] in svg
        assert COLORS[1] not in svg


def test_names_in_a_chart_lie_on_no_other_name():
    points = [Point(f"run_number_{i}", "dora", 1 + 0.02 * i, 10 + 0.1 * (i % 2), 0.0, None) for i in range(4)]
    points += [Point("far", "dora", 2.0, 11.0, 0.3, None)]
    text = r'font-size: 8px;[^"]*text-anchor: middle[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<'
    found = re.findall(text, str(cost_and_quality("e", "mIoU", points, "GPU", ["dora"])))
    assert {name for *_, name in found} == {p.run for p in points}
    boxes = [(float(x), float(y), 2.3 * len(name)) for x, y, name in found]
    for i, (x, y, half) in enumerate(boxes):
        assert not any(abs(x - u) < half + other and abs(y - v) < 8 for u, v, other in boxes[:i])


def test_images_drawn_before_the_study_was_changed_are_not_mistaken_for_others(tmp_path):
    folders = {}
    for run, numbers in (("old", (5, 7)), ("new", (6, 7))):
        folder = folders[run] = tmp_path / run
        (folder / "features").mkdir(parents=True)
        facts = [{"source": "walk", "number": n, "variance": [0.1 * n, 0.0, 0.0]} for n in numbers]
        (folder / "features.json").write_text(json.dumps({"images": facts, "heads": 2, "nearest": False}))
        for i in range(2):
            for kind in ("image", "pca", "attention"):
                Image.new("RGB", (8, 8)).save(folder / "features" / f"{kind}_{i}.png")
    found = features(folders)
    assert [image.title for image in found.images] == [f"walk, image {n}" for n in (5, 7, 6)]
    notes = {run: [cell and cell.note for cell in cells] for run, cells in found.components.items()}
    assert notes == {
        "old": ["50 % of the variance", "70 % of the variance", None],
        "new": [None, "70 % of the variance", "60 % of the variance"],
    }


def test_images_of_an_attempt_without_a_result_are_not_shown(tmp_path):
    write_study(tmp_path)
    (tmp_path / "dino_s16" / "s0" / "davis.json").unlink()
    titles = [image["alt"] for image in write_page(tmp_path).of("img")]
    assert titles == [f"image, ground truth and prediction of {run}" for run in ("walk", "dino_s16")]


def luminance(color):
    """Relative luminance of #rrggbb by WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_stands_out_from_its_paper():
    css = files("densewalk.results.page").joinpath("templates/report.css").read_text()
    themes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{([^}]*)\}", css)]
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        theme = {**themes[0], **theme}
        pairs = [(ink, paper) for ink in ("ink", "faint", "accent") for paper in ("paper", "wash")] + [("warn-ink", "warn")]
        assert all(contrast(theme[ink], theme[paper]) >= 4.5 for ink, paper in pairs)
    assert all(contrast(color, themes[i]["paper"]) >= 3 for color in COLORS for i in (0, 1))
