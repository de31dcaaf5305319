"""A real browser without a window, driven by WebDriver with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-dev-shm-usage", "--no-default-browser-check", "--disable-extensions",
    "--window-size=1200,1000",
    # WebGL without a graphics card.
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    # Nothing a page asks for leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

PATIENCE_S = 60.0

KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "End": "\ue010", "ArrowRight": "\ue014"}
"""Keys without a letter, as WebDriver calls them."""


class Refused(Exception):
    """The driver's answer to what cannot be done; names the error."""


class Browser:
    """One page at a time."""

    def __init__(self, base: str) -> None:
        self._base = base

    def open(self, file: Path) -> None:
        self._ask("POST", "/url", url=file.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns, or what its promise becomes; it is not bound by the page's policy."""
        return self._ask("POST", "/execute/sync", script=script, args=list(arguments))

    def until(self, script: str, *arguments: Any) -> Any:
        """What a script returns as soon as that is something."""
        ends = time.monotonic() + PATIENCE_S
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < ends, script
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as a hand does."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._ask("POST", "/actions", actions=[{"type": "key", "id": "hand", "actions": strokes}])

    def attach(self, selector: str, file: Path) -> None:
        """Choose a file for an input."""
        found = self._ask("POST", "/element", using="css selector", value=selector)
        self._ask("POST", f"/element/{next(iter(found.values()))}/value", text=str(file))

    def requests(self) -> list[str]:
        """The addresses that were asked for since this was last asked."""
        told = self._ask("POST", "/se/log", type="performance")
        messages = [json.loads(line["message"])["message"] for line in told]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def log(self) -> list[dict[str, Any]]:
        """What the console has said since it was last asked."""
        said: list[dict[str, Any]] = self._ask("POST", "/se/log", type="browser")
        return said

    def has_dialog(self) -> bool:
        try:
            self._ask("GET", "/alert/text")
        except Refused as error:
            assert str(error) == "no such alert"
            return False
        return True

    def tabs(self) -> int:
        return len(self._ask("GET", "/window/handles"))

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        return ask(method, self._base + path, body)


def ask(method: str, address: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode() if method == "POST" else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    # Not through anybody's proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(json.load(error)["value"]["error"]) from None


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own; skip the test where there is none.

    What it downloads lies in the profile's folder `downloads`.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt install chromium chromium-driver")
    command = [driver, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            port = next(
                found[1]
                for line in process.stdout
                if (found := re.search(r"successfully on port (\d+)", line))
            )
            watchdog.cancel()
            base = f"http://127.0.0.1:{port}/session"
            options = {
                "binary": chromium,
                "args": [*FLAGS, f"--user-data-dir={profile}"],
                "prefs": {
                    "download.default_directory": str(profile / "downloads"),
                    # A script may ask for one after another.
                    "profile.default_content_setting_values.automatic_downloads": 1,
                },
            }
            logged = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logged}
            session = ask("POST", base, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            try:
                yield Browser(f"{base}/{session}")
            finally:
                ask("DELETE", f"{base}/{session}", {})
        finally:
            watchdog.cancel()
            process.terminate()
