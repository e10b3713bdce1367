"""The page in a real browser: headless Chromium opens it, sorts, opens a picture; nothing is asked of a network."""

import shutil

import pytest

from tests.fixtures.pages import PLAN, write_study

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
    from densewalk.results.page.page import report
    from densewalk.results.plan import Plan

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
