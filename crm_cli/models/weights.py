"""Where weights are, and whether they are whole.

A set lies in a folder, in one of two layouts. What ships with the package has a file NAME.safetensors for
each network. What was converted from the published files has a list, weights.json, and each of its parts
in one or more files. Finding a set needs no torch: whoever plans a run asks for its digests.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.models import checked

DIRECTORY = Path(__file__).parent.parent / "weights"
"""The weights that ship with the package."""

PUBLISHED_FILES = ("CRM.pth", "pixel-diffusion.pth", "ccm-diffusion.pth")
"""The three checkpoints as they were published; they are converted before anything reads them."""

NAMES = ("rgb", "ccm", "reconstruction")
"""The networks of the embedded set, in the order of work; each is a file NAME.safetensors."""

LATENT_NAMES = ("rgb", "ccm", "vision", "vae", "contexts", "reconstruction")
"""The parts of a set of the published structure; `architectures` builds them."""

PARTS = {"small": NAMES, "release": LATENT_NAMES, "miniature": LATENT_NAMES}
"""What a set of each architecture must hold."""

SECOND = "ccm."
"""Marks a part that only the second diffusion reads, where the two were published with different ones."""

METADATA_KEY = "crm"
"""Of the metadata of our files: one JSON string, as safetensors writes several keys in any order."""

MANIFEST = "weights.json"
FORMAT = 1

_NAMED = ("embedded", "published")

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80")
"""What torch.save writes: a zip file, before its version 1.6 a pickle."""

CHUNK_BYTES = 1 << 24
"""Read at a time for a digest: enough for the disk, little enough to show progress."""

USE_EMBEDDED = "use --weights embedded"

NOTICED_BYTES = 10**8
"""Less is read before anyone wonders what is going on."""

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told as bytes go by: the part they belong to, how many are done, of how many."""


def ignore(part: str, done: int, of: int) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One file of a set, as it should be."""

    path: Path
    bytes: int
    sha256: str
    """Of its bytes, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSet:
    """The files of one whole system; all of them exist and have their size."""

    name: str
    """embedded, published, or what the folder is called."""
    architecture: str
    directory: Path
    parts: Mapping[str, tuple[WeightsFile, ...]]
    """Files of each of PARTS[architecture], and of those that only the second diffusion reads."""

    def files_of(self, part: str) -> tuple[WeightsFile, ...]:
        """The files of a part; both diffusions share what is there only once."""
        return self.parts[part if part in self.parts else part.removeprefix(SECOND)]

    def digest_of(self, *parts: str) -> str:
        """Stand for the contents of some parts: one file's own SHA-256, or that of all their digests."""
        digests = [file.sha256 for part in parts for file in self.files_of(part)]
        return digests[0] if len(digests) == 1 else _sha256("".join(digests))

    @property
    def digest(self) -> str:
        """Stand for the names and contents of all parts, and for the networks they are read into."""
        # The first version had one architecture, and gave digests without it.
        first = [] if self.architecture == "small" else [f"architecture {self.architecture}\n"]
        lines = [f"{part} {file.sha256}\n" for part, files in self.parts.items() for file in files]
        return _sha256("".join(first + lines))

    @property
    def bytes(self) -> int:
        """What all files take."""
        return sum(file.bytes for files in self.parts.values() for file in files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A set that the command line knows by name, and whether it can be used."""

    name: str
    directory: Path
    weights: WeightsSet | None
    problem: EnvironmentProblem | None
    """Why not; E_WEIGHTS_MISSING where there is simply nothing."""
    is_default: bool
    """Whether `auto` takes it, or would if it were whole."""


def home() -> Path:
    """Where converted weights are kept: CRM_WEIGHTS_HOME, or crm/weights in the user's data folder."""
    if chosen := os.environ.get("CRM_WEIGHTS_HOME"):
        return expanded(chosen)
    return expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "crm" / "weights"


def expanded(path: str) -> Path:
    """An absolute path, ~ being the user's home."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        # A user without a name and a home, as containers have them: there, home is the root.
        return Path("/", path.removeprefix("~/"))


def nearest(path: Path) -> Path:
    """The path itself, or what there is of the folders above it."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def find(choice: str) -> WeightsSet:
    """The weights a preset asks for; cheap, as large files are known by their sizes and listed digests.

    choice: `embedded`, what ships with the package; `published`, what `crm weights fetch` left; `auto`,
    the published set where there is one, else the embedded; or the path of a folder.
    """
    if not choice:
        raise UsageError("--weights: empty", code="E_WEIGHTS_NAME", remedy=_KNOWN)
    name = name_of(choice)
    if choice in ("auto", *_NAMED):
        return _open_folder(_folder_of(name), name)
    directory = expanded(choice)
    if Path(choice).name == choice and not _is_there(directory) and not _is_moved_away(directory):
        raise _no_such(choice)
    return _open_folder(directory, name)


_KNOWN = "auto, embedded, published, or the path of a folder"


def _no_such(name: str) -> EnvironmentProblem:
    close = difflib.get_close_matches(name, ("auto", *_NAMED), n=1)
    return EnvironmentProblem(
        f"{name}: no such weights, nor a folder of this name",
        code="E_WEIGHTS_MISSING",
        remedy=f"did you mean {close[0]}?" if close else f"there are {_KNOWN}",
    )


def name_of(choice: str) -> str:
    """What a preset's weights are called in files and reports: a folder by its name, not its path."""
    if choice == "auto":
        folder = _folder_of("published")
        return "published" if _is_there(folder) or _is_moved_away(folder) else "embedded"
    return choice if choice in _NAMED else expanded(choice).name


def _folder_of(name: str) -> Path:
    return DIRECTORY if name == "embedded" else home() / name


def _is_there(path: Path) -> bool:
    """Whether there is anything of this name: what cannot be looked at is, and reading it says why not."""
    try:
        return _exists(path)
    except OSError:
        return True


def _is_moved_away(folder: Path) -> bool:
    """Whether a conversion was killed after it moved a folder away, before the new one took its place."""
    return any(folder.parent.glob(f".{glob.escape(folder.name)}-*.old"))


def _exists(path: Path) -> bool:
    """Whether there is anything of this name; OSError where that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def known() -> list[Known]:
    """The sets that have a name, whether or not they are there."""
    default = name_of("auto")
    found = []
    for name in _NAMED:
        weights, problem = None, None
        try:
            weights = find(name)
        except EnvironmentProblem as error:
            problem = error
        found.append(
            Known(
                name=name,
                directory=_folder_of(name),
                weights=weights,
                problem=problem,
                is_default=name == default,
            )
        )
    return found


def _open_folder(directory: Path, name: str) -> WeightsSet:
    try:
        if _exists(directory / MANIFEST):
            return _listed(directory, name)
        files = {part: directory / f"{part}.safetensors" for part in NAMES}
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise _nothing_usable(directory, missing)
        parts = {
            part: (WeightsFile(path=file, bytes=file.stat().st_size, sha256=digest_of(file)),)
            for part, file in files.items()
        }
    except OSError as error:
        raise _unreadable(directory, error) from error
    return WeightsSet(name=name, architecture="small", directory=directory, parts=parts)


def _nothing_usable(directory: Path, missing: Sequence[str]) -> EnvironmentProblem:
    """Say what a place without a whole set is instead."""
    if directory != DIRECTORY and (alone := _trained_in(directory)):
        cause = "a network alone" if directory.is_file() else f"no {', '.join(missing)}"
        names = " ".join(shlex.quote(str(file)) for file in alone)
        return EnvironmentProblem(
            f"{directory}: {cause}",
            code="E_WEIGHTS_MISSING",
            remedy=f"run `crm weights combine {names} -o FOLDER`, and give that folder",
        )
    if _is_checkpoint(directory) or any((directory / file).is_file() for file in PUBLISHED_FILES):
        return EnvironmentProblem(
            f"{directory}: published checkpoints, which must be converted once",
            code="E_WEIGHTS_RAW",
            remedy=f"run `crm weights convert {shlex.quote(str(directory))}`",
        )
    code, remedy = "E_WEIGHTS_MISSING", remedy_for(directory)
    if directory.is_symlink() and not directory.exists():
        cause, code = "leads nowhere", "E_WEIGHTS_BROKEN"
    elif not directory.exists() and _is_moved_away(directory):
        cause, code = "its conversion was killed, the next one puts it back", "E_WEIGHTS_BROKEN"
    elif directory.is_file():
        cause, remedy = "a file, and no published checkpoint", f"{USE_EMBEDDED}, or name a folder of weights"
    elif not directory.is_dir():
        cause, remedy = "no such folder", remedy.replace("complete the folder", "check the path")
    elif directory == _folder_of("published"):
        cause, code = f"no {MANIFEST}", "E_WEIGHTS_BROKEN"
    else:
        cause = f"no {', '.join(missing)}"
    return EnvironmentProblem(f"{directory}: {cause}", code=code, remedy=remedy)


def _trained_in(place: Path) -> list[Path]:
    """Networks that `crm train` has shipped: the file itself, or those of a folder."""
    files = [place] if place.is_file() else [place / f"{part}.safetensors" for part in NAMES]
    return [file for file in files if file.is_file() and _is_ours(file)]


def _is_ours(file: Path) -> bool:
    """Whether we wrote a file of weights; only its header is read."""
    import safetensors

    try:
        with safetensors.safe_open(file, "np") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def _is_checkpoint(file: Path) -> bool:
    """Whether a file may be a published one, whatever else may be wrong with it."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(4)
    return file.suffix in CHECKPOINT_SUFFIXES or start.startswith(CHECKPOINT_STARTS)


def _unreadable(file: Path, error: OSError) -> EnvironmentProblem:
    cause = f"{error.filename or file}: cannot be read: {error.strerror or error}"
    return EnvironmentProblem(cause, code="E_WEIGHTS_MISSING", remedy=remedy_for(file))


def _broken(file: Path, cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{file}: {cause}", code="E_WEIGHTS_BROKEN", remedy=remedy_for(file))


def remedy_for(path: Path) -> str:
    """What to do about a folder, or a file in it, that is not as it should be."""
    places = (path, path.parent)
    if DIRECTORY in places:
        return "reinstall crm-cli"
    if _folder_of("published") in places:
        return f"run `crm weights fetch`, or {USE_EMBEDDED}"
    if any(_is_there(place / MANIFEST) for place in places):
        return f"run `crm weights convert` once more, or {USE_EMBEDDED}"
    return f"{USE_EMBEDDED}, or complete the folder"


def _listed(directory: Path, name: str) -> WeightsSet:
    """The set that a folder's weights.json lists, its files checked by their sizes."""
    try:
        weights = _read_manifest(directory, name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _broken(directory / MANIFEST, f"not a list of weights: {_what_is_wrong(error)}") from error
    for files in weights.parts.values():
        for file in files:
            _check_size(file)
    return weights


def _what_is_wrong(error: Exception) -> str:
    """With a list, by what reading it raised."""
    match error:
        case json.JSONDecodeError() | UnicodeDecodeError() | RecursionError():
            return "no JSON"
        case KeyError():
            return f"it has no {error.args[0]}"
        case TypeError() | AttributeError() | OverflowError():
            return "something in it is of the wrong kind"
    return str(error)


def _read_manifest(directory: Path, name: str) -> WeightsSet:
    manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
    stated = manifest["format"]
    if isinstance(stated, int) and stated > FORMAT:
        raise EnvironmentProblem(
            f"{directory / MANIFEST}: format {stated} needs a newer crm; this one reads {FORMAT}",
            code="E_WEIGHTS_BROKEN",
            remedy=f"upgrade crm-cli, or {USE_EMBEDDED}",
        )
    if stated != FORMAT:
        raise ValueError(f"format {stated}, and this version of crm reads {FORMAT}")
    architecture = manifest["architecture"]
    if architecture not in PARTS:
        raise ValueError(f"architecture {architecture}; known: {', '.join(PARTS)}")
    parts = {
        part: tuple(_entry(directory, entry) for entry in stored["files"])
        for part, stored in manifest["parts"].items()
    }
    for part in {**dict.fromkeys(PARTS[architecture]), **parts}:
        if part.removeprefix(SECOND) not in PARTS[architecture]:
            raise ValueError(f"{part} is no part of {architecture}")
        if not parts.get(part):
            raise ValueError(f"no files of {part}")
    return WeightsSet(name=name, architecture=architecture, directory=directory, parts=parts)


def _entry(directory: Path, entry: Mapping[str, Any]) -> WeightsFile:
    file = entry["name"]
    if Path(file).name != file:
        raise ValueError(f"{file} is not beside it")
    return WeightsFile(path=directory / file, bytes=int(entry["bytes"]), sha256=str(entry["sha256"]))


def _check_size(file: WeightsFile) -> None:
    if not file.path.is_file():
        raise _broken(file.path, "no such file")
    found = file.path.stat().st_size
    if found != file.bytes:
        raise _broken(file.path, f"{found} bytes, not {file.bytes}")


def require_unchanged(weights: WeightsSet, part: str) -> None:
    """Raise EnvironmentProblem if a part's files are other ones than were found.

    A folder can be replaced at any time, and one of the same architecture has files of the same names and
    sizes: a run that fetches its networks one by one would mix two sets.
    """
    if _open_folder(weights.directory, weights.name).files_of(part) != weights.files_of(part):
        raise EnvironmentProblem(
            f"{weights.directory}: its {part} has been replaced since it was found",
            code="E_WEIGHTS_BROKEN",
            remedy="start again",
        )


@contextlib.contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Turn what goes wrong with a weights file into an EnvironmentProblem about it."""
    import safetensors

    try:
        yield
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"{file}: no such file", code="E_WEIGHTS_MISSING", remedy=remedy_for(file)
        ) from error
    except OSError as error:
        raise _unreadable(file, error) from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise _broken(file, f"not a whole weights file ({error})") from error


def verify(weights: WeightsSet, progress: Progress | None = None) -> None:
    """Read every byte of a set, or raise EnvironmentProblem that names the first bad file."""
    files = [(part, file) for part, files in weights.parts.items() for file in files]
    _read(weights, files, progress or ignore)


def require_intact(weights: WeightsSet) -> None:
    """Raise EnvironmentProblem unless the contents of all files are those that are listed.

    A file is read only where that was not done since it last changed.
    """
    if not _is_listed(weights):
        return  # its digests are those of the files themselves, which were read to find it
    known = checked.noted(weights.directory)
    unread = [
        (part, file)
        for part, files in weights.parts.items()
        for file in files
        if known.get(file.path.name) != _note(file)
    ]
    if (size := sum(file.bytes for _, file in unread)) >= NOTICED_BYTES:
        log.warning("%s: checking %s of weights once", weights.directory, in_words(size))
    if not _read(weights, unread, ignore) and size >= NOTICED_BYTES:
        log.warning(
            "%s: cannot be written, the next run checks it again; its owner can run `crm weights verify %s`",
            weights.directory,
            shlex.quote(str(weights.directory)),
        )


def in_words(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"


def _is_listed(weights: WeightsSet) -> bool:
    return _is_there(weights.directory / MANIFEST)


def _note(file: WeightsFile) -> checked.Note | None:
    """What is noted of a file that is as it is listed; nothing is, where it is not there."""
    try:
        return {**checked.state_of(file.path), "sha256": file.sha256}
    except OSError:
        return None


def _read(weights: WeightsSet, files: Sequence[tuple[str, WeightsFile]], progress: Progress) -> bool:
    """Compare digests of some files, by their parts; return whether the next one need not do it again."""
    of, done = sum(file.bytes for _, file in files), 0
    found: dict[str, checked.Note] = {}
    for part, file in files:
        with blaming(file.path):
            # Before it is read: what is written to it meanwhile makes the note untrue.
            state = checked.state_of(file.path) if file.path.is_file() else {}
            _check_size(file)
            _check_digest(file, partial(_report, progress, part, of, done))
        found[file.path.name] = {**state, "sha256": file.sha256}
        done += file.bytes
    return not found or not _is_listed(weights) or checked.note(weights.directory, found)


def _report(progress: Progress, part: str, of: int, before: int, read: int) -> None:
    progress(part, before + read, of)


def _check_digest(file: WeightsFile, report: Callable[[int], None]) -> None:
    import safetensors

    if digest_of(file.path, report) != file.sha256:
        raise _broken(file.path, "its contents have changed since it was written")
    # The embedded files have no list to compare with, but a header that says where every tensor ends.
    with safetensors.safe_open(file.path, "np"):
        pass


def digest_of(file: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes, hexadecimal; `report` is told how many have been read."""
    digest, read = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            read += len(chunk)
            if report is not None:
                report(read)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
