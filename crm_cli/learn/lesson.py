"""Whether the options of a course go together, and what of them a run that goes on must find unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crm_cli.errors import UsageError
from crm_cli.learn.checkpoint import Lesson
from crm_cli.learn.latent import LatentSettings
from crm_cli.learn.rendering import SIZE_PX, size_px_of
from crm_cli.learn.sources import digest_of_folder
from crm_cli.learn.surface import EndToEnd
from crm_cli.models.weights import digest_of

if TYPE_CHECKING:
    from crm_cli.learn.course import Course

DIGITS = 12
"""Of a digest: enough to tell files apart, and short enough for a message."""


def require_sense(course: Course) -> None:
    """Raise UsageError where an option of a course would be passed over, or spoil what comes of it."""
    start, surface = course.start, course.surface
    is_embedded = start is not None and not start.is_latent
    refusals = (
        (
            surface is not None and course.network != "reconstruction",
            f"--end-to-end: {course.network} makes no surface",
            "SURFACE",
            "it is for the reconstruction",
        ),
        (
            bool(course.grow) and course.network == "reconstruction",
            "--grow: only pictures are rendered meanwhile, and reconstruction learns from distances too",
            "GROW",
            "leave --grow out",
        ),
        (
            course.first is not None and course.network != "ccm",
            f"--first: {course.network} learns from nothing that another network draws",
            "START",
            "leave --first out, or train ccm",
        ),
        (
            course.first is not None and course.first.is_dir(),
            f"--first {course.first}: a folder",
            "START",
            "name the file of the rgb network in it",
        ),
        (
            not course.is_latent and course.latent not in (None, LatentSettings()),
            "--hide, --photos, --recompute: only denoisers of the published structure have them",
            "START",
            "name such weights: --start published; or leave them out",
        ),
        (
            is_embedded and start is not None and start.is_fresh,
            "--fresh: no part of the small networks stays frozen",
            "START",
            "leave out --start too, and parameters are drawn from --seed",
        ),
        (
            start is not None and surface is not None and surface.architecture != EndToEnd().architecture,
            f"--architecture {surface and surface.architecture}: --start says how the network is built",
            "ARCHITECTURE",
            "leave one of them out",
        ),
        (
            is_embedded and size_px_of(course) != SIZE_PX,
            f"--size, or --data: the small networks were trained, and draw, at {SIZE_PX} px, not at others",
            "SIZE",
            f"give a --data folder of {SIZE_PX} px, or leave --start out",
        ),
    )
    for is_wrong, what, about, remedy in refusals:
        if is_wrong:
            raise UsageError(what, code=f"E_TRAIN_{about}", remedy=remedy)


def lesson_of(course: Course) -> Lesson:
    """What every parameter depends on beside the settings; files and folders stand for what is in them."""
    start, surface = course.start, course.surface
    shown = (course.latent or LatentSettings()) if course.is_latent else None
    words = {} if surface is None else surface.words
    return {
        "from": None if course.source is None else digest_of_folder(course.source)[:DIGITS],
        "size": size_px_of(course),
        "examples": course.examples,
        "grow": course.grow or None,
        "first": None if course.first is None else digest_of(course.first)[:DIGITS],
        "start": None if start is None else start.digest[:DIGITS],
        "fresh": start is not None and start.is_fresh,
        "hide": None if shown is None else shown.hidden,
        "photos": None if shown is None else shown.photos,
        "end-to-end": surface is not None,
        **{name: words.get(name) or None for name in EndToEnd().words},
    }
