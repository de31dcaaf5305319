"""Many photos: plan → workers → publish → record → journal → contact sheet.

Only this process writes records and the journal, and it imports nothing heavy: it must answer a signal at
once, also while every worker is deep inside a native library.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, ErrorClass, ExitCode, Locked, NoInput, OutputError, PhotoError
from crm_cli.export.sheet import refuse_foreign
from crm_cli.preset import AUTO, Preset
from crm_cli.records import Asset, Failed, Job
from crm_cli.run.conveyor import (
    Conveyor,
    Finished,
    NotOpened,
    Opened,
    Staged,
    Stepped,
    check_device,
    deadlines,
    default_workers,
    find_devices,
    memory_problem,
    threads_each,
)
from crm_cli.run.events import (
    AssetFinished,
    AssetPlanned,
    AssetStarted,
    AttemptFailed,
    Event,
    Plan,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    Status,
    Warned,
    WeightsLoading,
    weights_label,
)
from crm_cli.run.forecast import about, forecast
from crm_cli.run.journal import Journal, last_failures
from crm_cli.run.keeping import folder_of, trim
from crm_cli.run.options import (
    PRODUCTION,
    Engine,
    RunOptions,
    Stop,
    UsedWeights,
    check_precision,
    check_steps,
)
from crm_cli.run.plan import Planned, Planner
from crm_cli.run.report import RunFacts, write_report, write_whole
from crm_cli.run.search import absolute
from crm_cli.run.sources import staged, trees
from crm_cli.run.store import (
    REPORT,
    CommitRecord,
    Output,
    Recipe,
    Records,
    Store,
    hash_file,
    looks_unchanged,
    new_run,
    output_error,
    refuse_newer,
    write_atomically,
)
from crm_cli.run.walk import Found, asset_id, walk
from crm_cli.run.wire import dumps
from crm_cli.run.worker import NO_SPACE, Launch

if TYPE_CHECKING:
    from crm_cli.run.mirror import Mirror

WORTH_ANOTHER_TRY: frozenset[ErrorClass] = frozenset({"internal", "oom", "crash", "timeout"})
"""Failures that a fresh worker may not meet again."""

MAX_ATTEMPTS = 2

MAX_UNOPENED = 3
"""After so many workers in a row that died before their first photo, the machine is to blame."""

GRACE_S = 20.0
"""How long SIGTERM and SIGHUP let running photos finish: schedulers kill after 30 s."""

GRACEFUL = (signal.SIGTERM, signal.SIGHUP)
"""Signals after which running photos are not waited for as long as they take."""

RECENT = 4
"""How many reports of steps tell the pace: steps of one stage do not all take as long."""

TICK_S = 0.2
"""How soon a signal is noticed at the latest."""


def convert(
    preset: Preset,
    options: RunOptions,
    *,
    stop: Stop | None = None,
    engine: Engine = PRODUCTION,
    only: Collection[PurePosixPath] | None = None,
) -> Iterator[Event]:
    """Convert what is missing, and yield what happens; the last event is RunFinished.

    One photo's failure is an event. A CrmError is raised where the run itself cannot go on; what can be
    known to be wrong before the output folder is touched is raised before that.

    only: photos to take of those found; the contact sheet then is of the whole folder.
    """
    stop = stop or Stop()
    if not options.place:
        yield from _convert(preset, options, stop, engine, only)
        return
    # A folder on a disk needs nothing of it.
    from crm_cli.run.elsewhere import mirrored

    try:
        with mirrored(options, is_unwanted=lambda: stop.signal is not None) as (here, mirror):
            yield from _convert(preset, here, stop, engine, only, mirror)
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
    for skipped in found.passed_over:
        yield Warned(message=f"{skipped.path}: passed over: {skipped.reason}")
    # A shard without a photo is done: of few photos and many shards, some have none.
    if not found.found and not options.allow_empty:
        names = ", ".join([*map(str, options.inputs), *options.urls]) or "the lists"
        raise NoInput(f"{names}: no photo found", code="E_NO_INPUT", remedy="check the paths, or --include")
    refuse_newer(options.out)
    if options.report and not options.select.shard:
        with _writing(options.out):
            refuse_foreign(options.out, len(found.photos))
    check_device(options.device)
    check_precision(options.precision)
    check_steps(preset)
    deadlines(("cpu",), options.deadlines_s)
    weights = engine.weights(preset)
    if preset.weights == AUTO:
        # Workers must read what was found now, also where better weights arrive while the run goes on.
        preset = replace(preset, weights=weights.name)
    recipe = Recipe.of(preset, weights.stages)
    if options.dry_run:
        planner = _planner(Records.scan(options.out), recipe, options)
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
        planner = _planner(store.records, recipe, options)
        yield from _run(found.photos, planner, store, preset, options, stop, engine, weights, is_part)
    finally:
        store.close()


def _run(
    photos: Sequence[Found],
    planner: Planner,
    store: Store,
    preset: Preset,
    options: RunOptions,
    stop: Stop,
    engine: Engine,
    weights: UsedWeights,
    is_part: bool,
) -> Iterator[Event]:
    """Plan, open the journal and the pool, and work, all under the output folder's lock."""
    plan = [planner.decide(photo) for photo in photos if stop.signal is None]
    to_convert = sum(planned.action == "convert" for planned in plan)
    # Asking for devices may take seconds: not where there is nothing to do.
    devices = find_devices(options.device) if to_convert else ("cpu",)
    is_small = weights.is_small
    workers = min(options.jobs or default_workers(devices, is_small=is_small), to_convert)
    if workers and not is_small and devices[0] == "cpu":
        is_half = options.precision in ("bfloat16", "float16")
        problem = memory_problem(weights.largest_bytes // (2 if is_half else 1), workers=workers)
        if problem:
            yield Warned(message=problem)
    folder = options.out / ".crm" / "runs" / store.run
    with _writing(options.out):
        folder.mkdir()
    conveyor = Conveyor(
        Launch(
            preset=preset,
            device=devices[0],
            threads=threads_each(devices, is_small=is_small, jobs=options.jobs),
            precision=options.precision,
            line=engine.line,
        ),
        devices=devices,
        workers=workers,
        deadlines_s=deadlines(devices, options.deadlines_s),
        logs=folder,
    )
    try:
        with Journal(options.out, store.run) as journal:
            batch = _Batch(
                plan, options=options, preset=preset, planner=planner, store=store, journal=journal,
                conveyor=conveyor, stop=stop, folder=folder, device=", ".join(devices), weights=weights,
                is_part=is_part, photos=len(photos),
            )  # fmt: skip
            yield from batch.run(workers=workers)
    finally:
        conveyor.close()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Blame the output folder for an OSError, around nothing but what writes to it."""
    try:
        yield
    except OSError as error:
        raise output_error(out, error) from error


def _planner(records: Records, recipe: Recipe, options: RunOptions) -> Planner:
    return Planner(
        recipe=recipe,
        records=records,
        failures=last_failures(options.out),
        max_mpixels=options.max_mpixels,
        may_overwrite=options.overwrite,
        retry_failed=options.retry_failed,
    )


def _announce(plan: Sequence[Planned], weights: UsedWeights) -> Iterator[Event]:
    """Say what a run would do, photo by photo."""
    for planned in plan:
        yield AssetPlanned(path=planned.found.path, action=planned.action, reason=planned.reason)
    yield _summary(plan, weights, workers=0)
    yield RunFinished(exit_code=ExitCode.DONE, counts={}, failures={}, seconds=0.0)


def _summary(plan: Sequence[Planned], weights: UsedWeights, *, workers: int) -> Plan:
    counts = Counter(planned.action for planned in plan)
    return Plan(
        photos=len(plan),
        to_convert=counts["convert"],
        cached=counts["cached"],
        failed_before=counts["failed"],
        conflicts=counts["conflict"],
        workers=workers,
        reasons=dict(Counter(planned.reason for planned in plan if planned.action == "convert")),
        weights=weights.name,
        weights_digest=weights.digest,
    )


@dataclass(slots=True)
class _Attempt:
    """One try at one photo, from dispatch to outcome."""

    planned: Planned
    job: Job
    number: int
    key: str
    stage: str = "start"
    since: float = 0.0
    seconds: float = 0.0
    steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Steps done in this stage and when that was told; the first entry is its start."""
    ends: float | None = None
    """When the stage will be over, as far as its steps tell."""

    def enter(self, stage: str, now: float) -> None:
        """Begin a stage."""
        self.stage, self.since, self.ends = stage, now, None
        self.steps.clear()
        self.steps.append((0, now))

    def step(self, done: int, of: int, now: float) -> float | None:
        """Seconds that are left of the stage, at the pace of its latest steps.

        None before the first step, and after the last: what follows it takes a while that no step tells.
        """
        if self.steps and done <= self.steps[-1][0]:  # they begin now, or anew
            self.steps.clear()
        before, then = self.steps[0] if self.steps else (done, now)
        self.steps.append((done, now))
        is_known = before < done < of
        left_s = (now - then) / (done - before) * (of - done) if is_known else None
        self.ends = None if left_s is None else now + left_s
        return left_s


class _Batch:
    """One run over one plan."""

    def __init__(
        self,
        plan: Sequence[Planned],
        *,
        options: RunOptions,
        preset: Preset,
        planner: Planner,
        store: Store,
        journal: Journal,
        conveyor: Conveyor,
        stop: Stop,
        folder: Path,
        device: str,
        weights: UsedWeights,
        is_part: bool,
        photos: int,
    ) -> None:
        self._options = options
        self._preset = preset
        self._planner = planner
        self._store = store
        self._journal = journal
        self._conveyor = conveyor
        self._stop = stop
        self._folder = folder
        self._weights = weights
        self._is_part = is_part
        self._found = photos  # more than were planned, where a signal came before
        self._clock = time.monotonic()
        self._facts = RunFacts(
            started=datetime.now().astimezone(),
            clock=self._clock,
            device=device,
            weights=weights_label(weights.name, weights.digest),
        )
        self._plan = plan
        self._photos = [planned.found.file for planned in plan if planned.found.source is None]
        self._queue: deque[tuple[Planned, int]] = deque()
        self._attempts: dict[str, _Attempt] = {}
        self._outcomes: dict[str, CommitRecord | Failed] = {}
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._failed_now = 0
        """Failures of this run; those remembered from earlier ones do not make --fail-fast stop."""
        self._unopened = 0
        self._last_progress = 0.0
        self._has_announced_stop = False
        self._has_forecast = False

    def run(self, *, workers: int) -> Iterator[Event]:
        """Do everything that the plan asks for."""
        self._journal.write("run_start", crm=__version__, inputs=self._options.inputs, photos=len(self._plan))
        about = {
            "run": self._store.run,
            "started": self._facts.started.isoformat(),
            "device": self._facts.device,
            "preset": asdict(self._preset),
            # Whoever reads it may stand in another folder.
            "options": replace(self._options, inputs=tuple(map(absolute, self._options.inputs))),
            "weights": self._weights,
        }
        self._write_file("run.json", dumps(about))
        with _writing(self._options.out):
            lines = (self._folder / "events.ndjson").open("a", encoding="ascii")
        with lines:
            for event in self._events(workers=workers):
                with _writing(self._options.out):
                    lines.write(event.as_json() + "\n")
                    lines.flush()
                yield event

    def _write_file(self, name: str, text: str) -> None:
        """Write a file of the run's folder."""
        with _writing(self._options.out):
            write_atomically(self._folder / name, text.encode("ascii"), run=self._store.run)

    def _events(self, *, workers: int) -> Iterator[Event]:
        yield RunStarted(
            run=self._store.run,
            out=self._options.shown_out,
            weights=self._weights.name,
            weights_digest=self._weights.digest,
            architecture=self._weights.architecture,
        )
        yield _summary(self._plan, self._weights, workers=workers)
        for planned in self._plan:
            if planned.action == "convert":
                self._queue.append((planned, 1))
            else:
                yield self._settle_at_once(planned)
        yield from self._work(workers=workers)
        exit_code = self._exit_code()
        if self._options.cache_bytes:
            trim(self._options.out, limit_bytes=self._options.cache_bytes)
        report: Path | str | None = self._write_report()
        if report and self._options.place:
            report = f"{self._options.place}/{REPORT}/index.html"
        self._journal.write("run_end", exit_code=int(exit_code), counts=dict(self._counts))
        finished = RunFinished(
            exit_code=exit_code,
            counts=dict(self._counts),
            failures=dict(self._failures),
            seconds=round(time.monotonic() - self._clock, 3),
            left=self._found - self._counts.total(),
            report=report,
            weights=self._weights.name,
            weights_digest=self._weights.digest,
        )
        self._write_file("summary.json", finished.as_json())
        yield finished

    def _work(self, *, workers: int) -> Iterator[Event]:
        """Keep workers busy until nothing is left, or somebody says stop."""
        grace_ends: float | None = None
        while self._attempts or (self._queue and not self._is_stopping):
            while self._queue and self._conveyor.has_room and not self._is_stopping:
                yield from self._dispatch(*self._queue.popleft())
            for report in self._conveyor.wait(TICK_S):
                if isinstance(report, NotOpened):
                    self._send_back(report)
                elif isinstance(report, Opened):
                    yield from self._foresee(report, workers=workers)
                elif isinstance(report, Staged):
                    yield from self._enter_stage(report)
                elif isinstance(report, Stepped):
                    yield self._step(report)
                else:
                    yield from self._finish(report)
            if self._stop.signal in GRACEFUL and grace_ends is None:
                grace_ends = time.monotonic() + GRACE_S
            if self._stop.is_urgent or (grace_ends is not None and time.monotonic() > grace_ends):
                self._give_up_running()
                return
            yield from self._heed_stop()
            yield from self._progress()

    @property
    def _is_stopping(self) -> bool:
        return self._stop.signal is not None or (self._options.fail_fast and self._failed_now > 0)

    def _dispatch(self, planned: Planned, number: int) -> Iterator[Event]:
        """Hand a photo to a worker, after the journal knows of it."""
        found = planned.found
        scratch = self._store.scratch()
        root = found.root
        try:
            if found.source is not None:
                root, known = staged(found.source, scratch, found.path)
            else:
                known = planned.input or hash_file(found.file)
        except OSError as error:
            self._store.discard(scratch)
            yield self._settle_failed(planned, _unreadable(planned, error, number), key="")
            return
        planned = replace(planned, input=known)
        keys = self._planner.recipe.keys(known.sha256)
        key = self._planner.attempt_key(keys)
        job = Job(
            root=root,
            path=found.path,
            stem=found.stem,
            id=found.id,
            scratch=scratch,
            max_mpixels=self._options.max_mpixels,
            cache=folder_of(self._options.out, keys.views) if self._options.cache_bytes else None,
        )
        self._journal.write("attempt_start", asset=found.path, key=key, attempt=number)
        self._attempts[job.id] = _Attempt(planned=planned, job=job, number=number, key=key)
        with _writing(self._options.out):  # a new worker opens its log there
            is_new = self._conveyor.submit(job)
        yield AssetStarted(path=found.path, attempt=number)
        if is_new and not self._weights.is_small:
            yield WeightsLoading(path=found.path, weights=self._weights.name)

    def _send_back(self, report: NotOpened) -> None:
        """Queue a photo again whose worker never opened: not its fault, so it costs no attempt."""
        attempt = self._attempts.pop(report.job.id)
        self._store.discard(report.job.scratch)
        self._unopened += 1
        if self._unopened >= MAX_UNOPENED:
            raise EnvironmentProblem(
                f"workers die before their first photo: {report.reason}",
                code="E_WORKER",
                remedy="see `crm doctor`",
            )
        self._queue.appendleft((attempt.planned, attempt.number))

    def _foresee(self, report: Opened, *, workers: int) -> Iterator[Event]:
        """Say once how long all this will take, before the first photo's work begins."""
        if self._has_forecast or report.forecast_s is None:
            return
        self._has_forecast = True
        photos = len(self._attempts) + len(self._queue)
        yield from forecast(
            report.forecast_s,
            photos=photos,
            workers=workers,
            weights=self._weights.name,
            preset=self._preset,
        )

    def _step(self, report: Stepped) -> Event:
        """Say how far a photo is within its stage."""
        attempt = self._attempts[report.job.id]
        left_s = attempt.step(report.done, report.of, time.monotonic())
        return StageProgress(
            path=report.job.path,
            stage=attempt.stage,
            done=report.done,
            of=report.of,
            eta_s=None if left_s is None else round(left_s, 1),
        )

    def _enter_stage(self, report: Staged) -> Iterator[Event]:
        self._unopened = 0
        attempt = self._attempts[report.job.id]
        yield from self._leave_stage(attempt)
        attempt.enter(report.stage, time.monotonic())
        yield StageStarted(path=report.job.path, stage=report.stage)

    def _leave_stage(self, attempt: _Attempt) -> Iterator[Event]:
        if attempt.stage == "start":
            return
        seconds = round(time.monotonic() - attempt.since, 3)
        attempt.seconds += seconds
        path = attempt.job.path
        self._journal.write("stage_done", is_durable=False, asset=path, stage=attempt.stage, s=seconds)
        yield StageFinished(path=path, stage=attempt.stage, seconds=seconds)

    def _finish(self, report: Finished) -> Iterator[Event]:
        """Publish an asset, or decide what its failure means."""
        attempt = self._attempts.pop(report.job.id)
        outcome: Asset | Failed | CommitRecord = report.outcome
        if isinstance(outcome, Asset):
            yield from self._leave_stage(attempt)
            try:
                outcome = self._publish(attempt, outcome)
            except PhotoError as error:
                outcome = Failed.from_error(report.job.path, error, stage="publish")
        self._store.discard(report.job.scratch)
        if isinstance(outcome, CommitRecord):
            yield self._settle_done(attempt, outcome)
            return
        failed = replace(outcome, attempts=attempt.number)
        if report.traceback:
            self._keep_evidence(attempt, report.traceback)
        if failed.code == NO_SPACE:
            raise OutputError(
                f"{self._options.out}: {failed.message}", code=NO_SPACE, remedy="free space, then run again"
            )
        self._journal.failed(failed, key=attempt.key, signal=report.signal)
        may_retry = failed.kind in WORTH_ANOTHER_TRY and attempt.number < MAX_ATTEMPTS
        if may_retry and not self._is_stopping:
            self._queue.appendleft((attempt.planned, attempt.number + 1))
            yield AttemptFailed(path=failed.path, reason=failed.message)
        else:
            yield self._settle_failed(attempt.planned, failed, key=None)

    def _publish(self, attempt: _Attempt, asset: Asset) -> CommitRecord:
        """Move the files into place and commit the asset."""
        planned, recipe = attempt.planned, self._planner.recipe
        assert planned.input is not None
        try:
            # What was fetched cannot change any more.
            is_same = bool(planned.found.source) or looks_unchanged(planned.found.file, planned.input)
        except OSError:
            is_same = False
        if not is_same:
            raise PhotoError(
                f"{asset.photo}: changed while it was converted",
                code="E_CHANGED",
                remedy="run again",
                kind="io",
            )
        record = CommitRecord(
            asset=planned.found.path,
            id=planned.found.id,
            stem=planned.found.stem,
            input=planned.input,
            keys=recipe.keys(planned.input.sha256),
            outputs=tuple(
                Output(path=file.path, size=file.size, mtime_ns=0, sha256=file.sha256) for file in asset.files
            ),
            weights=recipe.weights,
            weights_name=self._weights.name,
            weights_digest=self._weights.digest,
            params_sha=recipe.params_sha,
            seed=recipe.seed,
            seconds=asset.seconds,
            checks=asset.checks,
            warnings=asset.warnings,
            run=self._store.run,
            attempt=attempt.number,
            t=time.time(),
            crm=__version__,
        )
        return self._store.publish(
            record, attempt.job.scratch, may_overwrite=self._options.overwrite, inputs=self._photos
        )

    def _settle_at_once(self, planned: Planned) -> Event:
        """Count a photo that needs no worker."""
        if planned.record is not None:
            self._outcomes[planned.found.id] = planned.record
            self._counts["cached"] += 1
            paths = tuple(output.path for output in planned.record.outputs)
            return AssetFinished(
                path=planned.found.path, status="cached", reason=planned.reason, outputs=paths
            )
        if planned.failure is not None:
            failure = planned.failure
            failed = Failed(
                path=failure.asset,
                kind=failure.kind,
                code=failure.code,
                message=f"{failure.message}; the photo has not changed: only --retry-failed tries it again",
                stage=failure.stage,
            )
            return self._settle_failed(planned, failed, key=None)
        failed = Failed(
            path=planned.found.path, kind="conflict", code="E_CONFLICT", message=planned.reason, stage="plan"
        )
        return self._settle_failed(planned, failed, key="")

    def _settle_done(self, attempt: _Attempt, record: CommitRecord) -> Event:
        self._journal.write("asset_done", asset=record.asset, key=attempt.key, attempt=attempt.number)
        self._counts["converted"] += 1
        self._outcomes[record.id] = record
        return AssetFinished(
            path=record.asset,
            status="converted",
            outputs=tuple(output.path for output in record.outputs),
            warnings=record.warnings,
            seconds=round(attempt.seconds, 3),
        )

    def _settle_failed(self, planned: Planned, failed: Failed, *, key: str | None) -> Event:
        """Count a failure for good. key: journal it under this key; None where the journal has it already."""
        if key is not None:
            self._journal.failed(failed, key=key)
        status: Status = "conflict" if failed.kind == "conflict" else "failed"
        self._counts[status] += 1
        self._failures[failed.kind] += 1
        self._failed_now += planned.failure is None
        self._outcomes[planned.found.id] = failed
        return AssetFinished(
            path=failed.path, status=status, reason=failed.message, kind=failed.kind, code=failed.code
        )

    def _keep_evidence(self, attempt: _Attempt, text: str) -> None:
        """Keep a traceback in the run's folder."""
        folder = self._folder / "errors"
        name = f"{attempt.job.id}-{attempt.number}.txt"
        with _writing(self._options.out):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _give_up_running(self) -> None:
        """Leave running photos to the next run; being interrupted is not their fault."""
        for job in [attempt.job for attempt in self._attempts.values()]:
            self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """Leave a photo to the next run, without an attempt that counts."""
        attempt = self._attempts.pop(job.id)
        self._journal.write("interrupted", asset=job.path, attempt=attempt.number)

    def _heed_stop(self) -> Iterator[Event]:
        """At a signal, end once what has not begun, and say what is still waited for."""
        if self._stop.signal is None or self._has_announced_stop:
            return
        self._has_announced_stop = True
        for job in self._conveyor.recall():
            self._give_up(job)
            self._store.discard(job.scratch)
        name, running = signal.Signals(self._stop.signal).name, len(self._attempts)
        if not running:
            yield Warned(message=f"{name}: stopping; no photo had begun")
            return
        waits = ", ".join([f"{running} photo" if running == 1 else f"{running} photos", *self._wait()])
        yield Warned(message=f"{name}: finishing what is running ({waits}); once more stops at once")

    def _wait(self) -> Iterator[str]:
        """How long running photos may still take, where that is known."""
        if self._stop.signal in GRACEFUL:
            yield f"{GRACE_S:.0f} s at most"
            return
        ends = [attempt.ends for attempt in self._attempts.values() if attempt.ends is not None]
        left_s = max(ends, default=0.0) - time.monotonic()
        if left_s > 0:
            yield f"about {about(left_s)}"

    def _progress(self) -> Iterator[Event]:
        total, now = len(self._plan), time.monotonic()
        if now - self._last_progress < 1.0:
            return
        self._last_progress = now
        done, converted = self._counts.total(), self._counts["converted"]
        rate = converted * 3600 / (now - self._clock)
        yield Progress(
            done=done,
            total=total,
            failed=self._counts["failed"] + self._counts["conflict"],
            rate=round(rate, 1),
            eta_s=round((total - done) * 3600 / rate, 1) if rate else None,
        )

    def _write_report(self) -> Path | None:
        """Write the contact sheet of everything that the plan names; a shard would wipe out the others'."""
        if not self._options.report or not self._plan or self._options.select.shard:
            return None
        with _writing(self._options.out):
            if self._is_part:
                so_far_s = {self._store.run: time.monotonic() - self._clock}
                return write_whole(self._options.out, so_far_s=so_far_s).sheet
            return write_report(self._plan, self._outcomes, options=self._options, facts=self._facts)

    def _exit_code(self) -> ExitCode:
        if self._stop.signal is not None:
            return ExitCode(128 + self._stop.signal)
        if self._is_stopping:
            return ExitCode.STOPPED_EARLY
        failed = self._counts["failed"] + self._counts["conflict"]
        return ExitCode.SOME_FAILED if failed else ExitCode.DONE


def _unreadable(planned: Planned, error: OSError, number: int) -> Failed:
    """A photo that cannot even be hashed."""
    return Failed(
        path=planned.found.path,
        kind="io",
        code="E_READ",
        message=f"{planned.found.path}: cannot be read: {error.strerror}",
        stage="start",
        attempts=number,
    )
