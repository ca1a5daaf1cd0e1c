"""A TCP proxy between a browser and the app's server: it can drop connections, stop forwarding, or delay a response."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

CHUNK = 1 << 14  # bytes


class Line:
    """Forwards connections to a server.

    Attributes:
        url: where the browser connects.
        requests: the first line of each request that came, such as "GET /config".
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname and address.port
        self.target = (address.hostname, address.port)
        self.requests: list[str] = []
        self.sent_bytes = 0  # by the browser
        self._is_whole, self._is_released = threading.Event(), threading.Event()
        self._is_whole.set()
        self._is_released.set()
        self._held, self._is_cut = "", False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones, until `repair`."""
        self._is_cut = True
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Pass nothing on, without ending a connection, until `repair`."""
        self._is_whole.clear()

    def repair(self) -> None:
        self._is_cut = False
        self._is_whole.set()

    def hold(self, path: str) -> None:
        """Pass on no answer to a request whose first line contains `path`, until `release`."""
        self._held = path
        self._is_released.clear()

    def release(self) -> None:
        self._held = ""
        self._is_released.set()

    def count(self, part: str) -> int:
        """Return the number of requests whose first line contains `part`."""
        return sum(part in each for each in self.requests)

    def close(self) -> None:
        self.repair()
        self.release()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    self.requests.append("refused")
                    client.close()
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self.target) as server:
            self._sockets |= {client, server}
            asked: list[str] = []
            threading.Thread(target=self._answer, args=(server, client, asked), daemon=True).start()
            while data := client.recv(CHUNK):
                if data.startswith((b"GET ", b"POST ", b"HEAD ", b"OPTIONS ")):
                    asked[:] = [" ".join(data.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2])]
                    self.requests += asked
                self.sent_bytes += len(data)
                self._is_whole.wait()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        self._sockets -= {client}

    def _answer(self, server: socket.socket, client: socket.socket, asked: list[str]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK):
                if self._held and asked and self._held in asked[0]:
                    self._is_released.wait()
                self._is_whole.wait()
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def connecting(url: str) -> Iterator[Line]:
    """Start a line to a server, and end it."""
    line = Line(url)
    try:
        yield line
    finally:
        line.close()
