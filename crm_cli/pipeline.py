"""One photo's way to an asset: the stations, in the order of the paper's overview figure.

    Prepare      photo → cut-out                              CPU
    Imagine      cut-outs → six views → six coordinate maps   accelerator
    Reconstruct  views → triplane → FlexiCubes surface        accelerator
    Unwrap       clean, decimate, charts                      CPU
    Bake         colour field → texture                       accelerator
    Deliver      files, previews, checks                      CPU

Records in, records out. A station is opened once per worker and called with a batch where a network can
use one; randomness comes from the photo's digest, so that neither neighbours nor order change a result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from crm_cli import __version__, cache
from crm_cli.errors import PhotoError
from crm_cli.fragments import Raster, project
from crm_cli.frame import FRONT, VIEWS
from crm_cli.models import agree
from crm_cli.models.cost import forecast_s
from crm_cli.models.field import Field, surface
from crm_cli.models.imagine import open_imagination
from crm_cli.models.reconstruction import PlaneField, Reconstruction
from crm_cli.models.sampler import Progress, dice, ignore
from crm_cli.preset import EMBEDDED, Preset
from crm_cli.records import (
    Asset,
    Checks,
    Cutout,
    Job,
    Mesh,
    Photo,
    SixViews,
    TexturedMesh,
    UnwrappedMesh,
    WrittenFile,
)
from crm_cli.toolbox import Toolbox, open_toolbox

if TYPE_CHECKING:
    from PIL.Image import Image

SILHOUETTE_PX = 128
"""Outlines are compared at half the size the surface is cut from, so that noise on edges does not count."""


FRUGAL_CHUNK = 1 << 13
"""Points asked at once where memory has run out: 16 MiB for each hidden layer of 512."""

PHOTO_TRUST = 3.0
"""Logarithmic weight of the photo's colours over imagined ones: it paints all it sees at up to 75 degrees."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Surface:
    """A surface, the field that colours it, and whether it can be trusted."""

    mesh: Mesh
    field: Field
    confidence: Literal["ok", "low"]
    warnings: tuple[str, ...] = ()


class Prepare:
    """Photo → cut-out."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._mattes = toolbox.mattes
        self._preset = preset

    def read(self, job: Job) -> Photo:
        """Read one photo."""
        from crm_cli.models.photo import read_photo

        return read_photo(job.root / job.path, path=job.path, max_mpixels=job.max_mpixels)

    def __call__(self, job: Job) -> tuple[Photo, Cutout]:
        """Read one photo and cut its subject out."""
        from crm_cli.models.matting import cut_out, find_subject, whole_canvas

        photo = self.read(job)
        matted = find_subject(photo, self._mattes, method=self._preset.matting.method)
        wanted = self._preset.cutout
        if wanted.framing == "canvas":
            return photo, whole_canvas(photo, matted)
        return photo, cut_out(photo, matted, size_px=wanted.size_px, fill=wanted.fill)


class Imagine:
    """Cut-outs → six views → six coordinate maps, many photos per network call."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._imagine = open_imagination(toolbox.weights.architecture, toolbox.networks, preset)

    def __call__(self, cutouts: Sequence[Cutout], report_step: Progress = ignore) -> list[SixViews]:
        """Draw what the photos do not show; report_step is told the evaluations done, and of how many."""
        return self._imagine(cutouts, report_step)


class Reconstruct:
    """Views → triplane → FlexiCubes surface, or a classical solid where that does not show the photo."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset

    @torch.inference_mode()
    def __call__(self, views: SixViews, cutout: Cutout) -> Surface:
        """Draw the surface of the networks' field, or a solid where it has none."""
        noise = dice(self._preset.seed, cutout.digest, "reconstruction")
        network = cast(Reconstruction, self._tools.networks["reconstruction"])
        field = network.field(views, generator=noise)
        if self._tools.is_frugal:
            field = replace(field, chunk=FRUGAL_CHUNK)
        try:
            return Surface(mesh=self._draw(field), field=field, confidence="ok")
        except PhotoError as error:
            return self.solid(cutout, error.cause)

    @torch.inference_mode()
    def solid(self, cutout: Cutout, reason: str) -> Surface:
        """A classical solid behind the photo, and why it had to be one."""
        from crm_cli.models.solids import fallback_solid

        field = fallback_solid(cutout)
        warning = f"low confidence: {reason}; the asset is a simple solid behind the photo"
        return Surface(mesh=self._draw(field), field=field, confidence="low", warnings=(warning,))

    def doubt(self, mesh: Mesh, cutout: Cutout) -> str | None:
        """Say in what a finished surface is not what the photo shows, or None."""
        iou = silhouette_iou(mesh, cutout, self._tools)
        if iou < self._preset.checks.min_silhouette_iou:
            return f"the outline matches the photo's by {iou:.0%} only"
        return None

    def _draw(self, field: Field) -> Mesh:
        wanted = self._preset.reconstruction
        return surface(
            field,
            wanted.grid,
            dense=wanted.dense,
            device=self._tools.device,
            surfacer=self._tools.surfacer,
        )


class Unwrap:
    """Clean, decimate, cut into charts."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._preset = preset

    def __call__(self, drawn: Surface) -> UnwrappedMesh:
        """Make the surface sound and give it texture coordinates."""
        from crm_cli.mesh.clean import clean
        from crm_cli.mesh.unwrap import unwrap

        mesh = clean(drawn.mesh, faces=self._preset.mesh.faces, smooth=self._preset.mesh.smooth)
        settings = self._preset.unwrap
        return unwrap(
            mesh, method=settings.method, size_px=self._preset.texture.size_px, padding_px=settings.padding_px
        )


class Bake:
    """Colour field → texture."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset
        self._trust = torch.zeros(len(VIEWS))
        if preset.views.use_photo:
            self._trust[FRONT] = PHOTO_TRUST

    @torch.inference_mode()
    def __call__(self, unwrapped: UnwrappedMesh, field: Field, views: SixViews) -> TexturedMesh:
        """Ask the field for the colour of every texel.

        What a view sees is decided by the finished surface, not by the depth it was drawn from: else the
        photo would miss the front wherever smoothing or simplification moved it.
        """
        from crm_cli.mesh.bake import bake

        if isinstance(field, PlaneField) and field.hull is not None:
            depth, alpha = look_at(unwrapped.mesh, self._tools.raster, views.rgb.shape[-1])
            field = field.seen_as(agree.seen_on(views, depth, alpha), trust=self._trust)
        size_px = self._preset.texture.size_px
        return bake(unwrapped, field.colour, self._tools.raster, size_px=size_px, device=self._tools.device)


class Deliver:
    """Files, previews and checks, in the job's scratch folder."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset

    def __call__(
        self, job: Job, photo: Photo, cutout: Cutout, views: SixViews, drawn: Surface, textured: TexturedMesh
    ) -> Asset:
        """Write everything that is kept of one photo."""
        from crm_cli.export.preview import render_previews
        from crm_cli.export.scene import build_scene
        from crm_cli.export.sheet import write_thumbs
        from crm_cli.export.writers import write_asset
        from crm_cli.mesh.bake import uv_usage
        from crm_cli.mesh.inspect import inspect

        folder = job.scratch / job.stem.parent
        # No folder above the scratch folder: where that has vanished, so has the output folder.
        for parent in reversed(job.stem.parents):
            (job.scratch / parent).mkdir(exist_ok=True)
        scene = build_scene(textured, provenance=self._provenance(photo))
        files = write_asset(scene, folder, job.stem.name, self._preset.export)
        usage = uv_usage(textured.unwrapped, self._tools.raster, size_px=self._preset.texture.size_px)
        checks = inspect(
            textured.unwrapped,
            uv_overlap=usage.overlap,
            uv_coverage=usage.coverage,
            silhouette_iou=float(silhouette_iou(textured.mesh, cutout, self._tools)),
            confidence=drawn.confidence,
        )
        shown = self._preset.preview
        turns = render_previews(textured, self._tools.raster, size_px=shown.size_px, turns=shown.turns)
        write_thumbs(
            job.scratch / "report" / "thumbs",
            job.id,
            photo=photo.rgb if photo.alpha is None else np.dstack([photo.rgb, photo.alpha]),
            cutout=as_picture(torch.cat([cutout.rgb, cutout.alpha])),
            views_rgb=[as_picture(view) for view in views.rgb],
            views_ccm=[as_picture(maps) for maps in views.ccm],
            turns=turns,
        )
        return Asset(
            photo=job.path,
            files=tuple(written(job.scratch, file) for file in files),
            checks=checks,
            warnings=(*cutout.warnings, *drawn.warnings, *self._over_budget(checks)),
        )

    def _over_budget(self, checks: Checks) -> tuple[str, ...]:
        """Say so where the surface could not be simplified as far as the preset asks."""
        budget = self._preset.mesh.faces
        if checks.faces <= budget:
            return ()
        return (f"{checks.faces} triangles where the preset asks for {budget}: fewer would tear the surface",)

    def _provenance(self, photo: Photo) -> dict[str, str]:
        """Say inside every file where it came from. No path, no time: the same photo makes the same bytes."""
        return {
            "crm_version": __version__,
            "photo_sha256": photo.digest,
            "preset_sha256": self._preset.fingerprint(),
            "seed": str(self._preset.seed),
            "weights": self._tools.weights.name,
            "weights_sha256": self._tools.weights.digest,
        }


class Line:
    """All stations of one worker, in a row."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset
        self._prepare = Prepare(toolbox, preset)
        self._imagine = Imagine(toolbox, preset)
        self._reconstruct = Reconstruct(toolbox, preset)
        self._unwrap = Unwrap(toolbox, preset)
        self._bake = Bake(toolbox, preset)
        self._deliver = Deliver(toolbox, preset)

    @classmethod
    def open(
        cls,
        preset: Preset,
        *,
        device: str,
        threads: int,
        precision: str = "auto",
        sharers: int = 1,
        is_frugal: bool = False,
    ) -> Line:
        """Load what the stations need, once; the process takes numbers next to zero for zero, for speed."""
        torch.set_flush_denormal(True)
        toolbox = open_toolbox(
            preset,
            device=device,
            threads=threads,
            precision=precision,
            sharers=sharers,
            is_frugal=is_frugal,
        )
        return cls(toolbox, preset)

    def forecast_s(self) -> float | None:
        """Seconds one photo will take, measured in a moment; None where that is not worth saying."""
        architecture = self._tools.weights.architecture
        if architecture == EMBEDDED or self._tools.device != "cpu":
            return None
        return forecast_s(architecture, self._preset, device="cpu", dtype=self._tools.dtype)

    def convert(
        self,
        job: Job,
        report_stage: Callable[[str], None],
        report_step: Progress = ignore,
    ) -> Asset:
        """Make one asset; PhotoError where the photo does not allow it.

        report_stage: called with the name of each station as it begins.
        report_step: called with the evaluations of the denoisers that are done, and how many there will be.
        """
        watch = Stopwatch(report_stage)
        photo, (cutout, views) = self._see(job, watch, report_step)
        watch.begin("reconstruct")
        drawn = self._reconstruct(views, cutout)
        watch.begin("unwrap")
        drawn, unwrapped = self.finish(drawn, cutout)
        watch.begin("bake")
        textured = self._bake(unwrapped, drawn.field, views)
        watch.begin("deliver")
        asset = self._deliver(job, photo, cutout, views, drawn, textured)
        return replace(asset, seconds=watch.stop())

    def _see(
        self, job: Job, watch: Stopwatch, report_step: Progress
    ) -> tuple[Photo, tuple[Cutout, SixViews]]:
        """Make the photo's cut-out and views, or take what was kept of them."""
        watch.begin("prepare")
        is_kept = job.cache is not None and job.may_reuse
        kept = cache.read(job.cache, photo=job.path) if job.cache and is_kept else None
        if kept is not None:
            return self._prepare.read(job), (kept.cutout, kept.views)
        photo, cutout = self._prepare(job)
        watch.begin("imagine")
        [views] = self._imagine([cutout], report_step)
        if job.cache is not None:
            cache.write(job.cache, cache.Imagined(cutout=cutout, views=views))
        return photo, (cutout, views)

    def finish(self, drawn: Surface, cutout: Cutout) -> tuple[Surface, UnwrappedMesh]:
        """Clean and unwrap, with a solid instead of what cannot be mended or no longer shows the photo."""
        try:
            unwrapped = self._unwrap(drawn)
            reason = self._reconstruct.doubt(unwrapped.mesh, cutout)
        except PhotoError as error:
            if drawn.confidence == "low":
                raise
            reason = error.cause
        if reason is None or drawn.confidence == "low":
            return drawn, unwrapped
        solid = self._reconstruct.solid(cutout, reason)
        return solid, self._unwrap(solid)


class Stopwatch:
    """Seconds per stage, and a word to whoever watches the clock from outside."""

    def __init__(self, report_stage: Callable[[str], None]) -> None:
        self._report = report_stage
        self._seconds: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    def begin(self, stage: str) -> None:
        """End the running stage and begin another."""
        self.stop()
        self._report(stage)
        self._running = (stage, time.perf_counter())

    def stop(self) -> dict[str, float]:
        """End the running stage; return all seconds so far."""
        if self._running is not None:
            stage, began = self._running
            self._seconds[stage] = round(time.perf_counter() - began, 3)
            self._running = None
        return self._seconds


def look_at(mesh: Mesh, raster: Raster, size_px: int) -> tuple[Tensor, Tensor]:
    """Depth [6 S S] and coverage [6 1 S S] of a mesh in the six views."""
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    seen = [
        raster.rasterize(project(vertices, view, size_px), faces, height=size_px, width=size_px)
        for view in VIEWS
    ]
    return torch.stack([s.depth for s in seen]), torch.stack([s.covered.float()[None] for s in seen])


def silhouette_iou(mesh: Mesh, cutout: Cutout, toolbox: Toolbox) -> float:
    """Compare the front outline of a mesh with that of its photo: intersection over union."""
    from crm_cli.mesh.inspect import silhouette_iou as compare
    from crm_cli.mesh.raster import render_silhouette

    drawn = render_silhouette(mesh, toolbox.raster, VIEWS[FRONT], SILHOUETTE_PX)
    shown = agree.place_photo(cutout, SILHOUETTE_PX)[3] > agree.SOLID
    return compare(drawn, shown.numpy())


def as_picture(image: Tensor) -> Image:
    """[3|4 H W] in [0, 1] to a picture."""
    from PIL import Image

    pixels: Any = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def written(scratch: Path, file: Path) -> WrittenFile:
    """Describe a finished file by its name, size and digest."""
    data = file.read_bytes()
    return WrittenFile(
        path=PurePosixPath(file.relative_to(scratch).as_posix()),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
