"""A web server with answers of a test: it plays S3, or EC2's metadata service, where the real ones cannot be had."""

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

IMDS_TOKEN = "token-of-the-test"


@dataclass(frozen=True)
class Request:
    """A request; the path includes the query."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An answer; `cut` sends its headers and a part of its body, and closes the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class AnswerServer:
    """A running server and the requests that it got."""

    url: str
    requests: list[Request] = field(default_factory=list)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # of connections that clients keep

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that ends a connection: one that does not trust the certificate does."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[[Request], Answer]
    running: AnswerServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers, body)
        self.running.requests.append(request)
        found = type(self).answer(request)
        self.send_response(found.status)
        dated = {"Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT", "ETag": '"tag"', "Date": "x"}
        for name, value in {**dated, **found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body[: found.cut])
        self.close_connection = found.cut is not None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def answering(answer: Callable[[Request], Answer], context: ssl.SSLContext | None = None) -> Iterator[AnswerServer]:
    """Run a server on the loopback whose answers a function gives; it is called in several threads."""
    server = _Server(("127.0.0.1", 0), _Handler)
    running = AnswerServer(f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}")
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"answer": staticmethod(answer), "running": running})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_error(status: int, code: str, message: str = "a message", more: str = "") -> Answer:
    """Return an answer of S3 that says what is wrong."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>'
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


def play_imds(texts: dict[str, str]) -> Callable[[Request], Answer]:
    """Return the answers of EC2's metadata service (IMDSv2): a token first, then the texts by their paths."""

    def answer(request: Request) -> Answer:
        if request.method == "PUT" and request.path == "/latest/api/token":
            has_ttl = "X-aws-ec2-metadata-token-ttl-seconds" in request.headers
            return Answer(200 if has_ttl else 400, IMDS_TOKEN.encode())
        if request.headers.get("X-aws-ec2-metadata-token") != IMDS_TOKEN:
            return Answer(401)
        return Answer(200, texts[request.path].encode()) if request.path in texts else Answer(404)

    return answer


def make_certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make an authority and a certificate of 127.0.0.1; return the file of the first, and a server's context."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    new = "openssl req -newkey rsa:2048 -nodes"
    for command in (
        f"{new} -x509 -keyout authority.key -out authority.pem -days 2 -subj /CN=authority",
        f"{new} -keyout server.key -out server.csr -subj /CN=127.0.0.1",
        "openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2"
        " -extfile extensions -out server.pem",
    ):
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "authority.pem", context
