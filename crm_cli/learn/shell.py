"""The surface of a field as training needs it: differentiable, and with what keeps it well-behaved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from crm_cli.models import flexicubes
from crm_cli.models.field import sample_near_surface
from crm_cli.models.reconstruction import PlaneField

WEIGHED_CUBES = 4096
"""Cubes at which a step looks for the size of the weights. The published term is a mean over all 512,000;
that of some drawn at random is the same on average."""

LOST_POINTS = 256
"""Vertices, those nearest to the inside, that are pulled there while a field has no surface."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shell:
    """A mesh that can be differentiated, and the three terms of its regularity, all of them scalars.

    vertices [V 3]; faces int64 [F 3].
    """

    vertices: Tensor
    faces: Tensor
    deviation: Tensor
    """Of the distances between each dual vertex and its crossings: evens triangles (FlexiCubes, L_dev)."""
    signs: Tensor
    """See `sign_entropy`: takes away what no picture asks for."""
    weights: Tensor
    """Mean square of the cubes' raw weights; nought where a network has none."""

    @property
    def irregularity(self) -> Tensor:
        """All three."""
        return self.deviation + self.signs + self.weights


def find_shell(field: PlaneField, resolution: int, random: torch.Generator) -> Shell:
    """Extract a field's surface on a grid of resolution³ cubes, differentiable in the network.

    The grid is searched without gradients first; those that the surface needs are asked again with them, at
    a few percent of the cost. Where a field has no surface the mesh is empty, and the sign term pulls the
    field inwards until it has one.

    Args:
        field: A reconstruction.
        resolution: Cubes along each side.
        random: Draws the cubes whose weights are measured.
    """
    points = flexicubes.grid(resolution, device=str(field.triplane.planes.device))
    with torch.no_grad():
        sdf, offset = sample_near_surface(field, points, resolution)
    weights = _weights_term(field, points, resolution, random)
    cubes = flexicubes.surface_cubes(sdf, resolution)
    if not len(cubes):
        nearest = sdf.topk(min(LOST_POINTS, len(sdf)), largest=False).indices
        return Shell(
            vertices=points[:0],
            faces=cubes.new_zeros(0, 3),
            deviation=sdf.new_zeros(()),
            signs=field.geometry(points[nearest])[0].mean(),
            weights=weights,
        )
    corners = torch.unique(flexicubes.cube_corners(cubes, resolution))
    values, moved = field.geometry(points[corners])
    sdf = flexicubes.close_border(sdf.index_copy(0, corners, values), resolution)
    signs = sign_entropy(sdf, resolution)
    if field.hull is not None:
        # As the pipeline extracts it: hulls jump, so their crossings are searched for.
        vertices, faces, deviation = flexicubes.extract(
            points, sdf, resolution, refine=lambda places: field.geometry(places)[0]
        )
        return Shell(vertices=vertices, faces=faces, deviation=deviation, signs=signs, weights=weights)
    # Rounding may differ between the two answers, and with it the cubes.
    cubes = flexicubes.surface_cubes(sdf, resolution)
    raw = field.raw_weights(points[flexicubes.cube_corners(cubes, resolution)])
    vertices, faces, deviation = flexicubes.extract(
        points + offset.index_copy(0, corners, moved),
        sdf,
        resolution,
        weights=flexicubes.CubeWeights.from_raw(raw),
        training=True,
    )
    return Shell(vertices=vertices, faces=faces, deviation=deviation, signs=signs, weights=weights)


def sign_entropy(sdf: Tensor, resolution: int) -> Tensor:
    """How surely the two ends of a cut grid edge disagree: mean cross-entropy of one with the other's side.

    sdf: [(n+1)³]. It takes away surfaces that no picture defends, as those within. (nvdiffrec, arXiv
    2111.12503, the regulariser of the signed distance)
    """
    side = resolution + 1
    numbers = torch.arange(side**3, device=sdf.device).view(side, side, side)
    is_outside = sdf.detach() > 0
    cut = []
    for axis in range(3):
        ends = [numbers.narrow(axis, start, resolution).reshape(-1) for start in (0, 1)]
        differs = is_outside[ends[0]] != is_outside[ends[1]]
        cut.append(torch.stack([end[differs] for end in ends], 1))
    edges = torch.cat(cut)
    if not len(edges):
        return sdf.new_zeros(())
    values = sdf.index_select(0, edges.view(-1)).view(-1, 2)
    return functional.binary_cross_entropy_with_logits(values, is_outside[edges.flip(1)].to(values))


def _weights_term(field: PlaneField, points: Tensor, resolution: int, random: torch.Generator) -> Tensor:
    """Mean square of the raw weights of cubes drawn at random; nought for a network without any."""
    if field.hull is not None:
        return points.new_zeros(())
    some = torch.randint(resolution**3, (WEIGHED_CUBES,), generator=random, device=points.device)
    return field.raw_weights(points[flexicubes.cube_corners(some, resolution)]).square().mean()
