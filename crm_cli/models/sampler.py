"""Schedule, solvers and guidance: functions over any denoiser.

Everything is written in the signal level ᾱ (x_t = √ᾱ·x0 + √(1−ᾱ)·noise), because the published schedule
reaches ᾱ = 0, where signal-to-noise ratios and their logarithms end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from crm_cli.models.steps import FIRST_TIMESTEP, TIMESTEPS, guided_steps, timesteps

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Prediction [B ...] of noisy latents [B ...] at timesteps int64 [B]."""

Progress = Callable[[int, int], None]
"""Told after each evaluation: how many are done, of how many."""


def ignore(done: int, of: int) -> None:
    """What hears of progress where nobody wants to know."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Signal level of every timestep."""

    alpha_bar: Tensor
    """float64 [1000], falling."""

    def at(self, t: Tensor, like: Tensor) -> Tensor:
        """ᾱ at timesteps t ([B] or [B F]), with trailing axes to broadcast against `like`, in its type."""
        levels = self.alpha_bar.to(t.device)[t]
        return levels.reshape(*t.shape, *[1] * (like.ndim - t.ndim)).to(like)

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Add noise to clean latents [B F ...]; t is [B], or [B F] where every frame has its own."""
        level = self.at(t, clean)
        return level.sqrt() * clean + (1 - level).sqrt() * noise


def published_schedule() -> Schedule:
    """Square-root-linear betas, rescaled to zero terminal signal.

    (thu-ml/CRM, imagedream/configs; rescaling: arXiv 2305.08891, algorithm 1)
    """
    ends = math.sqrt(0.00085), math.sqrt(0.012)
    # Numbers for the host, whatever device tensors are made on by default.
    betas = torch.linspace(*ends, TIMESTEPS, dtype=torch.float64, device="cpu") ** 2
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return Schedule(roots**2)


def dice(seed: int, digest: str, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the photo alone."""
    text = f"{seed}:{digest}:{purpose}".encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise [B *shape] from one CPU generator per object, whatever shares its batch."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


class Solver(Protocol):
    """A way from noise to a clean latent."""

    def integrate(
        self, clean_at: Callable[[Tensor, int], Tensor], x: Tensor, levels: Sequence[float]
    ) -> Tensor:
        """Carry x from the first level to the last.

        clean_at(x, i) predicts x0 of x at levels[i] and is asked once for each level but the last,
        which the result has.
        """
        ...


class Ddim:
    """First order, as published (arXiv 2010.02502, eq. 12 with σ = 0)."""

    def integrate(
        self, clean_at: Callable[[Tensor, int], Tensor], x: Tensor, levels: Sequence[float]
    ) -> Tensor:
        """One line from level to level along the predicted noise."""
        for i in range(len(levels) - 1):
            x = first_order(x, clean_at(x, i), levels[i], levels[i + 1])
        return x


class UniPc:
    """Second order predictor and corrector, one evaluation a step (UniPC, arXiv 2302.04867).

    Data prediction, B(h) = e^h − 1 (`bh2` in wl-zhao/UniPC). The first and the last step are of first
    order: the first knows no history; the last may end at ᾱ = 1, infinitely far in log
    signal-to-noise ratio.
    """

    def integrate(
        self, clean_at: Callable[[Tensor, int], Tensor], x: Tensor, levels: Sequence[float]
    ) -> Tensor:
        """Predict the next state from two evaluations, then correct it with the next one."""
        history: list[Tensor] = []
        for i in range(len(levels) - 1):
            predicted = x if i == 0 else self._predict(x, history, levels[: i + 1])
            clean = clean_at(predicted, i)
            if i > 0:
                x = self._correct(x, history, clean, levels[: i + 1])
            history = [*history[-1:], clean]
        return first_order(x, history[-1], levels[-2], levels[-1])

    def _predict(self, x: Tensor, history: list[Tensor], levels: Sequence[float]) -> Tensor:
        """State at levels[-1] from x at levels[-2] and x0 at the one or two levels before."""
        y = first_order(x, history[-1], levels[-2], levels[-1])
        if len(history) == 1:
            return y
        step = _Step.of(levels)
        return y + step.gain * 0.5 * (history[-2] - history[-1]) / step.ratio

    def _correct(self, x: Tensor, history: list[Tensor], clean: Tensor, levels: Sequence[float]) -> Tensor:
        """The same step again, now that x0 at its end is known too."""
        y = first_order(x, history[-1], levels[-2], levels[-1])
        step = _Step.of(levels)
        change = clean - history[-1]
        if len(history) == 1:
            return y + step.gain * 0.5 * change
        # Two unknown weights from the two moments that UniC-2 matches: (1, 1)·w = b1, (ratio, 1)·w = b2.
        b1, b2 = step.moments
        past_weight = (b1 - b2) / (1 - step.ratio)
        past = (history[-2] - history[-1]) / step.ratio
        return y + step.gain * (past_weight * past + (b1 - past_weight) * change)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step in λ = log(√ᾱ / √(1−ᾱ)), from levels[-2] to levels[-1]."""

    size: float
    """h, positive."""
    ratio: float
    """Where the evaluation before lies, in steps from levels[-2]; negative. 0 if there is none."""
    gain: float
    """√ᾱ·(1 − e^−h) with ᾱ of the end: how much of a change in x0 arrives in x."""

    @classmethod
    def of(cls, levels: Sequence[float]) -> _Step:
        h = _half_log_snr(levels[-1]) - _half_log_snr(levels[-2])
        past = _half_log_snr(levels[-3]) - _half_log_snr(levels[-2]) if len(levels) > 2 else 0.0
        return cls(size=h, ratio=past / h, gain=-math.sqrt(levels[-1]) * math.expm1(-h))

    @property
    def moments(self) -> tuple[float, float]:
        """Right-hand side of the corrector's two order conditions."""
        first = math.expm1(-self.size) / -self.size - 1
        second = first / -self.size - 0.5
        return first / math.expm1(-self.size), 2 * second / math.expm1(-self.size)


def _half_log_snr(level: float) -> float:
    return 0.5 * (math.log(level) - math.log1p(-level))


def first_order(x: Tensor, clean: Tensor, level: float, target: float) -> Tensor:
    """Carry x from one level to another along a straight line: noise and x0 as predicted stay."""
    shrink = math.sqrt((1 - target) / (1 - level))
    return shrink * x + (math.sqrt(target) - math.sqrt(level) * shrink) * clean


SOLVERS: dict[str, Solver] = {"ddim": Ddim(), "unipc": UniPc()}


def shares_of(solver: str, levels: Sequence[float]) -> Tensor:
    """What a solver makes of noise and answers, as numbers: float64 [n + 1, n + 1] for n evaluations.

    Row i holds the shares of the noise and of each x0 so far in what evaluation i is asked about; the last
    row those in the result. Solvers are linear in all of these, so one that is given unit vectors tells them.
    """
    units = torch.eye(len(levels), dtype=torch.float64, device="cpu")
    asked: list[Tensor] = []

    def clean_at(x: Tensor, i: int) -> Tensor:
        asked.append(x)
        return units[i + 1]

    result = SOLVERS[solver].integrate(clean_at, units[0], levels)
    return torch.stack([*asked, result])


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Push a prediction away from the unconditional one (arXiv 2207.12598, eq. 6 with w = scale − 1)."""
    return unconditional + scale * (conditional - unconditional)


def guided(denoise: Denoise, scale: float) -> Denoise:
    """A denoiser of B objects from one that takes [unconditional; conditional] in one batch of 2B.

    The difference of two answers is formed in x's precision, whatever the network's.
    """

    def both(x: Tensor, t: Tensor) -> Tensor:
        answers = denoise(torch.cat([x, x]), torch.cat([t, t])).to(x.dtype)
        unconditional, conditional = answers.chunk(2)
        return guide(conditional, unconditional, scale)

    return both


def evaluations(
    solver: str, steps: int, prediction: Literal["eps", "x0"], schedule: Schedule | None = None
) -> tuple[tuple[int, ...], list[float]]:
    """Timesteps at which a denoiser is asked, and their signal levels with that of the result behind."""
    alpha_bar = (schedule or published_schedule()).alpha_bar.tolist()
    is_one_shot = steps == 1 and prediction == "x0"
    asked_at = (FIRST_TIMESTEP,) if is_one_shot else timesteps(solver, steps)
    return asked_at, [alpha_bar[t] for t in asked_at] + [alpha_bar[0] if prediction == "eps" else 1.0]


def sample(
    denoise: Denoise,
    noise: Tensor,
    *,
    steps: int,
    solver: str,
    prediction: Literal["eps", "x0"],
    guidance: float = 1.0,
    guided_share: float = 1.0,
    schedule: Schedule | None = None,
    progress: Progress = ignore,
) -> Tensor:
    """Turn noise [B ...] into latents.

    A noise-predicting network ends at ᾱ_0, as published; one that predicts x0 ends at its last answer,
    which with one step is its answer at t = 981. Arithmetic between evaluations is in single precision
    at least.

    Args:
        denoise: Prediction of x at t; in guided steps it gets a doubled batch, see `guided`.
        noise: Unit noise, from `draw_noise`.
        steps: Evaluations of the denoiser; the published solver may make more, see `steps.ddim_timesteps`.
        solver: A key of SOLVERS.
        prediction: What the denoiser predicts.
        guidance: Scale; at 1 only the conditional branch is run.
        guided_share: Share of the evaluations, from the first on, that are guided (arXiv 2404.07724).
        schedule: By default `published_schedule`.
        progress: Called after each evaluation.
    """
    asked_at, levels = evaluations(solver, steps, prediction, schedule)
    guided_until = guided_steps(guidance, guided_share, of=len(asked_at))
    with_guidance = guided(denoise, guidance)

    def clean_at(x: Tensor, i: int) -> Tensor:
        t = torch.full(x.shape[:1], asked_at[i], device=x.device)
        answer = (with_guidance if i < guided_until else denoise)(x, t).to(x.dtype)
        progress(i + 1, len(asked_at))
        return answer if prediction == "x0" else clean_from_noise(x, answer, levels[i])

    wide = torch.promote_types(noise.dtype, torch.float32)
    return SOLVERS[solver].integrate(clean_at, noise.to(wide), levels)


def clean_from_noise(x: Tensor, noise: Tensor, level: float) -> Tensor:
    """x0 where the noise in x is known."""
    return (x - math.sqrt(1 - level) * noise) / math.sqrt(level)
