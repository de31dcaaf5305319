import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED = "import os, signal, sys, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)"


def start(folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Start crm, which is interrupted as soon as it imports typer."""
    (folder / "typer.py").write_text(f"{INTERRUPTED}; sys.exit('went on')")
    paths = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
    return subprocess.run(
        [sys.executable, "-m", "crm_cli", "--help"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, **more,  # type: ignore[call-overload]
    )  # fmt: skip


def test_an_interrupt_while_the_command_line_loads_ends_it_without_a_word(tmp_path: Path) -> None:
    done = start(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_that_the_caller_ignores_is_ignored(tmp_path: Path) -> None:
    done = start(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (1, "went on\n")


def test_an_interrupt_is_heard_as_before_once_the_command_line_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import crm_cli.__main__
    from crm_cli.cli import app

    heard = []
    monkeypatch.setattr(app, "main", lambda engine: heard.append(signal.getsignal(signal.SIGINT)))
    crm_cli.__main__.main()
    assert heard == [signal.default_int_handler]
