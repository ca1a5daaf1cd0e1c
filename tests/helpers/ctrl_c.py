"""Press Ctrl-C while a read of S3 waits in another thread."""

import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from prep.remote import Remote, StoppedError

SECONDS = 60.0  # the read would wait so long if nothing stopped it


def press_while_reading(
    monkeypatch: pytest.MonkeyPatch, remote: Remote, read: Callable[[], Any], is_lost: bool
) -> None:
    """Check that Ctrl-C ends `read`, which calls `remote.read_range`, although S3 does not answer.

    Args:
        is_lost: the signal is delivered to another thread than the main one, so that it does not end what the main
            thread waits for. That is also the effect of a signal that arrives just before the main thread waits.
    """
    waits = threading.Event()
    ended: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def wait_for_s3(*_: object) -> None:
        waits.set()
        ended.put(remote.patience.stopped.wait(SECONDS))
        raise StoppedError("stopped")

    def press() -> None:
        if not waits.wait(SECONDS):
            return
        if is_lost:
            signal.raise_signal(signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    try:
        with monkeypatch.context() as patch:
            patch.setattr(remote, "read_range", wait_for_s3)
            threading.Thread(target=press, daemon=True).start()
            with pytest.raises(KeyboardInterrupt):
                read()
            assert ended.get(timeout=SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
