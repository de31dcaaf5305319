"""What travels from stage to stage: frozen records that check their shapes at birth.

Shapes are written `6 3 S S`: a number is exact, a letter means the same size throughout one record.
Arrays of the networks are torch tensors, arrays of geometry and files are numpy's; this module
imports neither, so that a process which only plans and counts stays light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from crm_cli.errors import CrmError, ErrorClass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


MAX_PHOTO_BYTES = 200_000_000
"""More than any camera's photo; a file is read whole, to be hashed and decoded from one copy."""


def expect(owner: str, **arrays: tuple[Any, str]) -> None:
    """Raise ValueError where an array has another shape than its pattern says."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, (array, pattern) in arrays.items():
        if array is None:
            continue
        shape = list(array.shape)
        wanted = pattern.split()
        fits = len(shape) == len(wanted)
        for size, letter in zip(shape, wanted, strict=False):
            if letter.isdigit():
                fits &= size == int(letter)
            else:
                fits &= sizes.setdefault(letter, (size, name))[0] == size
        if not fits:
            known = " ".join(f"{k}={v}" for k, (v, source) in sizes.items() if source != name)
            raise ValueError(
                f"{owner}.{name}: got {shape}, expected [{pattern}]" + (f" with {known}" if known else "")
            )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Photo:
    """One photo as read: upright (EXIF applied) and sRGB (ICC applied)."""

    path: PurePosixPath
    """Relative to the input folder."""
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    digest: str
    """SHA-256 of the file's bytes, hexadecimal."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Photo", rgb=(self.rgb, "H W 3"), alpha=(self.alpha, "H W"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """The square of the photo that became a cut-out: centre and side in pixels of the upright photo."""

    centre_x: float
    centre_y: float
    side_px: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cutout:
    """The subject of a photo, centred on a square canvas; rgb is not premultiplied, zero where alpha is."""

    rgb: Tensor
    alpha: Tensor
    crop: Crop
    photo: PurePosixPath
    digest: str
    """Digest of the photo: randomness is drawn from it."""
    matting: str
    """Which method found the subject: alpha, grabcut, rembg or none."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Cutout", rgb=(self.rgb, "3 S S"), alpha=(self.alpha, "1 S S"))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SixViews:
    """Six orthographic views in the order of frame.VIEWS, values in [0, 1].

    rgb lies on mid grey; ccm is (world coordinate + 1) / 2 in X, Y, Z order on mid grey;
    alpha is 1 where the object is.
    """

    rgb: Tensor
    ccm: Tensor
    alpha: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "SixViews", rgb=(self.rgb, "6 3 S S"), ccm=(self.ccm, "6 3 S S"), alpha=(self.alpha, "6 1 S S")
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Triplane:
    """Features on the planes xy, yz, zx; the corners of each plane lie at ±1."""

    planes: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Triplane", planes=(self.planes, "3 C R R"))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mesh:
    """Triangles in the world frame, inside [-1, 1]³, counter-clockwise seen from outside.

    vertices float32, faces int64.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Mesh", vertices=(self.vertices, "V 3"), faces=(self.faces, "F 3"))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UnwrappedMesh:
    """A mesh with texture coordinates: uv float32 in [0, 1], origin bottom-left; uv_faces int64 index uv."""

    mesh: Mesh
    uv: NDArray[np.float32]
    uv_faces: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "UnwrappedMesh",
            uv=(self.uv, "W 2"),
            uv_faces=(self.uv_faces, "F 3"),
            faces=(self.mesh.faces, "F 3"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Where the photo was taken from, as far as its outline and the finished asset's tell.

    Pixels are those of the upright photo of `photo_width_px` by `photo_height_px`, which may be smaller than
    the file's own; x grows to the right, y downwards, and the first pixel's corner is at 0, 0.
    """

    kind: str
    """`orthographic`: a world point appears at centre + px_per_unit · (−x, −z)."""
    view: str
    """The view of frame.VIEWS that it looks along."""
    centre_x: float
    """Where the world's origin appears."""
    centre_y: float
    px_per_unit: float
    """Pixels a world unit takes; an asset in metres is half as large as in world units."""
    left: float
    """The box that the finished asset fills in the photo."""
    top: float
    right: float
    bottom: float
    photo_width_px: int
    photo_height_px: int
    silhouette_iou: float
    """Outline of the asset against the cut-out's, seen from here."""
    is_refined: bool
    """Whether it was moved to fit; else it is where the networks take every photo from."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TexturedMesh:
    """An unwrapped mesh and its sRGB texture, uint8; texture row 0 is the top (v = 1)."""

    unwrapped: UnwrappedMesh
    texture: NDArray[np.uint8]
    seen: NDArray[np.float32] | None = None
    """How far each texel shows the photo itself: 0 imagined, 1 seen. None where no photo was laid on it."""
    seen_share: float = 0.0
    """Share of the surface's area that the photo shows."""
    camera: Camera | None = None
    """Where the photo was taken from."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("TexturedMesh", texture=(self.texture, "T T 3"), seen=(self.seen, "T T"))

    @property
    def mesh(self) -> Mesh:
        """The geometry alone."""
        return self.unwrapped.mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What holds of a surface as a whole."""

    vertices: int
    faces: int
    is_closed: bool
    """Every edge has exactly two faces."""
    is_manifold: bool
    """No edge has more than two faces, and the faces around each vertex form one fan."""
    is_oriented: bool
    """Wherever two faces meet, they run along their edge in opposite directions."""
    volume: float
    """Signed; positive where faces look outwards."""
    euler: int
    components: int
    degenerate_faces: int

    @property
    def is_sound(self) -> bool:
        """Whether the surface bounds a solid."""
        return self.is_closed and self.is_manifold and self.is_oriented and self.volume > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks(Shape):
    """What a buyer would check of a finished asset.

    Measures with a default came after version 0.1.0; the default says that nobody measured.
    """

    uv_overlap: float
    """Share of covered texels that more than one triangle covers."""
    uv_coverage: float
    silhouette_iou: float
    """Front silhouette of the asset against the cut-out; 0 where there is nothing to compare."""
    confidence: str
    """`ok`, or `low` where the networks' answer did not match the photo."""
    colour_distance: float = 0.0
    """Mean CIEDE2000 difference between the asset's front and the cut-out, over what both cover."""
    views_iou: float = 1.0
    """Mean intersection over union of the other five outlines with the views that they were made from."""
    thickness: float = 1.0
    """How deep it is as a share of what the views promise, from the side or from above, whichever is less."""
    seen_share: float = 0.0
    """Share of the surface that the photo shows; the rest is imagined, all of it where none was laid on."""


Grade = Literal["pass", "review", "fail"]
"""May be published; a person should look; is not what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that speaks against an asset."""

    code: str
    """Dotted and stable, as `likeness.colour`."""
    severity: Literal["review", "fail"]
    found: float
    limit: float
    """What would have passed."""
    sentence: str
    """The same for a person, with both numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an asset may be published as it is, and what speaks against it."""

    grade: Grade
    reasons: tuple[Reason, ...] = ()
    """Those that weigh most first."""
    score: float = 0.0
    """How well the asset agrees with photo and views, in [0, 1]: tells tries of one grade apart."""

    @property
    def codes(self) -> tuple[str, ...]:
        """What the reasons are called, each once: of a limit there is one for every file that breaks it."""
        return tuple(dict.fromkeys(reason.code for reason in self.reasons))


def unsaid(warnings: Iterable[str], verdict: Verdict | None) -> tuple[str, ...]:
    """Those warnings that no reason of a verdict says already, if without a code behind them."""
    said = {reason.sentence for reason in verdict.reasons} if verdict else set()
    return tuple(warning for warning in warnings if not {warning, warning.rpartition(" [")[0]} & said)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSize:
    """What a product measures, in millimetres, as its listing says; 0 where it does not."""

    width_mm: float = 0.0
    height_mm: float = 0.0
    depth_mm: float = 0.0

    @property
    def in_mm(self) -> tuple[float, float, float]:
        """Width, height, depth: along x, y, z of the files."""
        return self.width_mm, self.height_mm, self.depth_mm

    def __str__(self) -> str:
        """Width, height, depth in millimetres, `-` for what nobody said: `250 - 80.5`."""
        # Exactly: an asset that is made again from these words has the same size.
        return " ".join(repr(length).removesuffix(".0") if length else "-" for length in self.in_mm)

    @classmethod
    def from_text(cls, text: str) -> RealSize:
        """Read what str() wrote; ValueError where it is something else."""
        width, height, depth = (0.0 if word == "-" else float(word) for word in text.split())
        return cls(width_mm=width, height_mm=height, depth_mm=depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCheck:
    """One limit of a preset, held against one written file."""

    limit: str
    """The setting's name in the section `limits`: triangles, vertices, texture_px, …; or lods, of a chain."""
    file: str
    """Name of the file; empty where the whole asset is meant."""
    allowed: float
    found: float
    is_kept: bool
    mended: str = ""
    """What was given up to keep it; empty where nothing had to be."""

    @property
    def words(self) -> str:
        """Say in what a limit is broken."""
        place = f"{self.file}: " if self.file else ""
        if self.limit == "aspect":
            return f"the aspect disagrees with the listing by {self.found:.0%}"
        if self.limit == "square_texture":
            return f"{place}the texture is not square, or its side no power of two"
        if self.limit == "slugs":
            return f"{place}named in other letters than a-z, 0-9, _ and -"
        if self.limit == "lods":
            return (
                f"{place}{self.found:.0f} triangles where {self.allowed:.0f} were asked: fewer would tear it"
            )
        kept = "no repair that is left would keep it"
        return f"{place}{self.limit} {self.found:.0f} where {self.allowed:.0f} are allowed: {kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """How an asset's files keep the limits of their preset, measured on the files."""

    checks: tuple[LimitCheck, ...] = ()
    mended: tuple[str, ...] = ()
    """Repairs in the order they were made: `texture 2048→1024 px to keep 5 MB`."""
    size_mm: RealSize | None = None
    """What the asset measures, where a listing said what the product does."""

    @property
    def broken(self) -> tuple[LimitCheck, ...]:
        """Limits that are not kept."""
        return tuple(check for check in self.checks if not check.is_kept)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of it."""
        mended = (f"mended: {repair}" for repair in self.mended)
        return *mended, *dict.fromkeys(check.words for check in self.broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One photo to convert, and where its files may be written."""

    root: Path
    """The input folder."""
    path: PurePosixPath
    """The photo, relative to the input folder."""
    stem: PurePosixPath
    """The asset's name in the output folder without a suffix; it may hold dots: only ever add to it."""
    id: str
    """Short hash of the asset's name, safe in file names."""
    scratch: Path
    """An empty folder on the output's file system; files get their final relative names here."""
    max_mpixels: float
    """A photo of more million pixels is refused before it is decoded."""
    cache: Path | None = None
    """Folder that keeps the cut-out and views of these bytes under these settings; None: nothing is kept."""
    other_caches: tuple[Path, ...] = ()
    """The same for every further seed that may be tried, in their order."""
    may_reuse: bool = True
    """Whether what is kept there may be used, or is to be made anew."""
    size: RealSize | None = None
    """What the product measures, where somebody knows."""
    seed: int | None = None
    """Another seed than the preset's, where this photo alone is to have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """One file on disk: path relative to the output folder."""

    path: PurePosixPath
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """What stands on disk for one photo."""

    photo: PurePosixPath
    files: tuple[WrittenFile, ...]
    checks: Checks
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    publication: Publication = field(default_factory=Publication)
    verdict: Verdict | None = None
    """None where nobody judged."""
    seed: int | None = None
    """Of the try that was kept; None: the preset's."""
    camera: Camera | None = None
    """Where the photo was taken from; None where nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A photo became an asset."""

    asset: Asset


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A photo did not become an asset; a value, so that one bad photo never ends a run."""

    path: PurePosixPath
    kind: ErrorClass
    code: str
    message: str
    stage: str
    attempts: int = 1

    @classmethod
    def from_error(cls, path: PurePosixPath, error: CrmError, *, stage: str) -> Failed:
        """Describe an expected error."""
        kind: ErrorClass = getattr(error, "kind", "internal")
        return cls(path=path, kind=kind, code=error.code, message=str(error), stage=stage)


Outcome = Done | Failed

__all__ = [
    "Asset", "Camera", "Checks", "Crop", "Cutout", "Done", "Failed", "Grade", "Job", "LimitCheck", "Mesh",
    "Outcome", "Photo", "Publication", "RealSize", "Reason", "Shape", "SixViews", "TexturedMesh",
    "Triplane", "UnwrappedMesh", "Verdict", "WrittenFile", "expect",
]  # fmt: skip
