"""OBJ: the asset as text, with its material and texture beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crm_cli import __version__
from crm_cli.export.scene import ROUGHNESS, Scene, companion_stem
from crm_cli.export.textures import Picture


def write_obj(scene: Scene, path: Path, *, picture: Picture) -> list[Path]:
    """Write the OBJ, its MTL and the texture side by side, and name them."""
    companion = companion_stem(path.stem)
    mtl, texture = path.with_name(f"{companion}.mtl"), path.with_name(companion + picture.suffix)
    path.write_bytes(encode_obj(scene, mtl_name=mtl.name).encode("utf-8"))
    mtl.write_bytes(encode_mtl(texture_name=texture.name).encode("utf-8"))
    texture.write_bytes(picture.data)
    return [path, mtl, texture]


def encode_obj(scene: Scene, *, mtl_name: str) -> str:
    """Return the text of the OBJ. A face corner is `v/vt/vn`, so the surface stays closed across seams."""
    parts = [
        f"# crm {__version__}\n# metres, y up, front +Z\n{_remarks(scene)}mtllib {mtl_name}\no asset\n",
        _lines("v %.9g %.9g %.9g\n", scene.points),
        _lines("vt %.9g %.9g\n", scene.uv),
        _lines("vn %.6g %.6g %.6g\n", scene.normals),
        "usemtl asset\n",
        _faces(scene),
    ]
    return "".join(parts)


def encode_mtl(*, texture_name: str) -> str:
    """Return the text of the MTL: matt (illum 1 has no highlight, and the photo's own are in the texture).

    `Pr` and `Pm` tell readers that know physically based materials what GLB and USD say too.
    """
    return (
        f"newmtl asset\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nd 1\n"
        f"Pr {ROUGHNESS}\nPm 0\nmap_Kd {texture_name}\n"
    )


def _remarks(scene: Scene) -> str:
    """Return the provenance as comments, one line an entry whatever characters it holds."""
    return "".join(f"# {key}: {' '.join(value.split())}\n" for key, value in scene.provenance.items())


def _faces(scene: Scene) -> str:
    """Format the faces, each kind of corner once: most are shared by six faces."""
    pairs, corners = np.unique(scene.faces * len(scene.uv) + scene.uv_faces, return_inverse=True)
    v, vt = np.divmod(pairs, len(scene.uv))
    words = _lines("%d/%d/%d\n", np.stack([v, vt, v], axis=1) + 1).splitlines()
    chosen = [words[corner] for corner in corners.ravel().tolist()]
    return ("f %s %s %s\n" * len(scene.faces)) % tuple(chosen)


def _lines(form: str, rows: NDArray[np.float32] | NDArray[np.int64]) -> str:
    """Format rows [N C], one line each. Nine significant digits bring every float32 back exactly."""
    return (form * len(rows)) % tuple(rows.ravel().tolist())
