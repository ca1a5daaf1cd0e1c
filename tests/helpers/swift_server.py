"""A real S3 server for tests: OpenStack Swift's four processes on the loopback, with its S3 interface.

Its data is in a temporary folder, and the processes die with the one that started them, however that ends.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

KEY, SECRET = "test:tester", "testing"
SERVERS = ("account", "container", "object", "proxy")  # the proxy last
SECONDS_TO_START = 60.0
BUILD_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[1:]):
    builder = RingBuilder(4, 1, 0)
    there = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
    builder.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1, **there})
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
COMMON = """
[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
[storage-policy:0]
name = only
default = yes
"""
STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
devices = {devices}
mount_check = false
user = {user}
log_level = WARNING
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
user = {user}
log_level = WARNING
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
dns_compliant_bucket_names = true
allow_no_owner = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


@dataclass(frozen=True)
class SwiftServer:
    """A running server; its proxy is the process that answers to S3's requests."""

    endpoint: str
    folder: Path
    proxy: subprocess.Popen[bytes]

    def environment(self) -> dict[str, str]:
        """Return the settings of an S3 client; none of the user's own files is read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def open(self, bucket: str) -> Any:
        """Return obstore's store of a bucket, with the server's own key."""
        from obstore.store import S3Store  # noqa: PLC0415 - an extra

        keys: dict[str, Any] = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
        return S3Store(bucket, endpoint=self.endpoint, client_options={"allow_http": True}, **keys)

    def make_bucket(self, name: str) -> None:
        """Create a bucket, if it does not exist; obstore has no call for it."""
        import obstore  # noqa: PLC0415 - an extra

        url = obstore.sign(self.open(name), "PUT", "", timedelta(minutes=5))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(urllib.request.Request(url, method="PUT", data=b""), timeout=30).close()
        except urllib.error.HTTPError as error:
            if error.code != http.client.CONFLICT:  # it exists
                raise

    def empty_bucket(self, name: str) -> None:
        """Delete all objects in a bucket."""
        store = self.open(name)
        for chunk in store.list():
            store.delete([each["path"] for each in chunk])

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return the content of all objects below a prefix, by their names relative to it."""
        store = self.open(bucket)
        names = [each["path"] for chunk in store.list(prefix or None) for each in chunk]
        return {name[len(prefix) :].lstrip("/"): store.get(name).bytes().to_bytes() for name in names}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the proxy: connections are accepted, and nothing answers."""
        self.proxy.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.proxy.send_signal(signal.SIGCONT)

    def num_objects(self) -> int:
        """Count all objects that were ever put, from its disk: faster than a listing."""
        return sum(name.endswith(".data") for _, _, names in os.walk(self.folder / "devices") for name in names)


@contextmanager
def swift_server(folder: Path) -> Iterator[SwiftServer]:
    """Start one in an empty folder, wait until it answers, and end it."""
    ports: dict[str, int] = dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True))
    _write_configuration(folder, ports)
    processes = []
    try:
        for name in SERVERS:
            processes.append(_start(name, folder))
        _wait_for(ports.values(), folder, processes)
        yield SwiftServer(f"http://127.0.0.1:{ports['proxy']}", folder, processes[-1])
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _write_configuration(folder: Path, ports: dict[str, int]) -> None:
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir()
    (devices / "d1").mkdir(parents=True)
    (etc / "swift.conf").write_text(COMMON)
    facts = {"etc": etc, "devices": devices, "user": _user(), "secret": SECRET}
    for name, port in ports.items():
        template = PROXY if name == "proxy" else STORAGE
        (etc / f"{name}-server.conf").write_text(template.format(name=name, port=port, **facts))
    storage_ports = [str(ports[name]) for name in SERVERS if name != "proxy"]
    command = [sys.executable, "-W", "ignore", "-c", BUILD_RINGS, *storage_ports]
    subprocess.run(command, cwd=etc, check=True, capture_output=True)


def _user() -> str:
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def _start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name(f"swift-{name}-server")
    command = [sys.executable, "-c", DIE_WITH_PARENT, program, folder / "etc" / f"{name}-server.conf", "-v"]
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def _wait_for(ports: Iterable[int], folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not all(map(_listens, ports)):
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            logs = {name: (folder / f"{name}.log").read_text()[-500:] for name in SERVERS}
            raise RuntimeError(f"swift did not start: {logs}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
