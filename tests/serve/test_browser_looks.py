"""The app's page on every screen: wide and narrow, by day and by night, on a phone, in a frame, and for everyone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import Answer, answering
from helpers.app_visitors import Server
from helpers.browsing import answered, needs_chromium, open_page, running_browser
from playwright.sync_api import Browser, Page, expect

pytestmark = needs_chromium
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of an element's text with the card below it (WCAG 2.2, 1.4.3), 1 to 21."""
    return page.evaluate(
        """selector => {
            const brightness = (color) => {
                const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
                const [red, green, blue] = parts.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            };
            const found = document.querySelector(selector), paint = (each) => getComputedStyle(each).backgroundColor;
            let below = found;
            while (paint(below).startsWith('rgba(0, 0, 0, 0')) below = below.parentElement;
            const pair = [getComputedStyle(found).color, paint(below)].map(brightness);
            return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (320, "dark")])
def test_nothing_is_cut_off_at_any_width_by_day_and_by_night(
    width: int, scheme: Any, browser: Browser, server: Server, tmp_path: Path
) -> None:
    viewport = {"width": width, "height": 800}
    with open_page(browser, server.url, viewport=viewport, color_scheme=scheme) as page:
        with answered(page):
            page.locator(".examples button").nth(1).click()
        expect(page.locator(".choice")).to_have_count(5)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in (".drop", ".layers", ".slider", ".choice >> nth=4", ".examples button >> nth=3", ".save"):
            box = page.locator(selector).bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= width
        for selector in (
            ".said",
            ".meaning",
            ".choice .name",
            ".choice .share",
            ".latency",
            "#head p",
            ".about summary",
        ):
            assert contrast(page, selector) >= 4.5, selector
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(options: dict[str, Any], scheme: Any, browser: Browser, server: Server) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with open_page(browser, server.url, color_scheme=scheme, **options) as page:
        page.locator(".about summary").click()
        found = axe.run(page).response["violations"]
        serious = [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_a_screen_reader_gets_one_map_headings_and_the_state(browser: Browser, server: Server) -> None:
    with open_page(browser, server.url) as page:
        assert page.get_by_role("heading", level=1).count() == 1
        expect(page.get_by_role("heading", name="Most likely: ")).to_have_count(1)
        assert page.get_by_role("img", name="where the network looked").count() <= 1
        expect(page.locator("#shown canvas[role=img][aria-label]")).to_have_count(1)
        with answered(page):
            page.locator(".examples button").nth(1).click()
        expect(page.locator("#chooser [role=status]")).to_contain_text("Most likely: ")
        assert "common." not in page.locator("body").inner_text()


def test_forced_colours_still_show_bars_and_the_chosen_class(browser: Browser, server: Server) -> None:
    with open_page(browser, server.url, forced_colors="active") as page:
        bar, card = page.evaluate(
            """[getComputedStyle(document.querySelector('.bar span')).backgroundColor,
                getComputedStyle(document.querySelector('.answer')).backgroundColor]"""
        )
        assert bar != card
        outlines = page.locator(".choice").evaluate_all("each => each.map(one => getComputedStyle(one).outlineStyle)")
        assert outlines[0] == "solid" and "solid" not in outlines[1:]


def test_on_a_phone_the_camera_is_a_button_and_picture_and_list_are_seen_together(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    with open_page(browser, server.url, **PHONE) as page:
        expect(page.locator(".camera")).to_be_visible()
        expect(page.locator(".camera input")).to_have_attribute("capture", "environment")
        expect(page.get_by_text("Drop a photo here")).to_be_hidden()
        with answered(page):
            page.locator(".examples button").nth(1).tap()
        page.wait_for_function("scrollY > 0")
        page.screenshot(path=tmp_path / "answer.png")
        for selector in (".layers", ".choice >> nth=0", ".choice >> nth=4"):
            expect(page.locator(selector)).to_be_in_viewport(ratio=1)


FRAME = """<!doctype html><meta name="viewport" content="width=device-width"><body style="margin:0">
<iframe src="{url}" scrolling="no" style="width:100%; height:500px; border:0"></iframe>
<script>addEventListener('message', ({{ data }}) => {{
    if (data.height) document.querySelector('iframe').style.height = data.height + 'px';
}});</script>"""
# What iframe-resizer gives a page in the hub's frame; Gradio's page tells it its height.
RESIZER = """if (parent !== window) window.parentIFrame = {
    size: (height) => parent.postMessage({ height }, '*'), autoResize: () => {}, scrollTo: () => {},
}"""


def test_in_the_frame_of_another_host_the_whole_page_stays_within_reach(browser: Browser, server: Server) -> None:
    html = FRAME.format(url=server.url).encode()
    context = browser.new_context(**PHONE)
    context.add_init_script(RESIZER)
    with answering(lambda _: Answer(200, html, {"Content-Type": "text/html"})) as hub:
        page = context.new_page()
        page.goto(hub.url.replace("127.0.0.1", "localhost"))
        frame = page.frames[1]
        for number in (1, 2, 3):
            expect(frame.locator("#shown .choice")).to_have_count(5)
            frame.evaluate("document.querySelector('#shown .answer').classList.add('from-before')")
            frame.locator(".examples button").nth(number).tap()
            expect(frame.locator("#shown .answer:not(.from-before) .choice")).to_have_count(5)
            # The frame is as high as the page, so nothing is scrolled inside of it.
            frame.wait_for_function("innerHeight >= document.querySelector('.about').getBoundingClientRect().bottom")
            assert frame.evaluate("[scrollY, document.scrollingElement.scrollTop]") == [0, 0]
    context.close()
