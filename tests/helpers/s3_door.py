"""A door in front of an S3 server: it forwards connections, until a test closes it or lets it forbid requests."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


class Door:
    """The state of a door; `url` is its address. One that is closed drops every connection, old or new."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self.behind = (address.hostname or "", address.port or 80)
        self.url = ""
        self.is_open = True
        self.forbidden: tuple[bytes, ...] = ()  # beginnings of requests that are denied, such as b"PUT "
        self.refused = threading.Semaphore(0)  # counts what was dropped or denied
        self.connections: set[socket.socket] = set()

    def close(self) -> None:
        """Drop all connections; from now on there is no answer."""
        self.is_open = False
        for each in list(self.connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def forward(self, client: socket.socket) -> None:
        """Serve one connection until one of its ends closes it."""
        if not self.is_open:
            self.refused.release()
            return
        with socket.create_connection(self.behind) as server:
            ends = {client, server}
            self.connections |= ends
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join()
            self.connections -= ends

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if data.startswith(self.forbidden):
                    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(DENIED)}\r\nConnection: close\r\n\r\n"
                    source.sendall(head.encode() + DENIED)
                    self.refused.release()
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def door(endpoint: str) -> Iterator[Door]:
    """Open a door in front of a server."""
    state = Door(endpoint)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            state.forward(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: a connection was lost."""

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.close()
            server.shutdown()
            thread.join()
