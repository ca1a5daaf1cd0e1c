"""An assembled Space, started as the hub starts it, and asked for an answer. For `serve/publish.py`.

It runs in its own folder and process, with nothing of the checkout in its path, and loads its artifact, which checks
its logits against the recorded ones. Then it is asked as the page asks: an example is chosen, and an answer in HTML
comes.
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
from serve.app_answer import answer, prepare
from serve.app_examples import list_examples
from serve.app_page import write_answer
from serve.app_photo import open_photo
from serve.artifact import Served

PATIENCE = 180  # seconds until the page is there; importing torch takes some
LARGEST_DIFFERENCE = 0.1  # percent of confidence: the page shows as much
CHOICE = re.compile(r'<span class="name">(.*?)</span>.*?style="width: ([\d.]+)%"', re.DOTALL)
API = "gradio_api/queue"
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
Said = list[tuple[str, float]]  # class and confidence in percent, the surest first


def try_space(folder: Path, served: Served) -> Said:
    """What a Space says of its first example.

    Raises:
        InputError: it does not start, or says something else than the artifact here.
    """
    example = list_examples(folder / "examples")[0]
    expected = read_answer(write_answer(answer(served, prepare(served), open_photo(example)), 0))
    with start(folder, Path(sys.executable)) as address:
        said = ask(address)
    if not is_same(said, expected):
        raise InputError(f"the Space says {said[:1]} of {example.name}, and the artifact here {expected[:1]}")
    return said


def is_same(said: Said, expected: Said) -> bool:
    """Whether two answers name the same class first, and are as sure of all that they name."""
    return bool(expected) and said[:1] != [] and said[0][0] == expected[0][0] and _is_as_sure(said, expected)


def _is_as_sure(said: Said, expected: Said) -> bool:
    pairs = zip(said, expected, strict=False)
    return len(said) == len(expected) and all(abs(a[1] - b[1]) <= LARGEST_DIFFERENCE for a, b in pairs)


@contextmanager
def start(folder: Path, python: Path) -> Iterator[str]:
    """The address at which a Space answers, while it is wanted.

    Raises:
        InputError: it ended, or did not answer in time; the message has its last words.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), **SILENT}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    with TemporaryFile("w+") as log:
        command = [str(python), "app.py"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(f"http://127.0.0.1:{port}/", process, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            read(address)
        except OSError:  # nobody listens yet
            time.sleep(0.2)
        else:
            return
    log.seek(0)
    words = " ".join(log.read().strip().split("\n")[-1:])
    raise InputError(f"the Space does not start: {words[-300:] or f'no answer within {PATIENCE} s'}")


def ask(address: str) -> Said:
    """What a running Space says of its first example."""
    session = "trial"
    (listener,) = (each for each in json.loads(read(f"{address}config"))["dependencies"] if each["targets"])
    event = {"data": [], "fn_index": listener["id"], "session_hash": session, "event_data": {"example": 0}}
    read(f"{address}{API}/join", event)
    for line in read(f"{address}{API}/data?session_hash={session}").splitlines():
        message: Any = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
        if message.get("msg") == "process_completed":
            return read_answer(str(message["output"].get("data")))
    return []


def read_answer(html: str) -> Said:
    """The classes that a page names, with their confidence."""
    return [(unescape(name), float(percent)) for name, percent in CHOICE.findall(html)]


def read(address: str, content: object = None) -> str:
    """What a server of this machine answers; POST where there is something to send. No proxy is asked."""
    body = None if content is None else json.dumps(content).encode()
    request = Request(address, body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as opened:
        return opened.read().decode()
