"""Pictures that move with their mesh: what they show, and how that changes, has a known answer."""

import importlib.util
import math

import nvdiffrast_stand_in
import pytest
import torch
from torch import Tensor

from crm_cli.learn.render import Drawing, Eyes, NvdiffrastRenderer, OwnRenderer, _clip_space, _depth
from crm_cli.learn.silhouettes import find_crossings
from crm_cli.mesh.raster import TorchRaster, WarpRaster
from crm_cli.models import flexicubes

SIZE = 32


def eyes(*, turns: int = 1, distance: float = 3.0, dtype: torch.dtype = torch.float64) -> Eyes:
    """Viewers around the object, somewhat above, the first in front."""
    frames = []
    for turn in range(turns):
        angle = 2 * math.pi * turn / turns
        out = torch.tensor([math.sin(angle), math.cos(angle), 0.3], dtype=dtype)
        toward = out / out.norm()
        right = torch.linalg.cross(torch.tensor([0, 0, 1], dtype=dtype), toward)
        right = right / right.norm()
        frames.append(torch.stack((right, torch.linalg.cross(toward, right), toward)))
    return Eyes(
        axes=torch.stack(frames),
        distance=torch.full((turns,), distance, dtype=dtype),
        zoom=torch.full((turns,), 2.5, dtype=dtype),
    )


def flat(*corners: tuple[float, float], nearness: float = 0.5) -> Tensor:
    """Places on one picture of points that are all equally near: [1 V 3]."""
    return torch.tensor([[*corner, nearness] for corner in corners], dtype=torch.float64)[None]


def masks(placed: Tensor, faces: Tensor, *, size_px: int = SIZE) -> Tensor:
    renderer = OwnRenderer(TorchRaster())
    drawing = renderer.draw(placed, faces, size_px=size_px)
    return renderer.smooth(drawing.covered[..., None].to(placed), drawing, placed, faces)[..., 0]


def area(placed: Tensor) -> Tensor:
    (ax, ay), (bx, by), (cx, cy) = placed[0, :, :2]
    return ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)).abs() / 2


def ball(resolution: int = 12, *, radius: float = 0.7) -> tuple[Tensor, Tensor]:
    points = flexicubes.grid(resolution, dtype=torch.float64)
    vertices, faces, _ = flexicubes.extract(points, points.norm(dim=1) - radius, resolution)
    return vertices, faces


TRIANGLE = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.49995, 0.5, 0.50005, 0.77])
def test_an_upright_square_covers_just_what_it_covers(shift: float) -> None:
    corners = flat((6 + shift, 7.25), (20 + shift, 7.25), (20 + shift, 18.5), (6 + shift, 18.5))
    shown = masks(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))[0]
    column, row = torch.arange(SIZE).double(), torch.arange(SIZE).double()
    across = ((column + 1).clamp(max=20 + shift) - column.clamp(min=6 + shift)).clamp(0, 1)
    down = ((row + 1).clamp(max=18.5) - row.clamp(min=7.25)).clamp(0, 1)
    inner = (slice(9, 17), slice(8, 19))  # corners of the square are no straight edge
    torch.testing.assert_close(shown[inner[0]], across.expand(8, -1), atol=1e-3, rtol=0)
    torch.testing.assert_close(shown[:, inner[1]], down[:, None].expand(-1, 11), atol=1e-3, rtol=0)


def test_a_triangle_covers_its_area_and_its_gradient_is_that_of_the_area() -> None:
    random = torch.Generator().manual_seed(0)
    shown, wanted, slopes, wanted_slopes = [], [], [], []
    for _ in range(40):
        angles = torch.tensor([0.3, 2.4, 4.5]) + torch.rand(3, generator=random)
        middle = 16 + torch.rand(2, generator=random)
        corners = middle + 13 * torch.stack((angles.cos(), angles.sin()), 1)
        placed = torch.cat((corners, torch.full((3, 1), 0.5)), 1)[None].double().requires_grad_()
        covered, exact = masks(placed, TRIANGLE).sum(), area(placed)
        shown.append(covered.item())
        wanted.append(exact.item())
        slopes.append(torch.autograd.grad(covered, placed)[0][0, :, :2])
        wanted_slopes.append(torch.autograd.grad(exact, placed)[0][0, :, :2])
    error = torch.tensor(shown) - torch.tensor(wanted)
    assert error.abs().max() < 2  # of about 200 px²
    assert error.mean().abs() < 0.4  # corners are blunted
    slope_error = torch.stack(slopes) - torch.stack(wanted_slopes)
    # A corner is sharper than pixels can tell: it pulls as if it ended about half a pixel earlier.
    assert slope_error.square().mean().sqrt() < 0.1 * torch.stack(wanted_slopes).square().mean().sqrt()
    assert slope_error.mean(0).abs().max() < 0.1 * torch.stack(wanted_slopes).mean(0).abs().max()


def test_the_picture_changes_as_its_gradient_says() -> None:
    placed = flat((4.3, 6.1), (27.2, 9.4), (13.9, 26.8))
    values = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    moved = placed.clone().requires_grad_()
    (masks(moved, TRIANGLE) * values).sum().backward()
    assert moved.grad is not None
    step = 1e-4  # below what moves a corner over a centre line here
    for corner in range(3):
        for axis in range(2):
            ends = []
            for sign in (1, -1):
                there = placed.clone()
                there[0, corner, axis] += sign * step
                ends.append((masks(there, TRIANGLE) * values).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(moved.grad[0, corner, axis], slope, atol=1e-6, rtol=1e-6)


def test_a_ball_grows_as_its_disc_does() -> None:
    vertices, faces = ball(24)
    viewers = eyes(turns=3)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    covered = masks(viewers.place(vertices * scale, 64), faces, size_px=64).sum((1, 2))
    # A sphere of radius r at distance d fills a cone whose half angle has the sine r / d.
    tangent = 0.7 / math.sqrt(9 - 0.49)
    disc = math.pi * (32 * 2.5 * tangent) ** 2
    torch.testing.assert_close(covered, torch.full_like(covered, disc), rtol=0.01, atol=0)
    (slope,) = torch.autograd.grad(covered.sum(), scale)
    # tan² = r² / (d² − r²) grows by 2 d² / (d² − r²) of itself for each unit of relative growth.
    assert slope.item() == pytest.approx(3 * disc * 2 * 9 / (9 - 0.49), rel=0.04)


def test_what_is_hidden_neither_shows_nor_pulls() -> None:
    behind = flat((10.2, 10.1), (22.6, 11.3), (14.4, 21.7), nearness=0.3)
    before = flat((2.0, 2.0), (30.0, 3.0), (16.0, 60.0), nearness=0.6)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    placed = torch.cat((behind, before), 1).requires_grad_()
    renderer = OwnRenderer(TorchRaster())
    drawing = renderer.draw(placed, faces, size_px=SIZE)
    painted = drawing.interpolate(torch.tensor([[1.0], [1], [1], [5], [5], [5]]).double(), faces)
    renderer.smooth(painted, drawing, placed, faces).square().sum().backward()
    assert placed.grad is not None
    assert not placed.grad[0, :3].any()
    assert placed.grad[0, 3:].any()


def test_a_face_before_another_is_blended_with_what_lies_behind() -> None:
    behind = flat((-20.0, -20.0), (90.0, -20.0), (-20.0, 90.0), nearness=0.3)
    before = flat((8.25, 4.0), (24.5, 4.0), (24.5, 28.0), (8.25, 28.0), nearness=0.6)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [3, 5, 6]])
    placed = torch.cat((behind, before), 1)
    renderer = OwnRenderer(TorchRaster())
    drawing = renderer.draw(placed, faces, size_px=SIZE)
    painted = drawing.interpolate(torch.tensor([[1.0]] * 3 + [[5.0]] * 4).double(), faces)
    row = renderer.smooth(painted, drawing, placed, faces)[0, 16, :, 0]
    # Three quarters of pixel 8 are covered, a half of pixel 24.
    torch.testing.assert_close(row[7:10], torch.tensor([1.0, 4.0, 5.0]).double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(row[23:26], torch.tensor([5.0, 3.0, 1.0]).double(), atol=2e-3, rtol=0)


def test_silhouettes_of_a_closed_mesh_are_found_however_small_its_faces() -> None:
    vertices, faces = ball(40)  # about two faces for each pixel
    placed = eyes().place(vertices, 24)
    renderer = OwnRenderer(TorchRaster())
    drawing = renderer.draw(placed, faces, size_px=24)
    nearness = 1 / drawing.interpolate(1 / placed[..., 2:], faces)[..., 0]
    found = find_crossings(placed, faces, nearness, is_empty=~drawing.covered)
    covered = drawing.covered[0]
    sides = (covered[1:] != covered[:-1]).sum() + (covered[:, 1:] != covered[:, :-1]).sum()
    # Steep edges are crossed by rows alone and level ones by columns alone: about 1/√2 of all borders.
    assert 0.6 * sides < len(found.way) < 0.85 * sides
    assert ((found.way > -1e-3) & (found.way < 1 + 1e-3)).all()
    pairs = torch.stack((found.near, found.far), 1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_weights_on_a_face_are_those_of_the_place_that_a_pixel_sees() -> None:
    vertices = torch.tensor([[-0.6, 0.5, -0.4], [0.7, -0.2, -0.3], [0.0, -0.6, 0.7]], dtype=torch.float64)
    viewers = eyes(turns=2)
    placed = viewers.place(vertices, SIZE)
    drawing = OwnRenderer(TorchRaster()).draw(placed, TRIANGLE, size_px=SIZE)
    assert drawing.covered.flatten(1).sum(1).min() > 30
    places = drawing.interpolate(vertices, TRIANGLE)
    again = viewers.place(places.view(2 * SIZE * SIZE, 3), SIZE).view(2, 2, SIZE, SIZE, 3)
    centres = torch.arange(SIZE).double() + 0.5
    for view in range(2):
        seen = drawing.covered[view]
        wanted = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)[seen]
        torch.testing.assert_close(again[view, view][seen][:, :2], wanted)
        assert not places[view][~seen].any()


def test_what_pixels_see_moves_with_the_corners() -> None:
    vertices = torch.tensor([[-0.6, 0.5, -0.4], [0.7, -0.2, -0.3], [0.0, -0.6, 0.7]], dtype=torch.float64)
    viewers = eyes()
    renderer = OwnRenderer(TorchRaster())
    inner = renderer.draw(viewers.place(vertices, 8), TRIANGLE, size_px=8).covered[0]

    def seen(corners: Tensor) -> Tensor:
        drawing = renderer.draw(viewers.place(corners, 8), TRIANGLE, size_px=8)
        assert torch.equal(drawing.covered[0], inner), "a step moved the outline over a centre"
        return drawing.interpolate(corners, TRIANGLE)[0][inner]

    assert torch.autograd.gradcheck(seen, vertices.requires_grad_(), eps=1e-6)


def test_each_picture_may_have_attributes_of_its_own() -> None:
    vertices, faces = ball()
    placed = eyes(turns=3).place(vertices, 16)
    drawing = OwnRenderer(TorchRaster()).draw(placed, faces, size_px=16)
    joint = drawing.interpolate(placed, faces)
    for view in range(3):
        alone = Drawing(face=drawing.face[view, None], barycentric=drawing.barycentric[view, None])
        torch.testing.assert_close(joint[view, None], alone.interpolate(placed[view], faces))


def test_a_face_seen_edge_on_does_not_fly_away() -> None:
    sliver = 1 / 4096  # the least that a rasteriser tells apart: gradients would be some thousands
    placed = flat((12.0, 4.5 - sliver), (20.0, 4.5 - sliver), (16.0, 4.5 + sliver)).requires_grad_()
    drawing = OwnRenderer(TorchRaster()).draw(placed, TRIANGLE, size_px=SIZE)
    assert drawing.covered.sum() > 1
    weights = drawing.barycentric[drawing.covered]
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)).double())
    drawing.interpolate(torch.eye(3).double(), TRIANGLE).square().sum().backward()
    assert placed.grad is not None and placed.grad.abs().max() < 100


def test_nothing_is_drawn_of_no_faces() -> None:
    placed = torch.zeros(2, 0, 3)
    faces = torch.zeros(0, 3, dtype=torch.int64)
    renderer = OwnRenderer(TorchRaster())
    drawing = renderer.draw(placed, faces, size_px=8)
    assert not drawing.covered.any()
    pictures = torch.rand(2, 8, 8, 3)
    assert torch.equal(renderer.smooth(pictures, drawing, placed, faces), pictures)


def test_nvdiffrast_is_told_places_that_project_to_ours() -> None:
    placed = torch.tensor([[[3.0, 5.0, 1 / 2.5], [0.0, 0.0, 1 / 4.0], [16.0, 8.0, 1 / 1.5]]])
    clip = _clip_space(placed, 16)
    on_screen = clip[..., :3] / clip[..., 3:]
    torch.testing.assert_close((on_screen[..., :2] + 1) * 8, placed[..., :2])
    torch.testing.assert_close(1 / clip[..., 3], placed[..., 2])
    # Nearer is smaller, within the clip planes.
    z = on_screen[0, :, 2]
    assert z[2] < z[0] < z[1] and z.abs().max() < 1
    torch.testing.assert_close(z, _depth(placed[0, :, 2]))


@pytest.fixture
def nvdiffrast_renderer(monkeypatch: pytest.MonkeyPatch) -> NvdiffrastRenderer:
    """Our adaptor around a stand-in that draws image by image, and whose antialias keeps what it got."""
    nvdiffrast_stand_in.put_in_place(monkeypatch)
    library = NvdiffrastRenderer()

    class Several:
        RasterizeCudaContext = staticmethod(nvdiffrast_stand_in.RasterizeCudaContext)
        got: tuple[Tensor, ...] = ()

        @staticmethod
        def rasterize(glctx: object, pos: Tensor, tri: Tensor, **rest: object) -> tuple[Tensor, None]:
            drawn = [nvdiffrast_stand_in.rasterize(glctx, one[None], tri, **rest)[0] for one in pos.detach()]
            return torch.cat(drawn), None

        def antialias(self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
            assert color.is_contiguous() and rast.shape == (*color.shape[:3], 4)
            assert rast.dtype == pos.dtype == torch.float32 and tri.dtype == torch.int32
            self.got = (color, rast, pos, tri)
            return color

    library._library = Several()
    return library


def test_the_nvdiffrast_adaptor_draws_what_ours_draws(nvdiffrast_renderer: NvdiffrastRenderer) -> None:
    vertices, faces = ball(6)
    vertices = vertices.float()
    viewers = eyes(turns=2, dtype=torch.float32)
    placed = viewers.place(vertices, SIZE)
    theirs, ours = (
        renderer.draw(placed, faces, size_px=SIZE)
        for renderer in (nvdiffrast_renderer, OwnRenderer(WarpRaster()))
    )
    same = theirs.face == ours.face
    assert same.float().mean() > 0.98, "but for centres on edges, which it rounds more coarsely"
    torch.testing.assert_close(theirs.barycentric[same], ours.barycentric[same], atol=0.02, rtol=0)

    pictures = theirs.interpolate(vertices, faces)
    assert torch.equal(nvdiffrast_renderer.smooth(pictures, theirs, placed, faces), pictures)
    _, rast, pos, tri = nvdiffrast_renderer._library.got
    again = torch.cat(
        [
            nvdiffrast_stand_in.rasterize(
                nvdiffrast_stand_in.RasterizeCudaContext(), one[None], tri, resolution=[SIZE, SIZE]
            )[0]
            for one in pos
        ]
    )
    # It is told of the drawing what it had drawn.
    torch.testing.assert_close(rast, again, atol=1e-4, rtol=0)


@pytest.mark.skipif(
    not torch.accelerator.is_available() or importlib.util.find_spec("nvdiffrast") is None,
    reason="needs CUDA and nvdiffrast",
)
def test_nvdiffrast_draws_and_pulls_as_our_renderer() -> None:
    vertices, faces = (tensor.cuda() for tensor in ball(16))
    viewers = eyes(turns=4, dtype=torch.float32)
    viewers = Eyes(axes=viewers.axes.cuda(), distance=viewers.distance.cuda(), zoom=viewers.zoom.cuda())
    pictures, slopes = [], []
    for renderer in (OwnRenderer(WarpRaster()), NvdiffrastRenderer()):
        moved = vertices.float().requires_grad_()
        placed = viewers.place(moved, 128)
        drawing = renderer.draw(placed, faces, size_px=128)
        colours = drawing.interpolate(moved, faces)
        shown = renderer.smooth(colours, drawing, placed, faces)
        shown.square().sum().backward()
        pictures.append(shown.detach())
        slopes.append(moved.grad)
    assert (pictures[0] - pictures[1]).abs().mean() < 2e-3
    assert torch.nn.functional.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) > 0.9
