from __future__ import annotations

import pytest

from crm_cli.errors import UsageError
from crm_cli.models.steps import ddim_timesteps, even_timesteps, planned, timesteps
from crm_cli.preset import Sampling, load_preset


def test_published_timesteps_are_reproduced_with_their_oddities() -> None:
    assert ddim_timesteps(50) == tuple(range(981, 0, -20))
    assert ddim_timesteps(1) == (1,)
    assert (len(ddim_timesteps(30)), ddim_timesteps(30)[0]) == (31, 991)
    assert len(ddim_timesteps(75)) == 77
    for steps in (10, 20, 25, 40, 50, 100, 125, 200, 250):
        assert len(ddim_timesteps(steps)) == steps
        assert ddim_timesteps(steps)[-1] == 1


def test_step_counts_that_the_published_code_cannot_do_are_refused() -> None:
    def is_refused(steps: int) -> bool:
        try:
            ddim_timesteps(steps)
        except UsageError:
            return True
        return False

    wrong_index = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}
    no_signal = set(range(334, 501))
    refused = {steps for steps in range(-1, 1003) if is_refused(steps)}
    assert refused == wrong_index | no_signal | {-1, 0, 1001, 1002}


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 980])
def test_even_timesteps_are_as_many_as_asked_and_fall_from_981(steps: int) -> None:
    timesteps = even_timesteps(steps)
    assert len(timesteps) == len(set(timesteps)) == steps
    assert list(timesteps) == sorted(timesteps, reverse=True)
    assert timesteps[0] == 981
    assert steps == 1 or timesteps[-1] == 1


@pytest.mark.parametrize("steps", [0, 981])
def test_impossible_even_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="E_STEPS"):
        even_timesteps(steps)


def test_a_solver_has_its_own_timesteps() -> None:
    assert timesteps("ddim", 50)[:2] == (981, 961)
    assert timesteps("unipc", 50)[:2] == (981, 961)
    assert (len(timesteps("ddim", 30)), len(timesteps("unipc", 30))) == (31, 30)


@pytest.mark.parametrize(
    ("guidance", "share", "guided"),
    [(5.0, 1.0, 31), (5.0, 0.6, 19), (5.0, 0.01, 0), (1.0, 1.0, 0), (0.0, 1.0, 31)],
)
def test_guidance_ends_after_its_share_of_all_evaluations(guidance: float, share: float, guided: int) -> None:
    sampling = Sampling(solver="ddim", steps=30, guidance=guidance, guided=share)
    assert planned(sampling) == (31, guided)


@pytest.mark.parametrize(
    ("name", "evaluations", "guided"), [("exact", 50, 50), ("fast", 20, 15), ("turbo", 10, 6)]
)
def test_presets_for_large_networks_take_the_steps_they_promise(
    name: str, evaluations: int, guided: int
) -> None:
    preset = load_preset(name, architecture="release").preset
    assert planned(preset.rgb) == planned(preset.ccm) == (evaluations, guided)
