"""A hub on this machine: enough of one for the hub's own library, and faults on request.

Like the real one it answers a question about a large file with a redirect to a store on another host, here
127.0.0.1 instead of localhost, that must never see a token.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked and what was answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int
    sent: int = 0
    """Bytes of the body."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with a file."""

    cut_after: int | None = None
    """Bytes of a body after which the connection breaks."""
    hangs: bool = False
    """Whether it stays open instead, and silent."""
    times: int | None = None
    """How often; None: always."""
    status: int | None = None
    """Refuse with this."""
    answers: int = 0
    """How many questions are answered before that."""
    etag: str | None = None
    size: int | None = None
    """What is said of the file, and is not so."""
    contents: bytes | None = None
    """Sent instead of what the digest is of."""
    ignores_ranges: bool = False
    busy: int = 0
    """How often the store answers 503 first."""

    def refuses(self) -> bool:
        """Whether a question is refused this time."""
        self.answers -= 1
        return self.status is not None and self.answers < 0

    def strikes(self) -> bool:
        """Whether a body is cut this time."""
        if self.cut_after is None or self.times == 0:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass(slots=True, kw_only=True)
class HubStandIn:
    """One repository, and a record of all requests."""

    files: Mapping[str, bytes]
    repository: str = "test/crm"
    small: frozenset[str] = frozenset()
    """Files that git keeps itself: sent from here, and known by its SHA-1."""
    token: str | None = None
    """Who has it may read."""
    is_gated: bool = False
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    store: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    """Set when hanging connections should end."""

    def downloads(self) -> list[Request]:
        """Requests for contents."""
        return [request for request in self.requests if request.method == "GET" and request.sent]

    def digest(self, name: str) -> str:
        """What the hub calls a file."""
        data = self.files[name]
        if name in self.small:
            return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return hashlib.sha256(data).hexdigest()


def environment(hub: HubStandIn, folder: Path) -> dict[str, str]:
    """Variables of a user who asks this hub and keeps everything in a folder."""
    spare = ("HF_", "CRM_", "HUGGING", "TRANSFORMERS_")
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(spare) and not name.lower().endswith("_proxy")
    }
    return {
        **own,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "CRM_WEIGHTS_HOME": str(folder / "home"),
        "COLUMNS": "200",
        "TERM": "xterm",
    }


@contextmanager
def serving(hub: HubStandIn) -> Iterator[HubStandIn]:
    """Answer for a hub as long as the block lasts."""

    class Bound(_Handler):
        stand_in = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.endpoint = f"http://localhost:{server.server_port}"
    hub.store = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.stand_in
        if match := re.fullmatch(r"/store/(.+)", self.path):
            self._send(match[1])
        elif match := re.fullmatch(rf"/{re.escape(hub.repository)}/resolve/([^/]+)/(.+)", self.path):
            self._resolve(match[1], match[2])
        else:
            # The hub does not tell strangers which names exist.
            self._refuse(404 if self._has_token() else 401, "RepoNotFound")

    def _resolve(self, revision: str, name: str) -> None:
        hub = self.stand_in
        fault = hub.faults.get(name, Fault())
        if hub.token is not None and not self._is_token_right():
            code = "GatedRepo" if hub.is_gated else "RepoNotFound"
            self._refuse(403 if self._has_token() else 401, code)
        elif fault.refuses():
            self._refuse(fault.status or 500, "")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif name not in hub.files:
            self._refuse(404, "EntryNotFound")
        elif name in hub.small:
            self._send(name)
        else:
            self._reply(
                302,
                {
                    "Location": f"{hub.store}/store/{name}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{fault.etag or hub.digest(name)}"',
                    "X-Linked-Size": str(fault.size or len(hub.files[name])),
                    "Content-Length": "0",
                },
            )

    def _send(self, name: str) -> None:
        """A file or its end, as far as the fault lets it come."""
        hub = self.stand_in
        fault = hub.faults.get(name, Fault())
        if fault.busy:
            fault.busy -= 1
            self._refuse(503, "")
            return
        data = hub.files[name] if fault.contents is None else fault.contents
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not fault.ignores_ranges else 0
        body = data[start:]
        headers = {
            "Content-Length": str(len(body)),
            "ETag": f'"{hub.digest(name)}"',
            "X-Repo-Commit": COMMIT,
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        is_cut = self.command == "GET" and fault.strikes()
        body = b"" if self.command == "HEAD" else body[: fault.cut_after] if is_cut else body
        self._reply(206 if start else 200, headers, body)
        if is_cut:
            if fault.hangs:
                hub.released.wait()
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._reply(
            status, {"X-Error-Code": code, "Content-Length": "0"} if code else {"Content-Length": "0"}
        )

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.stand_in.requests.append(
            Request(
                method=self.command,
                path=self.path,
                range=self.headers.get("Range"),
                token=token,
                status=status,
                sent=len(body),
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _has_token(self) -> bool:
        return "Authorization" in self.headers

    def _is_token_right(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.stand_in.token}"
