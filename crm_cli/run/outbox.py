"""What follows from a mirror into the store: pages, pictures, logs, journals, and what was taken away."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from crm_cli.run.commits import CommitRecord, Output
from crm_cli.run.mirror import PAGE, PRIVATE, REAL, Mirror, look
from crm_cli.run.remote import ANY
from crm_cli.run.store import REPORT
from crm_cli.run.sums import SUMS

STAYS = re.compile(r"\.crm/(lock|lease|reserve).*|(.*/)?\.crm-[^/]*")
"""What is put by rules of its own, or not at all."""

PUT_ELSEWHERE = frozenset({"cache", "journal", "records", "runs", "tmp"})
"""Private folders of which that is true as well, or that are looked at by themselves."""

EARLY = re.compile(rf"\.crm/runs/[^/]+/run\.json|{REPORT}/thumbs/[^/]+")
"""What does not wait for the end of the run: a killed one must not take it along."""

MARK = f"{PRIVATE}/sheet"


class Outbox:
    """Puts what has changed in a mirror, unless it goes into the store the moment it is made."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._here = mirror.folder
        self._remote = mirror.remote
        self._told: dict[str, tuple[int, int]] = {}
        """How many bytes of a journal the store has, and in how many segments."""
        self._turn = threading.Lock()

    def push(self, *, is_last: bool) -> None:
        """Put what has changed here. is_last: pages and logs as well."""
        with self._turn:
            self._mirror.require_lease()
            changed = [name for name in self._changed() if is_last or EARLY.fullmatch(name)]
            pages = [name for name in changed if PAGE.fullmatch(name)]
            if pages and MARK in self._mirror.stamps:
                # As in a folder: it must never outlive the sheet it was written for.
                self._remote.remove(MARK)
            others = [name for name in changed if name != MARK and not PAGE.fullmatch(name)]
            marks = [name for name in changed if name == MARK]
            for group in (others, pages, marks):
                self._remote.each(self._put, group)
            if is_last:
                stale = self._vanished(lambda name: name == SUMS or bool(PAGE.fullmatch(name)))
                self._remote.each(self._remote.remove, stale)
            for journal in sorted((self._here / PRIVATE / "journal").glob("*.ndjson")):
                self._tell(journal)

    def push_removals(self) -> None:
        """Remove from the store what has been removed here, of what is crm's alone."""
        gone = self._vanished(lambda name: name.startswith((f"{PRIVATE}/", f"{REPORT}/thumbs/")))
        self._remote.each(self._remote.remove, gone)
        for name in gone:
            self._mirror.same.pop(name)

    def push_records(self) -> None:
        """Put and remove records and intents as they were put and removed here."""
        self.adopt()
        changed = []
        for path in sorted((self._here / PRIVATE / "records").glob("*/*")):
            name = self._mirror.name_of(path)
            if REAL.fullmatch(name) and self._mirror.same.get(name) != look(path):
                changed.append(name)
        # New ones first: a record that became an intent must never be neither.
        self._remote.each(self._put, changed)
        self.push_removals()

    def adopt(self) -> None:
        """Note in records what the store says of files that only their bytes told to be ours.

        So it is where a folder was copied into the store, or an object put once more: they are read once.
        """
        for path in sorted((self._here / PRIVATE / "records").glob("*/*.json")):
            with contextlib.suppress(ValueError, RecursionError):
                record = CommitRecord.from_bytes(path.read_bytes())
                outputs = tuple(self._known(output) for output in record.outputs)
                if outputs != record.outputs:
                    path.write_bytes(replace(record, outputs=outputs).as_bytes())
                    self._put(self._mirror.name_of(path))

    def _known(self, output: Output) -> Output:
        """A file with its etag, where it is as it was written."""
        name = str(output.path)
        stamp = self._mirror.stamps.get(name)
        is_ours = stamp is not None and look(self._here / name) == (output.size, output.mtime_ns)
        return replace(output, etag=stamp.etag) if stamp and is_ours else output

    def _changed(self) -> Iterator[str]:
        private = self._here / PRIVATE
        for root in (private / "runs", self._here / REPORT, private):
            for here, folders, files in os.walk(root):
                if Path(here) == private:
                    folders[:] = set(folders) - PUT_ELSEWHERE
                for file in sorted(files):
                    path = Path(here) / file
                    name = self._mirror.name_of(path)
                    if not STAYS.fullmatch(name) and self._mirror.same.get(name) != look(path):
                        yield name
        if (self._here / SUMS).exists() and self._mirror.same.get(SUMS) != look(self._here / SUMS):
            yield SUMS

    def _vanished(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Names of what was here and is not any more; none where the folder itself has vanished."""
        if not (self._here / PRIVATE).is_dir():
            return []
        meant = filter(is_meant, self._mirror.same)
        return [name for name in meant if not os.path.lexists(self._here / name)]

    def _put(self, name: str) -> None:
        path = self._here / name
        before = look(path)
        if before is None:
            return
        stamp = self._remote.put(path, name, over=ANY)
        self._mirror.stamps[name] = stamp
        if name.startswith(f"{REPORT}/thumbs/"):
            self._mirror.stand_in(name, stamp.size, 0)
        else:
            self._mirror.same[name] = before

    def _tell(self, journal: Path) -> None:
        """Put the lines of a journal that the store does not have yet, as a segment of their own."""
        name = self._mirror.name_of(journal)
        if name in self._mirror.same:
            return
        told, number = self._told.get(name, (0, 0))
        with journal.open("rb") as file:
            file.seek(told)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        if lines:
            number += 1
            self._remote.write(f"{name.removesuffix('.ndjson')}-{number:05}.ndjson", lines)
            self._told[name] = (told + len(lines), number)
