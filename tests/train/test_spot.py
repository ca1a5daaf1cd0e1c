"""A spot notice reaches the trainer: against a local server that plays EC2's metadata service (IMDSv2)."""

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from helpers.train_runs import await_that

from loaders import World
from train.preemption import ENDPOINT, Notices, Reason, SpotWatch

PATIENCE = 20.0  # seconds
TOKEN = "token-of-the-test"
NOTICE = json.dumps({"action": "terminate", "time": "2026-11-23T08:22:00Z"}).encode()


@dataclass
class Instance:
    """The answers of the metadata service, and the requests it got."""

    has_notice: bool = False
    asked: list[str] = field(default_factory=list)
    polled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2: a token by PUT with a time to live; everything else with the token only."""

    instance: Instance

    def do_PUT(self) -> None:
        """Hand out a token."""
        is_well = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if is_well else 400, TOKEN.encode())

    def do_GET(self) -> None:
        """The notice, where there is one."""
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, b"")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.instance.has_notice:
            self._answer(200, NOTICE)
        else:
            self._answer(404, b"")
        self.instance.polled.release()

    def _answer(self, status: int, content: bytes) -> None:
        self.instance.asked.append(f"{self.command} {status}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """A spot instance with a metadata service of this test."""
    instance = Instance()
    handler = type("Handler", (Metadata,), {"instance": instance})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv(ENDPOINT[0], f"http://127.0.0.1:{server.server_port}")
        yield instance
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["auto", "on"])
def test_a_notice_is_given_once_it_is_there(instance: Instance, kind: str) -> None:
    noticed = threading.Event()
    with SpotWatch(kind, noticed.set, poll_seconds=0.01):  # pyright: ignore[reportArgumentType]
        for _ in range(3):
            assert instance.polled.acquire(timeout=PATIENCE)
        assert not noticed.is_set()
        instance.has_notice = True
        assert noticed.wait(PATIENCE)
    assert set(instance.asked) == {"PUT 200", "GET 404", "GET 200"}
    assert instance.asked[-1] == "GET 200"


def test_the_trainer_hears_of_it(instance: Instance) -> None:
    instance.has_notice = True
    with Notices("auto", World()) as notices:
        await_that(notices.agreed, "a notice")
        assert notices.agreed() == Reason.SPOT_NOTICE


def test_off_asks_nothing(instance: Instance) -> None:
    before = set(threading.enumerate())
    with SpotWatch("off", pytest.fail):
        assert set(threading.enumerate()) <= before


def test_auto_gives_up_where_there_is_no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT[0], "http://127.0.0.1:9")
    with SpotWatch("auto", pytest.fail):
        for thread in threading.enumerate():
            if thread.name == "penstock-spot":
                thread.join(PATIENCE)
                assert not thread.is_alive()


def test_on_warns_where_there_is_no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT[0], "http://127.0.0.1:9")
    warned = threading.Event()
    monkeypatch.setattr(logging.getLogger("penstock"), "warning", lambda *_: warned.set())
    with SpotWatch("on", pytest.fail, poll_seconds=0.01):
        assert warned.wait(PATIENCE)
