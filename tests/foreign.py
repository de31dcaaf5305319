"""Files of assets, read by programs that are not ours, all brought into the same terms."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from pxr import Usd, UsdGeom, UsdShade

NODE_MODULES = os.environ.get("CRM_GLTF_VALIDATOR", "")
"""A folder node_modules with what npm calls gltf-validator, @gltf-transform/core, @gltf-transform/extensions,
meshoptimizer and draco3dgltf."""

BLENDER = os.environ.get("CRM_BPY_PYTHON", "")
"""A Python that has Blender as a module: `pip install bpy` in an environment of its own, Python 3.11."""

needs_blender = pytest.mark.skipif(not BLENDER, reason="needs CRM_BPY_PYTHON=…/python that can import bpy")


def needs_node(*packages: str) -> pytest.MarkDecorator:
    """Skip where node or one of the packages is not there."""
    are_there = NODE_MODULES and all((Path(NODE_MODULES) / package).is_dir() for package in packages)
    return pytest.mark.skipif(
        not are_there or not shutil.which("node"),
        reason=f"needs node, and CRM_GLTF_VALIDATOR=…/node_modules with {', '.join(packages)} (npm) in it",
    )


@dataclass
class Reading:
    """What a foreign reader made of a file: per face corner, so that vertex order does not matter."""

    corners: NDArray  # [F 3 3], metres, y up
    uv: NDArray  # [F 3 2], origin bottom-left
    normals: NDArray  # [F 3 3]
    texture: NDArray  # [T T 3], row 0 at the top

    def colours_at(self, points: NDArray) -> NDArray:
        """Colours [N 3] in [0, 1] that the surface wears at points on it."""
        face, weights = locate(points, self.corners)
        return sample(self.texture, (weights[:, :, None] * self.uv[face]).sum(axis=1))

    def uv_at(self, points: NDArray) -> NDArray:
        """Texture coordinates [N 2] at points on the surface."""
        face, weights = locate(points, self.corners)
        return (weights[:, :, None] * self.uv[face]).sum(axis=1)

    def normals_at(self, points: NDArray) -> NDArray:
        """Normals [N 3], not unit length between corners."""
        face, weights = locate(points, self.corners)
        return (weights[:, :, None] * self.normals[face]).sum(axis=1)


def locate(points: NDArray, corners: NDArray) -> tuple[NDArray, NDArray]:
    """The face [N] that each point lies on, and its barycentric weights [N 3] there."""
    origin, ahead, behind = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(ahead, behind)
    square = (across**2).sum(axis=1)
    from_origin = points[:, None] - origin[None]  # [N F 3]
    second = (np.cross(from_origin, behind[None]) * across).sum(axis=2) / square
    third = (np.cross(ahead[None], from_origin) * across).sum(axis=2) / square
    weights = np.stack([1 - second - third, second, third], axis=2)
    off_plane = np.abs((from_origin * across).sum(axis=2)) / np.sqrt(square)
    outside = np.maximum(-weights.min(axis=2), 0) + off_plane
    face = outside.argmin(axis=1)
    here = np.arange(len(points))
    assert outside[here, face].max() < 1e-4, "a point is not on the surface"
    return face, weights[here, face]


def sample(texture: NDArray, uv: NDArray) -> NDArray:
    """Read a texture bilinearly at coordinates [N 2], origin bottom-left."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    rows = [np.clip(top + step, 0, height - 1) for step in (0, 1)]
    columns = [np.clip(left + step, 0, width - 1) for step in (0, 1)]
    upper, lower = (
        texture[row, columns[0]] * (1 - right_share) + texture[row, columns[1]] * right_share for row in rows
    )
    mixed: NDArray = (upper * (1 - low_share) + lower * low_share) / 255
    return mixed


def read_with_trimesh(path: Path) -> Reading:
    [mesh] = trimesh.load_scene(path, process=False).geometry.values()
    material = mesh.visual.material
    picture = material.baseColorTexture if path.suffix == ".glb" else material.image
    return Reading(
        corners=mesh.vertices[mesh.faces],
        uv=mesh.visual.uv[mesh.faces],
        normals=mesh.vertex_normals[mesh.faces],
        texture=np.asarray(picture.convert("RGB")),
    )


def read_with_usd(path: Path) -> Reading:
    stage = Usd.Stage.Open(str(path))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened()).reshape(-1, 3, 2)
    texture = UsdShade.Shader(stage.GetPrimAtPath("/Asset/Material/Texture")).GetInput("file").Get()
    if path.suffix == ".usdz":
        data = zipfile.ZipFile(path).read(texture.path.removeprefix("./"))
    else:
        data = (path.parent / texture.path).read_bytes()
    return Reading(
        corners=np.array(mesh.GetPointsAttr().Get())[faces],
        uv=uv,
        normals=np.array(mesh.GetNormalsAttr().Get())[faces],
        texture=np.asarray(Image.open(io.BytesIO(data))),
    )


IN_BLENDER = """
import json, sys
import bpy, numpy as np

path, arrays = sys.argv[1:]
bpy.ops.wm.read_factory_settings(use_empty=True)
how = {
    "glb": lambda: bpy.ops.import_scene.gltf(filepath=path),
    "obj": lambda: bpy.ops.wm.obj_import(filepath=path),
}.get(path.rpartition(".")[2], lambda: bpy.ops.wm.usd_import(filepath=path))
assert how() == {"FINISHED"}
objects = [o for o in bpy.context.scene.objects if o.type == "MESH"]
others = sorted(o.type for o in bpy.context.scene.objects if o.type not in ("MESH", "EMPTY"))
[thing] = objects
mesh, place = thing.data, np.array(thing.matrix_world)
points = np.array([v.co for v in mesh.vertices]) @ place[:3, :3].T + place[:3, 3]
faces = np.array([list(p.vertices) for p in mesh.polygons])
loops = np.array([list(p.loop_indices) for p in mesh.polygons])
uv = np.array([tuple(entry.uv) for entry in mesh.uv_layers.active.data])
normals = np.array([tuple(n.vector) for n in mesh.corner_normals]) @ place[:3, :3].T
[material] = mesh.materials
surface = next(n for n in material.node_tree.nodes if n.type == "BSDF_PRINCIPLED")
[link] = surface.inputs["Base Color"].links
image = link.from_node.image
width, height = image.size
pixels = np.array(image.pixels[:]).reshape(height, width, 4)[::-1, :, :3]
# Blender's z is up and its front is -y.
back = lambda v: np.stack([v[..., 0], v[..., 2], -v[..., 1]], axis=-1)
np.savez(arrays, corners=back(points)[faces], uv=uv[loops], normals=back(normals)[loops],
         texture=np.round(pixels * 255).astype(np.uint8))
print(json.dumps({
    "others": others, "metallic": surface.inputs["Metallic"].default_value,
    "roughness": surface.inputs["Roughness"].default_value,
    "specular": surface.inputs["Specular IOR Level"].default_value,
    "colour_space": image.colorspace_settings.name,
}))
"""


def read_with_blender(path: Path, scratch: Path) -> tuple[Reading, dict]:
    """The surface, and what Blender says of scene and material."""
    arrays = scratch / "read.npz"
    done = subprocess.run(
        [BLENDER, "-c", IN_BLENDER, str(path), str(arrays)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(arrays) as read:
        return Reading(**{name: read[name] for name in read.files}), json.loads(done.stdout.splitlines()[-1])


IN_NODE = """
const { NodeIO } = require("@gltf-transform/core");
const { ALL_EXTENSIONS } = require("@gltf-transform/extensions");
const { MeshoptDecoder } = require("meshoptimizer");
const draco = require("draco3dgltf");
(async () => {
  await MeshoptDecoder.ready;
  const io = new NodeIO().registerExtensions(ALL_EXTENSIONS).registerDependencies({
    "meshopt.decoder": MeshoptDecoder, "draco3d.decoder": await draco.createDecoderModule() });
  const root = (await io.read(process.argv[1])).getRoot();
  const primitive = root.listMeshes()[0].listPrimitives()[0];
  const all = (accessor) => Array.from({ length: accessor.getCount() }, (_, i) => accessor.getElement(i, []));
  const node = root.listNodes()[0];
  console.log(JSON.stringify({
    indices: Array.from(primitive.getIndices().getArray()),
    points: all(primitive.getAttribute("POSITION")), normals: all(primitive.getAttribute("NORMAL")),
    uv: all(primitive.getAttribute("TEXCOORD_0")), matrix: node.getMatrix(),
    low: primitive.getAttribute("POSITION").getMin([]), high: primitive.getAttribute("POSITION").getMax([]),
    mime: root.listTextures()[0].getMimeType(),
    image: Buffer.from(root.listTextures()[0].getImage()).toString("base64"),
  }));
})();
"""


def read_with_gltf_transform(path: Path) -> dict:
    """Accessors as glTF Transform decodes them, with meshoptimizer's and Draco's own decoders."""
    done = subprocess.run(
        ["node", "-e", IN_NODE, str(path)], cwd=Path(NODE_MODULES).parent, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    read: dict = json.loads(done.stdout)
    return read


VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report)));
"""


def validate_glb(path: Path) -> list[dict]:
    """Errors (severity 0) and warnings (1) of the Khronos validator."""
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(path)], cwd=Path(NODE_MODULES).parent, capture_output=True, check=True
    )
    return [entry for entry in json.loads(done.stdout)["issues"]["messages"] if entry["severity"] < 2]
