"""Under which licences everything stands that makes an asset: the table that `crm doctor --licences` prints.

Licences are as each installed package declares them. What a wheel carries inside beside its own code is not
looked into, except where NOTES says what is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from crm_cli import __version__

Kind = Literal["own", "weights", "required", "optional", "vendored"]

HERE = Path(__file__).parent

VENDORED = HERE / "export" / "vendored" / "manifest.json"
"""Files of others that the package carries: name → version, source, licence, licence_file."""

SEE_PAGE = "see its page"

DISTRIBUTION = "crm-cli"

USES: Mapping[str, str] = {
    "anyascii": "names of plain letters",
    "dracopy": "smaller GLB",
    "fast-simplification": "fewer triangles",
    "fsspec": "object stores",
    "huggingface-hub": "downloads the published weights",
    "jinja2": "the contact sheet",
    "kaolin": "another surface extraction, for comparison",
    "meshopt": "smaller GLB",
    "numpy": "arrays",
    "nvdiffrast": "another rasteriser, for comparison",
    "opencv-python-headless": "GrabCut, resampling",
    "pillow": "reads photos, writes textures",
    "pillow-heif": "reads HEIC photos",
    "pygltflib": "writes GLB",
    "pyyaml": "presets",
    "rembg": "removes backgrounds",
    "rich": "the terminal",
    "s3fs": "s3:// stores",
    "safetensors": "reads weights",
    "scipy": "sparse matrices, distances",
    "torch": "runs the networks",
    "tqdm": "progress of downloads",
    "trimesh": "checks meshes",
    "typer": "the command line",
    "usd-core": "writes USD",
    "warp-lang": "rasterises",
    "xatlas": "texture coordinates",
}
"""What crm uses a package for."""

NOTES: Mapping[str, str] = {
    "nvdiffrast": "forbids commercial use: research or evaluation only; crm never chooses it by itself",
    "pillow-heif": "its wheels carry codecs under licences of their own (libheif, libde265, x265)",
    "rembg": "downloads networks of other people, each under a licence of its own",
}
"""What a package's own declaration does not say."""

DECLARED: Mapping[str, str] = {
    "kaolin": "Apache-2.0",
    "nvdiffrast": "NVIDIA Source Code License (1-Way Commercial)",
}
"""Of packages that are on no index, from their licence files."""

NON_COMMERCIAL = frozenset({"nvdiffrast"})

WORKSHOP = frozenset({"gpu", "test", "train"})
"""Extras of what builds, tests or trains, and makes no asset."""

_ROLES: Mapping[Kind, int] = {"own": 0, "weights": 1, "required": 2, "optional": 3, "vendored": 4}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)""")
_SHORT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What one thing is, and under which licence it stands."""

    name: str
    version: str
    """Empty where it is not installed."""
    licence: str
    used_for: str
    kind: Kind
    note: str = ""
    forbids_commerce: bool = False
    """Known to forbid commercial use; false says nothing of what nobody has looked at."""
    licence_file: str = ""
    """Where the text is, if it comes with the package."""


def licences() -> list[Licence]:
    """Everything, by kind and name."""
    found = [*_own(), *_packages(), *_vendored()]
    return sorted(found, key=lambda one: (_ROLES[one.kind], one.name))


def _own() -> Iterator[Licence]:
    """Crm itself, and both sets of weights."""
    yield Licence(name="crm", version=__version__, licence="Apache-2.0", used_for="everything", kind="own")
    yield Licence(
        name="embedded weights",
        version=__version__,
        licence="Apache-2.0",
        used_for="the networks that ship with crm",
        kind="weights",
        note="trained from scratch, on procedural products of crm's own",
    )
    yield Licence(
        name="published weights",
        version="",
        licence=SEE_PAGE,
        used_for="the networks of the method's authors",
        kind="weights",
        note="not part of crm: `crm weights fetch` downloads them; see huggingface.co/Zhengyi/CRM",
    )


def _packages() -> Iterator[Licence]:
    """Every installed package that crm needs or can use, and what those need in turn."""
    own = _distribution(DISTRIBUTION)
    wanted = [name for name, extra in _requirements(own) if not extra]
    extras = [name for name, extra in _requirements(own) if extra and extra not in WORKSHOP]
    optional = [*extras, "nvdiffrast", "kaolin"]
    seen: dict[str, Licence] = {}
    for kind, names in (("required", wanted), ("optional", optional)):
        for name in names:
            _add(seen, _plain(name), kind="required" if kind == "required" else "optional", user="")
    yield from seen.values()


def _add(seen: dict[str, Licence], name: str, *, kind: Kind, user: str) -> None:
    """Add a package and everything that it needs; what is not installed is named only if crm asks for it."""
    if name in seen:
        return
    package = _distribution(name)
    if package is None and user:
        return  # for another system than this
    seen[name] = Licence(
        name=name,
        version=package.version if package else "",
        licence=DECLARED.get(name) or (_declared(package) if package else SEE_PAGE),
        used_for=USES.get(name) or (f"needed by {user}" if user else ""),
        kind=kind,
        note=NOTES.get(name, "" if package else "not installed"),
        forbids_commerce=name in NON_COMMERCIAL,
    )
    for other, extra in _requirements(package):
        if not extra:
            _add(seen, _plain(other), kind=kind, user=name)


def _declared(package: Distribution) -> str:
    """The licence as a package declares it: an expression, a classifier, or the name before a text."""
    about = package.metadata.json
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get("classifier") or ()
        if line.startswith("License :: ") and line.count(" :: ") > 1
    ]
    first = (str(about.get("license", "")).strip().splitlines() or [""])[0].strip()
    is_name = bool(first) and len(first) <= _SHORT and not first.lower().startswith("copyright")
    return (
        str(about.get("license_expression", "")) or ", ".join(classified) or (first if is_name else SEE_PAGE)
    )


def _requirements(package: Distribution | None) -> Sequence[tuple[str, str]]:
    """Names of what a package needs, each with the extra that alone needs it, or none."""
    found = []
    for line in (package.requires if package else None) or ():
        name, extra = _NAME.match(line), _EXTRA.search(line)
        if name:
            found.append((name[0], extra[1] if extra else ""))
    return found


def _vendored() -> Iterator[Licence]:
    """Files of others that the package carries, as their manifest names them."""
    if not VENDORED.is_file():
        return
    for name, about in json.loads(VENDORED.read_bytes()).items():
        yield Licence(
            name=name,
            version=str(about["version"]),
            licence=str(about["licence"]),
            used_for=str(about.get("used_for", "the contact sheet")),
            kind="vendored",
            note=str(about.get("source", "")),
            licence_file=str((VENDORED.parent / about["licence_file"]).relative_to(HERE.parent)),
        )


def _plain(name: str) -> str:
    """A package's name in the one form that all its spellings share (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
