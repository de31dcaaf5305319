"""What to make: YAML presets read into one frozen tree, with the origin of every value.

Where and how it is made (device, engine, folders) is no preset: it may differ between two runs that
make the same asset. A setting's type, limits and meaning stand once, in its annotation below; checking,
`crm presets show` and the documentation read them from there.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from crm_cli.errors import UsageError

DEFAULT = "default"
"""The preset that sets everything; every other one extends it, directly or not."""

MAX_PRESET_BYTES = 1 << 16
"""A preset is a page of text; more is a mistake in the file name, and would only be slow to parse."""

MAX_ALIASES = 8
"""Merged into each other, aliases grow like a power of their number; a preset has hardly any."""

MAX_SHOWN = 200
"""How much of a name that is none is repeated."""


AUTO = "auto"
"""What a preset says of a setting that depends on the weights; see Suited."""

EMBEDDED = "small"
"""The architecture of the embedded weights; every other one is the published system, in some size."""


class Within(NamedTuple):
    """Both ends of what a number may be, inclusive."""

    low: float
    high: float


class Suited(NamedTuple):
    """What `auto` stands for with either kind of weights; a setting without this has no `auto`."""

    embedded: Any
    published: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Matting:
    """How the subject is told from its background."""

    method: Annotated[
        Literal["auto", "alpha", "grabcut", "rembg", "none"],
        "who finds the subject; auto takes alpha where it means something, else the best installed",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How the subject is laid on the square canvas."""

    size_px: Annotated[int, Within(64, 2048), "side of the canvas"]
    fill: Annotated[
        float,
        Within(0.1, 1.0),
        # The published networks learned views of objects that fill 0.95 of them.
        Suited(embedded=0.8, published=0.95),
        "share of the canvas that the subject's longest side fills",
    ]
    framing: Annotated[
        Literal["subject", "canvas"],
        "subject: centred, as large as fill says; canvas: the whole photo, padded to a square",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one of the two denoisers is run."""

    solver: Annotated[Literal["unipc", "ddim"], "unipc needs fewer steps; ddim is the published sampler"]
    steps: Annotated[int, Within(1, 1000), Suited(embedded=1, published=20), "calls of the network"]
    guidance: Annotated[
        float,
        Within(0.0, 30.0),
        # The embedded networks were trained without it; 5 is what the published command line uses.
        Suited(embedded=1.0, published=5.0),
        "classifier-free guidance scale; 1 is off, and half the work",
    ]
    guided: Annotated[float, Within(0.0, 1.0), "share of the steps, from the first on, that are guided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What is handed from the denoisers to the reconstruction."""

    size_px: Annotated[
        int, Within(64, 512), "side of each of the six views; the published networks draw 256 px"
    ]
    use_photo: Annotated[bool, "the embedded networks' front view is the photo itself"]
    truncate: Annotated[bool, "the published networks' pictures are cut to 8 bits between the stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructing:
    """How the surface is drawn from the field."""

    grid: Annotated[
        int,
        Within(8, 256),
        # The published network moves the vertices of a grid of 80.
        Suited(embedded=96, published=80),
        "cells of the FlexiCubes grid along each axis",
    ]
    dense: Annotated[bool, "ask the field at every grid vertex instead of following its surface"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshing:
    """What the surface may cost."""

    faces: Annotated[int, Within(100, 1_000_000), "triangles the asset may have"]
    smooth: Annotated[
        int, Within(0, 100), "smoothing passes before simplification; 0 keeps the surface as extracted"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwrapping:
    """How texture coordinates are found."""

    method: Annotated[
        Literal["box", "xatlas"], "box is fast with few seams; xatlas wastes less texture, slowly"
    ]
    padding_px: Annotated[int, Within(1, 64), "texels between charts; mipmaps bleed across fewer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texturing:
    """The texture."""

    size_px: Annotated[
        Literal[128, 256, 512, 1024, 2048, 4096], "side of the texture; powers of two, as engines ask"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporting:
    """Which files are written, and how they are packed."""

    formats: Annotated[tuple[Literal["glb", "obj", "usd", "usdz"], ...], "file formats of the asset"]
    texture: Annotated[
        Literal["png", "jpeg", "webp", "ktx2"],
        "picture format inside GLB; the other formats take png where it says so, else jpeg",
    ]
    texture_quality: Annotated[
        int, Within(1, 100), "of jpeg, webp and ktx2, which lose detail; png loses none"
    ]
    compression: Annotated[
        Literal["none", "meshopt", "draco"], "of the geometry in GLB; viewers need the decoder of that name"
    ]

    @property
    def plain_texture(self) -> Literal["png", "jpeg"]:
        """The picture format where only these two are read: in OBJ, in USD, on Apple devices.

        Who asks for a format that loses detail wants a small file, so that JPEG is nearer to it than PNG.
        """
        return "png" if self.texture == "png" else "jpeg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewing:
    """Pictures of the finished asset."""

    size_px: Annotated[int, Within(32, 2048), "side of each picture"]
    turns: Annotated[int, Within(1, 36), "pictures around the asset, starting at its front"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checking:
    """When an asset is flagged."""

    min_silhouette_iou: Annotated[
        float,
        Within(0.0, 1.0),
        # The published networks choose their own framing, so that outlines need not lie on each other.
        Suited(embedded=0.8, published=0.0),
        "below this match with the photo's outline the networks' answer is not trusted",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything that decides what an asset looks like, and nothing else."""

    weights: Annotated[str, "auto, embedded, published, or the path of a weights folder"]
    seed: Annotated[int, Within(0, 2**32 - 1), "start of all randomness; the photo's digest is mixed in"]
    matting: Matting
    cutout: Framing
    rgb: Sampling
    ccm: Sampling
    views: Views
    reconstruction: Reconstructing
    mesh: Meshing
    unwrap: Unwrapping
    texture: Texturing
    export: Exporting
    preview: Previewing
    checks: Checking

    def fingerprint(self, *sections: str) -> str:
        """SHA-256 over the values of the named sections, hexadecimal; without a name, of all that counts.

        Canonical JSON is hashed, so that the order of keys and the way a number was written do not count. Nor
        does what the weights are called, unless it is asked for: a folder has many names.
        """
        values = asdict(self)
        chosen = {name: values[name] for name in sections or values.keys() - {"weights"}}
        text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


STAGE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "prep": ("matting", "cutout"),
    "views": ("seed", "rgb", "ccm", "views"),
    "mesh": ("reconstruction", "mesh", "checks"),
    "out": ("unwrap", "texture", "export", "preview"),
}
"""Which part of the preset each stage reads: a change redoes that stage and those after it, not those before.

The silhouette check stands with the mesh because it decides which surface is taken. The weights are
not here: their digest counts, not what they were called.
"""


class Setting(NamedTuple):
    """One line of the tree: `rgb.steps`, what it may be, and what it means."""

    key: str
    kind: type
    choices: tuple[str | int, ...]
    many: bool
    within: Within | None
    suited: Suited | None
    about: str

    @property
    def allowed(self) -> str:
        """What the value may be, in words."""
        if self.choices:
            listed = ", ".join(str(choice) for choice in self.choices)
            return f"{'a list of' if self.many else 'one of'} {listed}"
        noun = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[self.kind]
        if self.within:
            noun += f" from {self.within.low:.12g} to {self.within.high:.12g}"
        return f"{noun}, or auto" if self.suited else noun


class Override(NamedTuple):
    """One value from outside the preset files: dotted key, YAML text, and who says so (`--set`)."""

    key: str
    text: str
    origin: str

    @classmethod
    def from_assignment(cls, assignment: str) -> Override:
        """Read `key=value` as the command line gives it."""
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(
                f"--set {_printable(assignment)}: no '=' in it",
                code="E_PRESET_SET",
                remedy="write --set rgb.steps=20",
            )
        return cls(key.strip(), text, "--set")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPreset:
    """A preset with the place every value came from."""

    name: str
    preset: Preset
    origins: Mapping[str, str]
    """Dotted key → preset file, or the option that set it last."""
    autos: frozenset[str]
    """Dotted keys that were left to the weights."""


@cache
def settings() -> Mapping[str, Setting]:
    """Every setting there is, by dotted key, in the order of the tree."""
    found = {}
    for name, hint in get_type_hints(Preset, include_extras=True).items():
        if is_dataclass(hint):
            for inner, inner_hint in get_type_hints(hint, include_extras=True).items():
                found[f"{name}.{inner}"] = _setting(f"{name}.{inner}", inner_hint)
        else:
            found[name] = _setting(name, hint)
    return found


def value_of(preset: Preset, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = preset
    for part in key.split("."):
        value = getattr(value, part)
    return value


def presets_folder() -> Path:
    """Where the shipped presets are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "presets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "presets"


def list_presets() -> list[str]:
    """Names of the shipped presets, the default first."""
    names = sorted(path.stem for path in presets_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT)


def purpose(name: str) -> str:
    """What a shipped preset is for: the first sentence of the comment it begins with."""
    lines = (presets_folder() / f"{name}.yaml").read_text("utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(_is_comment, lines))
    return comment.split(". ")[0].rstrip(".")


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def load_preset(
    name: str = DEFAULT, overrides: Sequence[Override] = (), *, architecture: str = EMBEDDED
) -> ResolvedPreset:
    """Read a shipped preset by name or the user's own by path (`*.yaml`), or raise UsageError.

    overrides: weakest first; each wins over the files and over those before it.
    architecture: of the weights that will be used; decides what `auto` stands for.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, tree in _chain(name):
        for key, value in _flatten(tree, path):
            values[key], origins[key] = _checked(key, value, str(path)), str(path)
    for override in overrides:
        value = _parse(override.text, where=f"{override.origin} {_printable(override.key)}")
        values[override.key] = _checked(override.key, value, override.origin)
        origins[override.key] = override.origin
    autos = frozenset(key for key, value in values.items() if value == AUTO and settings()[key].suited)
    values.update({key: _suited(settings()[key], architecture) for key in autos})
    return ResolvedPreset(
        name=name, preset=_build(values), origins={key: origins[key] for key in settings()}, autos=autos
    )


def _suited(setting: Setting, architecture: str) -> Any:
    """What `auto` stands for."""
    assert setting.suited is not None
    return setting.suited.embedded if architecture == EMBEDDED else setting.suited.published


def _setting(key: str, hint: Any) -> Setting:
    """Read one annotation."""
    kind, notes = get_args(hint)[0], hint.__metadata__
    within = next((note for note in notes if isinstance(note, Within)), None)
    suited = next((note for note in notes if isinstance(note, Suited)), None)
    about = next(note for note in notes if isinstance(note, str))
    many = get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Setting(key, type(choices[0]) if choices else kind, choices, many, within, suited, about)


def _chain(name: str) -> list[tuple[Path, dict[Any, Any]]]:
    """The files a preset is made of with what they say, the one everything extends first."""
    chain: dict[Path, dict[Any, Any]] = {}
    path: Path | None = _find(name, beside=Path())
    while path is not None:
        if path in chain:
            names = " → ".join(_printable(link.stem) for link in [*chain, path])
            raise UsageError(f"extends runs in a circle: {names}", code="E_PRESET_CIRCLE")
        chain[path] = _read(path)
        path = _parent(path, chain[path].get("extends"))
    return list(chain.items())[::-1]


def _parent(path: Path, extends: Any) -> Path | None:
    """The file that a preset extends: the default one where it does not say; None for the default itself."""
    if extends is None:
        default = _find(DEFAULT, beside=path.parent)
        return None if path == default else default
    if not isinstance(extends, str):
        raise _wrong("extends", f"expected the name of a preset, got {_shown(extends)}", str(path))
    return _find(extends, beside=path.parent)


def _find(name: str, *, beside: Path) -> Path:
    """The file of a preset: a path where the name looks like one, otherwise a shipped preset."""
    if name.endswith((".yaml", ".yml")):
        try:
            path = (beside / Path(name).expanduser()).resolve()
            # A pipe or a device would never end.
            is_file = path.is_file()
        # ValueError: a NUL byte. RuntimeError: links that run in a circle, a user without a home.
        except (OSError, ValueError, RuntimeError):
            is_file = False
        if not is_file:
            raise UsageError(f"{_printable(name)}: no such preset file", code="E_PRESET_NAME")
        return path
    if name in list_presets():
        return (presets_folder() / f"{name}.yaml").resolve()
    raise UsageError(
        f"{_printable(name)}: no such preset{_hint(name, list_presets())}",
        code="E_PRESET_NAME",
        remedy="`crm presets list` names them; a file of your own must end in .yaml",
    )


def _read(path: Path) -> dict[Any, Any]:
    """The mapping in a preset file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PRESET_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({_first_line(error)})", code="E_PRESET_FILE") from error
    if len(raw) > MAX_PRESET_BYTES:
        raise UsageError(f"{path}: too large to be a preset", code="E_PRESET_FILE")
    tree = _parse(text, where=str(path))
    if tree is None:  # an empty file changes nothing
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected settings, got {_shown(tree)}", code="E_PRESET_FILE")
    return tree


def _parse(text: str, *, where: str) -> Any:
    """Read YAML with the safe loader, which can build nothing but plain values."""
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, but a key given twice is an error instead of the last one winning."""

        aliases = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > MAX_ALIASES:
                    raise yaml.composer.ComposerError(problem=f"more than {MAX_ALIASES} aliases")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key, count in Counter(keys).items() if count > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    problem=f"{twice!r} is set twice", problem_mark=node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    # Not YAMLError alone: of a tag whose value does not fit PyYAML passes on whatever comes of it, and
    # brackets that are nested too deep are a RecursionError.
    except Exception as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{where}:{place} not valid YAML ({_printable(problem or _first_line(error))})",
            code="E_PRESET_YAML",
        ) from error


def _flatten(tree: Mapping[Any, Any], path: Path) -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of one file, sections unfolded."""
    sections = {key.split(".")[0] for key in settings() if "." in key}
    for name, value in tree.items():
        if name == "extends":
            continue
        if name not in sections:
            yield str(name), value
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                yield f"{name}.{inner}", inner_value
        elif value is not None:  # a section with every line commented out
            raise _wrong(str(name), f"expected settings, got {_shown(value)}", str(path))


def _checked(key: str, value: Any, origin: str) -> Any:
    """The value in its setting's type, or UsageError."""
    setting = settings().get(key)
    if setting is None:
        raise UsageError(_unknown(key), code="E_PRESET_KEY", remedy=f"set by {origin}")
    if not setting.many:
        return _checked_one(setting, value, origin)
    if isinstance(value, str):  # --set export.formats=glb,usd
        value = [item.strip() for item in value.split(",")]
    if not isinstance(value, list) or not value:
        raise _wrong(key, f"expected {setting.allowed}, got {_shown(value)}", origin)
    items = tuple(_checked_one(setting, item, origin) for item in value)
    return tuple(dict.fromkeys(items))


def _checked_one(setting: Setting, value: Any, origin: str) -> Any:
    """One value, or one item of a list."""
    if setting.suited is not None and value == AUTO:
        return value
    # A bool is an int to Python, and a whole number is as good as a float to a person.
    if setting.kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    fits = type(value) is setting.kind
    if fits and setting.choices:
        fits = value in setting.choices
    if fits and setting.within is not None:
        fits = setting.within.low <= value <= setting.within.high  # which what is no number is not
    if not fits:
        hint = (
            _hint(str(value), [str(choice) for choice in setting.choices]) if isinstance(value, str) else ""
        )
        raise _wrong(setting.key, f"expected {setting.allowed}, got {_shown(value)}{hint}", origin)
    return value


def _build(values: Mapping[str, Any]) -> Preset:
    """The tree from its flat values."""
    missing = next((key for key in settings() if key not in values), None)
    if missing:
        raise UsageError(f"{missing}: no preset sets it", code="E_PRESET_MISSING", remedy="reinstall crm-cli")
    parts: dict[str, Any] = {}
    for name, hint in get_type_hints(Preset).items():
        if is_dataclass(hint):
            inner = {key: values[f"{name}.{key}"] for key in get_type_hints(hint)}
            parts[name] = hint(**inner)  # type: ignore[operator]  # is_dataclass also admits instances
        else:
            parts[name] = values[name]
    return Preset(**parts)


def _unknown(key: str) -> str:
    """Say that a key does not exist, and which one may have been meant."""
    section, dot, name = key.rpartition(".")
    siblings = [known.removeprefix(section + dot) for known in settings() if known.startswith(section + dot)]
    if dot and siblings:
        return f"{_printable(key)}: no such setting{_hint(name, siblings)}"
    members = [known for known in settings() if known.startswith(f"{key}.")]
    if members:
        return f"{key}: a section, not a setting (it has {', '.join(members)})"
    # A bare name may be a setting without its section, before it is a setting misspelt.
    homes = [known for known in settings() if known.endswith(f".{key}")]
    return f"{_printable(key)}: no such setting{_hint(homes[0] if homes else key, list(settings()))}"


def _wrong(key: str, problem: str, origin: str) -> UsageError:
    """A value that its setting cannot take."""
    return UsageError(f"{key}: {problem}", code="E_PRESET_VALUE", remedy=f"set by {origin}")


def _hint(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'steps'?)`, or nothing."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _shown(value: Any) -> str:
    """A value in a message: short even where aliases make it endless."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of thousands of digits, which Python does not write out
        return "a number beyond all bounds"


def _printable(text: str) -> str:
    """A name in a message: on one line, without control characters."""
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return text if text.isprintable() else repr(text)


def _first_line(error: Exception) -> str:
    """What an error says, without its details."""
    return (str(error) or type(error).__name__).splitlines()[0]
