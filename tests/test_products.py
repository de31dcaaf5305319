"""Every part of every family is a sound solid, and colours are functions of places on it."""

import numpy as np
import pytest

from crm_cli.learn.materials import Material, above, solid
from crm_cli.learn.parts import Part, assemble, colour
from crm_cli.learn.products import FAMILIES, Product, make_product
from crm_cli.learn.shapes import (
    Shape,
    box,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    ring,
    rod,
    shell,
    sweep,
    triangulate,
    turn,
    volume,
)

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def is_closed_and_oriented(faces: np.ndarray) -> bool:
    """Say whether every edge is run through exactly once in each direction."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {(int(a), int(b)) for a, b in edges}
    return len(there) == len(edges) and all((b, a) in there for a, b in there)


def part_volumes(product: Product) -> np.ndarray:
    a, b, c = (product.vertices[product.faces[:, k]].astype(float) for k in range(3))
    return np.bincount(product.part, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_closed_and_looks_outward(family: str) -> None:
    for seed in range(12):
        product = make_product(np.random.default_rng(seed), family)
        assert is_closed_and_oriented(product.faces)
        assert part_volumes(product).min() > 0
        assert np.isfinite(product.vertices).all()
        owners = [set(product.faces[product.part == k].ravel()) for k in range(len(product.materials))]
        assert sum(map(len, owners)) == len(product.vertices)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_stay_light(family: str) -> None:
    faces = [len(make_product(np.random.default_rng(seed), family).faces) for seed in range(12)]
    assert max(faces) <= 5000


@pytest.mark.parametrize(
    ("shape", "expected", "tolerance"),
    [
        (box((1, 2, 3)), 6.0, 1e-9),
        (box((1, 2, 3)).stretched((-1, 2, 1)), 12.0, 1e-9),
        (cylinder(0.5, 2.0, bevel=0.0, sides=96), np.pi / 2, 2e-3),
        (ellipsoid((1, 0.5, 0.25), sides=96, rings=48), 4 / 3 * np.pi / 8, 3e-3),
        (ring(1.0, 0.2, sides=96, section=48), 2 * np.pi**2 * 0.04, 6e-3),
        (rod((0, 0, 0), (3, 0, 4), 0.1, sides=96), 0.05 * np.pi, 2e-3),
        (lathe([[1.0, 0.0], [1.0, 1.0], [0.5, 1.0], [0.5, 0.0]], sides=96, is_loop=True), 0.75 * np.pi, 3e-3),
        (prism([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [1.0, 0.5], [0.0, 1.0]], 2.0), 3.0, 1e-9),
        (prism([[0.0, 1.0], [1.0, 0.5], [2.0, 1.0], [2.0, 0.0], [0.0, 0.0]], 2.0), 3.0, 1e-9),
    ],
)
def test_shapes_have_the_volume_of_what_they_are_called(
    shape: Shape, expected: float, tolerance: float
) -> None:
    assert volume(shape.vertices, shape.faces) == pytest.approx(expected, rel=tolerance)
    assert is_closed_and_oriented(shape.faces)


def test_a_shell_is_a_vessel_with_a_floor_and_an_open_top() -> None:
    vessel = shell([[0.5, 0.0], [0.5, 1.0]], 0.1, floor=0.2, sides=96)
    walls = np.pi * (0.25 * 1.0 - 0.16 * 0.8)
    assert volume(vessel.vertices, vessel.faces) == pytest.approx(walls, rel=0.03)


def test_a_swept_ring_closes_on_itself() -> None:
    angle = np.linspace(0, 2 * np.pi, 97)[:-1]
    path = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    hoop = sweep(path, 0.1, across=(0, 0, 1), sides=48, is_loop=True)
    assert volume(hoop.vertices, hoop.faces) == pytest.approx(2 * np.pi**2 * 0.01, rel=0.01)


def test_a_flat_outline_is_refused() -> None:
    with pytest.raises(ValueError, match="no ear is left"):
        triangulate(np.array([[0, 0], [1, 1], [2, 2], [3, 3]], dtype=float))


def test_turns_follow_the_right_hand_rule() -> None:
    np.testing.assert_allclose(turn("z", 90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(turn("x", 90) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(turn("y", 90) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


def test_colours_move_with_their_part() -> None:
    material = Material(above(solid(RED), solid(BLUE), 0.0))
    product = assemble("pair", [Part(box((2, 2, 2)).moved((0, 0, 5), turn("x", 90)), material)])
    centres = np.full((len(product.faces), 3), 1 / 3, dtype=np.float32)
    colours = colour(product, np.arange(len(product.faces)), centres)
    # The box's own top became its front or back, where the world's y is ±1.
    on_top = product.local[product.faces].mean(axis=1)[:, 2] > 0
    np.testing.assert_array_equal(colours, np.where(on_top[:, None], BLUE, RED))


def test_each_part_has_its_own_colour() -> None:
    parts = [Part(box((1, 1, 1)), Material(solid(RED))), Part(ellipsoid((1, 1, 1)), Material(solid(BLUE)))]
    product = assemble("pair", parts)
    order = np.random.default_rng(0).permutation(len(product.faces))
    colours = colour(product, order, np.tile(np.float32([1, 0, 0]), (len(order), 1)))
    np.testing.assert_array_equal(colours, np.array([RED, BLUE], np.float32)[product.part[order]])


def test_one_seed_gives_one_product() -> None:
    first, second = (make_product(np.random.default_rng(7)) for _ in range(2))
    assert first.family == second.family
    np.testing.assert_array_equal(first.vertices, second.vertices)
