"""A diffusion whose answers are known exactly, with guidance, and where its flow really leads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crm_cli.models import sampler
from crm_cli.models.steps import FIRST_TIMESTEP, guided_steps, timesteps

ALPHA_BAR = sampler.published_schedule().alpha_bar

FINE_STEPS = 200
"""Of the flow taken for exact: twice as many change it by less than a thousandth of any error here."""


def unit_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mixture:
    """Exact answers for data drawn from equal Gaussians of one width around given centres."""

    def __init__(self, centres: Tensor, width: float) -> None:
        self.centres = centres
        self.width = width

    def clean(self, x: Tensor, level: float) -> Tensor:
        """Expected x0 of x [B D] at a signal level."""
        spread = level * self.width**2 + 1 - level
        offsets = x[:, None] - math.sqrt(level) * self.centres  # [B K D]
        shares = (-offsets.square().sum(-1) / (2 * spread)).softmax(dim=1)
        # Each centre's own answer is centre + pull·(x − √ᾱ·centre); shares add up to one.
        pull = math.sqrt(level) * self.width**2 / spread
        return (1 - pull * math.sqrt(level)) * (shares @ self.centres) + pull * x

    def noise_at(self, x: Tensor, level: float) -> Tensor:
        return (x - math.sqrt(level) * self.clean(x, level)) / math.sqrt(1 - level)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        return self.noise_at(x, ALPHA_BAR[t[0]].item())


@dataclass(frozen=True)
class Guided:
    """A class of the data beside all of them, as a guided denoiser knows them."""

    shown: Mixture
    hidden: Mixture
    scale: float = 5.0

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """What a batch [unconditional; conditional] is answered, or a conditional one of half the size.

        Told apart by size, so `sample` has to be given as many objects as OBJECTS.
        """
        if len(x) == OBJECTS:
            return self.shown.noise(x, t)
        hidden, shown = x.chunk(2)
        return torch.cat([self.hidden.noise(hidden, t[:1]), self.shown.noise(shown, t[:1])])

    def noise_at(self, x: Tensor, level: float) -> Tensor:
        return sampler.guide(self.shown.noise_at(x, level), self.hidden.noise_at(x, level), self.scale)

    def sample(self, noise: Tensor, solver: str, steps: int, share: float = 1.0) -> Tensor:
        """End points [B D] of a few steps."""
        return sampler.sample(
            self.denoise,
            noise,
            steps=steps,
            solver=solver,
            prediction="eps",
            guidance=self.scale,
            guided_share=share,
        )

    def converged(self, noise: Tensor, *, until: float | None = None) -> Tensor:
        """End points [B D] of infinitely many; until: the signal level at which guidance ends."""
        if until is None:
            return flow(self.noise_at, noise, *ENDS)
        return flow(self.shown.noise_at, flow(self.noise_at, noise, ENDS[0], until), until, ENDS[1])


ENDS = ALPHA_BAR[FIRST_TIMESTEP].item(), ALPHA_BAR[0].item()
OBJECTS = 64

_CENTRES = unit_noise(40, 16, seed=3)
TOY = Guided(shown=Mixture(_CENTRES[:12], width=0.05), hidden=Mixture(_CENTRES, width=0.05))
"""Narrow, as data near a surface of few dimensions are; the photo leaves twelve of forty possible."""


def flow(noise_at: Callable[[Tensor, float], Tensor], x: Tensor, start: float, end: float) -> Tensor:
    """Carry x from one signal level to another along its exact flow.

    With y = x/√ᾱ and s = √((1−ᾱ)/ᾱ) it is dy/ds = noise (arXiv 2010.02502, eq. 14): classical Runge-Kutta
    of fourth order, evenly in log s. Shares nothing with our solvers.
    """
    logs = torch.linspace(*(0.5 * math.log((1 - a) / a) for a in (start, end)), FINE_STEPS + 1).tolist()
    y = x / math.sqrt(start)

    def slope(y: Tensor, log_s: float) -> Tensor:
        s = math.exp(log_s)
        return s * noise_at(y / math.sqrt(1 + s * s), 1 / (1 + s * s))

    for before, after in itertools.pairwise(logs):
        h, middle = after - before, (before + after) / 2
        a = slope(y, before)
        b = slope(y + h / 2 * a, middle)
        c = slope(y + h / 2 * b, middle)
        d = slope(y + h * c, after)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y * math.sqrt(end)


def guidance_ends(solver: str, steps: int, share: float) -> float:
    """The signal level between the last guided evaluation and the first without."""
    asked = timesteps(solver, steps)
    guided = guided_steps(TOY.scale, share, of=len(asked))
    return ALPHA_BAR[(asked[guided - 1] + asked[guided]) // 2].item()


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """Root mean square of each object [B]."""
    return (found - exact).square().mean(dim=1).sqrt()
