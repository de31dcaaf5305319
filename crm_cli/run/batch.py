"""Many photos: plan → workers → publish → record → journal → contact sheet.

Only this process writes records and the journal, and it imports nothing heavy: it must answer a signal at
once, also while every worker is deep inside a native library.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from crm_cli.errors import ExitCode, Locked, NoInput
from crm_cli.export.extras import check_export
from crm_cli.export.sheet import refuse_foreign
from crm_cli.preset import AUTO, Preset
from crm_cli.run.commits import Recipe, Records
from crm_cli.run.conveyor import Conveyor, Spare, deadlines
from crm_cli.run.decisions import kept_decisions, redone, redone_preset
from crm_cli.run.events import AssetPlanned, Event, RunFinished, Warned
from crm_cli.run.files import writing
from crm_cli.run.journal import Journal, last_failures, unfinished_attempts
from crm_cli.run.machine import check_device, default_workers, find_devices, memory_problem, threads_each
from crm_cli.run.options import (
    PRODUCTION,
    Engine,
    RunOptions,
    Stop,
    UsedWeights,
    check_junit,
    check_limits,
    check_precision,
    check_stage,
    check_steps,
)
from crm_cli.run.past import Past
from crm_cli.run.plan import Planned, Planner, summary
from crm_cli.run.scene import Scene
from crm_cli.run.search import PassedOver
from crm_cli.run.sources import trees
from crm_cli.run.space import check_free_space
from crm_cli.run.store import Store, new_run, refuse_file, refuse_newer
from crm_cli.run.walk import Found, asset_id, walk
from crm_cli.run.work import Work
from crm_cli.run.worker import Launch

if TYPE_CHECKING:
    from crm_cli.run.mirror import Mirror


def convert(
    preset: Preset,
    options: RunOptions,
    *,
    stop: Stop | None = None,
    engine: Engine = PRODUCTION,
    only: Collection[PurePosixPath] | None = None,
    times: Mapping[str, int] | None = None,
) -> Generator[Event, None, None]:
    """Convert what is missing, and yield what happens; the last event is RunFinished.

    One photo's failure is an event. A CrmError is raised where the run itself cannot go on; what can be
    known to be wrong before the output folder is touched is raised before that.

    only: photos to take of those found; the contact sheet then is of the whole folder. times: how often each
    asset was redone, by id; None: as the folder keeps it.
    """
    stop, since = stop or Stop(), time.monotonic()
    if not options.place:
        yield from _convert(preset, options, stop, engine, only, times, since)
        return
    # A folder on a disk needs nothing of it.
    from crm_cli.run.elsewhere import mirrored

    try:
        with mirrored(options, is_unwanted=lambda: stop.signal is not None) as (here, mirror):
            yield from _convert(preset, here, stop, engine, only, times, since, mirror)
    except Locked:
        if stop.signal is None:
            raise
        yield RunFinished(exit_code=128 + stop.signal, counts={}, failures={}, seconds=0.0)


def _convert(
    preset: Preset,
    options: RunOptions,
    stop: Stop,
    engine: Engine,
    only: Collection[PurePosixPath] | None,
    times: Mapping[str, int] | None,
    since: float,
    mirror: Mirror | None = None,
) -> Iterator[Event]:
    """Convert what is missing in a folder, which may be the mirror of one elsewhere."""
    found = walk(
        options.inputs,
        options.out,
        select=options.select,
        keep_ext=options.keep_ext,
        listed=options.listed,
        trees=trees(options),
        products=options.products,
        has_slugs=preset.limits.slugs,
    )
    if mirror is not None:
        mirror.inputs = frozenset(photo.source.url for photo in found.photos if photo.source)
    is_part = only is not None
    if only is not None:
        wanted = {asset_id(path): path for path in only}
        photos = tuple(photo for photo in found.photos if photo.id in wanted)
        found = replace(found, photos=photos, found=len(photos))
        for asset in sorted(wanted.keys() - {photo.id for photo in photos}):
            yield Warned(message=f"{wanted[asset]}: is not among the photos any more")
    lost = [skipped for skipped in found.passed_over if skipped.is_loss]
    for skipped in found.passed_over:
        if not skipped.is_loss:
            yield Warned(message=f"{skipped.path}: passed over: {skipped.reason}")
    if found.unsized:
        yield Warned(message=found.unsized)
    # A shard without a photo is done: of few photos and many shards, some have none.
    if not found.found and not lost and not options.allow_empty:
        names = ", ".join([*map(str, options.inputs), *options.urls]) or "the lists"
        raise NoInput(f"{names}: no photo found", code="E_NO_INPUT", remedy="check the paths, or --include")
    refuse_newer(options.out)
    refuse_file(options.out)
    if options.report and not options.select.shard:
        with writing(options.out):
            refuse_foreign(options.out, len(found.photos))
    check_device(options.device)
    check_precision(options.precision)
    check_steps(preset)
    check_export(preset.export)
    check_stage(options.force_stage)
    check_junit(options.junit)
    check_limits(options)
    deadlines(("cpu",), options.deadlines_s)
    weights = engine.weights(preset)
    if preset.weights == AUTO:
        # Workers must read what was found now, also where better weights arrive while the run goes on.
        preset = replace(preset, weights=weights.name)
    if options.dry_run:
        planner = _planner(Records.scan(options.out), weights, preset, options, times)
        for folder in lost:
            yield Warned(message=f"{folder.path}: {folder.reason}")
        yield from _announce([planner.decide(photo) for photo in found.photos], weights)
        return
    run = new_run()
    try:
        store = Store.open(
            options.out,
            run=run,
            shard=options.select.shard,
            wait_lock_s=options.wait_lock_s,
            is_unwanted=lambda: stop.signal is not None,
            place=mirror,
        )
    except Locked:
        if stop.signal is None:
            raise
        left = len(found.photos)
        yield RunFinished(exit_code=128 + stop.signal, counts={}, failures={}, seconds=0.0, left=left)
        return
    try:
        planner = _planner(store.records, weights, preset, options, times)
        yield from _run(
            found.photos, lost, planner, store, preset, options, stop, engine, weights, is_part, since
        )
    finally:
        store.close()


def _run(
    photos: Sequence[Found],
    lost: Sequence[PassedOver],
    planner: Planner,
    store: Store,
    preset: Preset,
    options: RunOptions,
    stop: Stop,
    engine: Engine,
    weights: UsedWeights,
    is_part: bool,
    since: float,
) -> Iterator[Event]:
    """Plan, open the journal and the pool, and work, all under the output folder's lock."""
    plan = [planner.decide(photo) for photo in photos if stop.signal is None]
    to_convert = sum(planned.action == "convert" for planned in plan)
    check_free_space(options.out, options.min_free_bytes, photos=to_convert)
    # Asking for devices may take seconds: not where there is nothing to do.
    devices = find_devices(options.device) if to_convert and stop.signal is None else ("cpu",)
    is_small = weights.is_small
    workers = options.jobs or 1
    if options.jobs is None and to_convert > 1:
        workers = default_workers(devices, is_small=is_small)
    workers = min(workers, to_convert)
    if workers and not is_small and devices[0] == "cpu":
        is_half = options.precision in ("bfloat16", "float16")
        problem = memory_problem(weights.largest_bytes // (2 if is_half else 1), workers=workers)
        if problem:
            yield Warned(message=problem)
    folder = options.out / ".crm" / "runs" / store.run
    with writing(options.out):
        folder.mkdir()
    conveyor = Conveyor(
        Launch(
            preset=preset,
            device=devices[0],
            threads=threads_each(devices, is_small=is_small, jobs=options.jobs),
            precision=options.precision,
            line=engine.line,
            desk="" if devices[0] == "cpu" else engine.desk,
        ),
        devices=devices,
        workers=workers,
        deadlines_s=deadlines(devices, options.deadlines_s),
        logs=folder,
        spare=Spare(
            threads=threads_each(("cpu",), is_small=is_small, jobs=1),
            deadlines_s=deadlines(("cpu",), options.deadlines_s),
        ),
    )
    try:
        with Journal(options.out, store.run) as journal:
            scene = Scene(
                options=options, preset=preset, planner=planner, store=store, journal=journal,
                conveyor=conveyor, weights=weights, folder=folder, device=", ".join(devices), workers=workers,
                is_part=is_part,
            )  # fmt: skip
            yield from Work(plan, scene, stop=stop, found=len(photos), lost=lost, since=since).run()
    finally:
        conveyor.close()


def _planner(
    records: Records,
    weights: UsedWeights,
    preset: Preset,
    options: RunOptions,
    times: Mapping[str, int] | None,
) -> Planner:
    if times is None:
        times = redone(kept_decisions(options.out))
    recipes = {
        often: Recipe.of(redone_preset(preset, often), weights.stages) for often in {0, *times.values()}
    }
    return Planner(
        recipe=recipes[0],
        redone={asset: recipes[often] for asset, often in times.items()},
        records=records,
        failures=last_failures(options.out),
        interruptions=unfinished_attempts(options.out),
        past=Past(options.out, preset),
        formats=preset.export.formats,
        plain_texture=preset.export.plain_texture,
        lods=preset.export.lods,
        max_mpixels=options.max_mpixels,
        may_overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        keep_stale=options.keep_stale,
        force_stage=options.force_stage,
        retry_failed=options.retry_failed,
        is_dry=options.dry_run,
    )


def _announce(plan: Sequence[Planned], weights: UsedWeights) -> Iterator[Event]:
    """Say what a run would do, photo by photo."""
    for planned in plan:
        yield AssetPlanned(
            path=planned.found.path, action=planned.action, reason=planned.reason, stage=planned.stage
        )
    yield summary(plan, weights, workers=0)
    yield RunFinished(exit_code=ExitCode.DONE, counts={}, failures={}, seconds=0.0)
