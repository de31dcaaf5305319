"""A carton with random letters on it: photographed, and read back from pictures of its front.

Reading is a test of its own: of 36 glyphs, the one is taken whose picture correlates best with what stands
in a letter's place. Guessing is right once in 36 times.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crm_cli.export.preview import sample
from crm_cli.fragments import Raster, interpolate
from crm_cli.learn.camera import aim, draw, pose
from crm_cli.learn.labels import look_up
from crm_cli.learn.light import Light, Studio, develop, shade
from crm_cli.learn.materials import Material
from crm_cli.learn.parts import Part, assemble
from crm_cli.learn.shapes import box, turn
from crm_cli.records import Camera

GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ROWS, COLUMNS = 36, 48
CELL_W, CELL_H = 24, 32
"""Pixels of one letter's place on the printed sheet."""
READ = slice(0, None, 5)
"""Which letters are read: every fifth, of all rows and columns."""
MARGIN = 32
WIDTH, DEPTH, HEIGHT = 1.0, 0.5, 1.0
"""Of the carton, in its own unit; the sheet covers its front."""

Picture = NDArray[np.uint8]


class Photographed(NamedTuple):
    """A photo of the carton, the letters to be read on it, and where the sheet's corners are in it."""

    photo: Picture
    text: str
    corners: NDArray[np.float32]
    """[4 2] in pixels: top left, top right, bottom right, bottom left."""


def sheet_size() -> tuple[int, int]:
    return 2 * MARGIN + COLUMNS * CELL_W, 2 * MARGIN + ROWS * CELL_H


def glyph(character: str) -> Picture:
    """One letter in black on white in its place."""
    cell = Image.new("L", (CELL_W, CELL_H), 255)
    font = ImageFont.load_default(CELL_H * 0.8)
    ImageDraw.Draw(cell).text((CELL_W / 2, CELL_H / 2), character, 0, font, anchor="mm")
    return np.asarray(cell)


def places() -> list[tuple[int, int]]:
    """Upper left corners of the letters' places, in the order of the text."""
    return [(MARGIN + c * CELL_W, MARGIN + r * CELL_H) for r in range(ROWS) for c in range(COLUMNS)]


def printed(text: str) -> Picture:
    """The sheet: [H W 3]."""
    width, height = sheet_size()
    sheet = np.full((height, width), 255, np.uint8)
    for character, (x, y) in zip(text, places(), strict=True):
        sheet[y : y + CELL_H, x : x + CELL_W] = glyph(character)
    ink = sheet[..., None] / 255
    paper, letters = np.array([236, 228, 205]), np.array([28, 40, 92])
    return np.round(letters + (paper - letters) * ink).astype(np.uint8)


def photograph(raster: Raster, *, seed: int, size_px: int, yaw_deg: float, fall_deg: float) -> Photographed:
    """Photograph a carton on white, turned to one side and from a little above."""
    text = "".join(np.random.default_rng(seed).choice(list(GLYPHS), ROWS * COLUMNS))
    picture = printed(text).astype(np.float32) / 255

    def paint(spots: NDArray[np.float32]) -> NDArray[np.float32]:
        colours = np.broadcast_to(np.float32([0.75, 0.35, 0.2]), spots.shape).copy()
        on = spots[:, 1] > DEPTH / 2 - 1e-4
        across, down = 0.5 - spots[on, 0] / WIDTH, 0.5 - spots[on, 2] / HEIGHT
        colours[on] = look_up(picture, across, down)
        return colours

    carton = assemble("carton", [Part(box((WIDTH, DEPTH, HEIGHT)), Material(colouring=paint, gloss=0.0))])
    rotation = turn("x", -fall_deg) @ turn("z", yaw_deg)
    posed = pose(carton, rotation)
    camera = aim(posed.vertices, fov_deg=20.0, size_px=size_px, fill=0.78)
    hits = draw(raster, camera.place(posed.vertices), posed.faces, height=size_px, width=size_px)
    hits = camera.correct(hits, posed.vertices, posed.faces)
    toward = np.array([0.4, 0.8, 0.45], np.float32) / np.linalg.norm([0.4, 0.8, 0.45])
    key = Light(toward=toward.astype(np.float32), colour=np.full(3, 0.5, np.float32), softness=0.6)
    room = np.full(3, 0.5)
    light = shade(posed, hits, Studio(lights=(key,), sky=room, ground=0.8 * room, contact=0.1), camera)
    photo = np.full((size_px * size_px, 3), 0.985)
    photo[hits.pixel] = develop(light, exposure=1.0, balance=np.ones(3, np.float32), gamma=2.2)
    return Photographed(
        photo=np.round(photo * 255).astype(np.uint8).reshape(size_px, size_px, 3),
        text=text[READ],
        corners=camera.place(_corners(carton.vertices, posed.vertices))[:, :2],
    )


def _corners(upright: NDArray[np.float32], posed: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sheet's corners on the posed carton, in reading order: [4 3]."""
    found = []
    for x, z in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        corner = np.array([x * WIDTH, DEPTH, z * HEIGHT]) / 2
        found.append(posed[np.abs(upright - corner).sum(axis=1).argmin()])
    return np.array(found, np.float32)


def read(picture: Picture, corners: NDArray[np.float32]) -> str:
    """Read every fifth letter of a picture [H W 3] in which the sheet's corners [4 2] are known.

    Each place is compared with every glyph, shifted by up to a sixth of its size.
    """
    width, height = sheet_size()
    onto = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    flat = cv2.warpPerspective(
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY),
        cv2.getPerspectiveTransform((corners - 0.5).astype(np.float32), onto - 0.5),
        (width, height),
        flags=cv2.INTER_AREA,
    )
    reach_x, reach_y = CELL_W // 6, CELL_H // 6
    templates = {character: cv2.GaussianBlur(glyph(character), (0, 0), CELL_H / 24) for character in GLYPHS}
    text = ""
    for x, y in places()[READ]:
        window = flat[y - reach_y : y + CELL_H + reach_y, x - reach_x : x + CELL_W + reach_x]
        likeness = {
            character: cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED).max()
            for character, template in templates.items()
        }
        text += max(likeness, key=likeness.__getitem__)
    return text


def front_of(file: Path, camera: Camera, raster: Raster) -> Picture:
    """Show the front of a finished asset where its photo showed it: [H W 3], on grey."""
    loaded = trimesh.load(file, force="mesh", process=False)
    low, high = loaded.bounds
    # The files are y up and face +Z; the recorded box says where their own box was in the photo.
    spots = (loaded.vertices - low) / (high - low)
    at = np.stack(
        [
            camera.left + spots[:, 0] * (camera.right - camera.left),
            camera.bottom - spots[:, 1] * (camera.bottom - camera.top),
            loaded.vertices[:, 2],
        ],
        axis=1,
    )
    faces = torch.from_numpy(loaded.faces.astype(np.int64))
    seen = raster.rasterize(
        torch.from_numpy(at.astype(np.float32)),
        faces,
        height=camera.photo_height_px,
        width=camera.photo_width_px,
    )
    uv = interpolate(torch.from_numpy(loaded.visual.uv.astype(np.float32)), faces, seen)
    texture = np.array(loaded.visual.material.baseColorTexture.convert("RGB"))
    read = sample(torch.from_numpy(texture).float().permute(2, 0, 1)[None], uv)
    read[~seen.covered] = 128
    shown: Picture = read.round().clamp(0, 255).byte().numpy()
    return shown


def right_share(read_text: str, text: str) -> float:
    return sum(a == b for a, b in zip(read_text, text, strict=True)) / len(text)
