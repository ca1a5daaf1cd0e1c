"""A forwarder between an S3 client and its server: it notes each request, and may hold one back."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Forwarder:
    """Forwards requests without a body; `requests` lists them, such as "GET /bucket/name".

    Attributes:
        on_request: is called with each request before the server gets it, in a thread of its connection.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        assert address.hostname and address.port
        self.target = (address.hostname, address.port)
        self.requests: list[str] = []
        self.on_request: Callable[[str], None] = lambda _: None
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def count(self, end: str) -> int:
        """Return the number of requests whose path ends so."""
        return sum(request.endswith(end) for request in self.requests)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self.target) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            unread = b""
            while data := client.recv(1 << 16):
                # Note each request of which the head is complete.
                unread += data
                while b"\r\n\r\n" in unread:
                    head, _, unread = unread.partition(b"\r\n\r\n")
                    request = " ".join(head.decode("latin-1").split(" ")[:2])
                    self.requests.append(request)
                    self.on_request(request)
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def forwarding(endpoint: str) -> Iterator[Forwarder]:
    """Start one in front of a server's endpoint, and end it."""
    forwarder = Forwarder(endpoint)
    try:
        yield forwarder
    finally:
        forwarder.close()
