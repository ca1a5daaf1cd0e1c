"""The page's title and link preview replace Gradio's, and leave everything else of the page as it is."""

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from serve.app.limits import RequestFilter
from serve.app.preview import Preview, draw_icon, find_address, rewrite_head

PREVIEW = Preview('Which "thing" & <where>?', "Five <classes>", draw_icon(), b"a picture")
PAGE = """<!doctype html><html><head>
<meta charset="utf-8" /><title>Gradio</title>
<meta property="og:title" content="Gradio" />
<meta
    name="twitter:image"
    content="https://x.example/header.jpg"
/>
<meta name="viewport" content="width=device-width" />
<script>const tag = '<meta property="og:title" content="data" />';</script>
<link rel="manifest" href="/manifest.json" /><link rel="stylesheet" href="./a.css">
</head><body><title>drawing</title>words</body></html>"""


def test_tags_of_others_go_and_ours_come_with_their_words_escaped() -> None:
    page = rewrite_head(PAGE, PREVIEW, "https://a.example")
    head, _, rest = page.partition("<script>")
    assert "Gradio" not in page
    assert "header.jpg" not in page
    assert "manifest" not in page
    assert "<title>Which &quot;thing&quot; &amp; &lt;where&gt;?</title>" in head
    assert 'content="Five &lt;classes&gt;"' in head
    assert 'content="https://a.example/preview.jpg"' in head
    assert head.index("charset") < head.index("<title>")
    assert '<meta name="viewport" content="width=device-width" />' in head
    assert 'const tag = \'<meta property="og:title" content="data" />\';' in rest
    assert '<link rel="stylesheet" href="./a.css">' in rest
    assert rest.endswith("</head><body><title>drawing</title>words</body></html>")


def test_without_an_address_no_tag_has_one() -> None:
    page = rewrite_head(PAGE, PREVIEW, None)
    assert "og:url" not in page
    assert "og:image" not in page
    assert 'name="twitter:card" content="summary"' in page


@given(page=st.text("<head>/ x\n", max_size=99))
def test_a_page_without_a_head_stays_as_it_is(page: str) -> None:
    if "<head>" not in page:
        assert rewrite_head(page, PREVIEW, None) == page


@given(parts=st.lists(st.sampled_from(["<head>", "</head>", "<script", "<meta name='og:x'>", "<title>", "x", ">"])))
def test_any_page_is_rewritten_without_an_error(parts: list[str]) -> None:
    page = rewrite_head("".join(parts), PREVIEW, None)
    assert (PREVIEW.description.replace("<", "&lt;").replace(">", "&gt;") in page) == ("<head>" in parts)


@pytest.mark.parametrize(
    ("headers", "root_path", "address"),
    [
        ({"host": "a.example:7860"}, "", "http://a.example:7860"),
        (
            {"host": "inner", "x-forwarded-host": "a.example, b", "x-forwarded-proto": "https, http"},
            "",
            "https://a.example",
        ),
        ({"host": "a.example"}, "/demo/", "http://a.example/demo"),
        ({"host": "inner"}, "https://a.example/demo", "https://a.example/demo"),
        ({"host": "[::1]:80"}, "", "http://[::1]:80"),
        ({"host": 'a"><script>'}, "", None),
        ({"host": "a.example", "x-forwarded-proto": "javascript"}, "", None),
        ({}, "", None),
    ],
)
def test_the_address_is_that_of_the_visitor(headers: dict[str, str], root_path: str, address: str | None) -> None:
    pairs: list[Any] = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert find_address({"headers": pairs, "root_path": root_path, "scheme": "http"}) == address


UNCHANGED = "/theme.css"


async def serve_page(scope: Any, _receive: Any, send: Any) -> None:
    """Stand for Gradio: a page in three pieces, and a file that must pass unchanged."""
    if scope["path"].endswith(UNCHANGED):
        await Response(PAGE, media_type="text/css")(scope, _receive, send)
        return
    content = PAGE.encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in (content[:100], content[100:]) if scope["method"] == "GET" else ():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def request(path: str, method: str = "GET", root_path: str = "") -> httpx.Response:
    """The response of the filter in front of that page."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(RequestFilter(serve_page, preview=PREVIEW), root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://a.example") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize("root_path", ["", "/demo"])
def test_the_filter_rewrites_the_page_alone_with_and_without_a_path_of_a_proxy(root_path: str) -> None:
    response = request(f"{root_path}/", root_path=root_path)
    assert response.text == rewrite_head(PAGE, PREVIEW, f"http://a.example{root_path}")
    assert int(response.headers["content-length"]) == len(response.content)
    assert request(f"{root_path}{UNCHANGED}", root_path=root_path).text == PAGE
    assert request(f"{root_path}/preview.jpg", root_path=root_path).content == PREVIEW.image
    assert "content-length" not in request("/", "HEAD").headers
    assert request("/other", root_path=root_path).status_code == 404
