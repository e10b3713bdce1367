"""What `densewalk check` says of forty kinds of slip in a study: the file's own key, the nearest known one, and what is allowed."""

import copy

import pytest

from densewalk.core.errors import UserError
from densewalk.study.config import parse_study
from densewalk.study.registry import methods
from tests.fixtures.studies import TINY

GONE = object()
SLIPS = [
    ("run", {}, "run: there is no key 'run' here, did you mean runs?; allowed: study, results, "),
    ("evals", {}, "evals: there is no key 'evals' here, did you mean evaluations?"),
    ("videos.walk.src", "a", "videos.walk.src: there is no key 'src' here, did you mean source?; allowed: source, short_side, "),
    ("videos.walk.short-side", 3, "videos.walk.short-side: there is no key 'short-side' here, did you mean short_side?"),
    ("videos.walk.source", GONE, "videos.walk.source: Field required (The video file, relative to the study's folder)"),
    ("videos.walk", "walk.mp4", "videos.walk: keys with values, such as {a: 1, b: 2}, are needed (found 'walk.mp4')"),
    ("images.coco.fps", 24, "images.coco.fps: only layout sequences has one"),
    ("images.coco.layout", "folder", "images.coco.layout: Input should be 'pictures' or 'sequences' (found 'folder')"),
    (
        "runs.dora.method",
        "dorra",
        f"runs.dora.method: no such method: 'dorra', did you mean dora?; allowed: {', '.join(['none', *methods()])}",
    ),
    ("runs.dora.method", GONE, f"runs.dora.method: Field required; allowed: {', '.join(['none', *methods()])}"),
    ("runs.dora.methods", "dora", "runs.dora.methods: there is no key 'methods' here, did you mean method?"),
    ("runs.dora.settings", GONE, "runs.dora.settings: Field required"),
    ("runs.dora.settings.batchsize", 3, "runs.dora.settings.batchsize: there is no key 'batchsize' here, did you mean batch_size?"),
    ("runs.dora.settings.learning_rate", 3, "runs.dora.settings.learning_rate: there is no key 'learning_rate' here, did you mean lr?"),
    ("runs.dora.settings.lr", "fast", "runs.dora.settings.lr: Input should be a valid number"),
    ("runs.dora.settings.compat", "release", "runs.dora.settings.compat: Input should be 'paper' or 'released' (found 'release')"),
    (
        "runs.dora.settings.preset",
        "small",
        "runs.dora.settings: preset 'small' is unknown, did you mean small_video?; allowed: small_video",
    ),
    ("runs.dora.settings.seeds", [1], "runs.dora.settings.seeds: there is no key 'seeds' here, did you mean runs.dora.seeds?"),
    ("runs.dora.epochs", 1, "runs.dora.epochs: there is no key 'epochs' here, did you mean settings.epochs?"),
    ("runs.dora.data", "walk", "runs.dora.data: Input should be a valid list: write [walk] (found 'walk')"),
    ("runs.dora.data", ["wlk"], "runs.dora.data: 'wlk' is no video, image folder or curation, did you mean walk?; allowed: walk, coco"),
    ("runs.dora.seed", 0, "runs.dora.seed: there is no key 'seed' here, did you mean seeds?"),
    ("runs.dora.init", "startt", "runs.dora.init: 'startt' is neither a checkpoint nor a run, did you mean start?; allowed: random, start"),
    ("runs.dora.init", "dino_vits61", "runs.dora.init: 'dino_vits61' is neither a checkpoint nor a run, did you mean dino_vits16?"),
    ("runs.dora.arch", "vit_tny_patch16", "runs.dora.arch: unknown architecture 'vit_tny_patch16', did you mean vit_tiny_patch16"),
    ("runs.start.data", ["walk"], "runs.start.data: there is no key 'data' here (it has method: none); allowed: method, init, arch"),
    ("runs.neco_dora.sweep", {"a": {"batchsize": 4}}, "runs.neco_dora.sweep.a.batchsize: there is no key 'batchsize' here"),
    ("runs.neco_dora.sweep", {"a": {"lr": 4, "steps": -1}}, "runs.neco_dora.sweep.a.steps: Input should be greater than or equal to 1"),
    ("runs.neco_dora.sweep", {"a": {"data": ["wlk"]}}, "runs.neco_dora.sweep.a.data: 'wlk' is no video"),
    ("runs.neco_dora.sweep", {"a": {"preset": "x"}}, "runs.neco_dora.sweep.a: preset 'x' is unknown"),
    ("runs.neco_dora.sweep", {"a": 3}, "runs.neco_dora.sweep.a: keys with values"),
    ("runs.Dora", {"method": "none"}, "runs.Dora: a name has lower-case letters, digits and _, a letter first (found 'Dora')"),
    ("runs", {}, "runs: at least 1 needed (found {})"),
    ("evaluations.davis.protocol", "DAVIS", "evaluations.davis.protocol: no such protocol: 'DAVIS', did you mean davis?; allowed: "),
    ("evaluations.davis.settings.root", GONE, "evaluations.davis.settings.root: Field required (Folder of the evaluation data"),
    ("evaluations.davis.run", ["dora"], "evaluations.davis.run: there is no key 'run' here, did you mean runs?; allowed: protocol, runs"),
    ("evaluations.davis.runs", ["dorra"], "evaluations.davis.runs: no such run: dorra, did you mean dora?; allowed: start, dora"),
    (
        "evaluations.incontext.settings.neighbors",
        20,
        "evaluations.incontext.settings.neighbors: there is no key 'neighbors' here, did you ",
    ),
    ("evaluations.incontext.settings.masks", GONE, "evaluations.incontext.settings: layout video needs masks"),
    ("baseline", "strat", "baseline: no such run: strat, did you mean start?"),
    ("tables", ["incontex"], "tables.0: no such table: 'incontex', did you mean incontext?; allowed: "),
    ("pictures.image", 3, "pictures.image: there is no key 'image' here, did you mean images?"),
    ("execution.devices", "cpu", "execution.devices: there is no key 'devices' here, did you mean device?"),
    ("results", "/tmp/x", "results: a folder inside the study's folder is needed"),
]


@pytest.mark.parametrize(("path", "value", "expected"), SLIPS, ids=[f"{path}-{number}" for number, (path, _, _) in enumerate(SLIPS)])
def test_a_slip_is_named_by_the_file_s_own_key(path, value, expected):
    config = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(UserError) as error:
        parse_study(config)
    assert str(error.value).startswith(f"config.yaml: {expected}"), error.value
    assert "\n" not in str(error.value)
