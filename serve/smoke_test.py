"""Start an assembled Space as the hub starts it, and compare its answer with the artifact's. For `serve/publish.py`.

The Space runs in its own folder and process, without the checkout on its path, and loads its artifact, which compares
its logits with the recorded ones. Then it is asked in the same way as by the page: an example is chosen, and the answer
comes as HTML.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.request import ProxyHandler, Request, build_opener

from prep.errors import InputError
from serve.app.answer import answer_photo, make_cam
from serve.app.examples import list_examples
from serve.app.page import write_answer
from serve.app.uploads import open_photo
from serve.artifact import Served

PATIENCE = 180  # seconds until the page must answer; importing torch takes some of them
LARGEST_DIFFERENCE = 0.1  # percent of confidence, the precision of the page
CHOICE = re.compile(r'<span class="name">(.*?)</span>.*?style="width: ([\d.]+)%"', re.DOTALL)
API = "gradio_api/queue"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
Shares = list[tuple[str, float]]  # class and confidence in percent, the most likely class first


def try_space(folder: Path, served: Served) -> Shares:
    """Start a Space, and return its answer to its first example.

    Raises:
        InputError: it does not start, or its answer differs from that of the artifact here.
    """
    example = list_examples(folder / "examples")[0]
    expected = read_shares(write_answer(answer_photo(served, make_cam(served), open_photo(example)), 0))
    with start_space(folder, Path(sys.executable)) as address:
        found = ask_space(address)
    if not is_same_answer(found, expected):
        raise InputError(
            f"{example.name}: expected {_name_first(expected)} as the artifact predicts here, the Space predicted "
            f"{_name_first(found)}: install the versions of requirements.txt here and publish again"
        )
    return found


def _name_first(shares: Shares) -> str:
    """Return the first class in words, e.g. `cat, 93.1%`."""
    return f"{shares[0][0]}, {shares[0][1]:.1f}%" if shares else "nothing"


def is_same_answer(found: Shares, expected: Shares) -> bool:
    """Return True if both have the same first class, as many classes, and equal confidences up to 0.1%."""
    return bool(expected) and found[:1] != [] and found[0][0] == expected[0][0] and _are_close(found, expected)


def _are_close(found: Shares, expected: Shares) -> bool:
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(abs(a[1] - b[1]) <= LARGEST_DIFFERENCE for a, b in pairs)


@contextmanager
def start_space(folder: Path, python: Path) -> Iterator[str]:
    """Run a Space with a given Python, and yield its address; end it when the block ends.

    Raises:
        InputError: it ended, or did not answer in time; the message has the last line of its log.
    """
    # Find a free port.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    # Start without PYTHONPATH, so that nothing of the checkout can be imported, and without network access to the hub.
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), **QUIET}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    with TemporaryFile("w+") as log:
        command = [str(python), "app.py"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_page(f"http://127.0.0.1:{port}/", process, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()
            process.wait()


def _wait_for_page(address: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            request(address)
        except OSError:  # the port is not open yet
            time.sleep(0.2)
        else:
            return
    log.seek(0)
    words = " ".join(log.read().strip().split("\n")[-1:])
    raise InputError(f"the Space does not start: {words[-300:] or f'no answer within {PATIENCE} s'}")


def ask_space(address: str) -> Shares:
    """Return the answer of a running Space to its first example; empty if the Space has no example."""
    # Choose the example, as a click in the page does.
    session = "trial"
    (listener,) = (each for each in json.loads(request(f"{address}config"))["dependencies"] if each["targets"])
    event = {"data": [], "fn_index": listener["id"], "session_hash": session, "event_data": {"example": 0}}
    request(f"{address}{API}/join", event)

    # Read Gradio's stream of events until the answer.
    for line in request(f"{address}{API}/data?session_hash={session}").splitlines():
        message: Any = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
        if message.get("msg") == "process_completed":
            return read_shares(str(message["output"].get("data")))
    return []


def read_shares(html: str) -> Shares:
    """Return the classes in an answer's HTML, with their confidence."""
    return [(unescape(name), float(percent)) for name, percent in CHOICE.findall(html)]


def request(address: str, content: object = None) -> str:
    """Return the response of a server on this machine, without a proxy; POST `content` as JSON if it is given."""
    body = None if content is None else json.dumps(content).encode()
    message = Request(address, body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(message, timeout=PATIENCE) as opened:
        return opened.read().decode()
