"""The costly half of a photo's way, kept on disk: its cut-out and six views, whole or not at all.

    FOLDER/views.safetensors.zlib   tensors, and what else belongs to them as metadata
    FOLDER/ok.json                  its size and SHA-256, written last; its time is that of the last use

A folder is named after everything its contents depend on, so that what is found in it can be used as it is.
Numbers come back as they were, bit by bit: an asset made from them is the asset that would have been made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import safetensors

from crm_cli.bundle import bundled, unbundled
from crm_cli.records import Crop, Cutout, SixViews

log = logging.getLogger(__name__)

TENSORS = "views.safetensors.zlib"
MARK = "ok.json"
LEVEL = 1
"""Of compression: 15 MB of views, mostly background, shrink to a ninth in 60 ms; more effort gains little."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Imagined:
    """What the networks have made of a photo, before there is a surface."""

    cutout: Cutout
    views: SixViews


def read(folder: Path, *, photo: PurePosixPath) -> Imagined | None:
    """What is kept in a folder, or None where it is not there, not whole or not readable.

    photo: what the cut-out is of; the same bytes may lie in the input folder under several names.
    """
    try:
        mark = json.loads((folder / MARK).read_bytes())
        data = (folder / TENSORS).read_bytes()
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            raise ValueError("its digest is another")
        kept = _unpacked(zlib.decompress(data), photo)
        os.utime(folder / MARK)  # the cache drops what was unused longest
        return kept
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, zlib.error, safetensors.SafetensorError) as error:
        log.warning("%s: cannot be used and is made again: %s", folder.name, error)
        return None


def write(folder: Path, kept: Imagined) -> None:
    """Keep it, or go on without: nobody depends on a cache."""
    part = folder.with_name(f".{folder.name}-{os.getpid()}.part")
    try:
        # Not all parents: an output folder that has vanished must not be made again.
        for shelf in (part.parent.parent, part.parent):
            shelf.mkdir(exist_ok=True)
        part.mkdir()
        data = zlib.compress(_packed(kept), LEVEL)
        _write_through(part / TENSORS, data)
        mark = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write_through(part / MARK, json.dumps(mark).encode("ascii"))
        # What stands there is either the same, from a photo of the same bytes, or was just found unusable.
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        log.warning("%s: not kept: %s", folder.name, error.strerror)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part)


def _write_through(file: Path, data: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _packed(kept: Imagined) -> bytes:
    cutout, views = kept.cutout, kept.views
    tensors = {
        "cutout.rgb": cutout.rgb,
        "cutout.alpha": cutout.alpha,
        "views.rgb": views.rgb,
        "views.ccm": views.ccm,
        "views.alpha": views.alpha,
    }
    about = {
        "crop": asdict(cutout.crop),
        "digest": cutout.digest,
        "matting": cutout.matting,
        "warnings": cutout.warnings,
    }
    return bundled(tensors, about)


def _unpacked(data: bytes, photo: PurePosixPath) -> Imagined:
    tensors, about = unbundled(data)
    cutout = Cutout(
        rgb=tensors["cutout.rgb"],
        alpha=tensors["cutout.alpha"],
        crop=Crop(**about["crop"]),
        photo=photo,
        digest=about["digest"],
        matting=about["matting"],
        warnings=tuple(about["warnings"]),
    )
    views = SixViews(rgb=tensors["views.rgb"], ccm=tensors["views.ccm"], alpha=tensors["views.alpha"])
    return Imagined(cutout=cutout, views=views)
