"""Two result folders: what is new, gone or other, and the reasons that the records give."""

import json
import os

import pytest

from densewalk.__main__ import main
from densewalk.core.hashing import config_hash
from densewalk.results.compare import UNKNOWN, compare, text
from densewalk.results.records import results_in
from densewalk.results.tables import read_table
from tests.fixtures.records import TRAINED, record, run_record

SPECS = {
    "dora": {"run": "dora", "seed": 0, "method": "dora", "arch": "a", "init": {"kind": "random"}, "settings": {"lr": 0.1, "steps": 5}},
    "neco": {
        "run": "neco",
        "seed": 0,
        "method": "neco",
        "arch": "a",
        "init": {"kind": "run", "name": "dora", "seed": 0},
        "settings": {"queue": 4},
    },
}


def write(folder, *, lr=0.1, short_side=480, metrics=None, **facts):
    """A folder of two runs, the second built on the first, each with one evaluation."""
    specs = json.loads(json.dumps(SPECS))
    specs["dora"]["settings"]["lr"] = lr
    specs["neco"]["init"]["hash"] = config_hash(specs["dora"])
    for run, spec in specs.items():
        out = folder / run / "s0"
        out.mkdir(parents=True)
        evaluation = {"run": run, "settings": {"short_side": short_side}, "run_hash": config_hash(spec)}
        content = record(run, 0, metrics or {"J&F": 60.0, "J": 59.0}, spec=evaluation, evaluation="davis", training=TRAINED, **facts)
        content |= {"run_hash": config_hash(spec), "config_hash": config_hash(evaluation)}
        (out / "davis.json").write_text(json.dumps(content))
        (out / "run.json").write_text(
            json.dumps(run_record(run, 0, spec=spec, **{k: content[k] for k in ("commit", "dirty", "versions", "compat", "config_hash")}))
        )
    return folder


def test_equal_folders(tmp_path, capsys):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", seconds=99.0, peak_rss_mib=1.0)
    assert compare(a, b).changes == []
    assert main(["diff", str(a), str(b)]) == 0
    assert capsys.readouterr().out == "4 numbers are equal, 0 changed, 0 appeared, 0 vanished\n"


def test_other_versions_alone_change_nothing_that_counts(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", versions={"torch": "3"})
    assert main(["diff", str(a), str(b)]) == 0


def test_a_changed_setting_is_named_down_the_chain(tmp_path, capsys):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", lr=0.2, metrics={"J&F": 60.0, "J": 58.5})
    found = compare(a, b)
    assert [(c.kind, c.run, c.metric) for c in found.changes] == [("changed", "dora", "J"), ("changed", "neco", "J")]
    assert found.equal == 2
    assert found.changes[0].why == ("the run: settings.lr: 0.1 -> 0.2",)
    assert found.changes[1].why == ("dora, which it is built on: settings.lr: 0.1 -> 0.2",)
    assert main(["diff", str(a), str(b), "--csv", str(tmp_path / "changes.csv")]) == 1
    assert "davis   dora seed 0   J   59.00 -> 58.50 (-0.50)\n    the run: settings.lr: 0.1 -> 0.2\n" in capsys.readouterr().out
    table = read_table(tmp_path / "changes.csv")
    assert table.iloc[1][["change", "run", "before", "after", "difference"]].tolist() == [
        "changed",
        "neco",
        "59.000000",
        "58.500000",
        "-0.50",
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"short_side": 240}, "the evaluation: settings.short_side: 480 -> 240"),
        ({"commit": "f" * 40}, "commit: 0123456789ab -> ffffffffffff"),
        ({"versions": {"torch": "3.0", "python": "3.11.7"}}, "versions: torch: 2.14.1 -> 3.0"),
        ({"compat": "released"}, "compat:  -> released"),
        ({"device": "cuda:0"}, "device: cpu -> cuda:0"),
        ({}, UNKNOWN),
    ],
)
def test_reasons(tmp_path, change, why):
    found = compare(write(tmp_path / "a"), write(tmp_path / "b", metrics={"J&F": 1.0, "J": 59.0}, **change))
    assert why in found.changes[0].why
    assert len([w for w in found.changes[0].why if not w.startswith("the run: ")]) == 1


def test_rows_that_appear_and_vanish(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics={"J&F": 60.0, "F": None})
    (a / "neco" / "s0" / "davis.json").unlink()
    found = compare(a, b)
    kinds = [(c.kind, c.run, c.metric) for c in found.changes]
    assert kinds == [("vanished", "dora", "J"), ("appeared", "dora", "F"), ("appeared", "neco", "J&F"), ("appeared", "neco", "F")]
    assert "davis   neco seed 0   J&F   appeared: 60.00" in text(found)
    assert "davis   neco seed 0   F   appeared: no value" in text(found)


def renamed(folder, run, new, dataset=None, video=None):
    """What `densewalk rename` makes of a run in a folder, and the study's other names of data."""
    os.rename(folder / run, folder / new)
    for path in folder.glob("*/s0/*.json"):
        content = json.loads(path.read_text())
        for part in (content, content["spec"]):
            part |= {"run": new} if part.get("run") == run else {}
        if "evaluation" in content and dataset:
            content["dataset"] = dataset
        if content["spec"].get("init", {}).get("name") == run:
            content["spec"]["init"]["name"] = new
        if video and "data" in content["spec"]:
            content["spec"]["data"] = {video: {"source": f"{video}.mp4", "fps": 5}}
        path.write_text(json.dumps(content))


def with_data(folder, content):
    """Both runs are trained on the video lisbon."""
    for path in folder.glob("*/s0/run.json"):
        record = json.loads(path.read_text())
        record["spec"]["data"] = {"lisbon": {"source": "lisbon.mp4", "fps": 5}}
        record["contents"] = {"init": None, "data": [content]}
        path.write_text(json.dumps(record))
    return folder


def test_other_names_are_said_and_are_neither_gone_nor_new(tmp_path, capsys):
    """Of a run, its evaluation, its data and a data set: the numbers are compared as if nothing had another name."""
    a, b = (with_data(write(tmp_path / name), "1") for name in "ab")
    renamed(b, "dora", "dora_lisbon", dataset="VOC", video="walk")
    for run in ("dora_lisbon", "neco"):
        content = json.loads((b / run / "s0" / "davis.json").read_text())
        (b / run / "s0" / "davis.json").unlink()
        (b / run / "s0" / "davis_walk.json").write_text(json.dumps({**content, "evaluation": "davis_walk"}))
    assert main(["diff", str(a), str(b), "--csv", str(tmp_path / "changes.csv")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "renamed run: dora -> dora_lisbon",
        "renamed evaluation: davis -> davis_walk",
        "renamed data set: PascalVOC -> VOC",
        "renamed data: lisbon -> walk",
        "4 numbers are equal, 0 changed, 0 appeared, 0 vanished",
    ]
    table = read_table(tmp_path / "changes.csv")
    assert table["change"].tolist() == ["renamed"] * 4
    assert table["why"][0] == "renamed run: dora -> dora_lisbon"


def test_numbers_under_another_name_are_compared_with_reasons(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics={"J&F": 60.0, "J": 58.0}, device="cuda:0")
    renamed(b, "dora", "dora_lisbon")
    found = compare(a, b)
    assert [(c.kind, c.run, c.metric, c.after) for c in found.changes] == [("changed", r, "J", 58.0) for r in ("dora_lisbon", "neco")]
    assert found.changes[0].why == ("device: cpu -> cuda:0",)
    assert [one.text for one in found.renamed] == ["renamed run: dora -> dora_lisbon"]


def test_the_same_settings_on_another_video_are_no_other_name(tmp_path):
    a, b = with_data(write(tmp_path / "a"), "1"), with_data(write(tmp_path / "b"), "2")
    renamed(b, "dora", "dora_lisbon")
    found = compare(a, b)
    assert [(c.kind, c.run) for c in found.changes] == [("vanished", "dora")] * 2 + [("appeared", "dora_lisbon")] * 2
    assert found.renamed == []
    changed = compare(a, with_data(write(tmp_path / "c", metrics={"J&F": 61.0, "J": 59.0}), "2"))
    assert changed.changes[0].why == ("the run: lisbon: another content",)


def test_a_renamed_run_with_other_settings_is_matched_by_what_is_the_same_if_it_is_the_only_one(tmp_path):
    a = with_data(write(tmp_path / "a"), "1")
    b = with_data(write(tmp_path / "b", lr=0.2, metrics={"J&F": 61.0, "J": 59.0}), "1")
    renamed(b, "dora", "dora_long")
    found = compare(a, b)
    assert [(c.kind, c.run, c.metric) for c in found.changes] == [("changed", "dora_long", "J&F"), ("changed", "neco", "J&F")]
    assert "the run: settings.lr: 0.1 -> 0.2" in found.changes[0].why
    said = "renamed run: dora -> dora_long (the only ones with this method, start and data; their settings differ)"
    assert text(found).splitlines()[0] == said
    for path in (*(b / "dora_long" / "s0").glob("*.json"),):  # a second one like it: nobody knows which
        other = json.loads(path.read_text().replace('"dora_long"', '"dora_wide"').replace("0.2", "0.3"))
        (b / "dora_wide" / "s0").mkdir(parents=True, exist_ok=True)
        (b / "dora_wide" / "s0" / path.name).write_text(json.dumps(other | {"config_hash": "0" * 12}))
    lines = text(compare(a, b)).splitlines()
    assert (
        lines[0] == "runs that no run of the other folder was made like: only in the first: dora; only in the second: dora_long, dora_wide"
    )
    assert sum("vanished" in line for line in lines[1:-1]) == 2
    assert not [line for line in lines if line.startswith("renamed")]


def test_a_parent_under_another_name_is_no_reason(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics={"J&F": 61.0, "J": 59.0})
    for folder, queue in ((a, 4), (b, 8)):
        for path in folder.glob("neco/s0/*.json"):
            content = json.loads(path.read_text())
            content["spec"].get("settings", {}).update(queue=queue)
            content |= {"run_hash": f"{queue:012d}"} if "evaluation" in content else {"config_hash": f"{queue:012d}"}
            path.write_text(json.dumps(content))
    renamed(b, "dora", "dora_lisbon")
    why = next(change.why for change in compare(a, b).changes if change.run == "neco")
    assert "the run: settings.queue: 4 -> 8" in why
    assert not [text for text in why if "init" in text or "name" in text]


def test_a_difference_below_the_printed_digits_is_one(tmp_path):
    found = compare(write(tmp_path / "a"), write(tmp_path / "b", metrics={"J&F": 60.0, "J": 59.00001}))
    assert "59.00 -> 59.00 (+1.0e-05)" in text(found)


def test_what_is_no_result_folder(tmp_path, capsys, caplog):
    (tmp_path / "empty").mkdir()
    assert main(["diff", str(tmp_path / "empty"), str(tmp_path / "none")]) == 2
    assert "holds no result" in caplog.text


def test_states_beside_the_results_are_no_results(tmp_path):
    for run in ("start", "s2"):
        folder = tmp_path / run / "s0"
        folder.mkdir(parents=True)
        (folder / "incontext_voc.json").write_text(json.dumps(record(run, 0, {"mIoU": 1.0})))
        (folder / "run.json").write_text("{}")
        state = tmp_path / "state" / f"{run}-s0-0123456789ab"  # begins like the folder of a seed
        state.mkdir(parents=True)
        (state / "cost.json").write_text("{}")
    assert [p.parts[-3:] for p in results_in(tmp_path)] == [(run, "s0", "incontext_voc.json") for run in ("s2", "start")]
    assert compare(tmp_path, tmp_path).changes == []
    assert main(["tables", "--table", "all", "--out", str(tmp_path / "all.csv"), str(tmp_path)]) == 0
    assert list(read_table(tmp_path / "all.csv")["run"]) == ["s2", "start"]
