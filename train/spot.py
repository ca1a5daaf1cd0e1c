"""EC2's notice that a spot instance is about to end, two minutes ahead: a thread asks the machine's metadata service.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (IMDSv2: a token first)
"""

import http.client
import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

from train.config import SpotKind

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"  # environment variable, and where it is else
TOKEN, NOTICE = "/latest/api/token", "/latest/meta-data/spot/instance-action"
POLL_SECONDS = 5.0  # as EC2 advises
PATIENCE = 2.0  # seconds for an answer: the service is on the machine itself
log = logging.getLogger("penstock")


class SpotWatch:
    """Calls `notify` once, from a thread of its own, when the instance is to end. Use as a context manager.

    Args:
        kind: auto watches where there is a metadata service; on says so where there is none, and keeps asking.
    """

    def __init__(self, kind: SpotKind, notify: Callable[[], None], poll_seconds: float = POLL_SECONDS) -> None:
        self.kind, self.notify, self.poll_seconds = kind, notify, poll_seconds
        self.stopped = threading.Event()

    def __enter__(self) -> "SpotWatch":
        if self.kind != "off":
            threading.Thread(target=self._watch, name="penstock-spot", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()  # it may be waiting for an answer: nobody waits for it

    def _watch(self) -> None:
        if not find_token():
            if self.kind == "auto":
                return
            log.warning("no EC2 metadata service answers at %s: a spot notice would not be seen yet", find_endpoint())
        while not has_notice():
            if self.stopped.wait(self.poll_seconds):
                return
        if not self.stopped.is_set():
            self.notify()


def find_endpoint() -> str:
    """Where the metadata service is."""
    return os.environ.get(*ENDPOINT)


def find_token() -> str | None:
    """A token for the next question, where the metadata service answers."""
    return _ask("PUT", TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": "60"})


def has_notice() -> bool:
    """Whether the metadata service says that this instance is to end."""
    token = find_token()
    return token is not None and _ask("GET", NOTICE, {"X-aws-ec2-metadata-token": token}) is not None


def _ask(method: str, path: str, headers: dict[str, str]) -> str | None:
    """The text of an answer of status 200; past any proxy, since the service is on this machine."""
    address = urlsplit(find_endpoint())
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return text if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
