"""The command line in the process of a test, with its handler of errors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from crm_cli.cli.app import main


class Told(NamedTuple):
    code: int
    out: str
    err: str


Crm = Callable[..., Told]


@pytest.fixture
def crm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Crm:
    """The command line in this process, on a wide screen."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*words: str | Path) -> Told:
        monkeypatch.setattr(sys, "argv", ["crm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Told(int(ended.value.code or 0), out, " ".join(err.split()))

    return call
