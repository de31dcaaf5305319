"""Decisions about weights from scores that are made up."""

from __future__ import annotations

import numpy as np
import pytest
from scored import better_by, many, score, varied

from crm_cli.learn.compare import BETTER, compare, decide, difference, margins
from crm_cli.learn.evaluate import figures


def test_a_small_gain_on_every_product_is_seen_through_large_differences_between_them() -> None:
    before = varied()
    decision = decide(better_by(before, 0.01, 0.02), before)
    [gain] = [one for one in decision.differences if one.figure == "f_score"]
    assert gain.word == "better"
    assert gain.low < 0.01 < gain.high
    assert decision.may_ship


def test_a_gain_within_chance_does_not_ship() -> None:
    before = varied()
    decision = decide(better_by(before, 0.0, 0.02), before)
    assert not decision.is_better
    assert not decision.may_ship
    assert decision.behind == ()


def test_the_same_weights_do_not_beat_themselves() -> None:
    scores = varied()
    assert {one.word for one in compare(scores, scores)} == {"undecided"}
    assert not decide(scores, scores).may_ship


def test_worse_weights_do_not_ship() -> None:
    before = varied()
    decision = decide(better_by(before, -0.02, 0.02), before)
    assert [one.word for one in decision.differences if one.figure == "f_score"] == ["worse"]
    assert not decision.may_ship


def test_the_interval_is_as_wide_as_the_textbook_says() -> None:
    random = np.random.default_rng(2)
    gains = random.normal(0.1, 0.3, 400)
    found = difference("f_score", gains.tolist(), [0.0] * 400, better="higher")
    half = 1.96 * gains.std() / 20
    assert found.mean == pytest.approx(gains.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    assert found.mean - found.low == pytest.approx(half, rel=0.05)


def test_lower_is_better_for_errors() -> None:
    falling = difference("chamfer", [0.04] * 9, [0.05] * 9, better="lower")
    assert (falling.word, falling.mean) == ("better", pytest.approx(0.01))
    assert difference("chamfer", [0.06] * 9, [0.05] * 9, better="lower").word == "worse"


def test_every_figure_of_ours_has_a_direction() -> None:
    ours = {name for name in figures(score(0, 0.5)) if "." not in name}
    assert set(BETTER) == ours
    assert {name for name, better in BETTER.items() if better == "lower"} == {
        "chamfer",
        "colour",
        "depth_l1",
        "is_low",
    }


def test_scores_of_other_products_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other products"):
        compare(many([0.5, 0.6]), many([0.5, 0.6])[::-1])


def test_each_family_must_beat_the_solid_that_suits_it_better() -> None:
    scores = [
        score(0, 0.5, family="vase", solids=(0.1, 0.55)),
        score(1, 0.5, family="vase", solids=(0.3, 0.35)),
        score(2, 0.5, family="book", solids=(0.6, 0.2)),
        score(3, 0.5, family="chair"),
    ]
    found = {one.family: one for one in margins(scores)}
    assert (found["vase"].solid, found["vase"].margin) == ("revolved", pytest.approx(0.05))
    assert (found["book"].solid, found["book"].margin) == ("inflated", pytest.approx(-0.1))
    decision = decide(scores)
    assert decision.behind == ("book",)
    assert not decision.may_ship
    assert decide(scores[:2]).may_ship  # with nothing before them, the solids alone decide


def test_a_tie_with_a_solid_is_no_lead() -> None:
    assert decide([score(0, 0.3)]).behind == ("mug",)
