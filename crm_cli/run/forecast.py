"""What a person is told of the time that large networks will take, before they start."""

from __future__ import annotations

from collections.abc import Iterator

from crm_cli.preset import Preset, list_presets, load_preset
from crm_cli.run.events import Forecast

WORTH_S = 60.0
"""Who waits less than a minute need not be told."""

QUICKER = "turbo"
"""The shipped preset for large networks with the fewest steps."""


def forecast(
    photo_s: float, *, photos: int, workers: int, weights: str, preset: Preset
) -> Iterator[Forecast]:
    """The forecast for a whole run, where it is worth saying.

    photo_s: seconds for one photo in one worker. photos: those still to convert.
    """
    run_s = photo_s * -(-photos // max(1, workers))
    if run_s < WORTH_S:
        return
    who = "the published networks" if weights == "published" else f"the networks of {weights}"
    need = f"{who} need about {about(photo_s)} a photo on this CPU where it does nothing else"
    total = f": {about(run_s)} for {photos} photos" if photos > 1 else ""
    yield Forecast(
        photo_s=round(photo_s, 1), run_s=round(run_s, 1), message=f"{need}{total}; {_ways_out(preset)}"
    )


def about(seconds: float) -> str:
    """A time that is only estimated, with as many digits as it deserves."""
    if seconds < 90:
        return f"{max(1, round(seconds / 5)) * 5} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 10) * 10, 60)
    return f"{hours} h {minutes:02} min"


def _ways_out(preset: Preset) -> str:
    """What would be faster."""
    ways = "--weights embedded takes seconds"
    if QUICKER in list_presets() and _steps(load_preset(QUICKER).preset) < _steps(preset):
        ways += f", --preset {QUICKER} is quicker"
    return ways


def _steps(preset: Preset) -> int:
    return preset.rgb.steps + preset.ccm.steps
