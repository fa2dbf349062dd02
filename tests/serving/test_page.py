"""The page in a real Chromium: a history, reasons, the slider, a keyboard, small screens."""

import json
import os
import re
import shutil

import pytest
from servers import fake

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
expect = sync_api.expect


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs rights that containers lack; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = tmp_path_factory.mktemp("fake") / "settings.json"
    settings.write_text("{}")
    with fake(settings) as server:
        yield server


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    """A model without searches and steps."""
    settings = tmp_path_factory.mktemp("fake") / "settings.json"
    settings.write_text(json.dumps({"tasks": ["recommend"], "max_steps": None}))
    with fake(settings) as server:
        yield server


@pytest.fixture
def opened(browser):
    """Opens the page of a server; fails where a script of it does, or loads from elsewhere."""
    wrong, told, pages = [], [], []

    def open_page(server, **settings):
        context = browser.new_context(**settings)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: told.append(line.text) if line.type == "error" else None)
        address = f"http://127.0.0.1:{server.port}/"
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:")) else wrong.append(r.url),
        )
        page.goto(address)
        expect(page.locator("#recommended > li").first).to_be_visible()
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    # What a test makes fail is told too.
    assert wrong == [] == [line for line in told if not line.startswith("Failed to load resource")]


def titles(page):
    return page.locator("#recommended .pick bdi").all_text_contents()


def shot(page, name):
    if folder := os.environ.get("LCRSR_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_a_history_is_composed_and_explained(opened, server):
    page = opened(server)
    assert titles(page)[0] == "dog number 3"
    page.get_by_label("Search as a shopper would").fill("hen")
    page.keyboard.press("Enter")
    page.locator("#results-list .pick", has_text="hen number 7").click()
    expect(page.locator("#history > li")).to_have_count(1)
    expect(page.locator("#history")).to_contain_text("Searched hen → hen number 7")
    page.locator("#recommended .pick", has_text="dog number 3").click()
    expect(page.locator("#history > li")).to_have_count(2)
    expect(page.locator("#recommended .pick").first).to_contain_text("gnu number 6")
    why = page.get_by_role("button", name="Why gnu number 6")
    why.click()
    expect(page.locator(".why")).to_contain_text("Search hen")
    expect(page.locator(".why")).to_contain_text("K=2: 1")
    expect(page.locator("#history > li.moving")).to_have_count(2)
    expect(page.locator("#history > li.moving.down")).to_contain_text("−0.20 score, 1 rank down")
    shot(page, "light")
    page.get_by_role("button", name="Remove search hen").click()
    expect(page.locator("#history > li")).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#recommended .pick").first).to_contain_text("dog number 3")


def test_the_slider_shows_how_the_ranking_changes(opened, server):
    page = opened(server)
    slider = page.get_by_label(re.compile("Reasoning steps K"))
    assert titles(page)[0] == "dog number 3"
    expect(page.locator("#steps-told")).to_have_text("2 of 2")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#steps-told")).to_have_text("1 of 2")
    expect(page.locator("#recommended .pick").first).to_contain_text("cat number 2")
    changes = page.locator("#recommended .change").all_text_contents()
    assert changes == ["new", *["▼1"] * 7]
    page.keyboard.press("ArrowRight")
    expect(page.locator("#recommended .pick").first).to_contain_text("dog number 3")
    expect(page.locator("#recommended .change")).to_have_count(0)


def test_titles_are_text_and_never_markup(opened, server):
    page = opened(server)
    page.evaluate("window.before = document.scripts.length")
    page.get_by_label("Search as a shopper would").fill("<script>alert(1)</script>")
    page.keyboard.press("Enter")
    expect(page.locator("#history")).to_contain_text("Searched <script>alert(1)</script>")
    page.get_by_label("Search as a shopper would").fill("<script>")
    page.keyboard.press("Enter")
    page.locator("#results-list .pick", has_text="<script> number 10").click()
    expect(page.locator("#history")).to_contain_text("→ <script> number 10")
    assert page.evaluate("document.scripts.length === window.before")


def test_all_of_it_works_with_a_keyboard(opened, server):
    page = opened(server)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("cat")
    page.keyboard.press("Enter")
    expect(page.locator("#results-list .pick")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#results-list .pick")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#history")).to_contain_text("→ cat number 2")
    expect(page.locator("#results-list .pick")).to_be_focused()
    remove = page.get_by_role("button", name="Remove search cat")
    remove.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history-title")).to_be_focused()
    why = page.locator("#recommended button[aria-expanded]").first
    why.focus()
    page.keyboard.press("Space")
    expect(why).to_have_attribute("aria-expanded", "true")
    expect(why).to_be_focused()


@pytest.mark.parametrize("width", [390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened, server, width, scheme):
    page = opened(server, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.get_by_label("Search as a shopper would").fill("bee")
    page.keyboard.press("Enter")
    page.locator("#results-list .pick").first.click()
    expect(page.locator("#history > li")).to_have_count(1)
    page.locator("#recommended button[aria-expanded]").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, f"{width}-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, server, scheme):
    """The contrast of WCAG AA, 4.5 to 1, for every text that is shown."""
    page = opened(server, color_scheme=scheme)
    page.locator("#recommended .pick").first.click()
    page.get_by_label(re.compile("Reasoning steps K")).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#recommended .change").first).to_have_text("new")
    page.locator("#recommended button[aria-expanded]").first.click()
    expect(page.locator(".why").first).to_be_visible()
    shot(page, f"wide-{scheme}")
    low = page.evaluate(CONTRASTS)
    assert low == []


def test_a_model_that_does_not_search_finds_by_titles(opened, recommender):
    page = opened(recommender)
    assert not page.locator("#reasoning").is_visible()
    page.get_by_label("Search as a shopper would").fill("number fo")
    page.keyboard.press("Enter")
    expect(page.locator("#results-note")).to_contain_text("Found by title")
    expect(page.locator("#results-list .pick").first).to_contain_text("fox number 5")


def test_a_user_of_the_log_is_taken(opened, server):
    page = opened(server)
    page.get_by_text("Begin with a user of the training log").click()
    page.get_by_label("User id").fill("known")
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#user-note")).to_contain_text("The model knows user known")
    page.get_by_label("User id").fill("nobody")
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#user-note")).to_contain_text("does not know nobody")


def test_what_is_wrong_is_said(opened, server):
    page = opened(server)
    page.route("**/recommend", lambda route: route.abort())
    page.locator("#recommended .pick").first.click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.unroute("**/recommend")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("alert")).to_be_hidden()


CONTRASTS = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.offsetParent) continue;
    const [a, b] = [numbers(getComputedStyle(node).color), ground(node)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return low;
}"""
