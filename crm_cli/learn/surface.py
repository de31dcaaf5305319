"""The reconstruction trained as the paper does it: on pictures of the surface that it extracts.

Views go through the network, its field through FlexiCubes, the mesh through a differentiable renderer, and
what comes out is held against pictures of the true object from other places. (CRM §3.3)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from crm_cli.errors import UsageError
from crm_cli.learn.perceptual import Lpips
from crm_cli.learn.portraits import eyes_of
from crm_cli.learn.render import Eyes, NvdiffrastRenderer, OwnRenderer, Renderer
from crm_cli.learn.samples import sheet
from crm_cli.learn.shell import Shell, find_shell
from crm_cli.learn.tasks import degraded, records_of
from crm_cli.learn.train import Batch, Terms
from crm_cli.mesh.raster import RASTERS, NvdiffrastRaster
from crm_cli.models.reconstruction import PlaneField, Reconstruction, ReconstructionConfig
from crm_cli.records import Triplane
from crm_cli.toolbox import RASTERISER, choose

LPIPS, DEPTH, MASK, REGULAR = 0.1, 0.5, 0.5, 0.005
"""Weights of the loss's terms beside that of colour. (CRM §3.3)"""

VIEWS_A_STEP = 8
"""Pictures of each object that a step looks at, as published."""

BACKGROUND = 0.5
"""Grey behind both pictures, like that of the network's input: an object that is missing is wrong wherever it
is not grey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """How the surface is extracted and looked at."""

    grid: int = 80
    """Cubes along each side; 80 as published."""
    lpips: tuple[Path, ...] = ()
    """Files that hold the perceptual loss's weights; none: it is left out."""
    architecture: str = "small"
    """The embedded network's size and kind, or the published one's: release."""

    @property
    def words(self) -> dict[str, str | int]:
        """What a weights file says of it: names of files, but not where they were."""
        names = ", ".join(file.name for file in self.lpips)
        return {"architecture": self.architecture, "grid": self.grid, "lpips": names}


def check_end_to_end(settings: EndToEnd, *, is_asked: bool) -> EndToEnd | None:
    """The settings, or None where nobody asked for them; UsageError where they would be passed over."""
    if is_asked:
        return settings
    if settings != EndToEnd():
        raise UsageError(
            "--grid, --lpips, --architecture: only what is trained on its surface has them",
            code="E_TRAIN_SURFACE",
            remedy="add --end-to-end, or leave them out",
        )
    return None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shown:
    """K pictures of one object at S px, as they are compared.

    rgb [K 3 S S] on BACKGROUND; mask [K S S]; toward [K S S], the coordinate towards the viewer of what pixel
    centres show; is_solid bool [K S S], where there is such a thing.
    """

    rgb: Tensor
    mask: Tensor
    toward: Tensor
    is_solid: Tensor


class SurfaceTask:
    """Six views with coordinate maps → a mesh that looks right from everywhere.

    A batch holds what `tasks` says, and the portraits of its objects.
    """

    name = "reconstruction"

    def __init__(
        self,
        config: ReconstructionConfig,
        settings: EndToEnd,
        *,
        renderer: Renderer | None = None,
        device: str = "cpu",
    ) -> None:
        """renderer: what draws the mesh; None: see `open_renderer`."""
        self.network: nn.Module = Reconstruction(config)
        self._config = config
        self._grid = settings.grid
        self._renderer = renderer or open_renderer(device)
        self._lpips = Lpips.read(settings.lpips, device=device) if settings.lpips else None

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """MSE + 0.1 LPIPS on colour, 0.5 MSE on depth and on coverage, 0.005 of mesh regularity."""
        fields = self._fields(batch, random)
        # Distances have to be told apart to a thousandth, which half the bits cannot.
        with torch.autocast(random.device.type, enabled=False):
            found = [
                self._compare(
                    field, {name: array[index] for name, array in batch.items() if name in SEEN}, random
                )
                for index, field in enumerate(fields)
            ]
        terms = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        loss = terms["colour"] + DEPTH * terms["depth"] + MASK * terms["mask"] + REGULAR * terms["irregular"]
        if "lpips" in terms:
            loss = loss + LPIPS * terms["lpips"]
        return loss, terms

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Each object as drawn, and as it is below that, from half of its portraits' places: [3 H W]."""
        rows = []
        for index, field in enumerate(self._fields(batch, random)):
            rgba = batch["portrait"][index, ::2].float() / 255
            eyes = eyes_of(batch["eye_axes"][index, ::2], batch["eye_distance"][index, ::2])
            shell = find_shell(field, self._grid, random)
            drawn = show(field, shell, eyes, self._renderer, size_px=rgba.shape[-1])
            rows += [[*pictures] for pictures in (drawn.rgb, _on_background(rgba))]
        return sheet(rows).clamp(0, 1)

    def _fields(self, batch: Batch, random: torch.Generator) -> list[PlaneField]:
        """What the network makes of the views, with noise on its input; in single precision from here on."""
        views, depth = batch["views"].float() / 255, batch["depth"].float()
        if self._config.from_hull:
            fields = self.network.fields(degraded(views, depth, random))  # type: ignore[operator]
        else:
            seeds = torch.randint(2**62, (len(views),), generator=random, device=random.device).tolist()
            noise = [torch.Generator().manual_seed(seed) for seed in seeds]
            fields = self.network.fields(records_of(views, depth), generators=noise)  # type: ignore[operator]
        return [replace(field, triplane=Triplane(planes=field.triplane.planes.float())) for field in fields]

    def _compare(self, field: PlaneField, truth: Batch, random: torch.Generator) -> dict[str, Tensor]:
        """Hold one object against some of its portraits."""
        count = len(truth["portrait"])
        some = torch.randperm(count, generator=random, device=random.device)[:VIEWS_A_STEP]
        rgba = truth["portrait"][some].float() / 255
        toward = truth["portrait_toward"][some]
        wanted = Shown(rgb=_on_background(rgba), mask=rgba[:, 3], toward=toward, is_solid=toward != 0)
        shell = find_shell(field, self._grid, random)
        eyes = eyes_of(truth["eye_axes"][some], truth["eye_distance"][some])
        shown = show(field, shell, eyes, self._renderer, size_px=rgba.shape[-1])
        both = shown.is_solid & wanted.is_solid
        terms = {
            "colour": functional.mse_loss(shown.rgb, wanted.rgb),
            "depth": ((shown.toward - wanted.toward).square() * both).mean(),
            "mask": functional.mse_loss(shown.mask, wanted.mask),
            "irregular": shell.irregularity,
            "iou": _overlap(shown.mask, wanted.mask),
        }
        if self._lpips is not None:
            terms["lpips"] = self._lpips.distance(2 * shown.rgb - 1, 2 * wanted.rgb - 1).mean()
        return terms


def open_renderer(device: str) -> Renderer:
    """The package's own renderer over the rasteriser that the environment names; nvdiffrast by that name."""
    raster = choose("rasteriser", RASTERS, device, os.environ.get(RASTERISER, "auto"))
    return NvdiffrastRenderer() if raster is NvdiffrastRaster else OwnRenderer(raster())


SEEN = frozenset({"portrait", "portrait_toward", "eye_axes", "eye_distance"})
"""What of a batch the surface is held against."""


def show(field: PlaneField, shell: Shell, eyes: Eyes, renderer: Renderer, *, size_px: int) -> Shown:
    """Draw a field's surface in its own colours, asked at the very places that the pixels show."""
    placed = eyes.place(shell.vertices, size_px)
    drawing = renderer.draw(placed, shell.faces, size_px=size_px)
    places = drawing.interpolate(shell.vertices, shell.faces)  # [K S S 3]
    hit = drawing.covered.view(-1).nonzero()[:, 0]
    # Also where nothing is hit: every parameter then has a gradient, as several processes expect it.
    colours = field.colour(places.view(-1, 3).index_select(0, hit))
    painted = places.new_zeros(drawing.face.numel(), 4)
    painted = painted.index_copy(0, hit, functional.pad(colours, (0, 1), value=1.0))
    rgba = renderer.smooth(painted.view(*drawing.face.shape, 4), drawing, placed, shell.faces)
    rgba = rgba.permute(0, 3, 1, 2)
    return Shown(
        rgb=_on_background(rgba),
        mask=rgba[:, 3],
        toward=(places * eyes.axes[:, 2, None, None]).sum(-1),
        is_solid=drawing.covered,
    )


def _on_background(rgba: Tensor) -> Tensor:
    """Lay colours over black [K 4 S S] on grey: [K 3 S S]."""
    return rgba[:, :3] + BACKGROUND * (1 - rgba[:, 3:])


def _overlap(mask: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of outlines [K S S], to be watched."""
    with torch.no_grad():
        one, other = mask > 0.5, wanted > 0.5
        return (one & other).sum() / (one | other).sum().clamp_min(1)
