"""The published checkpoints: from the Hugging Face hub into its cache, whole and checked.

The library answers where the hub and its cache are, who asks and what lies where, so that HF_ENDPOINT,
HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and proxies mean what they mean everywhere. The bytes are read here, over
plain HTTP: the library starts a file of six gigabytes anew in every process, and its faster transport
(xet) speaks to servers that no mirror has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, OutputError
from crm_cli.models.download import download, part_of
from crm_cli.models.hub_library import endpoint, in_plain_words, library
from crm_cli.models.weights import PUBLISHED_FILES, Progress, digest_of, ignore, in_words, nearest

REPOSITORY = "Zhengyi/CRM"
"""Where the authors of CRM publish (thu-ml/CRM, README)."""

DIGESTS: Mapping[str, str] = {
    "CRM.pth": "71fcf063f0be558e12ef696ee2d26ae61736d1779ff56a30f5aed377b5aa3537",
    "pixel-diffusion.pth": "27445c0202f51cb7e6715978e2d7811d1f9a276adae0bc7af8bf7191dd2e71e0",
    "ccm-diffusion.pth": "220907ea252a2c3dadd6c283de1be272746241403151e7a7e36c2b85e8399861",
}
"""SHA-256 of each file in REPOSITORY, hexadecimal."""

SIZES: Mapping[str, int] = {
    "CRM.pth": 475_621_273,
    "pixel-diffusion.pth": 6_162_765_693,
    "ccm-diffusion.pth": 6_162_786_859,
}
"""Bytes of each file in REPOSITORY."""

CONVERTED_SHARE = 0.6
"""Of the files' bytes, what is left after conversion: 7.0 of 12.8 GB, as one CLIP and VAE serve both."""

NOTES = ".crm-checked.json"
"""Beside the cached files: which of them were hashed. Twelve gigabytes are not read again for every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One file as the hub describes it."""

    name: str
    url: str
    """Of one commit, so that bytes of two versions never meet in one file."""
    commit: str
    etag: str
    """SHA-256 of a large file, git's SHA-1 of a small one, anything on a server that is no hub."""
    bytes: int


def fetch(
    *,
    repository: str = REPOSITORY,
    revision: str = "main",
    converted: Path | None = None,
    progress: Progress = ignore,
) -> list[Path]:
    """Bring PUBLISHED_FILES into the hub's cache and return them in that order, whole and checked.

    What is there already is not asked for again; a download that was interrupted goes on where it stopped.

    converted: The folder that they are going to be converted into, for which there must be room as well.
    """
    with in_plain_words(repository, revision):
        is_offline = bool(library().constants.HF_HUB_OFFLINE)
        if is_offline or repository == REPOSITORY:
            # Where the digests are known there is nothing to ask about files that have them.
            files = fetched(repository=repository, revision=revision, progress=progress)
            if files is not None:
                return files
        if is_offline:
            raise _not_here(repository, revision)
        remotes = [_ask(name, repository, revision) for name in PUBLISHED_FILES]
        _require_room_for(remotes, repository, converted)
        return [_bring(remote, repository, revision, progress) for remote in remotes]


def fetched(
    *, repository: str = REPOSITORY, revision: str = "main", progress: Progress = ignore
) -> list[Path] | None:
    """PUBLISHED_FILES from the hub's cache, checked, or None where one is not there; nobody is asked.

    Raises EnvironmentProblem for a file of wrong bytes, and takes it out of the cache.
    """
    found = cached(repository=repository, revision=revision)
    if len(found) < len(PUBLISHED_FILES):
        return None
    with in_plain_words(repository, revision):
        for name, file in found.items():
            # The cache names a file after what the hub said of it.
            _check(file, name, _expected(repository, name, etag=file.resolve().name), repository, progress)
    return list(found.values())


def digests_of(*, repository: str, revision: str = "main") -> dict[str, str]:
    """SHA-256 of PUBLISHED_FILES as the hub tells them, without the files it knows none of.

    Offline, as it told them when the files were downloaded.
    """
    with in_plain_words(repository, revision):
        if library().constants.HF_HUB_OFFLINE:
            places = cached(repository=repository, revision=revision)
            etags = {name: place.resolve().name for name, place in places.items()}
        else:
            etags = {name: _ask(name, repository, revision).etag for name in PUBLISHED_FILES}
    return {name: etag for name, etag in etags.items() if _is_sha256(etag)}


def cached(*, repository: str = REPOSITORY, revision: str = "main") -> dict[str, Path]:
    """Those of PUBLISHED_FILES that lie in the hub's cache under a revision, unchecked."""
    with in_plain_words(repository, revision):
        places = {name: _place(repository, name, revision) for name in PUBLISHED_FILES}
    return {name: place for name, place in places.items() if place is not None}


def require_room(folder: Path, needed: int) -> None:
    """Raise OutputError unless a folder's disk has so many bytes free; the folder need not exist yet."""
    free = shutil.disk_usage(nearest(folder)).free
    if free < needed:
        raise OutputError(
            f"{folder}: {in_words(free)} free, {in_words(needed)} needed",
            code="E_DISK_FULL",
            remedy="free space, or put HF_HOME (downloads) or CRM_WEIGHTS_HOME (converted) on another disk",
        )


def _ask(name: str, repository: str, revision: str) -> Remote:
    """What the hub says of a file; refused at once if it is not the file that was published."""
    hub = library()
    answer = hub.get_hf_file_metadata(
        hub.hf_hub_url(repository, name, revision=revision),
        library_name="crm",
        library_version=__version__,
    )
    etag, commit, size = answer.etag or "", answer.commit_hash or "", answer.size
    # Both become names of files.
    if size is None or not all(re.fullmatch(r"\w[\w.+-]*", word) for word in (etag, commit)):
        raise EnvironmentProblem(
            f"{endpoint()}: does not answer as a hub (no commit, digest or size of {name})",
            code="E_HUB_ANSWER",
            remedy="check HF_ENDPOINT, or a proxy that signs in first",
        )
    if repository == REPOSITORY:
        _require_published(name, etag, size)
    url = hub.hf_hub_url(repository, name, revision=commit)
    return Remote(name=name, url=url, commit=commit, etag=etag, bytes=size)


def _require_published(name: str, etag: str, size: int) -> None:
    """Refuse to download what would be refused afterwards."""
    is_other = _is_sha256(etag) and etag != DIGESTS[name]
    if is_other or size != SIZES[name]:
        raise EnvironmentProblem(
            f"{name}: {endpoint()} has {size} bytes of digest {etag}, not {SIZES[name]} of {DIGESTS[name]}",
            code="E_WEIGHTS_DIGEST",
            remedy="choose another HF_ENDPOINT or --revision",
        )


def _require_room_for(remotes: Sequence[Remote], repository: str, converted: Path | None) -> None:
    """Raise OutputError unless the disks hold what is still to come, and what becomes of it."""
    missing = [remote for remote in remotes if _lying_here(remote, repository) is None]
    needed = [remote.bytes - _size(part_of(_blob(remote, repository))) for remote in missing]
    storage, later = _storage(repository), 0
    if converted is not None:
        later = int(CONVERTED_SHARE * sum(remote.bytes for remote in remotes))
        if _disk_of(storage) != _disk_of(converted):
            require_room(converted, later)
            later = 0
    require_room(storage, sum(needed) + later)


def _disk_of(folder: Path) -> int:
    return nearest(folder).stat().st_dev


def _bring(remote: Remote, repository: str, revision: str, progress: Progress) -> Path:
    """One file of the hub's cache, downloaded where it is not there, and checked."""
    wanted = _expected(repository, remote.name, etag=remote.etag)
    file = _lying_here(remote, repository)
    if file is not None:
        _check(file, remote.name, wanted, repository, progress)
    else:
        file = _blob(remote, repository)
        download(
            remote.url,
            file,
            size=remote.bytes,
            check=lambda part: _require_digest(part, remote.name, wanted, progress),
            progress=progress,
            name=remote.name,
        )
        _remember(file, wanted, repository)
    # Finds the file under its digest, and puts its name and revision beside it.
    named = library().hf_hub_download(
        repository, remote.name, revision=revision, library_name="crm", library_version=__version__
    )
    _check(Path(named), remote.name, wanted, repository, progress)
    return Path(named)


def _lying_here(remote: Remote, repository: str) -> Path | None:
    """A file of this commit in the cache, or of another commit with the same digest."""
    file = _place(repository, remote.name, remote.commit) or _blob(remote, repository)
    return file if file.is_file() else None


def _place(repository: str, name: str, revision: str) -> Path | None:
    """Where the cache has a file under its name."""
    place = library().try_to_load_from_cache(repository, name, revision=revision)
    return Path(place) if isinstance(place, str) else None


def _storage(repository: str) -> Path:
    """The cache's folder of one repository."""
    hub = library()
    name: str = hub.file_download.repo_folder_name(repo_id=repository, repo_type="model")
    return Path(hub.constants.HF_HUB_CACHE) / name


def _blob(remote: Remote, repository: str) -> Path:
    """Where the cache keeps the bytes of a file, whatever it is called in whichever commit."""
    return _storage(repository) / "blobs" / remote.etag


def _expected(repository: str, name: str, *, etag: str) -> str:
    """The digest a file must have: SHA-256, git's SHA-1, or "" where nobody knows one."""
    if repository == REPOSITORY:
        return DIGESTS[name]
    return etag if _is_sha256(etag) or _is_sha1(etag) else ""


def _is_sha256(etag: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", etag) is not None


def _is_sha1(etag: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", etag) is not None


def _check(file: Path, name: str, wanted: str, repository: str, progress: Progress) -> None:
    """Hash a file, unless it was found right before and has not been touched since."""
    if _notes(repository).get(file.resolve().name) != _note(file, wanted):
        _require_digest(file, name, wanted, progress)
        _remember(file, wanted, repository)


def _require_digest(file: Path, name: str, wanted: str, progress: Progress) -> None:
    """Raise EnvironmentProblem for a file of other bytes than those wanted, and remove it."""
    if not wanted:
        return
    size = _size(file)
    if _is_sha1(wanted):
        found = _git_digest(file)
    else:
        found = digest_of(file, lambda done: progress(f"checking {name}", done, size))
    if found == wanted:
        return
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    raise EnvironmentProblem(
        f"{name}: its digest is {found}, not {wanted}; the file was removed",
        code="E_WEIGHTS_DIGEST",
        remedy="run `crm weights fetch` again, or with another HF_ENDPOINT",
    )


def _git_digest(file: Path) -> str:
    """The SHA-1 that git names a file's contents by (git, hash-object); only small files have no other."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _remember(file: Path, digest: str, repository: str) -> None:
    """Note that a file is right; where that cannot be written down, it is hashed again next time."""
    notes = {**_notes(repository), file.resolve().name: _note(file, digest)}
    target = _storage(repository) / NOTES
    part = target.with_name(f"{NOTES}-{os.getpid()}.part")
    try:
        part.write_text(json.dumps(notes))
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)


def _notes(repository: str) -> dict[str, Any]:
    try:
        notes = json.loads((_storage(repository) / NOTES).read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _note(file: Path, digest: str) -> dict[str, Any]:
    """What is written down of a file, and no longer true once it is touched."""
    known = file.stat()
    return {"bytes": known.st_size, "mtime_ns": known.st_mtime_ns, "digest": digest}


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _not_here(repository: str, revision: str) -> EnvironmentProblem:
    found = cached(repository=repository, revision=revision)
    missing = ", ".join(name for name in PUBLISHED_FILES if name not in found)
    return EnvironmentProblem(
        f"{repository}@{revision}: no {missing} in {library().constants.HF_HUB_CACHE}, "
        "and HF_HUB_OFFLINE forbids to fetch",
        code="E_HUB_OFFLINE",
        remedy="unset HF_HUB_OFFLINE, or copy the files here and run `crm weights convert DIR`",
    )
