"""What can go wrong: exit codes, and errors that carry their class, code and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Literal

ErrorClass = Literal["input", "internal", "oom", "crash", "timeout", "quality", "io", "conflict"]


class ExitCode(IntEnum):
    """What a caller may rely on; an unknown code means failure."""

    DONE = 0
    BUG = 1
    USAGE = 2
    SOME_FAILED = 3
    STOPPED_EARLY = 4
    OUTPUT = 5
    ENVIRONMENT = 6
    NO_INPUT = 7
    LOCKED = 11
    TIME_LIMIT = 75
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class CrmError(Exception):
    """An expected failure: a cause that names its file or key, a stable code, and what to do about it."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, cause: str, *, code: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.code = code
        self.remedy = remedy

    def __str__(self) -> str:
        """Return `cause [CODE]; remedy`."""
        text = f"{self.cause} [{self.code}]"
        return f"{text}; {self.remedy}" if self.remedy else text


class UsageError(CrmError):
    """The call or a preset is wrong; nothing was started."""

    exit_code = ExitCode.USAGE


class OutputError(CrmError):
    """The output folder cannot be written."""

    exit_code = ExitCode.OUTPUT


class EnvironmentProblem(CrmError):
    """The machine lacks something: a device, weights, a library."""

    exit_code = ExitCode.ENVIRONMENT


class StoppedEarly(CrmError):
    """The work ended by itself before its end; to be looked at before it is tried again."""

    exit_code = ExitCode.STOPPED_EARLY


class NoInput(CrmError):
    """No photo matched."""

    exit_code = ExitCode.NO_INPUT


class Locked(CrmError):
    """Another run holds the output folder."""

    exit_code = ExitCode.LOCKED


class PhotoError(CrmError):
    """One photo cannot become an asset; the run goes on with the others."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, cause: str, *, code: str, remedy: str = "", kind: ErrorClass = "input") -> None:
        super().__init__(cause, code=code, remedy=remedy)
        self.kind: ErrorClass = kind


def told(error: CrmError) -> dict[str, Any]:
    """An expected error as plain words and numbers, for another process to raise again."""
    return {
        "cause": error.cause,
        "code": error.code,
        "remedy": error.remedy,
        "exit_code": int(error.exit_code),
        "kind": getattr(error, "kind", None),
    }


def retold(words: Mapping[str, Any]) -> CrmError:
    """The error that another process has told of, with its own exit code."""
    cause, code, remedy = (str(words[name]) for name in ("cause", "code", "remedy"))
    if words["kind"] is not None:
        return PhotoError(cause, code=code, remedy=remedy, kind=words["kind"])
    families = {family.exit_code: family for family in (UsageError, OutputError, EnvironmentProblem)}
    return families.get(ExitCode(words["exit_code"]), EnvironmentProblem)(cause, code=code, remedy=remedy)
