"""Examples of a course: of products, or of what a folder holds; rendered where they are missing."""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from crm_cli.errors import CrmError, EnvironmentProblem, OutputError, UsageError
from crm_cli.learn.data import HELD_OUT, SHARD, Growing, Shards, build, shard_of, stored_size_px, write_shard
from crm_cli.learn.examples import PRODUCTS, Source
from crm_cli.learn.portraits import Portrayed, write_portraits
from crm_cli.learn.ranks import Stopped
from crm_cli.learn.sources import open_folder, refuse_other
from crm_cli.learn.subject import Unusable
from crm_cli.learn.train import TrainSettings, never

if TYPE_CHECKING:
    from crm_cli.learn.course import Course

SIZE_PX = 64
"""Side of the pictures that the embedded networks learn from."""


def training_examples(
    course: Course, settings: TrainSettings, *, is_stopped: Callable[[], bool] = never
) -> Shards | Growing | Portrayed:
    """The training set of a course, rendered where it is missing; where it may grow, see `rendering`."""
    folder = course.data / "train"
    if not course.grow:
        return _examples(course, folder, course.examples, first_seed=0, is_stopped=is_stopped)
    first = min(course.examples, 16 * SHARD)
    return Growing(
        folder,
        course.examples,
        first=first,
        per_step=(course.examples - first) / (course.grow * settings.steps),
        device=course.device,
        shard=shard_of(size_px_of(course)),
        is_stopped=is_stopped,
    )


def held_out_examples(course: Course, *, is_stopped: Callable[[], bool] = never) -> Shards | Portrayed:
    """The held-out set of a course, rendered where it is missing."""
    folder = course.data / "held-out"
    return _examples(course, folder, course.held_out, first_seed=HELD_OUT, is_stopped=is_stopped)


@contextmanager
def rendering(course: Course) -> Iterator[Callable[[], bool]]:
    """Render examples beside the training, where the course grows; yields whether that has failed.

    With no worker of its own, a course waits for what another one renders into the folder.
    """
    if not course.grow or not course.workers:
        yield never
        return
    over, failures, folder = Event(), list[CrmError](), course.data / "train"
    render = _renderer(course, course.workers, first_seed=0)

    def work() -> None:
        try:
            with _blaming(folder):
                deque(render(folder, course.examples, is_stopped=over.is_set), 0)
        except CrmError as error:
            failures.append(error)

    thread = Thread(target=work)
    thread.start()
    try:
        yield lambda: bool(failures)
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def _examples(
    course: Course, folder: Path, count: int, *, first_seed: int, is_stopped: Callable[[], bool]
) -> Shards | Portrayed:
    render = _renderer(course, max(1, course.workers), first_seed=first_seed)
    shards = _rendered(render, folder, count, is_stopped)
    is_measured = course.network == "reconstruction" and course.surface is None
    if is_measured and len(shards) and not len(shards[0]["points"]):
        raise UsageError(
            f"{folder}: its examples are pictures alone, and reconstruction learns from distances too",
            code="E_TRAIN_DATA",
            remedy="give another --data folder: this one was rendered with --grow",
        )
    if len(shards) < count:
        raise UsageError(
            f"{folder}: {len(shards)} examples, not {count}: a finished file is never added to",
            code="E_TRAIN_DATA",
            remedy=f"remove {shards.files[-1].name} there, or give another --data folder",
        )
    if course.surface is None:
        return shards
    beside = folder.with_name(f"{folder.name}-portraits")
    return Portrayed(shards, _rendered(partial(render, write=write_portraits), beside, count, is_stopped))


def _rendered(
    render: Callable[..., Iterator[Path]], folder: Path, count: int, is_stopped: Callable[[], bool]
) -> Shards:
    """What a folder holds when everything is rendered."""
    with _blaming(folder):
        deque(render(folder, count, is_stopped=is_stopped), 0)
    if is_stopped():
        raise Stopped
    try:
        return Shards(folder, count)
    except (zipfile.BadZipFile, ValueError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{folder}: an example file is damaged: {error}",
        code="E_TRAIN_DATA",
        remedy="remove it there: it is rendered again",
    )


def _renderer(course: Course, workers: int, *, first_seed: int) -> Callable[..., Iterator[Path]]:
    """What renders a course's examples, from a seed on; see `data.build`."""
    size_px = size_px_of(course)
    with _blaming(course.data):
        source = _source(course, is_held_out=bool(first_seed))
    return partial(
        build,
        workers=workers,
        first_seed=first_seed,
        size_px=size_px,
        shard=shard_of(size_px),
        source=source,
        write=partial(write_shard, has_field=course.has_field),
    )


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    """Say what is to be done where examples cannot be rendered."""
    try:
        yield
    except Unusable as error:
        raise UsageError(str(error), code="E_TRAIN_SOURCE", remedy="give another --data folder") from error
    except zipfile.BadZipFile as error:
        raise _damaged(folder, error) from error
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            f"{folder}: a process that rendered examples was ended by the system",
            code="E_TRAIN_DATA",
            remedy="give fewer --workers, if memory is short; what is finished is kept",
        ) from error
    except OSError as error:
        raise OutputError(
            f"--data {folder}: {error.strerror or error}", code="E_OUTPUT", remedy="free space or fix rights"
        ) from error


def size_px_of(course: Course) -> int:
    """Side of the pictures of a course; UsageError where its examples have another."""
    with _blaming(course.data):
        stored = stored_size_px(course.data)
    if course.size_px is None:
        return stored or SIZE_PX
    if course.size_px % 8:
        raise UsageError(
            f"--size {course.size_px}: no network can halve it three times",
            code="E_TRAIN_SIZE",
            remedy="give a multiple of 8",
        )
    if stored not in (None, course.size_px):
        raise UsageError(
            f"{course.data}: its pictures are {stored} px large, not {course.size_px}",
            code="E_TRAIN_DATA",
            remedy="give another --data folder, or leave --size out",
        )
    return course.size_px


def _source(course: Course, *, is_held_out: bool) -> Source:
    """What examples of a course show."""
    if course.source is None:
        refuse_other(course.data)
        return PRODUCTS
    split = open_folder(
        course.source,
        course.data,
        size_px=size_px_of(course),
        workers=course.workers,
        held_out_seed=HELD_OUT,
    )
    source = split.held_out if is_held_out else split.train
    # Days of training should not end in this.
    if not split.held_out.objects and (is_held_out or course.needs_held_out):
        raise UsageError(
            f"--from {course.source}: one object, and it is learned from: none is left to measure on",
            code="E_TRAIN_SOURCE",
            remedy="add another, or leave out --ship, --sample-every and --measure-every",
        )
    if course.network == "reconstruction" and source.kind == "published layout":
        raise UsageError(
            f"--from {course.source}: pictures alone, and reconstruction learns from distances too",
            code="E_TRAIN_SOURCE",
            remedy="name a folder of GLB files",
        )
    return source
