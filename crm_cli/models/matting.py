"""Photo → cut-out: find the subject, then lay it on a square canvas."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from crm_cli.errors import EnvironmentProblem, PhotoError
from crm_cli.names import display_name
from crm_cli.records import Crop, Cutout, Photo, expect

SOLID = 128
"""From this alpha on a pixel is more subject than background."""

MEANINGFUL = 0.002
"""Share of the photo that must be transparent, and opaque, for its alpha to be a cut-out: a lamp post fills
3 % of its picture, a rounded corner 0.1 %."""

TOUCHES = 0.01
"""Share of the frame's pixels on the subject from which on it runs out of the picture."""

LARGE_PART = 0.15
"""A part with this share of the largest one's area is no speck."""

FEW_PX = 128
"""A subject with fewer pixels along its longest side stays blurred, whatever is made of it."""

NOTHING_FOUND = "give an image with alpha, use --matting none, or pip install 'rembg[cpu]'"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Matted:
    """Where the subject of a photo is."""

    alpha: NDArray[np.uint8]
    method: str
    rgb: NDArray[np.uint8] | None = None
    """Colours without the background's share at the outline; None where the photo's own are right."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Matted", alpha=(self.alpha, "H W"), rgb=(self.rgb, "H W 3"))


class Matte(Protocol):
    """A way to find the subject."""

    name: ClassVar[str]

    @staticmethod
    def why_not(device: str) -> str | None:
        """Say what keeps it from working on this machine, or None."""
        ...

    def __call__(self, photo: Photo) -> Matted:
        """Find the subject, or raise PhotoError."""
        ...


class AlphaMatte:
    """The transparency that the photo brings along."""

    name: ClassVar[str] = "alpha"

    @staticmethod
    def why_not(device: str) -> str | None:
        """It always works; whether a photo has a usable alpha is that photo's matter."""
        return None

    def __call__(self, photo: Photo) -> Matted:
        """Take the photo's alpha as it is."""
        if photo.alpha is None or not alpha_means_something(photo):
            raise PhotoError(
                f"{display_name(photo.path)}: no transparent background",
                code="E_MATTE_ALPHA",
                remedy="use --matting auto, or give an image with alpha",
            )
        return _reviewed(Matted(alpha=photo.alpha, method=self.name), photo)


class GrabCutMatte:
    """Colour models of the backdrop and the subject, see models/backdrop.py; needs no download."""

    name: ClassVar[str] = "grabcut"

    @staticmethod
    def why_not(device: str) -> str | None:
        """Say what keeps it from working on this machine, or None."""
        return None if find_spec("cv2") else "not installed: pip install opencv-python-headless"

    def __call__(self, photo: Photo) -> Matted:
        """Separate the subject by colour."""
        from crm_cli.models.backdrop import separate

        alpha, rgb = separate(opaque(photo))
        return _reviewed(Matted(alpha=alpha, rgb=rgb, method=self.name), photo)


class RembgMatte:
    """The U²-Net of the rembg package, where the user has put its model file; nothing is ever downloaded."""

    name: ClassVar[str] = "rembg"

    def __init__(self) -> None:
        self._session: Any = None

    @staticmethod
    def why_not(device: str) -> str | None:
        """Say what keeps it from working on this machine, or None."""
        if not (find_spec("rembg") and find_spec("onnxruntime")):
            return "not installed: pip install 'rembg[cpu]'"
        file = RembgMatte.model_file()
        return None if file.is_file() else f"no model: put u2net.onnx of rembg's releases at {file}"

    @staticmethod
    def model_file() -> Path:
        """Where rembg looks for its default model.

        (danielgatis/rembg, sessions/base.py)
        """
        home = os.environ.get("U2NET_HOME") or str(Path(os.environ.get("XDG_DATA_HOME") or "~") / ".u2net")
        return Path(home).expanduser() / "u2net.onnx"

    def __call__(self, photo: Photo) -> Matted:
        """Ask the network."""
        # Opening takes seconds, and photos that bring their alpha never need it.
        self._session = self._session or self._open()
        rgb = opaque(photo)
        mask = self._session.predict(Image.fromarray(rgb))[0].convert("L")
        return _reviewed(Matted(alpha=np.array(mask), method=self.name), photo)

    @classmethod
    def _open(cls) -> Any:
        """A session on the model file that is there; rembg's own would replace a file it does not know."""
        from rembg.sessions.u2net import U2netSession

        class LocalSession(U2netSession):  # type: ignore[misc]  # rembg is not typed
            """U²-Net without the download."""

            @classmethod
            def download_models(cls, *args: object, **kwargs: object) -> str:
                return str(RembgMatte.model_file())

        return LocalSession("u2net", import_module("onnxruntime").SessionOptions())


class NoMatte:
    """The whole picture is the subject."""

    name: ClassVar[str] = "none"

    @staticmethod
    def why_not(device: str) -> str | None:
        """It always works."""
        return None

    def __call__(self, photo: Photo) -> Matted:
        """Take everything."""
        return Matted(alpha=np.full(photo.rgb.shape[:2], 255, np.uint8), rgb=opaque(photo), method=self.name)


MATTES: tuple[type[AlphaMatte | RembgMatte | GrabCutMatte | NoMatte], ...] = (
    AlphaMatte,
    RembgMatte,
    GrabCutMatte,
    NoMatte,
)
"""Best first; the last one only when it is asked for."""


def find_subject(photo: Photo, mattes: Mapping[str, Matte], *, method: str) -> Matted:
    """Find the subject by the method a preset names.

    Args:
        photo: The photo.
        mattes: The methods that work on this machine, by name.
        method: A name, or `auto`: the photo's alpha where it means something, else the best of the others.
    """
    if method == "auto":
        first = ["alpha"] if alpha_means_something(photo) else []
        method = next((name for name in (*first, "rembg", "grabcut") if name in mattes), "grabcut")
    if method not in mattes:
        raise EnvironmentProblem(
            f"matting {method}: not available here", code="E_TOOL", remedy="see `crm doctor`"
        )
    return mattes[method](photo)


def alpha_means_something(photo: Photo) -> bool:
    """Whether the photo's alpha is a cut-out: some of it transparent and some of it opaque."""
    if photo.alpha is None:
        return False
    clear, solid = np.mean(photo.alpha < 16), np.mean(photo.alpha >= 240)
    return bool(clear >= MEANINGFUL and solid >= MEANINGFUL)


def cut_out(photo: Photo, matted: Matted, *, size_px: int, fill: float) -> Cutout:
    """Lay the subject on a square canvas: centred, its longest side `fill` of the canvas.

    Colours are resampled weighted by alpha, so that nothing of the background bleeds in at the outline.
    """
    if matted.alpha.shape != photo.rgb.shape[:2]:
        raise ValueError(f"alpha is {matted.alpha.shape}, the photo {photo.rgb.shape[:2]}")
    left, top, right, bottom = _bounds(matted.alpha >= SOLID, photo)
    longest = max(right - left, bottom - top)
    crop = Crop(centre_x=(left + right) / 2, centre_y=(top + bottom) / 2, side_px=longest / fill)
    alpha = matted.alpha.astype(np.float32) / 255
    colours = (photo.rgb if matted.rgb is None else matted.rgb).astype(np.float32) / 255
    weighted = np.dstack([colours * alpha[..., None], alpha]).astype(np.float32, copy=False)
    canvas = _resample(weighted, crop, size_px)
    # Divided before it is clipped: the kernel overshoots in colour and alpha alike. Below a 255th nothing can
    # be seen, and dividing by it would make noise of rounding.
    covered = np.where(canvas[..., 3:] >= 1 / 255, canvas[..., 3:], 0)
    rgb = np.where(covered > 0, np.clip(canvas[..., :3] / np.maximum(covered, 1 / 255), 0, 1), 0)
    covered = np.minimum(covered, 1)
    few = [f"the subject is only {longest} px long: details will be soft [W_MATTE_SMALL]"]
    rgba = np.dstack([rgb, covered]).astype(np.float32, copy=False)
    return _cutout(rgba, photo, matted, crop=crop, warnings=tuple(few) if longest < FEW_PX else ())


def whole_canvas(photo: Photo, matted: Matted) -> Cutout:
    """Lay the whole photo on a square of its longer side, as the published system does: nothing is centred.

    (thu-ml/CRM, run.py)
    """
    height, width = matted.alpha.shape
    side = max(height, width)
    row, column = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 4), np.float32)
    inside = square[row : row + height, column : column + width]
    inside[..., 3] = matted.alpha
    inside[..., :3] = (photo.rgb if matted.rgb is None else matted.rgb) * (matted.alpha > 0)[..., None]
    crop = Crop(centre_x=side / 2 - column, centre_y=side / 2 - row, side_px=side)
    square /= 255
    return _cutout(square, photo, matted, crop=crop)


def _cutout(
    rgba: NDArray[np.float32], photo: Photo, matted: Matted, *, crop: Crop, warnings: tuple[str, ...] = ()
) -> Cutout:
    """A square [S S 4] with all that is known of where it came from."""
    planes = torch.from_numpy(np.ascontiguousarray(rgba.transpose(2, 0, 1), np.float32))
    return Cutout(
        rgb=planes[:3],
        alpha=planes[3:],
        crop=crop,
        photo=photo.path,
        digest=photo.digest,
        matting=matted.method,
        warnings=(*photo.warnings, *matted.warnings, *warnings),
    )


def opaque(photo: Photo) -> NDArray[np.uint8]:
    """The photo without transparency [H W 3], on white as viewers show it."""
    if photo.alpha is None:
        return photo.rgb
    alpha = photo.alpha[..., None].astype(np.float32) / 255
    return np.round(photo.rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _bounds(solid: NDArray[np.bool_], photo: Photo) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of the subject in pixels."""
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    if not len(columns):
        raise PhotoError(
            f"{display_name(photo.path)}: no subject found", code="E_MATTE_EMPTY", remedy=NOTHING_FOUND
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _resample(pixels: NDArray[np.float32], crop: Crop, size_px: int) -> NDArray[np.float32]:
    """The crop of some channels [H W C] at another size; zero outside the photo."""
    x, y = crop.centre_x - crop.side_px / 2, crop.centre_y - crop.side_px / 2
    # Pillow cuts out fractions of pixels, but nothing beyond the picture's edge: that is added here.
    column, row, side = int(np.floor(x)), int(np.floor(y)), int(np.ceil(crop.side_px)) + 1
    window = np.zeros((side, side, pixels.shape[2]), np.float32)
    height, width = pixels.shape[:2]
    rows, columns = (
        slice(max(row, 0), min(row + side, height)),
        slice(max(column, 0), min(column + side, width)),
    )
    window[rows.start - row : rows.stop - row, columns.start - column : columns.stop - column] = pixels[
        rows, columns
    ]
    box = (x - column, y - row, x - column + crop.side_px, y - row + crop.side_px)
    # Pillow's kernels widen when they shrink: every pixel of the photo counts.
    return np.dstack([
        np.asarray(Image.fromarray(channel).resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))
        for channel in np.ascontiguousarray(window.transpose(2, 0, 1))
    ])  # fmt: skip


def _reviewed(matted: Matted, photo: Photo) -> Matted:
    """The same with a warning for everything that looks wrong; PhotoError where there is no subject."""
    solid = matted.alpha >= SOLID
    cover = float(solid.mean())
    if not solid.any():
        raise PhotoError(
            f"{display_name(photo.path)}: no subject found", code="E_MATTE_EMPTY", remedy=NOTHING_FOUND
        )
    said = list(matted.warnings)
    if cover < 0.02:
        said.append(f"the subject covers only {cover:.1%} of the photo: is it the right one? [W_MATTE_TINY]")
    if cover > 0.95:
        said.append(f"the subject covers {cover:.0%} of the photo: background not found [W_MATTE_FULL]")
    frame = np.concatenate([solid[0], solid[-1], solid[1:-1, 0], solid[1:-1, -1]])
    if frame.mean() > TOUCHES:
        said.append("the subject touches the frame: what lies outside is missing [W_MATTE_FRAME]")
    parts = _large_parts(solid)
    if parts > 1:
        said.append(f"the subject has {parts} separate parts: one photo shows one product [W_MATTE_PARTS]")
    return Matted(alpha=matted.alpha, rgb=matted.rgb, method=matted.method, warnings=tuple(said))


def _large_parts(solid: NDArray[np.bool_]) -> int:
    """How many parts of the subject are no specks."""
    from scipy.ndimage import label

    # Every fourth pixel is enough to count large parts, and sixteen times quicker.
    part, _ = label(solid[::4, ::4])
    area = np.bincount(part.ravel())[1:]
    return int(np.sum(area >= LARGE_PART * area.max())) if len(area) else 1
