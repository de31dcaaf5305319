"""Toys: cars, animals, dolls."""

from __future__ import annotations

import numpy as np

from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import dome
from crm_cli.learn.materials import Look, Material, Random, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import box, cylinder, ellipsoid, lathe, prism, rod, smooth, sweep, turn, vector


def car(rng: Random) -> list[Part]:
    """A toy car, van or lorry, seen from its side or its front."""
    look = draw_look(rng)
    length, width = rng.uniform(1.0, 1.3), rng.uniform(0.42, 0.56)
    body_low, body_high, roof = 0.12, rng.uniform(0.3, 0.4), rng.uniform(0.5, 0.75)
    bonnet, boot_end = rng.uniform(0.15, 0.35), rng.uniform(0.0, 0.3)
    half = length / 2
    outline = np.array(
        [
            [-half, body_low],
            [half, body_low],
            [half, body_high * rng.uniform(0.75, 0.95)],
            [half * 0.9, body_high],
            [-half * 0.95, body_high],
            [-half, body_high * 0.85],
        ]
    )
    surface = paint.painted(rng, look, pattern=0.3)
    glass = Material(paint.solid((0.12, 0.15, 0.2)), gloss=0.9, sharpness=150)
    front_x, back_x = half - bonnet * length, -half + boot_end * length + 0.04
    slope = rng.uniform(0.05, 0.2)
    cabin = np.array(
        [
            [back_x, body_high - 0.02],
            [front_x, body_high - 0.02],
            [front_x - slope, roof],
            [back_x + slope * 0.6, roof],
        ]
    )
    parts = [Part(prism(outline, width), surface)]
    centre = cabin.mean(axis=0)
    parts.append(Part(prism(cabin, width * 0.88), glass))
    top = np.array(
        [
            [cabin[3, 0] - 0.03, roof - 0.06],
            [cabin[2, 0] + 0.03, roof - 0.06],
            [cabin[2, 0], roof + 0.02],
            [cabin[3, 0], roof + 0.02],
        ]
    )
    parts.append(Part(prism(top, width * 0.92), surface))
    pillar = box((0.07, width * 0.9, roof - body_high + 0.02)).moved((centre[0], 0, (roof + body_high) / 2))
    parts.append(Part(pillar, surface))
    radius = rng.uniform(0.12, 0.17)
    wheel = cylinder(radius, 0.12, bevel=0.03, sides=20).moved((0, 0, -0.06)).moved(turn=turn("x", 90))
    hub = (
        cylinder(radius * 0.55, 0.135, bevel=0.01, sides=14).moved((0, 0, -0.0675)).moved(turn=turn("x", 90))
    )
    tyre, rim = Material(paint.solid((0.07, 0.07, 0.08)), gloss=0.1), paint.metal(rng)
    for x in (half * 0.62, -half * 0.62):
        for side in (1, -1):
            at = (x, side * (width / 2 - 0.02), radius * 0.98)
            parts += [Part(wheel.moved(at), tyre), Part(hub.moved(at), rim)]
    for side in (1, -1):
        lamp_at = (half - 0.01, side * width * 0.33, body_high * 0.72)
        parts.append(
            Part(
                ellipsoid((0.03, 0.06, 0.045), sides=10, rings=6).moved(lamp_at),
                Material(paint.solid((1, 0.96, 0.8))),
            )
        )
        parts.append(
            Part(
                box((0.04, 0.09, 0.06)).moved((-half, side * width * 0.33, body_high * 0.75)),
                Material(paint.solid((0.8, 0.1, 0.08))),
            )
        )
    facing = rng.choice([0.0, 180.0, 90.0, rng.uniform(30, 150)])
    return [part.moved(turn=turn("z", facing)) for part in parts]


def animal(rng: Random) -> list[Part]:
    """A four-legged animal figure: body, head, ears, legs, tail."""
    look = draw_look(rng)
    coat = paint.painted(rng, look, pattern=0.35) if rng.uniform() < 0.5 else paint.cloth(rng, look.main)
    length, girth, leg = rng.uniform(0.4, 0.6), rng.uniform(0.16, 0.27), rng.uniform(0.2, 0.5)
    back_z = leg + girth * 0.8
    body = sweep(
        smooth(
            [
                [-length, 0, back_z],
                [-length * 0.6, 0, back_z + 0.02],
                [0.3 * length, 0, back_z],
                [length, 0, back_z + 0.06],
            ],
            4,
        ),
        girth * np.interp(np.linspace(0, 1, 13), [0, 0.12, 0.5, 0.88, 1], [0.35, 0.85, 1.0, 0.95, 0.4]),
        across=(0, 1, 0),
        sides=18,
    )
    thick = rng.uniform(0.055, 0.1)
    parts = [Part(body, coat)]
    for x in (-length * 0.68, length * 0.72):
        for side in (1, -1):
            foot = (x + rng.uniform(-0.08, 0.08), side * girth * 0.6, 0.03)
            parts.append(
                Part(rod(foot, (x, side * girth * 0.5, back_z), thick * 0.85, end_radius=thick * 1.2), coat)
            )
            parts.append(
                Part(
                    ellipsoid((thick * 1.3, thick, 0.06), sides=12, rings=6).moved(
                        np.add(foot, [0.02, 0, 0.02])
                    ),
                    coat,
                )
            )
    head, neck = rng.uniform(0.15, 0.25), rng.uniform(0.1, 0.5)
    centre = np.array([length + 0.12 + 0.3 * neck, 0, back_z + 0.12 + neck])
    parts.append(Part(rod((length * 0.75, 0, back_z), centre, girth * 0.65, end_radius=head * 0.6), coat))
    parts.append(Part(ellipsoid((head * 1.1, head * 0.9, head)).moved(centre), coat))
    snout = rng.uniform(0.6, 1.4) * head
    parts.append(
        Part(
            ellipsoid((snout * 0.7, head * 0.5, head * 0.42), sides=14, rings=8).moved(
                centre + vector(head * 0.9, 0, -head * 0.25)
            ),
            paint.plain(rng, look.main),
        )
    )
    dark = Material(paint.solid((0.05, 0.05, 0.06)), gloss=0.7, sharpness=80)
    parts.append(
        Part(
            ellipsoid((0.05, 0.055, 0.045), sides=10, rings=6).moved(
                centre + vector(head * 0.9 + snout * 0.66, 0, -head * 0.15)
            ),
            dark,
        )
    )
    ear = rng.uniform(0.08, 0.25)
    for side in (1, -1):
        shape = ellipsoid((0.05, 0.08, ear), sides=12, rings=8)
        parts.append(
            Part(
                shape.moved(
                    centre + vector(-0.02, side * head * 0.6, head * 0.75 + ear * 0.4), turn("x", -side * 25)
                ),
                paint.plain(rng, look.accent if rng.uniform() < 0.3 else look.main),
            )
        )
        parts.append(
            Part(
                ellipsoid((0.04, 0.04, 0.04), sides=10, rings=6).moved(
                    centre + vector(head * 0.8, side * head * 0.5, head * 0.25)
                ),
                dark,
            )
        )
    tail = smooth(
        [
            [-length * 0.9, 0, back_z],
            [-length - 0.15, 0, back_z + rng.uniform(-0.2, 0.2)],
            [-length - rng.uniform(0.15, 0.4), 0, back_z + rng.uniform(-0.2, 0.4)],
        ],
        4,
    )
    parts.append(Part(sweep(tail, np.linspace(0.065, 0.04, len(tail)), across=(0, 1, 0), sides=10), coat))
    facing = rng.choice([0.0, 180.0, 90.0, rng.uniform(30, 150)])
    return [part.moved(turn=turn("z", facing)) for part in parts]


def plush(rng: Random) -> list[Part]:
    """A sitting or standing toy figure with a large head: bear, rabbit, doll, robot."""
    look = draw_look(rng)
    fur, belly = paint.cloth(rng, look.main), paint.cloth(rng, look.accent)
    exponent = rng.choice([2.0, 2.0, 2.5, 5.0])
    body = np.array([rng.uniform(0.25, 0.36), rng.uniform(0.2, 0.3), rng.uniform(0.28, 0.4)])
    head = np.array([1.05, 0.9, 1.0]) * rng.uniform(0.26, 0.38)
    base = rng.uniform(0.1, 0.35)
    chest = np.array([0, 0, base + body[2]])
    face = chest + vector(0, 0.02, body[2] + head[2] * 0.75)
    shirt = (
        paint.painted(rng, Look(look.detail, look.accent, look.main), pattern=0.5)
        if rng.uniform() < 0.5
        else fur
    )
    parts = [
        Part(ellipsoid(body, exponent=exponent, sides=24, rings=12).moved(chest), shirt),
        Part(ellipsoid(head, exponent=exponent, sides=24, rings=12).moved(face), fur),
        Part(
            ellipsoid((head[0] * 0.5, head[1] * 0.4, head[2] * 0.35), sides=16, rings=8).moved(
                face + vector(0, head[1] * 0.8, -head[2] * 0.3)
            ),
            belly,
        ),
    ]
    if shirt is fur:
        parts.append(
            Part(
                ellipsoid(body * [0.7, 0.4, 0.7], sides=16, rings=8).moved(
                    chest + vector(0, body[1] * 0.68, 0)
                ),
                belly,
            )
        )
    dark = Material(paint.solid((0.05, 0.05, 0.06)), gloss=0.8, sharpness=80)
    size = rng.uniform(0.04, 0.09)
    ear_kind, ear = rng.integers(3), rng.uniform(0.1, 0.16)
    for side in (1, -1):
        eye = face + vector(side * head[0] * 0.42, head[1] * 0.82, head[2] * 0.15)
        if rng.uniform() < 0.4:
            parts.append(
                Part(
                    ellipsoid((size * 1.6, 0.05, size * 1.6), sides=14, rings=8).moved(eye - [0, 0.02, 0]),
                    paint.plain(rng, (0.97, 0.97, 0.97)),
                )
            )
        parts.append(Part(ellipsoid((size, 0.06, size), sides=12, rings=8).moved(eye), dark))
        if ear_kind < 2:
            tall = ear * (1.0 if ear_kind == 0 else 2.4)
            shape = ellipsoid((ear, 0.07, tall), sides=16, rings=8)
            parts.append(
                Part(
                    shape.moved(
                        face + vector(side * head[0] * 0.7, 0, head[2] * 0.75 + tall * 0.4),
                        turn("y", side * 20),
                    ),
                    fur,
                )
            )
        arm = face + vector(side * (body[0] + 0.04), 0, -head[2] * 0.8)
        hand = chest + vector(
            side * (body[0] + rng.uniform(0.08, 0.25)),
            rng.uniform(0, 0.2),
            rng.uniform(-0.2, 0.3),
        )
        arm = chest + vector(side * body[0] * 0.7, 0, body[2] * 0.5)
        parts.append(Part(rod(arm, hand, 0.09, end_radius=0.08), shirt))
        parts.append(Part(ellipsoid((0.1, 0.1, 0.1), sides=14, rings=8).moved(hand), fur))
        hip = np.array([side * body[0] * 0.5, 0, base + 0.12])
        foot = (
            np.array([side * body[0] * 0.6, 0.0, 0.06])
            if base > 0.2
            else np.array([side * body[0] * 0.8, 0.3, 0.12])
        )
        parts.append(Part(rod(hip, foot, 0.11, end_radius=0.09), fur))
        parts.append(
            Part(ellipsoid((0.11, 0.15, 0.09), sides=14, rings=8).moved(foot + vector(0, 0.04, 0.03)), belly)
        )
    parts.append(
        Part(
            ellipsoid((0.06, 0.05, 0.045), sides=10, rings=6).moved(
                face + vector(0, head[1] * 1.16, -head[2] * 0.2)
            ),
            dark,
        )
    )
    if rng.uniform() < 0.3:
        hood = lathe(np.concatenate([[[0, 0]], dome(head[0] * 1.02, head[2] * 0.7)])).moved(
            face + vector(0, 0, head[2] * 0.4)
        )
        parts.append(Part(hood, paint.plain(rng, look.detail)))
    return parts
