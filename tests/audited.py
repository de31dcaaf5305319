"""The command line with fakes in it, and a list of what it asked of the file system.

    AUDITED=FILE python tests/audited.py convert IN -o OUT …

FILE gets a JSON object: `opened` [[path, whether to write], …], `changed` paths moved, removed
or otherwise altered, `started` programs, `looks` how often a file was asked for its size and time.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime")


class Ear:
    """Hears of every call; Python tells of all but looks, which it is made to."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, bool]] = []
        self.changed: list[str] = []
        self.started: list[str] = []
        self.looks = 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(arguments[0], int):
            self.opened.append((os.fsdecode(arguments[0]), bool(arguments[2] & WRITING)))
        elif event in CHANGES:
            paths = [path for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            self.changed += map(os.fsdecode, paths)
        elif event == "subprocess.Popen":
            self.started.append(str(arguments[0]))

    def counting(self, look: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.looks += 1
            return look(*arguments, **more)

        return counted


if __name__ == "__main__":
    import fakes

    from crm_cli.cli.app import main

    ear, tell = Ear(), Path(os.environ["AUDITED"])
    atexit.register(lambda: tell.write_text(json.dumps(vars(ear))))
    os.stat, os.lstat = ear.counting(os.stat), ear.counting(os.lstat)
    sys.addaudithook(ear.hear)
    main(fakes.engine())
