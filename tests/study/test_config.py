import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.core.hashing import canonical, derive_seed
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.neco.settings import NecoSettings
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.study.config import json_schema, load_study, parse_study
from densewalk.study.registry import evaluations, methods, parse_evaluation
from densewalk.study.shorthand.sweeps import OF_THE_RUN
from densewalk.study.specs import EvaluationSpec, read_spec
from densewalk.training.execution import Execution
from densewalk.training.settings import TrainingSettings
from tests.fixtures.studies import REPOSITORY, TINY


def changed(**paths):
    """TINY with dotted keys replaced."""
    config = copy.deepcopy(TINY)
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = config
        for key in parents:
            place = place[key]
        place[last] = value
    return config


def test_seeds_of_an_evaluation_choose_results_and_change_no_hash():
    whole, chosen = parse_study(TINY), parse_study(changed(evaluations__davis__seeds=[0]))
    plan = chosen.plan()
    left_out = set(whole.evaluation_jobs()) - set(chosen.evaluation_jobs())
    assert left_out == {("start", 1, "davis")}
    assert list(plan.jobs()) == list(chosen.evaluation_jobs())
    assert [plan.seeds_of("start", name) for name in plan.evaluations] == [[0], [0, 1]]
    assert plan.evaluations_of("start", 1) == ["incontext"]
    assert plan.hashes == {key: value for key, value in whole.plan().hashes.items() if key != "start/s1/davis"}
    assert [path.parent.name for path in plan.records(Path(), "davis")] == ["s0", "s0", "s0"]


def test_the_schema_is_in_step_with_the_models():
    stored = json.loads((REPOSITORY / "workflow" / "schemas" / "config.schema.json").read_text())
    assert stored == json.loads(json.dumps(json_schema())), "run `make format` and commit workflow/schemas/config.schema.json"


def test_segmentation_of_other_data_has_a_table_of_its_own():
    settings = {"root": "data", "dataset": "PascalVOC", "layout": "voc"}
    evaluations = {
        "voc_upernet": {"protocol": "segmentation_upernet", "settings": {**settings, "preset": "small_40k"}},
        "voc_linear": {"protocol": "segmentation_linear", "settings": settings},
        "ade20k": {"protocol": "ade20k_linear", "settings": {"root": "data", "dataset": "ADE20K"}},
    }
    study = parse_study(changed(evaluations=evaluations))
    assert study.task_tables == ["ade20k", "segmentation"]
    spec = study.evaluation_spec("start", 0, "voc_upernet")
    assert spec.settings.iterations == 40_000
    assert parse_evaluation(spec.protocol, spec.settings.model_dump(mode="json")) == study.evaluations["voc_upernet"].settings


def test_the_study_on_real_folders_has_every_frozen_protocol():
    """But for box tracking, depth, both correspondences, retrieval and videos whose objects enter later, which none of the folders is
    for, and motion segmentation, which is of runs of cis alone."""
    study = load_study(REPOSITORY / "benchmarks/frozen_real/config.yaml")
    trained_through_mm = {"ade20k_linear", "ade20k_upernet", "segmentation_linear", "segmentation_upernet", "coco"}
    no_folder = {"tracking", "depth", "correspondence", "geometric_correspondence", "retrieval", "youtube_vos", "mose"}
    assert {e.protocol for e in study.evaluations.values()} == evaluations().keys() - trained_through_mm - no_folder - {
        "motion_segmentation"
    }
    (published,) = (e.settings for name, e in study.evaluations.items() if name == "davis")
    assert "short side 480 px, top 5 within 12 patches, first and last 7 frames, compat paper" in published.protocol


def test_the_study_of_davis_floor_trains_every_method_on_what_it_scores_at_the_published_setting():
    study = load_study(REPOSITORY / "benchmarks/davis_floor/config.yaml")
    trained = {name: run for name, run in study.runs.items() if run.method != "none" and "drive" not in name}
    assert {run.method for run in trained.values()} == {"dino", "dora", "timetuning", "neco"}
    assert {source for run in trained.values() for source in run.data} == {"davis_frames"}
    assert all(run.init == "random" or run.init in trained for run in trained.values())
    for evaluation in study.evaluations.values():
        settings = evaluation.settings
        assert settings.model_copy(update={"split": "val"}) == type(settings)(root=settings.root, dataset=settings.dataset)


def test_every_key_is_described():
    undescribed = []
    for name, model in json_schema()["$defs"].items():
        for key, value in model.get("properties", {}).items():
            if "description" not in value and "const" not in value and key not in ("settings", "$ref"):
                undescribed.append(f"{name}.{key}")
    assert undescribed == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(runs__dora__settings__stepz=3), "runs.dora.settings.stepz: there is no key 'stepz' here, did you mean steps?"),
        (changed(runs__dora__settings__epochs=3), "exactly one of epochs, steps, budget (found epochs 3, steps "),
        (changed(runs__dora__data=["venice"]), "'venice' is no video, image folder or curation; allowed: walk, coco"),
        (changed(runs__dora__init="start"), "runs.dora.arch: give it exactly where init is random"),
        (changed(runs__start__arch=None), "runs.start.arch"),
        (changed(runs__start__seeds=[1, 1]), "runs.start.seeds: 1 stands there twice"),
        (changed(runs__neco_dora__init="neco_dora"), "a circle, neco_dora -> neco_dora"),
        (changed(runs__neco_dora__seeds=[5], runs__dora__seeds=[0, 1]), "dora has no seed 5"),
        (changed(evaluations__davis__runs=["nobody"]), "evaluations.davis.runs: no such run: nobody"),
        (changed(evaluations__davis__seeds=[7]), "evaluations.davis.seeds: no run that it is applied to has seed 7; allowed: 0, 1"),
        (changed(evaluations__davis__seeds=[1]), "evaluations.davis.seeds: dora has none of them (it has [0]); to do: "),
        (changed(evaluations__davis__seeds=[]), "evaluations.davis.seeds: at least 1 needed"),
        (changed(evaluations__davis__seeds=[0, 0]), "evaluations.davis.seeds: 0 stands there twice"),
        (changed(baseline="strat"), "baseline: no such run: strat, did you mean start?; allowed: start, dora, neco_dora"),
        (changed(images={"walk": {"source": "x"}}), "used twice as a name: walk"),
        (changed(evaluations__davis__protocol="davos"), "davos"),
        (changed(runs__state=TINY["runs"]["start"]), "the name 'state' is taken"),
        (changed(execution__workers=-1), "execution.workers"),
        (
            changed(tables=["davis", "dancing"]),
            "tables.1: no such table: 'dancing', did you mean tracking?; allowed: coco, correspondence, davis, depth, ",
        ),
        (changed(execution__accumulate=0), "execution.accumulate"),
        (changed(execution__accumulate=2), "execution.accumulate: run 'neco_dora': NeCo draws its references"),
        (changed(execution__accumulate={"dora": 3}), "execution.accumulate: run 'dora': batch_size 2 does not split into 3 equal parts"),
        (
            changed(execution__accumulate={"doro": 2}),
            "execution.accumulate: no such run: doro, did you mean dora?; allowed: start, dora, neco_dora",
        ),
    ],
)
def test_what_is_wrong_is_named(config, message):
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        parse_study(config)
    assert message in str(error.value)


def test_tables_follow_from_the_evaluations():
    tasks = [settings.TABLE for settings in evaluations().values()]
    allowed = json_schema()["properties"]["tables"]["anyOf"][0]["items"]["enum"]
    assert set(allowed) == set(tasks)
    assert sorted(allowed, key=tasks.index) == allowed
    assert parse_study(TINY).task_tables == ["davis", "incontext"]
    assert parse_study(changed(tables=["incontext", "ade20k"])).task_tables == ["incontext", "ade20k"]
    assert parse_study(changed(tables=[])).task_tables == []


def test_a_run_is_known_by_all_it_is_built_on():
    one, two = parse_study(TINY), parse_study(changed(runs__dora__settings__objects=2))
    hashes = [[s.run_spec(run, 0).hash for run in ("start", "dora", "neco_dora")] for s in (one, two)]
    assert hashes[0][0] == hashes[1][0]
    assert hashes[0][1] != hashes[1][1]
    assert hashes[0][2] != hashes[1][2], "NeCo starts from another backbone: its old state must not be resumed"


def test_parts_of_the_batch_are_refused_where_they_would_change_what_is_learned():
    settings = [
        (DinoSettings(), 8, 1, None),
        (DinoSettings(batch_size=6), 4, 1, "batch_size 6 does not split into 4 equal parts"),
        (DinoSettings(batch_size=12), 4, 2, "batch_size 12 shared by 2 processes does not split into 4 equal parts"),
        (DinoSettings(koleo_weight=0.1), 2, 1, "koleo_weight spreads the images of a batch apart"),
        (DoraSettings(), 2, 1, None),
        (DoraSettings(compat="released"), 2, 1, "batch_threshold compares masks with their mean over the batch"),
        (DoraSettings(compat="released", hard_masks=False), 2, 1, None),
        (DoraSettings(unseeded_heads=True), 2, 1, "unseeded_heads draws the heads once for a batch"),
        (NecoSettings(), 2, 1, "NeCo draws its references from the patches of the whole batch"),
        (TimeTuningSettings(), 2, 1, "Sinkhorn shares the prototypes out"),
        (TrainingSettings(steps=1), 2, 1, "TrainingSettings does not say that its loss is a mean over independent samples"),
    ]
    for model, parts, processes, expected in settings:
        obstacle = model.obstacle_to_parts(parts, processes)
        assert (obstacle is None) == (expected is None), obstacle
        assert expected is None or expected in obstacle
        assert model.obstacle_to_parts(1, processes) is None


def test_parts_are_given_for_all_runs_or_by_run():
    by_run = parse_study(changed(execution__accumulate={"dora": 2})).execution
    assert [by_run.parts_of(run) for run in ("dora", "neco_dora")] == [2, 1]
    assert Execution(accumulate=3).parts_of("dora") == 3


def test_execution_enters_no_specification():
    one, two = parse_study(TINY), parse_study(changed(execution__workers=7))
    assert one.run_spec("dora", 0) == two.run_spec("dora", 0)
    assert one.evaluation_spec("dora", 0, "davis") == two.evaluation_spec("dora", 0, "davis")


def test_a_change_of_the_labels_alone_reruns_no_training():
    labels = {"method": "DoRA", "arch": "ViT-S/16"}
    one, two = parse_study(TINY), parse_study(changed(runs__dora__labels=labels))
    assert one.run_spec("dora", 0) == two.run_spec("dora", 0)


@pytest.mark.parametrize("path", ["config.yaml", "demo/config.yaml", "studies/dora.yaml", "studies/neco.yaml", "studies/timetuning.yaml"])
def test_specifications_survive_their_files(path, tmp_path):
    study = load_study(REPOSITORY / path)
    for spec in study.specifications():
        spec.write(tmp_path)
        again = read_spec(spec.path(tmp_path), type(spec))
        assert again == spec
        assert again.hash == spec.hash, "resolving twice changes nothing"
        assert canonical(again.model_dump(mode="json")) == canonical(spec.model_dump(mode="json"))
        if isinstance(spec, EvaluationSpec):
            assert spec.settings.protocol


def test_a_run_takes_its_own_seed_of_what_it_is_built_on():
    study = parse_study(changed(runs__dora__seeds=[0, 1], runs__neco_dora__seeds=[0, 1]))
    assert study.run_spec("neco_dora", 1).init.seed == 1
    study = parse_study(changed(runs__neco_dora__seeds=[0, 1, 2]))
    assert study.run_spec("neco_dora", 2).init.seed == 0


PRESETS = [(model, name) for model in (DinoSettings, DoraSettings, NecoSettings) for name in model.PRESETS]


@pytest.mark.parametrize(("model", "name"), PRESETS)
def test_a_preset_gives_way_to_what_stands_beside_it(model, name):
    preset = model(preset=name)
    assert {key: getattr(preset, key) for key in model.PRESETS[name]} == model.PRESETS[name]
    assert model(preset=name, batch_size=7).batch_size == 7
    assert (model(preset=name, steps=5).steps, model(preset=name, steps=5).epochs) == (5, None)
    assert (model(preset=name, epochs=5).steps, model(preset=name, epochs=5).epochs) == (None, 5)
    assert model.model_validate(preset.model_dump(mode="json")) == preset
    with pytest.raises(ValueError, match=f"preset '{name}s' is unknown, did you mean {name}.; allowed: .*{name}"):
        model(preset=f"{name}s")


def test_a_file_that_is_no_study(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_study(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("runs: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_study(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="study: Field required"):
        load_study(tmp_path / "config.yaml")


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4), st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_seeds_depend_on_every_part(one, two):
    assert (derive_seed(*one) == derive_seed(*two)) == (one == two)
    assert 0 <= derive_seed(*one) < 2**63


# -- sweeps ------------------------------------------------------------------------------------------------------------

SWEEP = {"steep10": {"student_steepness": 10, "teacher_steepness": 10}, "odd_even": {"network": "odd_even"}}


def swept(**sweep):
    """TINY with variants of its NeCo run."""
    return changed(runs__neco_dora__sweep=sweep)


def test_a_sweep_is_the_run_and_one_run_for_each_variant():
    written_out = copy.deepcopy(TINY)
    base = written_out["runs"]["neco_dora"]
    for variant, changes in SWEEP.items():
        written_out["runs"][f"neco_dora_{variant}"] = {**base, "settings": {**base["settings"], **changes}}
    study = parse_study(swept(**SWEEP))
    assert list(study.runs) == ["start", "dora", "neco_dora", "neco_dora_steep10", "neco_dora_odd_even"]
    assert study == parse_study(written_out)
    assert study.run_spec("neco_dora", 0) == parse_study(TINY).run_spec("neco_dora", 0), "the run itself is not made again"
    assert [job[0] for job in study.evaluation_jobs()].count("neco_dora_steep10") == len(TINY["evaluations"])


def test_a_sweep_goes_over_data_as_well_as_settings():
    other = {"images": {**TINY["images"], "other": {"source": "data/other"}}}
    study = parse_study({**swept(other={"data": ["other"]}, both={"data": ["coco", "other"], "head_out": 32}), **other})
    plain = parse_study({**TINY, **other})
    assert list(study.runs)[2:] == ["neco_dora", "neco_dora_other", "neco_dora_both"]
    assert [study.runs[name].data for name in list(study.runs)[2:]] == [["coco"], ["other"], ["coco", "other"]]
    assert study.runs["neco_dora_other"].settings == study.runs["neco_dora"].settings
    assert study.runs["neco_dora_both"].settings.head_out == 32
    assert study.run_spec("neco_dora", 0).hash == plain.run_spec("neco_dora", 0).hash, "the run itself is not made again"
    assert study.run_spec("neco_dora_other", 0).data.keys() == {"other"}


@pytest.mark.parametrize(
    "method", [name for name, settings in methods().items() if any(f.endswith("scale") for f in settings.model_fields)]
)
def test_shares_of_an_image_are_ranges_within_it(method):
    settings = methods()[method]
    for name in settings.model_fields:
        if isinstance(settings.model_fields[name].default, tuple) and name.endswith("scale"):
            with pytest.raises(ValidationError, match=r"0\.9 to 0\.3 is no range: it ends below its beginning"):
                settings(**{name: (0.9, 0.3)})
            for outside in ((-1, 1), (0, 1), (0.5, 3)):
                with pytest.raises(ValidationError, match=name):
                    settings(**{name: outside})


def test_no_method_has_a_setting_that_a_sweep_takes_for_the_run_s():
    assert not {name for settings in methods().values() for name in settings.model_fields} & set(OF_THE_RUN)


def test_a_change_of_one_variant_reruns_it_alone():
    one, two = parse_study(swept(**SWEEP)), parse_study(swept(**{**SWEEP, "odd_even": {"network": "odd_even", "head_out": 32}}))
    different = [run for run, seed in one.jobs() if one.run_spec(run, seed).hash != two.run_spec(run, seed).hash]
    assert different == ["neco_dora_odd_even"]


def test_a_variant_can_be_built_on_evaluated_alone_and_take_seeds():
    config = swept(**SWEEP)
    config["runs"]["neco_dora"]["seeds"] = [0, 1]
    config["runs"]["longer"] = {**TINY["runs"]["neco_dora"], "init": "neco_dora_steep10"}
    config["evaluations"]["davis"]["runs"] = ["neco_dora_steep10"]
    study = parse_study(config)
    assert study.run_spec("longer", 0).init.hash == study.run_spec("neco_dora_steep10", 0).hash
    assert [j for j in study.evaluation_jobs() if j[2] == "davis"] == [("neco_dora_steep10", s, "davis") for s in (0, 1)]


def test_published_values_do_not_stand_beside_variants():
    config = swept(**SWEEP)
    config["runs"]["neco_dora"]["labels"] = {"method": "NeCo", "arch": "ViT-S/14"}
    study = parse_study(config)
    assert study.labels_of("neco_dora") is not None
    assert study.labels_of("neco_dora_steep10") is None


def test_a_variant_wins_over_a_preset():
    config = swept(smaller={"batch_size": 2})
    config["runs"]["neco_dora"]["settings"] = {"preset": "small/neco_dino"}
    runs = parse_study(config).runs
    assert (runs["neco_dora"].settings.batch_size, runs["neco_dora_smaller"].settings.batch_size) == (45, 2)
    assert runs["neco_dora_smaller"].settings.epochs == 50


@pytest.mark.parametrize(
    ("path", "sweep", "message"),
    [
        ("neco_dora", {"steep": {"student_stepness": 1}}, "runs.neco_dora.sweep.steep.student_stepness"),
        ("neco_dora", {"steep": {"student_steepness": -1}}, "runs.neco_dora.sweep.steep.student_steepness"),
        ("neco_dora", {"other": {"data": ["nowhere"]}}, "runs.neco_dora.sweep.other.data: 'nowhere' is no video"),
        ("neco_dora", {"other": {"data": "coco"}}, "runs.neco_dora.sweep.other.data: "),
        ("neco_dora", {"other": {"init": "start"}}, "runs.neco_dora.sweep.other.init: "),
        ("neco_dora", {"same": {}}, "runs.neco_dora.sweep.same"),
        ("neco_dora", {"steep": 10}, "runs.neco_dora.sweep.steep"),
        ("neco_dora", {10: {"student_steepness": 10}}, "runs.neco_dora.sweep.10"),
        ("neco_dora", {"Steep": {"student_steepness": 10}}, "runs.neco_dora.sweep.Steep: "),
        ("neco_dora", [10, 100], "runs.neco_dora.sweep"),
        ("start", {"other": {"steps": 1}}, "runs.start.sweep"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(path, sweep, message):
    with pytest.raises(UserError) as error:
        parse_study(changed(**{f"runs__{path}__sweep": sweep}))
    assert message in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_a_variant_takes_no_other_run_s_name(order):
    config = swept(**SWEEP)
    config["runs"]["neco_dora_odd_even"] = TINY["runs"]["neco_dora"]
    config["runs"] = dict(list(config["runs"].items())[::order])
    with pytest.raises(UserError, match="'neco_dora_odd_even' is the name of both a run and a variant of a sweep"):
        parse_study(config)
    twice = changed(runs__neco_dora__sweep={"a_b": {"head_out": 8}})
    twice["runs"]["neco_dora_a"] = {**TINY["runs"]["neco_dora"], "sweep": {"b": {"head_out": 9}}}
    with pytest.raises(UserError, match="'neco_dora_a_b' is the name of both"):
        parse_study(twice)


@pytest.mark.parametrize(
    ("method", "data", "message"),
    [
        ("dora", "coco", "dora learns from videos, and coco holds unrelated images; to do: give videos, or folders of frames"),
        ("cis", "chosen", "cis learns from videos, and coco holds unrelated images"),
        ("dora", "frames", None),
        ("crw", "davis", "crw takes frames some time apart, and images.davis.fps is not given; to do: give the frames a second"),
        ("cis", "davis", None),
        ("timetuning", "coco", None),
    ],
)
def test_data_without_what_a_method_cuts_its_samples_from_are_refused(method, data, message):
    study = copy.deepcopy(TINY)
    study["images"] = {"coco": {"source": "coco"}, "davis": {"source": "davis", "layout": "sequences"}}
    chosen = {"backbone": "start", "duplicates": 0.9}
    study["curations"] = {"chosen": {"data": ["walk", "coco"], **chosen}, "frames": {"data": ["walk"], **chosen}}
    study["runs"]["new"] = {"method": method, "init": "random", "arch": "vit_nano_patch16", "data": [data], "settings": {"steps": 1}}
    if message is None:
        parse_study(study)
        return
    with pytest.raises(UserError, match=f"runs.new.data: {message}"):
        parse_study(study)


def test_a_folder_in_the_place_of_a_study_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder; to do: name the file in it: {tmp_path}/config.yaml"):
        load_study(tmp_path)
