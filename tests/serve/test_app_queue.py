"""The queue of the app, with visitors who wait, leave, lose their connection, or find the server restarted."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.app_gated import NUM_WAITING
from helpers.app_visitors import API, PATIENCE, TOKEN, Server, Visitor, encode, read_guesses, read_html, start
from helpers.commands import CHECKOUT
from helpers.served import Exported
from PIL import Image

from serve.app.api import MAX_INSIDE

PICTURE = encode(Image.new("RGB", (32, 32), "red"))
SCRIPT = CHECKOUT / "tests" / "helpers" / "app_gated.py"
STOPPED_SECONDS = float(os.environ.get("PENSTOCK_SOAK_STOPPED", "0.5"))  # a server that is frozen for so long


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        if is_true():
            return
        time.sleep(0.02)
    raise TimeoutError


class Gated:
    """The app of app_gated.py: pictures wait before the network while the gate is closed."""

    def __init__(self, artifact: Path, folder: Path) -> None:
        self.artifact, self.folder, self.log = artifact, folder / "examples", folder / "log"
        self.folder.mkdir()
        (self.folder / "red.png").write_bytes(PICTURE)
        self.server = self.start()

    def start(self, port: int | None = None) -> Server:
        flags = ("--api", "--examples", self.folder)
        return start(self.artifact, self.log, *flags, script=SCRIPT, port=port)

    def close_gate(self) -> None:
        (self.folder / "closed").touch()
        (self.folder / "entered").unlink(missing_ok=True)

    def open_gate(self) -> None:
        (self.folder / "closed").unlink()

    def entered(self) -> str:
        path = self.folder / "entered"
        return path.read_text() if path.exists() else ""

    def visitor(self) -> Visitor:
        return Visitor(self.server.url)

    def join_and_enter(self) -> Visitor:
        """A visitor whose picture is in the network's turn."""
        visitor = self.visitor()
        visitor.join({"example": 0}).raise_for_status()
        wait_until(lambda: self.entered() == "x")
        return visitor

    def num_waiting(self) -> int:
        """The visitors who wait: the rank of one who joins and leaves."""
        visitor = self.visitor()
        visitor.join({"example": 0}).raise_for_status()
        with visitor.stream() as messages:
            return next(each["rank"] for each in messages if each["msg"] == "estimation")


@pytest.fixture(scope="module")
def app(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    made = Gated(exported.artifact, tmp_path_factory.mktemp("gated"))
    yield made
    made.server.stop(signal.SIGKILL)


@pytest.fixture
def gated(app: Gated) -> Iterator[Gated]:
    """The app with its gate closed; open again for the next test, whatever became of this one."""
    app.close_gate()
    yield app
    (app.folder / "closed").unlink(missing_ok=True)


def is_answer(message: dict[str, Any]) -> bool:
    return len(read_guesses(read_html(message))) == 5


def test_it_prints_where_it_runs_and_nothing_of_gradio(app: Gated) -> None:
    wait_until(lambda: "answers programs" in app.log.read_text())  # printed after the first request was answered
    lines = app.log.read_text().splitlines()
    assert lines[0] == f"Running on {app.server.url}/ (cpu). Stop it with Ctrl-C."
    assert lines[1] == f"POST {app.server.url}/predict answers programs that send the token."
    assert len(lines) == 2


def test_a_full_queue_refuses_and_loses_no_request(gated: Gated) -> None:
    visitor = gated.join_and_enter()
    path = visitor.upload(PICTURE)
    for _ in range(NUM_WAITING):
        visitor.join({"upload": path}).raise_for_status()
    refused = gated.visitor().join({"upload": path})
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("Queue is full")  # the page shows its own words for it
    assert gated.entered() == "x"
    gated.open_gate()
    assert all(map(is_answer, visitor.listen(1 + NUM_WAITING)))
    assert gated.entered() == "x." * (1 + NUM_WAITING)  # one at a time


def test_nothing_is_computed_for_visitors_who_left_the_queue(gated: Gated) -> None:
    first = gated.join_and_enter()
    for number in range(10):
        visitor = gated.visitor()
        visitor.join({"example": 0}).raise_for_status()
        with visitor.stream() as messages:
            assert next(messages)["msg"] == "estimation", number
    wait_until(lambda: gated.num_waiting() == 0)
    last = gated.visitor()
    last.join({"example": 0}).raise_for_status()
    gated.open_gate()
    assert is_answer(last.listen()[0])
    assert is_answer(first.listen()[0])
    wait_until(lambda: gated.entered() == "x.x.")  # the first and the last


def test_the_answer_of_a_visitor_who_left_meanwhile_ends_and_the_next_follows(gated: Gated) -> None:
    first = gated.join_and_enter()
    with first.stream() as messages:
        assert next(messages)["msg"] == "estimation"
    second = gated.visitor()
    second.join({"example": 0}).raise_for_status()
    gated.open_gate()
    assert is_answer(second.listen()[0])
    assert gated.entered().startswith("x.x")


def test_a_request_to_cancel_changes_nothing(gated: Gated) -> None:
    visitor = gated.visitor()
    event = visitor.join({"example": 0}).raise_for_status().json()["event_id"]
    wait_until(lambda: gated.entered() == "x")
    for body in ({"session_hash": visitor.session, "fn_index": 0, "event_id": event}, {}, ["x"], None):
        for route in ("cancel", "reset"):
            assert gated.visitor().post(f"{API}/{route}", json=body).json() == {"success": True}
    gated.open_gate()
    assert is_answer(visitor.listen()[0])


def test_the_page_and_the_json_route_take_turns_and_a_full_route_says_when_to_retry(gated: Gated) -> None:
    visitor = gated.join_and_enter()
    with ThreadPoolExecutor(MAX_INSIDE + 1) as pool:
        asked = [pool.submit(gated.visitor().predict, PICTURE) for _ in range(MAX_INSIDE + 1)]
        refused = next(as_completed(asked)).result()  # the others wait for the gate
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "busy" in refused.json()["error"]
        assert gated.entered() == "x"
        gated.open_gate()
        assert is_answer(visitor.listen()[0])
        statuses = [each.result().status_code for each in asked]
    assert sorted(statuses) == [200] * MAX_INSIDE + [503]
    assert gated.entered() == "x." * (1 + MAX_INSIDE)


def test_nothing_is_computed_for_a_program_that_left(gated: Gated) -> None:
    visitor = gated.join_and_enter()
    for _ in range(MAX_INSIDE + 1):  # each leaves its place when its connection is closed
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{gated.server.url}/predict",
                content=PICTURE,
                headers={"authorization": f"Bearer {TOKEN}", "content-type": "image/png"},
                timeout=httpx.Timeout(PATIENCE, read=0.05),
            )
    gated.open_gate()
    assert is_answer(visitor.listen()[0])
    assert gated.visitor().predict(PICTURE).status_code == 200
    assert gated.entered().count("x") <= 3  # the visitor's, the last, and at most one whose turn had come


def test_a_stream_goes_on_after_the_server_was_frozen(gated: Gated) -> None:
    visitor = gated.join_and_enter()
    with visitor.stream() as messages:
        assert next(messages)["msg"] == "estimation"
        gated.server.process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)  # frozen: no event can show how long
        gated.server.process.send_signal(signal.SIGCONT)
        gated.open_gate()
        assert is_answer(next(each for each in messages if each["msg"] == "process_completed"))


def test_a_page_recovers_when_the_server_was_restarted(gated: Gated) -> None:
    # An answer is awaited when the server ends.
    visitor = gated.join_and_enter()
    upload = Path(visitor.upload(PICTURE))
    before = visitor.get(f"{API}/app_id").json()["app_id"]
    with visitor.stream() as messages:
        assert next(messages)["msg"] == "estimation"
        gated.open_gate()
        gated.server.stop()
        with pytest.raises(httpx.HTTPError):
            visitor.get(f"{API}/app_id")
    assert "stopped" in gated.log.read_text()
    assert not upload.exists()  # nor does anything else of a visitor stay behind
    assert not upload.parents[2].exists()

    # The page asks until a server answers, and then chooses again, also with its old session.
    gated.server = gated.start(port=int(visitor.url.rpartition(":")[2]))
    assert visitor.get(f"{API}/app_id").json()["app_id"] != before
    assert visitor.get("/config").json()["dependencies"]
    visitor.join({"example": 0}).raise_for_status()
    assert is_answer(visitor.listen()[0])
    assert len(read_guesses(gated.visitor().ask(PICTURE))) == 5
