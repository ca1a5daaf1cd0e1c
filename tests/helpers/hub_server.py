"""A hub on this machine: it stores what is pushed and serves it again; models, Spaces and datasets."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40  # the revision of a repository to which nothing was committed
TEMPLATE = (
    b"---\ntitle: Space\nsdk: gradio\n---\n\nCheck out the configuration reference at https://huggingface.co/docs\n"
)
REPO = r"/api/(models|spaces|datasets)/([^/]+/[^/]+)"
RESOLVE = r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)"
Files = dict[str, bytes]


@dataclass
class Hub:
    """The content that the hub was sent."""

    address: str = ""
    refusal: int | None = None  # status with which it answers everything
    error_code: str = ""  # the hub's own name for that refusal
    repos: dict[str, Files] = field(default_factory=dict)  # "spaces/OWNER/NAME" -> path -> content
    created: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    large: Files = field(default_factory=dict)  # by SHA-256
    heads: dict[str, str] = field(default_factory=dict)  # repository -> revision
    private: set[str] = field(default_factory=set)
    hardware: dict[str, str] = field(default_factory=dict)  # "OWNER/NAME" -> flavor
    no_hardware: int | None = None  # status with which it refuses hardware
    before_commit: Callable[[], None] | None = None  # what somebody else does just before a commit arrives

    def commit(self, repo: str, files: Files) -> None:
        """Replace files of a repository by a commit."""
        self.repos[repo] = self.repos.get(repo, {}) | files
        self.move_head(repo)

    def move_head(self, repo: str) -> None:
        """Give a repository a new revision."""
        self.heads[repo] = hashlib.sha1(self.heads.get(repo, COMMIT).encode()).hexdigest()


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Serve a hub until the context ends."""
    hub = Hub()

    class Handler(Answering):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def describe_file(path: str, content: bytes) -> dict[str, Any]:
    """Return a file's entry in a listing: a large file has its SHA-256, any other its id in git."""
    entry = {"type": "file", "path": path, "size": len(content)}
    if path.endswith(".safetensors"):
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry | {"oid": "0" * 40, "lfs": large}
    return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


class Answering(BaseHTTPRequestHandler):
    """Handler of one request."""

    hub: Hub

    def do_POST(self) -> None:
        path, body = urlsplit(unquote(self.path)).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_refused():
            return
        repo = re.match(REPO, path)
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif repo and "/preupload/" in path:
            self._choose_modes(json.loads(body))
        elif repo and "/paths-info/" in path:
            self._describe_paths(self.hub.repos.get("/".join(repo.groups()), {}), parse_qs(body.decode())["paths"])
        elif repo and "/commit/" in path:
            if self.hub.before_commit:
                self.hub.before_commit()
            self._commit("/".join(repo.groups()), [json.loads(line) for line in body.splitlines()])
        elif repo and path.endswith("/hardware"):
            self._choose_hardware(repo[2], json.loads(body)["flavor"])
        elif path.endswith("/info/lfs/objects/batch"):
            self._offer_uploads(json.loads(body))
        else:
            self._send({})  # the check of front matter, and of uploads

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.large[hashlib.sha256(body).hexdigest()] = body
        self._send({})

    def do_GET(self) -> None:
        path = urlsplit(unquote(self.path)).path
        if self._is_refused():
            return
        repo = re.match(REPO, path)
        if repo and "/tree/" in path:
            self._describe_paths(self.hub.repos["/".join(repo.groups())])
        elif found := re.fullmatch(RESOLVE, path):
            self._hand_out(f"{found[1] or 'models/'}{found[2]}", found[3])
        elif repo and "/".join(repo.groups()) not in self.hub.repos:
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            name = "/".join(repo.groups()) if repo else ""
            head, private = self.hub.heads.get(name, COMMIT), name in self.hub.private
            about = {"id": name.partition("/")[2], "sha": head, "private": private}
            self._send(about | {"siblings": [{"rfilename": each} for each in self.hub.repos.get(name, {})]})

    do_HEAD = do_GET

    def _is_refused(self) -> bool:
        token = self.headers.get("Authorization", "")
        self.hub.tokens.add(token)
        if self.hub.refusal is not None:
            headers = {"X-Error-Code": self.hub.error_code} if self.hub.error_code else {}
            self._send({"error": f"You may not, you sent {token}"}, self.hub.refusal, headers)
        return self.hub.refusal is not None

    def _create(self, asked: dict[str, Any]) -> None:
        self.hub.created.append(asked)
        kind, name = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
        if f"{kind}/{name}" in self.hub.repos:
            self._send({"error": "You already created this repository"}, 409)
            return
        self.hub.repos[f"{kind}/{name}"] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if kind == "spaces":
            self.hub.repos[f"{kind}/{name}"]["README.md"] = TEMPLATE
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(f"{kind}/{name}")
        self._send({"url": f"{self.hub.address}/{'spaces/' if kind == 'spaces' else ''}{name}"})

    def _choose_modes(self, asked: dict[str, Any]) -> None:
        modes = [
            (each["path"], "lfs" if each["path"].endswith(".safetensors") else "regular") for each in asked["files"]
        ]
        self._send({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def _offer_uploads(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/put/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repos[repo]
        parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
        if parent not in (None, self.hub.heads.get(repo, COMMIT)):
            self._send({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.move_head(repo)
        head = self.hub.heads[repo]
        url = f"{self.hub.address}/{repo.removeprefix('models/')}/commit/{head}"
        self._send({"commitOid": head, "commitUrl": url, "success": True})

    def _choose_hardware(self, repo: str, flavor: str) -> None:
        if self.hub.no_hardware:
            self._send({"error": "Payment required: add a card"}, self.hub.no_hardware)
            return
        self.hub.hardware[repo] = flavor
        self._send({"stage": "BUILDING", "hardware": {"current": None, "requested": flavor}})

    def _describe_paths(self, files: Files, paths: list[str] | None = None) -> None:
        """Return the entries of a repo's files: all, or those among `paths`, with the folders among them."""
        entries = [describe_file(name, data) for name, data in files.items()]
        folders = {path for path in paths or () if any(name.startswith(f"{path}/") for name in files)}
        shown = [each for each in entries if paths is None or each["path"] in paths]
        self._send([*shown, *({"type": "directory", "path": path, "oid": "0"} for path in folders)])

    def _hand_out(self, repo: str, path: str) -> None:
        content = self.hub.repos.get(repo, {}).get(path)
        if content is None:
            self._send({}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.heads.get(repo, COMMIT)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self._send(content, 200, about)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(content[start:stop], 206, about)

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
