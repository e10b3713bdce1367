"""The page that can be asked: its room, and in a real browser the similarities of a pressed patch."""

import base64
import json
import re
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from densewalk.results.page.images import predictions
from densewalk.results.page.page import report
from densewalk.results.page.patches import FEWEST, MOST_BYTES, asked_patches, fit
from densewalk.results.page.votes import asked_votes
from densewalk.results.plan import Plan
from densewalk.visualization.panels import Panel, write_panels
from densewalk.visualization.patch_codes import CodedImage, PatchCodes, make_codes, patches_path, to_text, write_patches
from densewalk.visualization.votes import FULL, NO_LABEL, MemoryImage, Query, Votes, small_image, write_votes
from densewalk.visualization.votes import to_text as to_words
from tests.fixtures.pages import PLAN, write_study
from tests.results.test_browser import browser  # noqa: F401

GRIDS = {"walk": (4, 6), "dino_s16": (5, 7)}  # of the two runs' patches
IMAGES = [("venice", 3, None), ("venice", 8, None), ("venice", 20, 0.0), ("venice", 20, 0.5)]


def patch_features(run):
    """Features of every image's patches."""
    rows, columns = GRIDS[run]
    generator = np.random.default_rng(len(run))
    mean = generator.standard_normal(48)
    return [mean + 2 * generator.standard_normal((rows * columns, 48)) for _ in IMAGES]


def write_features(results, runs=("walk", "dino_s16")):
    """Drawn features of some runs and the codes of their patches, as a job leaves them."""
    for run in runs:
        folder, (rows, columns) = results / run / "s0", GRIDS[run]
        made = make_codes(patch_features(run), 48)
        images = []
        for (source, number, seconds), codes in zip(IMAGES, made.codes, strict=True):
            name = f"{'image' if seconds is None else 'clip'}_{sum((i.seconds is None) == (seconds is None) for i in images)}"
            images.append(
                CodedImage(name=name, source=source, number=number, seconds=seconds, rows=rows, columns=columns, codes=to_text(codes))
            )
            (folder / "features").mkdir(exist_ok=True)
            for kind in (name, name.replace("image", "pca")):
                Image.fromarray(np.full((16 * rows, 16 * columns, 3), 90, np.uint8)).save(folder / "features" / f"{kind}.png")
        record = {
            "images": [{"source": s, "number": n, "variance": [0.5]} for s, n, t in IMAGES if t is None],
            "heads": 0,
            "nearest": False,
        }
        (folder / "features.json").write_text(json.dumps(record))
        content = PatchCodes(scales=made.scales.tolist(), errors=made.errors.tolist(), images=images)
        write_patches(patches_path(folder / "features.json"), content)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_study(folder)
    write_features(folder)
    report(Plan.model_validate(PLAN), folder, folder / "report.html")
    return folder


@pytest.fixture
def page(browser, results):  # noqa: F811
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.complaints = []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else opened.complaints.append(r.url))
    opened.goto(f"file://{results / 'report.html'}")
    yield opened
    assert opened.complaints == []
    opened.close()


def colors(page, image, side):
    """Red, green and blue of every patch of one map."""
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    values = page.locator(".pair").nth(image).locator("canvas").nth(side).evaluate(script)
    return np.array(values).reshape(-1, 4)[:, :3]


def true_cosines(run, image, patch):
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in patch_features(run)]
    return [u @ unit[image][patch] for u in unit]


def press(page, image, side, x, y):
    button = page.locator(".pair").nth(image).locator("button").nth(side)
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    button.click(position={"x": x * box["width"], "y": y * box["height"]})


def test_a_pressed_patch_is_compared_with_all_others_by_both_runs(page):
    press(page, 1, 0, 0.45, 0.55)
    for side, run in enumerate(GRIDS):
        rows, columns = GRIDS[run]
        cosines = true_cosines(run, 1, int(0.55 * rows) * columns + int(0.45 * columns))
        for image, expected in enumerate(cosines):
            found = colors(page, image, side).sum(axis=1)
            clear = np.abs(expected[:, None] - expected[None]) > 0.15
            assert ((found[:, None] > found[None]) == (expected[:, None] > expected[None]))[clear].all(), "brighter is more similar"
            if image != 1:
                shown = float(page.locator(".pair").nth(image).locator(".value").nth(side).inner_text())
                assert shown == pytest.approx(expected.max(), abs=0.08)
                assert not page.locator(".pair").nth(image).locator(".mark").nth(side).is_visible()
    assert "Asked: venice, image 8, row 3, column 3: by walk most similar in" in page.locator(".said").inner_text()
    left = page.locator(".pair").nth(1).locator(".mark").nth(0)
    assert left.is_visible()
    assert left.evaluate("m => [m.style.left, m.style.top].map(parseFloat)") == pytest.approx([100 * 2 / 6, 50], abs=0.01)


def test_arrow_keys_move_the_asked_patch_and_stop_at_the_edge(page):
    button = page.locator(".pair").nth(0).locator("button").nth(0)
    button.focus()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert "row 2, column 1" in page.locator(".said").inner_text()
    other = page.locator(".pair").nth(2).locator("button")
    other.nth(0).focus()
    page.keyboard.press("Enter")
    assert "Asked: venice, clip, 0 s, row 3, column 4" in page.locator(".said").inner_text()
    assert [b.get_attribute("tabindex") for b in other.all()] == ["0", "-1"], "one stop of the Tab key for each image"


def test_other_runs_and_colors_can_be_chosen(page):
    left, right, scale = page.locator(".ask select").all()
    assert [left.input_value(), right.input_value()] == ["walk", "dino_s16"]
    assert page.locator(".keys strong").all_inner_texts() == ["walk", "dino_s16"]
    before = colors(page, 2, 1)
    left.select_option("dino_s16")
    assert (colors(page, 2, 0) == before).all()
    scale.select_option("whole")
    assert page.locator(".keys p").first.inner_text().split() == ["dino_s16", "0.00", "1.00"]


def test_a_finger_asks_on_a_phone_and_nothing_scrolls_sideways(browser, results):  # noqa: F811
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"file://{results / 'report.html'}")
    button = page.locator(".pair").nth(1).locator("button").nth(1)
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    assert "Asked: venice, image 8, row 1, column 6" in page.locator(".said").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_an_image_that_a_run_has_not_seen_says_so(browser, tmp_path):  # noqa: F811
    write_study(tmp_path)
    write_features(tmp_path)
    path = patches_path(tmp_path / "walk/s0/features.json")
    content = json.loads(path.read_text())
    content["images"] = content["images"][:1]
    path.write_text(json.dumps(content))
    report(Plan.model_validate(PLAN), tmp_path, tmp_path / "report.html")
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 'report.html'}")
    press(page, 1, 1, 0.5, 0.5)
    assert page.locator(".value").nth(0).inner_text() == "not seen", "nor is what was asked"
    assert page.locator(".owner").nth(0).inner_text() == "walk"
    assert page.locator(".pair").nth(0).locator(".value").nth(1).inner_text() != ""
    page.close()


def test_without_codes_nothing_can_be_asked(tmp_path):
    write_study(tmp_path)
    write_features(tmp_path)
    for run in GRIDS:
        patches_path(tmp_path / run / "s0/features.json").unlink()
    report(Plan.model_validate(PLAN), tmp_path, tmp_path / "report.html")
    assert 'id="asked"' not in (tmp_path / "report.html").read_text()


def test_many_runs_have_fewer_components_and_more_than_that_are_left_out():
    assert fit({"a": [700] * 24}) == (24, ["a"])
    runs = {f"run{i}": [7000] * 24 for i in range(40)}
    components, shown = fit(runs)
    assert FEWEST < components < 24
    assert shown == list(runs)
    assert len(shown) * 7000 * components * 4 / 3 <= MOST_BYTES
    components, shown = fit({f"run{i}": [7000] * 24 for i in range(90)})
    assert components == FEWEST
    assert len(shown) == MOST_BYTES * 3 // 4 // (7000 * FEWEST)
    assert fit({"one": [10_000_000] * 24}) == (FEWEST, ["one"]), "one run at least"
    assert fit({"few": [10] * 3, "more": [10] * 9}) == (9, ["few", "more"]), "a run has fewer, if they are enough for it"


def test_the_page_has_the_first_components_and_says_their_error(results, monkeypatch):
    folders, drawn = {run: results / run / "s0" for run in GRIDS}, [("venice", 3), ("venice", 8)]
    whole = asked_patches(folders, drawn)
    sizes = {run: len(base64.b64decode(found["codes"])) for run, found in whole.runs.items()}
    monkeypatch.setattr("densewalk.results.page.patches.MOST_BYTES", sum(sizes.values()) // 2 * 4 // 3)
    found = asked_patches(folders, drawn)
    assert FEWEST <= found.components < whole.components
    made = make_codes(patch_features("walk"), 48)
    shown = found.runs["walk"]
    assert shown["scales"] == made.scales[: found.components].tolist()
    assert shown["error"] == pytest.approx(made.errors[found.components - 1])
    rows, columns, first = shown["images"][1]
    assert first == rows * columns, "behind the first image's"
    codes = np.frombuffer(zlib.decompress(base64.b64decode(shown["codes"]), -15), np.int8).reshape(found.components, -1)
    np.testing.assert_array_equal(codes[:, first : 2 * first].T, made.codes[1][:, : found.components])


def test_a_browser_that_cannot_unpack_says_so(browser, results):  # noqa: F811
    page = browser.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(f"file://{results / 'report.html'}")
    page.locator(".ask .said").wait_for()
    assert page.locator(".ask .said").inner_text().startswith("This browser is too old to unpack the similarities")
    assert not page.locator(".pair").first.is_visible()
    page.close()


def test_a_page_of_twenty_runs_is_small_and_opens_at_once(browser, tmp_path):  # noqa: F811
    """Images and codes at their usual sizes: 320 x 576 pixels, 720 patches, 24 components, 4 images and 6 frames."""
    write_study(tmp_path)
    generator = np.random.default_rng(0)
    plan = json.loads(json.dumps(PLAN))
    keys = [("venice", i, None) for i in range(4)] + [("venice", 9, k / 2) for k in range(6)]
    for run in [f"run{i}" for i in range(20)]:
        plan["runs"][run] = {**PLAN["runs"]["dino_s16"], "init": "random"}
        folder = tmp_path / run / "s0/features"
        folder.mkdir(parents=True)
        images = []
        for i, (source, number, seconds) in enumerate(keys):
            codes = generator.integers(-127, 128, (720, 24), dtype=np.int8)
            name = f"image_{i}" if seconds is None else f"clip_{i - 4}"
            images.append(CodedImage(name=name, source=source, number=number, seconds=seconds, rows=20, columns=36, codes=to_text(codes)))
            if run == "run0" or seconds is None:
                pixels = np.repeat(np.repeat(generator.integers(0, 256, (40, 72, 3), dtype=np.uint8), 8, axis=0), 8, axis=1)
                Image.fromarray(pixels).save(folder / f"{name}.png")
                Image.fromarray(pixels[::16, ::16]).save(folder / f"{name.replace('image', 'pca')}.png")
        record = {"images": [{"source": s, "number": n, "variance": [0.5]} for s, n, t in keys if t is None], "heads": 0, "nearest": False}
        (folder.parent / "features.json").write_text(json.dumps(record))
        write_patches(folder / "patches.json", PatchCodes(scales=[0.01] * 24, errors=[0.02] * 24, images=images))
    report(Plan.model_validate(plan), tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 12e6
    page = browser.new_page()
    started = time.perf_counter()
    page.goto(f"file://{tmp_path / 'report.html'}")
    page.locator(".said").wait_for()
    print(f"opened in {time.perf_counter() - started:.2f} s")
    assert re.match("Asked: venice, image 0", page.locator(".said").inner_text())
    page.close()


# -- who votes ---------------------------------------------------------------------------------------------------------


def write_ballots(results, runs=("walk", "dino_s16"), queries=2, images=3, size=6, voters=2, classes=3):
    """Votes of some runs in the in-context evaluation: the second voter of patch p has the first label."""
    labels = ["sky", "road", "car"]
    for number, run in enumerate(runs):
        generator = np.random.default_rng(number)
        drawn = [small_image(Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)), 48) for _ in range(images)]
        voting = []
        for q in range(queries):
            patches = size * size
            votes = np.zeros((patches, voters, 4), int)
            votes[..., 0] = np.arange(voters) % images
            votes[..., 1] = np.arange(patches)[::-1, None]
            votes[:, 0, 2], votes[:, 0, 3], votes[:, 1:, 3] = 1 + number, 0.7 * FULL, 0.2 * FULL
            predicted, truth = np.full(patches, 1 + number), np.full(patches, 1)
            truth[-1] = NO_LABEL
            others = [label for label in (1, 2, 0) if label != 1 + number]
            shares = FULL * np.array([[0.75, 0.5, 0.15], [0.1, 0.1, 0], [0.12, 0.1, 0.02]])  # all, and what each of two voters gives
            mixture = np.tile(np.column_stack([[1 + number, *others], shares]), (patches, 1, 1))
            voting.append(
                Query(
                    name=f"q{q}.png",
                    image=drawn[q],
                    predicted=to_words(predicted),
                    share=to_words(np.full(patches, 0.75 * FULL)),
                    truth=to_words(truth),
                    voters=to_words(votes),
                    mixture=to_words(mixture) if classes else "",
                )
            )
        memory = [MemoryImage(name=f"m{i}.png", image=None if i == 1 else drawn[i]) for i in range(images)]
        content = Votes(rows=size, columns=size, voters=voters, classes=classes, labels=labels, memory=memory, queries=voting)
        write_votes(results / run / "s0" / "incontext_voc" / "votes.json", content)


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voted")
    write_study(folder)
    write_features(folder)
    write_ballots(folder)
    report(Plan.model_validate(PLAN), folder, folder / "report.html")
    return folder / "report.html"


def test_a_pressed_patch_of_a_query_shows_its_prediction_and_its_voters(browser, voted):  # noqa: F811
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
    page.goto(f"file://{voted}")
    tool = page.locator(".voting")
    query = tool.locator(".patches").nth(0)
    query.scroll_into_view_if_needed()
    box = query.bounding_box()
    query.click(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})  # row 2, column 5 of 6
    answers = tool.locator(".answer").all_inner_texts()
    assert [a.replace("\u00a0", " ") for a in answers] == [
        "road, 75.0 % of the votes: correct.",
        "car, 75.0 % of the votes: wrong, it is road (10.0 %).",
    ]
    assert [a.get_attribute("class") for a in tool.locator(".answer").all()] == ["answer", "answer wrong"]
    voters = tool.locator(".voters").nth(0).locator("li")
    assert [v.replace("\u00a0", " ").split("\n") for v in voters.all_inner_texts()] == [
        ["70.0 %", "road 50.0 %", "car 10.0 %", "sky 10.0 %", "m0.png"],
        ["20.0 %", "road 15.0 %", "sky 2.0 %", "other or no label 3.0 %", "m1.png"],
    ], "what a voter gives sums to its weight"
    rows = tool.locator(".shares").nth(0).locator("tr").all()
    assert [row.inner_text().replace("\u00a0", " ").split("\t") for row in rows] == [
        ["votes for", "all", "these 2", "other neighbors"],
        ["road", "75.0 %", "65.0 %", "10.0 %"],
        ["car", "10.0 %", "10.0 %", "0.0 %"],
        ["sky", "12.0 %", "12.0 %", "0.0 %"],
        ["other or no label", "3.0 %", "3.0 %", "0.0 %"],
        ["together", "100.0 %", "90.0 %", "10.0 %"],
    ]
    assert voters.nth(1).locator("img").count() == 0, "an image that is not drawn is named"
    spot = voters.nth(0).locator(".mark").evaluate("m => [m.style.left, m.style.top].map(parseFloat)")
    patch = 35 - (1 * 6 + 4)
    assert spot == pytest.approx([100 * (patch % 6) / 6, 100 * (patch // 6) / 6], abs=0.01)
    query.focus()
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert tool.locator(".answer").first.inner_text() == "road, 75.0\u00a0% of the votes: it has no label."
    assert "dino_s16: car" in tool.locator(".said").inner_text()
    tool.get_by_label("Query").select_option("1")
    assert tool.locator(".patches").nth(0).get_attribute("aria-label") == "q1.png, walk"
    tool.get_by_label("Left").select_option("dino_s16")
    assert tool.locator(".owner").all_inner_texts() == ["dino_s16", "dino_s16"]
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert complaints == []
    page.close()


def test_votes_of_an_earlier_version_say_what_a_voter_mostly_is(browser, tmp_path):  # noqa: F811
    write_study(tmp_path)
    write_ballots(tmp_path, classes=0)
    report(Plan.model_validate(PLAN), tmp_path, tmp_path / "report.html")
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 'report.html'}")
    voters = page.locator(".voters").nth(0).locator("li").all_inner_texts()
    assert [v.replace("\u00a0", " ").split("\n") for v in voters] == [
        ["70.0 %", "mostly road", "m0.png"],
        ["20.0 %", "mostly sky", "m1.png"],
    ]
    assert page.locator(".shares").nth(0).is_hidden()
    assert page.get_by_text("evaluate again to see it").first.is_visible()
    page.close()


def test_one_legend_names_the_classes_of_images_from_before_and_after_classes_txt(tmp_path):
    write_study(tmp_path)
    plan, folders = Plan.model_validate(PLAN), {run: tmp_path / run / "s0" for run in GRIDS}
    panel = Panel(np.zeros((8, 8, 3), np.uint8))
    for run, legend in (("walk", {"class 0": "red", "class 1": "blue"}), ("dino_s16", {"sky": "red", "road": "blue"})):
        (folders[run] / "incontext_voc").mkdir(exist_ok=True)
        write_panels(folders[run] / "incontext_voc" / "strip.png", [[panel]], legend)
    found = predictions(plan, folders, {"incontext_voc": {"class 0": "sky", "class 1": "road"}})
    (group,) = next(one for one in found if one.evaluation == "incontext_voc").groups
    assert list(group.legend) == ["sky", "road"]


def test_votes_of_an_evaluation_without_a_result_are_not_shown_and_room_is_limited(tmp_path, monkeypatch):
    write_study(tmp_path)
    write_ballots(tmp_path)
    plan, folders = Plan.model_validate(PLAN), {run: tmp_path / run / "s0" for run in GRIDS}
    found = asked_votes(plan, folders, {})
    assert list(found.evaluations["incontext_voc"]) == ["walk", "dino_s16"]
    assert len(found.images) == 6
    labels = found.evaluations["incontext_voc"]["walk"]["labels"]
    renamed = asked_votes(plan, folders, {"incontext_voc": {labels[1]: "for readers"}}).evaluations["incontext_voc"]["walk"]["labels"]
    assert renamed == [labels[0], "for readers", *labels[2:]]
    monkeypatch.setattr("densewalk.results.page.votes.MOST_BYTES", 1000)
    assert asked_votes(plan, folders, {}).left_out == ["dino_s16 in incontext_voc"]
    (tmp_path / "walk/s0/incontext_voc.json").unlink()
    assert list(asked_votes(plan, folders, {}).evaluations["incontext_voc"]) == ["dino_s16"]
