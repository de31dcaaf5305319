"""Many photos: plan → workers → publish → record → journal → contact sheet.

Only this process writes records and the journal, and it imports nothing heavy: it must answer a signal at
once, also while every worker is deep inside a native library.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, ErrorClass, ExitCode, NoInput, OutputError, PhotoError
from crm_cli.preset import Preset
from crm_cli.records import Asset, Failed, Job, WrittenFile
from crm_cli.run.conveyor import (
    Conveyor,
    Finished,
    NotOpened,
    Staged,
    deadlines,
    default_workers,
    find_devices,
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
    StageStarted,
    Status,
    Warned,
)
from crm_cli.run.journal import Journal, last_failures
from crm_cli.run.plan import Planned, Planner
from crm_cli.run.store import (
    CommitRecord,
    Output,
    Recipe,
    Records,
    Store,
    hash_file,
    looks_unchanged,
    output_error,
    refuse_newer,
    write_atomically,
)
from crm_cli.run.walk import Selection, walk
from crm_cli.run.wire import dumps
from crm_cli.run.worker import NO_SPACE, PIPELINE, Launch
from crm_cli.toolbox import usable_cores

WORTH_ANOTHER_TRY: frozenset[ErrorClass] = frozenset({"internal", "oom", "crash", "timeout"})
"""Failures that a fresh worker may not meet again."""

MAX_ATTEMPTS = 2

MAX_UNOPENED = 3
"""After so many workers in a row that died before their first photo, the machine is to blame."""

GRACE_S = 20.0
"""How long SIGTERM and SIGHUP let running photos finish: schedulers kill after 30 s."""

TICK_S = 0.2
"""How soon a signal is noticed at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What converts a photo, and which weights it reads. Tests swap it; no preset can."""

    line: str
    weights: Callable[[Preset], Mapping[str, str]]
    """Digest of the weights that a stage reads, by stage; raises EnvironmentProblem where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where and how assets are made; nothing here changes what they are."""

    inputs: tuple[Path, ...]
    out: Path
    select: Selection = field(default_factory=Selection)
    keep_ext: bool = False
    preset_name: str = "default"
    device: str = "auto"
    jobs: int | None = None
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    max_mpixels: float = 64.0
    overwrite: bool = False
    retry_failed: bool = False
    fail_fast: bool = False
    dry_run: bool = False
    allow_empty: bool = False
    report: bool = True
    wait_lock_s: float = 0.0


@dataclass(slots=True)
class Stop:
    """Set by signal handlers, read by the run."""

    signal: int | None = None
    """The first signal: nothing new starts."""
    is_urgent: bool = False
    """A second one: running photos are given up."""


def weights_digests(preset: Preset) -> dict[str, str]:
    """Digests of the weights on disk, for the stages that read them."""
    from crm_cli.models.weights import digest_of, find

    files = find(preset.weights).files
    both = "".join(digest_of(files[name]) for name in ("rgb", "ccm"))
    views = hashlib.sha256(both.encode("ascii")).hexdigest()
    return {"views": views, "mesh": digest_of(files["reconstruction"])}


PRODUCTION = Engine(line=PIPELINE, weights=weights_digests)


def convert(
    preset: Preset, options: RunOptions, *, stop: Stop | None = None, engine: Engine = PRODUCTION
) -> Iterator[Event]:
    """Convert what is missing, and yield what happens; the last event is RunFinished.

    One photo's failure is an event. A CrmError is raised where the run itself cannot go on.
    """
    found = walk(options.inputs, options.out, select=options.select, keep_ext=options.keep_ext)
    for skipped in found.passed_over:
        yield Warned(message=f"{skipped.path}: passed over: {skipped.reason}")
    if not found.photos and not options.allow_empty:
        names = ", ".join(str(path) for path in options.inputs)
        raise NoInput(f"{names}: no photo found", code="E_NO_INPUT", remedy="check the paths, or --include")
    refuse_newer(options.out)
    recipe = Recipe.of(preset, engine.weights(preset))
    if options.dry_run:
        planner = _planner(Records.scan(options.out), recipe, options)
        yield from _announce([planner.decide(photo) for photo in found.photos])
        return
    devices = find_devices(options.device)
    limits = deadlines(devices, options.deadlines_s)
    run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(2).hex()}"
    store = Store.open(options.out, run=run, wait_lock_s=options.wait_lock_s)
    try:
        planner = _planner(store.records, recipe, options)
        plan = [planner.decide(photo) for photo in found.photos]
        to_convert = sum(planned.action == "convert" for planned in plan)
        workers = max(1, min(options.jobs or default_workers(devices), to_convert))
        threads = max(1, usable_cores() // workers)
        folder = options.out / ".crm" / "runs" / run
        folder.mkdir()
        launch = Launch(preset=preset, device=devices[0], threads=threads, line=engine.line)
        with Journal(options.out, run) as journal:
            conveyor = Conveyor(launch, devices=devices, workers=workers, deadlines_s=limits, logs=folder)
            try:
                batch = _Batch(
                    plan, options=options, preset=preset, planner=planner, store=store, journal=journal,
                    conveyor=conveyor, stop=stop or Stop(), folder=folder, device=", ".join(devices),
                )  # fmt: skip
                yield from batch.run(workers=workers)
            finally:
                conveyor.close()
    except OSError as error:
        raise output_error(options.out, error) from error
    finally:
        store.close()


def _planner(records: Records, recipe: Recipe, options: RunOptions) -> Planner:
    return Planner(
        recipe=recipe,
        records=records,
        failures=last_failures(options.out),
        max_mpixels=options.max_mpixels,
        may_overwrite=options.overwrite,
        retry_failed=options.retry_failed,
    )


def _announce(plan: Sequence[Planned]) -> Iterator[Event]:
    """Say what a run would do, photo by photo."""
    for planned in plan:
        yield AssetPlanned(path=planned.found.path, action=planned.action, reason=planned.reason)
    yield _summary(plan, workers=0)
    yield RunFinished(exit_code=ExitCode.DONE, counts={}, failures={}, seconds=0.0)


def _summary(plan: Sequence[Planned], *, workers: int) -> Plan:
    counts = Counter(planned.action for planned in plan)
    return Plan(
        photos=len(plan),
        to_convert=counts["convert"],
        cached=counts["cached"],
        failed_before=counts["failed"],
        conflicts=counts["conflict"],
        workers=workers,
        reasons=dict(Counter(planned.reason for planned in plan if planned.action == "convert")),
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
    ) -> None:
        self._options = options
        self._preset = preset
        self._planner = planner
        self._store = store
        self._journal = journal
        self._conveyor = conveyor
        self._stop = stop
        self._folder = folder
        self._device = device
        self._started = datetime.now().astimezone()
        self._clock = time.monotonic()
        self._plan = plan
        self._photos = [planned.found.file for planned in plan]
        self._queue: deque[tuple[Planned, int]] = deque()
        self._attempts: dict[str, _Attempt] = {}
        self._outcomes: dict[str, CommitRecord | Failed] = {}
        self._kept: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._unopened = 0
        self._last_progress = 0.0
        self._has_announced_stop = False

    def run(self, *, workers: int) -> Iterator[Event]:
        """Do everything that the plan asks for."""
        self._journal.write("run_start", crm=__version__, inputs=self._options.inputs, photos=len(self._plan))
        about = {"run": self._store.run, "preset": asdict(self._preset), "options": self._options}
        write_atomically(self._folder / "run.json", dumps(about).encode("ascii"), run=self._store.run)
        with (self._folder / "events.ndjson").open("a", encoding="ascii") as events:
            for event in self._events(workers=workers):
                events.write(event.as_json() + "\n")
                events.flush()
                yield event

    def _events(self, *, workers: int) -> Iterator[Event]:
        yield RunStarted(run=self._store.run, out=self._options.out)
        yield _summary(self._plan, workers=workers)
        for planned in self._plan:
            if planned.action == "convert":
                self._queue.append((planned, 1))
            else:
                yield self._settle_at_once(planned)
        try:
            yield from self._work()
        except OutputError:
            # The last line is worth a try, but the disk that refused a record may refuse this too.
            self._give_up_running(is_logged=False)
            raise
        exit_code = self._exit_code()
        report = self._write_sheet() if self._options.report and self._plan else None
        self._journal.write("run_end", exit_code=int(exit_code), counts=dict(self._counts))
        finished = RunFinished(
            exit_code=exit_code,
            counts=dict(self._counts),
            failures=dict(self._failures),
            seconds=round(time.monotonic() - self._clock, 3),
            report=report,
        )
        write_atomically(
            self._folder / "summary.json", finished.as_json().encode("ascii"), run=self._store.run
        )
        yield finished

    def _work(self) -> Iterator[Event]:
        """Keep workers busy until nothing is left, or somebody says stop."""
        grace_ends: float | None = None
        while self._attempts or (self._queue and not self._is_stopping):
            while self._queue and self._conveyor.has_room and not self._is_stopping:
                yield from self._dispatch(*self._queue.popleft())
            for report in self._conveyor.wait(TICK_S):
                if isinstance(report, NotOpened):
                    self._send_back(report)
                elif isinstance(report, Staged):
                    yield from self._enter_stage(report)
                else:
                    yield from self._finish(report)
            if self._stop.signal in (signal.SIGTERM, signal.SIGHUP) and grace_ends is None:
                grace_ends = time.monotonic() + GRACE_S
            if self._stop.is_urgent or (grace_ends is not None and time.monotonic() > grace_ends):
                self._give_up_running()
                return
            yield from self._announce_stop()
            yield from self._progress()

    @property
    def _is_stopping(self) -> bool:
        has_failed = self._counts["failed"] + self._counts["conflict"] > 0
        return self._stop.signal is not None or (self._options.fail_fast and has_failed)

    def _dispatch(self, planned: Planned, number: int) -> Iterator[Event]:
        """Hand a photo to a worker, after the journal knows of it."""
        found = planned.found
        try:
            known = planned.input or hash_file(found.file)
        except OSError as error:
            yield self._settle_failed(planned, _unreadable(planned, error, number), key="")
            return
        planned = replace(planned, input=known)
        key = self._planner.attempt_key(self._planner.recipe.keys(known.sha256))
        job = Job(
            root=found.root,
            path=found.path,
            stem=found.stem,
            id=found.id,
            scratch=self._store.scratch(),
            max_mpixels=self._options.max_mpixels,
        )
        self._journal.write("attempt_start", asset=found.path, key=key, attempt=number)
        self._attempts[job.id] = _Attempt(
            planned=planned, job=job, number=number, key=key, since=time.monotonic()
        )
        self._conveyor.submit(job)
        yield AssetStarted(path=found.path, attempt=number)

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

    def _enter_stage(self, report: Staged) -> Iterator[Event]:
        self._unopened = 0
        attempt = self._attempts[report.job.id]
        yield from self._leave_stage(attempt)
        attempt.stage, attempt.since = report.stage, time.monotonic()
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
            is_same = looks_unchanged(planned.found.file, planned.input)
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
            self._kept.add(planned.found.id)
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
        self._outcomes[planned.found.id] = failed
        return AssetFinished(
            path=failed.path, status=status, reason=failed.message, kind=failed.kind, code=failed.code
        )

    def _keep_evidence(self, attempt: _Attempt, text: str) -> None:
        """Keep a traceback in the run's folder."""
        folder = self._folder / "errors"
        folder.mkdir(exist_ok=True)
        name = f"{attempt.job.id}-{attempt.number}.txt"
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _give_up_running(self, *, is_logged: bool = True) -> None:
        """Leave running photos to the next run; being interrupted is not their fault."""
        for attempt in self._attempts.values():
            if is_logged:
                self._journal.write("interrupted", asset=attempt.job.path, attempt=attempt.number)
        self._attempts.clear()

    def _announce_stop(self) -> Iterator[Event]:
        """Say once that a signal was understood."""
        if self._stop.signal is not None and not self._has_announced_stop:
            self._has_announced_stop = True
            name, running = signal.Signals(self._stop.signal).name, len(self._attempts)
            yield Warned(message=f"{name}: finishing what is running ({running}); once more stops at once")

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

    def _exit_code(self) -> ExitCode:
        if self._stop.signal is not None:
            return ExitCode(128 + self._stop.signal)
        failed = self._counts["failed"] + self._counts["conflict"]
        if failed and self._options.fail_fast:
            return ExitCode.STOPPED_EARLY
        return ExitCode.SOME_FAILED if failed else ExitCode.DONE

    def _write_sheet(self) -> Path:
        """Write the contact sheet of everything the plan named."""
        from crm_cli.export.sheet import SheetEntry, SheetSummary, write_sheet

        entries = []
        for planned in self._plan:
            outcome = self._outcomes.get(planned.found.id)
            if isinstance(outcome, CommitRecord):
                files = tuple(
                    WrittenFile(path=output.path, size=output.size, sha256=output.sha256)
                    for output in outcome.outputs
                )
                entries.append(
                    SheetEntry(
                        id=outcome.id,
                        photo=outcome.asset,
                        files=files,
                        checks=outcome.checks,
                        seconds=outcome.seconds,
                        warnings=outcome.warnings,
                        is_kept=outcome.id in self._kept,
                    )
                )
            elif isinstance(outcome, Failed):
                entries.append(SheetEntry(id=planned.found.id, photo=outcome.path, failure=outcome))
        left = len(self._plan) - len(entries)
        summary = SheetSummary(
            started=self._started,
            wall_s=time.monotonic() - self._clock,
            weights=self._preset.weights,
            preset=self._options.preset_name,
            device=self._device,
            version=__version__,
            note=f"stopped early: {left} photos are left" if left else "",
        )
        return write_sheet(self._options.out, entries, summary)


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
