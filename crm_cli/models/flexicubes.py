"""FlexiCubes: a signed distance on a grid becomes a closed triangle mesh (arXiv 2308.05371).

Every table is computed here from the rule it stands for. A corner is *occupied* where the signed
distance is positive, that is, outside: the published network calls its inside positive, and where a
face is ambiguous the occupied corners are the ones kept apart. This is the one place where that
choice is made; distances are negative inside everywhere else.

A cube's corner k lies at (k & 1, k >> 1 & 1, k >> 2) in x, y, z. Vertices and cubes are numbered with
z fastest: vertex (i, j, k) of n cubes a side has number (i (n + 1) + j) (n + 1) + k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crm_cli.installed import why_not_importable

EDGES: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (0, 2), (1, 3), (5, 7), (4, 6),
)  # fmt: skip
"""Corners of each cube edge, lower one first, in the order of the published weights."""

REFINEMENTS = 8
"""Halvings of a cut edge of an 80³ grid: they place the crossing to 1e-4 of the object's size."""

LEAST_SLOPE = 0.1
"""Growth of a field for each unit of way that its crossings' gradients reckon with at least; distances have
one, and where the surface runs along an edge the crossing would fly off."""

PLACED = 2 / 80 / 2**REFINEMENTS
"""How near a crossing is placed on finer grids too, which need fewer halvings for it."""


class CubeWeights(NamedTuple):
    """What the network may say about each of M surface cubes; all ones (gamma: any constant) is neutral."""

    beta: Tensor
    """[M 12], weight of the crossing on each edge in the dual vertex, in (0.5, 1.5)."""
    alpha: Tensor
    """[M 8], weight of each corner in the crossings, in (0.5, 1.5)."""
    gamma: Tensor
    """[M], weight of the cube in the choice of a quad's diagonal, in (0.25, 0.75)."""

    @classmethod
    def from_raw(cls, raw: Tensor) -> CubeWeights:
        """Squash a network's answer [M 21] into the ranges of the paper (FlexiCubes §4.2)."""
        return cls(
            beta=1 + 0.5 * raw[:, :12].tanh(),
            alpha=1 + 0.5 * raw[:, 12:20].tanh(),
            gamma=0.25 + 0.5 * raw[:, 20].sigmoid(),
        )

    @classmethod
    def join(cls, parts: Sequence[CubeWeights]) -> CubeWeights:
        """Concatenate the weights of consecutive cubes."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Cases(NamedTuple):
    """What each of the 256 patterns of occupied corners means."""

    counts: Tensor
    """[256], number of dual vertices."""
    component: Tensor
    """[256 12], which dual vertex takes the crossing of each edge; -1 where the edge is not cut."""
    doubtful_face: Tensor
    """[256], for a case that may tear across its single ambiguous face: 2 axis + side; else -1."""


def grid(resolution: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Vertices [(n+1)³ 3] of a grid of n³ cubes over [-1, 1]³."""
    # Divided first, as where the published network was trained: the same numbers to the last bit.
    ticks = torch.arange(resolution + 1, dtype=dtype, device=device) / resolution * 2 - 1
    side = resolution + 1
    points = torch.zeros((side, side, side, 3), dtype=dtype, device=device)
    points[..., 0], points[..., 1], points[..., 2] = ticks[:, None, None], ticks[:, None], ticks
    return points.view(-1, 3)


def close_border(sdf: Tensor, resolution: int) -> Tensor:
    """Put the outermost vertices at least half a cell outside, so that no surface is cut open there."""
    side = resolution + 1
    volume = sdf.view(side, side, side)
    inner = torch.zeros_like(volume, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    return torch.where(inner, volume, volume.clamp(min=1 / resolution)).reshape(-1)


def surface_cubes(sdf: Tensor, resolution: int) -> Tensor:
    """Numbers [M] of the cubes with corners on both sides, ascending."""
    cases = _corner_patterns(sdf, resolution)
    return ((cases != 0) & (cases != 255)).nonzero()[:, 0]


def cube_corners(cubes: Tensor, resolution: int) -> Tensor:
    """Vertex numbers [M 8] of the corners of cubes."""
    side = resolution + 1
    x, y, z = _places(cubes, resolution)
    first = (x * side + y) * side + z
    steps = [(k & 1) * side * side + (k >> 1 & 1) * side + (k >> 2) for k in range(8)]
    return first[:, None] + torch.tensor(steps, device=cubes.device)


def extract(
    vertices: Tensor,
    sdf: Tensor,
    resolution: int,
    *,
    weights: CubeWeights | None = None,
    refine: Callable[[Tensor], Tensor] | None = None,
    training: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Extract the zero surface of a signed distance known at the vertices of a grid.

    One grid at a time: surfaces differ in size, so a batch is a loop, and each pass is already
    parallel over all surface cubes. Differentiable in vertices, sdf and weights. Surfaces that reach the
    border stay open; see `close_border`.

    Args:
        vertices: [(n+1)³ 3], the grid, deformed or not; float32 or float64.
        sdf: [(n+1)³], negative inside.
        resolution: n, cubes a side.
        weights: for the cubes of `surface_cubes`, in that order; None is neutral.
        refine: signed distance [N] at points [N 3]. Crossings are then searched for along each cut
            edge instead of interpolated, for fields that jump. What its answers are differentiable in, the
            crossings are, too: they move as the field's zero does along the edge.
        training: Split every quad into four triangles, so that gamma has a gradient.

    Returns:
        vertices [V 3], faces int64 [F 3] counter-clockwise seen from outside, and the mean deviation of the
        distances between each dual vertex and its crossings (FlexiCubes §4.4, L_dev).
    """
    tables = _cases_on(str(sdf.device))
    patterns = _corner_patterns(sdf, resolution)
    cubes = ((patterns != 0) & (patterns != 255)).nonzero()[:, 0]
    if not len(cubes):
        return vertices[:0], cubes.new_zeros(0, 3), sdf.new_zeros(())
    patterns = _mend(patterns, cubes, resolution, tables)
    corners = cube_corners(cubes, resolution)

    component = tables.component[patterns]  # [M 12]
    counts = tables.counts[patterns]
    first_dual = counts.cumsum(0) - counts
    owner, edge = (component >= 0).nonzero(as_tuple=True)  # [P], one entry per cube and cut edge of it
    dual = first_dual[owner] + component[owner, edge]

    ends = torch.tensor(EDGES, device=sdf.device)[edge]  # [P 2]
    ends_at = corners[owner[:, None], ends]
    plain = _crossings(vertices, sdf, ends_at, refine)  # [P 3]
    crossings, beta = plain, torch.ones_like(plain[:, :1])
    if weights is not None:
        beta = _pick(weights.beta.reshape(-1, 1), owner * 12 + edge)
        alpha = _pick(weights.alpha.reshape(-1), owner[:, None] * 8 + ends)
        crossings = _cross(_pick(vertices, ends_at), _pick(sdf, ends_at) * alpha)
    total = int(counts.sum())
    duals = _mean_by(crossings, beta, dual, total)

    axis = torch.tensor([(a ^ b) >> 1 for a, b in EDGES], device=sdf.device)[edge]  # corner steps 1, 2, 4
    is_inside_first = sdf[ends_at[:, 0]] <= 0
    quads = _quads(ends_at[:, 0] * 3 + axis, dual, is_inside_first ^ (axis == 1))
    gamma = None if weights is None else _pick(weights.gamma.repeat_interleave(counts), quads)
    if training:
        duals, faces = _split_in_four(duals, quads, gamma)
    else:
        faces = _split_in_two(duals, quads, gamma)

    distance = (_pick(duals, dual) - plain).norm(dim=1, keepdim=True)
    spread = distance - _pick(_mean_by(distance, torch.ones_like(distance), dual, total), dual)
    return duals, faces, spread.abs().mean()


class KaolinSurface:
    """NVIDIA's own FlexiCubes, for comparison (kaolin, ops/conversions/flexicubes).

    Written against kaolin 0.18. It agrees with `extract` in every vertex and, with weights, in every face.
    Without any it splits all quads the same way, where `extract` takes the shorter diagonal. Its arithmetic
    is float32.
    """

    name: ClassVar[str] = "kaolin"

    @staticmethod
    def why_not(device: str) -> str | None:
        """Need a build of kaolin that loads; any device will do then."""
        return why_not_importable("kaolin.ops.conversions", remedy="run `crm doctor` for the build command")

    def extract(
        self,
        vertices: Tensor,
        sdf: Tensor,
        resolution: int,
        *,
        weights: CubeWeights | None = None,
        refine: Callable[[Tensor], Tensor] | None = None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Extract as the function `extract` does; vertices and faces come in another order.

        refine is not asked: kaolin takes crossings where interpolation puts them.
        """
        from kaolin.ops.conversions import FlexiCubes

        cubes = torch.arange(resolution**3, device=sdf.device)
        raw = {} if weights is None else _unsquash(weights, surface_cubes(sdf, resolution), resolution)
        # It keeps apart what is negative, here the outside; its faces then look inwards.
        found, faces, deviations = FlexiCubes(str(sdf.device))(
            vertices.float(),
            -sdf.float(),
            cube_corners(cubes, resolution),
            resolution,
            weight_scale=0.5,
            training=training,
            **raw,
        )
        deviation = deviations.mean() if len(deviations) else deviations.sum()
        return found.to(vertices.dtype), faces.flip(1), deviation.to(sdf.dtype)


class OwnSurface:
    """The FlexiCubes of this package."""

    name: ClassVar[str] = "crm"

    @staticmethod
    def why_not(device: str) -> str | None:
        """Works everywhere."""
        return None

    extract = staticmethod(extract)


Surfacer = OwnSurface | KaolinSurface

SURFACES: tuple[type[OwnSurface] | type[KaolinSurface], ...] = (OwnSurface, KaolinSurface)
"""Best first."""


def _unsquash(weights: CubeWeights, cubes: Tensor, resolution: int) -> dict[str, Tensor]:
    """Raw weights of all cubes, as kaolin squashes them itself; raises ValueError outside of its ranges."""

    def spread(values: Tensor) -> Tensor:
        if bool(values.isnan().any()):
            raise ValueError("kaolin takes beta and alpha in [0.5, 1.5] and gamma in [0.25, 0.75] only")
        return values.new_zeros(resolution**3, *values.shape[1:]).index_copy(0, cubes, values)

    return {
        "beta": spread((2 * weights.beta.float() - 2).atanh()),
        "alpha": spread((2 * weights.alpha.float() - 2).atanh()),
        "gamma_f": spread((2 * weights.gamma.float() - 0.5).logit()),
    }


# ---- cases ----


@cache
def cases() -> Cases:
    """Work out all 256 cases."""
    found = [_components(case) for case in range(256)]
    return Cases(
        counts=torch.tensor([max(components) + 1 for components in found]),
        component=torch.tensor(found),
        doubtful_face=torch.tensor([_doubtful_face(case) for case in range(256)]),
    )


@cache
def _cases_on(device: str) -> Cases:
    return Cases(*(table.to(device) for table in cases()))


def _faces() -> list[list[int]]:
    """Corners of the faces -x, +x, -y, +y, -z, +z, each walked around."""
    walks = []
    for axis in range(3):
        one, other = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        for side in (0, 1):
            first = side << axis
            walks.append([first, first + one, first + one + other, first + other])
    return walks


def _components(case: int) -> list[int]:
    """Dual vertex of each edge: cut edges that the surface joins across a face share one."""
    occupied = [bool(case >> corner & 1) for corner in range(8)]
    parent = list(range(12))

    def root(edge: int) -> int:
        return edge if parent[edge] == edge else root(parent[edge])

    for walk in _faces():
        around = [EDGES.index((min(a, b), max(a, b))) for a, b in zip(walk, walk[1:] + walk[:1], strict=True)]
        cut = [edge for edge in around if occupied[EDGES[edge][0]] != occupied[EDGES[edge][1]]]
        if len(cut) == 2:
            parent[root(cut[0])] = root(cut[1])
        if len(cut) == 4:
            for place, corner in enumerate(walk):
                if occupied[corner]:
                    parent[root(around[place])] = root(around[place - 1])
    roots: list[int] = []
    numbers = []
    for edge, (a, b) in enumerate(EDGES):
        if occupied[a] == occupied[b]:
            numbers.append(-1)
            continue
        if root(edge) not in roots:
            roots.append(root(edge))
        numbers.append(roots.index(root(edge)))
    return numbers


def _doubtful_face(case: int) -> int:
    """The single ambiguous face of a case with 5 or 6 occupied corners, else -1."""
    occupied = [case >> corner & 1 for corner in range(8)]
    ambiguous = [
        face for face, walk in enumerate(_faces())
        if [occupied[corner] for corner in walk] in ([0, 1, 0, 1], [1, 0, 1, 0])
    ]  # fmt: skip
    return ambiguous[0] if len(ambiguous) == 1 and sum(occupied) in (5, 6) else -1


def _corner_patterns(sdf: Tensor, resolution: int) -> Tensor:
    """Pattern of occupied corners of every cube, uint8 [n³]."""
    n = resolution
    occupied = (sdf.detach() > 0).view(n + 1, n + 1, n + 1).to(torch.uint8)
    # One axis at a time: three passes, where corner by corner takes eight.
    along_x = occupied[:-1] | occupied[1:] << 1
    along_y = along_x[:, :-1] | along_x[:, 1:] << 2
    patterns = along_y[:, :, :-1] | along_y[:, :, 1:] << 4
    return patterns.reshape(-1)


def _mend(patterns: Tensor, cubes: Tensor, resolution: int, tables: Cases) -> Tensor:
    """Cases [M] of surface cubes, after turning the cubes that would make an edge of four faces.

    That happens where one doubtful cube faces another. (FlexiCubes supplement; nv-tlabs/FlexiCubes)
    """
    own = patterns[cubes].long()
    face = tables.doubtful_face[own]
    axis, side = face.clamp(min=0) // 2, face % 2
    place = torch.stack(_places(cubes, resolution), 1)  # [M 3]
    neighbour = place + torch.nn.functional.one_hot(axis, 3) * (2 * side - 1)[:, None]
    within = ((neighbour >= 0) & (neighbour < resolution)).all(1) & (face >= 0)
    strides = torch.tensor([resolution**2, resolution, 1], device=cubes.device)
    facing = patterns[torch.where(within, (neighbour * strides).sum(1), cubes)].long()
    turned = within & (tables.doubtful_face[facing] >= 0)
    return torch.where(turned, 255 - own, own)


def _places(cubes: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    return cubes // resolution**2, cubes // resolution % resolution, cubes % resolution


# ---- positions ----


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values [N ...] at places of any shape.

    Its gradient adds up in one order, on any number of threads; that of an indexed tensor need not.
    """
    return values.index_select(0, index.reshape(-1)).view(*index.shape, *values.shape[1:])


def _cross(ends: Tensor, values: Tensor) -> Tensor:
    """Where the line between two points [P 2 3] with values [P 2] of opposite sign crosses zero."""
    (a, b), (at_a, at_b) = ends.unbind(1), values[..., None].unbind(1)
    return (a * at_b - b * at_a) / (at_b - at_a)


def _crossings(
    vertices: Tensor, sdf: Tensor, ends_at: Tensor, refine: Callable[[Tensor], Tensor] | None
) -> Tensor:
    if refine is None:
        return _cross(_pick(vertices, ends_at), _pick(sdf, ends_at))
    order, first = _runs(ends_at[:, 0] * vertices.shape[0] + ends_at[:, 1])
    edges = ends_at[order[first]]
    inside, outside = vertices[edges].unbind(1)
    swap = (sdf[edges[:, 0]] > 0)[:, None]
    inside, outside = torch.where(swap, outside, inside), torch.where(swap, inside, outside)
    values = torch.where(swap, sdf[edges].flip(1), sdf[edges])
    longest = float((outside - inside).abs().amax())
    with torch.no_grad():
        low, high, slope = _search(
            lambda which, share: _along(inside, outside, which, share),
            values,
            refine,
            bracket=max(2.0**-REFINEMENTS, PLACED / longest),
        )
    middle = (low + high) / 2
    if torch.is_grad_enabled():
        value = refine((inside + middle[:, None] * (outside - inside)).detach())
        # Nought, but for its gradient: the zero of a field that grows moves inwards.
        steepest = slope.clamp(min=LEAST_SLOPE * longest)
        middle = middle + (value.detach() - value) / steepest
    run = torch.zeros_like(order)
    run[order] = first.cumsum(0) - 1
    return _pick(inside + middle[:, None] * (outside - inside), run)


def _along(inside: Tensor, outside: Tensor, which: Tensor, share: Tensor) -> Tensor:
    """Points [K 3] on some of the edges, at a share [K] of the way outwards."""
    return inside[which] + share[:, None] * (outside[which] - inside[which])


def _search(
    place: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
    refine: Callable[[Tensor], Tensor],
    *,
    bracket: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Enclose the crossing of each edge within a share `bracket` of its length.

    Returns two shares [E], low and high, and by how much the field grows between them for each share.
    place: points [K 3] on edges [K] at shares [K]. values: [E 2], distances inside and outside.
    Where the field is smooth, two steps to where a line would cross zero come so near that a third, one
    bracket further on, encloses it. What is left is halved, as suits jumps, and tried again.
    """
    at_low, at_high = (column.clone() for column in values.unbind(1))
    low, high = torch.zeros_like(at_low), torch.ones_like(at_low)
    was_outside = torch.zeros_like(at_low, dtype=torch.bool)
    wide = torch.arange(len(at_low), device=at_low.device)
    for step in range(4 * REFINEMENTS):
        a, b = low[wide], high[wide]
        match step % 4:
            case 0 | 1:
                pull = at_low[wide] / (at_low[wide] - at_high[wide])
                share = a + (b - a) * pull.clamp(bracket, 1 - bracket)
            case 2:
                share = torch.where(was_outside[wide], b - bracket, a + bracket)
            case _:
                share = (a + b) / 2
        value = refine(place(wide, share))
        is_outside = value > 0
        low[wide], high[wide] = torch.where(is_outside, a, share), torch.where(is_outside, share, b)
        at_low[wide] = torch.where(is_outside, at_low[wide], value)
        at_high[wide] = torch.where(is_outside, value, at_high[wide])
        was_outside[wide] = is_outside
        wide = wide[(high - low)[wide] > bracket]
        if not len(wide):
            break
    return low, high, (at_high - at_low) / (high - low)


def _runs(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Order that brings equal keys together, earlier entries first, and where in it each run starts."""
    sorted_keys, order = keys.sort(stable=True)
    return order, sorted_keys.diff(prepend=sorted_keys[:1] - 1) != 0


def _mean_by(values: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    """Weighted mean of the rows of each group."""
    total = values.new_zeros(groups, values.shape[1]).index_add(0, group, values * weights)
    return total / weights.new_zeros(groups, 1).index_add(0, group, weights)


# ---- faces ----


def _quads(edge_key: Tensor, dual: Tensor, is_turned: Tensor) -> Tensor:
    """Dual vertices [Q 4] around each grid edge that four surface cubes share, seen from outside.

    Entries come cube by cube, ascending, so the four cubes of an edge along x lie at (-y, -z), (-y, +z),
    (+y, -z), (+y, +z), and 0, 1, 3, 2 walks around it. That walk is right-handed along y and left-handed
    along x and z, where z comes after the other axis.
    """
    order, first = _runs(edge_key)
    starts = first.nonzero()[:, 0]
    sizes = starts.diff(append=starts.new_tensor([len(order)]))
    starts = starts[sizes == 4]
    entries = order[starts[:, None] + torch.tensor([0, 1, 3, 2], device=starts.device)]
    quads = dual[entries]
    return torch.where(is_turned[entries[:, :1]], quads.flip(1), quads)


def _split_in_two(duals: Tensor, quads: Tensor, gamma: Tensor | None) -> Tensor:
    """Triangles [2Q 3]: along the diagonal with the larger weights, or the shorter one without weights."""
    if gamma is None:
        diagonals = duals[quads[:, :2]] - duals[quads[:, 2:]]
        lengths = diagonals.detach().square().sum(-1)
        is_first = lengths[:, 0] < lengths[:, 1]
    else:
        # Equal pulls take the same diagonal as the published code, whose quads run the other way round.
        is_first = gamma[:, 0] * gamma[:, 2] >= gamma[:, 1] * gamma[:, 3]
    along_first = quads[:, [0, 1, 2, 0, 2, 3]]
    along_second = quads[:, [0, 1, 3, 3, 1, 2]]
    return torch.where(is_first[:, None], along_first, along_second).view(-1, 3)


def _split_in_four(duals: Tensor, quads: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add a vertex within each quad, between the middles of its diagonals; triangles [4Q 3] around it."""
    middles = (_pick(duals, quads[:, :2]) + _pick(duals, quads[:, 2:])) / 2  # [Q 2 3]
    if gamma is None:
        centres = middles.mean(1)
    else:
        pull = gamma[:, :2] * gamma[:, 2:]  # [Q 2]
        centres = (pull[..., None] * middles).sum(1) / (pull.sum(1, keepdim=True) + 1e-8)
    centre = len(duals) + torch.arange(len(quads), device=quads.device)
    triangles = torch.stack((quads, quads.roll(-1, 1), centre[:, None].expand_as(quads)), -1)
    return torch.cat((duals, centres)), triangles.view(-1, 3)
