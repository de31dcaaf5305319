"""What is known of finished assets: the keys they were made under, their records, and how those are read.

OUT/.crm/records/aa/<asset>.<key>.json      one for each finished asset, written last
OUT/.crm/records/aa/<asset>.<key>.intent    the same before its files are moved into place
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from crm_cli.preset import STAGE_SECTIONS, Preset, value_of
from crm_cli.records import Camera, Checks, Publication, RealSize, Verdict
from crm_cli.run.files import FULL_OR_GONE, Input, hash_file, listed, read_whole, unreadable
from crm_cli.run.wire import PathText, dumps, from_plain, to_plain

STAGE_NUMBERS: Mapping[str, int] = {"prep": 2, "views": 2, "mesh": 3, "out": 3}
"""Raised by hand when a stage's code gives another result; the package's version would redo everything."""

LATER_SETTINGS: Mapping[str, Any] = {"cutout.framing": "subject"}
"""Settings that came after their stage's number, with the value that says what was done before.

With that value a setting is no part of a key, so that an upgrade redoes nothing.
"""


NO_EXTRAS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What an asset depends on, stage after stage; each key holds the one before it."""

    prep: str
    views: str
    mesh: str
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything beside the photo that an asset depends on.

    Neither device nor engine, folder, time or worker is part of it: they decide where an asset is made,
    not what it is.
    """

    words: Mapping[str, str]
    """What a stage reads beside what came before it, by stage: a part of the JSON whose hash is its key."""
    weights: Mapping[str, str]
    """Digest of the weights that a stage reads, for the stages that read any."""
    params_sha: str
    seeds: tuple[int, ...]
    """Those that are tried, in their order; the settings name the first."""

    @property
    def seed(self) -> int:
        """The first of them."""
        return self.seeds[0]

    @classmethod
    def of(cls, preset: Preset, weights: Mapping[str, str]) -> Recipe:
        """Digest a preset once for a whole run."""
        words = {
            stage: json.dumps(
                [_settings_digest(preset, sections), weights.get(stage, ""), STAGE_NUMBERS[stage]]
            )[1:-1]
            for stage, sections in STAGE_SECTIONS.items()
        }
        return cls(words=words, weights=weights, params_sha=preset.fingerprint(), seeds=preset.seeds())

    def keys(self, input_sha256: str, extras: Mapping[str, str] = NO_EXTRAS) -> Keys:
        """Hash input, settings, weights and stage numbers together, stage after stage.

        extras: what this photo's asset alone depends on, in any words, by the stage that reads it.
        """
        prep = self._key("prep", input_sha256, extras)
        views = self._key("views", prep, extras)
        mesh = self._key("mesh", views, extras)
        return Keys(prep=prep, views=views, mesh=mesh, out=self._key("out", mesh, extras))

    def _key(self, stage: str, before: str, extras: Mapping[str, str]) -> str:
        extra = f", {json.dumps(extras[stage])}" if stage in extras else ""
        return hashlib.sha256(f'["{before}", {self.words[stage]}{extra}]'.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One published file: what a look at it must find for the record to count."""

    path: PurePosixPath
    size: int
    mtime_ns: int
    sha256: str
    etag: str = ""
    """What the object store that holds it said of it; empty in a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """Everything known about one finished asset."""

    v: int = 1
    asset: PurePosixPath
    id: str
    stem: PurePosixPath
    input: Input
    keys: Keys
    outputs: tuple[Output, ...]
    weights: Mapping[str, str]
    weights_name: str = ""
    """Of the whole set, as `weights_digest`; empty in records of version 0.1.0."""
    weights_digest: str = ""
    params_sha: str
    seed: int
    """Of the try that was kept; the settings name the first of them."""
    seconds: Mapping[str, float]
    checks: Checks
    publication: Publication = field(default_factory=Publication)
    size: RealSize | None = None
    """What a listing says the product measures."""
    verdict: Verdict | None = None
    """None in records of version 0.1.0."""
    warnings: tuple[str, ...]
    camera: Camera | None = None
    """Where the photo was taken from; None in records of version 0.1.0."""
    run: str
    attempt: int
    t: float
    crm: str

    @property
    def file_name(self) -> str:
        """Name without suffix; it carries the key, so that listing a folder is planning enough."""
        return f"{self.id}.{self.keys.out[:12]}"

    def as_bytes(self) -> bytes:
        """One line of JSON that ends with the checksum of everything before it."""
        body = dumps(self)[:-1].encode("ascii")
        return body + b',"crc":"%08x"}\n' % zlib.crc32(body)

    @classmethod
    def from_bytes(cls, raw: bytes) -> CommitRecord:
        """Read what as_bytes wrote; ValueError where a single byte is wrong."""
        return from_plain(cls, json.loads(_intact(raw) + b"}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKey:
    """All of an asset's keys that a plan compares: it holds the others."""

    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGlance:
    """What a plan reads of a published file."""

    path: PathText
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What a plan reads of a commit record: what decides whether it counts, and what is said of it then."""

    stem: PathText
    input: Input
    keys: LastKey
    outputs: tuple[OutputGlance, ...]
    t: float
    verdict: Verdict | None = None

    @classmethod
    def from_bytes(cls, raw: bytes) -> Glance:
        """Read from what CommitRecord.as_bytes wrote; ValueError where a single byte is wrong."""
        body = _intact(raw)
        start, end = body.find(b',"weights":'), body.find(b',"verdict":')
        if 0 < start < end:
            # How the asset was made is half of a record, and would take half of the time to parse.
            with contextlib.suppress(ValueError):
                return from_plain(cls, json.loads((b"%b%b}" % (body[:start], body[end:])).decode()))
        return from_plain(cls, json.loads(body + b"}"))


R = TypeVar("R", CommitRecord, Glance)


def _intact(raw: bytes) -> bytes:
    """A record without its checksum and last brace; ValueError where the checksum is not right."""
    body, mark, tail = raw.rpartition(b',"crc":"')
    if not mark or tail != b'%08x"}\n' % zlib.crc32(body):
        raise ValueError("checksum does not match")
    return body


def _settings_digest(preset: Preset, sections: Sequence[str]) -> str:
    """SHA-256 over what a stage reads of a preset, as canonical JSON."""
    values = {name: to_plain(value_of(preset, name)) for name in sections}
    for key, silent in LATER_SETTINGS.items():
        section, _, name = key.partition(".")
        if section in values and values[section].get(name) == silent:
            del values[section][name]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Records:
    """The commit records of an output folder; reading them needs no lock."""

    out: Path
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Asset id → names of its records and intents."""

    @classmethod
    def scan(cls, out: Path) -> Records:
        """List the records without opening one; OutputError where they cannot be listed."""
        names: dict[str, tuple[str, ...]] = {}
        try:
            for folder in listed(out / ".crm" / "records"):
                for entry in listed(Path(folder)):
                    if entry.name.endswith((".json", ".intent")):
                        asset = entry.name.partition(".")[0]
                        names[asset] = (*names.get(asset, ()), entry.name)
        except OSError as error:
            raise unreadable(out, error) from error
        return cls(out=out, names=names)

    def of(self, asset_id: str, *, with_intents: bool = False) -> list[CommitRecord]:
        """Read the records of one asset, newest first; damaged ones do not count.

        Raises OutputError where the disk fails: an asset is not unfinished because nobody can look.
        """
        return self._read(CommitRecord, asset_id, (".json", ".intent") if with_intents else (".json",))

    def glance(self, asset_id: str) -> list[Glance]:
        """Read no more of an asset's records than a plan needs, newest first; damaged ones do not count."""
        return self._read(Glance, asset_id, (".json",))

    def _read(self, kind: type[R], asset_id: str, suffixes: tuple[str, ...]) -> list[R]:
        found = []
        for name in self.names.get(asset_id, ()):
            if not name.endswith(suffixes):
                continue
            try:
                found.append(kind.from_bytes(self._bytes(name)))
            except (OSError, ValueError, RecursionError):
                continue
        found.sort(key=lambda record: record.t, reverse=True)
        return found

    def _bytes(self, name: str) -> bytes:
        try:
            # A text, as a Path takes longer to make than the file to read.
            return read_whole(f"{self.out}/.crm/records/{name[:2]}/{name}")
        except OSError as error:
            if error.errno in FULL_OR_GONE:
                raise unreadable(self.out, error) from error
            raise

    def path(self, name: str) -> Path:
        """Where a record or intent of this name is."""
        return self.out.joinpath(".crm", "records", name[:2], name)

    def newest(self) -> Iterator[CommitRecord]:
        """Yield the latest record of every asset."""
        for asset_id in sorted(self.names):
            yield from self.of(asset_id)[:1]

    def intact(self, record: CommitRecord | Glance) -> bool:
        """Whether every file of a record is there as it was written."""
        return all(self.is_as_written(output) for output in record.outputs)

    def is_as_written(self, output: Output | OutputGlance) -> bool:
        """Whether a published file still has the size and time its record names."""
        try:
            found = os.lstat(f"{self.out}/{output.path}")
        except OSError:
            return False
        same = (found.st_size, found.st_mtime_ns) == (output.size, output.mtime_ns)
        return same and stat.S_ISREG(found.st_mode)

    def is_copy(self, output: Output | OutputGlance) -> bool:
        """Whether a published file has another time than its record names, but the same bytes."""
        file = self.out / output.path
        try:
            found = file.lstat()
            is_alike = stat.S_ISREG(found.st_mode) and found.st_size == output.size
            return is_alike and hash_file(file).sha256 == output.sha256
        except OSError:
            return False

    def set_times(self, outputs: Sequence[Output | OutputGlance]) -> None:
        """Give files of the right bytes the times that their record names: nobody need read them again."""
        for output in outputs:
            with contextlib.suppress(OSError):  # a file of somebody else's may be read, not touched
                times = (output.mtime_ns, output.mtime_ns)
                os.utime(self.out / output.path, ns=times, follow_symlinks=False)
