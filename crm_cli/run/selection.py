"""Which of the photos found are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from crm_cli.run.shards import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the photos found are wanted."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Glob patterns for the relative path or the bare name; `*` also crosses folders."""
    is_recursive: bool = True
    limit: int | None = None
    shard: Shard | None = None
    """The part of everything that is wanted; the limit counts within it."""
    follow_symlinks: bool = False
    """Whether links may lead out of the input, and linked folders are searched."""

    def wants(self, path: PurePosixPath) -> bool:
        """Whether the patterns let a photo in."""
        return (not self.include or _matches(path, self.include)) and not _matches(path, self.exclude)


def _matches(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    """Whether any pattern fits the relative path or the bare name."""
    return any(fnmatchcase(str(path), pattern) or fnmatchcase(path.name, pattern) for pattern in patterns)
