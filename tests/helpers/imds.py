"""A stand-in for EC2's metadata service (IMDSv2) on the loopback, whose notices a test changes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from helpers.answers import Answer, Request, answering, play_imds

INSTANCE = "i-0123456789abcdef0"
NOTICE = json.dumps({"action": "terminate", "time": "2026-11-23T08:22:00Z"})
REBALANCE = json.dumps({"noticeTime": "2026-11-23T08:12:00Z"})
NOTICE_PATH, REBALANCE_PATH = (
    "/latest/meta-data/spot/instance-action",
    "/latest/meta-data/events/recommendations/rebalance",
)


@dataclass
class Instance:
    """The answers of the metadata service, and the requests that it got."""

    url: str = ""  # value of AWS_EC2_METADATA_SERVICE_ENDPOINT
    region: str = ""
    has_notice: bool = False
    has_rebalance: bool = False
    asked: list[str] = field(default_factory=list)
    polled: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(0)
    )  # counts requests for the notice

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        texts = {
            "/latest/meta-data/instance-id": INSTANCE,
            "/latest/meta-data/placement/region": self.region,
            NOTICE_PATH: NOTICE if self.has_notice else "",
            REBALANCE_PATH: REBALANCE if self.has_rebalance else "",
        }
        answer = play_imds({path: text for path, text in texts.items() if text})(request)
        self.asked.append(f"{request.method} {answer.status}")
        if request.path == NOTICE_PATH:
            self.polled.release()
        return answer


@contextmanager
def metadata_service(region: str = "") -> Iterator[Instance]:
    """Serve the metadata of an instance without notices; the test changes them."""
    instance = Instance(region=region)
    with answering(instance.answer) as server:
        instance.url = server.url
        yield instance
