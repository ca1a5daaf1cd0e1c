"""The requests that the app's server answers: those that the page itself makes, and no others.

Gradio's server also serves files by path, fetches `/gradio_api/file=http://...` for any visitor, converts videos and
lists its own functions. The page needs none of this, so `serve/app/server.py` puts the filter below in front of it.
"""

import re
from typing import Any

from starlette.responses import PlainTextResponse

MAX_UPLOAD = 20 * 1024 * 1024  # bytes of a file
API = "/gradio_api"
MAX_BODY = {f"{API}/upload": MAX_UPLOAD + 16 * 1024}  # bytes; the form around a file is small
MAX_OTHER_BODY = 64 * 1024  # bytes
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/[\w./@-]+"
    rf"|{API}/(theme\.css|startup-events|upload_progress|queue/data|queue/status|heartbeat/\w+)/?"
)
WRITE = re.compile(rf"{API}/(upload|queue/join|cancel|reset)/?")
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

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 404 if the page does not make such requests, 413 if it is too long."""
        # Close websockets, which the page does not use; let the server's own start and stop through.
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else send({"type": "websocket.close"}))
            return

        # Refuse everything except the paths that the page uses.
        path = _own_path(scope)
        wanted = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(scope["method"])
        if wanted is None or not wanted.fullmatch(path) or ".." in path:
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
            return

        # Refuse a body whose announced length is too large; `_limit` stops one without an announced length.
        most = MAX_BODY.get(path, MAX_OTHER_BODY)
        if _announced_length(scope) > most:
            await PlainTextResponse(f"A file may have {MAX_UPLOAD >> 20} MB at most.", 413)(scope, receive, send)
            return
        await self.app(scope, _limit(receive, most), _add_headers(send))


def _own_path(scope: Any) -> str:
    """Return the request's path without the prefix under which a proxy serves the app."""
    return scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _announced_length(scope: Any) -> int:
    """Return the Content-Length in bytes; 0 if it is missing or not a number."""
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _limit(receive: Any, most: int) -> Any:
    """Return a `receive` that reports a lost connection once the body is longer than `most` bytes."""
    received = 0

    async def receive_limited() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > most else message

    return receive_limited


def _add_headers(send: Any) -> Any:
    """Return a `send` that adds `HEADERS` to the response."""

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return send_with_headers
