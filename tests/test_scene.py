from __future__ import annotations

import os

import numpy as np
import pytest
import trimesh
from coordinate_box import HIGH, LOW, coordinate_box
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.export.scene import (
    METRES_PER_UNIT,
    build_scene,
    companion_stem,
    smooth_normals,
    split_at_seams,
)
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh


def at(scene, vertex):
    """Where the box corner with the given bits (x, y, z high) went."""
    return scene.points[vertex]


def test_front_goes_to_plus_z_left_to_minus_x_and_top_to_plus_y():
    scene = build_scene(coordinate_box(), provenance={})
    low, high = at(scene, 0), at(scene, 7)
    assert at(scene, 2)[2] > low[2]  # world +Y, the front, is +Z
    assert at(scene, 4)[1] > low[1]  # world +Z, the top, is +Y
    assert at(scene, 1)[0] < low[0]  # world +X is -X: a rotation, not a mirror
    np.testing.assert_allclose(np.abs(high - low), ((HIGH - LOW) * METRES_PER_UNIT)[[0, 2, 1]], atol=1e-6)


def test_the_asset_stands_on_the_origin():
    low, high = build_scene(coordinate_box(), provenance={}).bounds
    assert low[1] == 0
    np.testing.assert_allclose(low[[0, 2]], -high[[0, 2]], atol=1e-7)


def test_the_scale_can_be_set_in_metres_per_unit():
    one, two = (build_scene(coordinate_box(), provenance={}, metres_per_unit=m) for m in (0.25, 0.5))
    np.testing.assert_allclose(one.bounds * 2, two.bounds, atol=1e-7)


def test_the_surface_keeps_its_orientation_and_volume():
    scene = build_scene(coordinate_box(), provenance={})
    solid = trimesh.Trimesh(scene.points, scene.faces, process=False)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(np.prod(HIGH - LOW) * METRES_PER_UNIT**3, rel=1e-5)


def test_normals_of_a_box_point_along_its_diagonals_however_its_sides_are_cut():
    # Corners differ in how many triangles of each side meet there; angles alone make the sum even.
    scene = build_scene(coordinate_box(), provenance={})
    outward = np.sign(scene.points - scene.bounds.mean(axis=0))
    np.testing.assert_allclose(scene.normals, outward / np.sqrt(3), atol=1e-6)


def test_normals_of_a_sphere_point_away_from_its_centre():
    ball = trimesh.creation.icosphere(4)
    normals = smooth_normals(ball.vertices.astype(np.float32), ball.faces.astype(np.int64))
    assert (normals * ball.vertices).sum(axis=1).min() > 0.9999


def test_normals_have_unit_length_even_where_there_is_no_direction():
    flat_both_ways = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 1]])
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(smooth_normals(points, flat_both_ways), axis=1), 1, atol=1e-6)


def test_a_vertex_that_no_face_uses_is_left_out():
    box = coordinate_box()
    stray = np.concatenate([box.mesh.vertices, np.full((1, 3), -1, dtype=np.float32)])
    mesh = Mesh(vertices=stray, faces=box.mesh.faces)
    unwrapped = UnwrappedMesh(mesh=mesh, uv=box.unwrapped.uv, uv_faces=box.unwrapped.uv_faces)
    scene = build_scene(TexturedMesh(unwrapped=unwrapped, texture=box.texture), provenance={})
    assert len(scene.points) == 8


def test_splitting_at_seams_repeats_points_bit_for_bit():
    scene = build_scene(coordinate_box(), provenance={})
    corners = split_at_seams(scene)
    assert len(corners.points) == 24  # eight points, three sides each
    assert (corners.points[corners.faces] == scene.points[scene.faces]).all()
    assert (corners.uv[corners.faces] == scene.uv[scene.uv_faces]).all()
    assert (corners.normals[corners.faces] == scene.normals[scene.faces]).all()
    assert len(np.unique(corners.points, axis=0)) == 8


def test_provenance_is_sorted_marked_as_generated_and_always_writable():
    scene = build_scene(coordinate_box(), provenance={"photo": os.fsdecode(b"caf\xe9\0.jpg"), "b": "2"})
    assert list(scene.provenance) == ["b", "digitalSourceType", "photo"]
    assert scene.provenance["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    assert scene.provenance["photo"].encode("utf-8") == rb"caf\udce9\x00.jpg"


@pytest.mark.parametrize("stem", ["皮鞋", "chair", "a.b", "naïve_2-x", "कुर्सी", "٣"])
def test_a_plain_name_in_any_script_is_kept(stem):
    assert companion_stem(stem) == stem


@pytest.mark.parametrize(
    "stem", ["a b", "x#1", "-map", "a[b]", "a\nb", "%41", "a:b", "café".encode().hex() + "'"]
)
def test_a_name_that_some_reader_would_misread_is_replaced(stem):
    companion = companion_stem(stem)
    assert companion != stem
    assert not set(companion) & set(" #[]\n%:'")
    assert not companion.startswith("-")


@given(st.text(min_size=1, max_size=90))
def test_companion_names_are_plain_short_and_their_own(stem):
    companion = companion_stem(stem)
    assert companion_stem(companion) == companion  # plain already
    assert len(companion.encode("utf-8")) <= max(len(os.fsencode(stem)), 200)
    assert companion == stem or companion != companion_stem(stem + "_")


def test_names_that_differ_only_in_what_was_replaced_stay_apart():
    names = ["a b", "a_b", "a#b", "a\tb", "a  b", os.fsdecode(b"a\xffb"), os.fsdecode(b"a\xfeb")]
    assert len({companion_stem(name) for name in names}) == len(names)
