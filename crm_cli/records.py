"""What travels from stage to stage: frozen records that check their shapes at birth.

Shapes are written `6 3 S S`: a number is exact, a letter means the same size throughout one record.
Arrays of the networks are torch tensors, arrays of geometry and files are numpy's; this module
imports neither, so that a process which only plans and counts stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

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
class Checks:
    """What a buyer would check of a finished asset."""

    vertices: int
    faces: int
    is_closed: bool
    is_manifold: bool
    is_oriented: bool
    volume: float
    euler: int
    components: int
    degenerate_faces: int
    uv_overlap: float
    """Share of covered texels that more than one triangle covers."""
    uv_coverage: float
    silhouette_iou: float
    """Front silhouette of the asset against the cut-out; 0 where there is nothing to compare."""
    confidence: str
    """`ok`, or `low` where the networks' answer did not match the photo."""
    seen_share: float = 0.0
    """Share of the surface's area that shows the photo itself; the rest is imagined."""


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
    may_reuse: bool = True
    """Whether what is kept there may be used, or is to be made anew."""


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
    "Asset", "Camera", "Checks", "Crop", "Cutout", "Done", "Failed", "Job", "Mesh", "Outcome", "Photo",
    "SixViews", "TexturedMesh", "Triplane", "UnwrappedMesh", "WrittenFile", "expect",
]  # fmt: skip
