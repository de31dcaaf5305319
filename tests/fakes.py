"""A line of stations that obeys file names, and the command line with that line in it.

raise_  a Python exception      input_  a PhotoError         segv_  dies in native code
hang_   never ends              exit0_  leaves politely      slow_  takes a while
noisy_  prints on stdout        once_   crashes the first time only
space_  a full disk             liar_   announces more bytes than it wrote
nan_    measures a volume that is no number
steps_  takes a while, and tells its steps all along
stall_  tells one step and never ends
lacking_  finds that the machine lacks something
killed_   is killed from outside, every time
onekill_  is killed from outside the first time only
oom_      runs out of memory wherever it is
big_      runs out of memory unless its worker is frugal
huge_     runs out of memory unless it is on a CPU
oomcrash_ runs out of memory twice, then dies in native code
flaky_    cannot be published the first time
review_   becomes an asset that a person should look at
poor_     becomes an asset that is not what was asked for
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from crm_cli.errors import EnvironmentProblem, PhotoError
from crm_cli.names import lod_names
from crm_cli.preset import Preset
from crm_cli.records import Asset, Checks, Crop, Cutout, Job, Mesh, Reason, SixViews, Verdict, WrittenFile
from crm_cli.run.keeping import MARK
from crm_cli.run.options import Engine, UsedWeights
from crm_cli.toolbox import Place

if TYPE_CHECKING:
    from crm_cli.lane import Lane
    from crm_cli.models.reconstruction import PlaneField

CHECKS = Checks(
    vertices=8, faces=12, is_closed=True, is_manifold=True, is_oriented=True, volume=1.0, euler=2,
    components=1, degenerate_faces=0, uv_overlap=0.0, uv_coverage=0.5, silhouette_iou=0.9, confidence="ok",
)  # fmt: skip

PASSED = Verdict(grade="pass", score=0.9)

PALE = Reason(
    code="likeness.colour", severity="review", found=12.0, limit=9.0, sentence="the colours are 12.0 away"
)
TORN = Reason(code="geometry.open", severity="fail", found=0.0, limit=1.0, sentence="the surface has holes")

VERDICTS = {
    "review": Verdict(grade="review", reasons=(PALE,), score=0.8),
    "poor": Verdict(grade="fail", reasons=(TORN, PALE), score=0.7),
}
"""By the fate in a photo's name."""

STAGES = ("prepare", "imagine", "reconstruct", "unwrap", "bake", "deliver")

SLOW_S = 0.3

PHOTO_S = 1500.0
"""What a large line expects a photo to take."""


STEPS = 16
"""How many steps a photo named after them takes."""

FIRST_OPEN = "FAKES_FIRST_OPEN"
"""Names a file, in the environment, that remembers that a late line was opened."""

Steps = Callable[[int, int], None]


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class FakeLine:
    """Writes one small file a format, from the photo's bytes, the preset and, as sums do, the threads."""

    def __init__(
        self,
        preset: Preset,
        threads: int,
        precision: str,
        sharers: int,
        *,
        device: str,
        is_frugal: bool,
        lane: Lane | None,
    ) -> None:
        self._lane = lane
        self._device = device
        self._is_frugal = is_frugal
        self._preset = preset
        self._threads = threads
        self._precision = precision
        self._sharers = sharers

    @classmethod
    def open(
        cls,
        preset: Preset,
        *,
        device: str,
        threads: int,
        precision: str,
        sharers: int,
        is_frugal: bool,
        lane: Lane | None,
    ) -> FakeLine:
        assert os.environ["OMP_NUM_THREADS"] == str(threads)
        assert "torch" not in sys.modules
        return cls(preset, threads, precision, sharers, device=device, is_frugal=is_frugal, lane=lane)

    def forecast_s(self) -> float | None:
        return None

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        return self._made(job, report_stage, report_step, obey=self._obey)

    def _obey(self, job: Job) -> None:
        fate = job.path.name.partition("_")[0]
        if (
            fate == "oom"
            or (fate == "big" and not self._is_frugal)
            or (fate == "huge" and self._device != "cpu")
        ):
            raise OutOfMemoryError("CUDA out of memory")
        if fate == "oomcrash":
            count = sum(1 for _ in job.root.glob(f"{job.path.name}.try*"))
            Path(f"{job.root / job.path}.try{count}").touch()
            if count < 2:
                raise OutOfMemoryError("CUDA out of memory")
            os.kill(os.getpid(), signal.SIGSEGV)
        _obey(job)

    def _made(
        self,
        job: Job,
        report_stage: Callable[[str], None],
        report_step: Steps,
        obey: Callable[[Job], None],
    ) -> Asset:
        data = (job.root / job.path).read_bytes()
        for stage in STAGES:
            report_stage(stage)
            if stage == "unwrap":
                obey(job)
                _tell_steps(job, report_step)
        formats = self._preset.export.formats
        chain = [job.stem.with_name(name) for name in lod_names(job.stem.name, self._preset.export.lods)]
        jobs = [replace(job, stem=stem) for stem in chain]
        files = tuple(self._write(level, data, name) for level in jobs for name in formats)
        checks = replace(CHECKS, volume=math.nan) if job.path.name.startswith("nan_") else CHECKS
        return Asset(
            photo=job.path,
            files=files,
            checks=checks,
            seconds=dict.fromkeys(STAGES, 0.0),
            verdict=VERDICTS.get(job.path.name.partition("_")[0], PASSED),
        )

    def _preset_of(self, job: Job) -> Preset:
        return self._preset if job.seed is None else replace(self._preset, seed=job.seed)

    def _write(self, job: Job, data: bytes, suffix: str) -> WrittenFile:
        path = PurePosixPath(f"{job.stem}.{suffix}")
        recipe = f"{suffix} {self._preset_of(job).fingerprint()} {self._threads}".encode()
        text = hashlib.sha256(data + recipe).hexdigest() * 50
        file = job.scratch / path
        _make_folders(job)
        file.write_text(text)
        announced = len(text) + (10 if job.path.name.startswith("liar_") else 0)
        return WrittenFile(path=path, size=announced, sha256=hashlib.sha256(text.encode()).hexdigest())


class SeedsLine(FakeLine):
    """A line that keeps views of every seed that it may try, and whose last seed wins."""

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        assert job.cache is not None
        for folder in (job.cache, *job.other_caches):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARK).write_bytes(b"{}")
        made = super().convert(job, report_stage, report_step)
        return replace(made, seed=self._preset_of(job).seeds()[-1])


class KeepingLine(FakeLine):
    """A line that keeps what it imagined, as the real one does, and imagines nothing twice."""

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        assert job.cache is not None
        mark = job.cache / MARK
        is_kept = job.may_reuse and mark.exists()
        for stage in STAGES:
            if stage != "imagine" or not is_kept:
                report_stage(stage)
        if not is_kept:
            job.cache.mkdir(parents=True, exist_ok=True)
            mark.write_bytes((job.root / job.path).read_bytes())
        data = mark.read_bytes()
        files = tuple(self._write(job, data, name) for name in self._preset.export.formats)
        return Asset(photo=job.path, files=files, checks=CHECKS, seconds=dict.fromkeys(STAGES, 0.0))


class KindLine(FakeLine):
    """A line that refuses nothing."""

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        return self._made(job, report_stage, report_step, obey=lambda job: None)


class ReadingLine(FakeLine):
    """A line that reads photos as the real one does."""

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        from crm_cli.models.photo import read_photo

        report_stage("prepare")
        read_photo(job.root / job.path, path=job.path, max_mpixels=job.max_mpixels)
        return super().convert(job, report_stage, report_step)


class ToldLine(FakeLine):
    """A line that says how it was opened, in the file it writes."""

    def _write(self, job: Job, data: bytes, suffix: str) -> WrittenFile:
        path = PurePosixPath(f"{job.stem}.{suffix}")
        told = f"{self._preset.weights} {self._threads} {self._precision} {self._sharers}"
        file = job.scratch / path
        _make_folders(job)
        file.write_text(told)
        return WrittenFile(path=path, size=len(told), sha256=hashlib.sha256(told.encode()).hexdigest())


class LargeLine(FakeLine):
    """A line that will take its time."""

    def forecast_s(self) -> float | None:
        return PHOTO_S


class QuickLine(FakeLine):
    """A line whose forecast is not worth a word."""

    def forecast_s(self) -> float | None:
        return 0.5


class RamblingLine(FakeLine):
    """A line whose steps are no numbers."""

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        report_step("many", 2)  # type: ignore[arg-type]
        return super().convert(job, report_stage, report_step)


class ClosedLine(FakeLine):
    """A line that cannot be opened on this machine."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeLine:
        raise EnvironmentProblem("no weights", code="E_WEIGHTS_MISSING", remedy="fetch them")


class DeadLine(FakeLine):
    """A line whose library crashes while it is loaded."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeLine:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class KilledLine(FakeLine):
    """A line whose worker somebody kills while it is opened."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeLine:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class OnceKilledLine(FakeLine):
    """A line whose first worker is killed while it is opened."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeLine:
        with contextlib.suppress(FileExistsError):
            Path(os.environ[FIRST_OPEN]).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(preset, **opened)


class LateLine(FakeLine):
    """A line that opens at once in the first worker, and never in the others."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeLine:
        try:
            Path(os.environ[FIRST_OPEN]).touch(exist_ok=False)
        except FileExistsError:
            time.sleep(60)
        return super().open(preset, **opened)


class LaneLine(FakeLine):
    """A line that asks its lane for views, twice; the fate in a photo's name is the lane's.

    On a CPU it asks nobody, and the fate is its own.
    """

    def convert(self, job: Job, report_stage: Callable[[str], None], report_step: Steps) -> Asset:
        if self._lane is None:
            return super().convert(job, report_stage, report_step)
        import torch

        report_stage("imagine")
        cutout = Cutout(
            rgb=torch.zeros(3, 8, 8),
            alpha=torch.ones(1, 8, 8),
            crop=Crop(centre_x=4, centre_y=4, side_px=8),
            photo=job.path,
            digest=str(job.root / job.path),
            matting="",
        )
        views = self._lane.imagine(7, cutout, report_step)
        assert (views.rgb == 7).all()
        report_stage("reconstruct")
        self._lane.imagine(7, replace(cutout, digest="again"), report_step)
        data = f"{os.getpid()} {int(views.ccm[0, 0, 0, 0])}".encode()
        file = self._write(job, data, "txt")
        return Asset(photo=job.path, files=(file,), checks=CHECKS, seconds={}, verdict=PASSED)


class FakeDesk:
    """Views whose colours are the seed and whose maps are the number of the request."""

    def __init__(self, device: str, *, is_frugal: bool) -> None:
        self.place = Place(device=device, precision="float32", surface="own")
        self.takes_turns = False
        self._is_frugal = is_frugal
        self._asked = 0

    @classmethod
    def open(cls, preset: Preset, *, device: str, threads: int, precision: str, is_frugal: bool) -> FakeDesk:
        assert os.environ["OMP_NUM_THREADS"] == str(threads)
        return cls(device, is_frugal=is_frugal)

    def imagine(self, seed: int, cutout: Cutout, report_step: Steps) -> SixViews:
        import torch

        self._asked += 1
        path = Path(cutout.digest)
        job = Job(
            root=path.parent, path=PurePosixPath(path.name), stem=PurePosixPath(path.stem), id=path.name,
            scratch=path.parent, max_mpixels=1.0,
        )  # fmt: skip
        fate = path.name.partition("_")[0]
        if fate in ("oom", "huge") or (fate == "big" and not self._is_frugal):
            raise OutOfMemoryError("CUDA out of memory")
        _obey(job)
        _tell_steps(job, report_step)
        rgb = torch.full((6, 3, 8, 8), float(seed))
        return SixViews(rgb=rgb, ccm=torch.full_like(rgb, self._asked), alpha=torch.ones(6, 1, 8, 8))

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, PlaneField]:
        raise NotImplementedError


class ClosedDesk(FakeDesk):
    """A desk that cannot be opened on this machine."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeDesk:
        raise EnvironmentProblem("no weights", code="E_WEIGHTS_MISSING", remedy="fetch them")


class DeadDesk(FakeDesk):
    """A desk whose library crashes while it is loaded."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeDesk:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class StuckDesk(FakeDesk):
    """A desk that never opens."""

    @classmethod
    def open(cls, preset: Preset, **opened: Any) -> FakeDesk:
        time.sleep(60)
        raise AssertionError


def _make_folders(job: Job) -> None:
    """Folders for the asset's files, as the pipeline makes them: none above the scratch folder."""
    for parent in reversed(job.stem.parents):
        (job.scratch / parent).mkdir(exist_ok=True)


def _tell_steps(job: Job, report_step: Steps) -> None:
    if job.path.name.startswith("stall_"):
        report_step(1, STEPS)
        time.sleep(60)
    if job.path.name.startswith("steps_"):
        for step in range(STEPS):
            time.sleep(SLOW_S)
            report_step(step + 1, STEPS)


def _obey(job: Job) -> None:
    match job.path.name.partition("_")[0]:
        case "raise":
            raise RuntimeError("a surprise")
        case "lacking":
            raise EnvironmentProblem("no unwrapper works here", code="E_TOOL", remedy="see `crm doctor`")
        case "input":
            raise PhotoError(f"{job.path}: nothing in the picture", code="E_EMPTY", remedy="another photo")
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)
        case "exit0":
            os._exit(0)
        case "hang":
            time.sleep(60)
        case "slow":
            time.sleep(SLOW_S)
        case "noisy":
            print("stray words")  # noqa: T201
            os.write(1, b"\xff\xff\xff\xff more of them")
        case "space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "onekill" if _is_first(job):
            os.kill(os.getpid(), signal.SIGKILL)
        case "once" if _is_first(job):
            os.kill(os.getpid(), signal.SIGSEGV)
        case "flaky" if _is_first(job):
            raise PhotoError(f"{job.path}: the network disk is away", code="E_AWAY", kind="io")


def _is_first(job: Job) -> bool:
    """Whether a photo is tried for the first time, which is remembered beside it.

    Nothing of a first attempt survives in the output folder.
    """
    mark = Path(f"{job.root / job.path}.tried")
    is_first = not mark.exists()
    mark.touch()
    return is_first


def job(tmp_path: Path, name: str) -> Job:
    """A photo in a folder, and a scratch folder beside it."""
    (tmp_path / name).write_bytes(os.fsencode(name))
    scratch = tmp_path / f"scratch-{name}"
    scratch.mkdir(exist_ok=True)
    path = PurePosixPath(name)
    return Job(root=tmp_path, path=path, stem=path.with_suffix(""), id=name, scratch=scratch, max_mpixels=1.0)


def engine(
    line: str = "FakeLine",
    weights: str = "w1",
    *,
    architecture: str = "small",
    name: str = "fakes",
    desk: str = "FakeDesk",
) -> Engine:
    used = UsedWeights(
        name=name,
        architecture=architecture,
        digest=hashlib.sha256(weights.encode()).hexdigest(),
        stages={"views": weights, "mesh": weights},
        largest_bytes=4_000_000_000,
    )
    return Engine(line=f"fakes:{line}", desk=f"fakes:{desk}", weights=lambda preset: used)


if __name__ == "__main__":
    from crm_cli.__main__ import main

    main(engine(os.environ.get("FAKES_LINE", "FakeLine")))
