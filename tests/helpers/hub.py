"""A stand-in for the Hub on loopback: enough of its API for the real clients, and faults on demand.

Only huggingface_hub, datasets and transformers speak to it, which get its address by HF_ENDPOINT. What it
stores is kept in memory; every request is noted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .runner import run

WRITER = "hf_writerWriterWriter"
READER = "hf_readerReaderReader"
_LARGE = (".safetensors", ".bin", ".parquet", ".model")


@dataclass(frozen=True)
class Blob:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the Hub calls it: git's hash, or for a large file the SHA-256 of its content."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        head = f"blob {len(self.content)}\0".encode()
        return hashlib.sha1(head + self.content).hexdigest()


@dataclass
class Repo:
    """A repository: its commits (files by path) and what its refs name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: Mapping[str, Blob], parent: str | None = None) -> str:
        parent = parent or self.refs.get(ref)
        whole = {**self.commits.get(parent or "", {}), **files}
        listing = json.dumps({name: blob.oid for name, blob in sorted(whole.items())})
        sha = hashlib.sha1(f"{parent}{len(self.commits)}{listing}".encode()).hexdigest()
        self.commits[sha] = whole
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Fault:
    """What goes wrong with requests that match, and how often.

    Attributes:
        request: A pattern of "METHOD /path".
        kind: status, drop (the connection ends halfway through the body that is received, or that is
            sent), stall, etag (another ETag than the content has), short (fewer bytes than the listing
            tells, and no sign of it), garbage (an answer that is no JSON).
        times: How many requests it hits.
    """

    request: str
    kind: str = "status"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    seconds: float = 30.0
    times: int = 10**6


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that was killed hangs up in the middle: nothing to tell."""


class Hub:
    """The server; a context manager."""

    def __init__(self, *, large: tuple[str, ...] = _LARGE) -> None:
        self.large = large
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.pull_requests = 0
        self.lock = threading.RLock()
        self.stopping = threading.Event()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def add(
        self,
        name: str,
        folder: Path,
        *,
        kind: str = "models",
        ref: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Put a folder's files into a repository."""
        repo = self.repos.setdefault((kind, name), Repo(private, gated))
        files = {
            path.relative_to(folder).as_posix(): self.blob(path.name, path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return repo.commit(ref, files)

    def blob(self, name: str, content: bytes) -> Blob:
        return Blob(content, name.endswith(self.large))

    def files(self, name: str, ref: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a repository holds."""
        repo = self.repos[kind, name]
        return {path: blob.content for path, blob in repo.commits[repo.refs[ref]].items()}

    def sent(self, pattern: str) -> list[Request]:
        """The requests that match."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """The variables that make the real clients speak to this Hub."""
        dropped = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "PYTEST_CURRENT_TEST")
        kept = {k: v for k, v in os.environ.items() if k not in dropped}
        added = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return kept | added | ({"HF_TOKEN": token} if token else {})


class Desk:
    """A working directory with its own HF_HOME, from which kdshrink is called."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.home = folder / "home"

    def __call__(
        self, *typed: str, token: str | None = WRITER, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a kdshrink command in this process."""
        chosen = {**self.hub.environment(self.home, token), **environment}
        return run(*typed, env=chosen, cwd=self.folder)

    def python(
        self, *typed: str, token: str | None = WRITER, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python in a process of its own: `-m kdshrink …` is a command."""
        return subprocess.run(
            [sys.executable, *typed],
            env={**self.hub.environment(self.home, token), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def json(self, *typed: str, **how: Any) -> dict[str, Any]:
        """Run a command with --json, and what it printed."""
        done = self(*typed, "--json", **how)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.route = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.fault = self._next_fault(f"{self.command} {self.route}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault and self.fault.kind == "drop" and length > 1:
            self.rfile.read(length // 2)
            self._hang_up()
            return
        self.body = self._read_chunks() if self._chunked() else self.rfile.read(length)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.route, self.body))
        fault = self.fault
        if fault and fault.kind == "stall":
            self.hub.stopping.wait(fault.seconds)
        if fault and fault.kind == "status":
            self._answer(fault.status, fault.body, dict(fault.headers))
            return
        if fault and fault.kind == "garbage":
            self._answer(200, b"<html>come back later</html>", {"Content-Type": "text/html"})
            return
        for pattern, name in _ROUTES:
            method, _, path = pattern.partition(" ")
            found = re.fullmatch(path, self.route)
            if found and self.command in method.split("|"):
                with self.hub.lock:
                    answer = getattr(self, name)(**found.groupdict())
                if answer is not None:
                    self._json(200, answer)
                return
        self._json(404, {"error": f"no such place: {self.command} {self.route}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _next_fault(self, request: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            if self.fault and self.fault.kind == "drop":
                return b""
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if self.fault and self.fault.kind == "drop":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self._hang_up()
                return
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def _json(self, status: int, content: Any, **headers: str) -> None:
        headers = {"Content-Type": "application/json", **headers}
        self._answer(
            status,
            json.dumps(content).encode(),
            {k.replace("_", "-"): v for k, v in headers.items()},
        )

    # --- who may do what

    def _role(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {WRITER: "write", READER: "read"}.get(token)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X_Error_Message": message}
        if code:
            headers["X_Error_Code"] = code
        self._json(status, {"error": message}, **headers)

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, or None when the refusal was sent."""
        repo = self.hub.repos.get((kind, name))
        role = self._role()
        if "Authorization" in self.headers and role is None:
            self._refuse(401, "Invalid credentials in Authorization header")
            return None
        if repo is None or (repo.private and role is None):
            if role is None:
                self._refuse(401, "Invalid username or password.", "RepoNotFound")
            else:
                self._refuse(404, "Repository not found", "RepoNotFound")
            return None
        if repo.gated and role != "write" and "/resolve/" in self.route:
            self._refuse(403, f"Access to {name} is restricted", "GatedRepo")
            return None
        return repo

    def _writable(self, kind: str, name: str) -> Repo | None:
        repo = self._repo(kind, name)
        if repo is not None and self._role() != "write":
            self._refuse(403, "You don't have the rights to do this")
            return None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str | None:
        sha = repo.resolve(revision)
        if sha is None:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # --- the API

    def whoami(self) -> Any:
        role = self._role()
        if role is None:
            return self._refuse(401, "Invalid credentials in Authorization header")
        token = {"role": role, "displayName": "test"}
        return {
            "type": "user",
            "name": "tester",
            "orgs": [{"name": "org"}],
            "auth": {"accessToken": token},
        }

    def validate_yaml(self) -> Any:
        import yaml

        content = json.loads(self.body)["content"]
        if not content.startswith("---"):
            return {"warnings": [{"message": "empty or missing yaml metadata"}], "errors": []}
        try:
            assert isinstance(yaml.safe_load(content.split("---")[1]), dict), "no mapping"
        except (AssertionError, yaml.YAMLError) as error:
            return self._json(400, {"errors": [{"message": str(error)}]})
        return {"warnings": [], "errors": []}

    def create(self) -> Any:
        asked = json.loads(self.body)
        owner = asked.get("organization") or "tester"
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if self._role() is None:
            return self._refuse(401, "Invalid credentials in Authorization header")
        if self._role() != "write" or owner not in ("tester", "org"):
            return self._refuse(403, f"You don't have the rights to create a model under {owner}")
        if ("models", name) in self.hub.repos:
            return self._json(409, {"error": "You already created this model repo", "url": url})
        repo = self.hub.repos["models", name] = Repo(asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        return {"url": url, "name": name}

    def auth_check(self, kind: str, name: str, write: str | None) -> Any:
        repo = self._writable(kind, name) if write else self._repo(kind, name)
        return None if repo is None else {}

    def info(self, kind: str, name: str, revision: str | None) -> Any:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        sha = self._commit_of(repo, revision or "main")
        if sha is None:
            return None
        files = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        gated = "manual" if repo.gated else False
        return {
            "_id": "0",
            "id": name,
            "sha": sha,
            "private": repo.private,
            "gated": gated,
            "siblings": files,
            "tags": [],
            "downloads": 0,
        }

    def refs(self, kind: str, name: str) -> Any:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha}
            for ref, sha in repo.refs.items()
        ]
        return {"branches": branches, "converts": [], "tags": []}

    def branch(self, kind: str, name: str, branch: str) -> Any:
        repo = self._writable(kind, name)
        if repo is None:
            return None
        if branch in repo.refs:
            return self._refuse(409, "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        return {}

    @staticmethod
    def _entry(path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content)}
        entry["oid"] = blob.oid if not blob.large else hashlib.sha1(blob.oid.encode()).hexdigest()
        if blob.large:
            entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 130}
        return entry

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> Any:
        repo = self._repo(kind, name)
        if repo is None or (sha := self._commit_of(repo, revision)) is None:
            return None
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        deep = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in repo.commits[sha].items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                if deep or depth == 1:
                    inner = prefix + "/".join(parts[:depth])
                    entries[inner] = {
                        "type": "directory",
                        "path": inner,
                        "oid": "0" * 40,
                        "size": 0,
                    }
            if deep or len(parts) == 1:
                entries[path] = self._entry(path, blob)
        if prefix and not entries:
            return self._refuse(404, f"{folder} does not exist", "EntryNotFound")
        return list(entries.values())

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        repo = self._repo(kind, name)
        if repo is None or (sha := self._commit_of(repo, revision)) is None:
            return None
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode())["paths"]
        files = repo.commits[sha]
        found = [self._entry(path, files[path]) for path in wanted if path in files]
        for path in wanted:
            if path not in files and any(other.startswith(f"{path}/") for other in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return found

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        as_request = self.query.get("create_pr") == ["1"]
        repo = self._repo(kind, name) if as_request else self._writable(kind, name)
        if repo is None or (sha := self._commit_of(repo, revision)) is None:
            return None
        there = repo.commits[sha]
        files = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["path"].endswith(self.hub.large) else "regular",
                "shouldIgnore": False,
                "oid": there[asked["path"]].oid if asked["path"] in there else None,
            }
            for asked in json.loads(self.body)["files"]
        ]
        return {"files": files}

    def lfs_batch(self, name: str) -> Any:
        if self._repo("models", name) is None:
            return None
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid = wanted["oid"]
            entry = {"oid": oid, "size": wanted["size"]}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{oid}?signature=of-storage"}
                verify = {"href": f"{self.hub.url}/lfs-verify/{oid}"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._refuse(400, "this is not the content of that checksum")
        self.hub.objects[oid] = self.body
        return {}

    def lfs_verify(self, oid: str) -> Any:
        if oid not in self.hub.objects:
            return self._refuse(404, "no such object")
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        as_request = self.query.get("create_pr") == ["1"]
        repo = self._repo(kind, name) if as_request else self._writable(kind, name)
        if repo is None or (parent := self._commit_of(repo, revision)) is None:
            return None
        files = {}
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
        ref, request = revision, {}
        if as_request:
            self.hub.pull_requests += 1
            number = self.hub.pull_requests
            ref = f"refs/pr/{number}"
            request = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        sha = repo.commit(ref, files, parent)
        return {"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", **request}

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> Any:
        repo = self._repo("datasets" if kind else "models", name)
        if repo is None or (sha := self._commit_of(repo, revision)) is None:
            return None
        blob = repo.commits[sha].get(path)
        if blob is None:
            return self._refuse(404, f"{path} does not exist", "EntryNotFound")
        content, status = blob.content, 200
        etag = blob.oid
        if self.fault and self.fault.kind == "etag":
            etag = hashlib.sha256(b"another").hexdigest() if blob.large else "0" * 40
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.fault and self.fault.kind in ("short", "etag") and self.command == "GET":
            keep = len(content) - len(content) // 2
            content = content[:keep] if self.fault.kind == "short" else content[::-1]
        elif found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[start : end + 1], 206
        headers["Content-Length"] = str(len(content))
        self._answer(status, content, headers)
        return None


_NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
_REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+|(?!.*/)[^/]+)"
_REVISION = r"(?P<revision>refs/convert/[^/]+|refs/pr/\d+|[^/]+)"
_ROUTES = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/validate-yaml", "validate_yaml"),
    ("POST /api/repos/create", "create"),
    (rf"GET {_REPO}/auth-check(?P<write>/write)?", "auth_check"),
    (rf"GET {_REPO}/refs", "refs"),
    (rf"GET {_REPO}/tree/{_REVISION}(?P<folder>/.*)?", "tree"),
    (rf"POST {_REPO}/paths-info/{_REVISION}", "paths_info"),
    (rf"POST {_REPO}/preupload/{_REVISION}", "preupload"),
    (rf"POST {_REPO}/commit/{_REVISION}", "commit"),
    (rf"POST {_REPO}/branch/(?P<branch>.+)", "branch"),
    (rf"GET {_REPO}(?:/revision/{_REVISION})?", "info"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]+)", "lfs_put"),
    (r"POST /lfs-verify/(?P<oid>[0-9a-f]+)", "lfs_verify"),
    (rf"GET|HEAD /(?:(?P<kind>datasets)/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
)
