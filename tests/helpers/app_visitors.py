"""Helpers of the app's tests: a server as users start it, visitors over HTTP, and files that visitors send."""

import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from helpers.commands import CHECKOUT, free_port

API = "/gradio_api"
PATIENCE = 60.0  # seconds
TOKEN = "a-token-of-the-tests"


@dataclass(frozen=True)
class Server:
    """A running app."""

    url: str
    process: subprocess.Popen[bytes]

    def resident_mb(self) -> float:
        """Memory that it holds now."""
        return self._memory("VmRSS")

    def peak_mb(self) -> float:
        """The most that it has held."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal that ends it, and wait until it has ended."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE)


@contextmanager
def serving(
    artifact: Path, log: Path, *flags: object, script: Path = CHECKOUT / "serve/app.py", port: int | None = None
) -> Iterator[Server]:
    """`python serve/app.py --artifact DIR` until the block ends, or the block kills it."""
    server = start(artifact, log, *flags, script=script, port=port)
    try:
        yield server
        assert server.process.poll() in (None, -signal.SIGKILL), f"the server has ended: {log.read_text()}"
    finally:
        server.stop()


def start(
    artifact: Path, log: Path, *flags: object, script: Path = CHECKOUT / "serve/app.py", port: int | None = None
) -> Server:
    """Start the app and wait until it answers; with --api it accepts TOKEN."""
    port = port or free_port()
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "PENSTOCK_API_TOKEN": TOKEN}
    command = [sys.executable, str(script), "--artifact", str(artifact), *map(str, flags)]
    with log.open("a") as output:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
    except BaseException:
        process.kill()
        raise
    return Server(url, process)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(int(PATIENCE / 0.2)):
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise TimeoutError(log.read_text())


@dataclass
class Visitor:
    """A visitor without a browser, which can send any request."""

    url: str
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    def get(self, route: str) -> httpx.Response:
        return httpx.get(self.url + route, timeout=PATIENCE)

    def post(self, route: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + route, timeout=PATIENCE, **body)

    def upload(self, content: bytes, name: str = "picture.png") -> str:
        """The path that the server gives a file."""
        return self.post(f"{API}/upload", files={"files": (name, content)}).raise_for_status().json()[0]

    def join(self, event: Any, data: Any = ()) -> httpx.Response:
        """Ask for an answer."""
        body = {"data": list(data), "event_data": event, "fn_index": 0, "session_hash": self.session, "trigger_id": 2}
        return self.post(f"{API}/queue/join", json=body)

    @contextmanager
    def stream(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages about this session's events; leaving the block closes the connection."""
        address = f"{self.url}{API}/queue/data?session_hash={self.session}"
        with httpx.stream("GET", address, timeout=PATIENCE) as response:
            yield (json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:"))

    def listen(self, count: int = 1) -> list[dict[str, Any]]:
        """The next few messages of finished events."""
        finished: list[dict[str, Any]] = []
        with self.stream() as messages:
            for message in messages:
                if message["msg"] == "process_completed":
                    finished.append(message)
                if len(finished) == count:
                    return finished
        raise AssertionError(f"the stream ended after {len(finished)} of {count}")

    def predict(self, content: bytes, **headers: str) -> httpx.Response:
        """The JSON route's response to the bytes of a PNG."""
        own = {"authorization": f"Bearer {TOKEN}", "content-type": "image/png"}
        return self.post("/predict", content=content, headers={**own, **headers})

    def ask(self, content: bytes, name: str = "picture.png") -> str:
        """The HTML that answers a file."""
        self.join({"upload": self.upload(content, name)}).raise_for_status()
        return read_html(self.listen()[0])


def is_refused(message: dict[str, Any]) -> bool:
    """Return True if a file was refused, by the app or by Gradio, which checks such events too."""
    if message["success"]:
        return read_words(read_html(message)) == "This picture is no longer there. Choose it again."
    return message["output"]["error"].endswith("is not in the cache folder and cannot be accessed.")


def read_html(message: dict[str, Any]) -> str:
    assert message["success"], message
    return message["output"]["data"][0]


def read_words(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", html)).split())


def read_guesses(html: str) -> list[tuple[str, str]]:
    """Names and percentages, the surest first."""
    found = re.findall(r'<span class="name">(.*?)</span><span class="share">(.*?)</span>', html)
    return [(unescape(name), unescape(share)) for name, share in found]


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def make_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, one bit each in the file, one byte each once decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    pack, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    body = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    header = side.to_bytes(4, "big") * 2 + b"\x01\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
