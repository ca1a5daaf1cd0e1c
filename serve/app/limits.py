"""The requests that the app's server answers: those of its own page and, with --api, POST /predict.

Gradio's server also serves files by path, fetches `/gradio_api/file=http://...` for any visitor, converts videos and
lists its own functions. The page needs none of this, so `serve/app/server.py` puts the filter below in front of it.
The list was made from the sources of Gradio 6.31: read them again before another version is used.
"""

import re
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve.app.preview import ICON_PATH, IMAGE_PATH, Preview, find_address, rewrite_head

MAX_UPLOAD = 20 * 1024 * 1024  # bytes of a file
API = "/gradio_api"
MAX_BODY = {f"{API}/upload": MAX_UPLOAD + 16 * 1024}  # bytes; the form around a file is small
MAX_OTHER_BODY = 64 * 1024  # bytes
PREDICT = "/predict"  # serve/app/api.py, if it is turned on

READ = (
    # The page, and the files that its HTML and its scripts name.
    r"/",
    r"/theme\.css",
    r"/(assets|static)/[\w./@-]+",
    # The icon of the tab, the picture of link previews, and the rules for crawlers.
    re.escape(ICON_PATH),
    re.escape(IMAGE_PATH),
    r"/robots\.txt",
    # After a lost connection both Gradio's client and the page's own script ask this until a server answers.
    # The answer also tells them whether the server was restarted.
    rf"{API}/app_id",
    # After a restart: the number of the page's function, and how to reach it.
    r"/config",
    # Gradio's server requests this once when it starts, and exits if the request fails.
    rf"{API}/startup-events",
    # A stream that Gradio's client holds open while the page is open, if the app has something to clean up.
    rf"{API}/heartbeat/\w+",
    # The stream of an answer: the place in the queue, the start, the answer.
    rf"{API}/queue/data",
)
WRITE = (
    rf"{API}/upload",
    rf"{API}/queue/join",
)
# Gradio's client sends these when it cancels an event. Passed on, a cancelled event would leave the queue while its
# thread computes, and the next would start at the same time. A visitor who closes the stream of an answer leaves the
# queue, so these get Gradio's usual answer, and nothing happens.
ANSWERED_HERE = re.compile(rf"{API}/(cancel|reset)/?")
# Not in the list, because the client asks them only of other apps: login_check and user (a password), info (a page
# without its own description of the functions), dev/reload, run-history, component_server, queue/status.

READ_PATTERN, WRITE_PATTERN = (re.compile(f"(?:{'|'.join(each)})/?") for each in (READ, WRITE))
HEADERS = (
    # The page loads nothing from other hosts. Gradio's own scripts are inline and build functions from text, so both
    # 'unsafe-inline' and 'unsafe-eval' are necessary.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class RequestFilter:
    """ASGI middleware that passes on the page's requests, limits their length, and adds security headers."""

    def __init__(self, app: Any, preview: Preview | None = None, predict: Any = None) -> None:
        """Put the filter in front of an ASGI app.

        Args:
            preview: the page's title, icon and link preview; None leaves Gradio's.
            predict: the ASGI app that answers /predict; None: 404.
        """
        self.app, self.preview, self.predict = app, preview, predict

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 404 if the page does not make such requests, 413 if it is too long."""
        # Close websockets, which the page does not use; let the server's own start and stop through.
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else send({"type": "websocket.close"}))
            return

        # Answer what does not go to Gradio.
        path, method = _own_path(scope), scope["method"]
        send = _add_headers(send)
        if path == PREDICT and self.predict is not None:
            await self.predict(scope, receive, send)
            return
        if response := self._answer_here(path, method):
            await response(scope, receive, send)
            return

        # Refuse everything except the paths that the page uses.
        wanted = {"GET": READ_PATTERN, "HEAD": READ_PATTERN, "POST": WRITE_PATTERN}.get(method)
        if wanted is None or not wanted.fullmatch(path) or ".." in path:
            await PlainTextResponse("Not found.", 404)(scope, receive, send)
            return

        # Refuse a body whose announced length is too large; `limit_body` stops one without an announced length.
        most = MAX_BODY.get(path.rstrip("/"), MAX_OTHER_BODY)
        if announced_length(scope) > most:
            await PlainTextResponse(f"A file may have {MAX_UPLOAD >> 20} MB at most.", 413)(scope, receive, send)
            return
        if path == "/" and self.preview is not None:
            send = _rewrite_page(send, self.preview, find_address(scope))
        await self.app(scope, limit_body(receive, most), send)

    def _answer_here(self, path: str, method: str) -> Response | None:
        """Return the response to a request that Gradio does not get; None: it may."""
        if method == "POST" and ANSWERED_HERE.fullmatch(path):
            return JSONResponse({"success": True})
        if method in ("GET", "HEAD") and self.preview is not None:
            an_hour = {"cache-control": "max-age=3600"}
            if path == ICON_PATH:
                return Response(self.preview.icon, media_type="image/png", headers=an_hour)
            if path == IMAGE_PATH and self.preview.image is not None:
                return Response(self.preview.image, media_type="image/jpeg", headers=an_hour)
        return None


def _own_path(scope: Any) -> str:
    """Return the request's path without the prefix under which a proxy serves the app."""
    return scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def announced_length(scope: Any) -> int:
    """Return the Content-Length in bytes; 0 if it is missing or not a number."""
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def limit_body(receive: Any, most: int) -> Any:
    """Return a `receive` that reports a lost connection once the body is longer than `most` bytes."""
    received = 0

    async def receive_limited() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > most else message

    return receive_limited


def _add_headers(send: Any) -> Any:
    """Return a `send` that adds `HEADERS` to the response, and tells nginx not to hold back a stream of events."""

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            found = message.get("headers", ())
            is_stream = any(name.lower() == b"content-type" and b"event-stream" in value for name, value in found)
            extra = ((b"x-accel-buffering", b"no"),) if is_stream else ()
            message = {**message, "headers": [*found, *HEADERS, *extra]}
        await send(message)

    return send_with_headers


def _rewrite_page(send: Any, preview: Preview, address: str | None) -> Any:
    """Return a `send` that puts the model's title and link preview into a page of HTML; others pass unchanged."""
    held: dict[str, Any] | None = None  # the start of the response, until the whole page is here
    content = b""

    async def send_rewritten(message: Any) -> None:
        nonlocal held, content
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            if message["status"] == 200 and any(
                name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers
            ):
                held = message
                return
        elif held is not None and message["type"] == "http.response.body":
            content += message.get("body", b"")
            if message.get("more_body"):
                return
            page = rewrite_head(content.decode(errors="replace"), preview, address).encode()
            others = [each for each in held.get("headers", ()) if each[0].lower() != b"content-length"]
            # An answer to HEAD has no body, and then its length is left out.
            length = [(b"content-length", str(len(page)).encode())] if page else []
            await send({**held, "headers": [*others, *length]})
            held, message = None, {**message, "body": page}
        await send(message)

    return send_rewritten
