"""From photos to six views and their coordinate maps: two ways, one for each kind of weights.

The published system diffuses in the latents of a VAE and draws both pictures of every view. The embedded one
diffuses patches at 64 px, draws outlines and depth, and lets the photo and the views correct each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from crm_cli.frame import FRONT
from crm_cli.models import agree
from crm_cli.models.clip import Contexts
from crm_cli.models.denoiser import Conditions, MultiViewUNet, to_frames, to_views
from crm_cli.models.encoders import (
    GREY,
    PatchCodec,
    from_vae,
    photo_for_frames,
    square_on_grey,
    tower_picture,
    vae_picture,
)
from crm_cli.models.engine import Engines, Shown
from crm_cli.models.sampler import Progress, dice, draw_noise, sample
from crm_cli.models.steps import planned
from crm_cli.models.vae import Vae
from crm_cli.preset import EMBEDDED, Preset, Sampling
from crm_cli.records import Cutout, SixViews

SMALL_VIEW_PX = 64
"""What the small denoisers draw."""

VISIBLE = 8 / 255
"""Difference from the background that counts as an object; less is what a VAE makes of plain grey."""

Networks = Mapping[str, nn.Module]
"""The parts of one set of weights by name, on their device; see `architectures`."""


class Imagination(Protocol):
    """Draws what photos do not show."""

    def __call__(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        """Six views of each photo; progress is told after each evaluation of a denoiser, of both together."""
        ...


def open_imagination(
    architecture: str,
    networks: Networks,
    preset: Preset,
    *,
    engines: Engines | None = None,
    batch: int = 1,
) -> Imagination:
    """The way that belongs to an architecture.

    engines: shared by all that use the same networks. batch: photos in one call of a network, no more and no
    less.
    """
    if architecture == EMBEDDED:
        return EmbeddedImagination(networks, preset, batch=batch)
    return PublishedImagination(networks, preset, engines=engines, batch=batch)


def diffuse(
    network: MultiViewUNet,
    sampling: Sampling,
    shown: Shown,
    *,
    noise: Tensor,
    progress: Progress,
) -> Tensor:
    """Run one denoiser from noise to latents [B F C h w], float32 on the CPU.

    The network may be of any precision; everything between its evaluations is float32. See `engine` for
    what the published networks do instead.
    """
    place = next(network.parameters())
    objects = len(noise)
    _, guided = planned(sampling)
    conditions = prepare(network, [shown.hidden(), shown] if guided else [shown])
    conditional = conditions.last(objects) if guided else conditions
    config = network.config
    return sample(
        lambda x, t: network(x.to(place.dtype), t, conditional if len(x) == objects else conditions),
        noise.to(place.device),
        steps=sampling.steps,
        solver=sampling.solver,
        prediction=config.prediction,
        guidance=sampling.guidance,
        guided_share=sampling.guided,
        progress=progress,
    ).cpu()


def prepare(network: MultiViewUNet, halves: Sequence[Shown]) -> Conditions:
    """Conditions of a batch that is put together of halves, where the network is and in its precision."""
    place = next(network.parameters())

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(half, name) for half in halves]
        return None if tensors[0] is None else torch.cat(tensors).to(place)

    return network.prepare(
        concat=joined("concat"), reference=joined("reference"), image=joined("image"), text=joined("text")
    )


def first_noise(network: MultiViewUNet, shown: Shown, generators: Sequence[torch.Generator]) -> Tensor:
    """Where a diffusion begins [B F C h w], from one CPU generator an object."""
    given = shown.concat if shown.concat is not None else shown.reference
    assert given is not None
    config = network.config
    return draw_noise((config.frames, config.channels_in, *given.shape[-2:]), generators)


def in_batches(
    draw: Callable[[Sequence[Cutout], Progress], list[SixViews]],
    cutouts: Sequence[Cutout],
    batch: int,
    progress: Progress,
) -> list[SixViews]:
    """Draw always the same number at a time, the last photo once more where some lack.

    Kernels are chosen by shape, so that in batches of another size the last bits would be others: a photo's
    views must not tell what stood beside it, nor after how many others a run went on.
    """
    views: list[SixViews] = []
    for start in range(0, len(cutouts), batch):
        group = cutouts[start : start + batch]
        padded = [*group, *[group[-1]] * (batch - len(group))]
        views += draw(padded, _part_of(progress, start // batch, -(-len(cutouts) // batch)))[: len(group)]
    return views


def _part_of(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of the number-th of so many equal parts."""
    return lambda done, of: progress(number * of + done, parts * of)


def look(vision: nn.Module, pictures: Tensor) -> Tensor:
    """What a published denoiser sees of photos [B 3 224 224] from `tower_picture`: tokens [B 257 D]."""
    return cast(Tensor, vision(pictures.to(next(vision.parameters()))))


def encode(vae: Vae, pictures: Tensor, noise: Tensor) -> Tensor:
    """Latents [B N 4 h w] of pictures [B N 3 S S] in [-1, 1]; noise chooses among each one's."""
    place = next(vae.parameters())
    latents = vae.encode(pictures.flatten(0, 1).to(place), noise.flatten(0, 1).to(place.device))
    return latents.reshape(*pictures.shape[:2], *latents.shape[1:])


def _stages(preset: Preset, progress: Progress) -> tuple[Progress, Progress]:
    """The progress of both diffusions as one."""
    (rgb, _), (ccm, _) = planned(preset.rgb), planned(preset.ccm)
    return (
        lambda done, _: progress(done, rgb + ccm),
        lambda done, _: progress(rgb + done, rgb + ccm),
    )


class PublishedImagination:
    """Two diffusions in the latents of a VAE (CRM §3.1; thu-ml/CRM, pipelines.py).

    Order of randomness, each from the photo's own generators: the reference's posterior, the first noise,
    the views' posteriors, the second noise.
    """

    def __init__(
        self, networks: Networks, preset: Preset, *, engines: Engines | None = None, batch: int = 1
    ) -> None:
        self._networks = networks
        self._preset = preset
        self._engines = engines or Engines()
        self._batch = batch

    @torch.inference_mode()
    def __call__(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        """Draw six views of 256 px from each photo, then their maps from photo and views."""
        return in_batches(self._draw_batch, cutouts, self._batch, progress)

    def _draw_batch(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        rgb_progress, ccm_progress = _stages(self._preset, progress)
        pictures = [square_on_grey(cutout) for cutout in cutouts]
        tower_pictures = torch.stack([tower_picture(picture) for picture in pictures])
        photos = torch.stack([vae_picture(picture) for picture in pictures])[:, None]  # [B 1 3 S S]
        reference = self._encode("rgb", photos, cutouts, "reference")[:, 0]  # [B 4 h w]
        tokens = self._look("rgb", tower_pictures)
        rgb = self._draw("rgb", cutouts, Shown(reference=reference, image=tokens), rgb_progress)
        beside = self._encode("ccm", rgb * 2 - 1, cutouts, "views")  # [B 6 4 h w]
        if self._part("ccm", "vision") != self._part("rgb", "vision"):
            tokens = self._look("ccm", tower_pictures)
        ccm = self._draw("ccm", cutouts, Shown(concat=beside, image=tokens), ccm_progress)
        return [
            SixViews(rgb=to_views(views), ccm=to_views(maps), alpha=to_views(coverage(views)))
            for views, maps in zip(rgb, ccm, strict=True)
        ]

    def _part(self, stage: str, part: str) -> str:
        """Name of a stage's tower; published files may hold one for each stage."""
        own = f"{stage}.{part}"
        return own if own in self._networks else part

    def _look(self, stage: str, pictures: Tensor) -> Tensor:
        """Image tokens [B 257 D]."""
        return look(self._networks[self._part(stage, "vision")], pictures)

    def _encode(self, stage: str, pictures: Tensor, cutouts: Sequence[Cutout], purpose: str) -> Tensor:
        """Latents [B N 4 h w] of pictures [B N 3 S S], drawn from their posteriors."""
        vae = cast(Vae, self._networks[self._part(stage, "vae")])
        side = pictures.shape[-1] // vae.config.factor
        shape = (pictures.shape[1], vae.config.latent_channels, side, side)
        generators = [dice(self._preset.seed, cutout.digest, f"{stage} {purpose}") for cutout in cutouts]
        return encode(vae, pictures, draw_noise(shape, generators))

    def _draw(self, stage: str, cutouts: Sequence[Cutout], shown: Shown, progress: Progress) -> Tensor:
        """One diffusion: pictures [B 6 3 S S] in [0, 1], in the order of the denoisers."""
        texts = cast(Contexts, self._networks[self._part(stage, "contexts")]).tokens
        network = cast(MultiViewUNet, self._networks[stage])
        generators = [dice(self._preset.seed, cutout.digest, stage) for cutout in cutouts]
        latents = self._engines.run(
            network,
            self._preset.rgb if stage == "rgb" else self._preset.ccm,
            shown,
            texts=texts,
            noise=first_noise(network, shown, generators),
            progress=progress,
        )
        del network  # it may have to make room
        vae = cast(Vae, self._networks[self._part(stage, "vae")])
        drawn = vae.decode(latents.flatten(0, 1).to(next(vae.parameters()))).cpu()
        pictures = from_vae(drawn, truncate=self._preset.views.truncate)
        return pictures.reshape(*latents.shape[:2], *pictures.shape[1:])


def coverage(views: Tensor) -> Tensor:
    """Where published views [N 3 S S] differ from their background: [N 1 S S] of zeros and ones.

    These networks draw no alpha; nothing that decides about shape or colour reads this.
    """
    background = torch.tensor(GREY)[:, None, None] / 255
    return ((views - background).abs().amax(1, keepdim=True) > VISIBLE).float()


class EmbeddedImagination:
    """Two diffusions of patches, corrected by the photo and by each other."""

    def __init__(self, networks: Networks, preset: Preset, *, batch: int = 1) -> None:
        self._networks = networks
        self._preset = preset
        self._batch = batch
        self._codec = PatchCodec()
        self._depths = PatchCodec(lowest=-1.0)

    @torch.inference_mode()
    def __call__(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        """Draw outlines and colours, then depth."""
        return in_batches(self._draw_batch, cutouts, self._batch, progress)

    def _draw_batch(self, cutouts: Sequence[Cutout], progress: Progress) -> list[SixViews]:
        rgb_progress, ccm_progress = _stages(self._preset, progress)
        photos = torch.stack([agree.place_photo(cutout, SMALL_VIEW_PX) for cutout in cutouts])
        rgb, alpha = self._draw_views(photos, cutouts, rgb_progress)
        depth = self._draw_depth(rgb, alpha, cutouts, ccm_progress)
        return [
            agree.lift(
                colour,
                *agree.keep_photo(outline, agree.steady(deep, outline)),
                cutout,
                size_px=self._preset.views.size_px,
                use_photo=self._preset.views.use_photo,
            )
            for cutout, colour, outline, deep in zip(cutouts, rgb, alpha, depth, strict=True)
        ]

    def _draw_views(
        self, photos: Tensor, cutouts: Sequence[Cutout], progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """First diffusion: [B 4 S S] to colour on mid grey [B 6 3 S S] and agreed outlines [B 6 1 S S]."""
        on_grey = agree.on_grey(photos)
        shown = Shown(
            concat=self._codec.encode(photo_for_frames(on_grey)), reference=self._codec.encode(on_grey)
        )
        drawn = self._codec.decode(to_views(self._diffuse("rgb", self._preset.rgb, shown, cutouts, progress)))
        drawn[:, FRONT] = on_grey
        outlines = agree.agree_outlines(drawn[:, :, 3:], on_grey[:, 3:])
        return drawn[:, :, :3], torch.stack([agree.show_photo(outline) for outline in outlines])

    def _draw_depth(
        self, rgb: Tensor, alpha: Tensor, cutouts: Sequence[Cutout], progress: Progress
    ) -> Tensor:
        """Second diffusion: [B 6 3 S S] and [B 6 1 S S] to depth [B 6 S S], inwards from the hull."""
        hull = agree.hull_depth(alpha)
        views = self._codec.encode(to_frames(torch.cat([rgb, alpha], dim=2)))
        shown = Shown(concat=torch.cat([views, self._depths.encode(to_frames(hull[:, :, None]))], dim=2))
        latents = self._diffuse("ccm", self._preset.ccm, shown, cutouts, progress)
        return (hull + self._depths.decode(to_views(latents))[:, :, 0]).clamp(-1, 1)

    def _diffuse(
        self, stage: str, sampling: Sampling, shown: Shown, cutouts: Sequence[Cutout], progress: Progress
    ) -> Tensor:
        network = cast(MultiViewUNet, self._networks[stage])
        generators = [dice(self._preset.seed, cutout.digest, stage) for cutout in cutouts]
        noise = first_noise(network, shown, generators)
        return diffuse(network, sampling, shown, noise=noise, progress=progress)
