"""What the app's server answers at all: the page's own requests, and nothing else of what Gradio can do.

Gradio's server also hands out files by their path, fetches `/gradio_api/file=http://…` for whoever asks, converts
films and lists its own functions. The page needs none of it, so `serve/app.py` puts this in front.
"""

import re
from typing import Any

from starlette.responses import PlainTextResponse

MAX_UPLOAD = 20 * 1024 * 1024  # bytes of a file
API = "/gradio_api"
MAX_BODY = {f"{API}/upload": MAX_UPLOAD + 16 * 1024}  # what wraps a file is small
MAX_OTHER_BODY = 64 * 1024
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/[\w./@-]+"
    rf"|{API}/(theme\.css|startup-events|upload_progress|queue/data|queue/status|heartbeat/\w+)/?"
)
WRITE = re.compile(rf"{API}/(upload|queue/join|cancel|reset)/?")
HEADERS = (
    # The page fetches nothing from elsewhere; Gradio's own scripts are inline and build functions from text.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on what the page needs; 404 to all else, and 413 to what is too long."""
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else send({"type": "websocket.close"}))
            return
        path = _own_path(scope)
        wanted = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(scope["method"])
        if wanted is None or not wanted.fullmatch(path) or ".." in path:
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
            return
        most = MAX_BODY.get(path, MAX_OTHER_BODY)
        if _announced_length(scope) > most:
            await PlainTextResponse(f"A file may have {MAX_UPLOAD >> 20} MB at most.", 413)(scope, receive, send)
            return
        await self.app(scope, _limit(receive, most), _add_headers(send))


def _own_path(scope: Any) -> str:
    """Without the prefix under which a proxy serves the app."""
    return scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _announced_length(scope: Any) -> int:
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _limit(receive: Any, most: int) -> Any:
    """A body without an announced length is cut off as a lost connection once it is too long."""
    taken = 0

    async def take() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > most else message

    return take


def _add_headers(send: Any) -> Any:
    async def pass_on(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return pass_on
