"""A child process of a run, as the parent sees it: started, heard, killed, and asked what it died of."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crm_cli.errors import CrmError, ErrorClass, retold
from crm_cli.run.machine import no_process
from crm_cli.run.wire import Unframer
from crm_cli.toolbox import memory_kills

FAREWELL_S = 2.0
"""How long an idle child may take to leave before it is killed."""

DUMP_S = 1.0
"""How long a child that hangs may take to write down where."""

MAX_LOG_BYTES = 1 << 16
"""What is kept as evidence of a child's last words."""

UNSEEN: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}
"""Settings of a process that is to find no accelerator."""

BOOT = "import sys; sys.path.append(sys.argv[1]); from crm_cli.run.{module} import main; main()"
"""Starts a child. Python's -P keeps the current folder off its path: it may hold somebody's torch.py."""


class Death(NamedTuple):
    """How a child ended."""

    kind: ErrorClass
    code: str
    reason: str


class Child:
    """A process that reports over its stdout and complains into a file."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        stdin: Any,
        threads: int,
        log: Path,
        inherits: Collection[int] = (),
        sees_accelerators: bool = True,
    ) -> None:
        """Start `main` of one of our modules.

        arguments: what it finds in sys.argv before its parent's number. inherits: descriptors it needs.
        sees_accelerators: else no library in it takes hundreds of megabytes of each for a context.
        """
        self._log = log
        with log.open("ab") as errors:
            self._log_start = errors.tell()
            settings = {**_thread_limits(threads), **({} if sees_accelerators else UNSEEN)}
            self._process = _spawn(module, arguments, stdin, errors, settings, inherits)
        assert self._process.stdout is not None
        self.reports = self._process.stdout.fileno()
        self.unframer = Unframer()
        self.complaint = ""
        """Why it had to be killed for what it said."""
        self._is_overdue = False
        self._kills_before: int | None = None
        self.begin_work()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def stdin(self) -> Any:
        """Where it listens, if that is a pipe."""
        return self._process.stdin

    @property
    def log(self) -> Path:
        """Where it complains."""
        return self._log

    def begin_work(self) -> None:
        """Remember how many processes the kernel has killed for want of memory before a photo's turn."""
        self._kills_before = memory_kills()

    def give_up(self) -> None:
        """End a process that gives no sign of life, after it has written down where it hangs."""
        self._is_overdue = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)  # faulthandler answers, also from native code
        self.wait_for_exit(DUMP_S)
        self.kill()

    def kill(self) -> None:
        """Kill the process and everything it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait_for_exit(self, timeout_s: float) -> None:
        """Give the process time to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def dispose(self) -> None:
        """Reap the process and close its pipes; an empty log is no evidence.

        One that not even SIGKILL ends, as under a driver or disk that hangs, is left to the system.
        """
        self.wait_for_exit(FAREWELL_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    @property
    def signal(self) -> int | None:
        """The signal it died of."""
        status = self._process.returncode or 0
        return -status if status < 0 else None

    def was_killed_from_outside(self) -> bool:
        """Whether somebody sent SIGKILL who was neither this process nor, as it counts them, the kernel."""
        is_ours = self._is_overdue or self.complaint
        before, after = self._kills_before, memory_kills()
        is_known = before is not None and after == before
        return self._process.returncode == -signal.SIGKILL and is_known and not is_ours

    def last_log(self) -> str:
        """The end of what this process has said; the file may hold its predecessors' words as well."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - MAX_LOG_BYTES))
            return file.read(MAX_LOG_BYTES).decode("utf-8", "backslashreplace")
        return ""

    def death(self, who: str, *, limit_s: float) -> Death:
        """Class, code and words for how the process ended. limit_s: of the stage in which it did."""
        status = self._process.returncode or 0
        if self._is_overdue:
            return Death("timeout", "E_TIMEOUT", f"no sign of life for {limit_s:g} s")
        if self.complaint:
            return Death("crash", "E_PROTOCOL", self.complaint)
        if status == -signal.SIGKILL:
            return Death("oom", "E_KILLED", f"the {who} was killed, most likely for want of memory")
        if status < 0:
            return Death("crash", "E_CRASH", f"the {who} died with {signal.Signals(-status).name}")
        return Death("crash", "E_EXIT", f"the {who} left with status {status}")


def _spawn(
    module: str,
    arguments: Collection[str],
    stdin: Any,
    errors: Any,
    settings: Mapping[str, str],
    inherits: Collection[int],
) -> subprocess.Popen[bytes]:
    package = Path(__file__).resolve().parents[2]
    code = BOOT.format(module=module)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(package), *arguments, str(os.getpid())],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **settings},
            pass_fds=tuple(inherits),
            # A group of its own: Ctrl-C in the terminal reaches the parent alone, even before a worker
            # can ignore it, and a kill takes a worker's children along.
            process_group=0,
        )
    except OSError as error:
        raise no_process(error) from error


def _thread_limits(threads: int) -> dict[str, str]:
    """Environment that keeps every numeric library of a child to its share of the cores.

    Set before the start: most of them read it once, when they are loaded.
    """
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


def refusal(message: Mapping[str, Any]) -> CrmError | None:
    """The error with which a child refused to open or to go on, where that is what it says."""
    return retold(message["refused"]) if "refused" in message else None
