"""The power goes at any moment: what the disk may then hold, and what the next run makes of it (A4).

A run is recorded call by call. A model replays the record on a disk that keeps what was synced and, of all
that was not, whatever it likes: none or any part of a file's bytes, any of a folder's new and changed names.
That is harsher than any real file system, and allowed. Each such disk is laid out, and the real code resumes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fakes import engine

from blows.bench import Bench, Finding, assets
from blows.injected import why_not as why_not
from crm_cli.errors import CrmError
from crm_cli.preset import Preset, load_preset
from crm_cli.run.batch import convert
from crm_cli.run.events import AssetPlanned
from crm_cli.run.options import RunOptions

CALLS = "write,fsync,fdatasync,ftruncate,open,openat,rename,renameat,renameat2,unlink,unlinkat,mkdir,rmdir"

LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")

TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|<((?:\\x[0-9a-f]{2})*)>')
"""A string of the program's, or the path behind a descriptor; strace writes both in hex."""

RECOVERED = 0.002
"""Share of crashed disks on which a whole run is made: looking at its plan is a hundred times as fast."""


@dataclass(eq=False)
class Node:
    """A file or a folder of the model, and what was done to it, in order."""

    changes: list[tuple[int, object]] = field(default_factory=list)
    """When, and what: bytes appended, a size cut to, or for a folder names with their new nodes."""
    syncs: list[int] = field(default_factory=list)
    mtime_ns: int = 0

    def after(self, crash: int, dice: random.Random) -> list[object]:
        """What of its changes a crash leaves: all that were synced, and any of the others."""
        safe = max((at for at in self.syncs if at <= crash), default=-1)
        share = dice.choice((0.0, 0.3, 0.7, 1.0))
        return [
            change for at, change in self.changes if at <= safe or (at <= crash and dice.random() < share)
        ]


class File(Node):
    """A file: appended to, or cut."""

    size = 0

    def content(self, crash: int, dice: random.Random) -> bytes:
        """Its bytes after a crash; a write that was not synced may be torn, or leave zeros."""
        safe = max((at for at in self.syncs if at <= crash), default=-1)
        data = bytearray()
        for at, change in self.changes:
            if at > crash:
                break
            if isinstance(change, int):
                del data[change:]
                continue
            assert isinstance(change, bytes)
            fate = "kept" if at <= safe else dice.choice(("kept", "kept", "torn", "zeros", "gone"))
            if fate == "gone":
                continue
            part = change[: dice.randrange(len(change) + 1)] if fate == "torn" else change
            data += bytes(len(part)) if fate == "zeros" else part
        return bytes(data)


class Folder(Node):
    """A folder: each change names entries that come, or go where the node is None."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, Node] = {}

    def change(self, at: int, names: dict[str, Node | None]) -> None:
        """Change entries, now and in the record; one change is kept or lost as a whole."""
        self.changes.append((at, names))
        _apply(self.entries, names)

    def listing(self, crash: int, dice: random.Random) -> dict[str, Node]:
        """Its entries after a crash."""
        entries: dict[str, Node] = {}
        for names in self.after(crash, dice):
            assert isinstance(names, dict)
            _apply(entries, names)
        return entries


def _apply(entries: dict[str, Node], names: dict[str, Node | None]) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


@dataclass
class Recording:
    """All that a run did to the folder that holds its output folder."""

    top: Path
    root: Folder
    length: int = 0
    acknowledged: list[tuple[int, str]] = field(default_factory=list)
    """When the journal's line about a finished photo was synced, and which photo."""
    renames: list[tuple[int, File, Folder, str]] = field(default_factory=list)

    @classmethod
    def of(cls, bench: Bench, top: Path) -> Recording:
        """Run in `top/out`, and record; what stands in top before is safe on the disk."""
        log = bench.root / "log"
        recording = cls(top, _as_it_stands(top))
        strace = ["strace", "--seccomp-bpf", "-f", "-y", "-xx", "-s", "1000000", "-o", str(log)]
        done = bench.run(top / "out", prefix=[*strace, "-e", f"trace={CALLS}"])
        assert done.code == 0, done.stderr
        for line in _whole_lines(log.read_text()):
            recording._hear(line)
        recording._date(top, recording.root)
        return recording

    def lay_out(self, crash: int, dice: random.Random, to: Path) -> None:
        """Make the disk that a crash leaves."""
        _lay_out(self.root, crash, dice, to)

    def unsynced_renames(self) -> list[str]:
        """Files put under a name before their bytes, or without their folder's entry, are safe."""
        wrong = []
        for at, file, folder, name in self.renames:
            last = max((when for when, _ in file.changes if when < at), default=-1)
            if not any(last < when < at for when in file.syncs):
                wrong.append(f"{name} is renamed before it is synced")
            if not any(when > at for when in folder.syncs):
                wrong.append(f"the folder of {name} is not synced after the rename")
        return wrong

    def _hear(self, line: str) -> None:
        """Do to the model what a call did to the disk."""
        found = LINE.match(line)
        if not found or int(found[4]) < 0:
            return
        call, words = found[2], found[3]
        strings = [bytes.fromhex((text or path).replace("\\x", "")) for text, path in TEXT.findall(words)]
        self.length += 1
        if call == "write":
            self._write(os.fsdecode(strings[0]), strings[1][: int(found[4])] if len(strings) > 1 else b"")
        elif call in ("fsync", "fdatasync"):
            self._sync(os.fsdecode(strings[0]))
        elif call == "ftruncate":
            node = self._find(os.fsdecode(strings[0]))
            if isinstance(node, File):
                node.changes.append((self.length, int(words.rpartition(",")[2])))
        else:
            self._name(call, words, _paths(words))

    def _name(self, call: str, words: str, paths: Sequence[str]) -> None:
        """Calls that change names."""
        if call in ("open", "openat"):
            folder, name = self._place(paths[0])
            if folder and "O_CREAT" in words and name not in folder.entries:
                folder.change(self.length, {name: File()})
            elif folder and "O_TRUNC" in words:
                folder.entries[name].changes.append((self.length, 0))
        elif call == "mkdir":
            folder, name = self._place(paths[0])
            if folder:
                folder.change(self.length, {name: Folder()})
        elif call.startswith(("unlink", "rmdir")):
            folder, name = self._place(paths[0])
            if folder:
                folder.change(self.length, {name: None})
        elif call.startswith("rename"):
            (source, old), (target, new) = self._place(paths[0]), self._place(paths[1])
            if source and target:
                self._rename(source, old, target, new)

    def _rename(self, source: Folder, old: str, target: Folder, new: str) -> None:
        node = source.entries[old]
        if source is target:
            source.change(self.length, {new: node, old: None})
        else:
            target.change(self.length, {new: node})
            source.change(self.length, {old: None})
        if isinstance(node, File):
            self.renames.append((self.length, node, target, new))

    def _write(self, path: str, data: bytes) -> None:
        node = self._find(path)
        if isinstance(node, File):
            node.changes.append((self.length, data))

    def _sync(self, path: str) -> None:
        node = self._find(path)
        if node is None:
            return
        if "/.crm/journal/" in path and isinstance(node, File):
            since = max(node.syncs, default=-1)
            for at, data in node.changes:
                if at > since and isinstance(data, bytes) and b'"ev":"asset_done"' in data:
                    self.acknowledged.append((self.length, json.loads(data)["asset"]))
        node.syncs.append(self.length)

    def _find(self, path: str) -> Node | None:
        if path == str(self.top):
            return self.root
        folder, name = self._place(path)
        return folder.entries.get(name) if folder else None

    def _place(self, path: str) -> tuple[Folder | None, str]:
        """The folder that a path leads to, and the name in it; None where that is not ours."""
        try:
            parts = PurePosixPath(path).relative_to(self.top).parts
        except ValueError:
            return None, ""
        folder: Node = self.root
        for part in parts[:-1]:
            if not isinstance(folder, Folder) or part not in folder.entries:
                return None, ""
            folder = folder.entries[part]
        return (folder, parts[-1]) if parts and isinstance(folder, Folder) else (None, "")

    def _date(self, path: Path, folder: Folder) -> None:
        """Give every file that is left the time it had in the end: a torn file is not told by its time."""
        for name, node in folder.entries.items():
            if isinstance(node, Folder):
                self._date(path / name, node)
            else:
                node.mtime_ns = (path / name).lstat().st_mtime_ns


def crashes(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Crash at any call of three runs: into nothing, into somebody's folders, over an older version."""
    # None at the top, where each would save what hangs from there.
    bench = Bench(root, "sub/a.jpg", "sub/b.png", "sub/deep/c.jpg")
    recordings = list(_recorded(bench))
    finding = Finding([words for recording in recordings for words in recording.unsynced_renames()])
    finding.figures["renames"] = sum(len(recording.renames) for recording in recordings)
    yield finding
    preset = load_preset("tiny").preset
    disks = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else root
    place = disks / f"crm-{os.getpid()}-{root.name}"
    try:
        while True:
            recording = dice.choice(recordings)
            crash = dice.randrange(recording.length + 1)
            recording.lay_out(crash, dice, place)
            finding = Finding(_resumed(bench, preset, recording, crash, place / "out"))
            if dice.random() < RECOVERED:
                finding.wrong += bench.unsettled(place / "out")
                finding.figures["recovered by a run"] += 1
            finding.wrong = [f"call {crash} of {recording.length}: {words}" for words in finding.wrong]
            yield finding
            shutil.rmtree(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _recorded(bench: Bench) -> Iterator[Recording]:
    for name in ("empty", "shared", "older"):
        top = bench.root / name
        top.mkdir()
        if name == "shared":
            (top / "out" / "sub" / "deep").mkdir(parents=True)
        if name == "older":
            bench.run(top / "out", "--set", "seed=5")
            bench.others.append(assets(top / "out"))
        yield Recording.of(bench, top)


def _resumed(bench: Bench, preset: Preset, recording: Recording, crash: int, out: Path) -> list[str]:
    """What is wrong with what the next run would make of a disk."""
    wrong = bench.corrupt(out)
    options = RunOptions(inputs=(bench.photos,), out=out, device="cpu", dry_run=True)
    try:
        events = list(convert(preset, options, engine=engine()))
    except CrmError as error:
        return [*wrong, f"the next run refuses: {error}"]
    plan = [event for event in events if isinstance(event, AssetPlanned)]
    counted = {str(event.path) for event in plan if event.action == "cached"}
    for asset in counted:
        stem = str(PurePosixPath(asset).with_suffix(""))
        for name, data in bench.whole.items():
            if name.startswith(f"{stem}.") and (out / name).read_bytes() != data:
                wrong.append(f"{asset} counts as finished, and {name} is not whole")
    known = {asset for at, asset in recording.acknowledged if at <= crash}
    wrong += [f"{asset} was acknowledged and is lost" for asset in sorted(known - counted)]
    conflicts = sorted(str(event.path) for event in plan if event.action == "conflict")
    return wrong + [f"{asset} is taken for somebody's" for asset in conflicts]


def _as_it_stands(path: Path) -> Folder:
    """The model of what is safe on the disk before a run."""
    folder = Folder()
    for entry in sorted(path.iterdir()):
        node: Node
        if entry.is_dir():
            node = _as_it_stands(entry)
        else:
            node = File(changes=[(0, entry.read_bytes())], mtime_ns=entry.lstat().st_mtime_ns)
        node.syncs.append(0)
        folder.change(0, {entry.name: node})
    folder.syncs.append(0)
    return folder


def _lay_out(folder: Folder, crash: int, dice: random.Random, to: Path) -> None:
    to.mkdir()
    for name, node in folder.listing(crash, dice).items():
        if isinstance(node, Folder):
            _lay_out(node, crash, dice, to / name)
        elif isinstance(node, File):
            (to / name).write_bytes(node.content(crash, dice))
            os.utime(to / name, ns=(node.mtime_ns, node.mtime_ns))


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of strace's, put together where another process came between."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        pid = line.partition(" ")[0]
        if line.endswith(" <unfinished ...>"):
            begun[pid] = line.removesuffix(" <unfinished ...>")
        elif " resumed>" in line and pid in begun:
            yield begun.pop(pid) + line.partition(" resumed>")[2]
        else:
            yield line


def _paths(words: str) -> list[str]:
    """Paths that a call names; a relative one is in the folder behind the descriptor before it."""
    paths: list[str] = []
    folder = ""
    for text, behind in TEXT.findall(words.partition(" = ")[0]):
        if behind:
            folder = os.fsdecode(bytes.fromhex(behind.replace("\\x", "")))
        else:
            name = os.fsdecode(bytes.fromhex(text.replace("\\x", "")))
            paths.append(name if name.startswith("/") else f"{folder}/{name}")
    return paths
