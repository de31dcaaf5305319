"""What a photo of a procedural product shows: the product itself, as a textured mesh and as a GLB.

It is in the frame and at the scale of our own assets, so that an asset and its truth can be laid over each
other without fitting.
"""

from __future__ import annotations

import numpy as np

from crm_cli import __version__
from crm_cli.export.glb import encode_glb
from crm_cli.export.scene import METRES_PER_UNIT, build_scene
from crm_cli.export.textures import encode_texture
from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed
from crm_cli.learn.examples import to_bytes
from crm_cli.mesh.bake import draw_charts, fill_from_nearest
from crm_cli.mesh.unwrap import unwrap
from crm_cli.records import Mesh, TexturedMesh

TRUTH_PX = 1024
"""Side of a truth's texture: a label of a few centimetres stays legible."""

PADDING_PX = 2
"""Between the charts of a truth's texture; nobody looks at it from far away."""

MADE_BY_A_PROGRAM = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
"""How IPTC says that a program made something without a model (IPTC NewsCodes, digital source type)."""


def encode_truth(posed: Posed, seed: int, raster: Raster) -> bytes:
    """Write a product as it was photographed as a GLB, by the writer of our own assets."""
    scene = build_scene(
        paint_truth(posed, raster),
        provenance={
            "crm_version": __version__,
            "digitalSourceType": MADE_BY_A_PROGRAM,
            "family": posed.product.family,
            "seed": str(seed),
        },
        metres_per_unit=METRES_PER_UNIT,
    )
    return encode_glb(scene, picture=encode_texture(scene.texture, "png", quality=100))


def paint_truth(posed: Posed, raster: Raster) -> TexturedMesh:
    """A product as it was photographed, as a textured mesh.

    One mesh of closed parts, which may reach into each other; its texture holds the colours without light.
    """
    mesh = Mesh(vertices=posed.vertices, faces=posed.faces)
    unwrapped = unwrap(mesh, method="box", size_px=TRUTH_PX, padding_px=PADDING_PX)
    fragments = draw_charts(unwrapped, raster, size_px=TRUTH_PX)
    covered = fragments.covered.numpy()
    hits = fragments.hits()
    texture = np.zeros((TRUTH_PX, TRUTH_PX, 3), dtype=np.uint8)
    texture[covered] = to_bytes(
        posed.product.colour_at(hits.face.numpy().ravel(), hits.barycentric.numpy().reshape(-1, 3))
    )
    return TexturedMesh(unwrapped=unwrapped, texture=fill_from_nearest(texture, covered))
