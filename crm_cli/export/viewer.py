"""What the 3D view on the contact sheet draws: each asset as a script that a page can load.

A page opened from the disk may load scripts but no other files, so an asset travels as a call with its GLB,
gzipped, in base64. It holds no compression that a viewer would fetch a decoder for, whatever the asset itself
is written with.
"""

from __future__ import annotations

import base64
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crm_cli.export.glb import encode_glb
from crm_cli.export.scene import build_scene
from crm_cli.export.textures import encode_texture
from crm_cli.records import TexturedMesh

MODEL_TEXTURE_PX = 1024
"""As large as a dialog on a laptop shows it; more would only make the report heavier."""

POINT_BITS, NORMAL_BITS, UV_BITS = 12, 7, 13
"""Binary places that are kept: a quarter of a millimetre of a metre, half a degree, an eighth of a texel.

Nobody sees more, and the zeros behind them are what gzip saves most on.
"""

GZIP_LEVEL = 4
"""A third of the usual level's time, for 1.5 % more bytes."""

MODEL_QUALITY = 85
"""Of the JPEG texture: it is shown at a few hundred pixels."""


def write_model(folder: Path, asset_id: str, textured: TexturedMesh) -> Path:
    """Write the script that hands an asset to the viewer, beside its small pictures; and name it."""
    for made in (folder.parent, folder):
        made.mkdir(exist_ok=True)
    path = folder / f"{asset_id}-model.js"
    path.write_bytes(encode_model(asset_id, textured))
    return path


def encode_model(asset_id: str, textured: TexturedMesh) -> bytes:
    """Return a script of one call: `crm.model("<id>", "<gzipped GLB in base64>")`."""
    scene = build_scene(_lighter(textured), provenance={})
    glb = encode_glb(
        replace(
            scene,
            points=_rounded(scene.points, POINT_BITS),
            normals=_rounded(scene.normals, NORMAL_BITS),
            uv=_rounded(scene.uv, UV_BITS),
        ),
        picture=encode_texture(scene.texture, "jpeg", quality=MODEL_QUALITY),
    )
    # No time in the header: the same asset makes the same bytes.
    packed = base64.b64encode(gzip.compress(glb, GZIP_LEVEL, mtime=0))
    return b'crm.model("%s", "%s");\n' % (asset_id.encode("ascii"), packed)


def _rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round to so many binary places."""
    rounded: NDArray[np.float32] = (values * 2**bits).round() / np.float32(2**bits)
    return rounded


def _lighter(textured: TexturedMesh) -> TexturedMesh:
    """The same with a texture that is no larger than it is shown, which says no longer what the photo saw."""
    from PIL import Image

    if len(textured.texture) <= MODEL_TEXTURE_PX:
        return textured
    side = (MODEL_TEXTURE_PX, MODEL_TEXTURE_PX)
    small = Image.fromarray(textured.texture).resize(side, Image.Resampling.BOX)
    return replace(textured, texture=np.asarray(small), seen=None)
