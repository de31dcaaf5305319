"""Six views become a shape: roll-out, convolutional U-Net, triplane, small heads (CRM §3.2).

Two sizes share one class. The published one (RELEASE) reads everything from a summed triplane. The
embedded one (SMALL) corrects what the views say by themselves: its signed distance is the depth hull
plus a learned residual, its colour a blend of the views plus a learned residual, and both residuals
start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from crm_cli.frame import PLANES, ROLL_OUT, VIEWS, Plane, View
from crm_cli.models.field import in_chunks
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.hull import Hull, blend
from crm_cli.models.unet import ReconstructionUNet, UNetConfig
from crm_cli.records import SixViews, Triplane

NOISE_STEP = 20
"""Timestep the published network was trained to see, and that of its input noise."""

NOISE_KEEP, NOISE_ADD = 0.9906131, 0.1366956
"""√ā and √(1 − ā) at NOISE_STEP of the plain schedule (√β evenly spaced from √0.00085 to √0.012)."""

SPHERE_RADIUS = 0.5
"""The published network learns a correction to the signed distance of this sphere."""

WEIGHT_SCALE = 0.1
"""Of the published weight head's answer before it is squashed."""

MAX_DOUBT = 0.5
"""World units by which the embedded network may overrule one view, enough to undo a wrong silhouette."""

RESIDUAL_SCALE = 0.1
"""World units for each unit of the embedded network's distance residual, so that it starts gently."""

GAP_SCALES = 0.05, 0.25
"""World units at which a gap saturates as an input: one for the surface nearby, one for the shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionConfig:
    """Size and kind of a Reconstruction."""

    unet: UNetConfig
    plane_px: int
    """R: the U-Net sees pictures of R × 3R."""
    learned_channels: int
    head_width: int
    from_hull: bool
    """Whether the heads correct the six views' own depth hull and colours."""
    max_offset: float = 0.0
    """How far the network may move a grid vertex, in world units."""


RELEASE = ReconstructionConfig(
    unet=UNetConfig(
        in_channels=32, out_channels=32, widths=(64, 128, 128, 256, 256, 512, 512), attention=(3, 4, 5)
    ),
    plane_px=256,
    learned_channels=20,
    head_width=512,
    from_hull=False,
    max_offset=0.5 / 80,
)

MINI = replace(
    RELEASE,
    unet=UNetConfig(in_channels=16, out_channels=8, widths=(8, 16, 16), attention=(1,), groups=8),
    plane_px=64,
    learned_channels=4,
    head_width=16,
)
"""RELEASE's structure at no cost, for tests."""

SMALL = ReconstructionConfig(
    unet=UNetConfig(in_channels=18, out_channels=12, widths=(16, 32, 48), layers=1, groups=8),
    plane_px=64,
    learned_channels=4,
    head_width=64,
    from_hull=True,
)

TINY = ReconstructionConfig(
    unet=UNetConfig(in_channels=16, out_channels=4, widths=(8, 16), layers=1, groups=4),
    plane_px=16,
    learned_channels=2,
    head_width=16,
    from_hull=True,
)


def roll_out(views: Tensor) -> Tensor:
    """Lay six views on the three planes, as the U-Net reads them.

    views: [... 6 C S S], order of frame.VIEWS. Returns [... 2C S 3S]: the first C channels hold bottom,
    right and front on the planes xy, yz, zx from left to right; the rest the far sides. Column and row
    of each plane grow with its two world coordinates. (thu-ml/CRM, inference.py)
    """
    return torch.cat(
        [
            torch.cat(
                [
                    _lay(views[..., view, :, :, :], VIEWS[view], plane)
                    for view, plane in zip(group, PLANES, strict=True)
                ],
                -1,
            )
            for group in ROLL_OUT
        ],
        -3,
    )


def _lay(picture: Tensor, view: View, plane: Plane) -> Tensor:
    """Turn a view's picture [... S S] so that column and row grow with the plane's world axes."""
    if view.right[plane.column] == 0:
        picture = picture.mT
        along_column, along_row = -view.up[plane.column], view.right[plane.row]
    else:
        along_column, along_row = view.right[plane.column], -view.up[plane.row]
    flipped = [axis for axis, direction in ((-1, along_column), (-2, along_row)) if direction < 0]
    return picture.flip(flipped)


def network_input(views: SixViews, plane_px: int) -> Tensor:
    """Rolled-out views [12 R 3R]: colours of both sides, then maps of both sides.

    The maps' channels are reversed to Z, Y, X, and on each plane only the coordinate across it is
    kept; the published network was trained so.
    """
    rgb, ccm = (_resize(pictures, plane_px) for pictures in (views.rgb, views.ccm))
    across = torch.zeros(3, len(PLANES))
    for place, plane in enumerate(PLANES):
        across[2 - (3 - plane.column - plane.row), place] = 1
    kept = across.repeat(2, 1).repeat_interleave(plane_px, 1)[:, None].to(ccm)  # [6 1 3R]
    return torch.cat((roll_out(rgb), roll_out(ccm.flip(1)) * kept))


def _resize(pictures: Tensor, size_px: int) -> Tensor:
    if pictures.shape[-1] == size_px:
        return pictures
    mode = "area" if pictures.shape[-1] > size_px else "bilinear"
    return F.interpolate(pictures, (size_px, size_px), mode=mode)


def add_input_noise(x: Tensor, generators: Sequence[Generator | None]) -> Tensor:
    """Noise the published network expects on its input [B 12 R 3R]; its mean where there is no generator.

    Drawn on the CPU, one generator an object, so that neither device nor batch changes it.
    """
    shape = x.shape[1:]
    noise = [torch.zeros(shape) if g is None else torch.randn(shape, generator=g) for g in generators]
    return NOISE_KEEP * x + NOISE_ADD * (0.5 * torch.stack(noise).to(x) + 0.5)


def sample(triplane: Triplane, points: Tensor) -> Tensor:
    """Features [3 C N] of points [N 3] on each plane, bilinear, constant beyond the corners."""
    axes = torch.tensor([(plane.column, plane.row) for plane in PLANES], device=points.device)
    places = points.T[axes]  # [3 2 N]
    sampled = F.grid_sample(
        triplane.planes, places.mT[:, None], align_corners=True, padding_mode="border"
    )  # [3 C 1 N]
    return sampled[:, :, 0]


class Reconstruction(nn.Module):
    """From six views to a field. Parameter names are the published checkpoint's."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet2 = _PlaneNetwork(config)
        width = config.head_width
        if config.from_hull:
            raw = config.unet.in_channels - config.learned_channels
            features = len(PLANES) * (config.unet.out_channels + raw) + len(GAP_SCALES) * (len(VIEWS) + 2)
            self.sdfMlp = _Head(features, width, 1 + len(VIEWS))
            self.rgbMlp = _Head(features, width, 3 + len(VIEWS))
            for head in (self.sdfMlp, self.rgbMlp):
                nn.init.zeros_(head.fc3.weight)
                nn.init.zeros_(head.fc3.bias)
        else:
            features = config.unet.out_channels
            self.sdfMlp = _Head(features, width, 1 + 3)
            self.rgbMlp = _Head(features, width, 3)
            self.weightMlp = nn.Sequential(nn.Linear(8 * features, width), nn.SiLU(), nn.Linear(width, 21))

    def field(self, views: SixViews, *, generator: Generator | None = None) -> PlaneField:
        """Reconstruct one object; see `fields`."""
        return self.fields([views], generators=[generator])[0]

    def fields(
        self, views: Sequence[SixViews], *, generators: Sequence[Generator | None] | None = None
    ) -> list[PlaneField]:
        """Reconstruct objects with one pass of the U-Net.

        generators: one an object, for the published network's input noise. Differentiable in the
        parameters. Views may have any size; the U-Net sees them at R pixels, the hull as they are.
        """
        config = self.config
        place = self.unet2.learned_plane
        x = torch.stack([network_input(one, config.plane_px) for one in views]).to(place)  # [B 12 R 3R]
        if config.from_hull:
            alpha = torch.stack([roll_out(_resize(one.alpha, config.plane_px)) for one in views]).to(place)
            x = torch.cat((x, alpha), 1)  # [B 14 R 3R]
        else:
            x = add_input_noise(x, generators or [None] * len(views))
        planes = self.unet2(x)
        if config.from_hull:
            planes = torch.cat((planes, x), 1)
        planes = torch.stack(planes.chunk(len(PLANES), 3), 1)  # [B 3 C R R]
        hulls = [Hull(one) if config.from_hull else None for one in views]
        return [
            PlaneField(self, Triplane(planes=plane), hull) for plane, hull in zip(planes, hulls, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class PlaneField:
    """A reconstructed shape: its triplane, the heads that read it, and the hull they correct."""

    model: Reconstruction
    triplane: Triplane
    hull: Hull | None
    chunk: int | None = None
    """Points asked at once; None: as many as suit the device."""

    @property
    def device(self) -> torch.device:
        """Where its points are to be."""
        return self.triplane.planes.device

    @property
    def has_hull(self) -> bool:
        """Whether views colour it; the published network paints by itself."""
        return self.hull is not None

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N], negative inside, and the grid's deformation [N 3]."""
        answers = in_chunks(self._geometry, points, self.chunk)
        return answers[:, 0], answers[:, 1:]

    def seen_as(self, views: SixViews, *, trust: Tensor) -> PlaneField:
        """The same shape, painted by these views, some trusted more than others; see Hull.

        The published network paints by itself and is left as it is.
        """
        return self if self.hull is None else replace(self, hull=Hull(views, trust=trust))

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        """Weights of cubes with undeformed corners [M 8 3]; the embedded network leaves them neutral."""
        return None if self.hull is not None else CubeWeights.from_raw(self.raw_weights(corners))

    def raw_weights(self, corners: Tensor) -> Tensor:
        """What the published network says of cubes with undeformed corners [M 8 3]: [M 21], not squashed."""
        return WEIGHT_SCALE * in_chunks(self._raw_weights, corners, self.chunk, each=corners.shape[1])

    def colour(self, points: Tensor) -> Tensor:
        """Colours [N 3] in [0, 1]."""
        return in_chunks(self._colour, points, self.chunk)

    def _features(self, points: Tensor, gaps: Tensor | None = None) -> Tensor:
        """What the heads read, [N features]. gaps: [6 N], of the hull where there is one."""
        planes = sample(self.triplane, points)
        if gaps is None:
            return planes.sum(0).T
        smooth = GAP_SCALES[0] * (gaps / GAP_SCALES[0]).logsumexp(0, keepdim=True)
        gaps = torch.cat((gaps, gaps.amax(0, keepdim=True), smooth))
        return torch.cat((*planes, *((gaps / scale).tanh() for scale in GAP_SCALES))).T

    def _raw_weights(self, corners: Tensor) -> Tensor:
        """What the weight head answers about cubes, [M 21]; all 8 corners are one row of features."""
        features = self._features(corners.flatten(0, 1)).reshape(len(corners), -1)
        answer: Tensor = self.model.weightMlp(features)
        return answer

    def _geometry(self, points: Tensor) -> Tensor:
        gaps = None if self.hull is None else self.hull.gaps(points)
        raw = self.model.sdfMlp(self._features(points, gaps))
        if gaps is None:
            # The published network is positive inside; from here on distances are negative inside.
            sdf = points.norm(dim=1, keepdim=True) - (raw[:, :1] + SPHERE_RADIUS)
            return torch.cat((sdf, self.model.config.max_offset * raw[:, 1:].tanh()), 1)
        residual, doubt = raw.T.contiguous().split((1, len(VIEWS)))
        sdf = (gaps - MAX_DOUBT * doubt.tanh()).amax(0) + RESIDUAL_SCALE * residual[0]
        return F.pad(sdf[:, None], (0, 3))

    def _colour(self, points: Tensor) -> Tensor:
        if self.hull is None:
            colour: Tensor = ((self.model.rgbMlp(self._features(points)) + 1) / 2).clamp(0, 1)
            return colour
        seen = self.hull.look(points)
        raw = self.model.rgbMlp(self._features(points, seen.gaps))
        residual, opinion = raw.T.contiguous().split((3, len(VIEWS)))
        mixed = blend(seen.colours, seen.log_weights + opinion)
        # Towards white or black by a share of the room left: stays in range without a dead gradient.
        share = residual.tanh() / 2
        return (mixed + torch.where(share > 0, share * (1 - mixed), share * mixed)).T


class _PlaneNetwork(nn.Module):
    """The U-Net and the learned channels beside its input."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        shape = (1, config.learned_channels, config.plane_px, len(PLANES) * config.plane_px)
        self.learned_plane = nn.Parameter(torch.zeros(shape))
        self.unet = ReconstructionUNet(config.unet)

    def forward(self, x: Tensor) -> Tensor:
        learned = self.learned_plane.expand(len(x), -1, -1, -1)
        result: Tensor = self.unet(torch.cat((x, learned), 1), NOISE_STEP)
        return result


class _Head(nn.Module):
    """Three layers from features to an answer."""

    def __init__(self, in_width: int, width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.fc3(self.fc2(self.fc1(features).relu_()).relu_())
        return result
