"""Scores that are made up, of two sets of weights on the same products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crm_cli.learn.evaluate import Score
from crm_cli.learn.fit import Fit

FLAT = Fit(chamfer=0.05, f_score=0.5, volume_iou=0.5, colour=10.0)


def score(
    seed: int, f_score: float, *, family: str = "mug", solids: tuple[float, float] = (0.2, 0.3)
) -> Score:
    return Score(
        seed=seed,
        family=family,
        outline_iou=0.9,
        depth_l1=0.05,
        silhouette_iou=0.95,
        made=replace(FLAT, f_score=f_score),
        inflated=replace(FLAT, f_score=solids[0]),
        revolved=replace(FLAT, f_score=solids[1]),
        is_low=False,
        grade="pass",
    )


def many(f_scores: Sequence[float]) -> list[Score]:
    return [score(seed, value) for seed, value in enumerate(f_scores)]


def varied(count: int = 100) -> list[Score]:
    """Products that differ far more from each other than weights do."""
    return many(np.random.default_rng(0).uniform(0.2, 0.9, count).tolist())


def better_by(scores: list[Score], gain: float, noise: float) -> list[Score]:
    random = np.random.default_rng(1)
    return [
        replace(
            one, made=replace(one.made, f_score=one.made.f_score + gain + noise * random.standard_normal())
        )
        for one in scores
    ]
