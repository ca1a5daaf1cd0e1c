"""The app in a real browser, as people use it: with a mouse, from the keyboard alone, with files that people have."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.app_visitors import Server, encode, make_bomb, serving
from helpers.browsing import answered, map_pixels, needs_chromium, open_page, running_browser, send, send_and_wait
from helpers.served import Exported
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serve.app.page import UNLIKELY
from serve.image_sources import open_images

pytestmark = needs_chromium
ORIENTATION = 0x0112  # of EXIF


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with open_page(browser, server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def scan(exported: Exported) -> bytes:
    """A digit."""
    source = open_images(exported.data / "validation", 10, None)
    return next(each.content for each in source.read({3}))


def read_shares(page: Page) -> list[float]:
    return [float(each.rstrip("%").lstrip("<> ")) for each in page.locator(".choice .share").all_inner_texts()]


def test_the_first_view_is_a_plain_sentence_and_an_answer(page: Page) -> None:
    expect(page.locator("#head")).to_contain_text("Recognizes 10 things. Right ")
    expect(page.locator(".said")).to_contain_text("Most likely: ")
    expect(page.locator("[data-example='0']")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".about dl")).to_be_hidden()
    page.locator(".about summary").click()
    expect(page.locator(".about dl")).to_contain_text("test_resnet")


def test_a_photo_gets_five_classes_with_bars_and_a_map_for_each(page: Page, scan: bytes) -> None:
    send_and_wait(page, scan)
    expect(page.locator(".choice")).to_have_count(5)
    shares = read_shares(page)
    assert shares == sorted(shares, reverse=True)
    widths = [(each.bounding_box() or {})["width"] for each in page.locator(".bar > span").all()]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    expect(page.locator(".latency")).to_contain_text("Answered in")
    first = map_pixels(page)
    page.locator(".choice").nth(1).click()
    second = map_pixels(page)
    assert first != second
    page.locator(".choice").nth(0).click()
    assert map_pixels(page) == first


def test_the_map_is_the_numbers_of_the_answer_enlarged_smoothly(page: Page, scan: bytes) -> None:
    send_and_wait(page, scan)
    choice = page.locator(".choice").first
    found = np.array(map_pixels(page)).reshape(192, 192)
    height, width = map(int, (choice.get_attribute("data-size") or "").split("x"))
    values = choice.evaluate("each => [...atob(each.dataset.map)].map(byte => byte.charCodeAt(0))")
    strength = float(choice.get_attribute("data-strength") or 0)
    # Pillow leaves samples outside of the border out, and the page repeats the border: repeat it here before enlarging.
    padded = np.pad((np.array(values) / 255).reshape(height, width).astype(np.float32), 2, mode="edge")
    scale = 192 // height
    large = Image.fromarray(padded).resize((scale * (width + 4), scale * (height + 4)), Image.Resampling.BICUBIC)
    wanted = 255 * strength * np.asarray(large).clip(0, 1)[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    assert np.abs(found - wanted).max() <= 1.5


def test_an_unlikely_class_has_a_faint_map_and_the_page_says_so(page: Page, scan: bytes) -> None:
    send_and_wait(page, scan)
    choices = page.locator(".choice")
    strengths = [float(each.get_attribute("data-strength") or 0) for each in choices.all()]
    shares = [float(each.get_attribute("data-share") or 0) for each in choices.all()]
    assert strengths == sorted(strengths, reverse=True)
    choices.nth(0).click()
    for number, share in enumerate(shares):
        if number:
            page.keyboard.press("ArrowDown")
        expect(page.get_by_role("radio").nth(number)).to_be_checked()
        words = page.locator(".meaning").inner_text()
        assert ("faint" in words or "nothing is coloured" in words) == (share < UNLIKELY), words


def test_the_slider_acts_at_once(page: Page, scan: bytes, tmp_path: Path) -> None:
    send_and_wait(page, scan)
    layers, slider = page.locator(".layers"), page.get_by_label("strength of the map")
    page.add_style_tag(content="* { transition: none !important }")
    shots = {}
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for value in ("0", "60", "100"):
        slider.fill(value)
        expect(page.locator(".percent")).to_have_text(f"{value}%")
        opacity = page.locator(".map").evaluate("each => getComputedStyle(each).opacity")
        assert float(opacity) == int(value) / 100
        shots[value] = layers.screenshot(path=tmp_path / f"{value}.png")
    assert len(set(shots.values())) == 3
    assert asked == []


def test_holding_the_button_or_the_picture_shows_the_photo(page: Page) -> None:
    layers = page.locator(".layers")
    for place in (page.locator(".compare"), layers):
        place.hover()
        page.mouse.down()
        expect(layers).to_have_class("layers comparing")
        page.mouse.up()
        expect(layers).to_have_class("layers")
    page.locator(".compare").press("Enter")  # a key cannot be held: it switches
    expect(layers).to_have_class("layers comparing")
    page.locator(".compare").press("Enter")
    expect(layers).to_have_class("layers")


def test_the_picture_is_saved_with_its_classes(page: Page, scan: bytes, tmp_path: Path) -> None:
    send_and_wait(page, scan)
    with page.expect_download() as download:
        page.locator(".save").click()
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.size == (640, 640 + 6 * 34)
        assert np.asarray(saved)[640:].min() < 60, "the classes are written below"


def test_reload_and_back_keep_the_answer(page: Page, server: Server, scan: bytes) -> None:
    send_and_wait(page, scan)
    before = page.locator(".choices").inner_text()
    page.reload()
    expect(page.locator(".choices")).to_have_text(before.replace("\n", ""), use_inner_text=False)
    page.goto(f"{server.url}/robots.txt")
    page.go_back()
    expect(page.locator(".latency")).to_be_visible()
    assert page.locator(".choices").inner_text() == before


def test_everything_works_from_the_keyboard_alone(page: Page, scan: bytes, tmp_path: Path) -> None:
    (tmp_path / "scan.jpg").write_bytes(scan)
    page.on("filechooser", lambda _: None)  # from now on: Playwright does not wait until it listens to the one below
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "file"
    assert page.locator(".drop").evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    with answered(page):
        with page.expect_file_chooser() as opened:
            page.keyboard.press("Enter")
        opened.value.set_files(tmp_path / "scan.jpg")
    first = map_pixels(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator(".percent")).to_have_text("76%")
    page.keyboard.press("Tab")
    assert page.locator(".choice").nth(0).evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio").nth(1)).to_be_checked()
    assert map_pixels(page) != first


def test_an_example_is_a_button(page: Page) -> None:
    with answered(page):
        page.get_by_role("button", name="seven").press("Enter")
    expect(page.get_by_role("button", name="seven")).to_have_attribute("aria-pressed", "true")


DROP = """([files, kind, holder]) => {
    const held = new DataTransfer();
    for (const [name, bytes] of files) held.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/jpeg' }));
    if (!files.length) held.setData('text/uri-list', 'https://example.org/a.jpg');
    const event = new Event(kind, { bubbles: true, cancelable: true });
    Object.defineProperty(event, holder, { value: held });
    document.querySelector('.drop').dispatchEvent(event);
}"""


def test_a_photo_can_be_dropped_and_pasted(page: Page, scan: bytes) -> None:
    for kind, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        with answered(page):
            page.evaluate(DROP, [[["scan.jpg", list(scan)]], kind, holder])


def test_a_dropped_link_is_answered_in_a_sentence(page: Page) -> None:
    page.evaluate(DROP, [[], "drop", "dataTransfer"])
    expect(page.get_by_role("alert").filter(has_text="That was text or a link, not a photo")).to_be_visible()


def test_of_several_photos_all_are_answered_and_saved_as_a_table(page: Page, scan: bytes, tmp_path: Path) -> None:
    damaged = encode(Image.effect_noise((99, 99), 80), "JPEG")[:300]
    files = [["=a.jpg", list(scan)], ["b.jpg", list(damaged)], ["c.jpg", list(scan)]]
    page.evaluate(DROP, [files, "drop", "dataTransfer"])
    expect(page.locator(".done")).to_have_text("3 of 3 photos")
    expect(page.locator(".tile")).to_have_count(3)
    expect(page.locator(".tile").nth(1)).to_have_text("No answerb.jpg")
    page.locator(".tile").nth(0).click()
    expect(page.locator(".choice")).to_have_count(5)
    with page.expect_download() as download:
        page.locator(".table").click()
    download.value.save_as(tmp_path / "table.csv")
    head, first, second, third = (tmp_path / "table.csv").read_text("utf-8-sig").splitlines()
    assert head.startswith('"path","class_1","probability_1"')
    assert first.startswith('"\'=a.jpg"') and "damaged" in second
    assert third.split(",")[1:] == first.split(",")[1:]


def test_a_stopped_sheet_keeps_what_was_answered(page: Page, scan: bytes) -> None:
    page.route("**/upload", lambda route: None if page.locator(".tile").count() else route.continue_())
    page.evaluate(DROP, [[["a.jpg", list(scan)], ["b.jpg", list(scan)]], "drop", "dataTransfer"])
    expect(page.locator(".done")).to_have_text("Photo 1 of 2")
    page.locator(".stop").click()
    expect(page.locator(".done")).to_have_text("Stopped: 0 of 2 photos")
    expect(page.locator(".tile").first).to_contain_text("Not processed")
    page.unroute("**/upload")
    send_and_wait(page, scan)
    expect(page.locator(".tile")).to_have_count(2)


def test_files_that_are_not_photos_are_left_out_with_the_reason(page: Page, scan: bytes) -> None:
    script = DROP.replace("type: 'image/jpeg'", "type: name.endsWith('jpg') ? 'image/jpeg' : 'application/pdf'")
    page.evaluate(script, [[["a.pdf", [1]], ["b.pdf", [1]]], "drop", "dataTransfer"])
    reason = page.get_by_role("alert").filter(has_text="only photos are answered: 2 of 2 files")
    expect(reason).to_be_visible()
    expect(page.locator(".sheet")).to_be_hidden()
    with answered(page):
        page.evaluate(script, [[["a.pdf", [1]], ["b.jpg", list(scan)]], "drop", "dataTransfer"])


def test_names_of_examples_are_words_and_not_templates(browser: Browser, exported: Exported, tmp_path: Path) -> None:
    names = ["${window.hacked=1}", "{{value}}", "{{#if}}", "tick`${2}`", "back\\slash"]
    for name in names:
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
    with (
        serving(exported.artifact, tmp_path / "log", "--examples", tmp_path) as server,
        open_page(browser, server.url) as page,
    ):
        assert sorted(page.locator(".examples span").all_inner_texts()) == sorted(names)
        assert page.evaluate("window.hacked") is None


def make_gif() -> bytes:
    frames = [Image.new("L", (32, 32), grey) for grey in (200, 100)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


REFUSED = {
    "text.txt": (b"no picture at all\n" * 9, "This file is not a picture that can be read here"),
    "text.png": (b"no picture at all\n" * 9, "This file is not a picture that can be read here"),
    "empty.png": (b"", "This file is empty (0 bytes)"),
    "bomb.png": (make_bomb(30_000), "the limit is 89"),
    "cut.jpg": (encode(Image.effect_noise((99, 99), 80), "JPEG")[:2000], "This picture is damaged"),
}


def test_a_file_that_is_not_a_picture_is_answered_in_a_sentence_and_the_page_continues(
    page: Page, server: Server, scan: bytes
) -> None:
    send_and_wait(page, scan)
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
    page.locator(".drop .file").set_input_files(tmp_path / "large.png")
    refused = page.get_by_role("alert").filter(has_text="large.png has 21 MB and this browser cannot make it smaller")
    expect(refused).to_be_visible()
    assert [url for url in asked if url.startswith("http")] == []


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
    send_and_wait(page, encode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"), "print.jpg")
    red, green, blue = view_pixel(page, 0.5, 0.5)
    assert red > 220 and max(green, blue) < 40


def test_a_rotated_phone_photograph_stands_upright(page: Page) -> None:
    lying = Image.new("RGB", (300, 300), "blue")
    lying.paste("red", (0, 0, 150, 300))  # left half; upright it is the upper one
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    send_and_wait(page, encode(lying, "JPEG", exif=exif), "phone.jpg")
    upper, lower = view_pixel(page, 0.5, 0.2), view_pixel(page, 0.5, 0.8)
    assert upper[0] - upper[2] > 150
    assert lower[2] - lower[0] > 150
