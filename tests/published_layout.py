"""The published training layout, written from procedural products instead of found objects."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from crm_cli.frame import VIEWS
from crm_cli.learn.camera import Posed, corner_normals
from crm_cli.learn.examples import six_views
from crm_cli.learn.layout import MAP_NAMES, VIEW_NAMES
from crm_cli.learn.subject import Subject
from crm_cli.mesh.raster import WarpRaster


def png_of(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def layout_of(
    subject: Subject, *, size_px: int, shift: tuple[float, float, float] = (0, 0, 0)
) -> dict[str, bytes]:
    """The twelve files of an object whose longest side fills the pictures, or nearly where it is shifted."""
    vertices = subject.vertices.astype(np.float64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    longest = 2 - 2 * np.abs(shift).max()
    placed = ((vertices - (low + high) / 2) * (longest / (high - low).max()) + shift).astype(np.float32)
    posed = Posed(
        product=subject,
        vertices=placed,
        normals=corner_normals(placed, subject.faces),
        up=np.float32([0, 0, 1]),
    )
    rgba, depth = six_views(posed, WarpRaster(), size_px=size_px)
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    files = {}
    for number, view in enumerate(VIEWS):
        right, up, toward = (np.array(a, float) for a in (view.right, view.up, view.toward))
        place = (
            axis[None, :, None] * right
            - axis[:, None, None] * up
            + depth[number].astype(float)[..., None] * toward
        )
        covered = rgba[number, 3] > 127
        coordinates = np.where(covered[..., None], np.round(127.5 * (place + 1)).clip(0, 255), 127)
        files[VIEW_NAMES[number]] = png_of(np.ascontiguousarray(rgba[number].transpose(1, 2, 0)))
        files[MAP_NAMES[number]] = png_of(coordinates.astype(np.uint8))
    return files
