"""At which timesteps the denoisers are asked, and how often with guidance.

Pure arithmetic: a run refuses what cannot be done before it starts anything.
"""

from __future__ import annotations

from crm_cli.errors import UsageError
from crm_cli.preset import Sampling

TIMESTEPS = 1000
FIRST_TIMESTEP = 981
"""Where sampling starts: the first of the published 50 steps. At 999 ᾱ is 0 and noise predictions say
nothing of x0; already at 998 an error in them would count 2254-fold, at 981 it counts 120-fold."""
LAST_TIMESTEP = 1


def timesteps(solver: str, steps: int) -> tuple[int, ...]:
    """Where a solver asks the denoiser for a wanted number of steps, falling; UsageError where it cannot."""
    return TIMESTEPS_OF[solver](steps)


def ddim_timesteps(steps: int) -> tuple[int, ...]:
    """The published timesteps for a wanted number of steps, falling.

    As published, `steps` that do not divide 1000 give more timesteps than asked. Those for which the
    published code fails (index 1000) or divides by zero (t = 999) are refused.
    (thu-ml/CRM, imagedream/ldm/models/diffusion/ddim.py)
    """
    if not 1 <= steps <= TIMESTEPS:
        raise _bad_steps(steps, f"must be 1 to {TIMESTEPS}")
    falling = tuple(t + 1 for t in range(0, TIMESTEPS, TIMESTEPS // steps))[::-1]
    if falling[0] >= TIMESTEPS - 1:
        raise _bad_steps(steps, f"its first timestep would be {falling[0]}, where there is no signal")
    return falling


def even_timesteps(steps: int) -> tuple[int, ...]:
    """Exactly `steps` timesteps, evenly spaced from 981 down to 1; 981 alone for one step."""
    span = FIRST_TIMESTEP - LAST_TIMESTEP
    if not 1 <= steps <= span:
        raise _bad_steps(steps, f"must be 1 to {span}")
    return tuple(FIRST_TIMESTEP - round(step * span / max(steps - 1, 1)) for step in range(steps))


def _bad_steps(steps: int, why: str) -> UsageError:
    return UsageError(f"{steps} sampling steps: {why}", code="E_STEPS", remedy="use 10, 20, 25, 40 or 50")


TIMESTEPS_OF = {"ddim": ddim_timesteps, "unipc": even_timesteps}


def guided_steps(guidance: float, share: float, *, of: int) -> int:
    """How many evaluations, from the first on, are guided (arXiv 2404.07724); at a scale of 1 none is."""
    return 0 if guidance == 1 else round(share * of)


def planned(sampling: Sampling) -> tuple[int, int]:
    """Evaluations of a denoiser, and how many of them are guided."""
    evaluations = len(timesteps(sampling.solver, sampling.steps))
    return evaluations, guided_steps(sampling.guidance, sampling.guided, of=evaluations)
