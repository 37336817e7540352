"""A model hub of local folders on a loopback port, with as much of the API as `fetch` and `datasets` ask for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """`folders`: `models/owner/name` or `datasets/owner/name` to a folder; what is in `gated` gives out no files."""

    daemon_threads = True

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders
        self.gated: set[str] = set()
        self.asked: list[str] = []  # method and path of each request
        # What was uploaded: `owner/name` to file's name to content; which of them are private; tokens that were shown.
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def fake_hub(**folders: Path) -> Iterator[FakeHub]:
    """Serve folders given as `models__owner__name=...`."""
    server = FakeHub({key.replace("__", "/"): folder for key, folder in folders.items()})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Into the test's output nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if self.command == "POST" and (answer := self._write(parts)) is not None:
            self._json(answer)
            return
        if parts[0] == "api":
            repo, rest = "/".join(parts[1:4]), parts[4:]
        else:
            parts = parts if parts[0] == "datasets" else ["models", *parts]
            repo, rest = "/".join(parts[:3]), parts[3:]
        if (name := repo.partition("/")[2]) in self.server.uploaded and not rest:
            self._json({"id": name, "modelId": name, "private": name in self.server.private, "siblings": []})
            return
        folder = self.server.folders.get(repo)
        if folder is None:
            self._send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["resolve"]:
            self._file(repo, folder, "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            self._json([_entry(folder, path) for path in sorted(folder.rglob("*"))])
        elif rest[:1] == ["paths-info"]:
            wanted = json.loads(self.body)["paths"]
            self._json([_entry(folder, folder / name) for name in wanted if name and (folder / name).exists()])
        else:
            self._json(_info(repo.partition("/")[2], folder))

    def _write(self, parts: list[str]) -> object:
        """The answer to a request that makes a repository or a commit; None for any other."""
        repo, rest = "/".join(parts[2:4]), parts[4:]
        if parts[1:3] == ["repos", "create"]:
            asked = json.loads(self.body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.tokens.add(self.headers.get("Authorization"))
            if repo not in self.server.uploaded:
                self.server.uploaded[repo] = {}
                self.server.private |= {repo} if asked.get("visibility") == "private" else set()
            return {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo}
        if parts[1:] == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        if rest[:1] == ["preupload"]:
            names = [one["path"] for one in json.loads(self.body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if rest[:1] == ["commit"]:
            for line in map(json.loads, self.body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.uploaded[repo][line["value"]["path"]] = content
            return {"commitUrl": f"{self.server.url}/{repo}/commit/{SHA}", "commitOid": SHA, "hookOutput": ""}
        return None

    def _file(self, repo: str, folder: Path, name: str) -> None:
        if repo in self.server.gated:
            self._send(b"", 403, {"X-Error-Code": "GatedRepo"})
        elif not (folder / name).is_file():
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        else:
            content = (folder / name).read_bytes()
            self._send(content, 200, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": SHA})

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": _digest(content), "size": len(content)}


def _info(repo: str, folder: Path) -> dict[str, object]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    siblings = [
        {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0" * 40}
        for path in files
    ]
    return {"id": repo, "modelId": repo, "sha": SHA, "private": False, "tags": [], "siblings": siblings}
