"""A real browser clicks through the page, on a desk and on a phone, in dark and light."""

from __future__ import annotations

import os
import shutil

import pytest

from cospec.report.page import Pictures, to_html
from cospec.report.read import read_all

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'cospec[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        told = pytest.fail if os.environ.get("CI") else pytest.skip
        told(f"there is no browser here: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(results, tmp_path_factory):
    inputs = read_all([results])
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(inputs, Pictures(inputs), "A report"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=[(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")])
def page(request, browser, address):
    """The page open at a width and a colour scheme; nothing may be logged or asked for."""
    width, scheme = request.param
    viewport = {"width": width, "height": 800}
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {address}
    context.close()


def overflow(page):
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def test_tabs_open_one_comparison_at_a_time(page):
    for i in (2, 3, 1):
        page.click(f"#tab-{i}")
        shown = [page.is_visible(f"#panel-{j}") for j in (1, 2, 3)]
        assert shown == [j == i for j in (1, 2, 3)]
        assert overflow(page) == 0
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#panel-3") and page.evaluate("document.activeElement.id") == "tab-3"


def test_a_mismatch_opens_by_mouse_and_by_keyboard_and_closes(page):
    button = page.locator("button.t.override").first
    button.click()
    ruling = page.locator(".ruling.open")
    assert ruling.count() == 1 and "Override: the draft's token stands" in ruling.inner_text()
    assert overflow(page) == 0
    box = ruling.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 800, "it opens in sight"
    page.keyboard.press("Escape")
    assert page.locator(".ruling.open").count() == 0
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    page.locator("button.t.bonus").first.click()
    assert page.locator(".ruling.open").count() == 1, "one at a time"


def test_text_stands_out_from_its_background(page):
    """Contrast of at least 4.5, as WCAG asks of small text, for text, notes and links."""
    ratio = """(selector) => {
      const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => c / 255)
          .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      let node = document.querySelector(selector);
      const ink = light(parse(getComputedStyle(node).color));
      const clear = (n) => getComputedStyle(n).backgroundColor.endsWith(", 0)");
      while (clear(node)) node = node.parentElement;
      const paper = light(parse(getComputedStyle(node).backgroundColor));
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for selector in ("h1", ".about", "nav a", "td b", ".t.override", ".t.correction", ".t.bonus"):
        assert page.evaluate(ratio, selector) >= 4.5, selector


def test_one_width_of_each_figure_is_shown_and_fits(page):
    page.click("#tab-3")
    width = page.viewport_size["width"]
    shown = [f.bounding_box() for f in page.locator("#panel-3 figure svg:visible").all()]
    assert len(shown) == 2, "the frontier and its close-up"
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in shown)
    size = page.evaluate(
        """() => [...document.querySelectorAll("#panel-3 figure svg")]
             .filter((svg) => svg.getBoundingClientRect().width)
             .flatMap((svg) => [...svg.querySelectorAll("text")])
             .map((text) => text.getBoundingClientRect().height)"""
    )
    assert min(size) >= 8, "letters can be read"


def test_a_search_leaves_what_has_the_words(page):
    box = page.locator('input[data-in="traces"]')
    box.fill("p/2")
    assert page.locator("#traces > details:visible").count() == 1
    assert page.locator("#traces output").inner_text() == "1 of 2"
    box.fill("")
    assert page.locator("#traces > details:visible").count() == 2
    assert page.locator("#traces output").inner_text() == ""
    assert overflow(page) == 0


def test_a_diff_opens_and_shows_both_sides(page):
    page.locator("#texts summary").first.click()
    assert page.locator("#texts details del").first.is_visible()
    assert page.locator("#texts details ins").first.inner_text() == "3"
    assert overflow(page) == 0


def test_the_picture_is_on_the_first_screen(page):
    """The frontier of a single comparison begins where a reader looks first."""
    box = page.locator("#panel-1 figure svg:visible").first.bounding_box()
    assert box["y"] < page.viewport_size["height"]
