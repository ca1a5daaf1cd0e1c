"""`POST /predict` for programs: a picture in, its five most likely classes out, as JSON.

It is off unless `--api` is given. It has the page's limits, and takes turns with the page: one picture at a time. The
picture stays in memory; nothing is written to disk. docs/serving.md has the requests and the statuses.
"""

import asyncio
import hmac
import io
import os
import sys
import traceback
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse

from prep.errors import InputError
from serve.app.limits import MAX_UPLOAD, announced_length
from serve.app.uploads import SizeError
from serve.app.worker import Answerer, Classification

TOKEN_VARIABLE, MIN_TOKEN = "PENSTOCK_API_TOKEN", 16  # characters
MAX_BODY = MAX_UPLOAD + 16 * 1024  # bytes; the form around a file is small
MAX_INSIDE = 8  # requests whose picture is in memory: being read, waiting, or answered
READ_SECONDS = 60.0  # for the whole body
RETRY_SECONDS = "5"
FIELD = "file"
DIGITS = 6  # of a probability and of a map's values


class RequestError(Exception):
    """A request that gets an error: the status, a message, and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class VisitorLeftError(Exception):
    """The connection was closed before the answer."""


def read_token() -> str:
    """Return the token that requests must give, from the environment variable PENSTOCK_API_TOKEN.

    Raises:
        InputError: it is missing, too short, or has characters that an HTTP header cannot carry.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < MIN_TOKEN or not all("!" <= each <= "~" for each in token):
        found = f"{len(token)} characters" if token else "nothing"
        raise InputError(
            f"--api needs a secret token: expected at least {MIN_TOKEN} ASCII characters without spaces in the "
            f"environment variable {TOKEN_VARIABLE}, found {found}; `openssl rand -hex 24` makes one"
        )
    return token


class PredictRoute:
    """The ASGI app that answers /predict."""

    def __init__(self, answerer: Answerer, token: str) -> None:
        self._answerer, self._expected = answerer, f"Bearer {token}".encode()
        self._num_inside = 0
        # One request at a time waits for the lock that the page uses too; the others wait here, without a thread.
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with JSON, whatever happens; a visitor who left gets nothing."""
        try:
            response = JSONResponse(await self._respond(scope, receive))
        except VisitorLeftError:
            return
        except RequestError as error:
            response = JSONResponse({"error": str(error)}, error.status, error.headers)
        except SizeError as error:
            response = JSONResponse({"error": str(error)}, 422)
        except InputError as error:
            response = JSONResponse({"error": str(error)}, 400)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            response = JSONResponse({"error": "The server failed. Its log has the reason."}, 500)
        await response(scope, receive, send)

    async def _respond(self, scope: Any, receive: Any) -> dict[str, Any]:
        """Check a request, read its picture, wait for its turn, and return the answer."""
        # Check everything that needs no body.
        headers = Headers(scope=scope)
        if scope["method"] != "POST":
            raise RequestError(405, f"Expected POST, found {scope['method']}.", {"Allow": "POST"})
        given = headers.getlist("authorization")
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("latin-1"), self._expected):
            words = "Expected the header `Authorization: Bearer TOKEN` with this server's token."
            raise RequestError(401, words, {"WWW-Authenticate": "Bearer"})
        with_maps = _read_query(scope.get("query_string", b""))
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "multipart/form-data" and not kind.startswith("image/"):
            raise RequestError(
                415, f"Expected Content-Type image/... or multipart/form-data with a file, found {kind or 'none'}."
            )
        if announced_length(scope) > MAX_BODY:
            raise _too_long()

        # Hold at most MAX_INSIDE pictures in memory.
        if self._num_inside >= MAX_INSIDE:
            raise RequestError(503, "The server is busy. Try again later.", {"Retry-After": RETRY_SECONDS})
        self._num_inside += 1
        try:
            try:
                body = await asyncio.wait_for(_read_body(receive), READ_SECONDS)
            except TimeoutError as error:
                raise RequestError(408, f"The picture did not arrive within {READ_SECONDS:.0f} s.") from error
            file = io.BytesIO(await _extract_file(headers, body) if kind == "multipart/form-data" else body)
            del body
            await self._wait_for_turn(receive)
            try:
                found = await run_in_threadpool(self._answerer.classify, file, with_maps)
            finally:
                self._turn.release()
        finally:
            self._num_inside -= 1
        return to_json(found)

    async def _wait_for_turn(self, receive: Any) -> None:
        """Wait until no other request is answered.

        Raises:
            VisitorLeftError: the connection was closed meanwhile.
        """
        turn = asyncio.ensure_future(self._turn.acquire())
        left = asyncio.ensure_future(_wait_for_end(receive))
        try:
            await asyncio.wait((turn, left), return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                raise VisitorLeftError
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._turn.release()
            turn.cancel()
            raise
        finally:
            left.cancel()


async def _wait_for_end(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_query(query: bytes) -> bool:
    """Return whether maps are wanted.

    Raises:
        RequestError: the query has other parameters, or another value.
    """
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    if given not in ([], [("maps", "0")], [("maps", "1")]):
        raise RequestError(400, "The only parameter is maps, which must be 0 or 1.")
    return given == [("maps", "1")]


def _too_long() -> RequestError:
    # The rest of the body is not read, so the connection cannot be used again.
    return RequestError(413, f"A file may have {MAX_UPLOAD >> 20} MB at most.", {"Connection": "close"})


async def _read_body(receive: Any) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: it is longer than a picture may be.
        VisitorLeftError: the connection was closed.
    """
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise VisitorLeftError
        parts.append(message.get("body", b""))
        num_bytes += len(parts[-1])
        if num_bytes > MAX_BODY:
            raise _too_long()
        if not message.get("more_body"):
            return b"".join(parts)


class _MemoryParser(MultiPartParser):
    """Starlette's parser of forms, which writes a file of more than 1 MB to disk; this one does not."""

    spool_max_size = MAX_BODY + 1


async def _extract_file(headers: Headers, body: bytes) -> bytes:
    """Return the file of a form, which must have it in the field `file`, and nothing else.

    Raises:
        RequestError: the form is damaged, or has other fields.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _MemoryParser(headers, stream(), max_files=1, max_fields=0).parse()
    except (MultiPartException, LookupError, ValueError) as error:
        words = f"Expected a form with one file in the field `{FIELD}`: {getattr(error, 'message', 'it is damaged.')}"
        raise RequestError(400, words) from error
    try:
        found = form.get(FIELD)
        if not isinstance(found, UploadFile):
            raise RequestError(400, f"Expected a form with one file in the field `{FIELD}`.")
        return await found.read()
    finally:
        await form.close()


def to_json(found: Classification) -> dict[str, Any]:
    """Return a classification as JSON: classes with label, name, probability and, if computed, map; seconds; notes."""
    classes = []
    for score in found.scores:
        fields: dict[str, Any] = {
            "label": score.label,
            "name": score.name,
            "probability": round(score.probability, DIGITS),
        }
        if score.map_hw is not None:
            fields["map"] = np.round(score.map_hw.astype(float), DIGITS).tolist()
        classes.append(fields)
    return {"classes": classes, "seconds": round(found.seconds, 4), "notes": list(found.notes)}
