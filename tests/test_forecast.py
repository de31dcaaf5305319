from __future__ import annotations

import pytest

from crm_cli.preset import Preset, load_preset
from crm_cli.run.forecast import WORTH_S, about, forecast


def suited(name: str = "default") -> Preset:
    return load_preset(name, architecture="release").preset


def message(photo_s: float, photos: int, weights: str = "published", preset: Preset | None = None) -> str:
    [told] = forecast(photo_s, photos=photos, workers=1, weights=weights, preset=preset or suited())
    return told.message


def test_a_person_is_told_the_time_of_a_photo_of_all_photos_and_what_is_faster() -> None:
    assert message(1500, 8) == (
        "the published networks need about 25 min a photo on this CPU where it does nothing else: "
        "3 h 20 min for 8 photos; --weights embedded takes seconds, --preset turbo is quicker"
    )


def test_for_a_single_photo_the_time_is_told_once() -> None:
    assert message(1500, 1).startswith(
        "the published networks need about 25 min a photo on this CPU where it does nothing else; "
    )


def test_networks_of_one_s_own_are_called_by_their_folder() -> None:
    assert message(1500, 8, weights="shoes").startswith("the networks of shoes need about ")


@pytest.mark.parametrize(("name", "is_named"), [("exact", True), ("fast", True), ("turbo", False)])
def test_the_quickest_preset_is_named_only_to_those_who_use_a_slower_one(name: str, is_named: bool) -> None:
    assert ("--preset turbo" in message(1500, 8, preset=suited(name))) == is_named


def test_less_than_a_minute_is_not_worth_a_word() -> None:
    def told(photo_s: float, photos: int, workers: int) -> int:
        return len(
            list(forecast(photo_s, photos=photos, workers=workers, weights="published", preset=suited()))
        )

    assert told(WORTH_S / 4, 3, 1) == 0
    assert told(WORTH_S / 4, 4, 1) == 1
    assert told(WORTH_S / 4, 4, 2) == 0
    assert told(WORTH_S / 4, 7, 2) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "5 s"),
        (43, "45 s"),
        (89, "90 s"),
        (91, "2 min"),
        (1500, "25 min"),
        (5369, "89 min"),
        (5430, "1 h 30 min"),
        (12_000, "3 h 20 min"),
        (14_390, "4 h 00 min"),
    ],
)
def test_an_estimate_has_no_more_digits_than_it_deserves(seconds: float, words: str) -> None:
    assert about(seconds) == words
