"""The work of one run: photos to workers, assets to the store, failures to whoever must know of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath

from crm_cli import __version__
from crm_cli.errors import CrmError, EnvironmentProblem, OutputError, PhotoError
from crm_cli.export.sheet import SheetEntry
from crm_cli.records import Asset, Failed, Job
from crm_cli.run import quarantine
from crm_cli.run.attempt import Attempt, Turn
from crm_cli.run.commits import CommitRecord, Output, Recipe
from crm_cli.run.events import (
    AssetFinished,
    AssetStarted,
    AttemptFailed,
    Event,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    Status,
    Warned,
    WeightsLoading,
)
from crm_cli.run.files import hash_photo, identities, looks_unchanged, output_error, writing
from crm_cli.run.forecast import about, forecast
from crm_cli.run.keeping import folder_of, trim
from crm_cli.run.options import Stop, makes_views_anew
from crm_cli.run.papers import Papers
from crm_cli.run.plan import Planned, summary
from crm_cli.run.policy import MAX_INTERRUPTIONS, MAX_KILLS, TRIES, Ending, may_try_again
from crm_cli.run.reports import (
    Displaced,
    Finished,
    Killed,
    NotOpened,
    Opened,
    Report,
    Staged,
    Stepped,
)
from crm_cli.run.scene import Scene
from crm_cli.run.search import PassedOver
from crm_cli.run.sources import staged
from crm_cli.run.space import NO_ROOM
from crm_cli.run.tally import Tally
from crm_cli.run.worker import NO_SPACE

MAX_UNOPENED = 3
"""After so many workers in a row that died before their first photo, the machine is to blame."""

MAX_KILLED_UNOPENED = 20
"""The same for workers that somebody killed: whoever kills them all wants no run."""

TICK_S = 0.2
"""How soon a signal is noticed at the latest."""


class Work:
    """One run over one plan."""

    def __init__(
        self,
        plan: Sequence[Planned],
        scene: Scene,
        *,
        stop: Stop,
        found: int,
        lost: Sequence[PassedOver],
        since: float,
    ) -> None:
        """Found: photos there are; more than were planned where a signal came before.

        lost: folders that could not be searched, each a failure. since: see Ending.
        """
        self._scene = scene
        self._options = scene.options
        self._planner = scene.planner
        self._store = scene.store
        self._journal = scene.journal
        self._conveyor = scene.conveyor
        self._weights = scene.weights
        self._stop = stop
        self._ending = Ending(scene.options, stop, photos=len(plan), since=since)
        self._lost = lost
        self._plan = plan
        self._tally = Tally(scene.weights, found=found + len(lost), planned=len(plan))
        self._papers = Papers(scene=scene, plan=plan, tally=self._tally, started=datetime.now().astimezone())
        self._queue: deque[Turn] = deque()
        self._attempts: dict[str, Attempt] = {}
        self._unopened = 0
        self._killed_unopened = 0
        self._unread = 0
        self._has_announced_end = False
        self._has_forecast = False

    def run(self) -> Iterator[Event]:
        """Do everything that the plan asks for, and say in the folder why where that cannot be."""
        try:
            yield from self._logged()
        except CrmError as error:
            yield self._leave_word(error)
            raise

    def _logged(self) -> Iterator[Event]:
        """Work, with every event kept beside the run."""
        self._journal.write("run_start", crm=__version__, inputs=self._options.inputs, photos=len(self._plan))
        self._papers.open_run()
        with self._papers.keeping_events() as keep:
            for event in self._events():
                keep(event)
                yield event

    def _leave_word(self, error: CrmError) -> Event:
        """Put down why the run ends, as far as the disk still takes it; returns the last event."""
        self._store.drop_reserve()
        finished = self._tally.finished(error.exit_code)
        with suppress(OutputError):
            self._give_up_running()
            why = {"code": error.code, "msg": error.cause}
            self._journal.write(
                "run_end", exit_code=int(error.exit_code), counts=self._tally.counts, error=why
            )
            self._papers.close_run(finished)
            for _ in (*self._papers.write_junit(), *self._papers.write_sums()):
                pass  # nobody is warned any more of what is told already
        return finished

    def _events(self) -> Iterator[Event]:
        yield RunStarted(
            run=self._store.run,
            out=self._options.shown_out,
            weights=self._weights.name,
            weights_digest=self._weights.digest,
            architecture=self._weights.architecture,
        )
        yield summary(self._plan, self._weights, workers=self._scene.workers)
        for folder in self._lost:
            yield self._settle_lost(folder)
        for planned in self._plan:
            if planned.action != "convert":
                yield self._settle_at_once(planned)
        self._queue.extend(self._turns())
        yield from self._work()
        tally, papers = self._tally, self._papers
        exit_code = self._ending.exit_code(
            failed=tally.failed, left=tally.left, refused=tally.refused(self._options.fail_on)
        )
        if self._options.cache_bytes:
            trim(self._options.out, limit_bytes=self._options.cache_bytes)
        report = papers.write_report()
        yield from papers.write_sums()
        yield from papers.write_junit()
        self._journal.write("run_end", exit_code=int(exit_code), counts=tally.counts)
        finished = tally.finished(exit_code, report=report)
        papers.close_run(finished)
        yield finished

    def _turns(self) -> Iterator[Turn]:
        """Photos in the order they are taken; those that may take the machine down come last, and alone."""
        waiting = [planned for planned in self._plan if planned.action == "convert"]
        for planned in waiting:
            if planned.interruptions < MAX_INTERRUPTIONS:
                yield Turn(planned=planned)
        for planned in waiting:
            if planned.interruptions >= MAX_INTERRUPTIONS:
                yield Turn(planned=planned, is_alone=True)

    def _work(self) -> Iterator[Event]:
        """Keep workers busy until nothing is left, or somebody says stop."""
        grace_ends: float | None = None
        while self._attempts or (self._queue and self._ending.why is None):
            while self._may_dispatch():
                yield from self._dispatch(self._queue.popleft())
            for report in self._conveyor.wait(TICK_S):
                yield from self._hear(report)
            if self._ending.has_grace and grace_ends is None:
                grace_ends = time.monotonic() + self._options.grace_s
            if self._ending.is_urgent or (grace_ends is not None and time.monotonic() > grace_ends):
                if self._attempts:
                    words = self._ending.words()
                    yield Warned(message=f"{words}: {len(self._attempts)} running given up, for the next run")
                self._give_up_running()
                return
            yield from self._heed_end()
            yield from self._tell_progress()

    def _may_dispatch(self) -> bool:
        """Whether the next photo may start now."""
        if not self._queue or self._ending.why is not None or not self._conveyor.has_room:
            return False
        is_alone = self._queue[0].is_alone or any(one.turn.is_alone for one in self._attempts.values())
        return not (is_alone and self._attempts)

    def _hear(self, report: Report) -> Iterator[Event]:
        """Take in one report of a worker."""
        match report:
            case NotOpened():
                yield from self._send_back(report)
            case Killed():
                yield from self._forgive(report)
            case Displaced():
                self._queue.appendleft(self._interrupt(report.job).turn)
            case Opened():
                yield from self._foresee(report)
            case Staged():
                yield from self._enter_stage(report)
            case Stepped():
                yield self._step(report)
            case Finished():
                yield from self._finish(report)

    def _dispatch(self, turn: Turn) -> Iterator[Event]:
        """Hand a photo to a worker, after the journal knows of it."""
        planned, found = turn.planned, turn.planned.found
        scratch, root = self._store.scratch(), found.root
        try:
            if found.source is not None:
                root, known = staged(found.source, scratch, found.path)
            else:
                known = planned.input or hash_photo(found.file)
        except OSError as error:
            self._store.discard(scratch)
            if found.source is not None and error.errno in NO_ROOM:  # it was to be fetched to our disk
                raise output_error(self._options.out, error) from error
            yield from self._fail_unread(turn, error)
            return
        planned = replace(planned, input=known)
        recipe = self._planner.recipe_of(found)
        keys = recipe.keys(known.sha256, found.extras)
        key = self._planner.attempt_key(keys)
        job = Job(
            root=root,
            path=found.path,
            stem=found.stem,
            id=found.id,
            scratch=scratch,
            max_mpixels=self._options.max_mpixels,
            cache=folder_of(self._options.out, keys.views) if self._options.cache_bytes else None,
            other_caches=self._other_caches(known.sha256, recipe),
            may_reuse=not makes_views_anew(self._options.force_stage),
            size=found.size,
            seed=None if recipe.seed == self._scene.preset.seed else recipe.seed,
        )
        self._journal.write("attempt_start", asset=found.path, key=key, attempt=turn.number)
        self._attempts[job.id] = Attempt(
            turn=replace(turn, planned=planned),
            job=job,
            key=key,
            room=self._conveyor.room,
        )
        with writing(self._options.out):  # a new worker opens its log there
            loads = self._conveyor.submit(job, on_cpu=turn.on_cpu)
        yield AssetStarted(path=found.path, attempt=turn.number)
        if loads and not self._weights.is_small:
            yield WeightsLoading(path=found.path, weights=self._weights.name)

    def _other_caches(self, sha256: str, recipe: Recipe) -> tuple[Path, ...]:
        """Where the views of all seeds after the recipe's are kept: as if each were tried alone."""
        if not self._options.cache_bytes:
            return ()
        preset = self._scene.preset
        others = (Recipe.of(preset.of_seed(seed), recipe.weights) for seed in recipe.seeds[1:])
        return tuple(folder_of(self._options.out, other.keys(sha256).views) for other in others)

    def _fail_unread(self, turn: Turn, error: OSError) -> Iterator[Event]:
        """A photo that no worker has seen, since it cannot be read: a disk may be away for a while."""
        failed = _unreadable(turn.planned, error, turn.number)
        self._journal.failed(failed, key="")
        if may_try_again(failed) and self._ending.why is None:
            yield AttemptFailed(path=failed.path, reason=failed.message)
            self._queue.append(replace(turn, number=turn.number + 1))
            return
        yield self._settle_failed(turn.planned, failed, key=None)
        self._unread += 1  # it stands for a worker: each was another try to read
        self._ending.breaker.note(failed.kind, worker=-self._unread)

    def _send_back(self, report: NotOpened) -> Iterator[Event]:
        """Queue a photo again whose worker never opened: not its fault, so it costs no attempt."""
        attempt = self._interrupt(report.job)
        # The machine's memory it is, since the kernel took notice.
        how = self._conveyor.make_fewer() or self._conveyor.economize() if report.kind == "oom" else None
        if how is not None:
            yield Warned(message=f"out of memory: going on with {how}")
        else:
            self._unopened += 1
        if self._unopened >= MAX_UNOPENED:
            raise _no_worker(report.reason)
        self._queue.appendleft(attempt.turn)

    def _forgive(self, report: Killed) -> Iterator[Event]:
        """Queue a photo again whose worker is gone, not through it; in the end it fails all the same."""
        attempt = self._interrupt(report.job)
        path, turn = report.job.path, replace(attempt.turn, kills=attempt.turn.kills + 1)
        if attempt.stage == "start":
            self._killed_unopened += 1
            if self._killed_unopened >= MAX_KILLED_UNOPENED:
                raise _no_worker("somebody kills them")
        if turn.kills <= MAX_KILLS:
            self._queue.appendleft(turn)
            yield AttemptFailed(path=path, reason=report.reason)
            return
        failed = Failed(
            path=path,
            kind="crash",
            code="E_KILLED",
            message=f"{report.reason}; so it went {turn.kills} times",
            stage=report.stage,
            attempts=turn.number,
        )
        yield self._settle_failed(turn.planned, failed, key=attempt.key)

    def _interrupt(self, job: Job) -> Attempt:
        """End an attempt that does not count against its photo."""
        attempt = self._attempts.pop(job.id)
        self._journal.write("interrupted", asset=job.path, attempt=attempt.turn.number)
        self._store.discard(job.scratch)
        return attempt

    def _foresee(self, report: Opened) -> Iterator[Event]:
        """Say once how long all this will take, before the first photo's work begins."""
        if self._has_forecast or report.forecast_s is None:
            return
        self._has_forecast = True
        photos = len(self._attempts) + len(self._queue)
        yield from forecast(
            report.forecast_s,
            photos=photos,
            workers=self._scene.workers,
            weights=self._weights.name,
            preset=self._scene.preset,
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
        self._unopened = self._killed_unopened = 0
        attempt = self._attempts[report.job.id]
        yield from self._leave_stage(attempt)
        attempt.enter(report.stage, time.monotonic())
        yield StageStarted(path=report.job.path, stage=report.stage)

    def _leave_stage(self, attempt: Attempt) -> Iterator[Event]:
        if attempt.stage == "start":
            return
        seconds = round(time.monotonic() - attempt.since, 3)
        attempt.seconds += seconds
        path = attempt.job.path
        self._journal.write("stage_done", is_durable=False, asset=path, stage=attempt.stage, s=seconds)
        yield StageFinished(path=path, stage=attempt.stage, seconds=seconds)

    def _finish(self, report: Finished) -> Iterator[Event]:
        """Publish an asset, or decide what its failure means."""
        attempt = self._attempts[report.job.id]
        if report.peak_bytes:
            self._tally.note_peak(report.device.partition(":")[0], report.peak_bytes)
        outcome: Asset | Failed | CommitRecord = report.outcome
        if isinstance(outcome, Asset):
            yield from self._leave_stage(attempt)
            try:
                outcome = self._publish(attempt, outcome)
            except PhotoError as error:
                outcome = Failed.from_error(report.job.path, error, stage="publish")
        if isinstance(outcome, Failed) and outcome.code == NO_SPACE:
            raise OutputError(
                f"{self._options.out}: {outcome.message}", code=NO_SPACE, remedy="free space, then run again"
            )
        # Only now: a photo whose disk was full was interrupted, as those are that were still running.
        del self._attempts[report.job.id]
        if isinstance(outcome, CommitRecord):
            self._store.discard(report.job.scratch)
            self._ending.breaker.note(None, worker=report.worker)
            yield self._settle_done(attempt, outcome)
            return
        yield from self._fail(attempt, replace(outcome, attempts=attempt.turn.number), report)
        # Only now: what was fetched from a store lies there, and may be evidence.
        self._store.discard(report.job.scratch)

    def _fail(self, attempt: Attempt, failed: Failed, report: Finished) -> Iterator[Event]:
        """Decide what a failed try means for its photo and for the run."""
        self._papers.keep_words(attempt, report.traceback or report.log)
        self._journal.failed(failed, key=attempt.key, signal=report.signal)
        turn = attempt.turn
        if failed.kind == "crash":
            turn = replace(turn, crashes=(*turn.crashes, report.log))
        if may_try_again(failed):
            yield AttemptFailed(path=failed.path, reason=failed.message)
            # Where the run ends, the next one will try: nothing is decided about the photo.
            if self._ending.why is None:
                # Read anew: it may be its bytes that have changed.
                planned = replace(attempt.planned, input=None)
                again = replace(turn, planned=planned, number=failed.attempts + 1)
                if failed.kind == "oom":
                    again = yield from self._economize(again, attempt, report)
                self._queue.appendleft(again)
            return
        is_hopeless = len(turn.crashes) >= TRIES["crash"]
        if is_hopeless:
            self._quarantine(attempt, failed, turn.crashes)
        yield self._settle_failed(attempt.planned, failed, key=None, is_quarantined=is_hopeless)
        self._ending.breaker.note(failed.kind, worker=report.worker)
        if self._ending.breaker.is_suspect(report.worker):
            self._conveyor.renew(report.worker)

    def _economize(self, turn: Turn, attempt: Attempt, report: Finished) -> Generator[Event, None, Turn]:
        """Make the next try need less memory, and the other photos as well, as far as that goes."""
        if report.is_lanes:
            if report.was_frugal:
                yield Warned(message=f"{turn.planned.found.path}: out of memory again; trying on the CPU")
                return replace(turn, on_cpu=True)
            how = self._conveyor.economize()
        else:
            # Others may have made room since; and one photo alone must not make a run slow for ever.
            has_tried = attempt.turn.number > 1 or self._conveyor.room < attempt.room
            how = None if has_tried else self._conveyor.make_fewer()
        if how is not None:
            yield Warned(message=f"out of memory: going on with {how}")
        return turn

    def _quarantine(self, attempt: Attempt, failed: Failed, logs: Sequence[str]) -> None:
        """Set a photo aside that crashes every worker, with the evidence."""
        out, job = self._options.out, attempt.job
        about_crash = {
            "v": 1,
            "run": self._store.run,
            "photo": attempt.planned.found.shown,
            "input": attempt.planned.input,
            "key": attempt.key,
            "failure": failed,
            "device": "cpu" if attempt.turn.on_cpu else self._scene.device,
            "weights": self._weights.digest,
            "preset": asdict(self._scene.preset),
            "crm": __version__,
        }
        with writing(out):
            folder = quarantine.keep(
                out,
                job.id,
                run=self._store.run,
                about=about_crash,
                logs=logs,
                photo=job.root / job.path,
                views=job.cache,
            )
        self._journal.quarantined(failed, key=attempt.key, evidence=folder.relative_to(out))

    def _publish(self, attempt: Attempt, asset: Asset) -> CommitRecord:
        """Move the files into place and commit the asset."""
        planned = attempt.planned
        recipe = self._planner.recipe_of(planned.found)
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
            keys=recipe.keys(planned.input.sha256, planned.found.extras),
            outputs=tuple(
                Output(path=file.path, size=file.size, mtime_ns=0, sha256=file.sha256) for file in asset.files
            ),
            weights=recipe.weights,
            weights_name=self._weights.name,
            weights_digest=self._weights.digest,
            params_sha=recipe.params_sha,
            seed=recipe.seed if asset.seed is None else asset.seed,
            seconds=asset.seconds,
            checks=asset.checks,
            publication=asset.publication,
            size=planned.found.size,
            verdict=asset.verdict,
            warnings=asset.warnings,
            camera=asset.camera,
            run=self._store.run,
            attempt=attempt.turn.number,
            t=time.time(),
            crm=__version__,
        )
        return self._store.publish(
            record,
            attempt.job.scratch,
            may_overwrite=self._options.overwrite,
            is_input=lambda file: not self._photos.isdisjoint(identities(file)),
        )

    @cached_property
    def _photos(self) -> frozenset[object]:
        """Identities of all photos, for the rare run that finds files in its way: then each may ask."""
        files = (planned.found.file for planned in self._plan if planned.found.source is None)
        return frozenset(mark for file in files for mark in identities(file))

    def _settle_at_once(self, planned: Planned) -> Event:
        """Count a photo that needs no worker."""
        path = planned.found.path
        if planned.action == "skipped":
            return self._tally.count(AssetFinished(path=path, status="skipped", reason=planned.reason))
        if planned.action == "cached":
            if planned.failure is not None and planned.failure.t > planned.made:
                # A forced try failed, or one with other settings: what stands is what was asked for now.
                self._journal.write("asset_done", asset=path, key=planned.failure.key, attempt=0)
            return self._tally.count(
                AssetFinished(
                    path=path,
                    status="cached",
                    reason=planned.reason,
                    outputs=planned.outputs,
                    verdict=planned.verdict,
                )
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
            return self._settle_failed(planned, failed, key=None, is_quarantined=failure.is_quarantined)
        failed = Failed(path=path, kind="conflict", code="E_CONFLICT", message=planned.reason, stage="plan")
        return self._settle_failed(planned, failed, key="")

    def _settle_lost(self, folder: PassedOver) -> Event:
        """Count a folder that may hold photos as a failure: what nobody can see must not pass for nothing."""
        self._ending.note_failure()
        reason = f"{folder.path}: {folder.reason}; see to its rights, then run again"
        path = PurePosixPath(folder.path)
        return self._tally.count(
            AssetFinished(path=path, status="failed", reason=reason, kind="io", code="E_FOLDER")
        )

    def _settle_done(self, attempt: Attempt, record: CommitRecord) -> Event:
        self._journal.write("asset_done", asset=record.asset, key=attempt.key, attempt=attempt.turn.number)
        quarantine.release(self._options.out, record.id)
        end = AssetFinished(
            path=record.asset,
            status="converted",
            outputs=tuple(output.path for output in record.outputs),
            warnings=record.warnings,
            seconds=round(attempt.seconds, 3),
            seed=record.seed,
            verdict=record.verdict,
        )
        # Named only: what its record says of thousands would fill the memory until the sheet is written.
        return self._tally.count(end, SheetEntry(id=record.id, photo=record.asset, made=record.t))

    def _settle_failed(
        self, planned: Planned, failed: Failed, *, key: str | None, is_quarantined: bool = False
    ) -> Event:
        """Count a failure for good. key: journal it under this key; None where the journal has it already."""
        if key is not None:
            self._journal.failed(failed, key=key)
        status: Status = "failed"
        if failed.kind == "conflict":
            status = "conflict"
        elif is_quarantined:
            status = "quarantined"
        if planned.failure is None:
            self._ending.note_failure()
        end = AssetFinished(
            path=failed.path, status=status, reason=failed.message, kind=failed.kind, code=failed.code
        )
        return self._tally.count(end, SheetEntry(id=planned.found.id, photo=failed.path, failure=failed))

    def _give_up_running(self) -> None:
        """Leave running photos to the next run; being interrupted is not their fault."""
        for job in [attempt.job for attempt in self._attempts.values()]:
            self._interrupt(job)

    def _heed_end(self) -> Iterator[Event]:
        """Once the run has to end, end at once what has not begun, and say what is still waited for."""
        if self._ending.why is None or self._has_announced_end:
            return
        self._has_announced_end = True
        for job in self._conveyor.recall():
            self._interrupt(job)
        words, running = self._ending.words(), len(self._attempts)
        if not running:
            yield Warned(message=f"{words}: stopping; no photo is at work")
            return
        waits = ", ".join([f"{running} photo" if running == 1 else f"{running} photos", *self._wait()])
        once_more = "once more" if self._stop.signal is not None else "an interrupt"
        yield Warned(message=f"{words}: finishing what is running ({waits}); {once_more} stops at once")

    def _wait(self) -> Iterator[str]:
        """How long running photos may still take, where that is known."""
        if self._ending.has_grace:
            yield f"{self._options.grace_s:.0f} s at most"
            return
        ends = [attempt.ends for attempt in self._attempts.values() if attempt.ends is not None]
        left_s = max(ends, default=0.0) - time.monotonic()
        if left_s > 0:
            yield f"about {about(left_s)}"

    def _tell_progress(self) -> Iterator[Event]:
        progress = self._tally.progress()
        if progress is not None:
            self._store.refuse_gone()
            yield progress


def _no_worker(reason: str) -> EnvironmentProblem:
    """No worker lives long enough to be of use."""
    return EnvironmentProblem(
        f"workers die before their first photo: {reason}", code="E_WORKER", remedy="see `crm doctor`"
    )


def _unreadable(planned: Planned, error: OSError, number: int) -> Failed:
    """A photo that cannot even be hashed."""
    return Failed(
        path=planned.found.path,
        kind="io",
        code="E_READ",
        message=f"{planned.found.path}: cannot be read: {error.strerror or error} [E_READ]; "
        "see to the file and its disk, then run again",
        stage="start",
        attempts=number,
    )
