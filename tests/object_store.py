"""A server that speaks S3, on this machine alone, that counts requests and fails some of them when told.

Started by the fixture `store`; `python object_store.py` serves until its stdin ends. Faults are an error
answer (500 or 503), a connection reset before the request is heard, and one reset after the request was
obeyed, so that only its answer is lost.
"""

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

KEY = "AKIDCRMTESTONLY"
SECRET = "very-secret-indeed-0123456789"

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class ObjectStore:
    """The running server, as tests see it."""

    def __init__(self, url: str) -> None:
        import boto3

        self.url = url
        self.client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        self._buckets = itertools.count()

    def new_bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{os.getpid()}-{next(self._buckets)}"
        self.client.create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(one["Key"] for page in pages for one in page.get("Contents", ()))

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Every object that is for people, by its name below a prefix."""
        names = (name for name in self.names(bucket, prefix) if "/.crm/" not in f"/{name}")
        return {name.removeprefix(prefix): self.get(bucket, name) for name in names}

    def begin_upload(self, bucket: str, key: str) -> None:
        """Begin an upload in parts that nobody ends."""
        upload = self.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        self.client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")

    def uploads(self, bucket: str) -> list[str]:
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def requests(self) -> Counter[tuple[str, str]]:
        """Method and path of every request since the last question."""
        return Counter((method, path) for method, path in self._ask("requests"))

    @contextlib.contextmanager
    def failing(self, rate: float, *, seed: int = 0) -> Iterator[list[int]]:
        """Fail so many of all requests; the list says how many, once it is over."""
        self._ask(f"faults?rate={rate}&seed={seed}")
        failed: list[int] = []
        try:
            yield failed
        finally:
            failed.append(self._ask("faults?rate=0&seed=0"))

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/__crm__/{what}", timeout=60) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving() -> Iterator[ObjectStore]:
    """Start a server, and end it."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        try:
            yield ObjectStore(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    with serving() as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    """What the standard environment of a person with access holds."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": store.url}.items():
        monkeypatch.setenv(name, value)


class _Gate:
    """Counts requests, and lets some of them fail."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._seen: list[tuple[str, str]] = []
        self._random = random.Random(0)
        self._rate = 0.0
        self._failed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/__crm__/"):
            answer = json.dumps(self._answer(path.removeprefix("/__crm__/"), environ["QUERY_STRING"]))
            start_response("200 OK", [("Content-Type", "application/json")])
            return [answer.encode()]
        with self._lock:
            self._seen.append((environ["REQUEST_METHOD"], path))
            kind = ""
            if self._random.random() < self._rate:
                self._failed += 1
                kind = self._random.choice(["500", "503", "deaf", "mute"])
        if kind in ("500", "503"):
            code = "InternalError" if kind == "500" else "SlowDown"
            start_response(f"{kind} Sorry", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>sorry</Message></Error>".encode()]
        if kind == "deaf":
            return self._reset(environ)
        body = self._app(environ, start_response)
        return self._reset(environ, body) if kind == "mute" else body

    def _answer(self, what: str, query: str) -> Any:
        with self._lock:
            if what == "requests":
                seen, self._seen = self._seen, []
                return seen
            told = parse_qs(query)
            failed, self._failed = self._failed, 0
            self._rate = float(told["rate"][0])
            self._random = random.Random(int(told["seed"][0]))
            return failed

    @staticmethod
    def _reset(environ: dict[str, Any], body: Iterable[bytes] = ()) -> Iterable[bytes]:
        for _ in body:
            pass
        connection: socket.socket = environ["werkzeug.socket"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)  # other hands hold it as well: closing alone would do nothing
        connection.close()
        raise ConnectionResetError


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, _Gate(app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
