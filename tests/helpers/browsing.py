"""Helpers of the tests in a real browser: a chromium, and what visitors do in the app's page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium in the path")
KINDS = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "txt": "text/plain"}
expect.set_options(timeout=30_000)  # ms; another process may load all cores
# What chromium writes on its console when a connection that a test cut, or a server's refusal, ends a request.
EXPECTED_IN_TROUBLE = ("net::ERR_", "503 (Service Unavailable)", "404 (Not Found)", "413 (", "400 (", "500 (")


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@contextmanager
def open_page(browser: Browser, url: str, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """Open the app; at the end, it must have logged no error and sent no request to another host.

    Args:
        expected: parts of errors on the console that a test provokes.
        options: of the browser's context; default: 1,280 x 860 pixels.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else faults.append(asked.url)
    )
    visit(page, url)
    yield page
    context.close()
    assert [fault for fault in faults if not any(part in fault for part in expected)] == []


def visit(page: Page, url: str) -> None:
    """Open the app, and wait until it shows its first answer."""
    page.goto(url)
    expect(page.locator("#shown .choice")).not_to_have_count(0)
    expect(page.locator(".map[aria-label]")).to_have_count(1)


def as_file(content: bytes, name: str = "picture.png") -> Any:
    """Return a file as `set_input_files` takes it."""
    return {"name": name, "mimeType": KINDS[name.rpartition(".")[2]], "buffer": content}


def send(page: Page, content: bytes, name: str = "picture.png") -> None:
    """Choose a file."""
    page.locator(".drop .file").set_input_files(as_file(content, name))


def send_and_wait(page: Page, content: bytes, name: str = "picture.png") -> None:
    """Choose a file, and wait for its answer."""
    with answered(page):
        send(page, content, name)


@contextmanager
def answered(page: Page) -> Iterator[None]:
    """Wait at the end of the block until the page shows an answer that is not the one from before."""
    page.evaluate("document.querySelector('#shown .answer').classList.add('from-before')")
    yield
    expect(page.locator("#shown .answer:not(.from-before) .choice")).not_to_have_count(0)


def map_pixels(page: Page) -> list[int]:
    """Return the alpha of the drawn map, row by row."""
    return page.locator(".map").evaluate(
        """canvas => {
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return Array.from({ length: data.length / 4 }, (_, pixel) => data[4 * pixel + 3]);
        }"""
    )
