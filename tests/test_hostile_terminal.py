"""Hostile names on a real terminal: nothing but our own control sequences reaches it."""

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile import MARKUP, TERMINAL, UNICODE
from test_cli import ENVIRONMENT, HERE, QUICK, plant, read_terminal

from crm_cli.names import display_name

OURS = re.compile(
    r"\x1b\[\?25[lh]|"  # the cursor, hidden and shown again
    r"\x1b\[\d*(?:;\d+)*m|"  # colours
    r"\x1b\[\d*[AK]|\x1b\[2K|\r|\n"  # one row up, and a row wiped
)

NAMES = [f"{number:02}{name}" for number, name in enumerate([*MARKUP, *TERMINAL, *UNICODE])]


@pytest.mark.parametrize("progress", ["bar", "plain"])
def test_no_control_sequence_of_a_name_reaches_the_terminal(tmp_path: Path, progress: str) -> None:
    photos = plant(tmp_path / "in", *(f"{name}.jpg" for name in NAMES))
    plant(
        photos,
        *(f"input_{name}/input_{name}.jpg" for name in TERMINAL),
        *(f"{name}.part.gif" for name in TERMINAL),
    )
    (photos / "\x1b[2Jlink.jpg").symlink_to("nothing")
    leader, follower = pty.openpty()
    words = [
        "convert",
        photos,
        "-o",
        tmp_path / "out",
        *QUICK,
        "--format",
        "glb",
        "--progress",
        progress,
        "-v",
    ]
    process = subprocess.Popen(
        [sys.executable, HERE / "fakes.py", *map(str, words)],
        stderr=follower,
        stdout=follower,
        env=ENVIRONMENT,
    )
    os.close(follower)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    seen = read_terminal(leader, b"no such bytes", patience_s=120).decode("utf-8")
    os.close(leader)
    assert process.wait() == 3
    watchdog.cancel()
    left = OURS.sub("", seen)
    assert [letter for letter in left if not letter.isprintable() and letter not in "\u200d\ufe0f"] == []
    for name in (name for name in TERMINAL if "/" not in name):
        assert f"input_{display_name(name)}/input_{display_name(name)}.jpg: nothing in the picture" in left
    assert "\\x1b[2Jlink.jpg: cannot be read" in left
    assert seen.count("\x1b[?25h") == (progress == "bar")
