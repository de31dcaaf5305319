"""Fewer triangles under the same texture: whatever was painted stays where it is.

A vertex is drawn along an edge into its neighbour, so that every vertex that stays keeps its place in
the world and in the texture. Errors are measured in both together. (Garland and Heckbert 1998, §3)

A *wedge* is a vertex as one chart has it; where charts meet, at a seam, a vertex has several. A vertex
on a seam moves along it alone, with its wedges on both sides at once, and where seams meet it stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crm_cli.fragments import Raster
from crm_cli.mesh.bake import uv_usage
from crm_cli.mesh.inspect import heights
from crm_cli.mesh.slivers import MIN_HEIGHT
from crm_cli.mesh.topology import HalfEdges, Indices, following, half_edges
from crm_cli.records import Mesh, UnwrappedMesh

Floats = NDArray[np.float64]

MAX_DRIFT = 2 / 1024
"""How far a chart's rim may move, in texture sides: half the least padding, where 1024 texels have 4."""

MAX_DEVIATION = 0.004
"""Root mean square distance from the planes a vertex stands for, as a share of the diagonal. At twice
this the outline of a ring loses a twentieth."""

SAME_SIDE = 0.2
"""Least cosine between a face before and after a move: about 80 degrees, as at the rim of a box."""

LEAST_SHARE = 0.02
"""Least share of its area in the texture that a face keeps in one move: 0 would be a flip."""

TEXTURE_WEIGHT = 0.5
"""What a distance in the texture counts against one as long in the world."""

EVENNESS = 1e-5
"""Weight of the squared length of a move: it decides where all is flat, and nowhere else."""

CHEAPEST = 0.4
"""Share of the vertices that a round looks at; moves that others bar wait for the next."""

LAYERS = 3
"""Passes over a round's moves: each takes what the ones before did not bar."""

RELENTING = (1.0, 1.05, 1.2, 1.5, 2.0)
"""Shares of the wanted faces that are tried in turn; a tenth more still counts as what was asked for."""

MAX_ROUNDS = 80
"""A round takes a tenth of the vertices; where it takes none, no more can go."""


def coarser(unwrapped: UnwrappedMesh, faces: int) -> UnwrappedMesh:
    """Simplify a textured surface to so many faces, or as few as leave texture and shape whole.

    unwrapped: closed and manifold; so is the result. Its vertices and texture coordinates are some of
    the original's, each vertex with its own, and any texture of the original fits it.
    """
    state = _State.of(unwrapped)
    for _ in range(MAX_ROUNDS):
        excess = len(state.faces) - faces
        if excess <= 0 or not state.shed(-(-excess // 2)):
            break
    vertex_used = np.unique(state.faces)
    wedge_used = np.unique(state.wedges)
    return UnwrappedMesh(
        mesh=Mesh(
            vertices=unwrapped.mesh.vertices[vertex_used],
            faces=np.searchsorted(vertex_used, state.faces),
        ),
        uv=unwrapped.uv[state.uv_of_wedge[wedge_used]],
        uv_faces=np.searchsorted(wedge_used, state.wedges),
    )


def coarser_apart(unwrapped: UnwrappedMesh, faces: int, raster: Raster, *, size_px: int) -> UnwrappedMesh:
    """Simplify as `coarser` does, but leave more faces where two would share a texel of so large a texture.

    Both rims of a slit in a chart may drift towards each other; that happens in one asset of a hundred.
    Where no number of faces helps, the surface stays as it is.
    """
    before = uv_usage(unwrapped, raster, size_px=size_px).overlap
    for share in RELENTING:
        lighter = coarser(unwrapped, round(share * faces))
        if uv_usage(lighter, raster, size_px=size_px).overlap <= before:
            return lighter
    return unwrapped


@dataclass(slots=True, eq=False, kw_only=True)
class _Quadrics:
    """Sums of squared distances from planes, as functions of a place: x·A·x + 2 b·x + c."""

    square: Floats
    """[K D D]"""
    linear: Floats
    """[K D]"""
    constant: Floats
    """[K]"""

    def at(self, which: Indices, places: Floats) -> Floats:
        """Evaluate some of them [N] at places [N D]."""
        values: Floats = (
            np.einsum("nd,nde,ne->n", places, self.square[which], places)
            + 2 * np.einsum("nd,nd->n", places, self.linear[which])
            + self.constant[which]
        )
        return np.maximum(values, 0)

    def merge(self, gone: Indices, stays: Indices) -> None:
        """Add some of them to others; those that take several take all."""
        for part in (self.square, self.linear, self.constant):
            np.add.at(part, stays, part[gone])


@dataclass(slots=True, eq=False, kw_only=True)
class _Moves:
    """Vertices that may be drawn into a neighbour, cheapest first; all [N] but the last two."""

    gone: Indices
    stays: Indices
    half_edge: Indices
    """From gone to stays."""
    owner: Indices
    """[M]: the move, of every corner of every face around a vertex that goes."""
    corner: Indices
    """[M]: that corner's face, three times in a row."""


@dataclass(slots=True, eq=False, kw_only=True)
class _State:
    """A surface under simplification."""

    points: Floats
    """[V 3]"""
    places: Floats
    """[K 5]: where every wedge is in the world, and in the texture in units of the world."""
    uv_of_wedge: Indices
    """[K]"""
    uv: Floats
    """[K 2]"""
    weight: Floats
    """[K]: the area that a wedge stands for."""
    shape: _Quadrics
    """Per wedge, in five dimensions: distance from its faces, times their area."""
    rim: _Quadrics
    """Per wedge, in the texture: distance from the seams it stands for."""
    faces: Indices
    """[F 3]"""
    wedges: Indices
    """[F 3]"""
    diagonal: float

    @classmethod
    def of(cls, unwrapped: UnwrappedMesh) -> _State:
        faces = unwrapped.mesh.faces
        points = unwrapped.mesh.vertices.astype(np.float64)
        keys, wedges = np.unique(
            faces.ravel() * len(unwrapped.uv) + unwrapped.uv_faces.ravel(), return_inverse=True
        )
        vertex_of_wedge, uv_of_wedge = np.divmod(keys, len(unwrapped.uv))
        wedges = wedges.reshape(-1, 3)
        uv = unwrapped.uv.astype(np.float64)[uv_of_wedge]
        world, flat = _areas(points[faces]), np.abs(_turns(uv[wedges]))
        scale = TEXTURE_WEIGHT * np.sqrt(world.sum() / max(float(flat.sum()) / 2, 1e-12))
        places = np.concatenate([points[vertex_of_wedge], scale * uv], axis=1)
        return cls(
            points=points,
            places=places,
            uv_of_wedge=uv_of_wedge,
            uv=uv,
            weight=np.bincount(wedges.ravel(), np.repeat(world, 3), len(keys)).astype(np.float64),
            shape=_face_quadrics(places, wedges, world),
            rim=_rim_quadrics(uv, wedges, _is_seam(half_edges(faces), wedges)),
            faces=faces,
            wedges=wedges,
            diagonal=float(np.linalg.norm(np.ptp(points[np.unique(faces)], axis=0))),
        )

    def shed(self, vertices: int) -> int:
        """Draw up to so many vertices into neighbours, cheapest first; say how many went."""
        edges = half_edges(self.faces)
        moves = self._moves(edges)
        chosen = _apart(moves, self.faces, len(self.points))[:vertices]
        half_edge = moves.half_edge[chosen]
        corner = self.wedges.ravel()
        gone = np.concatenate([corner[half_edge], corner[following(edges.opposite[half_edge])]])
        stays = np.concatenate([corner[following(half_edge)], corner[edges.opposite[half_edge]]])
        # Away from seams both sides of an edge are one wedge.
        gone, first = np.unique(gone, return_index=True)
        stays = stays[first]
        self.shape.merge(gone, stays)
        self.rim.merge(gone, stays)
        np.add.at(self.weight, stays, self.weight[gone])
        vertex_after, wedge_after = np.arange(len(self.points)), np.arange(len(self.uv))
        vertex_after[moves.gone[chosen]] = moves.stays[chosen]
        wedge_after[gone] = stays
        faces, wedges = vertex_after[self.faces], wedge_after[self.wedges]
        lasts = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
        self.faces, self.wedges = faces[lasts], wedges[lasts]
        return len(chosen)

    def _moves(self, edges: HalfEdges) -> _Moves:
        """Find the cheapest moves that harm nothing."""
        is_seam = _is_seam(edges, self.wedges)
        seams = np.bincount(edges.start, is_seam, len(self.points))[edges.start]
        corner = self.wedges.ravel()
        two_sided = is_seam & (seams == 2) & (corner != corner[following(edges.opposite)])
        allowed = np.flatnonzero((seams == 0) | two_sided)
        cost, is_near = self._costs(edges, allowed, is_seam[allowed])
        allowed, cost = allowed[is_near], cost[is_near]
        # The cheapest first; of one vertex's moves only the best few are ever worth a look.
        order = np.argsort(cost, kind="stable")
        looked_at = np.unique(edges.start[allowed[order]], return_index=True)[1]
        enough = max(int(CHEAPEST * len(looked_at)), min(len(looked_at), 64))
        bound = np.sort(looked_at)[enough - 1] + 1 if len(looked_at) else 0
        half_edge = allowed[order[:bound]]
        return self._sound(edges, half_edge)

    def _costs(
        self, edges: HalfEdges, half_edge: Indices, is_seam: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Give the error that each move would make, and whether it stays within what is allowed."""
        corner = self.wedges.ravel()
        on_seam = np.flatnonzero(is_seam)
        other = edges.opposite[half_edge[on_seam]]
        error, weight, drift = (np.zeros(len(half_edge)) for _ in range(3))
        for rows, gone, stays in (
            (np.arange(len(half_edge)), corner[half_edge], corner[following(half_edge)]),
            (on_seam, corner[following(other)], corner[other]),
        ):
            error[rows] += self.shape.at(gone, self.places[stays]) + self.shape.at(stays, self.places[stays])
            weight[rows] += self.weight[gone] + self.weight[stays]
            drift[rows] = np.maximum(drift[rows], self.rim.at(gone, self.uv[stays]))
        is_near = (drift <= MAX_DRIFT**2) & (error <= weight * (MAX_DEVIATION * self.diagonal) ** 2)
        length = ((self.points[edges.end[half_edge]] - self.points[edges.start[half_edge]]) ** 2).sum(axis=1)
        return error + EVENNESS * length * weight, is_near

    def _sound(self, edges: HalfEdges, half_edge: Indices) -> _Moves:
        """Keep the moves after which the surface is still one, and no face has turned over or vanished."""
        gone, stays = edges.start[half_edge], edges.end[half_edge]
        valence = np.bincount(edges.start, minlength=len(self.points))
        by_start = np.argsort(edges.start, kind="stable")
        first = np.cumsum(valence) - valence
        # Every corner at the vertex that goes, move by move.
        owner = np.repeat(np.arange(len(gone)), valence[gone])
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(valence[gone]) - valence[gone], valence[gone])
        around = by_start[first[gone[owner]] + rank]
        # The link condition: with a third common neighbour the surface would touch itself.
        keys = np.sort(edges.start * len(self.points) + edges.end)
        wanted = stays[owner] * len(self.points) + edges.end[around]
        found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        common = np.bincount(owner, keys[found] == wanted, len(gone))
        is_sound = (common == 2) & ~((valence[gone] == 3) & (valence[stays] == 3))
        is_sound &= np.bincount(owner, self._breaks(edges, half_edge[owner], around), len(gone)) == 0
        kept = np.flatnonzero(is_sound)
        number = np.cumsum(is_sound) - 1
        rows = is_sound[owner]
        return _Moves(
            gone=gone[kept],
            stays=stays[kept],
            half_edge=half_edge[kept],
            owner=np.repeat(number[owner[rows]], 3),
            corner=np.repeat(around[rows] // 3, 3),
        )

    def _breaks(self, edges: HalfEdges, half_edge: Indices, around: Indices) -> NDArray[np.bool_]:
        """Say for a corner around the start of a half-edge whether moving it to the end spoils its face."""
        face, place = around // 3, around % 3
        goes = edges.end[half_edge]
        lasts = ~(self.faces[face] == goes[:, None]).any(axis=1)
        result = np.zeros(len(around), np.bool_)
        rows = np.flatnonzero(lasts)
        face, place, half_edge = face[rows], place[rows], half_edge[rows]
        each = np.arange(len(rows))
        corner = self.wedges.ravel()
        # The side of the seam that a corner is on says which wedge it moves to.
        is_left = corner[around[rows]] == corner[half_edge]
        target = np.where(is_left, corner[following(half_edge)], corner[edges.opposite[half_edge]])
        before, after = self.faces[face], self.faces[face].copy()
        after[each, place] = goes[rows]
        flat_before, flat_after = self.wedges[face], self.wedges[face].copy()
        flat_after[each, place] = target
        old, new = _normals(self.points[before]), _normals(self.points[after])
        cosine = (old * new).sum(axis=1)
        lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
        turn_before, turn_after = _turns(self.uv[flat_before]), _turns(self.uv[flat_after])
        result[rows] = (
            (cosine <= SAME_SIDE * lengths)
            | (turn_after * np.sign(turn_before) < LEAST_SHARE * np.abs(turn_before))
            | (heights(self.points, after) < MIN_HEIGHT)
        )
        return result


def _apart(moves: _Moves, faces: Indices, vertices: int) -> Indices:
    """Choose moves, cheapest first, that change no vertex's surroundings but their own."""
    vertex = faces[moves.corner[::3]].ravel()
    free = np.ones(len(moves.gone), np.bool_)
    taken = np.zeros(vertices, np.bool_)
    chosen = np.zeros(len(moves.gone), np.bool_)
    for _ in range(LAYERS):
        best = np.full(vertices, len(moves.gone))
        rows = free[moves.owner]
        np.minimum.at(best, vertex[rows], moves.owner[rows])
        is_beaten = np.bincount(moves.owner, best[vertex] != moves.owner, len(moves.gone)) > 0
        wins = free & ~is_beaten
        chosen |= wins
        taken[vertex[wins[moves.owner]]] = True
        free &= np.bincount(moves.owner, taken[vertex], len(moves.gone)) == 0
    return np.flatnonzero(chosen)


def _is_seam(edges: HalfEdges, wedges: Indices) -> NDArray[np.bool_]:
    """Say for every half-edge whether two charts meet at it."""
    corner = wedges.ravel()
    here = np.arange(len(corner))
    is_seam: NDArray[np.bool_] = (corner != corner[following(edges.opposite)]) | (
        corner[following(here)] != corner[edges.opposite]
    )
    return is_seam


def _normals(triangles: Floats) -> Floats:
    """Normals [N 3] of triangles [N 3 3], as long as twice their area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _areas(triangles: Floats) -> Floats:
    """Areas [N] of triangles [N 3 3]."""
    areas: Floats = np.linalg.norm(_normals(triangles), axis=1) / 2
    return areas


def _turns(triangles: Floats) -> Floats:
    """Twice the signed area [N] of triangles [N 3 2] in the plane."""
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    turns: Floats = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return turns


def _face_quadrics(places: Floats, wedges: Indices, area: Floats) -> _Quadrics:
    """Sum for every wedge the squared distances from its faces' planes, which lie in five dimensions."""
    p, q, r = (places[wedges[:, i]] for i in range(3))
    one = _unit(q - p)
    two = r - p
    two = _unit(two - (two * one).sum(axis=1, keepdims=True) * one)
    square = np.eye(places.shape[1]) - _outer(one) - _outer(two)
    linear = -np.einsum("fde,fe->fd", square, p)
    constant = -(linear * p).sum(axis=1)
    return _summed(len(places), wedges, square * area[:, None, None], linear * area[:, None], constant * area)


def _rim_quadrics(uv: Floats, wedges: Indices, is_seam: NDArray[np.bool_]) -> _Quadrics:
    """Sum for every wedge the squared distances from the lines of its chart's rim."""
    half_edge = np.flatnonzero(is_seam)
    corner = wedges.ravel()
    ends = np.stack([corner[half_edge], corner[following(half_edge)]], axis=1)
    along = _unit(uv[ends[:, 1]] - uv[ends[:, 0]])
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    offset = -(across * uv[ends[:, 0]]).sum(axis=1)
    return _summed(len(uv), ends, _outer(across), across * offset[:, None], offset**2)


def _summed(count: int, owners: Indices, square: Floats, linear: Floats, constant: Floats) -> _Quadrics:
    """Give each of `count` owners the sum of its quadrics; quadric n belongs to all of owners[n]."""
    width = linear.shape[1]
    total = _Quadrics(
        square=np.zeros((count, width, width)), linear=np.zeros((count, width)), constant=np.zeros(count)
    )
    for column in owners.T:
        np.add.at(total.square, column, square)
        np.add.at(total.linear, column, linear)
        np.add.at(total.constant, column, constant)
    return total


def _unit(vectors: Floats) -> Floats:
    """Scale vectors [N D] to length 1; those without a length stay."""
    units: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return units


def _outer(vectors: Floats) -> Floats:
    """Products [N D D] of vectors [N D] with themselves."""
    return vectors[:, :, None] * vectors[:, None, :]
