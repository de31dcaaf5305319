"""Judges of finished assets: programs that others wrote, and counts that share no code with ours.

A judge takes files and gives faults, each as `kind: what`; no fault means that it is content. Lengths are
in metres, y up, in the frame of the files.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SAME_M = 2e-5
"""Bounds of one asset in two formats differ by no more: OBJ's nine digits and USD's floats are exact."""

FLOATER_AREA, FLOATER_EXTENT = 0.01, 0.3
"""A piece with less of the whole surface, and shorter than this share of the whole, is rubbish: no part of a
product."""

DEGENERATE_HEIGHT = 1e-6
"""A triangle lower than this share of the diagonal has no direction: ten steps of float32."""

MAX_DENSITY_SPREAD = 3.0
"""Texels a length, between any two charts of an asset."""

PADDING_PX = 4
"""Free texels between charts: two mip levels without bleeding."""

FAR = 1 << 40
"""More than any number of charts, and exact as a double, in which scipy filters."""

SMALL_CHART = 1e-3
"""A chart with less of the surface is too small for its density to be seen."""

PUBLISHED_LIMITS: Mapping[str, Mapping[str, int]] = {
    "web": {"triangles": 100_000, "texture_px": 2048, "file_bytes": 5_000_000},
    "banner": {"triangles": 30_000, "texture_px": 512, "file_bytes": 500_000},
    "mobile-ar": {"triangles": 100_000, "vertices": 30_000, "texture_px": 2048, "file_bytes": 10_000_000},
    "marketplace": {"triangles": 200_000, "texture_px": 2048, "file_bytes": 15_000_000},
}
"""What the takers of assets allow, written down here a second time: a preset must not loosen it.

web: Khronos 3D Commerce asset creation guidelines 1.0. mobile-ar: Scene Viewer's limit of vertices. The
others: the smallest of what advertising networks and marketplaces ask for.
"""


@dataclass(frozen=True)
class Geometry:
    """What a program reads of one file."""

    points: NDArray[np.float64]
    """[V 3], seams welded."""
    faces: NDArray[np.int64]
    uv: NDArray[np.float64] | None
    """[F 3 2], one for each corner."""

    @property
    def bounds(self) -> NDArray[np.float64]:
        return np.stack([self.points.min(axis=0), self.points.max(axis=0)])


# --- glTF-Validator, through node -----------------------------------------------------------------------

VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
(async () => {
  for (const file of fs.readFileSync(0, "utf8").split("\\n").filter(Boolean)) {
    let told;
    try {
      const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), { maxIssues: 20 });
      told = report.issues.messages.filter(m => m.severity < 2)
        .map(m => [m.severity, m.code, m.pointer || ""]);
      if (report.issues.truncated) told.push([0, "TRUNCATED", ""]);
    } catch (error) { told = [[0, "UNREADABLE", String(error)]]; }
    console.log(JSON.stringify(told));
  }
})();
"""


def gltf_faults(files: Sequence[Path], node_modules: Path) -> list[list[str]]:
    """Errors and warnings of Khronos' validator, file by file; one process reads all."""
    done = subprocess.run(
        ["node", "-e", VALIDATE],
        cwd=node_modules.parent,
        input="\n".join(str(file.resolve()) for file in files),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if len(lines) != len(files):
        raise RuntimeError(f"gltf-validator gave up: {done.stderr[-500:]}")
    words = ("error", "warning")
    return [[f"gltf {words[level]}: {code} {where}" for level, code, where in told] for told in lines]


# --- usd-core's validators --------------------------------------------------------------------------------


def usd_faults(file: Path) -> list[str]:
    """Whatever any validator of usd-core says, those of the USDZ and ARKit profiles included."""
    from pxr import Tf, Usd, UsdGeom, UsdValidation

    try:
        stage = Usd.Stage.Open(str(file))
    except Tf.ErrorException as error:
        return [f"usd unreadable: {str(error).strip().splitlines()[-1]}"]
    judges = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    if len(judges) < 20:
        raise RuntimeError("usd-core came without its validators")
    faults = [
        f"usd validation: {said.GetName()} {said.GetMessage()}"
        for said in UsdValidation.ValidationContext(judges).Validate(stage)
    ]
    meshes = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    for mesh in meshes:
        is_valid, why = UsdGeom.Mesh.ValidateTopology(
            mesh.GetFaceVertexIndicesAttr().Get(),
            mesh.GetFaceVertexCountsAttr().Get(),
            len(mesh.GetPointsAttr().Get()),
        )
        faults += [] if is_valid else [f"usd topology: {why}"]
    return faults or ([] if meshes else ["usd topology: no mesh"])


def read_usd(file: Path) -> Geometry:
    """What usd-core reads: one mesh, its transform applied."""
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.Open(str(file))
    [mesh] = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    matrix = np.array(UsdGeom.Xformable(mesh).ComputeLocalToWorldTransform(Usd.TimeCode.Default()))
    points = np.array(mesh.GetPointsAttr().Get(), dtype=np.float64) @ matrix[:3, :3] + matrix[3, :3]
    if UsdGeom.GetStageUpAxis(stage) == "Z":
        points = points[:, [0, 2, 1]] * [1, 1, -1]
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get(), dtype=np.int64).reshape(-1, 3)
    held = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    uv = np.array(held.ComputeFlattened(), dtype=np.float64) if held else None
    if uv is not None:
        uv = uv.reshape(-1, 3, 2) if len(uv) == faces.size else uv[faces]
    return Geometry(points=points * UsdGeom.GetStageMetersPerUnit(stage), faces=faces, uv=uv)


# --- trimesh ----------------------------------------------------------------------------------------------


def read_trimesh(file: Path) -> Geometry:
    """What trimesh reads of a GLB or an OBJ, vertices at one position welded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [mesh] = trimesh.load_scene(file, process=False).dump()
    uv = getattr(mesh.visual, "uv", None)
    points, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    corners = None if uv is None or len(uv) != len(points) else np.asarray(uv, dtype=np.float64)[faces]
    welded, number = np.unique(points + 0.0, axis=0, return_inverse=True)
    return Geometry(points=welded, faces=number.reshape(-1)[faces], uv=corners)


def census_faults(read: Geometry) -> list[str]:
    """The four counts that peers are measured with, and what else makes a surface no solid."""
    if not np.isfinite(read.points).all():
        return ["not finite: a position is no number"]
    if not len(read.faces):
        return ["not watertight: no faces"]
    mesh = trimesh.Trimesh(read.points, read.faces, process=False)
    faults = []
    if not mesh.is_watertight:
        faults.append(f"not watertight: {_open_edges(read.faces)} open edges")
    crowded, split = _crowded_edges(read.faces), _split_vertices(read.faces)
    if crowded or split:
        faults.append(
            f"non-manifold: {crowded} edges with more than two faces, {split} vertices of several fans"
        )
    degenerate = int(
        (_heights(read) <= DEGENERATE_HEIGHT * np.linalg.norm(np.ptp(read.points, axis=0))).sum()
    )
    twice = len(read.faces) - len(np.unique(np.sort(read.faces, axis=1), axis=0))
    if degenerate or twice:
        faults.append(f"degenerate faces: {degenerate} without height, {twice} there twice")
    if not mesh.is_winding_consistent:
        faults.append("winding: neighbours face opposite sides")
    elif mesh.volume <= 0:
        faults.append(f"volume: {mesh.volume:.3g}")
    floaters = _floaters(read, mesh)
    if floaters:
        faults.append(f"floaters: {floaters} pieces of less than {FLOATER_AREA:.0%} of the surface")
    return faults


def _edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many faces each edge has."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def _open_edges(faces: NDArray[np.int64]) -> int:
    return int((_edges(faces) == 1).sum())


def _crowded_edges(faces: NDArray[np.int64]) -> int:
    return int((_edges(faces) > 2).sum())


def _split_vertices(faces: NDArray[np.int64]) -> int:
    """Vertices around which the faces form more than one fan: corners that share an edge are joined."""
    corner = np.arange(faces.size).reshape(-1, 3)
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    owners = corner[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    turned = ends[:, 0] > ends[:, 1]
    ends[turned], owners[turned] = ends[turned][:, ::-1], owners[turned][:, ::-1]
    order = np.lexsort(ends.T)
    ends, owners = ends[order], owners[order]
    same = (ends[1:] == ends[:-1]).all(axis=1)
    left, right = owners[:-1][same].ravel(), owners[1:][same].ravel()
    joined = coo_matrix((np.ones(len(left)), (left, right)), shape=(faces.size, faces.size))
    fans = connected_components(joined, directed=False)[0]
    return int(fans - len(np.unique(faces)))


def _heights(read: Geometry) -> NDArray[np.float64]:
    """Each face's smallest height."""
    a, b, c = (read.points[read.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    longest = np.max([np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))], axis=0)
    return area / np.maximum(longest, np.finfo(float).tiny)


def _floaters(read: Geometry, mesh: trimesh.Trimesh) -> int:
    edges = read.faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    count = len(read.points)
    linked = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    piece = connected_components(linked, directed=False)[1][read.faces[:, 0]]
    areas = np.bincount(piece, mesh.area_faces)
    small = np.flatnonzero((areas > 0) & (areas < FLOATER_AREA * areas.sum()))
    whole = np.linalg.norm(np.ptp(mesh.triangles.reshape(-1, 3), axis=0))
    lengths = [np.linalg.norm(np.ptp(mesh.triangles[piece == part].reshape(-1, 3), axis=0)) for part in small]
    return int((np.array(lengths) < FLOATER_EXTENT * whole).sum())


def uv_faults(read: Geometry, size_px: int) -> list[str]:
    """Missing or broken texture coordinates, and texels that two faces would paint.

    size_px: side of the texture; 0 where there is none.
    """
    if read.uv is None or not size_px:
        return [f"uv: no {'coordinates' if read.uv is None else 'texture'}"]
    if not (np.isfinite(read.uv).all() and np.isfinite(read.points).all()):
        return ["uv: a coordinate is no number"]
    if read.uv.min() < -1e-6 or read.uv.max() > 1 + 1e-6:
        return [f"uv: {read.uv.min():.4g} to {read.uv.max():.4g}, outside the texture"]
    painted = texels(read.uv, size_px)
    if not painted.any():
        return ["uv: no texel belongs to a face"]
    shared = int((painted > 1).sum())
    faults = [f"uv overlap: {shared} texels of several faces"] if shared else []
    chart = charts(read)
    spread = density_spread(read, chart)
    if spread > MAX_DENSITY_SPREAD:
        faults.append(f"uv density: one chart has {spread:.2f} times the texels of another")
    close = crowded_texels(read.uv, chart, size_px)
    if close:
        faults.append(f"uv padding: {close} texels with two charts within {PADDING_PX} texels")
    return faults


def charts(read: Geometry) -> NDArray[np.int64]:
    """The chart of every face [F]: faces that share an edge and its texture coordinates are of one chart."""
    assert read.uv is not None
    corners = np.concatenate([read.faces.reshape(-1, 1), read.uv.reshape(-1, 2)], axis=1)
    number = np.unique(corners, axis=0, return_inverse=True)[1].reshape(-1, 3)
    edges = number[:, [0, 1, 1, 2]].reshape(-1, 2)
    count = int(number.max()) + 1
    linked = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    result: NDArray[np.int64] = connected_components(linked, directed=False)[1][number[:, 0]].astype(np.int64)
    return result


def density_spread(read: Geometry, chart: NDArray[np.int64]) -> float:
    """How many times the texels a length one chart has of another; charts too small to see are left out."""
    assert read.uv is not None
    areas = trimesh.triangles.area(read.points[read.faces])
    a, b = read.uv[:, 1] - read.uv[:, 0], read.uv[:, 2] - read.uv[:, 0]
    shown = np.bincount(chart, np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2)
    true = np.bincount(chart, areas)
    counts = true > SMALL_CHART * true.sum()
    densities = np.sqrt(shown[counts] / true[counts])
    return float(densities.max() / max(densities.min(), 1e-12))


def crowded_texels(uv: NDArray[np.float64], chart: NDArray[np.int64], size_px: int) -> int:
    """Texels whose neighbourhood belongs to two charts with fewer than PADDING_PX texels between them."""
    from scipy.ndimage import maximum_filter, minimum_filter

    owner = np.full((size_px, size_px), -1, dtype=np.int64)
    texels(uv, size_px, owner=owner, label=chart)
    lowest = minimum_filter(np.where(owner < 0, FAR, owner), PADDING_PX + 1)
    highest = maximum_filter(owner, PADDING_PX + 1)
    return int(((highest >= 0) & (lowest != highest)).sum())


def texels(
    uv: NDArray[np.float64],
    size_px: int,
    *,
    owner: NDArray[np.int64] | None = None,
    label: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """How many faces [F 3 2] hold each texel's centre well inside: [T T], row 0 at v = 0.

    owner: [T T], gets the label [F] of a face that holds the centre.
    """
    corners = uv * size_px - 0.5  # in which texel centres are whole numbers
    counts = np.zeros(size_px * size_px, dtype=np.int64)
    low = np.maximum(np.ceil(corners.min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=1)), size_px - 1).astype(np.int64)
    spans = np.maximum(high - low + 1, 0)
    cells = spans.prod(axis=1)
    order = np.argsort(cells, kind="stable")
    order = order[cells[order] > 0]
    ends = np.cumsum(cells[order])
    start = 0
    while start < len(order):
        # About two million candidates at once, at least one face.
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + 2_000_000)), start + 1)
        chosen = order[start:stop]
        face = np.repeat(chosen, cells[chosen])
        place = np.arange(len(face)) - np.repeat(np.cumsum(cells[chosen]) - cells[chosen], cells[chosen])
        x = low[face, 0] + place % spans[face, 0]
        y = low[face, 1] + place // spans[face, 0]
        inside = _well_inside(np.stack([x, y], axis=1).astype(np.float64), corners[face])
        counts += np.bincount((y * size_px + x)[inside], minlength=len(counts))
        if owner is not None and label is not None:
            owner[y[inside], x[inside]] = label[face[inside]]
        start = stop
    return counts.reshape(size_px, size_px)


def _well_inside(places: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether places [N 2] are inside triangles [N 3 2] by a thousandth of a texel, either way round.

    A centre on the edge between two faces is thus nobody's, whatever rounding does to either.
    """
    distances = []
    for k in range(3):
        a, b = corners[:, k], corners[:, (k + 1) % 3]
        along, off = b - a, places - a
        length = np.maximum(np.linalg.norm(along, axis=1), 1e-12)
        distances.append((along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0]) / length)
    inside = np.stack(distances)
    result: NDArray[np.bool_] = (inside > 1e-3).all(axis=0) | (inside < -1e-3).all(axis=0)
    return result


# --- one asset in all its formats ---------------------------------------------------------------------------


def agreement_faults(name: str, read: Geometry, first: Geometry) -> list[str]:
    """In what a format differs from the first one: place and size, number and area of faces."""
    if not np.isfinite(read.points).all():
        return [f"formats differ: {name} holds positions that are no numbers"]
    off = float(np.abs(read.bounds - first.bounds).max())
    if off > SAME_M:
        return [f"formats differ: {name} is {off:.3g} m off"]
    if len(read.faces) != len(first.faces):
        return [f"formats differ: {name} has {len(read.faces)} faces, not {len(first.faces)}"]
    areas = [trimesh.triangles.area(each.points[each.faces]).sum() for each in (read, first)]
    if not np.isclose(*areas, rtol=1e-4):
        return [f"formats differ: {name} has {areas[0]:.6g} m² of surface, not {areas[1]:.6g}"]
    return []


def frame_faults(read: Geometry) -> list[str]:
    """Whether an asset stands centred on the origin."""
    low, high = read.bounds
    off = np.abs([low[0] + high[0], 2 * low[1], low[2] + high[2]]).max() / 2
    return [f"frame: {off:.3g} m off the origin"] if off > SAME_M else []


@dataclass(frozen=True)
class Written:
    """What one format's files hold, counted in their bytes."""

    triangles: int
    vertices: int
    textures_px: tuple[tuple[int, int], ...]
    file_bytes: int

    @property
    def texture_px(self) -> int:
        return max((side for size in self.textures_px for side in size), default=0)


def measure_glb(file: Path) -> Written:
    """Counts that the GLB's own JSON states, and its pictures as Pillow sees them."""
    import pygltflib

    data = file.read_bytes()
    gltf = pygltflib.GLTF2.load_from_bytes(data)
    blob = gltf.binary_blob()
    pictures = []
    for image in gltf.images:
        view = gltf.bufferViews[image.bufferView]
        start = view.byteOffset or 0
        pictures.append(Image.open(io.BytesIO(blob[start : start + view.byteLength])).size)
    parts = [part for mesh in gltf.meshes for part in mesh.primitives]
    return Written(
        triangles=sum(gltf.accessors[part.indices].count for part in parts) // 3,
        vertices=sum(gltf.accessors[part.attributes.POSITION].count for part in parts),
        textures_px=tuple(pictures),
        file_bytes=len(data),
    )


def limit_faults(written: Written, limits: Mapping[str, float]) -> list[str]:
    """What a file holds more of than it may; a limit of 0 is none."""
    faults = [
        f"limit: {name} {getattr(written, name)} where {allowed:.0f} are allowed"
        for name in ("triangles", "vertices", "texture_px", "file_bytes")
        if (allowed := limits.get(name, 0)) and getattr(written, name) > allowed
    ]
    if limits.get("square_texture") and any(w != h or w & (w - 1) for w, h in written.textures_px):
        faults.append("limit: square_texture is not kept, or its side is no power of two")
    return faults


# --- Blender ------------------------------------------------------------------------------------------------

IN_BLENDER = """
import json, sys
import bpy, numpy as np

files = sys.stdin.read().splitlines()
out = open(sys.argv[1], "w")
for path in files:
    try:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        how = {
            "glb": lambda: bpy.ops.import_scene.gltf(filepath=path),
            "obj": lambda: bpy.ops.wm.obj_import(filepath=path),
        }.get(path.rpartition(".")[2], lambda: bpy.ops.wm.usd_import(filepath=path))
        how()
        points, faces, textures = [], 0, 0
        for thing in bpy.context.scene.objects:
            if thing.type != "MESH":
                continue
            held = np.zeros(3 * len(thing.data.vertices), dtype=np.float32)
            thing.data.vertices.foreach_get("co", held)
            place = np.array(thing.matrix_world)
            points.append(held.reshape(-1, 3) @ place[:3, :3].T + place[:3, 3])
            faces += len(thing.data.polygons)
            textures += bool(thing.data.uv_layers)
        points = np.concatenate(points)
        points = np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)  # Blender's z is up
        pictures = sum(image.size[0] > 0 for image in bpy.data.images if image.source == "FILE")
        told = {"bounds": [points.min(axis=0).tolist(), points.max(axis=0).tolist()], "faces": faces,
                "uv": textures, "pictures": pictures}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}".replace("\\n", " ")[:300]}
    out.write(json.dumps(told) + "\\n")
    out.flush()
"""


def blender_readings(files: Sequence[Path], python: Path) -> list[dict[str, Any]]:
    """What Blender imports, file by file, in one process; `error` where it does not."""
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "told"
        done = subprocess.run(
            [str(python), "-c", IN_BLENDER, str(told)],
            input="\n".join(str(file.resolve()) for file in files),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    readings = [json.loads(line) for line in lines]
    if not readings:
        raise RuntimeError(f"{python}: Blender gave up: {done.stderr[-500:]}")
    # A crash ends the process: the file it was at is the fault, and those after it get another process.
    if len(readings) < len(files):
        readings.append({"error": f"Blender crashed ({done.returncode})"})
        rest = files[len(readings) :]
        readings += blender_readings(rest, python) if rest else []
    return readings


def blender_faults(name: str, told: Mapping[str, Any], first: Geometry) -> list[str]:
    """In what Blender's idea of a file differs from the GLB as trimesh reads it."""
    if "error" in told:
        return [f"blender: {name}: {told['error']}"]
    off = float(np.abs(np.array(told["bounds"]) - first.bounds).max())
    if not off <= SAME_M:
        return [f"blender: {name} is {off:.3g} m off"]
    if told["faces"] != len(first.faces):
        return [f"blender: {name} has {told['faces']} faces, not {len(first.faces)}"]
    return [] if told["uv"] and told["pictures"] else [f"blender: {name} lacks its texture"]
