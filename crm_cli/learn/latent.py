"""What the published denoisers are asked in training: which noise is in the latents of six pictures.

The loss and all that is drawn at random are those of the published training (CRM §3.1; thu-ml/CRM,
train.py and its configs), with three differences. The text is the constant prompt of inference, for
captions are rare. Some examples may show a photo in place of a face of the object itself. And conditions
may be hidden from some, so that guidance keeps its unconditional half; the published scripts never did.

What a step costs, counted by tests/bench_latent.py: the U-Net's 942 million parameters, their gradients,
both moments of the optimiser and the average take 3.8 GB each in single precision, 18.8 GB together. The
frozen parts take 2.8 GB. For the way back 3.5 GB are kept of each object, or with bfloat16 1.7 GB and once
1.9 GB of converted parameters; where blocks are computed twice it is 0.3 GB. An object takes 7·10¹²
operations, a third of them in the frozen parts; 7.5·10¹² and half in the second stage.

Nothing of the frozen parts' answers is stored: sizes, backgrounds and faces are drawn anew in each step, so
that no picture comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from crm_cli.frame import FRONT, VIEWS
from crm_cli.learn.beginning import Start
from crm_cli.learn.faces import SIDES, turned
from crm_cli.learn.train import Batch, Terms
from crm_cli.models.agree import SOLID, centres, maps_of
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.clip import Contexts
from crm_cli.models.denoiser import MultiViewUNet, to_frames
from crm_cli.models.encoders import TOWER_PX, VAE_PX, for_tower
from crm_cli.models.engine import Shown
from crm_cli.models.imagine import encode, look, prepare
from crm_cli.models.layers import MultiViewTransformer, ResidualBlock
from crm_cli.models.sampler import published_schedule
from crm_cli.models.steps import TIMESTEPS
from crm_cli.models.vae import Vae

FULL = 0.95
"""Share of a picture that the largest objects fill; their coordinates still go from -1 to 1.
(thu-ml/CRM, imagedream training data)"""

SMALLEST = 0.5
"""The first stage learns from objects down to this share of FULL (CRM §3.1, random resizing)."""

CONTOURED = 0.5
"""Share of the first stage's examples whose outline is painted over, so that it trusts no outline."""

MAX_CONTOUR_PX = 3

LEARNING_RATE, WEIGHT_DECAY = 5e-5, 1e-2
"""Of the published training (CRM §4.1; the optimiser's own decay)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """How examples of the published structure are shown."""

    hidden: float = 0.0
    """Share of examples without any condition, as the unconditional half of a guided sampling is."""
    photos: float = 0.5
    """Share of examples that show the photo; the others show a face of the object, as published."""
    is_recomputed: bool = False
    """Whether blocks are computed once more on the way back: a tenth of the memory, a third more time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frozen:
    """What is read and never trained."""

    vae: Vae
    vision: nn.Module
    contexts: Contexts


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pictures:
    """What a batch looks like to the networks, in [0, 1]; views in the order of `frame.VIEWS`."""

    seen: Tensor
    """[B 3 256 256]: what stands in the place of a photo."""
    rgb: Tensor
    """[B 6 3 256 256]."""
    maps: Tensor
    """[B 6 3 256 256]: world coordinates from -1 to 1 as 0 to 1, in the order X, Y, Z."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Question:
    """Noisy latents with everything that is shown beside them, and the right answer."""

    noisy: Tensor
    """[B F 4 h w], as the network takes it."""
    t: Tensor
    """Noise level of each frame, int64 [B F]."""
    shown: Shown
    clean: Tensor
    """[B 6 4 h w]."""
    noise: Tensor
    """[B 6 4 h w]: what is in the first six frames; the reference has none and counts for nothing."""


class LatentTask:
    """Photo → six views, or photo and six views → their coordinate maps, as published."""

    def __init__(
        self, stage: str, network: nn.Module, frozen: Frozen, settings: LatentSettings | None = None
    ) -> None:
        """stage: rgb or ccm."""
        self.name = stage
        self.network = network
        self._frozen = frozen
        self._settings = settings or LatentSettings()
        self._schedule = published_schedule()
        if self._settings.is_recomputed:
            recompute(network)

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """Mean square of what the answer lacks of the noise."""
        error = self.error(self.ask(self.pictures(batch, random), random))
        return error, {"noise": error}

    def pictures(self, batch: Batch, random: torch.Generator) -> Pictures:
        """Draw how each example is turned, sized, coloured and shown."""
        photo, views, depth = (batch[name].to(random.device) for name in ("photo", "views", "depth"))
        drawn = torch.rand(len(photo), 8, generator=random, device=random.device).tolist()
        examples = [
            self._shown_as(numbers, photo[index] / 255, views[index] / 255, depth[index].float())
            for index, numbers in enumerate(drawn)
        ]
        return Pictures(
            seen=torch.stack([example.seen for example in examples]),
            rgb=torch.stack([example.rgb for example in examples]),
            maps=torch.stack([example.maps for example in examples]),
        )

    def _shown_as(self, drawn: list[float], photo: Tensor, views: Tensor, depth: Tensor) -> Pictures:
        """One example as eight evenly distributed numbers in [0, 1) say."""
        shows_photo, face, size, grey, outlined, *ink = drawn
        is_photo, is_first = shows_photo < self._settings.photos, self.name == "rgb"
        faces = range(len(VIEWS)) if is_first else SIDES
        is_contoured = is_first and outlined < CONTOURED
        return _pictures(
            photo if is_photo else None,
            views,
            depth,
            face=FRONT if is_photo else faces[int(face * len(faces))],
            share=FULL * (SMALLEST + (1 - SMALLEST) * size) if is_first else FULL,
            grey=grey,
            contour=Contour.drawn(outlined / CONTOURED, ink) if is_contoured else None,
        )

    @torch.no_grad()
    def ask(self, pictures: Pictures, random: torch.Generator) -> Question:
        """Turn pictures into latents, and hide them in noise; every frame at a level of its own."""
        rgb = to_frames(pictures.rgb)
        clean = self._latents(rgb if self.name == "rgb" else to_frames(pictures.maps), random)
        noise = torch.randn(clean.shape, generator=random, device=clean.device)
        frames = cast(MultiViewUNet, self.network).config.frames
        t = torch.randint(0, TIMESTEPS, (len(clean), frames), generator=random, device=clean.device)
        noisy = self._schedule.noised(clean, noise, t[:, : len(VIEWS)])
        shown = self._shown(pictures.seen, rgb, random)
        if shown.reference is not None:
            noisy = torch.cat([noisy, shown.reference[:, None]], dim=1)
        return Question(noisy=noisy, t=t, shown=shown, clean=clean, noise=noise)

    def error(self, question: Question) -> Tensor:
        """Mean square of what the network's answer lacks of the noise; the reference's frame is left out."""
        network = cast(MultiViewUNet, self.network)
        answer = network(question.noisy, question.t, prepare(network, [question.shown]))
        return functional.mse_loss(answer[:, : len(VIEWS)].float(), question.noise)

    def _shown(self, seen: Tensor, rgb: Tensor, random: torch.Generator) -> Shown:
        """The conditions, as inference has them, but hidden from some; rgb: frames [B 6 3 S S]."""
        tower = functional.interpolate(seen, size=(TOWER_PX, TOWER_PX), mode="bicubic", antialias=True)
        image = look(self._frozen.vision, for_tower(tower.clamp(0, 1))).float()
        text, negative = (context.expand(len(seen), -1, -1) for context in self._frozen.contexts.tokens)
        if self.name == "rgb":
            shown = Shown(reference=self._latents(seen[:, None], random)[:, 0], image=image, text=text)
        else:
            shown = Shown(concat=self._latents(rgb, random), image=image, text=text)
        is_hidden = torch.rand(len(seen), generator=random, device=seen.device) < self._settings.hidden
        return partly_hidden(shown, shown.hidden(negative), is_hidden)

    def _latents(self, pictures: Tensor, random: torch.Generator) -> Tensor:
        """Latents [B N 4 h w] of pictures [B N 3 S S] in [0, 1], drawn from what the VAE makes of each."""
        config = self._frozen.vae.config
        side = pictures.shape[-1] // config.factor
        shape = (*pictures.shape[:2], config.latent_channels, side, side)
        noise = torch.randn(shape, generator=random, device=pictures.device)
        return encode(self._frozen.vae, pictures * 2 - 1, noise).float()


def open_latent(start: Start, settings: LatentSettings | None, *, device: str) -> LatentTask:
    """A denoiser of the published structure on a device, with what stays frozen beside it."""
    network = ARCHITECTURES[start.architecture].build(start.network)
    start.fill(network)
    frozen = Frozen(
        vae=cast(Vae, start.frozen("vae", device)),
        vision=start.frozen("vision", device),
        contexts=cast(Contexts, start.frozen("contexts", device)),
    )
    return LatentTask(start.network, network.to(device), frozen, settings)


def partly_hidden(shown: Shown, hidden: Shown, is_hidden: Tensor) -> Shown:
    """Conditions of a batch of which some objects are shown nothing; is_hidden: bool [B]."""

    def mixed(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        if one is None or other is None:
            return None
        return torch.where(is_hidden.view(-1, *[1] * (one.ndim - 1)), other, one)

    return replace(
        shown,
        concat=mixed(shown.concat, hidden.concat),
        reference=mixed(shown.reference, hidden.reference),
        image=mixed(shown.image, hidden.image),
        text=mixed(shown.text, hidden.text),
    )


def recompute(network: nn.Module) -> None:
    """Let the blocks of a denoiser keep their inputs alone, and be computed again on the way back.

    Results and gradients are the same bit for bit; what the blocks are called does not change.
    """
    # Nothing in them is random, so there is no state of a generator to be kept.
    again = partial(partial, checkpoint, use_reentrant=False, preserve_rng_state=False)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            block.shifted = again(block.shifted)  # type: ignore[method-assign]
        elif isinstance(block, MultiViewTransformer):
            block.forward = again(block.forward)  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contour:
    """A line along the outline of what is shown."""

    width_px: int
    ink: tuple[float, float, float]

    @classmethod
    def drawn(cls, share: float, ink: list[float]) -> Contour:
        """From evenly distributed numbers in [0, 1)."""
        red, green, blue = ink
        return cls(width_px=1 + int(share * MAX_CONTOUR_PX), ink=(red, green, blue))

    def over(self, rgb: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Paint premultiplied colours [3 S S] and coverage [1 S S]."""
        solid = (alpha > SOLID).float()[None]
        edge = solid * (functional.max_pool2d(1 - solid, 3, stride=1, padding=1) > 0)
        # An even width grows to one side.
        line = functional.max_pool2d(edge, self.width_px, stride=1, padding=self.width_px // 2)
        line = line[0, :, : rgb.shape[-2], : rgb.shape[-1]]
        ink = rgb.new_tensor(self.ink)[:, None, None]
        return torch.where(line > 0, ink, rgb), torch.maximum(alpha, line)


def _pictures(
    photo: Tensor | None,
    views: Tensor,
    depth: Tensor,
    *,
    face: int,
    share: float,
    grey: float,
    contour: Contour | None,
) -> Pictures:
    """One object as the published training shows it; without a leading axis.

    All pictures are sized alike and lie on the same grey, the maps with the coverage of the colours.

    Args:
        photo: [4 S S] of its front, or None: the front view stands for it.
        views: [6 4 S S].
        depth: [6 S S].
        face: which of its faces becomes the front.
        share: of a picture that the object's longest side fills.
        grey: background.
        contour: painted over what is shown.
    """
    half = _half_extent(views[:, 3])
    every = torch.cat([views, depth[:, None]], dim=1)
    every = turned(every, face)
    rgb, alpha, depth = every[:, :3], every[:, 3:4], every[:, 4]
    maps = (maps_of(depth, torch.ones_like(alpha)) * 2 - 1) / half  # [6 3 S S]
    laid = torch.cat([rgb * alpha, (maps.clamp(-1, 1) / 2 + 0.5) * alpha, alpha], dim=1)  # [6 7 S S]
    laid = _sized(laid, share / half)
    rgb, coordinates, alpha = laid[:, :3], laid[:, 3:6], laid[:, 6:]
    seen, outline = rgb[FRONT], alpha[FRONT]
    if photo is not None:
        shown = _sized(torch.cat([photo[:3] * photo[3:], photo[3:]])[None], share / half)[0]
        seen, outline = shown[:3], shown[3:]
    if contour is not None:
        seen, outline = contour.over(seen, outline)
    return Pictures(
        seen=seen + grey * (1 - outline),
        rgb=rgb + grey * (1 - alpha),
        maps=coordinates + grey * (1 - alpha),
    )


def _half_extent(alpha: Tensor) -> float:
    """Half the longest side of an object in world units, from its outlines [6 S S] around the middle."""
    size = alpha.shape[-1]
    grid = centres(size).to(alpha.device).abs() + 1 / size  # to the far border of each pixel
    far = torch.maximum(grid[None, :], grid[:, None])
    return max((far * (alpha > SOLID)).amax().item(), 1 / size)


def _sized(pictures: Tensor, factor: float) -> Tensor:
    """Pictures [N C S S] in the middle of 256 px, all of one S being 256 · factor px."""
    side = 2 * max(1, round(VAE_PX * factor / 2))
    resized = functional.interpolate(
        pictures, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    border = (VAE_PX - side) // 2  # negative: what would lie outside is cut off
    return functional.pad(resized, (border, border, border, border))
