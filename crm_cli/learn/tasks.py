"""What each network is asked during training: three tasks behind one protocol.

A batch holds, for B objects seen at S px: `photo` uint8 [B 4 S S], `views` uint8 [B 6 4 S S] in the order
of frame.VIEWS, `depth` float [B 6 S S] (world coordinate towards the camera, 0 where empty), `points`
[B P 3] with `sdf` [B P], and `surface` [B Q 3] with `surface_rgb` uint8 [B Q 3].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from crm_cli.frame import FRONT, LEFT, RIGHT, VIEWS
from crm_cli.learn.samples import compared, on_white, rendered, shaded
from crm_cli.learn.train import Batch, Terms
from crm_cli.models.agree import SOLID, agree_outlines, hull_depth, maps_of, on_grey
from crm_cli.models.denoiser import DenoiserConfig, MultiViewUNet, to_frames, to_views
from crm_cli.models.encoders import PatchCodec, photo_for_frames
from crm_cli.models.reconstruction import Reconstruction, ReconstructionConfig
from crm_cli.models.sampler import Schedule, published_schedule
from crm_cli.models.steps import FIRST_TIMESTEP
from crm_cli.records import SixViews

ALPHA_LOGIT = 4.0
"""An alpha latent of ±1 counts as a logit of ±4: certain to 2 %, and still with a gradient."""


class RgbTask:
    """Photo → six views with coverage, as the clean picture behind a noisy one."""

    name = "rgb"

    def __init__(self, config: DenoiserConfig) -> None:
        self.network: nn.Module = MultiViewUNet(config)
        self._codec = PatchCodec()
        self._schedule = published_schedule()

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """L1 on colour and its steps, mostly inside the object, and cross-entropy on coverage."""
        photo, views, _ = augment(batch, random)
        clean = self._codec.encode(to_frames(on_grey(views)))
        t = draw_steps(len(photo), random)
        noisy = noised(self._schedule, clean, t, random)
        answer = see(self.network, self._codec, on_grey(photo), noisy, t)
        wanted = functional.pixel_shuffle(clean, self._codec.patch)
        coverage = (wanted[:, :, 3:] + 1) / 2
        weight = 0.1 + coverage
        error = (answer[:, :, :3] - wanted[:, :, :3]) * weight
        total = 3 * weight.sum()
        colour, edges = error.abs().sum() / total, steps(error) / total
        outline = functional.binary_cross_entropy_with_logits(answer[:, :, 3:] * ALPHA_LOGIT, coverage)
        with torch.no_grad():
            hit, truth = answer[:, :, 3:] > 0, coverage > 0.5
            iou = (hit & truth).sum() / (hit | truth).sum().clamp_min(1)
        return colour + 0.25 * edges + outline, {"colour": colour, "outline": outline, "iou": iou}

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        """The six views as drawn in one step from each photo, above the true ones: [3 H W]."""
        photo, truth = (on_grey(batch[name].float() / 255) for name in ("photo", "views"))
        drawn = imagined(self.network, self._codec, photo, random)
        return compared(on_white(photo), on_white(drawn), on_white(truth))


class CcmTask:
    """Six views → how far the surface lies behind the hull of their outlines, in each view.

    The hull is exact where the object is convex; what is left is small, and nought is a good guess.
    """

    name = "ccm"

    def __init__(self, config: DenoiserConfig, first: MultiViewUNet | None = None) -> None:
        """Take the trained first stage, where there is one: half of the views are then its own."""
        self.network: nn.Module = MultiViewUNet(config)
        self.first = None if first is None else first.requires_grad_(False).eval()
        self._codec = PatchCodec()
        self._depths = PatchCodec(lowest=-1.0)
        self._schedule = published_schedule()

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """L1 on depth inside the object, and on its steps between neighbouring pixels."""
        photo, views, depth = augment(batch, random)
        seen = soften(on_grey(views), random)
        half = 0 if self.first is None else _half(len(photo), random)
        if self.first is not None and half:
            seen = torch.cat([self._imagined(self.first, photo[:half], random), seen[half:]])
        hull = hull_depth(seen[:, :, 3:])
        inside = to_frames(((views[:, :, 3:] > SOLID) & (hull[:, :, None] > -1)).float())
        wanted = to_frames((depth - hull)[:, :, None]) * inside
        t = draw_steps(len(views), random)
        noisy = noised(self._schedule, self._depths.encode(wanted), t, random)
        answer = self._behind(hull, seen, noisy, t)
        error = (answer - wanted) * inside
        total = inside.sum().clamp_min(1)
        depth_l1, edges = error.abs().sum() / total, steps(error) / total
        return depth_l1 + 0.25 * edges, {"depth": depth_l1, "edges": edges}

    def _behind(self, hull: Tensor, seen: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """How far the surface lies behind the hull, in frames [B 6 1 S S], from noisy latents of level t."""
        concat = torch.cat(
            [self._codec.encode(to_frames(seen)), self._depths.encode(to_frames(hull[:, :, None]))], 2
        )
        conditions = self.network.prepare(concat=concat)  # type: ignore[operator]
        return functional.pixel_shuffle(self.network(noisy, t, conditions).float(), self._codec.patch)

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Depth as drawn in one step from the true views, above the true one: [3 H W]."""
        photo, views = (on_grey(batch[name].float() / 255) for name in ("photo", "views"))
        hull = hull_depth(views[:, :, 3:])
        shape = self._depths.encode(to_frames(hull[:, :, None])).shape
        noise = torch.randn(shape, generator=random, device=hull.device)
        t = torch.full((len(views),), FIRST_TIMESTEP, device=hull.device)
        depth = hull + to_views(self._behind(hull, views, noise, t))[:, :, 0]
        alpha = views[:, :, 3]
        return compared(on_white(photo), shaded(depth, alpha), shaded(batch["depth"].float(), alpha))

    @torch.no_grad()
    def _imagined(self, first: MultiViewUNet, photo: Tensor, random: torch.Generator) -> Tensor:
        """What the second stage will be given of photos [B 4 S S]: views [B 6 4 S S], outlines agreed."""
        seen = on_grey(photo)
        views = imagined(first, self._codec, seen, random).clone()
        views[:, FRONT] = seen
        return torch.cat([views[:, :, :3], agree_outlines(views[:, :, 3:], seen[:, 3:])], dim=2)


class ReconstructionTask:
    """Six views with coordinate maps → signed distance and colour in space."""

    name = "reconstruction"

    def __init__(self, config: ReconstructionConfig) -> None:
        self.network: nn.Module = Reconstruction(config)

    def shown(self, batch: Batch, random: torch.Generator) -> list[SixViews]:
        """What the network gets of a batch."""
        return degraded(batch["views"].float() / 255, batch["depth"].float(), random)

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """Clipped distance, inside or outside, and colour on the surface."""
        fields = self.network.fields(self.shown(batch, random))  # type: ignore[operator]
        distance = occupancy = colour = torch.zeros((), device=batch["points"].device)
        for index, field in enumerate(fields):
            sdf = batch["sdf"][index].float()
            answer = field.geometry(batch["points"][index].float())[0]
            distance = distance + (answer.clamp(-0.1, 0.1) - sdf.clamp(-0.1, 0.1)).abs().mean()
            occupancy = occupancy + functional.binary_cross_entropy_with_logits(
                -answer / 0.02, (sdf < 0).float()
            )
            painted = field.colour(batch["surface"][index].float())
            colour = colour + (painted - batch["surface_rgb"][index].float() / 255).abs().mean()
        distance, occupancy, colour = (term / len(fields) for term in (distance, occupancy, colour))
        terms = {"distance": distance, "occupancy": occupancy, "colour": colour}
        return 10 * distance + 0.3 * occupancy + colour, terms

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        """The surface from the true views, seen from six sides, above those views: [3 H W]."""
        photo, views = (batch[name].float() / 255 for name in ("photo", "views"))
        fields = self.network.fields(records_of(views, batch["depth"].float()))  # type: ignore[operator]
        drawn = torch.stack([rendered(field, photo.shape[-1]) for field in fields])
        return compared(on_white(on_grey(photo)).cpu(), drawn, on_white(on_grey(views)).cpu())


def see(network: nn.Module, codec: PatchCodec, photo: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """Let the first stage draw: frames [B 6 4 S S] in [-1, 1] from a photo [B 4 S S] on grey.

    noisy: latents [B 6 C h w] at noise level t [B].
    """
    seen = codec.encode(photo)
    conditions = network.prepare(concat=codec.encode(photo_for_frames(photo)), reference=seen)  # type: ignore[operator]
    answer = network(torch.cat([noisy, seen[:, None]], dim=1), t, conditions)[:, :6]
    return functional.pixel_shuffle(answer.float(), codec.patch)


def imagined(network: nn.Module, codec: PatchCodec, photo: Tensor, random: torch.Generator) -> Tensor:
    """Views [B 6 4 S S] in [0, 1], drawn in one step from photos [B 4 S S] on grey."""
    channels, *side = codec.encode(photo).shape[1:]
    noise = torch.randn((len(photo), len(VIEWS), channels, *side), generator=random, device=photo.device)
    t = torch.full((len(photo),), FIRST_TIMESTEP, device=photo.device)
    return to_views(((see(network, codec, photo, noise, t) + 1) / 2).clamp(0, 1))


def _half(count: int, random: torch.Generator) -> int:
    """Half of so many; of one alone it is chance whether that is none or the one."""
    if count > 1:
        return count // 2
    return int(torch.rand((), generator=random, device=random.device) < 0.5)


def steps(error: Tensor) -> Tensor:
    """Sum of differences between neighbouring pixels of an error [... H W]."""
    return error.diff(dim=-1).abs().sum() + error.diff(dim=-2).abs().sum()


def draw_steps(count: int, random: torch.Generator) -> Tensor:
    """Noise levels to train at: two thirds where sampling starts, so that one step alone is good."""
    device = random.device
    anywhere = torch.randint(0, FIRST_TIMESTEP + 1, (count,), generator=random, device=device)
    is_first = torch.rand(count, generator=random, device=device) < 0.65
    return torch.where(is_first, torch.full_like(anywhere, FIRST_TIMESTEP), anywhere)


def noised(schedule: Schedule, clean: Tensor, t: Tensor, random: torch.Generator) -> Tensor:
    """Add noise of level t [B] to clean latents [B F C h w]."""
    return schedule.noised(clean, torch.randn(clean.shape, generator=random, device=clean.device), t)


def augment(batch: Batch, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror objects and swap their colour channels at random; returns photo, views, depth as floats."""
    photo, views, depth = batch["photo"].float() / 255, batch["views"].float() / 255, batch["depth"].float()
    flips = torch.rand(len(photo), generator=random, device=photo.device) < 0.5
    order = torch.cat(
        [torch.randperm(3, generator=random, device=photo.device), torch.full((1,), 3, device=photo.device)]
    )
    photo, views = photo[:, order], views[:, :, order]
    swapped = list(range(6))
    swapped[LEFT], swapped[RIGHT] = RIGHT, LEFT
    where = flips[:, None, None, None]
    return (
        torch.where(where, photo.flip(-1), photo),
        torch.where(where[..., None], views[:, swapped].flip(-1), views),
        torch.where(where, depth[:, swapped].flip(-1), depth),
    )


def soften(views: Tensor, random: torch.Generator) -> Tensor:
    """Blur views as the first stage blurs them, but never the front, which is the photo: [B 6 4 S S]."""
    size = views.shape[-1]
    factor = (1, 2, 4)[int(torch.randint(0, 3, (), generator=random, device=views.device))]
    if factor == 1:
        return views
    flat = views.flatten(0, 1)
    blurred = functional.interpolate(functional.avg_pool2d(flat, factor), size=(size, size), mode="bilinear")
    soft = blurred.view_as(views).clone()
    soft[:, FRONT] = views[:, FRONT]
    return soft


def degraded(views: Tensor, depth: Tensor, random: torch.Generator) -> list[SixViews]:
    """Records as the reconstruction will get them: four in ten exact, the others with wavy depth.

    views: [B 6 4 S S]; depth: [B 6 S S].
    """
    waves = functional.interpolate(
        torch.randn(len(views), 6, 5, 5, generator=random, device=views.device),
        size=depth.shape[-2:],
        mode="bicubic",
    )
    strength = torch.rand(len(views), 1, 1, 1, generator=random, device=views.device) * 0.08
    noisy = torch.rand(len(views), 1, 1, 1, generator=random, device=views.device) < 0.6
    depth = torch.where(noisy, depth + waves * strength, depth).clamp(-1, 1)
    return records_of(views, depth)


def records_of(views: Tensor, depth: Tensor) -> list[SixViews]:
    """Views [B 6 4 S S] and depth [B 6 S S] as the denoisers hand them on, on grey."""
    return [
        SixViews(rgb=v[:, :3], alpha=v[:, 3:], ccm=maps_of(d, v[:, 3:]))
        for v, d in zip(on_grey(views), depth, strict=True)
    ]
