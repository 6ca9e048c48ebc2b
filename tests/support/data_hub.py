"""A stand-in for the hub that holds a few data sets: a server in a thread, the few routes that its clients ask for."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40
GATED = "org/gated"


class DataHub(BaseHTTPRequestHandler):
    """Serves ``sets``: the files of each set by their paths. ``asked`` are the paths asked for."""

    sets: Mapping[str, Mapping[str, bytes]]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        if path == "/api/datasets":
            return self._json([{"id": name, "_id": name} for name in self.sets])
        owner_name, _, rest = path.removeprefix("/api").removeprefix("/datasets/").partition("/")
        name, _, rest = rest.partition("/")
        name = f"{owner_name}/{name}"
        if name == GATED:
            return self._send(403, b"", code="GatedRepo")
        if name not in self.sets:
            return self._send(404, b"", code="RepoNotFound")
        if path.startswith("/api/"):
            return self._about(name, rest)
        return self._file(self.sets[name].get(rest.removeprefix("resolve/").partition("/")[2]))

    def _about(self, name: str, rest: str) -> None:
        files = self.sets[name]
        if rest in ("", "revision/main", f"revision/{COMMIT}"):
            return self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        if rest.startswith("paths-info/"):
            text = self._body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else []
            return self._json([_entry(path, files[path]) for path in asked if path in files])
        if rest.startswith("tree/"):
            inside = rest.partition("/")[2].partition("/")[2]
            return self._json([_entry(p, body) for p, body in files.items() if p.startswith(inside)])
        return self._send(404, b"", code="RevisionNotFound" if rest.startswith("revision/") else "EntryNotFound")

    def _file(self, body: bytes | None) -> None:
        if body is None:
            return self._send(404, b"", code="EntryNotFound")
        wanted = self.headers.get("range", "").removeprefix("bytes=")
        if not wanted:
            return self._send(200, body)
        first, _, last = wanted.partition("-")
        return self._send(206, body[int(first) : int(last) + 1 if last else None])

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _send(self, status: int, body: bytes, *, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"1"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _entry(path: str, body: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(body), "oid": "2" * 40}


@contextmanager
def data_hub(sets: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A hub with these sets while the context lasts: its address, and the paths that are asked for."""
    asked: list[str] = []
    handler = type("Handler", (DataHub,), {"sets": sets, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
