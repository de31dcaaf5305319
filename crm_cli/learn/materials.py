"""What products are painted with: colours as functions of a place on the product.

A colouring takes places float32 [N 3] (a part's own coordinates, before it was put in place) and gives
sRGB colours float32 [N 3] in [0, 1].
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Colouring = Callable[[Floats], Floats]
Share = Callable[[Floats], NDArray[np.floating] | NDArray[np.bool_]]
"""How much of something shows at each place: float or bool [N], in [0, 1]."""
Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Material:
    """A colouring and how it shines."""

    colouring: Colouring
    gloss: float = 0.2
    """Strength of highlights and reflections, 0 to 1."""
    sharpness: float = 30.0
    """Exponent of the highlight: 5 is satin, 200 is polished."""


class Look(NamedTuple):
    """Three colours that one product keeps to, sRGB [3]."""

    main: Floats
    accent: Floats
    detail: Floats


def draw_colour(rng: Random) -> Floats:
    """Draw a colour as products have them: many greys, whites and blacks, some pastels, some loud."""
    kind = rng.choice(5, p=[0.28, 0.30, 0.17, 0.15, 0.10])
    hue = rng.uniform()
    if kind == 0:
        grey = rng.choice([rng.uniform(0.03, 0.2), rng.uniform(0.2, 0.7), rng.uniform(0.8, 0.98)])
        return np.asarray(np.clip(grey + rng.normal(0, 0.012, 3), 0, 1), dtype=np.float32)
    saturation, value = {
        1: (rng.uniform(0.65, 1.0), rng.uniform(0.5, 1.0)),
        2: (rng.uniform(0.15, 0.45), rng.uniform(0.75, 1.0)),
        3: (rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.5)),
        4: (rng.uniform(0.25, 0.6), rng.uniform(0.5, 0.85)),
    }[int(kind)]
    if kind == 4:
        hue = rng.uniform(0.04, 0.13)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def draw_look(rng: Random) -> Look:
    """Draw three colours that can be told apart."""
    main = draw_colour(rng)
    others = [draw_colour(rng) for _ in range(6)]
    far = [colour for colour in others if np.abs(colour - main).sum() > 0.5] or [1 - main]
    return Look(main, far[0], far[-1])


def solid(colour: ArrayLike) -> Colouring:
    """One colour everywhere."""
    colour = np.asarray(colour, dtype=np.float32)

    def paint(places: Floats) -> Floats:
        return np.broadcast_to(colour, places.shape)

    return paint


def blend(first: Colouring, second: Colouring, share: Share) -> Colouring:
    """Mix two colourings; share gives [N] in [0, 1], how much of the second shows."""

    def paint(places: Floats) -> Floats:
        weight = share(places).astype(np.float32)[:, None]
        return first(places) * (1 - weight) + second(places) * weight

    return paint


def stripes(
    first: Colouring, second: Colouring, direction: ArrayLike, period: float, duty: float
) -> Colouring:
    """Alternate across a direction [3]; duty is the share of the second colouring."""
    direction = np.asarray(direction, dtype=np.float32)
    return blend(first, second, lambda places: (places @ direction / period) % 1 < duty)


def checks(first: Colouring, second: Colouring, period: float) -> Colouring:
    """Alternate in cubes of side period."""
    return blend(first, second, lambda places: np.floor(places / period + 0.5).sum(axis=1) % 2)


def plaid(first: Colouring, second: Colouring, period: float) -> Colouring:
    """Weave two colourings: bands along two axes, twice as strong where they cross."""

    def share(places: Floats) -> NDArray[np.floating]:
        bands = (places[:, [0, 2]] / period) % 1 < 0.4
        return 0.45 * bands[:, 0] + 0.45 * bands[:, 1]

    return blend(first, second, share)


def gradient(first: Colouring, second: Colouring, low: float, high: float, axis: int = 2) -> Colouring:
    """Fade from one colouring to the other along an axis."""
    return blend(first, second, lambda places: np.clip((places[:, axis] - low) / (high - low), 0, 1))


def above(first: Colouring, second: Colouring, level: float, axis: int = 2) -> Colouring:
    """Change from the first to the second colouring at a level of an axis."""
    return blend(first, second, lambda places: places[:, axis] > level)


def dots(first: Colouring, second: Colouring, period: float, radius: float) -> Colouring:
    """Set balls of the second colouring on a staggered lattice; radius is a share of the period."""

    def share(places: Floats) -> NDArray[np.bool_]:
        cell = places / period
        near = cell - np.round(cell)
        shifted = cell + 0.5
        far = shifted - np.round(shifted)
        nearest = np.minimum((near * near) @ ONES, (far * far) @ ONES)
        is_near: NDArray[np.bool_] = nearest < radius * radius
        return is_near

    return blend(first, second, share)


ONES = np.ones(3, dtype=np.float32)
LATTICE = 16
"""Side of the repeating lattice that value noise is drawn on."""


def clouds(rng: Random, scale: float) -> Callable[[Floats], Floats]:
    """Value noise: smooth random values in [0, 1] that change over about `scale`."""
    values = rng.random((LATTICE, LATTICE, LATTICE), dtype=np.float32)
    flat = values.ravel()

    def at(places: Floats) -> Floats:
        cell = places / np.float32(scale) + 100
        base = cell.astype(np.int64)
        t = cell - base
        t = t * t * (3 - 2 * t)
        low, high = base % LATTICE, (base + 1) % LATTICE
        x0, x1 = low[:, 0] * LATTICE**2, high[:, 0] * LATTICE**2
        y0, y1 = low[:, 1] * LATTICE, high[:, 1] * LATTICE
        total = np.zeros(len(places), dtype=np.float32)
        for x, wx in ((x0, 1 - t[:, 0]), (x1, t[:, 0])):
            for y, wy in ((y0, 1 - t[:, 1]), (y1, t[:, 1])):
                edge = x + y
                total += (
                    wx * wy * (flat[edge + low[:, 2]] * (1 - t[:, 2]) + flat[edge + high[:, 2]] * t[:, 2])
                )
        return total

    return at


def mottle(
    rng: Random, first: Colouring, second: Colouring, scale: float, *, sharp: float = 3.0
) -> Colouring:
    """Mix two colourings in patches; sharper edges with a larger `sharp`."""
    noise = clouds(rng, scale)
    return blend(first, second, lambda places: np.clip((noise(places) - 0.5) * sharp + 0.5, 0, 1))


def wood(rng: Random) -> Material:
    """Draw a wood: grain stretched along one axis, in browns."""
    light = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.9))
    )
    dark = light * rng.uniform(0.6, 0.88)
    stretch = np.full(3, 1.0, dtype=np.float32)
    stretch[rng.integers(3)] = 0.12
    noise = clouds(rng, rng.uniform(0.06, 0.14))
    rings = rng.uniform(2, 6)

    def share(places: Floats) -> NDArray[np.floating]:
        wave: NDArray[np.floating] = 0.5 + 0.5 * np.sin(2 * np.pi * rings * noise(places * stretch))
        return wave

    return Material(blend(solid(light), solid(dark), share), gloss=rng.uniform(0.02, 0.35), sharpness=25)


def plain(rng: Random, colour: ArrayLike) -> Material:
    """Draw how one colour shines: matt, satin or polished."""
    gloss, sharpness = [(0.03, 8.0), (0.2, 25.0), (0.5, 90.0), (0.8, 200.0)][
        rng.choice(4, p=[0.3, 0.3, 0.25, 0.15])
    ]
    return Material(solid(colour), gloss=gloss, sharpness=sharpness)


def metal(rng: Random) -> Material:
    """Draw a bare metal: steel, brass, copper or black."""
    tones = [(0.75, 0.76, 0.78), (0.55, 0.56, 0.58), (0.83, 0.67, 0.35), (0.78, 0.5, 0.36), (0.1, 0.1, 0.11)]
    tone = np.array(tones[rng.integers(len(tones))])
    return Material(solid(tone * rng.uniform(0.85, 1.05)), gloss=0.8, sharpness=60)


def cloth(rng: Random, colour: ArrayLike) -> Material:
    """Draw a cloth or leather: nearly one colour, slightly mottled, or a woven pattern now and then."""
    colour = np.asarray(colour, dtype=np.float32)
    weave = mottle(rng, solid(colour), solid(colour * 0.85), rng.uniform(0.02, 0.06), sharp=1.5)
    kind = rng.uniform()
    if kind < 0.15:
        weave = plaid(weave, solid(draw_colour(rng)), rng.uniform(0.12, 0.35))
    elif kind < 0.3:
        weave = stripes(
            weave, solid(draw_colour(rng)), _direction(rng), rng.uniform(0.08, 0.3), rng.uniform(0.2, 0.5)
        )
    return Material(weave, gloss=rng.choice([0.02, 0.15]), sharpness=10)


def painted(rng: Random, look: Look, *, pattern: float = 0.5) -> Material:
    """Draw a surface in the look's colours; `pattern` is the chance that it is not plain."""
    base = plain(rng, look.main)
    if rng.uniform() > pattern:
        return base
    first, second = solid(look.main), solid(look.accent)
    period = rng.uniform(0.1, 0.45)
    patterns: list[Callable[[], Colouring]] = [
        lambda: stripes(first, second, _direction(rng), period, rng.uniform(0.15, 0.6)),
        lambda: checks(first, second, period),
        lambda: gradient(first, second, rng.uniform(-0.2, 0.3), rng.uniform(0.5, 1.2)),
        lambda: dots(first, second, period, rng.uniform(0.2, 0.42)),
        lambda: mottle(rng, first, second, rng.uniform(0.05, 0.4), sharp=rng.uniform(1.5, 12)),
        lambda: above(first, second, rng.uniform(0.1, 0.8)),
        lambda: plaid(first, second, period),
        lambda: stripes(
            above(first, solid(look.detail), rng.uniform(0.2, 0.7)), second, (0, 0, 1), 5.0, 0.02
        ),
        lambda: wood(rng).colouring,
    ]
    return replace(base, colouring=patterns[rng.integers(len(patterns))]())


def _direction(rng: Random) -> tuple[float, float, float]:
    """Draw a direction for stripes: mostly level or upright bands, sometimes slanted."""
    options = [(0, 0, 1), (0, 0, 1), (1, 0, 0), (0.7, 0, 0.7), (0, 1, 0)]
    return options[rng.integers(len(options))]
