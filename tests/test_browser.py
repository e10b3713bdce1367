"""The page in a real browser: headless Chromium opens it, sorts, opens a picture; nothing is asked of a network."""

import shutil

import pytest

from tests.test_report import PLAN, write_study

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
    from densewalk.report import report

    results = tmp_path_factory.mktemp("results")
    write_study(results)
    report(PLAN, results, results / "report.html")
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


def test_a_picture_opens_large_and_closes_by_key(page):
    page.locator(".open").first.press("Enter")
    assert page.locator("dialog[open] img").get_attribute("alt")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_run_leads_to_how_its_numbers_were_made(page):
    page.get_by_role("region", name="Table, In-context segmentation").get_by_role("link", name="walk").click()
    assert page.locator("#how-incontext-walk-incontext_voc").is_visible()


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
