"""Tables against golden files of hand-written records, and by hand-computed statistics."""

import json
import math
import re
import shutil
import subprocess

import pytest
from scipy.stats import t as student

from densewalk.core.errors import UserError
from densewalk.methods.dora.settings import DoraSettings
from densewalk.results.formats import condensed, latex, write_formats
from densewalk.results.published import CONFIDENCE, KEY, elsewhere, published, published_numbers, read_numbers
from densewalk.results.records import read_results
from densewalk.results.tables import (
    COST,
    LEADING,
    TIDY,
    TRAILING,
    compute,
    fixed,
    mean_and_interval,
    read_table,
    wide_table,
    with_init,
    write_table,
)
from tests.fixtures.records import DINO, PROTOCOL, TRAINED, record, typed

METRIC = {"mIoU": 1.0}


@pytest.fixture
def records(tmp_path):
    """A baseline with published numbers, and a run of two seeds, one of which an old and dirty checkout evaluated."""
    walk = {"method": "dora", "init": "random", "init_kind": "random", "compat": "paper", "training": TRAINED}
    content = [
        record("walk", 1, {"mIoU": 41.0, "mIoU_hungarian": 44.0}, **walk),
        record("walk", 0, {"mIoU": 40.0, "mIoU_hungarian": 42.0}, **walk, dirty=True),
        record("dino_s16", 0, {"mIoU": 46.123, "mIoU_hungarian": 48.456}, labels=DINO),
        record("dino_s16", 0, {"J&F": None}, task="davis", evaluation="davis", dataset="DAVIS-2017", published_protocol=None, labels=DINO),
    ]
    paths = []
    for i, one in enumerate(content):
        path = tmp_path / f"{i}.json"
        path.write_text(json.dumps(one))
        paths.append(path)
    return paths


GOLDEN_HEAD = (
    "run,method,init,arch,compat,pretraining_data,evaluation,dataset,protocol,protocol_version,seeds,n,unit,"
    "mIoU,mIoU ci95,"
    "mIoU_hungarian,mIoU_hungarian ci95,mIoU_hungarian published,mIoU_hungarian published_source,mIoU_hungarian published_delta,"
    "training_steps,samples_seen,samples_unit,method_version,config_hash,commit,training_teraflop\n"
)
GOLDEN = (
    GOLDEN_HEAD + 'walk,dora,random,vit_small_patch16,paper,,incontext_voc,PascalVOC,"dense NN, fraction 1, 512 px",1,2,1449,images,'
    "40.50,6.35,43.00,12.71,,,,100,6400,clips,1,000000000000; 000000000001,0123456789ab+dirty; 0123456789ab,\n"
    'dino_s16,none,dino_s16,vit_small_patch16,,ImageNet-1k,incontext_voc,PascalVOC,"dense NN, fraction 1, 512 px",1,1,1449,images,'
    "46.12,,48.46,,48.70,NeCo paper via DIP paper Tab. 1,-0.24,,,,1,000000000000,0123456789ab,\n"
)


def test_golden_task_table(records, tmp_path):
    write_table(records, "incontext", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().decode() == GOLDEN
    assert list(read_table(tmp_path / "a.csv").columns) == [
        *LEADING,
        *GOLDEN_HEAD.strip().split(",")[len(LEADING) : -len(TRAILING)],
        *TRAILING,
    ]


def test_task_tables_hold_nothing_that_repeating_a_run_changes(records, tmp_path):
    write_table(records, "incontext", tmp_path / "a.csv")
    for path in records:
        again = {**json.loads(path.read_text()), "seconds": 99.0, "peak_rss_mib": 1.0, "device": "cuda:0", "versions": {}}
        if again["training"]:
            again["training"] = {**again["training"], "seconds": 1.0, "gpu_hours": 9.9, "device": "cpu"}
        path.write_text(json.dumps(again))
    write_table(records, "incontext", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_rows_follow_the_order_of_the_records_whatever_the_seeds_order(records, tmp_path):
    write_table(records, "incontext", tmp_path / "a.csv")
    write_table([records[1], records[0], records[2], records[3]], "incontext", tmp_path / "b.csv")
    write_table([records[2], records[0], records[1]], "incontext", tmp_path / "c.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert list(read_table(tmp_path / "c.csv")["run"]) == ["dino_s16", "walk"]


def test_golden_tidy_table(records, tmp_path):
    write_table(records, "all", tmp_path / "all.csv")
    lines = (tmp_path / "all.csv").read_bytes().decode().split("\n")
    assert lines[0] == ",".join(TIDY)
    assert lines[1] == (
        'walk,dora,random,vit_small_patch16,paper,,incontext,incontext_voc,PascalVOC,"dense NN, fraction 1, 512 px",1,'
        "mIoU,0,40.000000,40.50,6.35,2,1449,images,,,,,,100,6400,clips,0.0334,0.0334,cuda:0,1,"
        "000000000000,000000000000,0123456789abcdef0123456789abcdef,true,python=3.11.7 torch=2.14.1,cpu,12.3,,813,,,60.0,0.5000,900,,,,,"
    )
    matched = read_table(tmp_path / "all.csv").iloc[5]
    assert matched[["metric", "published", "published_protocol", "published_delta"]].tolist() == [
        "mIoU_hungarian",
        "48.70",
        PROTOCOL,
        "-0.24",
    ]
    assert matched["published_source"] == "NeCo paper via DIP paper Tab. 1"
    assert ",J&F,0,,,,1," in lines[7]  # no value is an empty cell
    assert len(lines) == 9
    assert lines[8] == ""


def test_golden_cost_table(records, tmp_path):
    write_table(records, "cost", tmp_path / "cost.csv")
    assert (tmp_path / "cost.csv").read_text().splitlines() == [
        ",".join(COST),
        "walk,dora,random,vit_small_patch16,0,cuda:0,2,100,6400,clips,60.0,0.5000,0.0334,0.0334,12.3,813,,,",
        "walk,dora,random,vit_small_patch16,1,cuda:0,2,100,6400,clips,60.0,0.5000,0.0334,0.0334,12.3,813,,,",
        "dino_s16,none,dino_s16,vit_small_patch16,0,,,,,,,,,0.0000,24.7,813,,0.000,",
    ]


def test_hours_follow_the_chain_of_initial_backbones():
    def trained(hours):
        return {**TRAINED, "seconds": 1800 * hours}  # by two processes

    start = record("dora", 0, METRIC, init="random", init_kind="random", training=trained(1))
    other = record("dora", 1, METRIC, init="random", init_kind="random", training=trained(2))
    chain = [record("neco", s, METRIC, init="dora", init_kind="run", init_seed=s, training=trained(4)) for s in (0, 1)]
    plain = record("kept", 0, METRIC, init="neco", init_kind="run", init_seed=0)
    lost = record("lost", 0, METRIC, init="gone", init_kind="run", init_seed=0, training=trained(8))
    public = record("public", 0, METRIC, init="dora", init_kind="checkpoint", training=trained(16))
    hours = compute([typed(r) for r in (start, other, *chain, plain, lost, public)]).hours
    assert [with_init("neco", s, hours) for s in (0, 1)] == [5, 6]
    assert with_init("kept", 0, hours) == 5
    assert math.isnan(with_init("lost", 0, hours))
    assert with_init("public", 0, hours) == 16  # a checkpoint that is called like a run is none


def test_hours_are_those_of_the_seed_that_a_run_is_built_on():
    def trained(hours):
        return {**TRAINED, "seconds": 1800 * hours}  # by two processes

    start = [record("dora", s, METRIC, init="random", init_kind="random", training=trained(h)) for s, h in ((0, 1), (2, 4))]
    chain = record("neco", 1, METRIC, init="dora", init_kind="run", init_seed=2, training=trained(8))
    lost = record("lost", 1, METRIC, init="dora", init_kind="run", init_seed=1, training=trained(8))
    hours = compute([typed(r) for r in (*start, chain, lost)]).hours
    assert with_init("neco", 1, hours) == 12
    assert math.isnan(with_init("lost", 1, hours)), "another seed's hours are not its own"


def test_counted_work_follows_the_chain_and_is_empty_where_it_was_not_counted(tmp_path):
    def trained(teraflop):
        return {**TRAINED, "teraflop": teraflop, "cpu_seconds": 90.04}

    chain = {"init": "dora", "init_kind": "run", "init_seed": 0}
    content = [
        record("dora", 0, METRIC, init="random", init_kind="random", training=trained(1.5)),
        record("neco", 0, METRIC, training=trained(0.25), **chain),
        record("old", 0, METRIC, training=trained(None), **chain),
    ]
    for number, one in enumerate(content):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    for table in ("all", "cost"):
        write_table(paths, table, tmp_path / "t.csv")
        cells = read_table(tmp_path / "t.csv")[["training_teraflop", "training_teraflop_with_init", "training_cpu_seconds"]]
        assert cells.to_numpy().tolist() == [["1.500", "1.500", "90.0"], ["0.250", "1.750", "90.0"], ["", "", "90.0"]]
    write_table(paths, "incontext", tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["training_teraflop"].tolist() == ["1.500", "0.250", ""]


def test_records_that_lead_in_a_circle_have_no_hours():
    pair = [record(a, 0, METRIC, init=b, init_kind="run", init_seed=0, training=TRAINED) for a, b in (("a", "b"), ("b", "a"))]
    assert math.isnan(with_init("a", 0, compute([typed(r) for r in pair]).hours))


def test_no_difference_where_the_seeds_do_not_share_a_protocol(tmp_path):
    for change in ({"protocol": "dense NN, fraction 1, 448 px"}, {"published_protocol": None}, {"dataset": "mini"}, {"labels": None}):
        paths = []
        for seed in (0, 1):
            paths.append(tmp_path / f"{seed}.json")
            paths[-1].write_text(json.dumps(record("r", seed, {"mIoU_hungarian": 48.0}, **{"labels": DINO, **(change if seed else {})})))
        write_table(paths, "incontext", tmp_path / "a.csv")
        row = read_table(tmp_path / "a.csv").iloc[0]
        assert row["mIoU_hungarian"] == "48.00"
        assert not [column for column in row.index if "published" in column], "nothing is published: no empty columns"
    same = record("r", 0, {"mIoU_hungarian": 48.0}, labels=DINO)
    paths[0].write_text(json.dumps(same))
    paths[1].write_text(json.dumps({**same, "seed": 1}))
    write_table(paths, "incontext", tmp_path / "a.csv")
    assert read_table(tmp_path / "a.csv").iloc[0]["mIoU_hungarian published_delta"] == "-0.70"


def test_a_floor_has_no_interval(tmp_path):
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(record("r", seed, {"J": 30.0 + seed, "J_copied": 17.5})))
    write_table(paths, "incontext", tmp_path / "a.csv")
    row = read_table(tmp_path / "a.csv").iloc[0]
    assert (row["J ci95"], row["J_copied"], row["J_copied ci95"]) == ("6.35", "17.50", "")
    write_formats(tmp_path / "a.csv")
    assert "| 30.50 ± 6.35 | 17.50 |" in (tmp_path / "a.md").read_text()


def test_seeds_of_two_configurations_are_told_apart(tmp_path):
    paths = []
    for seed, protocol in ((0, "448 px"), (1, "512 px")):
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(record("r", seed, {"mIoU": 1.0}, protocol=protocol)))
    write_table(paths, "incontext", tmp_path / "a.csv")
    assert read_table(tmp_path / "a.csv").iloc[0]["protocol"] == "448 px; 512 px"


def test_gpu_hours_for_people_are_the_mean_over_seeds(tmp_path):
    paths = []
    for seed, hours in ((0, 1.0), (1, 2.0)):
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(record("r", seed, {"mIoU": 1.0}, training={**TRAINED, "gpu_hours": hours})))
    write_table(paths, "all", tmp_path / "all.csv")
    write_formats(tmp_path / "all.csv")
    assert (tmp_path / "all.md").read_text().splitlines()[2].endswith("| 1.5000 |")


def test_a_table_by_its_name(records, tmp_path):
    for name, columns in (("all", TIDY), ("cost", COST), ("incontext", LEADING)):
        write_table(records, name, tmp_path / f"{name}.csv")
        assert tuple(read_table(tmp_path / f"{name}.csv").columns[: len(columns)]) == columns


@pytest.mark.parametrize("name", ["all", "cost", "davis"])
def test_a_study_without_results_has_tables_of_their_heads_alone(name, tmp_path):
    write_table([], name, tmp_path / f"{name}.csv")
    write_formats(tmp_path / f"{name}.csv")
    assert read_table(tmp_path / f"{name}.csv").empty
    assert "tabular" in (tmp_path / f"{name}.tex").read_text()


def test_the_column_compat_names_the_switches_that_a_study_sets():
    assert DoraSettings(steps=1).deviations == "paper"
    changed = DoraSettings(steps=1, compat="released", skip_first_local_crop=False, loss_carry_over=True)
    assert changed.deviations == "released skip_first_local_crop=false"


GOLDEN_PROTOCOLS = "`incontext_voc` on PascalVOC: dense NN, fraction 1, 512 px.\n"
INTERVALS = "Intervals are over training seeds; test units (1449 images) are another source of variation: see densewalk compare."
GOLDEN_MARKDOWN = (
    "| run | method | init | arch | compat | dataset | seeds | mIoU | mIoU_hungarian |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    "| walk | dora | random | vit_small_patch16 | paper | PascalVOC | 2 | 40.50 ± 6.35 | 43.00 ± 12.71 |\n"
    "| dino_s16 | none | dino_s16 | vit_small_patch16 |  | PascalVOC | 1 | 46.12 | 48.46 (published 48.70) |\n"
    f"\n{INTERVALS}\n"
    f"\n{GOLDEN_PROTOCOLS}"
)
GOLDEN_LATEX = r"""% the whole table; one for a paper: densewalk tables --columns run,mIoU,mIoU_hungarian --format latex
\begin{table}
\centering
\caption{INTERVALS \texttt{incontext\_voc} on PascalVOC: dense NN, fraction 1, 512 px.}
\label{tab:a}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{llllllrrr}
\toprule
run & method & init & arch & compat & dataset & seeds & mIoU & mIoU\_hungarian \\
\midrule
walk & dora & random & vit\_small\_patch16 & paper & PascalVOC & 2 & 40.50 $\pm$ 6.35 & 43.00 $\pm$ 12.71 \\
dino\_s16 & none & dino\_s16 & vit\_small\_patch16 &  & PascalVOC & 1 & 46.12 & 48.46 (published 48.70) \\
\bottomrule
\end{tabular}}
\end{table}
"""


def test_golden_markdown_and_latex(records, tmp_path):
    write_table(records, "incontext", tmp_path / "a.csv")
    write_formats(tmp_path / "a.csv")
    assert (tmp_path / "a.md").read_text() == GOLDEN_MARKDOWN
    assert (tmp_path / "a.tex").read_text() == GOLDEN_LATEX.replace("INTERVALS", INTERVALS)


def test_a_table_with_many_columns_fits_an_article(tmp_path):
    """By an engine: nothing wider than the text, and a narrow table is not made larger."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine (Debian: apt-get install texlive-latex-base texlive-latex-extra)")
    many = {f"metric_{i}": 40.0 for i in range(12)}
    texts = []
    for metrics in (many, {"m": 1.0}):
        texts.append(latex(wide_table([typed(record("walk", 0, metrics))]), label=f"tab:{len(metrics)}"))
    body = [text[text.index(r"\resizebox") : text.index(r"\end{tabular}") + len(r"\end{tabular}}")] for text in texts]
    lines = [rf"\savebox{{\measured}}{{{one}}}\typeout{{WIDTH \the\wd\measured\space of \the\linewidth}}" for one in body]
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\newsavebox{\measured}\begin{document}"
    (tmp_path / "a.tex").write_text("\n".join([head, *lines, *texts, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    (wide, text), (narrow, _) = re.findall(r"WIDTH ([\d.]+)pt of ([\d.]+)pt", done.stdout)
    assert float(wide) == pytest.approx(float(text), abs=0.1)
    assert 150 < float(narrow) < float(text)


def test_the_tidy_table_for_people_is_one_line_per_metric(records, tmp_path):
    write_table(records, "all", tmp_path / "all.csv")
    write_formats(tmp_path / "all.csv")
    assert (tmp_path / "all.md").read_text().splitlines()[2:5] == [
        "| walk | dora | random | vit_small_patch16 | paper | incontext_voc | mIoU | 2 | 40.50 ± 6.35 | 0.5000 |",
        "| walk | dora | random | vit_small_patch16 | paper | incontext_voc | mIoU_hungarian | 2 | 43.00 ± 12.71 | 0.5000 |",
        "| dino_s16 | none | dino_s16 | vit_small_patch16 |  | incontext_voc | mIoU | 1 | 46.12 |  |",
    ]


def test_a_task_without_records_is_an_empty_table(records, tmp_path):
    write_table(records, "coco", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == ",".join([*LEADING, *TRAILING]) + "\n"
    assert condensed(read_table(tmp_path / "a.csv")).empty


@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("{", "is not JSON"), ("{}", "is no result record"), ("[]", "is no result record")]
)
def test_broken_records_are_named_and_earlier_tables_stay(records, tmp_path, text, message):
    table = tmp_path / "a.csv"
    write_table(records, "incontext", table)
    before = table.read_bytes()
    broken = tmp_path / "broken.json"
    if text is not None:
        broken.write_text(text)
    with pytest.raises(UserError, match=f"broken.json {message}"):
        write_table([*records, broken], "incontext", table)
    assert table.read_bytes() == before


# -- statistics ------------------------------------------------------------------------------------------------------


def test_interval_is_student_s():
    mean, half = mean_and_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    # s = 1.527525, t(0.975, 2) = 4.302653
    assert half == pytest.approx(4.302653 * 1.527525 / math.sqrt(3), rel=1e-6)
    low, high = student.interval(0.95, 2, loc=mean, scale=1.527525 / math.sqrt(3))
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-6)


def test_one_seed_has_no_interval_and_a_missing_seed_no_mean():
    assert mean_and_interval([5.0])[0] == 5.0
    assert math.isnan(mean_and_interval([5.0])[1])
    assert all(math.isnan(v) for v in mean_and_interval([5.0, None]))


@pytest.mark.parametrize(("value", "text"), [(1.005, "1.00"), (-0.001, "0.00"), (None, ""), (math.nan, ""), (2, "2.00")])
def test_cells_have_two_decimals(value, text):
    assert fixed(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.2, "+0.20"), (-0.2, "-0.20"), (-0.001, "+0.00")])
def test_differences_carry_a_sign(value, text):
    assert fixed(value, sign=True) == text


# -- published numbers -----------------------------------------------------------------------------------------------


def test_published_only_where_everything_matches():
    good = typed(record("r", 0, {"mIoU_hungarian": 1.0}, labels=DINO))
    assert published(good, "mIoU_hungarian").value == 48.7
    assert published(good, "mIoU") is None  # the published metric is the matched one
    for change in (
        {"labels": None},
        {"published_protocol": None},
        {"published_protocol": "dense NN, fraction 1/8 "},
        {"dataset": "mini PascalVOC"},
        {"labels": {**DINO, "arch": "ViT-B/8"}},
        {"labels": {**DINO, "init": "DINOv2"}},
        {"labels": {**DINO, "pretraining_data": "WT_Venice"}},
    ):
        assert published(typed({**good.model_dump(), **change}), "mIoU_hungarian") is None


def test_values_by_other_protocols_are_told_and_not_subtracted():
    other = typed(record("r", 0, {"mIoU_hungarian": 1.0}, labels=DINO, published_protocol="dense NN, fraction 1/8"))
    assert published(other, "mIoU_hungarian").value != 48.7
    assert "48.7 by dense NN, fraction 1 [NeCo paper via DIP paper Tab. 1]" in elsewhere(other, "mIoU_hungarian")
    assert "48.7 by dense NN, fraction 1 [" in elsewhere(other.model_copy(update={"published_protocol": None}), "mIoU_hungarian")
    assert elsewhere(other.model_copy(update={"labels": None}), "mIoU_hungarian") == ""
    assert elsewhere(other.model_copy(update={"dataset": "mini"}), "mIoU_hungarian") == ""


NECO = {"method": "NeCo", "init": "DINOv2R", "arch": "ViT-S/14", "pretraining_data": "COCO (post-training)"}


@pytest.mark.parametrize(
    ("method", "evaluation", "metric", "expected"),
    [
        ("NeCo", {}, "mIoU_hungarian", 80.2),  # NeCo's README, column dense NN: 80.2 without registers, 80.7 with them
        ("NeCo (registers kept)", {}, "mIoU_hungarian", 80.7),
        ("NeCo", {"published_protocol": "k-means K=500 many-to-one", "published_metrics": None}, "mIoU", 72.6),
        ("NeCo (registers kept)", {"published_protocol": "k-means K=500 many-to-one", "published_metrics": None}, "mIoU", 68.9),
        ("NeCo (registers kept)", {"published_protocol": "dense NN, fraction 1/8"}, "mIoU_hungarian", None),  # only the other's: 76.4
        ("NeCo (registers kept)", {"dataset": "ADE20K"}, "mIoU_hungarian", None),  # likewise: 39.7
    ],
)
def test_a_row_shows_the_value_of_its_own_labels_and_protocol_alone(method, evaluation, metric, expected):
    found = published(typed(record("r", 0, {metric: 1.0}, labels={**NECO, "method": method}, **evaluation)), metric)
    assert (found and found.value) == expected


# of every key that once had two values: the one that is meant, and where the other one went
RESOLVED = {
    "DINO,,ViT-S/16,ImageNet-1k,DAVIS-2017,J&F,label propagation (DINO)": "61.8",
    "DINO,,ViT-S/16,ImageNet-1k,DAVIS-2017,J,label propagation (DINO)": "60.2",
    "DINO,,ViT-S/16,ImageNet-1k,DAVIS-2017,F,label propagation (DINO)": "63.4",
    "DINO,,ViT-S/16,ImageNet-1k (100 epochs),DAVIS-2017,J&F,label propagation (DINO)": "59.4",
    "DINO,,ViT-S/16,ImageNet-1k,ImageNet-1k,top1,k-NN (DINO)": "74.5",
    "DINO,,ViT-S/16,ImageNet-1k (100 epochs),ImageNet-1k,top1,k-NN (DINO)": "70",
    "DINO,,ViT-S/16,ImageNet-1k (100 epochs),ImageNet-1k,top1,linear probe (DoRA)": "72",
    "Leopart,DINO,ViT-S/16,,PascalVOC,mIoU,linear 100x100 masks": "69.3",
    "Leopart,DINO,ViT-S/16,,PascalVOC,mIoU,linear 100x100 masks (NeCo's re-evaluation)": "66.5",
    "Leopart,DINO,ViT-S/16,,PascalVOC,mIoU,k-means K=500 many-to-one": "53.5",
    "Leopart,DINO,ViT-S/16,,PascalVOC,mIoU,k-means K=500 many-to-one (NeCo's re-evaluation)": "51.2",
    "NeCo,DINO,ViT-S/16,COCO (post-training),PascalVOC,mIoU,linear 100x100 masks": "65.8",
    "NeCo,TimeT,ViT-S/16,COCO (post-training),PascalVOC,mIoU,k-means K=500 many-to-one": "53.1",
    "NeCo,TimeT,ViT-S/16,COCO (post-training),PascalVOC,mIoU,k-means K=500 many-to-one (NeCo paper Tab. 3)": "52.1",
    "TimeT,DINO,ViT-S/16,YouTube-VOS (post-training),COCO-Things,mIoU,k-means K=GT Hungarian": "17.5",
    "TimeT,DINO,ViT-S/16,YouTube-VOS (post-training),COCO-Things,mIoU,k-means K=21 Hungarian": "18.4",
    "NeCo,DINOv2R,ViT-S/14,COCO (post-training),PascalVOC,mIoU,dense NN, fraction 1": "80.2",
    "DINOv2,,ViT-S/14,LVD-142M,ADE20K,mIoU,linear BN+1x1 (DINOv2)": "44.3",
}


def test_every_key_has_one_value():
    values = {",".join(row[name] for name in KEY): row["value"] for row in published_numbers()}
    assert len(values) == len(published_numbers())  # and `read_numbers` itself refuses two
    assert {key: values.get(key) for key in RESOLVED} == RESOLVED


def test_two_values_for_one_key_are_an_error_of_the_file():
    head, line = (
        "method,init,arch,pretraining_data,task,dataset,protocol,metric,value,source,confidence",
        "DINO,,S,IN,{},VOC,k-NN,top1,{},a,seen",
    )
    assert [row["value"] for row in read_numbers([head, line.format("t", 70)])] == ["70"]
    for task in ("t", "another task"):  # a value is looked up without its task
        with pytest.raises(AssertionError, match=r"two values for DINO, , S, IN, VOC, top1, k-NN: 70 and 74\.5"):
            read_numbers([head, line.format("t", 70), line.format(task, 74.5)])


def test_every_published_number_is_one():
    assert len(published_numbers()) == 1136
    for row in published_numbers():
        assert math.isfinite(float(row["value"]))
        assert row["source"]
        assert row["confidence"] in CONFIDENCE


def test_names_of_metrics_are_the_same_unless_said_otherwise():
    plain = typed(record("r", 0, METRIC, labels=DINO, published_metrics=None))
    assert published(plain, "mIoU").value == 48.7


def test_records_sort_by_run_then_evaluation_then_seed(records):
    assert [(r.run, r.evaluation, r.seed) for r in read_results(records)] == [
        ("walk", "incontext_voc", 0),
        ("walk", "incontext_voc", 1),
        ("dino_s16", "incontext_voc", 0),
        ("dino_s16", "davis", 0),
    ]
