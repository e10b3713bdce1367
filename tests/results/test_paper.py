"""Tables for a paper: columns, groups, names, bold, floors, width, and what is refused."""

import csv
import json
import os
import re
import shutil
import subprocess

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.metric import Metric
from densewalk.results.gain import gain_table
from densewalk.results.paper.formats import SIZES, comma_separated, latex, markdown, table_width
from densewalk.results.paper.tables import Cell, PaperTable, display_names, paper_table
from densewalk.results.tables import wide_table
from tests.fixtures.records import DINO, TRAINED, of_whole_benchmark, record, typed

METRICS = {"davis": {name: Metric("%") for name in ("J", "F")}, "incontext": {"mIoU": Metric("%")}}
START = {"init": "random", "init_kind": "random"}
DORA = {"method": "DoRA", "init": "", "arch": "ViT-S/16", "pretraining_data": "WT_Venice"}


@pytest.fixture
def records(tmp_path):
    """Two data sets of DAVIS' layout and one other evaluation; random weights, a trained run and a checkpoint."""
    runs = {
        "start": (START, (20.0, 21.0)),
        "dora": ({**START, "method": "dora", "labels": DORA, "training": TRAINED}, (40.0, 41.5)),
        "dino_s16": ({"labels": DINO}, (30.0,)),
    }
    content = []
    for run, (made, values) in runs.items():
        for seed, value in enumerate(values):
            for dataset, more in (("DAVIS-2017", 0.0), ("MOSE_1", 5.0)):
                metrics = {"J": value + more, "F": value - 1, "J_copied": 17.5 + more, **({"J&F": value + 2} if more else {})}
                whole = of_whole_benchmark("davis", dataset)
                content.append(record(run, seed, metrics, **made, evaluation=f"davis_{dataset[:4]}", **whole))
            content.append(record(run, seed, {"mIoU": value}, **made))
    paths = []
    for one in content:
        paths.append(tmp_path / "results" / one["run"] / f"s{one['seed']}" / f"{one['evaluation']}.json")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text(json.dumps(one))
    return paths


GOLDEN_LATEX = r"""\begin{table*}[t]
\centering
\setlength{\belowcaptionskip}{4pt}
\caption{CAPTION}
\small
\setlength{\tabcolsep}{4pt}
\begin{tabular}{@{}lrrrr@{}}
\toprule
 & \multicolumn{2}{c}{DAVIS-2017} & \multicolumn{2}{c}{MOSE\_1} \\
\cmidrule(lr){2-3} \cmidrule(lr){4-5}
run & J\phantom{$_{\pm 9.53}$} & F\phantom{$_{\pm 9.53}$} & J\phantom{$_{\pm 9.53}$} & F\phantom{$_{\pm 9.53}$} \\
\midrule
DoRA & \textbf{40.75}$_{\pm 9.53}$ & \textbf{39.75}$_{\pm 9.53}$ & \textbf{45.75}$_{\pm 9.53}$ & \textbf{39.75}$_{\pm 9.53}$ \\
DINO & 30.00PAD & 29.00PAD & 35.00PAD & 29.00PAD \\
\midrule
start (floor) & 20.50PAD & 19.50PAD & 25.50PAD & 19.50PAD \\
copying (floor) & 17.50PAD & --PAD & 22.50PAD & --PAD \\
\bottomrule
\end{tabular}
\end{table*}
"""


def test_golden_latex(records):
    text = latex(paper_table(records, ["run", "J", "F"], "dataset", None, METRICS))
    caption = re.search(r"\\caption\{(.*)\}", text)[1]
    assert text.replace(caption, "CAPTION") == GOLDEN_LATEX.replace("PAD", r"\phantom{$_{\pm 9.53}$}")
    assert "half-width of its 95 \\% interval (Student's t)" in caption
    assert (
        "Bold: better than every other run, and every floor, by more than the 95 \\% interval of the paired difference over seeds."
        in caption
    )
    assert (
        "test units (davis\\_DAVI: 61 images; davis\\_MOSE: 1449 images) are another source of variation: see densewalk compare." in caption
    )
    assert "Floors are no result of a training and have no interval." in caption
    assert "davis\\_DAVI on DAVIS-2017, davis\\_MOSE on MOSE\\_1: dense NN, fraction 1, 512 px." in caption


def test_nothing_below_a_floor_is_bold(records):
    """A trained run that is better than all others, and worse than copying, by so much as its interval or not."""
    for floor, is_bold in ((47.6, False), (40.0, False), (30.0, True)):
        for path in records:
            content = json.loads(path.read_text())
            if "J_copied" in content["metrics"]:
                path.write_text(json.dumps({**content, "metrics": {**content["metrics"], "J_copied": floor}}))
        table = paper_table(records, ["run", "davis_DAVI:J", "mIoU"], None, None, METRICS)
        assert [cell.best for cell in table.rows[0][1:]] == [is_bold, True], floor
        assert [row[1].text for row in table.floors] == ["20.50", f"{floor:.2f}"]


def test_the_caption_says_how_many_units_of_each_evaluation(records):
    paths = [path for path in records if path.stem == "davis_MOSE"]
    for path in paths:
        path.write_text(json.dumps({**json.loads(path.read_text()), "n": 9, "unit": "objects"}))
    both = paper_table(records, ["run", "davis_MOSE:J", "mIoU"], None, None, METRICS).caption
    assert any("test units (davis_MOSE: 9 objects; incontext_voc: 1449 images) are another source" in sentence for sentence in both)
    one = paper_table(paths, ["run", "J"], None, None, METRICS).caption
    assert any("test units (9 objects) are another source" in sentence for sentence in one)
    single = [path for path in paths if path.parent.name == "s0"]
    assert not any("test units" in sentence for sentence in paper_table(single, ["run", "J"], None, None, METRICS).caption)


def check_structure(text):
    """What a TeX engine would stumble over: groups, environments, and rows with as many cells as the table has columns."""
    assert text.count("{") == text.count("}")
    assert re.findall(r"\\begin\{(\w+\*?)\}", text) == re.findall(r"\\end\{(\w+\*?)\}", text)[::-1]
    columns = len(re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)[1])
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    for line in (line for line in body.splitlines() if line.endswith(r"\\")):
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        assert len(re.split(r"(?<!\\)&", line)) + sum(spans) - len(spans) == columns
    assert not re.search(r"(?<!\\)[%#]", text)
    assert text.isascii()


@pytest.mark.parametrize(
    ("columns", "pivot"),
    [
        (["run", "J", "F"], "dataset"),
        (["run", "seeds", "samples_seen", "J"], "evaluation"),
        (["run", "dataset", "J", "J_copied"], None),
        (["run", "method", "arch", "compat", "pretraining_data", "protocol", "dataset", "J"], None),
    ],
)
def test_every_latex_table_is_well_formed(records, columns, pivot):
    check_structure(latex(paper_table(records, columns, pivot, None, METRICS)))


def test_a_wide_table_goes_over_both_columns(records):
    narrow = paper_table(records, ["run", "mIoU"], None, "incontext", METRICS)
    wide = paper_table(records, ["run", "method", "arch", "protocol", "mIoU"], None, "incontext", METRICS)
    assert table_width(narrow, r"\small") < 236 < table_width(wide, r"\small") < 487
    assert latex(narrow).startswith("\\begin{table}[t]")
    assert "\\small\n" in latex(narrow)
    assert latex(wide).startswith("\\begin{table*}[t]")
    columns = ["run", "method", "init", "arch", "pretraining_data", "protocol", "samples_seen", "config_hash", "mIoU"]
    widest = latex(paper_table(records, columns, None, "incontext", METRICS))
    assert widest.startswith("% wider than 487 pt: choose fewer columns\n\\begin{table*}[t]")
    assert "\\scriptsize\n" in widest


def test_numbers_stand_one_below_another_beside_intervals_of_more_digits():
    rows = [[Cell("a"), Cell("40.75", "9.53", best=True)], [Cell("b"), Cell("41.00", "10.25")], [Cell("c"), Cell("7.00")]]
    text = latex(PaperTable([("", "run"), ("", "a_long_name_of_a_metric")], rows, [], [], [False, True]))
    assert r"a & \textbf{40.75}$_{\pm 9.53}$\phantom{$_{0}$} \\" in text
    assert r"b & 41.00$_{\pm 10.25}$ \\" in text
    assert r"c & 7.00\phantom{$_{\pm 10.25}$} \\" in text
    assert r"run & a long name of a metric \\" in text, "a long name needs the room of the intervals itself"


DOCUMENT = r"""\documentclass[10pt,twocolumn]{article}
\usepackage{booktabs}
\setlength{\textwidth}{496pt}
\setlength{\columnsep}{22pt}
\newsavebox{\measured}
\begin{document}
TABLES
text
\end{document}
"""


def test_tables_compile_and_are_as_wide_as_estimated(records, tmp_path):
    """By an engine: no error, nothing wider than a column or both, and the estimated widths within 3 %."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine (Debian: apt-get install texlive-latex-base texlive-latex-extra)")
    chosen = [
        paper_table(records, ["run", "J", "F"], "dataset", None, METRICS),
        paper_table(records, ["run", "seeds", "samples_seen", "J"], "evaluation", None, METRICS),
        paper_table(records, ["run", "dataset", "J", "J_copied"], None, None, METRICS),
        paper_table(records, ["run", "mIoU"], None, "incontext", METRICS),
        PaperTable(
            [("", "run"), ("Walk & talk (at dusk)", "m")], [[Cell("a"), Cell("1.00", "0.25", best=True)]], [], ["± 5 %."], [False, True]
        ),
    ]
    lines = []
    for table in chosen:
        lines.append(latex(table))
        body = re.search(r"\\begin\{tabular\}.*\\end\{tabular\}", lines[-1], flags=re.DOTALL)[0]
        for size in SIZES:
            measured = rf"\savebox{{\measured}}{{{size}\setlength{{\tabcolsep}}{{4pt}}{body}}}"
            lines.append(measured + r"\typeout{WIDTH \the\wd\measured}")
    (tmp_path / "paper.tex").write_text(DOCUMENT.replace("TABLES", "\n".join(lines)))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    widths = [float(width) for width in re.findall(r"WIDTH ([\d.]+)pt", done.stdout)]
    estimated = [table_width(table, size) for table in chosen for size in SIZES]
    assert widths == pytest.approx(estimated, rel=0.03)


def test_markdown_and_csv_hold_the_same_numbers(records):
    table = paper_table(records, ["run", "samples_seen", "mIoU"], None, "incontext", METRICS)
    assert markdown(table).splitlines()[:5] == [
        "| run | samples_seen | mIoU |",
        "| --- | ---: | ---: |",
        "| DoRA | 6400 clips | **40.75** ± 9.53 |",
        "| DINO |  | 30.00 |",
        "| start (floor) |  | 20.50 |",
    ]
    assert list(csv.reader(comma_separated(table).splitlines())) == [
        ["run", "samples_seen", "mIoU", "mIoU ci95"],
        ["DoRA", "6400 clips", "40.75", "9.53"],
        ["DINO", "", "30.00", ""],
        ["start (floor)", "", "20.50", ""],
    ]


def test_a_list_is_no_number_and_is_left_aligned(records):
    table = paper_table(records, ["run", "seeds", "config_hash", "mIoU"], None, "incontext", METRICS)
    assert table.numeric == [False, True, False, True]
    assert table.rows[0][2].text == "000000000000; 000000000001"


def test_names_are_the_labels_and_tell_runs_apart():
    made = {
        "a": {**DORA, "init": "DINO"},
        "b": DORA,
        "c": {**DINO, "arch": "ViT-B/16"},
        "d": DINO,
        "e": {**DINO, "pretraining_data": "COCO"},
        "f": {**DINO, "pretraining_data": "COCO"},
    }
    first = {run: typed(record(run, 0, {"m": 1.0}, labels=labels)) for run, labels in made.items()}
    assert display_names({**first, "plain": typed(record("plain", 0, {"m": 1.0}))}) == {
        "a": "DoRA from DINO",
        "b": "DoRA",
        "c": "DINO, ViT-B/16",
        "d": "DINO, ViT-S/16, ImageNet-1k",
        "e": "DINO, ViT-S/16, COCO, e",
        "f": "DINO, ViT-S/16, COCO, f",
        "plain": "plain",
    }
    of_one_size = {run: labelled for run, labelled in first.items() if run in ("d", "e")}
    assert display_names(of_one_size) == {"d": "DINO, ImageNet-1k", "e": "DINO, COCO"}, "what all have tells nothing apart"


@pytest.mark.parametrize(
    ("columns", "pivot", "message"),
    [
        (["run", "IoU"], None, "--columns: IoU is neither a fact of the wide tables nor a metric.*allowed: run, method"),
        (["run", "J", "mIoU"], None, "J is a metric of davis_DAVI and davis_MOSE; allowed: davis_DAVI:J, davis_MOSE:J; to do: name one"),
        (["run", "J"], None, "rows of davis_DAVI, davis_MOSE could not be told apart.*--pivot dataset.*or name one, e.g. davis_DAVI:J"),
        (["run", "davis:J"], None, "davis:J: no record of an evaluation davis, did you mean davis_MOSE.*allowed: davis_DAVI, davis_MOSE"),
        (["run", "davis_DAVI:mIoU"], None, "--columns: davis_DAVI has no metric mIoU; allowed: J, F, J_copied"),
        (["run", "seeds"], "dataset", None),
    ],
)
def test_what_a_reader_could_not_understand_is_refused(records, columns, pivot, message):
    if message is None:
        assert paper_table(records, columns, pivot, None, METRICS).rows
        return
    with pytest.raises(UserError, match=message):
        paper_table(records, columns, pivot, None, METRICS)


def test_several_tasks_stand_side_by_side_in_one_row_of_each_run(records):
    """The numbers and the bold type of each evaluation are those of its own table; a run that was not evaluated has a dash."""
    os.remove(next(path for path in records if path.parts[-3:] == ("dino_s16", "s0", "incontext_voc.json")))
    records = [path for path in records if path.exists()]
    table = paper_table(records, ["run", "mIoU", "davis_MOSE:J", "davis_DAVI:J"], None, None, METRICS)
    assert table.heads == [("", "run"), ("incontext_voc", "mIoU"), ("davis_MOSE", "J"), ("davis_DAVI", "J")]
    assert table.rows == [
        [Cell("DoRA"), Cell("40.75", "9.53", best=True), Cell("45.75", "9.53", best=True), Cell("40.75", "9.53", best=True)],
        [Cell("DINO"), Cell("–"), Cell("35.00"), Cell("30.00")],
    ]
    assert table.floors == [
        [Cell("start (floor)"), Cell("20.50"), Cell("25.50"), Cell("20.50")],
        [Cell("copying (floor)"), Cell("–"), Cell("22.50"), Cell("17.50")],
    ]
    of_all = "incontext_voc on PascalVOC, davis_MOSE on MOSE_1, davis_DAVI on DAVIS-2017: dense NN, fraction 1, 512 px."
    assert table.caption[-1] == of_all
    check_structure(latex(table))
    assert markdown(table).startswith("| run | mIoU, incontext_voc | J, davis_MOSE | J, davis_DAVI |")
    assert comma_separated(table).startswith('run,"mIoU, incontext_voc","mIoU, incontext_voc ci95","J, davis_MOSE"')
    by_dataset = paper_table(records, ["run", "mIoU", "J", "F"], "dataset", None, METRICS).heads[1:]
    assert by_dataset == [("PascalVOC", "mIoU"), *(("DAVIS-2017", m) for m in ("J", "F")), *(("MOSE_1", m) for m in ("J", "F"))]
    assert paper_table(records, ["run", "davis_MOSE:J"], None, None, METRICS).heads == [("", "run"), ("", "J")]


def test_two_evaluations_of_one_data_set_need_a_choice(records):
    for path in records:
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "dataset": "YouTube-VOS"}))
    with pytest.raises(UserError, match="--pivot dataset: davis_DAVI, davis_MOSE have the same dataset"):
        paper_table(records, ["run", "J"], "dataset", None, METRICS)
    assert paper_table(records, ["run", "J"], "evaluation", None, METRICS).heads[1:] == [("davis_DAVI", "J"), ("davis_MOSE", "J")]
    with pytest.raises(
        UserError, match="--pivot dataset: J on YouTube-VOS is of davis_DAVI and davis_MOSE; allowed: davis_DAVI:J, davis_MOSE:J"
    ):
        paper_table(records, ["run", "mIoU", "J"], "dataset", None, METRICS)
    chosen = paper_table(records, ["run", "davis_DAVI:J", "davis_MOSE:F"], "dataset", None, METRICS)
    assert chosen.heads[1:] == [("YouTube-VOS", "J"), ("YouTube-VOS", "F")], "two metrics of one data set are told apart by their names"


@pytest.mark.parametrize(
    ("n", "sequences", "name"),
    [
        (9, ["cows", "dog", "judo"], "DAVIS-2017 (9 images, the benchmark has 61)"),
        (61, ["cows", "dog", "judo"], "DAVIS-2017 (not the benchmark's list)"),
        (61, None, "DAVIS-2017"),  # a record of an earlier version says no names
    ],
)
def test_a_part_of_a_benchmark_is_not_called_by_its_name_alone(records, n, sequences, name):
    paths = [path for path in records if path.stem == "davis_DAVI"]
    for path in paths:
        details = {} if sequences is None else {"sequences": {sequence: [] for sequence in sequences}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "n": n, "details": details}))
    table = paper_table(paths, ["run", "dataset", "J"], None, None, METRICS)
    assert {row[1].text for row in [*table.rows, *table.floors]} == {name}
    assert table.caption[-1].startswith(f"davis_DAVI on {name}: ")
    assert paper_table(paths, ["run", "J"], "dataset", None, METRICS).heads[1] == (name, "J")
    read = [typed(json.loads(path.read_text())) for path in paths]
    assert set(wide_table(read)["dataset"]) == set(gain_table(read, METRICS, None)["dataset"]) == {name}


def test_it_is_printed_or_written(records, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "--columns", "run,J,F", "--pivot", "dataset", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    check_structure(text)
    assert main(["tables", "--columns", "run,J,F", "--pivot", "dataset", "--format", "latex", "--out", "a.tex", "results"]) == 0
    assert (tmp_path / "a.tex").read_text() == text
    assert main(["tables", "--columns", "run,mIoU,J&F", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    check_structure(text)
    assert main(["tables", "--columns", "run,incontext_voc:mIoU,J&F", "--format", "latex"]) == 0
    assert capsys.readouterr().out == text
    assert r"DoRA & \textbf{40.75}$_{\pm 9.53}$ & \textbf{42.75}$_{\pm 9.53}$ \\" in text
    assert main(["tables", "--pivot", "dataset", "--table", "davis", "--out", "a.csv"]) == 2
    assert "needs --table and --out, or --columns" in caplog.text
    assert main(["tables", "--table", "davs", "--out", "a.csv"]) == 2
    assert "no table is called 'davs', did you mean davis?; allowed: all, cost, gain, " in caplog.text
    assert not (tmp_path / "a.csv").exists()
    assert main(["tables", "--table", "davis"]) == 2


def test_tables_without_records_say_where_they_were_looked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "--table", "davis", "--out", "a.csv"]) == 2
    assert f"there is no folder results in {tmp_path}; to do: name records, or folders of results" in caplog.text
