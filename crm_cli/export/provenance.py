"""What every file says of how it was made: enough to make it again, nothing of who made it, when or where.

    photo_sha256                 the photo's bytes
    preset, preset_sha256, seed  every setting with the value that `auto` came to, as canonical JSON
    weights, weights_sha256      of the networks
    crm_version, libraries       what calculated, as JSON
    device, precision, rasteriser, surface   how

In a GLB these words are `asset.extras`, in an OBJ its first comments, in USD `customLayerData`. Another
word than these is kept and shown as it is. The photo's name is none of them: the same photo under another
name makes the same GLB, and a name may tell what its owner would not.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from crm_cli.errors import NoInput

Format = Literal["glb", "obj", "usd", "usdz"]

LIBRARIES = (
    "fast-simplification",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pillow",
    "pygltflib",
    "scipy",
    "torch",
    "usd-core",
    "warp-lang",
    "xatlas",
)
"""Those whose version can change a byte of any asset; OpenCV comes under several names."""

TOOLS: Mapping[str, tuple[str, ...]] = {
    "draco": ("dracopy",),
    "kaolin": ("kaolin",),
    "meshopt": ("meshopt",),
    "nvdiffrast": ("nvdiffrast",),
    "rembg": ("rembg", "onnxruntime"),
}
"""Those that matter only where a tool was used: to install one must not change what others make."""

MAX_WORDS_BYTES = 16 << 20
"""Where a file's head holds more, it is not ours."""

_GENERATOR = re.compile(r"crm \d[\w.+-]*")
_REMARK = re.compile(r"# (\w+): (.*)")
_HEX = re.compile(r"[0-9a-f]{64}")

_GLB_MAGIC, _GLB_JSON = b"glTF", 0x4E4F534A
_USD_MAGIC, _ZIP_MAGIC = b"PXR-USDC", b"PK\x03\x04"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made one asset. A field that an older version did not write is empty."""

    crm_version: str
    photo_sha256: str
    preset: str = ""
    """Canonical JSON: see Preset.as_json."""
    preset_sha256: str = ""
    """Of `preset`, filled in where it is left out."""
    seed: int
    weights: str
    weights_sha256: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Version by name of distribution."""
    device: str = ""
    """cpu or cuda."""
    precision: str = ""
    """What the networks calculated in."""
    rasteriser: str = ""
    surface: str = ""
    """Who drew the surface."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other words of the file, such as an asset's real size."""

    def __post_init__(self) -> None:
        """Fill in the preset's digest."""
        if self.preset and not self.preset_sha256:
            object.__setattr__(self, "preset_sha256", _sha256(self.preset))

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """The preset as a tree; None where there is none, or not the one that its digest was taken of."""
        if _sha256(self.preset) != self.preset_sha256:
            return None
        try:
            tree = json.loads(self.preset)
        except (ValueError, RecursionError):
            return None
        return tree if isinstance(tree, dict) else None

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the implementations that were used."""
        chosen = [self.rasteriser, self.surface]
        for section, name in (("matting", "method"), ("export", "compression")):
            tree = (self.settings or {}).get(section)
            chosen.append(str(tree.get(name, "")) if isinstance(tree, dict) else "")
        return tuple(filter(None, chosen))

    def as_words(self) -> dict[str, str]:
        """The words that writers put into a file; from_words reads them."""
        own = {name: getattr(self, name) for name in _NAMES}
        own["libraries"] = json.dumps(dict(self.libraries), sort_keys=True, separators=(",", ":"))
        return {**self.more, **{name: str(value) for name, value in own.items()}}

    @classmethod
    def from_words(cls, words: Mapping[str, Any]) -> Provenance:
        """Read what as_words wrote; ValueError where it cannot have been that."""
        if not all(isinstance(value, str) for value in words.values()):
            raise ValueError("a word that is no text")
        if not _HEX.fullmatch(words.get("photo_sha256", "")):
            raise ValueError("no photo's digest")
        libraries = json.loads(words.get("libraries", "{}"))
        if not isinstance(libraries, dict):
            raise ValueError("libraries are no list of versions")
        known = {name: words[name] for name in _NAMES if name in words and name not in ("libraries", "seed")}
        return cls(
            **{"crm_version": "", "weights": "", "weights_sha256": "", **known},
            seed=int(words.get("seed", "0")),
            libraries={str(name): str(value) for name, value in libraries.items()},
            more={name: value for name, value in words.items() if name not in _NAMES},
        )


_NAMES = tuple(one.name for one in fields(Provenance) if one.name != "more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A file of ours, by what it says."""

    format: Format
    provenance: Provenance


@cache
def versions(*tools: str) -> Mapping[str, str]:
    """The installed versions of LIBRARIES, and of what some tools are."""
    found = {}
    for name in (*LIBRARIES, *(name for tool in tools for name in TOOLS.get(tool, ()))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_label(file: Path) -> Labelled:
    """What a GLB, OBJ, USD or USDZ file of any name says of itself; NoInput where it is not ours."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(_GLB_MAGIC):
            return Labelled(format="glb", provenance=Provenance.from_words(_glb_words(file)))
        if start.startswith((_USD_MAGIC, _ZIP_MAGIC)):
            kind: Format = "usd" if start.startswith(_USD_MAGIC) else "usdz"
            return Labelled(format=kind, provenance=Provenance.from_words(_usd_words(file, kind)))
        if start.startswith(b"# crm "):
            return Labelled(format="obj", provenance=Provenance.from_words(_obj_words(file)))
    except OSError as error:
        raise NoInput(f"{file}: cannot be read: {error.strerror or error}", code="E_NO_FILE") from error
    except (ValueError, RecursionError) as error:
        raise _not_ours(file) from error
    raise _not_ours(file)


def _not_ours(file: Path) -> NoInput:
    return NoInput(
        f"{file}: says nowhere that crm made it",
        code="E_NOT_OURS",
        remedy="give a .glb, .obj, .usdc or .usdz file that crm wrote",
    )


def _glb_words(file: Path) -> dict[str, Any]:
    """`asset.extras` of the JSON chunk (glTF 2.0, §4.4)."""
    with file.open("rb") as stream:
        header = stream.read(20)
        if len(header) < 20:
            raise ValueError("cut short")
        length, kind = struct.unpack_from("<II", header, 12)
        if kind != _GLB_JSON or length > MAX_WORDS_BYTES:
            raise ValueError("no JSON first")
        about = json.loads(stream.read(length))
    asset = about.get("asset") if isinstance(about, dict) else None
    if not isinstance(asset, dict) or not isinstance(asset.get("extras"), dict):
        raise ValueError("no extras")
    return dict(asset["extras"])


def _obj_words(file: Path) -> dict[str, str]:
    """The comments before the first line of data."""
    words: dict[str, str] = {}
    with file.open("rb") as stream:
        while (raw := stream.readline(MAX_WORDS_BYTES)).startswith(b"#") and stream.tell() < MAX_WORDS_BYTES:
            found = _REMARK.fullmatch(raw.decode("utf-8").rstrip("\r\n"))
            if found:
                words[found[1]] = found[2]
    return words


def _usd_words(file: Path, kind: Format) -> dict[str, Any]:
    """`customLayerData` of the root layer."""
    from pxr import Sdf, Tf

    if kind == "usdz" and not zipfile.is_zipfile(file):
        raise ValueError("no package")
    # By way of a plainly named link: USD reads brackets and colons in a path as syntax, and tells from the
    # suffix what a file is.
    with tempfile.TemporaryDirectory(prefix="crm-usd-") as folder:
        link = Path(folder) / ("asset.usdz" if kind == "usdz" else "asset.usdc")
        link.symlink_to(file.absolute())
        try:
            layer = Sdf.Layer.OpenAsAnonymous(str(link), metadataOnly=True)
            return dict(layer.customLayerData)
        except Tf.ErrorException as error:
            raise ValueError("no layer that USD can read") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
