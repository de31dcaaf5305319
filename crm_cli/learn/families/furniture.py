"""Furniture."""

from __future__ import annotations

import numpy as np

from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import any_surface, four, in_plane, leg_shape
from crm_cli.learn.materials import Look, Material, Random, draw_colour, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import arc, box, cylinder, ellipsoid, ring, rod, sweep, turn, vector


def chair(rng: Random) -> list[Part]:
    """A chair with four legs or a pedestal, a seat, and a back of slats, a board or a frame."""
    look = draw_look(rng)
    width, depth, seat, back = (
        rng.uniform(0.5, 0.65),
        rng.uniform(0.48, 0.6),
        rng.uniform(0.4, 0.55),
        rng.uniform(0.4, 0.75),
    )
    frame = any_surface(rng, look)
    soft = paint.cloth(rng, look.accent) if rng.uniform() < 0.6 else frame
    thick = rng.uniform(0.03, 0.045)
    cushion = rng.uniform(0.06, 0.14)
    parts = [
        Part(
            box((width, depth, cushion), rounding=rng.choice([0, 0.03, cushion * 0.45])).moved((0, 0, seat)),
            soft,
        )
    ]
    if rng.uniform() < 0.15:
        parts.append(Part(cylinder(0.045, seat, sides=14), paint.metal(rng)))
        spokes = int(rng.integers(4, 6))
        for k in range(spokes):
            end = (0.33 * np.cos(2 * np.pi * k / spokes), 0.33 * np.sin(2 * np.pi * k / spokes), 0.04)
            parts.append(Part(rod((0, 0, 0.1), end, 0.04, end_radius=0.03), frame))
    else:
        leg = leg_shape(rng, seat, thick, rng.choice([0.0, rng.uniform(0, 0.1)]))
        parts += four(leg, frame, width / 2 - thick, depth / 2 - thick)
        if rng.uniform() < 0.3:
            for side in (1, -1):
                bar = box((0.04, depth * 0.9, 0.04)).moved((side * (width / 2 - thick), 0, seat * 0.4))
                parts.append(Part(bar, frame))
    return parts + _backrest(
        rng, width, back, thick, frame, soft, (0, -depth / 2 + thick, seat), rng.uniform(0, 14)
    )


def _backrest(
    rng: Random,
    width: float,
    height: float,
    thick: float,
    frame: Material,
    soft: Material,
    at: tuple[float, float, float],
    lean_deg: float,
) -> list[Part]:
    """Stand a chair's back on its seat."""
    kind = rng.integers(4)
    parts: list[Part] = []
    if kind == 0:
        pad = box((width * rng.uniform(0.85, 1), 0.08, height), rounding=rng.choice([0.0, 0.035]))
        parts.append(Part(pad.moved((0, 0, height / 2)), soft))
    elif kind == 1:
        bend = in_plane(arc((width / 2 - thick, height), 0, 180), z=-0.02)
        parts.append(Part(sweep(bend, thick, across=(0, 1, 0)), frame))
        for x in np.linspace(-0.3, 0.3, int(rng.integers(2, 6))) * width:
            top = height * np.sqrt(max(1 - (x / (width / 2 - thick)) ** 2, 0.1))
            parts.append(Part(rod((x, 0, 0), (x, 0, top), 0.03, sides=8), frame))
    else:
        for side in (1, -1):
            post = box((2 * thick, 2 * thick, height)).moved((side * (width / 2 - thick), 0, height / 2))
            parts.append(Part(post, frame))
        if kind == 2:
            count = int(rng.integers(2, 5))
            for z in np.linspace(0.3, 0.94, count) * height:
                parts.append(Part(box((width - 0.04, 0.06, height / count * 0.5)).moved((0, 0, z)), frame))
        else:
            parts.append(Part(box((width, 0.07, 0.09)).moved((0, 0, height - 0.04)), frame))
            pad = box((width - 3 * thick, 0.09, height * 0.62), rounding=0.03)
            parts.append(Part(pad.moved((0, 0, height * 0.55)), soft))
    return [part.moved(at, turn("x", lean_deg)) for part in parts]


def armchair(rng: Random) -> list[Part]:
    """An armchair: thick cushions between arms."""
    return _seating(rng, width=rng.uniform(0.75, 1.0), seats=1)


def sofa(rng: Random) -> list[Part]:
    """A sofa for two or three."""
    seats = int(rng.integers(2, 4))
    return _seating(rng, width=0.3 + 0.55 * seats, seats=seats)


def _seating(rng: Random, *, width: float, seats: int) -> list[Part]:
    """Build an upholstered seat: base, cushions, back, arms, feet."""
    look = draw_look(rng)
    depth, seat, back = rng.uniform(0.7, 0.85), rng.uniform(0.3, 0.42), rng.uniform(0.4, 0.6)
    arm, soft = rng.uniform(0.12, 0.22), rng.uniform(0.03, 0.08)
    cloth = paint.cloth(rng, look.main)
    cushion = cloth if rng.uniform() < 0.6 else paint.cloth(rng, look.accent)
    feet = any_surface(rng, look)
    parts = [
        Part(box((width - 0.02, depth, seat - 0.1), rounding=0.02).moved((0, 0, seat / 2 + 0.03)), cloth)
    ]
    inner = width - 2 * arm
    for k in range(seats):
        x = (k - (seats - 1) / 2) * inner / seats
        pad = box((inner / seats + 0.01, depth - 0.12, 0.18), rounding=soft).moved((x, 0.08, seat + 0.05))
        parts.append(Part(pad, cushion))
        rest = box((inner / seats + 0.01, 0.2, back), rounding=soft)
        parts.append(Part(rest.moved((x, -depth / 2 + 0.2, seat + back / 2 + 0.03), turn("x", 10)), cushion))
    hull = box((width, 0.16, seat + back * rng.uniform(0.8, 1.0)), rounding=soft)
    tall = hull.vertices[:, 2].max()
    parts.append(Part(hull.moved((0, -depth / 2 + 0.06, tall + 0.08), turn("x", 4)), cloth))
    arm_height = seat + rng.uniform(0.15, 0.3)
    for side in (1, -1):
        rest = box((arm, depth, arm_height), rounding=soft)
        parts.append(Part(rest.moved((side * (width - arm) / 2, 0.02, arm_height / 2 + 0.08)), cloth))
        if rng.uniform() < 0.3:
            roll = cylinder(arm * 0.62, depth, sides=18).moved((0, 0, -depth / 2)).moved(turn=turn("x", 90))
            parts.append(Part(roll.moved((side * (width - arm) / 2, 0.02, arm_height + 0.04)), cloth))
    parts += four(
        leg_shape(rng, 0.16, 0.04, 0.03).moved((0, 0, -0.02)), feet, width / 2 - 0.09, depth / 2 - 0.09
    )
    if rng.uniform() < 0.4:
        pillow = box((0.32, 0.12, 0.32), rounding=0.055).moved(
            (rng.uniform(-0.3, 0.3) * inner, 0.02, seat + 0.28),
            turn("x", 20) @ turn("y", rng.uniform(-12, 12)),
        )
        parts.append(Part(pillow, paint.painted(rng, Look(look.detail, look.accent, look.main), pattern=0.7)))
    return parts


def stool(rng: Random) -> list[Part]:
    """A stool: a round or square seat on three or four legs."""
    look = draw_look(rng)
    radius, height, thick = rng.uniform(0.25, 0.38), rng.uniform(0.5, 1.0), rng.uniform(0.06, 0.14)
    wood = any_surface(rng, look)
    top = paint.cloth(rng, look.accent) if rng.uniform() < 0.4 else wood
    is_round = rng.uniform() < 0.7
    seat = (
        cylinder(radius, thick, bevel=rng.uniform(0.01, 0.05))
        if is_round
        else box((2 * radius, 2 * radius, thick), rounding=0.03).moved((0, 0, thick / 2))
    )
    legs = int(rng.integers(3, 5))
    splay, leg = rng.uniform(0, 0.18), rng.uniform(0.03, 0.045)
    parts = [Part(seat.moved((0, 0, height)), top)]
    ring_z = height * rng.uniform(0.25, 0.5)
    for k in range(legs):
        angle = 2 * np.pi * (k + 0.5) / legs
        out = np.array([np.cos(angle), np.sin(angle), 0])
        start = out * (radius * 0.75 + splay)
        parts.append(
            Part(
                rod(start, out * radius * 0.75 + vector(0, 0, height + 0.03), leg * 0.8, end_radius=leg), wood
            )
        )
    if rng.uniform() < 0.6:
        reach = radius * 0.75 + splay * (1 - ring_z / height)
        parts.append(Part(ring(reach, 0.03, sides=24, section=8).moved((0, 0, ring_z)), wood))
    return parts


def table(rng: Random) -> list[Part]:
    """A table or desk: a top on legs or a pedestal, perhaps drawers."""
    look = draw_look(rng)
    width, depth, height, thick = (
        rng.uniform(0.8, 1.5),
        rng.uniform(0.5, 0.9),
        rng.uniform(0.4, 0.9),
        rng.uniform(0.06, 0.1),
    )
    surface, under = any_surface(rng, look), any_surface(rng, look)
    if rng.uniform() < 0.6:
        under = surface
    leg = rng.uniform(0.035, 0.06)
    if rng.uniform() < 0.25:
        radius = width / 2
        parts = [Part(cylinder(radius, thick, sides=36).moved((0, 0, height)), surface)]
        parts.append(Part(cylinder(0.06, height, top=rng.uniform(0.05, 0.1)), under))
        parts.append(Part(cylinder(radius * rng.uniform(0.4, 0.65), 0.07, bevel=0.03), under))
        return parts
    parts = [
        Part(
            box((width, depth, thick), rounding=rng.choice([0, 0.02])).moved((0, 0, height + thick / 2)),
            surface,
        )
    ]
    inset = rng.uniform(0.0, 0.08)
    parts += four(
        leg_shape(rng, height + 0.02, leg, rng.choice([0, rng.uniform(0, 0.1)])),
        under,
        width / 2 - leg - inset,
        depth / 2 - leg - inset,
    )
    if rng.uniform() < 0.5:
        apron = box((width - 2 * inset - leg, depth - 2 * inset - leg, 0.1)).moved((0, 0, height - 0.04))
        parts.append(Part(apron, under))
    if rng.uniform() < 0.35:
        side = rng.choice([1, -1])
        drawers = box((width * 0.3, depth * 0.85, height * 0.5)).moved(
            (side * width * 0.27, 0, height * 0.76)
        )
        parts.append(Part(drawers, under))
        for z in (0.64, 0.88):
            knob = ellipsoid((0.04, 0.04, 0.03), sides=10, rings=6)
            parts.append(Part(knob.moved((side * width * 0.27, depth * 0.43, height * z)), paint.metal(rng)))
    return parts


def shelf(rng: Random) -> list[Part]:
    """A shelf or cabinet with boards, doors or drawers, some with things inside."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.6, 1.1), rng.uniform(0.28, 0.45), rng.uniform(0.6, 1.4)
    surface = any_surface(rng, look)
    board = rng.uniform(0.06, 0.08)
    parts = [
        Part(box((board, depth, height)).moved((side * (width - board) / 2, 0, height / 2)), surface)
        for side in (1, -1)
    ]
    rows = int(rng.integers(2, 5))
    levels = np.linspace(board / 2, height - board / 2, rows + 1)
    parts += [Part(box((width - 0.01, depth - 0.01, board)).moved((0, 0, z)), surface) for z in levels]
    if rng.uniform() < 0.75:
        parts.append(
            Part(box((width - 0.02, 0.06, height - 0.02)).moved((0, -depth / 2 + 0.04, height / 2)), surface)
        )
    front = paint.painted(rng, Look(look.accent, look.detail, look.main), pattern=0.2)
    gap = height / rows
    for low in levels[:-1]:
        kind = rng.uniform()
        if kind < 0.3:
            parts.append(
                Part(box((width - board, depth - 0.05, gap - 0.02)).moved((0, 0.0, low + gap / 2)), front)
            )
            parts.append(
                Part(box((0.14, 0.06, 0.035)).moved((0, depth / 2, low + gap * 0.6)), paint.metal(rng))
            )
        elif kind < 0.65:
            x = -width / 2 + board
            while x < width / 2 - board - 0.14 and rng.uniform() < 0.8:
                wide, tall = rng.uniform(0.07, 0.13), gap * rng.uniform(0.5, 0.75)
                spine = box((wide, depth * 0.65, tall)).moved(
                    (x + wide / 2, -0.02, low + board / 2 + tall / 2 - 0.01)
                )
                parts.append(Part(spine, paint.plain(rng, draw_colour(rng))))
                x += wide + rng.choice([0.003, 0.08])
    if rng.uniform() < 0.4:
        parts += four(
            leg_shape(rng, 0.15, 0.04, 0.02).moved((0, 0, -0.13)), surface, width / 2 - 0.07, depth / 2 - 0.07
        )
    return parts
