"""In what two files of one format differ: by the parts of an asset, not by bytes."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crm_cli.export.provenance import Format, Provenance, read_label

Part = tuple[str, object]
"""What a part of a file is called, and something that is equal where the part is."""


def differences(one: Path, other: Path, kind: Format) -> list[str]:
    """Name what differs, the first in the order of the file first; nothing where every byte is the same."""
    if _digest(one.read_bytes()) == _digest(other.read_bytes()):
        return []
    try:
        parts, others = (_by_name(_READERS[kind](file)) for file in (one, other))
        names = dict.fromkeys([*parts, *others])
        unlike = [name for name in names if parts.get(name) != others.get(name)]
        said, says = (read_label(file).provenance for file in (one, other))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, zipfile.BadZipFile):
        return ["its structure"]
    return [*unlike, *_unlike_words(said, says)] or ["bytes that stand for the same asset"]


def _by_name(parts: Iterator[Part]) -> dict[str, list[object]]:
    """All parts of one name together, in order."""
    found: dict[str, list[object]] = {}
    for name, value in parts:
        found.setdefault(name, []).append(value)
    return found


def _unlike_words(said: Provenance, says: Provenance) -> Iterator[str]:
    """What two files say differently of how they were made."""
    one, other = said.as_words(), says.as_words()
    for name in ("libraries", "preset"):
        del one[name], other[name]
    for group, old, new in (
        ("", one, other),
        ("libraries.", said.libraries, says.libraries),
        ("preset.", said.settings or {}, says.settings or {}),
    ):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{group}{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)[:100]


def _glb_parts(file: Path) -> Iterator[Part]:
    """The JSON without what it says of its making, then each view of the binary chunk by its use."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    about = json.loads(data[20 : 20 + length])
    about["asset"].pop("extras", None)
    yield "structure", json.dumps(about, sort_keys=True)
    blob = data[20 + length + 8 :]
    uses = dict(_uses(about))
    for index, view in enumerate(about["bufferViews"]):
        packed = view.get("extensions", {}).get("EXT_meshopt_compression", view)
        start = packed.get("byteOffset", 0)
        yield uses.get(index, "other data"), _digest(blob[start : start + packed["byteLength"]])


def _uses(about: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """What each buffer view of a GLB holds."""
    for mesh in about["meshes"]:
        for primitive in mesh["primitives"]:
            draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
            if draco:
                yield draco["bufferView"], "geometry"
            for name, accessor in (*primitive["attributes"].items(), ("faces", primitive.get("indices"))):
                view = about["accessors"][accessor].get("bufferView") if accessor is not None else None
                if view is not None:
                    yield view, _NAMES.get(name, name)
    for image in about.get("images", ()):
        if "bufferView" in image:
            yield image["bufferView"], "texture"


def _obj_parts(file: Path) -> Iterator[Part]:
    """The lines of each kind."""
    digests: dict[str, Any] = {}
    with file.open("rb") as stream:
        for line in stream:
            kind = line.split(maxsplit=1)[0].decode("latin1") if line.strip() else ""
            if kind != "#":
                digests.setdefault(kind, hashlib.sha256()).update(line)
    for kind, digest in digests.items():
        yield _NAMES.get(kind, kind), digest.hexdigest()


def _usd_parts(file: Path) -> Iterator[Part]:
    """Every line of the root layer as text, by the property it sets; of a package also what else it holds."""
    from pxr import Sdf, Tf

    kind = "usdz" if zipfile.is_zipfile(file) else "usdc"
    with tempfile.TemporaryDirectory(prefix="crm-usd-") as folder:
        link = Path(folder) / f"asset.{kind}"
        link.symlink_to(file.absolute())
        try:
            layer = Sdf.Layer.OpenAsAnonymous(str(link))
        except Tf.ErrorException as error:
            raise ValueError("no layer that USD can read") from error
        layer.customLayerData = {}
        for line in layer.ExportToString().splitlines():
            found = re.match(r"\s*(?:[\w:]+(?:\[\])? )+([\w:.]+) = ", line)
            name = found[1] if found else "structure"
            yield _NAMES.get(name, name), _digest(line.encode("utf-8", "surrogateescape"))
    if kind == "usdz":
        with zipfile.ZipFile(file) as package:
            for entry in package.infolist()[1:]:
                yield "texture", _digest(package.read(entry))


_NAMES: Mapping[str, str] = {
    "POSITION": "points", "NORMAL": "normals", "TEXCOORD_0": "texture coordinates",
    "v": "points", "vn": "normals", "vt": "texture coordinates", "f": "faces",
    "mtllib": "the name of its MTL",
    "primvars:st": "texture coordinates", "primvars:st:indices": "faces", "faceVertexIndices": "faces",
    "inputs:file": "the name of its texture",
}  # fmt: skip
"""What the formats call their parts → what people call them."""

_READERS: Mapping[Format, Callable[[Path], Iterator[Part]]] = {
    "glb": _glb_parts, "obj": _obj_parts, "usd": _usd_parts, "usdz": _usd_parts
}  # fmt: skip


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
