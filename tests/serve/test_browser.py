"""The app in a real browser, as people use it: with a mouse, from the keyboard alone, on a phone, in the dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.app_visitors import Server, encode, make_bomb
from helpers.served import Exported
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve.image_sources import open_images

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
ORIENTATION = 0x0112  # of EXIF


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The app, opened; it must log no error, and must send no request to another host."""
    opened = browser.new_page(viewport={"width": 1280, "height": 860})
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda asked: None if is_own(asked.url, server) else faults.append(asked.url))
    visit(opened, server)
    yield opened
    opened.close()
    assert faults == []


def is_own(url: str, server: Server) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def visit(page: Page, server: Server) -> None:
    page.goto(server.url, wait_until="networkidle")
    expect(page.locator(".drop")).to_be_visible()


@pytest.fixture(scope="module")
def scan(exported: Exported) -> bytes:
    """A digit."""
    source = open_images(exported.data / "validation", 10, None)
    return next(each.content for each in source.read({3}))


def send(page: Page, content: bytes, name: str = "picture.png") -> None:
    kinds: Any = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "txt": "text/plain"}
    file: Any = {"name": name, "mimeType": kinds[name.rpartition(".")[2]], "buffer": content}
    page.locator(".file").set_input_files(file)


def chosen_map(page: Page) -> str:
    """The one map that is seen."""
    seen = [each for each in page.locator(".map").all() if float(opacity_of(each)) > 0]
    assert len(seen) == 1
    return seen[0].get_attribute("src") or ""


def opacity_of(map: Any) -> str:
    return map.evaluate("each => { each.style.transition = 'none'; return getComputedStyle(each).opacity }")


def test_a_picture_gets_five_classes_with_bars_and_a_map_for_each(page: Page, scan: bytes) -> None:
    send(page, scan)
    expect(page.locator(".choice")).to_have_count(5)
    shares = [float(each.rstrip("%").lstrip("< ")) for each in page.locator(".choice .share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    widths = [(each.bounding_box() or {})["width"] for each in page.locator(".bar > span").all()]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    expect(page.locator(".said")).to_contain_text("Most likely")
    expect(page.locator(".latency")).to_contain_text("Answered in")
    first = chosen_map(page)
    page.locator(".choice").nth(1).click()
    second = chosen_map(page)
    assert first != second
    page.locator(".choice").nth(0).click()
    assert chosen_map(page) == first


def test_the_map_is_over_the_picture_and_the_slider_acts_at_once(page: Page, scan: bytes, tmp_path: Path) -> None:
    send(page, scan)
    layers, slider = page.locator(".layers"), page.get_by_label("opacity of the map")
    expect(slider).to_be_visible()
    shots = {}
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for value in ("0", "60", "100"):
        slider.fill(value)
        expect(page.locator(".percent")).to_have_text(f"{value}%")
        assert float(opacity_of(page.locator(".map-0"))) == int(value) / 100
        shots[value] = layers.screenshot(path=tmp_path / f"{value}.png")
    assert len(set(shots.values())) == 3
    assert asked == []


def test_everything_works_from_the_keyboard_alone(page: Page, scan: bytes, tmp_path: Path) -> None:
    (tmp_path / "scan.jpg").write_bytes(scan)
    page.on("filechooser", lambda _: None)  # from now on: Playwright does not wait until it listens to the one below
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "file"
    assert page.locator(".drop").evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    with page.expect_file_chooser() as opened:
        page.keyboard.press("Enter")
    opened.value.set_files(tmp_path / "scan.jpg")
    expect(page.locator(".choice")).to_have_count(5)
    first = chosen_map(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator(".percent")).to_have_text("61%")
    page.keyboard.press("Tab")
    assert page.locator(".choice").nth(0).evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio").nth(1)).to_be_checked()
    assert chosen_map(page) != first


def test_an_example_is_a_button(page: Page) -> None:
    page.get_by_role("button", name="seven").press("Enter")
    expect(page.locator(".choice")).to_have_count(5)


def test_a_picture_can_be_dropped_and_pasted(page: Page, scan: bytes) -> None:
    for kind, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([bytes, kind, holder]) => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(bytes)], 'scan.jpg', { type: 'image/jpeg' }));
                const event = new Event(kind, { bubbles: true, cancelable: true });
                Object.defineProperty(event, holder, { value: held });
                document.querySelector('.drop').dispatchEvent(event);
            }""",
            [list(scan), kind, holder],
        )
        expect(page.locator(".choice")).to_have_count(5)
        page.reload()
        expect(page.locator(".choice")).to_have_count(0)
        expect(page.locator(".drop")).to_be_visible()


def make_gif() -> bytes:
    frames = [Image.new("L", (32, 32), grey) for grey in (200, 100)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


REFUSED = {
    "text.txt": (b"no picture at all\n" * 9, "This file is not a picture that can be read here"),
    "text.png": (b"no picture at all\n" * 9, "This file is not a picture that can be read here"),
    "empty.png": (b"", "This file is empty (0 bytes)"),
    "bomb.png": (make_bomb(30_000), "more than the 89 megapixels"),
    "cut.jpg": (encode(Image.effect_noise((99, 99), 80), "JPEG")[:2000], "This picture is damaged"),
}


def test_a_file_that_is_not_a_picture_is_answered_in_a_sentence_and_the_page_continues(
    page: Page, server: Server, scan: bytes
) -> None:
    send(page, scan)
    expect(page.locator(".choice")).to_have_count(5)
    before = server.peak_mb()
    for name, (content, words) in REFUSED.items():
        send(page, content, name)
        expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
        expect(page.locator(".choice")).to_have_count(0)
        send(page, scan)
        expect(page.locator(".choice")).to_have_count(5)
    assert server.peak_mb() - before < 100


def test_a_file_that_is_too_large_is_not_even_sent(page: Page, tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    (tmp_path / "large.png").write_bytes(bytes(21 * 1024 * 1024))
    page.locator(".file").set_input_files(tmp_path / "large.png")
    expect(page.get_by_role("alert").filter(has_text="large.png has 21 MB, and a file may have 20 MB")).to_be_visible()
    assert asked == []


def test_of_an_animated_gif_the_first_frame_is_shown_and_it_is_said(page: Page) -> None:
    send(page, make_gif(), "moving.gif")
    expect(page.locator(".note")).to_have_text("This picture is animated: what you see is its first frame.")
    expect(page.locator(".choice")).to_have_count(5)


def view_pixel(page: Page, across: float, down: float) -> list[int]:
    """A pixel of the picture in the page, from its place in shares of the sides."""
    return page.locator(".view").evaluate(
        """async (view, [across, down]) => {
            await view.decode();
            const canvas = document.createElement('canvas');
            canvas.width = view.naturalWidth; canvas.height = view.naturalHeight;
            const drawn = canvas.getContext('2d');
            drawn.drawImage(view, 0, 0);
            return [...drawn.getImageData(across * canvas.width, down * canvas.height, 1, 1).data].slice(0, 3);
        }""",
        [across, down],
    )


def test_a_cmyk_photograph_has_its_colours(page: Page) -> None:
    send(page, encode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"), "print.jpg")
    expect(page.locator(".choice")).to_have_count(5)
    red, green, blue = view_pixel(page, 0.5, 0.5)
    assert red > 220 and max(green, blue) < 40


def test_a_rotated_phone_photograph_stands_upright(page: Page) -> None:
    lying = Image.new("RGB", (300, 300), "blue")
    lying.paste("red", (0, 0, 150, 300))  # left half; upright it is the upper one
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    send(page, encode(lying, "JPEG", exif=exif), "phone.jpg")
    expect(page.locator(".choice")).to_have_count(5)
    upper, lower = view_pixel(page, 0.5, 0.2), view_pixel(page, 0.5, 0.8)
    assert upper[0] - upper[2] > 150
    assert lower[2] - lower[0] > 150


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (320, "dark")])
def test_nothing_is_cut_off_at_any_width_by_day_and_by_night(
    width: int, scheme: Any, browser: Browser, server: Server, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit(page, server)
    page.locator(".examples button").first.click()
    expect(page.locator(".choice")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".drop", ".layers", ".slider", ".choice >> nth=4", ".examples button >> nth=3"):
        box = page.locator(selector).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width
    ink, paper = page.evaluate(
        """[getComputedStyle(document.querySelector('.said')).color,
            getComputedStyle(document.querySelector('.answer')).backgroundColor]"""
    )
    bright = [sum(int(part) for part in color[4:-1].split(",")) for color in (ink, paper)]
    assert (bright[0] > bright[1]) == (scheme == "dark") and abs(bright[0] - bright[1]) > 400
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    page.close()
