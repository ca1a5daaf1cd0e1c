"""The app's page when something goes wrong between it and the server, and while a photo is on its way."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.app_visitors import Server, Visitor, encode, serving
from helpers.browsing import (
    EXPECTED_IN_TROUBLE,
    answered,
    as_file,
    needs_chromium,
    open_page,
    running_browser,
    send,
    send_and_wait,
)
from helpers.commands import CHECKOUT, free_port
from helpers.line import Line, connecting
from helpers.served import Exported
from PIL import Image
from playwright.sync_api import Browser, Page, expect

pytestmark = needs_chromium
SLOW = 1.5e6 / 8  # bytes per second
# How often the page tries to reach the server while it is away, every two seconds: `make soak` waits for a minute.
NUM_TRIES = int(os.environ.get("PENSTOCK_SOAK_TRIES", "2"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    with connecting(server.url) as connected:
        yield connected


@pytest.fixture
def page(browser: Browser, line: Line) -> Iterator[Page]:
    with open_page(browser, line.url, EXPECTED_IN_TROUBLE) as opened:
        yield opened


@pytest.fixture(scope="module")
def red() -> bytes:
    return encode(Image.new("RGB", (64, 64), "red"))


@pytest.fixture(scope="module")
def photo() -> bytes:
    """A JPEG of about 1 MB with a short side below 1,024 pixels, so that the browser sends it as it is."""
    content = encode(Image.effect_noise((900, 1000), 90).convert("RGB"), "JPEG", quality=93)
    assert 600_000 < len(content) < 1_500_000
    return content


def wait_for_requests(page: Page, line: Line, part: str, count: int) -> None:
    while line.count(part) < count:
        page.wait_for_timeout(20)


def slow_down(page: Page) -> None:
    """Let the page's connection be 1.5 Mbit/s with 50 ms of latency, as chromium simulates it."""
    speed = {"offline": False, "latency": 50, "downloadThroughput": SLOW, "uploadThroughput": SLOW}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", speed)


def test_a_connection_that_is_lost_during_an_answer_comes_back_by_itself(page: Page, line: Line, red: bytes) -> None:
    line.hold("/queue/data")
    with answered(page):
        send(page, red)
        wait_for_requests(page, line, "/queue/data", 1)
        line.cut()
        expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
        wait_for_requests(page, line, "refused", line.count("refused") + NUM_TRIES)
        line.release()
        line.repair()
    expect(page.locator(".choice")).to_have_count(5)
    send_and_wait(page, red)


def test_a_choice_while_the_connection_is_lost_is_answered_later(page: Page, line: Line) -> None:
    line.cut()
    with answered(page):
        page.locator("[data-example='1']").click()
        expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
        line.repair()
    expect(page.locator("[data-example='1']")).to_have_attribute("aria-pressed", "true")


def test_cancel_ends_the_waiting_for_a_lost_connection(page: Page, line: Line) -> None:
    before = page.locator(".choices").inner_text()
    line.cut()
    page.locator("[data-example='1']").click()
    expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
    page.locator(".cancel").click()
    assert page.locator(".choices").inner_text() == before
    line.repair()
    with answered(page):
        page.locator("[data-example='1']").click()


def test_a_silent_connection_is_given_up_after_a_sleep(browser: Browser, line: Line, red: bytes) -> None:
    # A computer that sleeps keeps a connection that is dead. The page's clock then jumps.
    with open_page(browser, line.url, EXPECTED_IN_TROUBLE) as page:
        page.clock.install()
        line.hold("/queue/data")
        with answered(page):
            send(page, red)
            wait_for_requests(page, line, "/queue/data", 1)
            line.silence()
            page.clock.fast_forward("10:00")
            expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
            line.repair()
            line.release()
            page.clock.fast_forward("00:05")


def test_a_restarted_server_is_found_again(browser: Browser, exported: Exported, tmp_path: Path, red: bytes) -> None:
    port = free_port()
    with (
        serving(exported.artifact, tmp_path / "first", port=port) as first,
        connecting(first.url) as line,
        open_page(browser, line.url, EXPECTED_IN_TROUBLE) as page,
    ):
        line.hold("/queue/data")
        send(page, red)
        wait_for_requests(page, line, "/queue/data", 1)
        first.stop(signal.SIGKILL)
        line.cut()
        expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
        line.release()
        line.repair()
        with answered(page), serving(exported.artifact, tmp_path / "second", port=port):
            expect(page.locator("#shown .answer .choice")).not_to_have_count(0)
            send_and_wait(page, red)


def test_the_last_choice_wins_and_the_upload_before_it_is_aborted(page: Page, line: Line, photo: bytes) -> None:
    slow_down(page)
    aborted: list[str] = []
    page.on("requestfailed", lambda request: aborted.append(request.url))
    send(page, photo, "large.jpg")
    expect(page.locator(".state")).to_contain_text("Sending…")
    with answered(page):
        page.locator("[data-example='2']").click()
    assert [url for url in aborted if "upload" in url]
    answer = page.locator(".choices").inner_text()
    send_and_wait(page, encode(Image.new("RGB", (64, 64), "red")))
    with answered(page):
        page.locator("[data-example='2']").click()
    assert page.locator(".choices").inner_text() == answer


def test_a_slow_upload_shows_the_photo_and_the_share_that_is_sent(page: Page, line: Line, photo: bytes) -> None:
    slow_down(page)
    with answered(page):
        send(page, photo, "large.jpg")
        expect(page.locator(".state")).to_have_text(re.compile(r"Sending… [2-9]\d%"))
        assert page.locator("#shown .view").evaluate("view => view.naturalWidth") == 900
        expect(page.locator("#shown .place")).to_have_attribute("aria-busy", "true")
        expect(page.locator("#shown progress")).to_be_visible()
        expect(page.locator("#shown .cancel")).to_be_visible()


def test_cancel_aborts_an_upload_and_shows_the_answer_from_before(page: Page, line: Line, photo: bytes) -> None:
    before = page.locator(".choices").inner_text()
    slow_down(page)
    send(page, photo, "large.jpg")
    expect(page.locator(".state")).to_contain_text("Sending…")
    page.locator(".cancel").click()
    assert page.locator(".choices").inner_text() == before
    assert page.locator("#shown .place").get_attribute("aria-busy") is None
    assert line.count("/queue/join") == 0


KEEP_SENT = """() => {
    const append = FormData.prototype.append;
    FormData.prototype.append = function (name, file, ...rest) {
        window.sent = file;
        return append.call(this, name, file, ...rest);
    };
}"""


def test_a_large_photo_is_made_smaller_before_it_is_sent(page: Page, line: Line) -> None:
    soft = Image.effect_noise((600, 400), 60).resize((3000, 2000), Image.Resampling.BICUBIC)
    content = encode(soft.convert("RGB"), "JPEG", quality=98)
    assert len(content) > 1_500_000
    page.evaluate(KEEP_SENT)
    sent_bytes = line.sent_bytes
    send_and_wait(page, content, "large.jpg")
    width, height, num_bytes = page.evaluate(
        "async () => { const { width, height } = await createImageBitmap(sent); return [width, height, sent.size] }"
    )
    assert (width, height) == (1536, 1024)
    assert num_bytes < line.sent_bytes - sent_bytes < len(content) / 2


def test_a_photo_that_ends_early_is_sent_as_it_is_so_that_the_server_says_so(page: Page) -> None:
    soft = Image.effect_noise((600, 400), 60).resize((3000, 2000), Image.Resampling.BICUBIC)
    content = encode(soft.convert("RGB"), "JPEG", quality=98)
    send_and_wait(page, content[: len(content) * 9 // 10], "cut.jpg")
    expect(page.locator(".note")).to_have_text("The file ends early: its lower part may be missing.")


def test_a_file_that_was_deleted_after_it_was_chosen_is_no_lost_connection(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    path.write_bytes(encode(Image.new("RGB", (64, 64), "red")))
    page.evaluate("document.querySelector('.drop .file').addEventListener('change', event => event.stopPropagation())")
    page.locator(".drop .file").set_input_files(path)
    path.unlink()
    page.evaluate(
        """() => {
            const held = new DataTransfer();
            held.items.add(document.querySelector('.drop .file').files[0]);
            const event = new Event('drop', { bubbles: true, cancelable: true });
            Object.defineProperty(event, 'dataTransfer', { value: held });
            document.querySelector('.drop').dispatchEvent(event);
        }"""
    )
    expect(page.get_by_role("alert").filter(has_text="gone.png cannot be read")).to_be_visible()


@pytest.mark.parametrize("path", ["**/upload", "**/queue/join"])
def test_a_page_of_the_network_in_between_is_a_lost_connection(path: str, page: Page, red: bytes) -> None:
    page.route(path, lambda route: route.fulfill(status=200, body="<html>Log in", content_type="text/html"))
    send(page, red)
    expect(page.locator(".state")).to_have_text("The connection was lost. Trying again…")
    with answered(page):
        page.unroute(path)


def test_the_server_s_own_trouble_is_not_called_a_lost_connection(page: Page, red: bytes) -> None:
    page.route("**/upload", lambda route: route.fulfill(status=500, body="no"))
    send(page, red)
    expect(page.locator(".state")).to_have_text("The server has a problem. Trying again…")
    with answered(page):
        page.unroute("**/upload")


@pytest.mark.parametrize(("status", "words"), [(413, "does not accept a file of this size"), (400, "(error 400)")])
def test_a_proxy_that_refuses_a_file_is_quoted_in_a_sentence(status: int, words: str, page: Page, red: bytes) -> None:
    page.route("**/upload", lambda route: route.fulfill(status=status, body="no"))
    send(page, red)
    expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
    expect(page.locator(".choice")).to_have_count(5)  # the answer from before


def test_the_places_in_the_queue_are_said_calmly(
    browser: Browser, exported: Exported, tmp_path: Path, red: bytes
) -> None:
    folder = tmp_path / "gated"
    folder.mkdir()
    (folder / "red.png").write_bytes(red)
    script = CHECKOUT / "tests" / "helpers" / "app_gated.py"
    with serving(exported.artifact, tmp_path / "log", "--examples", folder, script=script) as server:
        visitors = [Visitor(server.url) for _ in range(2)]
        with open_page(browser, server.url, EXPECTED_IN_TROUBLE) as page:
            (folder / "closed").touch()
            for visitor in visitors:
                visitor.join({"example": 0}).raise_for_status()
            with answered(page):
                page.locator(".drop .file").set_input_files(as_file(red))
                expect(page.locator(".state")).to_have_text("2 photos are ahead of yours…")
                assert not [each for each in page.locator(".progress-text, .eta-bar").all() if each.is_visible()]
                (folder / "closed").unlink()
