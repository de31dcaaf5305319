"""FlexiCubes: known surfaces come back closed, outward and in place; random fields never tear."""

import math
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crm_cli.models import flexicubes
from crm_cli.models.flexicubes import CubeWeights


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> Callable[[Tensor], Tensor]:
    return lambda p: (p - p.new_tensor(centre)).norm(dim=1) - radius


def ring(p: Tensor) -> Tensor:
    return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.6, p[:, 2]) - 0.25


def random_weights(sdf: Tensor, resolution: int, seed: int) -> CubeWeights:
    cubes = flexicubes.surface_cubes(sdf, resolution)
    raw = torch.randn(len(cubes), 21, generator=torch.Generator().manual_seed(seed), dtype=sdf.dtype)
    return CubeWeights.from_raw(raw)


def noise(points: int, seed: int) -> Tensor:
    return torch.randn(points, generator=torch.Generator().manual_seed(seed))


def turned(faces: Tensor) -> Tensor:
    """Triangles from their lowest vertex on, in ascending order: equal for the same oriented surface."""
    start = faces.argmin(1, keepdim=True)
    return torch.unique(faces.gather(1, (start + torch.arange(3)) % 3), dim=0)


def edges(faces: Tensor) -> Tensor:
    """Directed edges [3F 2]."""
    return torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))


def is_closed_and_oriented(faces: Tensor) -> bool:
    """Whether every edge is walked exactly once each way."""
    ahead = edges(faces)
    keys, counts = torch.unique(ahead[:, 0] * (1 << 32) + ahead[:, 1], return_counts=True)
    back = torch.unique(ahead[:, 1] * (1 << 32) + ahead[:, 0])
    return bool((counts == 1).all()) and torch.equal(keys, back)


def euler(vertices: Tensor, faces: Tensor) -> int:
    return len(vertices) - len(faces) * 3 // 2 + len(faces)


def area_and_volume(vertices: Tensor, faces: Tensor) -> tuple[float, float]:
    a, b, c = vertices[faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2
    return float(area), float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_a_sphere_comes_back(dtype: torch.dtype, training: bool) -> None:
    points = flexicubes.grid(32, dtype=dtype)
    vertices, faces, _ = flexicubes.extract(points, ball(0.7)(points), 32, training=training)
    assert vertices.dtype == dtype
    assert is_closed_and_oriented(faces)
    assert euler(vertices, faces) == 2
    area, volume = area_and_volume(vertices, faces)
    assert area == pytest.approx(4 * math.pi * 0.7**2, rel=0.01)
    assert volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)
    # The mean of points on a cap as wide as a cell's diagonal lies below the sphere by at most its sagitta;
    # interpolated crossings add as much again.
    assert float((vertices.norm(dim=1) - 0.7).abs().max()) < 2 * 3 * (2 / 32) ** 2 / (8 * 0.7)


def test_a_torus_has_a_hole_and_two_spheres_are_two() -> None:
    points = flexicubes.grid(40)
    vertices, faces, _ = flexicubes.extract(points, ring(points), 40)
    assert is_closed_and_oriented(faces)
    assert euler(vertices, faces) == 0
    assert area_and_volume(vertices, faces)[1] == pytest.approx(2 * math.pi**2 * 0.6 * 0.25**2, rel=0.03)

    pair = torch.minimum(ball(0.3, (-0.5, 0, 0))(points), ball(0.3, (0.5, 0.1, 0))(points))
    vertices, faces, _ = flexicubes.extract(points, pair, 40)
    assert is_closed_and_oriented(faces)
    assert euler(vertices, faces) == 4


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_random_fields_full_of_ambiguous_cases_never_tear(training: bool, is_weighted: bool) -> None:
    points = flexicubes.grid(8)
    for seed in range(60):
        noise = torch.randn(9**3, generator=torch.Generator().manual_seed(seed))
        sdf = flexicubes.close_border(noise, 8)
        weights = random_weights(sdf, 8, seed) if is_weighted else None
        vertices, faces, _ = flexicubes.extract(points, sdf, 8, weights=weights, training=training)
        assert is_closed_and_oriented(faces), seed
        assert len(torch.unique(faces)) == len(vertices)
        assert area_and_volume(vertices, faces)[1] > 0


def test_without_mending_some_random_field_would_tear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flexicubes, "_mend", lambda patterns, cubes, *_: patterns[cubes].long())
    points = flexicubes.grid(8)

    def closes(seed: int) -> bool:
        noise = torch.randn(9**3, generator=torch.Generator().manual_seed(seed))
        sdf = flexicubes.close_border(noise, 8)
        return is_closed_and_oriented(flexicubes.extract(points, sdf, 8)[1])

    assert not all(closes(seed) for seed in range(60))


def test_the_cases_are_the_published_ones() -> None:
    cases = flexicubes.cases()
    # Known of dual marching cubes: cases with 0 to 4 surface pieces, and 36 that may tear.
    assert torch.bincount(cases.counts).tolist() == [2, 162, 82, 8, 2]
    assert int((cases.doubtful_face >= 0).sum()) == 36
    for case in range(256):
        occupied = [case >> corner & 1 for corner in range(8)]
        cut = [occupied[a] != occupied[b] for a, b in flexicubes.EDGES]
        assert (cases.component[case] >= 0).tolist() == cut
    assert cases.component[0b00000001].tolist() == [0, -1, -1, 0, -1, -1, -1, -1, 0, -1, -1, -1]
    # Occupied corners of a diagonal are kept apart, empty ones are not.
    assert int(cases.counts[0b00001001]) == 2
    assert int(cases.counts[0b11110110]) == 1


def test_cubes_and_vertices_are_numbered_z_fastest() -> None:
    points = flexicubes.grid(4)
    assert points[1].tolist() == [-1, -1, -0.5]
    corners = flexicubes.cube_corners(torch.tensor([(1 * 4 + 2) * 4 + 3]), 4)[0]
    torch.testing.assert_close(points[corners[0]], torch.tensor([-0.5, 0, 0.5]))
    torch.testing.assert_close(points[corners[1]] - points[corners[0]], torch.tensor([0.5, 0, 0]))
    torch.testing.assert_close(points[corners[6]] - points[corners[0]], torch.tensor([0, 0.5, 0.5]))
    sdf = torch.ones(len(points))
    sdf[corners[7]] = -1
    assert len(flexicubes.surface_cubes(sdf, 4)) == 4, "the corner lies on the border, so four cubes share it"


def test_a_surface_that_reaches_the_border_is_closed_there() -> None:
    points = flexicubes.grid(16)
    sdf = ball(1.3)(points)
    assert not is_closed_and_oriented(flexicubes.extract(points, sdf, 16)[1])
    vertices, faces, _ = flexicubes.extract(points, flexicubes.close_border(sdf, 16), 16)
    assert is_closed_and_oriented(faces)
    assert float(vertices.abs().max()) < 1
    outside = flexicubes.close_border(torch.full_like(sdf, 3.0), 16)
    assert bool((outside == 3).all())


def test_nothing_comes_of_nothing() -> None:
    points = flexicubes.grid(4)
    vertices, faces, regularizer = flexicubes.extract(points, torch.ones(len(points)), 4)
    assert (vertices.shape, faces.shape, float(regularizer)) == ((0, 3), (0, 3), 0)


def test_weights_pull_the_surface_where_they_say() -> None:
    points = flexicubes.grid(4, dtype=torch.float64)
    sdf = points[:, 2] - 0.1
    neutral, _, _ = flexicubes.extract(points, sdf, 4)
    torch.testing.assert_close(neutral[:, 2], torch.full_like(neutral[:, 2], 0.1))
    cubes = flexicubes.surface_cubes(sdf, 4)
    weights = CubeWeights(
        beta=torch.ones(len(cubes), 12, dtype=torch.float64),
        alpha=torch.ones(len(cubes), 8, dtype=torch.float64),
        gamma=torch.full((len(cubes),), 0.5, dtype=torch.float64),
    )
    same, _, _ = flexicubes.extract(points, sdf, 4, weights=weights)
    torch.testing.assert_close(same, neutral)
    # Upper corners count double: zero lies at a share of 0.1 · 1 / (0.1 · 1 + 0.4 · 2) between z = 0 and 0.5.
    weights.alpha[:, 4:] = 2
    moved, _, _ = flexicubes.extract(points, sdf, 4, weights=weights)
    torch.testing.assert_close(moved[:, 2], torch.full_like(moved[:, 2], 0.5 * 0.1 / 0.9))
    # All weight on the crossing of edge 3, between corners 0 and 4, at the cube's own x and y.
    weights.beta[:] = 0
    weights.beta[:, 3] = 1
    pulled, _, _ = flexicubes.extract(points, sdf, 4, weights=weights)
    corners = points[flexicubes.cube_corners(cubes, 4)[:, 0]]
    torch.testing.assert_close(pulled[:, :2], corners[:, :2])


def test_gamma_chooses_the_diagonal() -> None:
    points = flexicubes.grid(4, dtype=torch.float64)
    sdf = points[:, 2] - 0.1
    cubes = flexicubes.surface_cubes(sdf, 4)
    weights = random_weights(sdf, 4, 0)._replace(gamma=torch.zeros(len(cubes), dtype=torch.float64))
    weights.gamma[5] = weights.gamma[10] = 1  # opposite cubes around the inner edge
    _, faces, _ = flexicubes.extract(points, sdf, 4, weights=weights)
    diagonals = {tuple(sorted(pair)) for pair in edges(faces).tolist()}
    assert (5, 10) in diagonals
    assert (6, 9) not in diagonals


@pytest.mark.parametrize(
    ("axis", "first"),
    [(0, (6, 9)), (1, (5, 10)), (2, (6, 9))],
    ids=["x", "y", "z"],
)
@pytest.mark.parametrize("sign", [1, -1], ids=["inside first", "inside last"])
def test_equal_gammas_choose_the_published_diagonal(axis: int, first: tuple[int, int], sign: int) -> None:
    # The published quad starts at another cube when the edge is walked the other way; so do edges along y.
    points = flexicubes.grid(4, dtype=torch.float64)
    sdf = sign * (points[:, axis] - 0.1)
    weights = random_weights(sdf, 4, 0)._replace(gamma=torch.full((16,), 0.5, dtype=torch.float64))
    _, faces, _ = flexicubes.extract(points, sdf, 4, weights=weights)
    diagonals = {tuple(sorted(pair)) for pair in edges(faces).tolist()}
    other = (5, 10) if first == (6, 9) else (6, 9)
    expected, avoided = (first, other) if sign == 1 else (other, first)
    assert expected in diagonals
    assert avoided not in diagonals


# The published algorithm written down once more, cube by cube, in its own sign: positive inside. Its faces
# look inwards.

PLAIN_CORNERS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
PLAIN_EDGES = [
    (0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4),
]  # fmt: skip
PLAIN_FACES = [
    (axis, side, [k for k in range(8) if PLAIN_CORNERS[k][axis] == side])
    for axis in range(3)
    for side in (0, 1)
]

Place = tuple[int, int, int]


def plain_ambiguous(occupied: list[bool]) -> list[tuple[int, int]]:
    """Faces (axis, side) with occupied corners on one diagonal only."""
    found = []
    for axis, side, (a, b, c, d) in PLAIN_FACES:  # a and d lie across, as do b and c
        if occupied[a] == occupied[d] != occupied[b] == occupied[c]:
            found.append((axis, side))
    return found


def plain_pieces(occupied: list[bool]) -> list[set[int]]:
    """Cut edges of a cube, one set for each dual vertex."""
    cut = [e for e, (a, b) in enumerate(PLAIN_EDGES) if occupied[a] != occupied[b]]
    pieces = [{e} for e in cut]
    for axis, side, corners in PLAIN_FACES:
        here = [e for e in cut if set(PLAIN_EDGES[e]) <= set(corners)]
        links = [here] if len(here) == 2 else []
        if (axis, side) in plain_ambiguous(occupied):
            links = [[e for e in here if k in PLAIN_EDGES[e]] for k in corners if occupied[k]]
        for one, other in links:
            joined = [piece for piece in pieces if one in piece or other in piece]
            pieces = [piece for piece in pieces if piece not in joined] + [set().union(*joined)]
    return pieces


class PlainFlexiCubes:
    """Dual vertices and quads of a grid of n cubes a side; raw: [n³ 21], before they are squashed."""

    def __init__(self, points: Tensor, s: Tensor, n: int, raw: Tensor) -> None:
        self.points, self.s, self.n = points, s, n
        self.beta, self.alpha = 1 + raw[:, :12].tanh() / 2, 1 + raw[:, 12:20].tanh() / 2
        self.gamma = 1 / 4 + 1 / (1 + (-raw[:, 20]).exp()) / 2
        self.cubes = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
        self.vertices: list[Tensor] = []
        self.owners: list[int] = []
        self.deviations: list[Tensor] = []
        self.around: dict[tuple[int, int], list[int]] = {}  # ordered grid edge to its dual vertices
        for number, place in enumerate(self.cubes):
            for piece in plain_pieces(self.settled(place)):
                self.add(number, place, sorted(piece))

    def vertex(self, place: Place, corner: int) -> int:
        i, j, k = (p + c for p, c in zip(place, PLAIN_CORNERS[corner], strict=True))
        return i * (self.n + 1) ** 2 + j * (self.n + 1) + k

    def occupied(self, place: Place) -> list[bool]:
        return [bool(self.s[self.vertex(place, corner)] < 0) for corner in range(8)]

    def doubtful(self, place: Place) -> tuple[int, int] | None:
        occupied = self.occupied(place)
        faces = plain_ambiguous(occupied)
        return faces[0] if len(faces) == 1 and sum(occupied) in (5, 6) else None

    def settled(self, place: Place) -> list[bool]:
        """Occupied corners; the others where this cube and the one across its ambiguous face are doubtful."""
        occupied, face = self.occupied(place), self.doubtful(place)
        if face is not None:
            beyond = list(place)
            beyond[face[0]] += 2 * face[1] - 1
            if all(0 <= p < self.n for p in beyond) and self.doubtful(tuple(beyond)) is not None:
                return [not corner for corner in occupied]
        return occupied

    def add(self, number: int, place: Place, piece: list[int]) -> None:
        total, weight, plain = torch.zeros(3, dtype=torch.float64), 0.0, []
        for edge in piece:
            a, b = PLAIN_EDGES[edge]
            at = self.vertex(place, a), self.vertex(place, b)
            (x_a, x_b), (s_a, s_b) = self.points[list(at)], self.s[list(at)]
            plain.append((x_a * s_b - x_b * s_a) / (s_b - s_a))
            s_a, s_b = self.alpha[number, a] * s_a, self.alpha[number, b] * s_b
            total = total + self.beta[number, edge] * (x_a * s_b - x_b * s_a) / (s_b - s_a)
            weight = weight + self.beta[number, edge]
            self.around.setdefault(at, []).append(len(self.vertices))
        self.vertices.append(total / weight)
        self.owners.append(number)
        distances = (torch.stack(plain) - total / weight).norm(dim=1)
        self.deviations.extend((distances - distances.mean()).abs())

    def quads(self) -> list[list[int]]:
        found = []
        for (a, _), d in self.around.items():
            if len(d) == 4:  # cubes were visited in ascending order
                found.append([d[0], d[1], d[3], d[2]] if self.s[a] > 0 else [d[2], d[3], d[1], d[0]])
        return found

    def faces(self) -> list[list[int]]:
        found = []
        for q in self.quads():
            g = [self.gamma[self.owners[dual]] for dual in q]
            along_first = g[0] * g[2] > g[1] * g[3]
            halves = ((0, 1, 2), (0, 2, 3)) if along_first else ((0, 1, 3), (3, 1, 2))
            found += [[q[k] for k in half] for half in halves]
        return found

    def centres(self) -> list[Tensor]:
        """The vertex that training puts into each quad."""
        found = []
        for q in self.quads():
            g, v = [self.gamma[self.owners[dual]] for dual in q], [self.vertices[dual] for dual in q]
            middles = g[0] * g[2] * (v[0] + v[2]) / 2 + g[1] * g[3] * (v[1] + v[3]) / 2
            found.append(middles / (g[0] * g[2] + g[1] * g[3] + 1e-8))
        return found


def matched(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which of their points each of ours is, one to one."""
    distance, match = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert float(distance.max()) < 1e-12
    assert sorted(match.tolist()) == list(range(len(theirs)))
    return match


@pytest.mark.parametrize("seed", range(6))
def test_a_random_field_gives_the_mesh_of_the_published_algorithm(seed: int) -> None:
    n = 4
    generator = torch.Generator().manual_seed(seed)
    points = flexicubes.grid(n, dtype=torch.float64)
    points = points + 0.02 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    sdf = torch.randn(len(points), generator=generator, dtype=torch.float64)
    raw = torch.randn(n**3, 21, generator=generator, dtype=torch.float64)
    plain = PlainFlexiCubes(points, -sdf, n, raw)

    weights = CubeWeights.from_raw(raw[flexicubes.surface_cubes(sdf, n)])
    vertices, faces, deviation = flexicubes.extract(points, sdf, n, weights=weights)
    match = matched(vertices, torch.stack(plain.vertices))
    assert torch.equal(turned(match[faces].flip(1)), turned(torch.tensor(plain.faces())))
    assert len(faces) > 50
    assert float(deviation) == pytest.approx(float(torch.stack(plain.deviations).mean()), rel=1e-12)

    split, four, _ = flexicubes.extract(points, sdf, n, weights=weights, training=True)
    centres = torch.stack(plain.centres())
    matched(split[len(vertices) :], centres)
    assert len(four) == 4 * len(centres)


def test_an_exact_crossing_places_a_jump_that_interpolation_smears() -> None:
    points = flexicubes.grid(20)

    def jump(p: Tensor) -> Tensor:
        return torch.where(p.norm(dim=1) < 0.7, -0.001, 0.5)

    smeared, _, _ = flexicubes.extract(points, jump(points), 20)
    exact, faces, _ = flexicubes.extract(points, jump(points), 20, refine=jump)
    assert is_closed_and_oriented(faces)
    # The sagitta of a cap as wide as a cell's diagonal.
    assert float((exact.norm(dim=1) - 0.7).abs().max()) < 3 * 0.1**2 / (8 * 0.7)
    assert float((smeared.norm(dim=1) - 0.7).abs().max()) > 0.04


@pytest.mark.parametrize(("resolution", "tolerance"), [(20, 0.1 / 256), (80, 1e-4), (120, 1e-4)])
def test_crossings_are_placed_where_a_field_bends_and_jumps(resolution: int, tolerance: float) -> None:
    def bent(p: Tensor) -> Tensor:
        """A ball whose field is flat inside, steep outside, and jumps on one side."""
        out = p.norm(dim=1) - 0.7
        return torch.where(out > 0, 5 * out + (p[:, 0] > 0), (8 * out).tanh() / 8)

    points = flexicubes.grid(resolution)
    sdf = bent(points)
    first = torch.arange(len(points) - 1)
    edges = torch.stack((first, first + 1), 1)
    is_upright = points[edges[:, 1], 2] > points[edges[:, 0], 2]
    edges = edges[is_upright & ((sdf[edges] > 0).sum(1) == 1)]
    assert len(edges) > 100
    crossings = flexicubes._crossings(points, sdf, edges, bent)
    assert float((crossings.norm(dim=1) - 0.7).abs().max()) < tolerance


def test_gradients_are_those_of_finite_differences() -> None:
    resolution = 3
    points = flexicubes.grid(resolution, dtype=torch.float64)
    noise = torch.randn(len(points), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sdf = flexicubes.close_border(ball(0.6)(points) + 0.1 * noise, resolution)
    weights = random_weights(sdf, resolution, 4)

    def positions(
        points: Tensor, sdf: Tensor, beta: Tensor, alpha: Tensor, gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        answer = flexicubes.extract(
            points, sdf, resolution, weights=CubeWeights(beta, alpha, gamma), training=True
        )
        return answer[0], answer[2]

    inputs = [tensor.detach().requires_grad_() for tensor in (points, sdf, *weights)]
    assert torch.autograd.gradcheck(positions, inputs, eps=1e-7, atol=1e-5)


def test_searched_crossings_move_as_the_field_does() -> None:
    points = flexicubes.grid(12, dtype=torch.float64)

    def size(radius: Tensor, stretch: Tensor) -> Tensor:
        def field(p: Tensor) -> Tensor:
            return stretch * (5 * (p.norm(dim=1) - radius)).tanh()

        return flexicubes.extract(points, field(points), 12, refine=field)[0].norm(dim=1).mean()

    ball = torch.tensor([0.7, 1.0], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(size(*ball), ball)
    step = torch.eye(2, dtype=torch.float64) * 0.005  # moves no crossing to another edge
    ball.requires_grad_(False)
    wanted = torch.stack([(size(*(ball + way)) - size(*(ball - way))) / 0.01 for way in step])
    # The radius moves the surface as much, a factor does not; the search leaves 1/256 of a cell open.
    torch.testing.assert_close(slopes, wanted, atol=0.02, rtol=0)
    assert slopes[0] > 0.9 and abs(slopes[1]) < 0.02


def test_where_a_field_jumps_its_height_moves_nothing() -> None:
    points = flexicubes.grid(12, dtype=torch.float64)
    height = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def jump(p: Tensor) -> Tensor:
        return torch.where(p.norm(dim=1) < 0.7, -height, height)

    vertices, _, _ = flexicubes.extract(points, jump(points), 12, refine=jump)
    (slope,) = torch.autograd.grad(vertices.norm(dim=1).mean(), height)
    assert abs(slope.item()) < 1 / 256  # a bracket of the search, within which nobody knows


def test_the_regularizer_vanishes_where_crossings_are_equally_far() -> None:
    # One occupied corner's three crossings surround their dual vertex evenly; a tilted plane's do not.
    points = flexicubes.grid(2, dtype=torch.float64)
    sdf = torch.ones(27, dtype=torch.float64)
    sdf[13] = -1
    assert float(flexicubes.extract(points, sdf, 2)[2]) < 1e-12
    tilted = points @ points.new_tensor([1.0, 0.3, 0.2]) - 0.05
    assert float(flexicubes.extract(points, tilted, 2)[2]) > 1e-3


class KaolinStandIn:
    """How kaolin 0.18's FlexiCubes is called and answers, drawn by ours: what its adaptor is tested against.

    (NVIDIAGameWorks/kaolin, ops/conversions/flexicubes/flexicubes.py: one vertex more than `resolution`
    along each axis with z fastest, negative inside, raw weights of all cubes, float32 only.)
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device = device

    def __call__(
        self,
        voxelgrid_vertices: Tensor,
        scalar_field: Tensor,
        cube_idx: Tensor,
        resolution: int,
        weight_scale: float = 0.99,
        beta: Tensor | None = None,
        alpha: Tensor | None = None,
        gamma_f: Tensor | None = None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self.device == str(scalar_field.device)
        assert voxelgrid_vertices.dtype == scalar_field.dtype == torch.float32
        assert torch.equal(cube_idx, flexicubes.cube_corners(torch.arange(resolution**3), resolution))
        cubes = flexicubes.surface_cubes(-scalar_field, resolution)
        if not len(cubes):
            return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0)
        weights = None
        if beta is not None and alpha is not None and gamma_f is not None:
            assert (beta.shape, alpha.shape, gamma_f.shape) == (
                (resolution**3, 12),
                (resolution**3, 8),
                (resolution**3,),
            )
            weights = CubeWeights(
                beta=beta[cubes].tanh() * weight_scale + 1,
                alpha=alpha[cubes].tanh() * weight_scale + 1,
                gamma=gamma_f[cubes].sigmoid() * weight_scale + (1 - weight_scale) / 2,
            )
        vertices, faces, deviation = flexicubes.extract(
            voxelgrid_vertices, -scalar_field, resolution, weights=weights, training=training
        )
        # Its faces look where the field grows, and its regulariser is one number a crossing.
        return vertices, faces.flip(1), deviation * torch.tensor([0.5, 1.5])


@pytest.fixture
def kaolin_adaptor(monkeypatch: pytest.MonkeyPatch) -> flexicubes.KaolinSurface:
    """KaolinSurface over the stand-in."""
    for name in ("kaolin", "kaolin.ops", "kaolin.ops.conversions"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["kaolin.ops.conversions"], "FlexiCubes", KaolinStandIn, raising=False)
    return flexicubes.KaolinSurface()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_kaolin_adaptor_says_the_same_in_kaolins_words(
    kaolin_adaptor: flexicubes.KaolinSurface, is_weighted: bool, training: bool, dtype: torch.dtype
) -> None:
    points = flexicubes.grid(8, dtype=dtype)
    sdf = flexicubes.close_border(ring(points) + 0.1 * noise(len(points), 1).to(dtype), 8)
    weights = random_weights(sdf, 8, 2) if is_weighted else None
    ours = flexicubes.extract(points, sdf, 8, weights=weights, training=training)
    theirs = kaolin_adaptor.extract(points, sdf, 8, weights=weights, training=training)
    assert torch.equal(ours[1], theirs[1])
    assert [tensor.dtype for tensor in theirs] == [dtype, torch.int64, dtype]
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[2], theirs[2], atol=1e-5, rtol=0)


def test_the_kaolin_adaptor_takes_no_surface_for_an_answer(
    kaolin_adaptor: flexicubes.KaolinSurface,
) -> None:
    points = flexicubes.grid(4)
    vertices, faces, regularizer = kaolin_adaptor.extract(points, torch.ones(len(points)), 4)
    assert (vertices.shape, faces.shape, float(regularizer)) == ((0, 3), (0, 3), 0)


@pytest.mark.parametrize("column", ["beta", "alpha", "gamma"])
def test_the_kaolin_adaptor_refuses_weights_that_kaolin_cannot_make(
    kaolin_adaptor: flexicubes.KaolinSurface, column: str
) -> None:
    points = flexicubes.grid(4)
    sdf = flexicubes.close_border(ball(0.6)(points), 4)
    weights = random_weights(sdf, 4, 0)
    getattr(weights, column)[0] = 1.6
    with pytest.raises(ValueError, match="kaolin takes"):
        kaolin_adaptor.extract(points, sdf, 4, weights=weights)


@pytest.mark.skipif(flexicubes.KaolinSurface.why_not("cpu") is not None, reason="needs kaolin")
@pytest.mark.parametrize("training", [False, True])
def test_kaolin_agrees_on_every_vertex_and_face(training: bool) -> None:
    points = flexicubes.grid(12)
    for seed in range(5):
        sdf = flexicubes.close_border(noise(len(points), seed), 12)
        weights = random_weights(sdf, 12, seed)
        ours = flexicubes.extract(points, sdf, 12, weights=weights, training=training)
        theirs = flexicubes.KaolinSurface().extract(points, sdf, 12, weights=weights, training=training)
        distance, match = torch.cdist(theirs[0], ours[0], compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert torch.equal(match.sort().values, torch.arange(len(ours[0])))
        assert float(distance.max()) < 1e-5
        assert torch.equal(turned(match[theirs[1]]), turned(ours[1]))
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(flexicubes.KaolinSurface.why_not("cpu") is not None, reason="needs kaolin")
def test_kaolin_draws_a_sphere_outwards_also_without_weights() -> None:
    points = flexicubes.grid(32)
    vertices, faces, _ = flexicubes.KaolinSurface().extract(points, ball(0.7)(points), 32)
    assert is_closed_and_oriented(faces)
    assert euler(vertices, faces) == 2
    assert area_and_volume(vertices, faces)[1] == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)


def test_kaolin_says_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaolin", None)
    assert flexicubes.KaolinSurface.why_not("cpu") == "not installed: run `crm doctor` for the build command"
