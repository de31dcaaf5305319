"""The published loop, written down once more with our networks: what this program is measured against.

It does what thu-ml/CRM does for every photo, in its order and as often (run.py, pipelines.py,
imagedream/, inference.py, model/crm/):

- everything eager; on an accelerator half precision under autocast, reconstruction in single precision;
- both prompts read by the text tower in both stages, and the photo seen by the image tower in both;
- in every step, for every frame of both halves: the resampler, the keys and values of text and image, the
  time embedding;
- the photo encoded twice in stage 1 and once more in stage 2, two of the three for an offset of the first
  noise that is multiplied by zero; the reference's own frame decoded and dropped;
- the field asked at all 81³ vertices and the weights of all 80³ cubes at once;
- one after the other on the CPU: xatlas with its own options and threads, the texture as PNG, OBJ as text,
  both read back by Python and written as GLB.

In its favour: scaled dot products of torch instead of xformers', the last block of the image tower left out,
our matting instead of a network opened twice for each photo, our mending instead of pymeshlab's, our writer
of GLB, and networks that stay loaded. It makes no checks, previews or sheets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import interpolate
from crm_cli.models import flexicubes
from crm_cli.models.clip import TextTower, VisionTower, prompt_tokens
from crm_cli.models.denoiser import Conditions, MultiViewUNet, to_views
from crm_cli.models.encoders import from_vae, square_on_grey, tower_picture, vae_picture
from crm_cli.models.engine import Shown
from crm_cli.models.field import surface
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.imagine import coverage, first_noise
from crm_cli.models.reconstruction import PlaneField, Reconstruction
from crm_cli.models.sampler import Progress, dice, draw_noise, ignore, sample
from crm_cli.models.vae import LOG_VARIANCES, SCALE, Vae
from crm_cli.pipeline import Imagine, Prepare
from crm_cli.preset import EMBEDDED, Preset
from crm_cli.records import Cutout, Job, Mesh, SixViews, TexturedMesh, UnwrappedMesh
from crm_cli.toolbox import Toolbox

TEXTURE_PX = 1024

ANY_FACES = 1_000_000
"""The published surface is not simplified."""

DARK = 3.5 / 255
"""Texels darker than this, over their three channels, are taken for uncovered ones, which hold 3 / 255."""


class ReferenceShaped:
    """One photo at a time, from file to GLB; see the module."""

    def __init__(self, toolbox: Toolbox, preset: Preset, text: TextTower | None = None) -> None:
        """text: reads the prompts; without it the views are drawn by the embedded networks, as ever."""
        self._tools = toolbox
        self._preset = preset
        self._prepare = Prepare(toolbox, preset)
        self._imagine: Callable[[Sequence[Cutout], Progress], list[SixViews]]
        if toolbox.weights.architecture == EMBEDDED:
            self._imagine = Imagine(toolbox, preset)
        else:
            assert text is not None
            self._imagine = TwoStages(toolbox, preset, text)

    @torch.inference_mode()
    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Progress = ignore) -> Path:
        """Make the GLB of one photo in the job's scratch folder; see `Line.convert`."""
        report_stage("prepare")
        _, cutout = self._prepare(job)
        report_stage("imagine")
        [views] = self._imagine([cutout], report_step)
        report_stage("reconstruct")
        mesh, field = self.reconstruct(views, cutout)
        report_stage("unwrap")
        unwrapped = self.unwrap(mesh)
        report_stage("bake")
        texture = self.bake(unwrapped, field)
        report_stage("deliver")
        return self.deliver(unwrapped, texture, job.scratch / job.stem)

    def reconstruct(self, views: SixViews, cutout: Cutout) -> tuple[Mesh, PlaneField]:
        """Ask the whole grid at once, and the weights of all its cubes."""
        network = cast(Reconstruction, self._tools.networks["reconstruction"])
        noise = dice(self._preset.seed, cutout.digest, "reconstruction")
        grid, device = self._preset.reconstruction.grid, self._tools.device
        field = replace(network.field(views, generator=noise), chunk=(grid + 1) ** 3)
        if field.hull is not None:
            drawn = surface(field, grid, dense=True, device=device, surfacer=self._tools.surfacer)
            return drawn, field
        points = flexicubes.grid(grid, device=device)
        sdf, offset = field.geometry(points)
        sdf = flexicubes.close_border(sdf, grid)
        cubes = flexicubes.surface_cubes(sdf, grid)
        corners = flexicubes.cube_corners(torch.arange(grid**3, device=device), grid)
        everywhere = replace(field, chunk=8 * grid**3).cube_weights(points[corners])
        assert everywhere is not None
        weights = CubeWeights(*(of_all[cubes] for of_all in everywhere))
        vertices, faces, _ = self._tools.surfacer.extract(points + offset, sdf, grid, weights=weights)
        return Mesh(vertices=vertices.cpu().numpy(), faces=faces.cpu().numpy()), field

    def unwrap(self, mesh: Mesh) -> UnwrappedMesh:
        """Let xatlas do it all, with its own options."""
        import xatlas

        from crm_cli.mesh.clean import clean

        mesh = clean(mesh, faces=ANY_FACES)
        _, faces, uv = xatlas.parametrize(mesh.vertices, mesh.faces.astype(np.uint32))
        return UnwrappedMesh(mesh=mesh, uv=uv, uv_faces=faces.astype(np.int64))

    def bake(self, unwrapped: UnwrappedMesh, field: PlaneField) -> NDArray[np.uint8]:
        """Colour the texels that charts cover, and a rim of one around them: [T T 3]."""
        from crm_cli.mesh.bake import draw_charts

        device = self._tools.device
        fragments = draw_charts(unwrapped, self._tools.raster, size_px=TEXTURE_PX, device=device)
        vertices, faces = (
            torch.from_numpy(part).to(device) for part in (unwrapped.mesh.vertices, unwrapped.mesh.faces)
        )
        points = interpolate(vertices, faces, fragments.hits())[0]  # [N 3]
        texture = torch.full((TEXTURE_PX, TEXTURE_PX, 3), 1 / 255, device=device)
        texture[fragments.covered] = field.colour(points)
        rim = F.max_pool2d(texture.permute(2, 0, 1), 3, stride=1, padding=1).permute(1, 2, 0)
        is_dark = texture.sum(2, keepdim=True) < DARK
        baked: NDArray[np.uint8] = (torch.where(is_dark, rim, texture) * 255).byte().cpu().numpy()
        return baked

    def deliver(self, unwrapped: UnwrappedMesh, texture: NDArray[np.uint8], stem: Path) -> Path:
        """Write OBJ and PNG, read them back, and write them as a GLB."""
        from PIL import Image

        from crm_cli.export.glb import encode_glb
        from crm_cli.export.scene import build_scene
        from crm_cli.export.textures import Picture

        obj, png = stem.with_suffix(".obj"), stem.with_suffix(".png")
        obj.write_text(_as_obj(unwrapped), "ascii")
        Image.fromarray(texture).save(png)
        again = TexturedMesh(unwrapped=_from_obj(obj.read_text("ascii")), texture=_pixels(png))
        Image.fromarray(again.texture).save(png)
        picture = Picture(data=png.read_bytes(), kind="png")
        glb = stem.with_suffix(".glb")
        glb.write_bytes(encode_glb(build_scene(again, provenance={}), picture=picture))
        return glb


class TwoStages:
    """Both diffusions of one photo, with nothing kept from one step or stage to the next."""

    def __init__(self, toolbox: Toolbox, preset: Preset, text: TextTower) -> None:
        self._networks = toolbox.networks
        self._device = toolbox.device
        self._dtype = toolbox.dtype
        self._preset = preset
        self._text = text

    @torch.inference_mode()
    def __call__(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        """Draw six views of the photo and then their maps; see `Imagination`."""
        [cutout] = cutouts
        with self._half():
            rgb = self._draw("rgb", cutout, None, progress)
            ccm = self._draw("ccm", cutout, rgb, progress)
        return [SixViews(rgb=to_views(rgb), ccm=to_views(ccm), alpha=to_views(coverage(rgb)))]

    def _half(self) -> AbstractContextManager[Any]:
        place = torch.device(self._device).type
        return torch.autocast(place, self._dtype, enabled=self._dtype == torch.float16)

    def _draw(self, stage: str, cutout: Cutout, views: Tensor | None, progress: Progress) -> Tensor:
        """Frames [6 3 S S] in [0, 1] of one stage. views: the first stage's, for the second."""
        picture = square_on_grey(cutout)
        photo = vae_picture(picture)[None]
        negative, text = (self._read(number) for number in (1, 0))
        image = cast(VisionTower, self._networks["vision"])(self._placed(tower_picture(picture)[None]))
        if views is None:
            shown = Shown(reference=self._encode(photo, cutout, "rgb reference"), image=image, text=text)
        else:
            beside = self._encode(views * 2 - 1, cutout, "ccm views")[None]
            shown = Shown(concat=beside, image=image, text=text)
        # Its mean would move the first noise, by the square root of what is left of a picture at t = 999: 0.
        self._encode(photo, cutout, f"{stage} offset")
        latents = self._diffuse(stage, cutout, shown, shown.hidden(negative), progress)  # [F 4 h w]
        vae = cast(Vae, self._networks["vae"])
        drawn = vae.decoder(vae.post_quant_conv(self._placed(latents) / SCALE))
        return from_vae(drawn[:6].cpu(), truncate=self._preset.views.truncate)

    def _read(self, number: int) -> Tensor:
        """One of the two prompts, [1 77 D]."""
        tokens: Tensor = self._text(prompt_tokens()[number, None].to(self._device))
        return tokens

    def _encode(self, pictures: Tensor, cutout: Cutout, purpose: str) -> Tensor:
        """Latents [N 4 h w] of pictures [N 3 S S], drawn from their posteriors."""
        vae = cast(Vae, self._networks["vae"])
        mean, log_variance = vae.quant_conv(vae.encoder(self._placed(pictures))).chunk(2, dim=1)
        [noise] = draw_noise(mean.shape, [dice(self._preset.seed, cutout.digest, purpose)])
        spread = torch.exp(log_variance.clamp(*LOG_VARIANCES) / 2)
        latents: Tensor = SCALE * (mean + spread * noise.to(spread))
        return latents

    def _diffuse(self, stage: str, cutout: Cutout, shown: Shown, hidden: Shown, progress: Progress) -> Tensor:
        """Latents [F 4 h w], float32."""
        network = cast(MultiViewUNet, self._networks[stage])
        sampling = self._preset.rgb if stage == "rgb" else self._preset.ccm
        noise = first_noise(network, shown, [dice(self._preset.seed, cutout.digest, stage)])

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            halves = [hidden, shown] if len(x) > 1 else [shown]
            times = t[:, None].expand(-1, network.config.frames)
            answer: Tensor = network(x.to(self._dtype), times, _prepared_anew(network, halves))
            return answer

        latents = sample(
            denoise,
            noise.to(self._device),
            steps=sampling.steps,
            solver=sampling.solver,
            prediction=network.config.prediction,
            guidance=sampling.guidance,
            guided_share=sampling.guided,
            progress=progress,
        )
        return latents[0]

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)


def _prepared_anew(network: MultiViewUNet, halves: Sequence[Shown]) -> Conditions:
    """Conditions of a batch put together of halves, with every frame's prompts calculated by themselves."""
    frames = network.config.frames

    def tiled(name: str) -> Tensor | None:
        tensors = [getattr(half, name) for half in halves]
        return None if tensors[0] is None else torch.cat(tensors * frames)

    together = network.prepare(
        concat=tiled("concat"), reference=tiled("reference"), image=tiled("image"), text=tiled("text")
    )
    # All frames of an object look at the same: one frame's prompts are as good as another's.
    return together.last(len(halves))


def _as_obj(unwrapped: UnwrappedMesh) -> str:
    """The text of an OBJ: y up, six decimals, texture coordinates from the top."""
    lines = [f"v {x:.6f} {z:.6f} {-y:.6f}\n" for x, y, z in unwrapped.mesh.vertices.tolist()]
    lines += [f"vt {u:.6f} {1 - v:.6f}\n" for u, v in unwrapped.uv.tolist()]
    corners = np.stack([unwrapped.mesh.faces, unwrapped.uv_faces], 2).reshape(-1, 6) + 1
    lines += ["f {}/{} {}/{} {}/{}\n".format(*corner) for corner in corners.tolist()]
    return "".join(lines)


def _from_obj(text: str) -> UnwrappedMesh:
    """Read the text again, line by line."""
    points: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[list[list[int]]] = []
    for line in text.splitlines():
        kind, *words = line.split()
        if kind == "v":
            x, y, z = map(float, words)
            points.append([x, -z, y])
        elif kind == "vt":
            u, v = map(float, words)
            uv.append([u, 1 - v])
        else:
            corners.append([[int(number) - 1 for number in word.split("/")] for word in words])
    faces = np.array(corners, np.int64)  # [F 3 2]
    mesh = Mesh(vertices=np.array(points, np.float32), faces=faces[..., 0])
    return UnwrappedMesh(mesh=mesh, uv=np.array(uv, np.float32), uv_faces=faces[..., 1])


def _pixels(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"))
