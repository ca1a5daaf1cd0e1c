"""`python s3_folder.py FOLDER CERTIFICATE KEY`: serve the files of a folder as the bucket of an S3 server, over TLS.

It answers what a program needs that copies a bucket: lists, HEAD, and GET with ranges. It reads from the page cache,
and checks no signatures, so that it is faster than the programs that are measured. It prints its port.
"""

import http.server
import mmap
import re
import ssl
import sys
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CHUNK_BYTES = 1 << 20
DATE = "2026-11-27T00:00:00.000Z"
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of one connection; `files` are those of the bucket by their names."""

    protocol_version = "HTTP/1.1"
    files: dict[str, memoryview]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path).lstrip("/").partition("/")[2]
        if not name:
            self._answer(200, self._list(parse_qs(url.query)))
        elif name not in self.files:
            self._answer(404, b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>')
        else:
            self._answer_file(self.files[name])

    def _answer_file(self, content: memoryview) -> None:
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        if not asked:
            self._answer(200, content, {"ETag": f'"{len(content)}"'})
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        headers = {"ETag": f'"{len(content)}"', "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._answer(206, content[start:stop], headers)

    def _list(self, query: dict[str, list[str]]) -> bytes:
        """Return all names with a prefix, in one page; those with a delimiter behind it as common prefixes."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        found, folders = [], set()
        for name in sorted(each for each in self.files if each.startswith(prefix)):
            head, separator, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if separator:
                folders.add(f"{prefix}{head}{delimiter}")
                continue
            size = len(self.files[name])
            facts = f"<LastModified>{DATE}</LastModified><ETag>&quot;{size}&quot;</ETag><Size>{size}</Size>"
            found.append(f"<Contents><Key>{escape(name)}</Key>{facts}<StorageClass>STANDARD</StorageClass></Contents>")
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)
        )
        facts = (
            f"<Name>imagenet</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found) + len(folders)}</KeyCount>"
        )
        facts += "<MaxKeys>1000000</MaxKeys><IsTruncated>false</IsTruncated>"
        namespace = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        content = f"<ListBucketResult {namespace}>{facts}{''.join(found)}{common}</ListBucketResult>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{content}'.encode()

    def _answer(self, status: int, content: bytes | memoryview, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"Accept-Ranges": "bytes", "Last-Modified": formatdate(1_795_000_000, usegmt=True)}
        kind = {"Content-Type": "application/xml" if isinstance(content, bytes) else "binary/octet-stream"}
        for name, value in {**fixed, **kind, **(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(content), CHUNK_BYTES):
                self.wfile.write(content[start : start + CHUNK_BYTES])

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; many may be opened at once."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closes its connection."""


def open_files(folder: Path) -> dict[str, memoryview]:
    """Return the content of all files below a folder, by their relative paths, without reading it."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                size = path.stat().st_size
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
            files[str(path.relative_to(folder))] = memoryview(mapped)
    return files


def main() -> None:
    """Serve until the process is ended."""
    folder, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    Handler.files = open_files(Path(folder))
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
