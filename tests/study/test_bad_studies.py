"""Faults in the study's file that `densewalk check` must name in one line, before anything starts."""

import copy
import time

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.settings import MOST_NAME, MOST_STEPS
from densewalk.study.config import load_study, parse_study
from tests.fixtures.studies import TINY

MINIMAL = "study: s\nruns: {a: {method: none, init: random, arch: vit_nano_patch16}}\n"


def changed(path, value):
    """TINY with a dotted key replaced, as YAML."""
    config = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return yaml.safe_dump(config, sort_keys=False)


FLOATS = ("runs.dora.settings.lr", "runs.dora.settings.warmup_epochs", "synthetic.seconds", "videos.walk.fps", "execution.log_seconds")
INFINITE = {f"{path}: {value}": (changed(path, value), path.rpartition(".")[2]) for path in FLOATS for value in (
    float("inf"), float("-inf"), float("nan"), "inf", "1e999", True)}  # fmt: skip
NAMES = ("n" * 300, "a\rb", "a\nb", "a/b", "../a", "a;b", "$(x)", "=a", "-a", ".a", "a b", "A", "1a", "", "a'b", "é", "walk\n")
CASES = {
    **INFINITE,
    "inf in a list": (changed("videos.walk.usable_seconds", [[0, float("inf")]]), "finite number"),
    "inf in a sweep": (changed("runs.neco_dora.sweep", {"a": {"student_steepness": float("inf")}}), "sweep.a.student_steepness: "),
    "true in a sweep": (changed("runs.neco_dora.sweep", {"a": {"student_steepness": True}}), "runs.neco_dora.sweep.a.student_steepness"),
    **{f"name {n!r}": (changed(f"evaluations.{n}" if "." not in n else "evaluations", TINY["evaluations"]["davis"]), "evaluations")
       for n in NAMES if "." not in n},
    "key twice": (MINIMAL + "study: t\n", "has a key twice: study (lines 1 and 3)"),
    "octal": (MINIMAL + "execution: {workers: 010}\n", "line 3: YAML takes '010' for another number than it shows"),
    "base 60": (MINIMAL + "execution: {workers: 1:30}\n", "YAML takes '1:30' for another number"),
    "hexadecimal": (MINIMAL + "execution: {workers: 0x10}\n", "YAML takes '0x10' for another number"),
    "key twice, deep": (MINIMAL.replace("method: none", "method: none, method: none"), "runs.a.method (lines 2 and 2)"),
    "key twice, quoted": (MINIMAL + '"study": t\n', "has a key twice: study"),
    "key twice in JSON": ('{"study": "s", "runs": {"a": {"init": "random", "init": "b"}}}', "has a key twice: init"),
    "negative seed": (changed("runs.start.seeds", [-1]), "runs.start.seeds.0: Input should be greater than or equal to 0 (found -1)"),
    "seed beyond 63 bits": (changed("runs.start.seeds", [2**63]), "runs.start.seeds.0: a whole number of 64 bits; allowed: at most 63"),
    "seed beyond 64 bits": (changed("synthetic.seed", 2**64), "synthetic.seed: a whole number of 65 bits; allowed: at most 63"),
    "seed twice": (changed("runs.start.seeds", [1, 1]), "runs.start.seeds: 1 stands there twice"),
    "data twice": (changed("runs.dora.data", ["walk", "walk"]), "runs.dora.data: 'walk' stands there twice"),
    "run twice": (changed("evaluations.davis.runs", ["dora", "dora"]), "evaluations.davis.runs: 'dora' stands there twice"),
    "table twice": (changed("tables", ["davis", "davis"]), "tables: 'davis' stands there twice"),
    "source twice": (changed("pictures.sources", ["walk", "walk"]), "pictures.sources: 'walk' stands there twice"),
    "architecture": (changed("runs.start.arch", "vit_nanno_patch16"), "'vit_nanno_patch16', did you mean vit_nano_patch16"),
    "timm's": (changed("runs.start.arch", "timm/vit_small_patch16_224.dinno"), "did you mean timm/vit_small_patch16_224.dino"),
    "checkpoint's": (changed("checkpoints.own", {"file": "x", "arch": "ViT-S/16"}), "checkpoints.own.arch: unknown architecture"),
    "device": (changed("execution.device", "gpu"), "execution.device: Input should be 'auto', 'cpu' or 'cuda' (found 'gpu')"),
    "learning rate": (changed("runs.dora.settings.lr", 1e308), "settings.lr: Input should be less than or equal to 1000 (found 1e+308)"),
    "learning rate of a head": (changed("evaluations.incontext", {"protocol": "linear", "settings": {
        "root": "x", "dataset": "y", "learning_rates": [1, 1e9]}}), "learning_rates.1: Input should be less than or equal to 1000"),
    "steps": (changed("runs.dora.settings.steps", 10**9), f"steps: Input should be less than or equal to {MOST_STEPS} (found 1000000000)"),
    "warm-up": (changed("runs.dora.settings", {"epochs": 2, "warmup_epochs": 3}), "warmup_epochs 3.0 are more than epochs 2.0"),
    "title in two lines": (changed("study", "a\nb"), "study: a line break in a text (found 'a\\nb')"),
    "label with CR": (changed("runs.dora.labels", {"method": "a\rb", "arch": "x"}), "runs.dora.labels.method: a line break"),
    "NUL": ('study: "a\\0b"\n', "study: a control character"),
    "half a character": ('study: "\\ud800"\n', "study: a control character"),
    "wildcard": (changed("synthetic.root", "{x}"), "synthetic.root: a path with { or }"),
    "wildcard of a file": (changed("checkpoints.own", {"file": "{x}", "arch": "vit_nano_patch16"}), "checkpoints.own.file: a path with {"),
    "empty path": (changed("synthetic.root", ""), "synthetic.root: an empty path"),
    "long path": (changed("videos.walk.source", "x" * 300), "videos.walk.source: too long for a file system"),
    "chain": (yaml.safe_dump({"study": "s", "runs": {
        **{f"r{i}": {"method": "none", "init": f"r{i + 1}"} for i in range(300)},
        "r300": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}}}, sort_keys=False), "chain of more than 100 runs"),
    "month 13": ("study: 2024-13-45\n", "is not YAML: month must be in 1..12"),
    "5,000 digits": (f"study: {'9' * 5000}\n", "is not YAML: Exceeds the limit"),
    "deep": (f"study: {'[' * 20000}\n", "is not YAML: it is nested too deeply"),
    "tag": ("study: !!python/object/apply:os.system ['true']\n", "is not YAML: could not determine a constructor"),
    "tag without text": ("study: !!int ''\n", "is not YAML"),
    "alias of itself": ("study: s\nruns: &r {a: *r}\n", "a mapping or list holds itself (line 2)"),
    "list": ("- a\n", "holds a list; allowed: keys with values"),
    "two documents": ("study: a\n---\nstudy: b\n", "is not YAML"),
    "nothing": ("", "study: Field required"),
    "misspelled network": (yaml.safe_dump({"study": "s", "runs": {"a": {"method": "none", "init": "timm/vit_smal_patch16_224.dino"}}}),
        "runs.a.init: unknown architecture 'timm/vit_smal_patch16_224.dino', did you mean timm/vit_small_patch16_224.dino"),
    "size for the patches": (changed("runs.dora.settings.global_size", 70), "runs.dora.settings: global_size 70 is not a multiple of the"),
    "objects for the heads": (changed("runs.dora.settings.objects", 100), "runs.dora.settings: objects 100 is more than"),
    "two lengths": (changed("runs.dora.settings.epochs", 3), "set exactly one of epochs, steps, budget (found epochs 3, steps "),
    "a length and a budget": (changed("runs.dora.settings.budget", {"gpu_hours": 2}), "budget 2 GPU-hours)"),
}  # fmt: skip
BILLION = "study: s\na: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize("case", CASES)
def test_check_names_the_fault_in_one_line(tmp_path, caplog, case):
    text, expected = CASES[case]
    path = tmp_path / ("config.json" if "JSON" in case else "config.yaml")
    path.write_text(text, encoding="utf-8")
    assert main(["check", str(path)]) == UserError.exit_status
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith(f"error: {path}")
    assert expected in line
    assert "\n" not in line


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path):
    (tmp_path / "config.yaml").write_text(BILLION)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"holds 1\.\d+e\+11 values, aliases resolved; allowed: 1,000,000"):
        load_study(tmp_path / "config.yaml")
    assert time.monotonic() - begun < 5


def test_what_is_allowed_stays_so(tmp_path):
    config = copy.deepcopy(TINY)
    config["runs"]["n" * MOST_NAME] = {**TINY["runs"]["start"], "seeds": [2**63 - 1, 0]}
    config["runs"]["dora"]["settings"]["steps"] = MOST_STEPS
    config["runs"]["dora"]["settings"]["lr"] = "1e-3"  # YAML reads it as text
    config["study"] = "{x} 'y' \"z\" $(a) ü = 1 \U0001f600"
    config["checkpoints"] = {"own": {"file": "it's (my) $(file) x.pth", "arch": "timm/vit_small_patch16_224.dino"}}
    config["runs"]["from_own"] = {"method": "none", "init": "own"}
    text = "\ufeff" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (tmp_path / "config.yaml").write_text(text + "".join(f"# {i}\n" for i in range(3)), encoding="utf-8")
    study = load_study(tmp_path / "config.yaml")
    assert study == parse_study(config)
    assert study.runs["dora"].settings.lr == 1e-3
    merged = "base: &b {method: none}\n" + MINIMAL.replace("{method: none,", "{<<: *b, method: none,")
    (tmp_path / "merged.yaml").write_text(merged)
    with pytest.raises(UserError, match="base: there is no key 'base' here"):  # and no key twice: that is what merging is for
        load_study(tmp_path / "merged.yaml")
