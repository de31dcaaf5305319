from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from coordinate_box import coordinate_box

from crm_cli.export.obj import encode_mtl, encode_obj, write_obj
from crm_cli.export.scene import build_scene
from crm_cli.export.textures import encode_texture


def rows(text: str, key: str) -> np.ndarray:
    return np.array(
        [line.split()[1:] for line in text.splitlines() if line.startswith(f"{key} ")], dtype=np.float32
    )


def test_positions_and_coordinates_come_back_bit_for_bit():
    noise = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)  # no short decimal among them
    scene = dataclasses.replace(build_scene(coordinate_box(), provenance={}), points=noise)
    text = encode_obj(scene, mtl_name="box.mtl")
    assert (rows(text, "v") == scene.points).all()
    assert (rows(text, "vt") == scene.uv).all()


def test_faces_share_points_across_seams_so_the_surface_is_closed_as_written():
    scene = build_scene(coordinate_box(), provenance={})
    text = encode_obj(scene, mtl_name="box.mtl")
    faces = [
        [corner.split("/") for corner in line.split()[1:]]
        for line in text.splitlines()
        if line.startswith("f ")
    ]
    points, uv, normals = np.moveaxis(np.array(faces, dtype=int), 2, 0) - 1
    assert (points == scene.faces).all()
    assert (uv == scene.uv_faces).all()
    assert (normals == scene.faces).all()
    assert trimesh.Trimesh(scene.points, points, process=False).is_watertight


def test_the_material_is_matt_and_only_as_bright_as_its_texture():
    lines = encode_mtl(texture_name="box.png").splitlines()
    assert {"Ks 0 0 0", "Kd 1 1 1", "illum 1", "Pr 0.6", "Pm 0", "map_Kd box.png"} <= set(lines)
    assert not any(line.startswith(("Ke", "Ns", "map_Ks")) for line in lines)


@pytest.mark.parametrize("value", ["a\nv 9 9 9", "a\r\u2028v 9 9 9\x0bb", "x\x1bmtllib evil.mtl\x85f 1 1 1"])
def test_provenance_cannot_break_out_of_its_comment(value):
    scene = build_scene(coordinate_box(), provenance={"photo": value})
    text = encode_obj(scene, mtl_name="box.mtl")
    assert len(rows(text, "v")) == 8
    assert sum(line.startswith("mtllib") for line in text.splitlines()) == 1


@pytest.mark.parametrize("stem", ["皮鞋", "a b", "x#1"])
def test_references_are_relative_plain_and_resolve(tmp_path, stem):
    scene = build_scene(coordinate_box(), provenance={})
    picture = encode_texture(scene.texture, "png", quality=90)
    obj, mtl, texture = write_obj(scene, tmp_path / f"{stem}.obj", picture=picture)
    assert f"mtllib {mtl.name}\n" in obj.read_text(encoding="utf-8")
    assert f"map_Kd {texture.name}\n" in mtl.read_text(encoding="utf-8")
    assert not set(mtl.name + texture.name) & set(" #/\\")
    picture = trimesh.load(obj, force="mesh").visual.material.image
    assert (np.asarray(picture) == coordinate_box().texture).all()
