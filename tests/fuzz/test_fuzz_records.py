"""Damaged records, receipts, plans and specifications: each is one error that names the file, or is read and can be reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densewalk.core.errors import UserError
from densewalk.data.receipts import CuratedReceipt, read_receipt
from densewalk.results.compare import compare, text
from densewalk.results.formats import latex, markdown
from densewalk.results.page.page import contents
from densewalk.results.plan import Plan, read_plan
from densewalk.results.records import read_result, read_run
from densewalk.results.tables import cost_table, tidy_table, wide_table
from densewalk.study.config import parse_study
from densewalk.study.specs import CurationSpec, EvaluationSpec, RunSpec, read_spec
from densewalk.training.progress_files import CostRecord, Seal, TrainingPlan, read_points, read_progress
from densewalk.visualization.record import read_features
from tests.fixtures.receipts import images_receipt, sequences_receipt, video_receipt
from tests.fixtures.records import DINO, TRAINED, record, run_record
from tests.fuzz.budget import examples
from tests.fuzz.mutations import damaged, damaged_bytes
from tests.fuzz.test_fuzz_studies import SMALL

STUDY = parse_study(SMALL)
DORA = {"run": "dora", "seed": 0, "method": "dora", "arch": "vit_nano_patch16", "init": {"kind": "random"}}
RESULT = record(
    "dora", 0, {"J&F": 60.0, "J_decay": None}, method="dora", init="random", init_kind="random", task="davis", evaluation="davis",
    labels=DINO, training=TRAINED, details={"IoU": {"cat": 1.0, "dog": None}}, published_metrics=None,
)  # fmt: skip
RUN = run_record("dora", 0, spec=DORA)
CURATED = CuratedReceipt(
    name="pool", pictures=3, kept=2, duplicates=1, not_retrieved=0, largest_group=2,
    neighbour_similarity={"5 %": 0.1, "50 %": 0.5, "95 %": 1.0},
    sources={"photos": images_receipt(kept=(0, 2))},
)  # fmt: skip
CURVE = "".join(json.dumps({"step": s, "time": 1.0 + s, "loss": 3.0 / (s + 1)}) + "\n" for s in range(6))


def dumped(model: Any) -> Any:
    return model.model_dump(mode="json")


READERS = {
    "result": (RESULT, read_result),
    "run": (RUN, read_run),
    "features": ({"images": [{"source": "pets", "number": 3, "variance": [0.5, 0.25]}], "heads": 2, "nearest": False}, read_features),
    "plan": (dumped(STUDY.plan()), read_plan),
    "training's plan": ({"steps": 6, "gpus": 0}, lambda path: read_progress(path, TrainingPlan)),
    "seal": ({"step": 3, "sha256": 64 * "0"}, lambda path: read_progress(path, Seal)),
    "cost": ({"seconds": 1.0, "gpu_hours": None, "peak_rss_mib": 9.0, "peak_gpu_mib": None, "energy_wh": 1.5},
             lambda path: read_progress(path, CostRecord)),
    "video": (dumped(video_receipt(kept=(3, 9))), read_receipt),
    "images": (dumped(images_receipt()), read_receipt),
    "sequences": (dumped(sequences_receipt()), read_receipt),
    "curated": (dumped(CURATED), read_receipt),
    "run's specification": (dumped(STUDY.run_spec("swept", 0)), lambda path: read_spec(path, RunSpec)),
    "evaluation's specification": (dumped(STUDY.evaluation_spec("dora", 0, "davis")), lambda path: read_spec(path, EvaluationSpec)),
    "curation's specification": (dumped(STUDY.curation_spec("pool")), lambda path: read_spec(path, CurationSpec)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


def read(path: Path, reader: Any) -> Any:
    """What the reader makes of the file; None where it refuses it in one line that names it."""
    try:
        return reader(path)
    except UserError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert len(refusal) < 1500
    return None


@pytest.mark.parametrize("kind", READERS)
def test_the_undamaged_file_is_read(folder, kind):
    content, reader = READERS[kind]
    (folder / "good.json").write_text(json.dumps(content))
    assert holds(json.loads(reader(folder / "good.json").model_dump_json()), content)


def holds(read: Any, written: Any) -> bool:
    """Whether all that was written was read; keys that the file leaves out have their defaults."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(key in read and holds(read[key], value) for key, value in written.items())
    return read == written


@pytest.mark.parametrize("kind", READERS)
@examples(60)
@given(st.data())
def test_a_file_with_wrong_values(folder, kind, data):
    content, reader = READERS[kind]
    (folder / "bad.json").write_text(json.dumps(data.draw(damaged(content))))
    read(folder / "bad.json", reader)


@pytest.mark.parametrize("kind", READERS)
@examples(20)
@given(st.data())
def test_a_file_with_damaged_bytes(folder, kind, data):
    content, reader = READERS[kind]
    (folder / "bytes.json").write_bytes(data.draw(damaged_bytes(json.dumps(content, indent=2).encode())))
    read(folder / "bytes.json", reader)


@examples(80)
@given(damaged_bytes(CURVE.encode()))
def test_a_damaged_learning_curve(folder, content):
    (folder / "metrics.jsonl").write_bytes(content)
    points = read(folder / "metrics.jsonl", read_points)
    assert points is None or [p["step"] for p in points] == sorted({p["step"] for p in points})


PAGE_PLAN = Plan.model_validate({**dumped(STUDY.plan()), "runs": {"dora": dumped(STUDY.plan())["runs"]["dora"]}, "evaluations": {
    "davis": {**dumped(STUDY.plan())["evaluations"]["davis"], "runs": ["dora"]}}})  # fmt: skip


@examples(60)
@given(damaged(RESULT, most=2))
def test_what_is_read_of_a_result_can_be_reported(folder, content):
    """A record that passes the reader makes tables, a page and a comparison."""
    path = folder / "results" / "dora" / "s0" / "davis.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    found = read(path, read_result)
    if found is None:
        return
    for table in (tidy_table([found]), wide_table([found]), cost_table([found])):
        assert markdown(table)
        assert latex(table, "tab:x")
    before = folder / "before" / "dora" / "s0" / "davis.json"
    before.parent.mkdir(parents=True, exist_ok=True)
    before.write_text(json.dumps(RESULT))
    assert text(compare(folder / "before", folder / "results"))
    assert contents(PAGE_PLAN, folder / "results").title == SMALL["study"]
