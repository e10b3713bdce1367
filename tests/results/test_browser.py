"""The page in a real browser: headless Chromium opens it, sorts, opens a picture; nothing is asked of a network."""

import copy
import json
import shutil

import pytest

from densewalk.results.page.page import report
from densewalk.results.plan import Plan
from tests.fixtures.pages import PLAN, write_study
from tests.fixtures.records import record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    write_study(results)
    report(Plan.model_validate(PLAN), results, results / "report.html")
    return f"file://{results / 'report.html'}"


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.complaints = []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else opened.complaints.append(r.url))
    opened.goto(address)
    yield opened
    assert opened.complaints == []
    opened.close()


def test_headings_sort_by_mouse_and_keyboard(page):
    table = page.get_by_role("region", name="Table, In-context segmentation")
    runs, heading = table.locator("tbody th a"), table.get_by_role("button", name="mIoU", exact=True)
    assert runs.all_inner_texts() == ["walk", "dino_s16"]
    heading.click()
    heading.press("Enter")
    assert runs.all_inner_texts() == ["dino_s16", "walk"]
    assert heading.locator("..").get_attribute("aria-sort") == "descending"


def test_a_image_opens_large_and_closes_by_key(page):
    page.locator(".open").first.press("Enter")
    assert page.locator("dialog[open] img").get_attribute("alt")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_run_leads_to_how_its_numbers_were_made(page):
    page.get_by_role("region", name="Table, In-context segmentation").get_by_role("link", name="walk").click()
    assert page.locator("#how-incontext_voc-walk").is_visible()


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_predictions_are_picked_by_evaluation_image_and_run(page):
    picker, shown = page.locator(".picker"), page.locator("#predictions ~ .evaluation figure:visible")
    evaluation, image, run = (picker.get_by_label(name) for name in ("Evaluation", "Image", "Run"))
    assert page.locator("#predictions ~ .evaluation summary:visible").count() == 0, "the picker stands for them"
    assert image.is_hidden(), "there is but one"
    assert shown.all_inner_texts() == ["walk", "dino_s16"]
    run.select_option("dino_s16")
    assert shown.all_inner_texts() == ["dino_s16"]
    evaluation.select_option("davis")
    assert shown.all_inner_texts() == ["dino_s16"]
    assert page.locator("#predictions-davis").is_visible()
    assert page.locator("#predictions-incontext_voc").is_hidden()
    evaluation.select_option("incontext_voc")
    assert run.evaluate("s => s.value") == "dino_s16", "the run that was picked stays picked"
    run.select_option("")
    assert shown.all_inner_texts() == ["walk", "dino_s16"]


def test_without_a_script_predictions_are_folded_and_can_be_opened(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator(".picker").is_hidden()
    folded = page.locator("#predictions ~ .evaluation summary")
    assert folded.all_inner_texts() == ["images, 2 runs", "images, 1 run"]
    assert page.locator("#predictions ~ .evaluation figure:visible").count() == 0
    folded.first.click()
    assert page.locator("#predictions ~ .evaluation figure:visible").count() == 2
    context.close()


def test_what_is_wider_than_the_view_says_so_and_scrolls_by_keyboard(page):
    area = page.get_by_role("region", name="Table, In-context segmentation")
    hint = area.locator("xpath=../preceding-sibling::p[1][@class='hint']")
    assert hint.is_hidden(), "a table that fits says nothing"
    assert area.get_attribute("tabindex") is None, "and is no stop for the Tab key"
    page.set_viewport_size({"width": 390, "height": 844})
    hint.wait_for(state="visible")
    assert hint.inner_text().startswith("↔ Wider than the view: scroll sideways")
    frame = area.locator("..")
    assert frame.get_attribute("class") == "frame more"
    area.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("area => area.scrollLeft > 0", arg=area.element_handle())
    area.evaluate("area => { area.scrollLeft = area.scrollWidth; }")
    page.wait_for_function("frame => frame.className === 'frame'", arg=frame.element_handle())


def test_contents_are_folded_on_a_phone_and_there_on_a_desk(page):
    link = page.locator("nav").get_by_role("link", name="Learning curves")
    assert link.is_visible()
    assert page.locator("nav summary").is_hidden()
    page.set_viewport_size({"width": 390, "height": 844})
    link.wait_for(state="hidden")
    page.locator("nav summary").click()
    assert link.is_visible()
    page.locator("nav summary").click()
    page.set_viewport_size({"width": 1280, "height": 900})
    link.wait_for(state="visible")


def test_headings_of_tables_do_not_break_inside_a_name(page):
    page.set_viewport_size({"width": 390, "height": 844})
    heights = page.evaluate(
        "[...document.querySelectorAll('thead th button')].filter(b => b.getClientRects().length && !b.querySelector('br'))"
        ".map(b => [b.textContent, b.getBoundingClientRect().height, parseFloat(getComputedStyle(b).lineHeight)])"
    )
    assert any("mIoU_hungarian" in name for name, *_ in heights)
    assert [name for name, height, line in heights if height > 1.5 * line] == []


def test_the_keyboard_alone_sorts_a_table_and_opens_and_closes_a_image(page):
    def go_to(locator):
        """Press Tab until the focus is there; never a mouse, never `focus()`."""
        handle = locator.element_handle()
        for _ in range(300):
            page.keyboard.press("Tab")
            if page.evaluate("element => document.activeElement === element", handle):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", "one sees where the focus is"
                return
        raise AssertionError(f"Tab never reaches {locator}")

    table = page.get_by_role("region", name="Table, In-context segmentation")
    go_to(table.get_by_role("button", name="mIoU", exact=True))
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert table.locator("tbody th a").all_inner_texts() == ["dino_s16", "walk"]
    picture = page.locator(".open:visible").first
    go_to(picture)
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] img").is_visible()
    page.keyboard.press("Enter")  # the dialogue's button has the focus
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("element => document.activeElement === element", picture.element_handle()), "the focus is where it was"


def test_everything_can_be_pressed_without_an_error(page):
    for folded in page.locator("summary").all():
        if folded.is_visible():
            folded.click()
    for heading in page.locator("th button:visible").all():
        heading.click()
        heading.click()
    for picture in page.locator(".open:visible").all():
        picture.click()
        assert page.locator("dialog[open] p").inner_text() == picture.locator("img").get_attribute("alt")
        page.locator("dialog[open] button").click()


PAPER = 190  # mm: A4 without the margins of @page, less than which nothing may be wide


def test_the_printed_page_shows_everything_that_is_folded_and_cuts_nothing_off(page, tmp_path):
    page.set_viewport_size({"width": round((PAPER - 4) / 25.4 * 96), "height": 1000})
    assert page.locator("details:not([open])").count() > 3
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for text in page.locator("main details:not(.every) > :not(summary)").all():
        assert text.is_visible()
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    beyond = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length && "
        "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 100))"
    )
    assert beyond == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 3, "on the screen it is as it was"
    page.emulate_media(media=None, color_scheme=None)
    printed = page.pdf(path=tmp_path / "page.pdf")
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") + printed.count(b"/Type/Page/") > 1


def test_a_printed_table_of_many_columns_loses_none(browser, tmp_path):
    write_study(tmp_path)
    plan = copy.deepcopy(PLAN)
    plan["runs"]["start"] = {**PLAN["runs"]["walk"], "method": "none", "data": []}
    for i in range(13):
        name = f"another_evaluation_{i}"
        plan["evaluations"][name] = {**PLAN["evaluations"]["incontext_voc"], "runs": ["walk", "start"]}
        for run, method, value in (("walk", "dora", 41.0), ("start", "none", 40.0)):
            made = {"method": method, "init": "random", "init_kind": "random", "evaluation": name}
            for seed in (0, 1):
                plan["hashes"][f"{run}/s{seed}/{name}"] = f"{seed:012d}"
                (tmp_path / run / f"s{seed}").mkdir(parents=True, exist_ok=True)
                one = record(run, seed, {"mIoU": value + seed, "mIoU_hungarian": 1.0}, **made)
                (tmp_path / run / f"s{seed}" / f"{name}.json").write_text(json.dumps(one))
    report(Plan.model_validate(plan), tmp_path, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": round((PAPER - 4) / 25.4 * 96), "height": 1000})
    page.goto(f"file://{tmp_path / 'report.html'}")
    assert page.locator("table.many td").count() >= 13
    page.emulate_media(media="print")
    beyond = page.evaluate(
        "[...document.querySelectorAll('table.many *')].filter(e => e.getClientRects().length && "
        "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 100))"
    )
    assert beyond == []
    label = page.locator("table.many td").nth(12).evaluate("cell => getComputedStyle(cell, '::before').content")
    assert label == '"another_evaluation_12, mIoU"', "a cell says what it is of, as there is no heading"
    page.close()


def test_headings_of_tables_are_repeated_on_every_sheet(page):
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"
    assert page.evaluate("getComputedStyle(document.querySelector('tbody tr')).breakInside") == "avoid"
    assert page.evaluate("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_as_shown_has_enough_contrast(page, scheme):
    """Each text's computed color against the nearest paper behind it, by WCAG 2; the charts' texts, too."""
    page.emulate_media(color_scheme=scheme)
    faint = page.evaluate(
        """() => {
      const parts = text => text.match(/[\\d.]+/g).map(Number);
      const luminance = ([r, g, b]) => { const l = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
        return 0.2126 * l(r) + 0.7152 * l(g) + 0.0722 * l(b); };
      const paper = element => { for (let e = element; e; e = e.parentElement) {
          const color = parts(getComputedStyle(e).backgroundColor);
          if (color.length === 3 || color[3] === 1) return color; }
        return [255, 255, 255]; };
      const found = [];
      for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !element.getClientRects().length || element.closest("script, style, .skip")) continue;
        const style = getComputedStyle(element), inSvg = element.closest("svg");
        const [a, b] = [luminance(parts(inSvg ? style.fill : style.color)), luminance(paper(inSvg ? inSvg.parentElement : element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) found.push([contrast, element.outerHTML.slice(0, 120)]);
      }
      return found;
    }"""
    )
    assert faint == []
