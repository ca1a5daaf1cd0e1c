"""The report in a real browser: sorted by mouse and keyboard, on a phone, in the dark, without a request."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import write_sample_page
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
LONG = "Staffordshire bullterrier, " + "a name that does not end, " * 6
NAMES = (LONG, "寄居蟹", "साधु केकड़ा", "ปูเสฉวน", "x" * 200, '<b>&amp;"</b>', "crane", "crane")
FEW = (*NAMES, *(f"class {number}" for number in range(3)))
MANY = (*NAMES, *(f"class {number}" for number in range(30)))
# Returns the smallest contrast, by WCAG 2, of the elements' text with the background that is behind them.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, back) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + back[i] * (1 - (top[3] ?? 1)));
  const behind = (each) => {
    if (!each) return [255, 255, 255];
    const own = parse(getComputedStyle(each).backgroundColor);
    return own[3] === undefined ? own : over(own, behind(each.parentElement));
  };
  const texts = [...document.querySelectorAll("body *")].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) &&
    each.checkVisibility() && !each.closest("script, style, svg"));
  return Math.min(...texts.map((each) => {
    const back = behind(each);
    const [a, b] = [light(over(parse(getComputedStyle(each).color), back)), light(back)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module", params=[FEW, MANY], ids=["table", "heat map"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with few classes, whose matrix is a table, and one with many."""
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(write_sample_page(request.param, notes=("a note",), doubts=("a doubt",)), encoding="utf-8")
    return path


def visit(browser: Browser, path: Path, width: int = 1280, faults: list[str] | None = None, **options: Any) -> Page:
    """Open a page; add errors and requests to `faults`."""
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    found = faults if faults is not None else []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda said: found.append(said.text))
    page.on(
        "request", lambda asked: None if asked.url.startswith(("data:", path.as_uri())) else found.append(asked.url)
    )
    page.goto(path.as_uri())
    return page


def read_column(page: Page, column: int) -> list[str]:
    """Return the texts of a column of the table of classes, from top to bottom."""
    return page.locator(f".classes tbody tr > :nth-child({column + 1})").all_text_contents()


def test_the_classes_are_sorted_by_mouse_and_by_keyboard(browser: Browser, path: Path) -> None:
    faults: list[str] = []
    page = visit(browser, path, faults=faults)
    headings = page.locator(".classes thead th")
    worst_first = [float(each) for each in read_column(page, 2)]
    assert worst_first == sorted(worst_first) and headings.nth(2).get_attribute("aria-sort") == "ascending"

    # A click on the sorted column turns its order around.
    headings.nth(2).get_by_role("button").click()
    assert [float(each) for each in read_column(page, 2)] == worst_first[::-1]
    assert headings.nth(2).get_attribute("aria-sort") == "descending"

    # Tab reaches the name's button, and Enter sorts by it.
    headings.nth(0).get_by_role("button").focus()
    page.keyboard.press("Enter")
    names = read_column(page, 0)
    assert names != sorted(names, reverse=True) and names.index("class 1") < names.index("class 2")
    assert [each.get_attribute("aria-sort") for each in headings.all()] == ["ascending", None, None, None, None]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Images"

    # The filter finds a name without its accents, and says how many there are.
    page.get_by_label("Filter by name").fill("STAFFORDSHIRE")
    expect(page.locator("#filtered")).to_have_text(f"1 of {len(names)} classes")
    assert page.locator(".classes tbody tr:visible").count() == 1
    page.close()
    assert faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_a_phone(browser: Browser, path: Path, scheme: Any) -> None:
    page = visit(browser, path, 390, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"
    assert dark == (scheme == "dark")
    assert page.evaluate(CONTRAST) >= 4.5
    # Each row of the gallery has its three pictures next to each other, inside of the screen.
    for article in page.locator("article").all():
        boxes = [each.bounding_box() or {} for each in article.locator("img").all()]
        assert len({round(box["y"]) for box in boxes}) == 1 and len(boxes) == 3
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    page.close()


def test_the_page_is_complete_without_its_script(browser: Browser, path: Path) -> None:
    page = visit(browser, path, java_script_enabled=False)
    assert page.locator(".classes tbody tr").count() in (len(FEW), len(MANY))
    expect(page.get_by_label("Filter by name")).to_be_hidden()
    expect(page.locator(".classes thead button")).to_have_count(0)
    assert all(each.get_attribute("alt") for each in page.locator("img").all())
    page.close()


def test_the_heat_map_tells_the_cell_under_the_pointer(browser: Browser, path: Path) -> None:
    page = visit(browser, path)
    heat = page.locator("#heat")
    if not heat.count():
        assert page.locator(".matrix tbody tr").count() == len(FEW)
        page.close()
        return
    size = len(MANY)
    box = heat.bounding_box() or {}
    for label, said in ((12, "class 4 predicted as class 5: 2 of 4 images"), (9, "class 1: 100.0% of 4 images")):
        column = label + (label == 12)
        at: Any = {"x": (column + 0.5) * box["width"] / size, "y": (label + 0.5) * box["height"] / size}
        heat.hover(position=at)
        assert (page.locator("#cell").text_content() or "").startswith(said)
    page.close()


def test_axe_finds_no_serious_fault(browser: Browser, path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = visit(browser, path)
    found = axe.Axe().run(page).response["violations"]
    page.close()
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
