"""One photo's way to an asset: the stations, in the order of the paper's overview figure.

    Prepare      photo → cut-out                              CPU
    Imagine      cut-outs → six views → six coordinate maps   accelerator
    Reconstruct  views → triplane → FlexiCubes surface        accelerator
    Unwrap       clean, decimate, charts                      CPU
    Bake         colour field, photo → texture                accelerator
    Deliver      files, previews, checks                      CPU

Where many workers share an accelerator, its networks are in a process of their own, the lane: `Desk` is what
that one opens, and the others' lines ask it (see `lane`).

Records in, records out. A station is opened once per worker and called with a batch where a network can
use one; randomness comes from the photo's digest, so that neither neighbours nor order change a result.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from crm_cli import __version__, cache, inspection
from crm_cli.errors import PhotoError
from crm_cli.fragments import Raster, project
from crm_cli.frame import FRONT, VIEWS
from crm_cli.lane import Lane, LaneField
from crm_cli.models import agree
from crm_cli.models.cost import forecast_s
from crm_cli.models.field import Coloured, Field, surface
from crm_cli.models.imagine import open_imagination
from crm_cli.models.reconstruction import PlaneField, Reconstruction
from crm_cli.models.sampler import Progress, dice, ignore
from crm_cli.preset import EMBEDDED, Preset
from crm_cli.records import (
    Asset,
    Camera,
    Checks,
    Cutout,
    Job,
    Mesh,
    Photo,
    SixViews,
    TexturedMesh,
    UnwrappedMesh,
    Verdict,
    WrittenFile,
)
from crm_cli.toolbox import Place, Toolbox, open_toolbox

if TYPE_CHECKING:
    from PIL.Image import Image

    from crm_cli.export.publish import Published
    from crm_cli.mesh.camera import Aim
    from crm_cli.mesh.projection import Projection

FRUGAL_CHUNK = 1 << 13
"""Points asked at once where memory has run out: 16 MiB for each hidden layer of 512."""

PHOTO_TRUST = 3.0
"""Logarithmic weight of the photo's colours over imagined ones: it paints all it sees at up to 75 degrees."""

MIN_PHOTO_IOU = 0.7
"""Below this match of outlines the photo is not laid on: what it shows would lie beside its place."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Surface:
    """A surface, the field that colours it, and whether it can be trusted."""

    mesh: Mesh
    field: Coloured
    confidence: Literal["ok", "low"]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Candidate:
    """What one seed has made of a photo, and what is to be said of it."""

    seed: int
    views: SixViews
    drawn: Surface
    textured: TexturedMesh
    checks: Checks
    verdict: Verdict


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
        self._imagine = open_imagination(
            toolbox.weights.architecture,
            toolbox.networks,
            preset,
            engines=toolbox.engines,
            batch=toolbox.batch,
        )

    def __call__(self, cutouts: Sequence[Cutout], report_step: Progress = ignore) -> list[SixViews]:
        """Draw what the photos do not show; report_step is told the evaluations done, and of how many."""
        return self._imagine(cutouts, report_step)


class FarImagine:
    """The same, where the networks are in a lane, one cut-out after the other."""

    def __init__(self, lane: Lane, seed: int) -> None:
        self._lane = lane
        self._seed = seed

    def __call__(self, cutouts: Sequence[Cutout], report_step: Progress = ignore) -> list[SixViews]:
        """Draw what the photos do not show."""
        return [self._lane.imagine(self._seed, cutout, report_step) for cutout in cutouts]


class Reconstruct:
    """Views → triplane → FlexiCubes surface, or a classical solid where that does not show the photo."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset

    def __call__(self, views: SixViews, cutout: Cutout) -> Surface:
        """Draw the surface of the networks' field, or a solid where it has none."""
        try:
            mesh, field = self.draw(views, cutout.digest)
        except PhotoError as error:
            return self.solid(cutout, error.cause)
        return Surface(mesh=mesh, field=field, confidence="ok")

    @torch.inference_mode()
    def draw(self, views: SixViews, digest: str) -> tuple[Mesh, PlaneField | LaneField]:
        """The surface of the networks' field; PhotoError where it has none. digest: of the photo."""
        noise = dice(self._preset.seed, digest, "reconstruction")
        network = cast(Reconstruction, self._tools.networks["reconstruction"])
        field = network.field(views, generator=noise)
        if self._tools.is_frugal:
            field = replace(field, chunk=FRUGAL_CHUNK)
        return self._draw(field), field

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


class FarReconstruct(Reconstruct):
    """The same, where the networks are in a lane; solids need none."""

    def __init__(self, toolbox: Toolbox, preset: Preset, lane: Lane) -> None:
        super().__init__(toolbox, preset)
        self._lane = lane

    def draw(self, views: SixViews, digest: str) -> tuple[Mesh, PlaneField | LaneField]:
        """The surface of the networks' field; PhotoError where it has none."""
        return self._lane.draw(self._preset.seed, views, digest)


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
    """Colour field and photo → texture."""

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset
        self._trust = torch.zeros(len(VIEWS))
        if preset.views.use_photo:
            self._trust[FRONT] = PHOTO_TRUST

    @torch.inference_mode()
    def __call__(
        self,
        unwrapped: UnwrappedMesh,
        field: Coloured,
        views: SixViews,
        photo: Photo,
        cutout: Cutout,
    ) -> TexturedMesh:
        """Ask the field for the colour of every texel, and lay the photo on those it shows.

        What a view sees is decided by the finished surface, not by the depth it was drawn from: else the
        photo would miss the front wherever smoothing or simplification moved it.
        """
        from crm_cli.mesh.bake import bake
        from crm_cli.mesh.camera import aim_at, describe

        size_px = self._preset.texture.size_px
        finest = 0.0  # the published network is asked at every texel, as published
        if isinstance(field, PlaneField | LaneField) and field.has_hull:
            finest = 2 / views.rgb.shape[-1]  # the embedded one knows nothing finer than a pixel of the views
            depth, alpha = look_at(unwrapped.mesh, self._tools.raster, views.rgb.shape[-1])
            field = field.seen_as(agree.seen_on(views, depth, alpha), trust=self._trust)
        aim = aim_at(unwrapped.mesh, cutout.alpha[0].cpu().numpy(), self._tools.raster)
        shown = self._project(unwrapped, photo, cutout, aim)
        textured = bake(
            unwrapped,
            field.colour,
            self._tools.raster,
            size_px=size_px,
            device=self._tools.device,
            photo=shown,
            finest=finest,
        )
        height_px, width_px = photo.rgb.shape[:2]
        camera = describe(aim, unwrapped.mesh, cutout.crop, width_px=width_px, height_px=height_px)
        is_wanted = self._preset.texture.photo
        return replace(textured, camera=camera, warnings=_astray(aim) if is_wanted and shown is None else ())

    def _project(self, unwrapped: UnwrappedMesh, photo: Photo, cutout: Cutout, aim: Aim) -> Projection | None:
        """Set the photo before the surface; None where the preset leaves it out or outlines disagree."""
        from crm_cli.mesh.bake import texels_per_unit
        from crm_cli.mesh.projection import project_photo
        from crm_cli.models.matting import opaque

        if not self._preset.texture.photo or aim.iou < MIN_PHOTO_IOU:
            return None
        return project_photo(
            unwrapped.mesh,
            photo.rgb if cutout.matting == "alpha" else opaque(photo),
            cutout.alpha[0].cpu().numpy(),
            cutout.crop,
            aim,
            self._tools.raster,
            texels_per_unit=texels_per_unit(unwrapped, size_px=self._preset.texture.size_px),
        )


class Deliver:
    """Files, previews and checks, in the job's scratch folder."""

    def __init__(self, toolbox: Toolbox, preset: Preset, lane: Lane | None = None) -> None:
        self._tools = toolbox
        self._preset = preset
        self._lane = lane

    def __call__(self, job: Job, photo: Photo, cutout: Cutout, kept: Candidate) -> Asset:
        """Write everything that is kept of one photo."""
        from crm_cli.export.preview import render_front, render_previews
        from crm_cli.export.publish import publish
        from crm_cli.export.sheet import FRONT_PX, write_thumbs
        from crm_cli.export.viewer import write_model
        from crm_cli.mesh.lods import coarser_apart

        folder = job.scratch / job.stem.parent
        # No folder above the scratch folder: where that has vanished, so has the output folder.
        for parent in reversed(job.stem.parents):
            (job.scratch / parent).mkdir(exist_ok=True)
        published = publish(
            kept.textured,
            folder,
            job.stem.name,
            export=self._preset.export,
            limits=self._preset.limits,
            provenance={
                **self._provenance(cutout, self._preset.of_seed(kept.seed)),
                **_taken_from(kept.textured.camera),
            },
            coarser=partial(coarser_apart, raster=self._tools.raster, size_px=self._preset.texture.size_px),
            size=job.size,
        )
        kept = self._as_published(kept, published, cutout)
        shown = self._preset.preview
        turns = render_previews(kept.textured, self._tools.raster, size_px=shown.size_px, turns=shown.turns)
        pictures = job.scratch / "report" / "thumbs"
        if shown.viewer:
            write_model(pictures, job.id, kept.textured)
        write_thumbs(
            pictures,
            job.id,
            photo=photo.rgb if photo.alpha is None else np.dstack([photo.rgb, photo.alpha]),
            cutout=as_picture(torch.cat([cutout.rgb, cutout.alpha])),
            views_rgb=[as_picture(view) for view in kept.views.rgb],
            views_ccm=[as_picture(maps) for maps in kept.views.ccm],
            turns=[turn.picture for turn in turns],
            front=render_front(kept.textured, self._tools.raster, size_px=FRONT_PX),
            seen=[turn.seen for turn in turns if turn.seen],
        )
        return Asset(
            photo=job.path,
            files=tuple(written(job.scratch, file) for file in published.files),
            checks=kept.checks,
            warnings=(
                *cutout.warnings,
                *kept.drawn.warnings,
                *kept.textured.warnings,
                *published.publication.warnings,
            ),
            publication=published.publication,
            verdict=kept.verdict,
            seed=kept.seed,
            camera=kept.textured.camera,
        )

    def _as_published(self, kept: Candidate, published: Published, cutout: Cutout) -> Candidate:
        """Measure again what a repair has changed, and judge with what no repair has mended."""
        textured, checks = kept.textured, kept.checks
        if published.unwrapped is not textured.unwrapped:
            textured = replace(textured, unwrapped=published.unwrapped)
            checks = inspection.measure(
                textured, cutout, kept.views, self._tools.raster, confidence=kept.drawn.confidence
            )
        reasons = [*inspection.doubts(cutout), *inspection.broken_limits(published.publication)]
        verdict = inspection.judge(checks, self._preset, reasons)
        return replace(kept, textured=textured, checks=checks, verdict=verdict)

    def _provenance(self, cutout: Cutout, preset: Preset) -> dict[str, str]:
        """Say inside every file what would make it again."""
        from crm_cli.export.provenance import Provenance, versions

        # Which method `auto` came to depends on what is installed: the file names the one that was used.
        matting = replace(preset.matting, method=cast(Any, cutout.matting))
        tools = self._tools
        place = self._lane.place if self._lane else tools.place
        said = Provenance(
            crm_version=__version__,
            photo_sha256=cutout.digest,
            preset=replace(preset, matting=matting).as_json(),
            seed=preset.seed,
            weights=tools.weights.name,
            weights_sha256=tools.weights.digest,
            device=place.device,
            precision=place.precision,
            rasteriser=tools.raster.name,
            surface=place.surface,
            # Embedded networks have one each, wherever they run.
            more={} if tools.weights.architecture == EMBEDDED else {"threads": str(torch.get_num_threads())},
        )
        return replace(said, libraries=versions(*said.tools)).as_words()


class Seeded:
    """The stations that draw random numbers, with one seed."""

    def __init__(self, toolbox: Toolbox, preset: Preset, lane: Lane | None = None) -> None:
        self.seed = preset.seed
        self.imagine = FarImagine(lane, preset.seed) if lane else Imagine(toolbox, preset)
        self.reconstruct = FarReconstruct(toolbox, preset, lane) if lane else Reconstruct(toolbox, preset)


class Desk:
    """The stations of one accelerator for every worker that has none: what a lane opens.

    A photo's seed may be another than the preset's; its stations are made when it is first asked for.
    """

    def __init__(self, toolbox: Toolbox, preset: Preset) -> None:
        self._tools = toolbox
        self._preset = preset
        self._seeded: dict[int, Seeded] = {}

    @classmethod
    def open(cls, preset: Preset, *, device: str, threads: int, precision: str, is_frugal: bool) -> Desk:
        """Load the networks, once."""
        torch.set_flush_denormal(True)
        toolbox = open_toolbox(
            preset, device=device, threads=threads, precision=precision, is_frugal=is_frugal
        )
        return cls(toolbox, preset)

    @property
    def place(self) -> Place:
        """Where the networks calculate."""
        return self._tools.place

    @property
    def takes_turns(self) -> bool:
        """Whether not all networks are in memory at a time."""
        return self._tools.takes_turns

    def imagine(self, seed: int, cutout: Cutout, report_step: Progress) -> SixViews:
        """Six views of one photo."""
        [views] = self._of(seed).imagine([cutout], report_step)
        return views

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, PlaneField]:
        """The surface of the networks' field."""
        mesh, field = self._of(seed).reconstruct.draw(views, digest)
        return mesh, cast(PlaneField, field)

    def _of(self, seed: int) -> Seeded:
        if seed not in self._seeded:
            self._seeded[seed] = Seeded(self._tools, replace(self._preset, seed=seed))
        return self._seeded[seed]


class Line:
    """All stations of one worker, in a row."""

    def __init__(self, toolbox: Toolbox, preset: Preset, lane: Lane | None = None) -> None:
        """lane: where the networks are, if they are not in the toolbox."""
        self._tools = toolbox
        self._preset = preset
        self._lane = lane
        self._prepare = Prepare(toolbox, preset)
        self._seeded = [Seeded(toolbox, replace(preset, seed=seed), lane) for seed in preset.seeds()]
        self._unwrap = Unwrap(toolbox, preset)
        self._bake = Bake(toolbox, preset)
        self._deliver = Deliver(toolbox, preset, lane)

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
        lane: Lane | None = None,
    ) -> Line:
        """Load what the stations need, once; the process takes numbers next to zero for zero, for speed.

        lane: has the networks on the device; everything else then happens on the CPU.
        """
        torch.set_flush_denormal(True)
        toolbox = open_toolbox(
            preset,
            device="cpu" if lane else device,
            threads=threads,
            precision="float32" if lane else precision,
            sharers=sharers,
            is_frugal=is_frugal,
            lane_device=device if lane else "",
        )
        return cls(toolbox, preset, lane)

    def forecast_s(self) -> float | None:
        """Seconds one photo will take, measured in a moment; None where that is not worth saying.

        As if every seed were tried: which one will be good enough, nobody knows.
        """
        architecture = self._tools.weights.architecture
        if architecture == EMBEDDED or self._lane or self._tools.device != "cpu":
            return None
        once_s = forecast_s(architecture, self._preset, device="cpu", dtype=self._tools.dtype)
        return once_s * len(self._seeded)

    def convert(
        self,
        job: Job,
        report_stage: Callable[[str], None],
        report_step: Progress = ignore,
    ) -> Asset:
        """Make one asset; PhotoError where the photo does not allow it.

        Several seeds may be tried, as the preset has it; files are written of the best alone.

        report_stage: called with the name of each station as it begins.
        report_step: called with the evaluations of the denoisers that are done, and how many there will be.
        """
        if job.seed is not None and job.seed != self._preset.seed:
            # Stations are cheap: what is loaded is the toolbox's.
            other = Line(self._tools, replace(self._preset, seed=job.seed), self._lane)
            return other.convert(job, report_stage, report_step)
        watch = Stopwatch(report_stage, self._waited_s)
        watch.begin("prepare")
        kept = self._kept(job, 0)
        photo, cutout = (self._prepare.read(job), kept.cutout) if kept else self._prepare(job)
        best = self._best(job, photo, cutout, kept, watch, report_step)
        return replace(self._deliver(job, photo, cutout, best), seconds=watch.stop())

    def _waited_s(self) -> float:
        """How long the lane has let this line wait so far."""
        return self._lane.waited_s if self._lane else 0.0

    def _best(
        self,
        job: Job,
        photo: Photo,
        cutout: Cutout,
        kept: cache.Imagined | None,
        watch: Stopwatch,
        report_step: Progress,
    ) -> Candidate:
        """Try seed after seed until one is good enough; the best of them.

        kept: of the first seed. Raises PhotoError where no seed makes anything.
        """
        best: Candidate | None = None
        failure: PhotoError | None = None
        for number, seeded in enumerate(self._seeded):
            kept = kept if number == 0 else self._kept(job, number)
            views = kept.views if kept else self._imagined(job, number, cutout, watch, report_step)
            try:
                candidate = self._made(seeded, views, photo, cutout, watch)
            except PhotoError as error:
                failure = failure or error
                continue
            if best is None or inspection.rank(candidate.verdict) > inspection.rank(best.verdict):
                best = candidate
            if inspection.is_good_enough(candidate.verdict, self._preset):
                break
        if best is None:
            assert failure is not None
            raise failure
        return best

    def _kept(self, job: Job, number: int) -> cache.Imagined | None:
        """What was kept of the photo under one of the seeds."""
        folder = _cache_of(job, number)
        return cache.read(folder, photo=job.path) if folder and job.may_reuse else None

    def _imagined(
        self, job: Job, number: int, cutout: Cutout, watch: Stopwatch, report_step: Progress
    ) -> SixViews:
        """Draw the photo's views with one of the seeds, and keep them."""
        watch.begin("imagine")
        [views] = self._seeded[number].imagine([cutout], report_step)
        folder = _cache_of(job, number)
        if folder is not None:
            cache.write(folder, cache.Imagined(cutout=cutout, views=views))
        return views

    def _made(
        self, seeded: Seeded, views: SixViews, photo: Photo, cutout: Cutout, watch: Stopwatch
    ) -> Candidate:
        """Make a textured mesh of views, and judge it; no file is written."""
        watch.begin("reconstruct")
        drawn = seeded.reconstruct(views, cutout)
        watch.begin("unwrap")
        drawn, unwrapped = self.finish(drawn, cutout)
        watch.begin("bake")
        textured = self._bake(unwrapped, drawn.field, views, photo, cutout)
        watch.begin("deliver")
        checks = inspection.measure(textured, cutout, views, self._tools.raster, confidence=drawn.confidence)
        return Candidate(
            seed=seeded.seed,
            views=views,
            drawn=drawn,
            textured=textured,
            checks=checks,
            verdict=inspection.judge(checks, self._preset, inspection.doubts(cutout)),
        )

    def finish(self, drawn: Surface, cutout: Cutout) -> tuple[Surface, UnwrappedMesh]:
        """Clean and unwrap, with a solid instead of what cannot be mended or no longer shows the photo."""
        try:
            unwrapped = self._unwrap(drawn)
            reason = self._seeded[0].reconstruct.doubt(unwrapped.mesh, cutout)
        except PhotoError as error:
            if drawn.confidence == "low":
                raise
            reason = error.cause
        if reason is None or drawn.confidence == "low":
            return drawn, unwrapped
        solid = self._seeded[0].reconstruct.solid(cutout, reason)
        return solid, self._unwrap(solid)


class Stopwatch:
    """Seconds per stage, whose tries add up, and a word to whoever watches the clock from outside.

    What a photo has waited for others is of no stage, and told as `queue`.
    """

    def __init__(self, report_stage: Callable[[str], None], waited_s: Callable[[], float]) -> None:
        self._report = report_stage
        self._waited_s = waited_s
        self._waited_before_s = waited_s()
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
            waited_s = self._waited_s() - self._waited_before_s
            self._waited_before_s += waited_s
            self._add(stage, time.perf_counter() - began - waited_s)
            if waited_s:
                self._add("queue", waited_s)
            self._running = None
        return self._seconds

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = round(self._seconds.get(stage, 0.0) + seconds, 3)


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
    return inspection.front_iou(mesh, cutout, toolbox.raster)


def _cache_of(job: Job, number: int) -> Path | None:
    """Where the views of the number-th seed are kept, where they are."""
    folders = [job.cache, *job.other_caches]
    return folders[number] if number < len(folders) else None


def _taken_from(camera: Camera | None) -> dict[str, str]:
    """Say inside every file from where its photo was taken."""
    return {} if camera is None else {"camera": json.dumps(asdict(camera), separators=(",", ":"))}


def _astray(aim: Aim) -> tuple[str, ...]:
    """Say why the photo was left out."""
    return (f"the photo is not laid on: its outline matches by {aim.iou:.0%} only [W_PHOTO_ASTRAY]",)


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
