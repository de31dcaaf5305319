"""What is measured of a finished asset, and the verdict that follows: `pass`, `review` or `fail`.

Measuring knows no limits and judging looks at no mesh, so that a verdict can be explained from what a
record holds, and whoever knows more (the size of a file) can add reasons of their own.

    code                  fail                            review
    geometry.open         an edge without two faces
    geometry.manifold     more than two faces on an edge, or two fans at a vertex
    geometry.inverted     faces look inwards
    geometry.degenerate                                   faces without a direction
    geometry.parts                                        more separate parts than `checks.max_parts`
    geometry.views        `checks.fail_views_iou`         `checks.review_views_iou`
    texture.overlap                                       more than `checks.max_uv_overlap`
    budget.triangles                                      more than `mesh.faces`
    likeness.silhouette   `checks.fail_silhouette_iou`    `checks.review_silhouette_iou`
    likeness.colour       `checks.fail_colour_distance`   `checks.review_colour_distance`
    shape.slab            `checks.fail_thickness`         `checks.review_thickness`
    photo.seen                                            `checks.review_seen_share`
    photo.subject                                         not one whole product: see DOUBTFUL
    confidence.low                                        the networks' answer was replaced by a solid
    limits.…              one of `limits` that the        `limits.aspect`, and a level of detail
                          written files break             that is heavier than asked
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.nn.functional import interpolate as resize

from crm_cli.export.preview import sample, see_front
from crm_cli.fragments import Raster
from crm_cli.frame import FRONT, LEFT, TOP, VIEWS
from crm_cli.mesh.bake import uv_usage
from crm_cli.mesh.inspect import shape_of
from crm_cli.mesh.likeness import colour_distance, silhouette_iou
from crm_cli.mesh.raster import render_silhouette
from crm_cli.models import agree
from crm_cli.preset import Preset
from crm_cli.records import Checks, Cutout, Mesh, Publication, Reason, SixViews, TexturedMesh, Verdict

Outline = NDArray[np.bool_]

SILHOUETTE_PX = 128
"""Outlines are compared at half the size the surface is cut from, so that noise on edges does not count."""

SUPERSAMPLING = 4
"""The front is drawn so much larger than it is compared: a picture of as many pixels as its texture has."""

WHOLE = 0.95
"""Coverage from which a pixel's colour is the object's alone."""

DOUBTFUL = frozenset({"W_MATTE_TINY", "W_MATTE_FULL", "W_MATTE_FRAME", "W_MATTE_PARTS"})
"""Warnings of the cut-out that make a person look; what else it tells is soft or odd, but may be right."""

BEARABLE = frozenset({"aspect", "lods"})
"""Broken limits that a person may let pass: no target refuses a file for them."""

COLOUR_RANGE = 50.0
"""Colour distance at which the score is nothing: a photo and any other differ by less on the average."""


def measure(
    textured: TexturedMesh,
    cutout: Cutout,
    views: SixViews,
    raster: Raster,
    *,
    confidence: Literal["ok", "low"],
) -> Checks:
    """Count and compare all that a verdict needs, before a file is written."""
    size_px = textured.texture.shape[0]
    usage = uv_usage(textured.unwrapped, raster, size_px=size_px)
    drawn = np.stack([render_silhouette(textured.mesh, raster, view, SILHOUETTE_PX) for view in VIEWS])
    promised = _outlines(views)
    sides = [number for number in range(len(VIEWS)) if number != FRONT]
    return Checks(
        **asdict(shape_of(textured.mesh)),
        uv_overlap=usage.overlap,
        uv_coverage=usage.coverage,
        silhouette_iou=silhouette_iou(drawn[FRONT], _shown(cutout)),
        confidence=confidence,
        colour_distance=front_colour_distance(textured, cutout, raster),
        views_iou=float(np.mean([silhouette_iou(drawn[side], promised[side]) for side in sides])),
        thickness=thickness(drawn, promised),
        seen_share=textured.seen_share,
    )


def thickness(drawn: Outline, promised: Outline) -> float:
    """How far a solid reaches in depth, as a share of what its views promise: the smaller of left and top.

    Taken from how outlines [6 S S] are spread along the line of sight of the front, not from where they
    end: a card with a knob is a card, and a chair that has lost its thin legs is as deep as before.
    """
    # Depth runs along the columns of the left view and the rows of the top one.
    spreads = [
        (_spread(drawn[side], axis), _spread(promised[side], axis)) for side, axis in ((LEFT, 1), (TOP, 0))
    ]
    return min(found / wanted if wanted else 1.0 for found, wanted in spreads)


def _spread(outline: Outline, axis: int) -> float:
    """Mean distance of an outline's pixels from their middle, along an axis; 0 of none."""
    places = np.nonzero(outline)[axis]
    return float(np.abs(places - np.median(places)).mean()) if len(places) else 0.0


def front_iou(mesh: Mesh, cutout: Cutout, raster: Raster) -> float:
    """Compare the front outline of a mesh with that of its photo: intersection over union."""
    return silhouette_iou(render_silhouette(mesh, raster, VIEWS[FRONT], SILHOUETTE_PX), _shown(cutout))


def _shown(cutout: Cutout) -> Outline:
    """The outline [S S] that a photo shows, at the size it is compared."""
    outline: Outline = (agree.place_photo(cutout, SILHOUETTE_PX)[3] > agree.SOLID).numpy()
    return outline


def front_colour_distance(textured: TexturedMesh, cutout: Cutout, raster: Raster) -> float:
    """Mean CIEDE2000 difference between the unlit front and the cut-out, where both cover a pixel wholly."""
    drawn, shown = draw_front(textured, raster), agree.place_photo(cutout, SILHOUETTE_PX)
    both = (drawn[3] > WHOLE) & (shown[3] > WHOLE)
    colours = (picture[:3, both].T.double().numpy() for picture in (drawn, shown))
    return colour_distance(*colours)


def draw_front(textured: TexturedMesh, raster: Raster) -> Tensor:
    """Draw the front as its texture has it, without light: sRGB and coverage [4 S S] in [0, 1]."""
    flat, uv = see_front(textured, raster, size_px=SILHOUETTE_PX * SUPERSAMPLING)
    texture = (torch.from_numpy(textured.texture).float() / 255).permute(2, 0, 1)[None]
    covered = flat.covered.float()[None]
    rgb = covered.repeat(3, 1, 1)
    rgb[:, flat.covered] = sample(texture, uv)[0].T
    small = avg_pool2d(torch.cat([rgb, covered]), SUPERSAMPLING)
    return torch.cat([small[:3] / small[3:].clamp_min(1 / SUPERSAMPLING**2), small[3:]])


def _outlines(views: SixViews) -> Outline:
    """The outlines [6 S S] that six views show, at the size they are compared."""
    small = resize(views.alpha, size=(SILHOUETTE_PX, SILHOUETTE_PX), mode="area")[:, 0]
    outlines: Outline = (small > agree.SOLID).numpy()
    return outlines


def judge(checks: Checks, preset: Preset, extra: Sequence[Reason] = ()) -> Verdict:
    """Say whether an asset may be published, by its measures and what else is known against it."""
    reasons = [*extra, *_geometry(checks, preset), *_likeness(checks, preset), *_sides(checks, preset)]
    reasons.sort(key=lambda reason: reason.severity == "review")  # stable: failures first
    grade = reasons[0].severity if reasons else "pass"
    return Verdict(grade=grade, reasons=tuple(reasons), score=score(checks))


def score(checks: Checks) -> float:
    """How well an asset agrees with its photo and its views: outline × colour × sides, each in [0, 1].

    A product, so that nothing makes up for one that is bad.
    """
    colour = max(0.0, 1 - checks.colour_distance / COLOUR_RANGE)
    return round(checks.silhouette_iou * colour * checks.views_iou, 4)


def rank(verdict: Verdict) -> tuple[int, float]:
    """Order verdicts from worse to better."""
    return ("fail", "review", "pass").index(verdict.grade), verdict.score


def is_good_enough(verdict: Verdict, preset: Preset) -> bool:
    """Whether no other try is worth its time."""
    return verdict.grade == "pass" and verdict.score >= preset.checks.enough_score


def _geometry(checks: Checks, preset: Preset) -> Iterator[Reason]:
    """What speaks against the surface by itself."""
    claims = {
        "geometry.open": (checks.is_closed, "the surface has holes"),
        "geometry.manifold": (checks.is_manifold, "the surface meets itself on an edge or in a point"),
        "geometry.inverted": (checks.is_oriented and checks.volume > 0, "faces look inwards"),
    }
    for code, (holds, sentence) in claims.items():
        if not holds:
            yield _graded(code, 0.0, limit=1.0, is_failure=True, sentence=sentence)
    counts = {
        "geometry.degenerate": (checks.degenerate_faces, 0, "degenerate faces"),
        "geometry.parts": (checks.components, preset.checks.max_parts, "separate parts"),
        "budget.triangles": (checks.faces, preset.mesh.faces, "triangles"),
    }
    for code, (found, limit, noun) in counts.items():
        if found > limit:
            sentence = f"{found} {noun}, where {limit} are allowed"
            yield _graded(code, found, limit=limit, is_failure=False, sentence=sentence)
    overlap, most = checks.uv_overlap, preset.checks.max_uv_overlap
    if overlap > most:
        sentence = f"{overlap:.2%} of the texture belong to several faces, where {most:.2%} may"
        yield _graded("texture.overlap", overlap, limit=most, is_failure=False, sentence=sentence)


def _likeness(checks: Checks, preset: Preset) -> Iterator[Reason]:
    """What speaks against the asset beside its photo."""
    wanted = preset.checks
    yield from _too_little(
        "likeness.silhouette",
        checks.silhouette_iou,
        (wanted.review_silhouette_iou, wanted.fail_silhouette_iou),
        "the outline matches the photo's by {found}, where {limit} are expected",
    )
    found, most = checks.colour_distance, wanted.review_colour_distance
    if found > most:
        told = f"the front's colours are {found:.1f} from the photo's (CIEDE2000), where {most:g} are allowed"
        is_failure = found > wanted.fail_colour_distance
        yield _graded("likeness.colour", found, limit=most, is_failure=is_failure, sentence=told)
    if checks.seen_share > 0:
        yield from _too_little(
            "photo.seen",
            checks.seen_share,
            (wanted.review_seen_share, 0.0),
            "the photo shows {found} of the surface, where {limit} are expected",
        )


def _sides(checks: Checks, preset: Preset) -> Iterator[Reason]:
    """What speaks against the asset beside the views that it was made from."""
    wanted = preset.checks
    if checks.confidence == "low":  # it was not made from them, and need not look like them
        told = "the networks' answer did not show the photo, and a simple solid took its place"
        yield _graded("confidence.low", 0.0, limit=1.0, is_failure=False, sentence=told)
        return
    yield from _too_little(
        "shape.slab",
        checks.thickness,
        (wanted.review_thickness, wanted.fail_thickness),
        "it is {found} as deep as the views promise, where {limit} are expected",
    )
    yield from _too_little(
        "geometry.views",
        checks.views_iou,
        (wanted.review_views_iou, wanted.fail_views_iou),
        "the sides match the views they were made from by {found}, where {limit} are expected",
    )


def _too_little(code: str, found: float, limits: tuple[float, float], sentence: str) -> Iterator[Reason]:
    """The reason why a share is too small, where it is. limits: below which to review, and to fail."""
    review, fail = limits
    if found < review:
        told = sentence.format(found=f"{found:.1%}", limit=f"{review:.0%}")
        yield _graded(code, found, limit=review, is_failure=found < fail, sentence=told)


def doubts(cutout: Cutout) -> list[Reason]:
    """What speaks against a photo by itself: its cut-out may be of something else than one whole product."""
    told = [warning.rpartition(" [") for warning in cutout.warnings]
    return [
        _graded("photo.subject", 0.0, limit=1.0, is_failure=False, sentence=sentence)
        for sentence, _, code in told
        if code.removesuffix("]") in DOUBTFUL
    ]


def broken_limits(publication: Publication) -> list[Reason]:
    """What speaks against the written files: limits of the target that no repair could keep."""
    return [
        _graded(
            f"limits.{check.limit}",
            check.found,
            limit=check.allowed,
            is_failure=check.limit not in BEARABLE,
            sentence=check.words,
        )
        for check in publication.broken
    ]


def _graded(code: str, found: float, *, limit: float, is_failure: bool, sentence: str) -> Reason:
    severity: Literal["review", "fail"] = "fail" if is_failure else "review"
    return Reason(code=code, severity=severity, found=round(found, 4), limit=limit, sentence=sentence)
