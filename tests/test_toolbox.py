"""Which tool is taken, and with which sentence another one is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from miniature import write

from crm_cli import toolbox
from crm_cli.errors import EnvironmentProblem, ExitCode
from crm_cli.mesh.raster import RASTERS, TorchRaster
from crm_cli.models import weights
from crm_cli.models.shelf import Shelf
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.toolbox import Toolbox, accelerators, choose, open_toolbox, resolve_device, survey


class Picky:
    """Works on one kind of device only."""

    name: ClassVar[str] = "picky"

    @staticmethod
    def why_not(device: str) -> str | None:
        return None if device.startswith("cuda") else "needs a CUDA device"


class Plain:
    name: ClassVar[str] = "plain"

    @staticmethod
    def why_not(device: str) -> str | None:
        return None


class Broken:
    name: ClassVar[str] = "broken"

    @staticmethod
    def why_not(device: str) -> str | None:
        return "is not installed"


TABLE = [Broken, Picky, Plain]


@pytest.mark.parametrize(("device", "taken"), [("cuda:1", Picky), ("cpu", Plain)])
def test_the_first_tool_that_works_is_taken(device: str, taken: type) -> None:
    assert choose("hammer", TABLE, device) is taken


def test_a_tool_asked_for_by_name_is_taken_also_when_a_better_one_works() -> None:
    assert choose("hammer", TABLE, "cuda", "plain") is Plain


def test_a_tool_asked_for_by_name_that_cannot_work_is_refused_with_its_own_sentence() -> None:
    with pytest.raises(EnvironmentProblem, match="hammer picky: needs a CUDA device") as caught:
        choose("hammer", TABLE, "cpu", "picky")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 6
    assert "crm doctor" in caught.value.remedy


@pytest.mark.parametrize(("table", "wanted"), [(TABLE, "sledge"), ([Broken, Picky], "auto"), ([], "auto")])
def test_where_no_tool_fits_all_known_names_are_told(table: list[type[Plain]], wanted: str) -> None:
    with pytest.raises(EnvironmentProblem, match=rf"no hammer named {wanted} works on cpu") as caught:
        choose("hammer", table, "cpu", wanted)
    assert caught.value.exit_code == 6
    assert caught.value.cause.endswith("known: " + ", ".join(tool.name for tool in table))


def with_devices(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(toolbox, "accelerators", lambda: list(names))


@pytest.mark.parametrize(
    ("found", "wanted", "resolved"),
    [
        ((), "auto", "cpu"),
        ((), "cpu", "cpu"),
        (("cuda:0", "cuda:1"), "auto", "cuda:0"),
        (("cuda:0", "cuda:1"), "cuda", "cuda"),
        (("cuda:0", "cuda:1"), "cuda:1", "cuda:1"),
        (("cuda:0",), "cpu", "cpu"),
    ],
)
def test_a_device_is_the_best_one_or_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], wanted: str, resolved: str
) -> None:
    with_devices(monkeypatch, *found)
    assert resolve_device(wanted) == resolved


@pytest.mark.parametrize(("found", "wanted"), [((), "cuda"), ((), "cuda:0"), (("cuda:0",), "cuda:1")])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], wanted: str
) -> None:
    with_devices(monkeypatch, *found)
    with pytest.raises(EnvironmentProblem, match=f"device {wanted}: ") as caught:
        resolve_device(wanted)
    assert caught.value.exit_code == 6
    assert ", ".join(["cpu", *found]) in caught.value.cause


def test_accelerators_are_the_devices_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # noqa: TID251
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # noqa: TID251
    assert accelerators() == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # noqa: TID251
    assert accelerators() == []


def test_the_survey_lists_every_tool_and_something_works_for_each_protocol() -> None:
    rows = survey("cpu")
    names = {protocol: [row.name for row in rows if row.protocol == protocol] for protocol, *_ in rows}
    assert names == {
        "matting": ["alpha", "rembg", "grabcut", "none"],
        "rasteriser": [tool.name for tool in RASTERS],
        "surface": ["crm", "kaolin"],
    }
    reasons = {row.name: row.why_not for row in rows}
    assert [reasons[name] for name in ("alpha", "grabcut", "none", "warp", "torch", "crm")] == [None] * 6
    assert "CUDA" in (reasons["nvdiffrast"] or "")


def preset_with(*assignments: str) -> Preset:
    return load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset


@pytest.fixture(scope="module")
def opened() -> Toolbox:
    return open_toolbox(preset_with(), device="cpu", threads=1)


def test_an_opened_toolbox_holds_frozen_networks_and_the_tools_that_work(opened: Toolbox) -> None:
    assert opened.device == "cpu"
    assert list(opened.networks) == ["rgb", "ccm", "reconstruction"]
    for network in opened.networks.values():
        assert not network.training
        assert all(not p.requires_grad and p.device.type == "cpu" for p in network.parameters())
        assert any(p.abs().max() > 0 for p in network.parameters())
    assert opened.raster.name == choose("rasteriser", RASTERS, "cpu").name
    assert {"alpha", "grabcut", "none"} <= set(opened.mattes)
    assert opened.weights.name == "embedded"
    assert torch.get_num_threads() == 1


def cut_short(folder: Path) -> None:
    file = folder / "ccm.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def remove_one(folder: Path) -> None:
    (folder / "reconstruction.safetensors").unlink()


def swap_two(folder: Path) -> None:
    shutil.copyfile(weights.DIRECTORY / "ccm.safetensors", folder / "rgb.safetensors")


@pytest.mark.parametrize(
    ("harm", "code", "file"),
    [
        (cut_short, "E_WEIGHTS_BROKEN", "ccm.safetensors"),
        (remove_one, "E_WEIGHTS_MISSING", "reconstruction.safetensors"),
        (swap_two, "E_WEIGHTS_WRONG", "rgb.safetensors"),
    ],
)
def test_harmed_weights_are_refused_by_the_name_of_their_file(
    tmp_path: Path, harm: Callable[[Path], None], code: str, file: str
) -> None:
    for name in weights.NAMES:
        shutil.copyfile(weights.DIRECTORY / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    harm(tmp_path)
    with pytest.raises(EnvironmentProblem, match=code) as caught:
        open_toolbox(preset_with(f"weights={tmp_path}"), device="cpu", threads=1)
    assert file in caught.value.cause
    assert caught.value.exit_code == 6 and caught.value.remedy


def test_cores_are_those_of_the_affinity_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    quotas = {"max 100000\n": 8, "250000 100000\n": 2, "1000 100000\n": 1, "9900000 100000\n": 8, "": 8}
    for text, cores in quotas.items():
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, text=text: text)
        assert toolbox.usable_cores() == cores


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags : fpu avx2 avx512f\n", "float32"),
        ("flags : fpu avx512_bf16\n", "bfloat16"),
        ("processor : 0\nflags : fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("", "float32"),
    ],
)
def test_a_cpu_gets_bfloat16_only_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, *_: flags)
    assert toolbox.resolve_precision("auto", "cpu") == precision
    assert toolbox.resolve_precision("float16", "cpu") == "float16"


@pytest.mark.parametrize(
    ("has_bfloat16", "capability", "precision"),
    [(True, (9, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (6, 1), "float32")],
)
def test_a_gpu_gets_the_shortest_format_it_has_units_for(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert toolbox.resolve_precision("auto", "cuda:0") == precision


def test_the_embedded_networks_stay_single_precision_unless_asked(opened: Toolbox) -> None:
    assert opened.dtype == torch.float32
    asked = open_toolbox(preset_with(), device="cpu", threads=1, precision="bfloat16")
    assert next(asked.networks["rgb"].parameters()).dtype == torch.bfloat16
    assert next(asked.networks["reconstruction"].parameters()).dtype == torch.float32


def test_who_asks_for_single_precision_gets_all_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, may_round in (("float32", False), ("bfloat16", True)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not may_round)
        open_toolbox(preset_with(), device="cpu", threads=1, precision=precision)
        assert torch.backends.cudnn.allow_tf32 == may_round


def test_networks_take_what_the_device_has_free_but_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "usable_memory", lambda: 5_000_000_000)
    assert toolbox.room_for_networks("cpu", 1) == 2_000_000_000
    monkeypatch.setattr(toolbox, "usable_memory", lambda: None)
    assert toolbox.room_for_networks("cpu", 1) is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (900_000_000, 8_000_000_000))
    assert toolbox.room_for_networks("cuda:0", 1) == 0


def test_workers_that_share_a_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "usable_memory", lambda: 12_000_000_000)
    assert toolbox.room_for_networks("cpu", 2) == 3_000_000_000
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (8_000_000_000, 8_000_000_000))
    assert toolbox.room_for_networks("cuda:0", batch=3) == 6_300_000_000


def test_the_peak_is_that_of_the_device_that_the_networks_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel counts it a second time, page by page.
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            assert toolbox.peak_memory("cpu") == pytest.approx(1024 * int(line.split()[1]), rel=0.05)
    assert toolbox.peak_memory("cpu") > 50_000_000, "torch alone is larger"
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: {"cuda:1": 77}[device])
    assert toolbox.peak_memory("cuda:1") == 77


def test_networks_of_workers_that_share_a_device_wait_for_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = write(tmp_path / "mini")
    monkeypatch.setattr(toolbox, "WORK_BYTES_CPU", 0)
    monkeypatch.setattr(toolbox, "usable_memory", lambda: 30_000_000)
    asked = preset_with(f"weights={found.directory}")
    alone = open_toolbox(asked, device="cpu", threads=1, precision="float32").networks
    shared = open_toolbox(asked, device="cpu", threads=1, precision="float32", sharers=30).networks
    assert isinstance(alone, Shelf) and isinstance(shared, Shelf)
    assert set(alone.loaded) == set(found.parts) and shared.loaded == ()


class Recording:
    """What of `torch.cuda` makes recordings, with a log of what was done instead of a device.

    A failure is raised where a recording ends, as by the driver: by then torch has not yet gone back to the
    stream before.
    """

    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self, failure: Exception | None = None) -> None:
        self.log: list[object] = []
        self.failure = failure
        self.current = "default"
        self.reserved = 1000
        self.pools_at_work: list[object] = []

    def current_stream(self) -> StandInStream:
        return StandInStream(self, self.current)

    def Stream(self) -> StandInStream:
        return StandInStream(self, "aside")

    def memory_reserved(self) -> int:
        return self.reserved

    def current_device(self) -> int:
        return 0

    def graph_pool_handle(self) -> str:
        return "pool"

    def CUDAGraph(self) -> Recording:
        return self

    def replay(self) -> None:
        self.log.append("replay")

    @contextmanager
    def stream(self, stream: StandInStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: object, *, pool: object, stream: StandInStream, capture_error_mode: str
    ) -> Iterator[None]:
        before, self.current = self.current, stream.name
        self.pools_at_work.append(pool)
        self.log.append(("record", pool, self.current))
        yield
        if self.failure is not None:
            raise self.failure
        self.pools_at_work.remove(pool)
        self.current = before

    def step(self) -> None:
        self.log.append(f"step {self.current}")


class StandInStream:
    def __init__(self, device: Recording, name: str) -> None:
        self.device = device
        self.name = name

    def wait_stream(self, other: StandInStream) -> None:
        self.device.log.append(f"{self.name} waits for {other.name}")


def recording(monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> Recording:
    stand_in = Recording(failure)

    def end(device: int, pool: object) -> None:
        if pool not in stand_in.pools_at_work:
            raise RuntimeError("not currently recording")
        stand_in.pools_at_work.remove(pool)

    monkeypatch.setattr(torch, "cuda", stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda device, pool: stand_in.log.append("release"), raising=False
    )
    return stand_in


def test_a_step_is_run_once_aside_then_recorded_and_all_recordings_share_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, recorder = recording(monkeypatch), toolbox.GraphRecorder()
    for _ in range(2):
        replay = recorder(device.step)
        assert replay is not None
        replay()
    first, record, last = ("record", "pool", "aside"), "step aside", "default waits for aside"
    assert device.log == ["aside waits for default", record, first, record, last, "replay"] * 2
    assert recorder.why_not is None


def test_what_recordings_keep_is_what_the_allocator_fetches_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    device, recorder = recording(monkeypatch), toolbox.GraphRecorder()
    wanted = iter([500, 30, 500, 0])  # the first run of each step is no recording; the second shares

    def step() -> None:
        device.reserved += next(wanted)

    recorder(step)
    recorder(step)
    assert recorder.held_bytes == 30


def test_a_recording_that_fails_is_told_once_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = recording(monkeypatch, RuntimeError("operation not permitted\nwhen stream is capturing"))
    recorder = toolbox.GraphRecorder()
    for _ in range(2):
        assert recorder(device.step) is None
    assert recorder.why_not == "recording failed: operation not permitted"
    assert device.log.count("step aside") == 2
    assert caplog.messages == ["kernels are launched one by one: recording failed: operation not permitted"]


@pytest.mark.parametrize("failure", [RuntimeError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_after_a_recording_that_fails_the_device_is_as_before(
    monkeypatch: pytest.MonkeyPatch, failure: RuntimeError
) -> None:
    device, recorder = recording(monkeypatch, failure), toolbox.GraphRecorder()
    with suppress(torch.OutOfMemoryError):
        assert recorder(device.step) is None
        assert recorder.why_not == "recording failed: RuntimeError"
    assert device.current == "default"
    assert device.pools_at_work == [] and device.log.count("release") == 1


def test_what_fails_before_anything_is_recorded_ends_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    device, recorder = recording(monkeypatch), toolbox.GraphRecorder()

    def fail() -> None:
        raise RuntimeError("no kernel image")

    assert recorder(fail) is None
    assert "no kernel image" in str(recorder.why_not) and "release" not in device.log
    assert device.current == "default"


def test_memory_that_runs_out_while_recording_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    recording(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    recorder = toolbox.GraphRecorder()
    with pytest.raises(torch.OutOfMemoryError):
        recorder(lambda: None)
    assert recorder.why_not is None


def test_nothing_is_recorded_where_it_would_not_help(
    monkeypatch: pytest.MonkeyPatch, opened: Toolbox
) -> None:
    assert opened.recorder.why_not == "a CPU has nothing to launch"
    assert toolbox._why_no_graphs("cuda:0", networks_take_turns=False) is None
    assert toolbox._why_no_graphs("cuda:0", networks_take_turns=True) == "the networks take turns in memory"
    monkeypatch.setenv("CRM_GRAPHS", "off")
    assert toolbox._why_no_graphs("cuda:0", networks_take_turns=False) == "CRM_GRAPHS is off"


def test_usable_memory_stays_within_the_control_group_but_for_cached_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(toolbox, "CONTROL_GROUP", tmp_path)
    machine = toolbox.usable_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    unlimited = toolbox.usable_memory()
    assert machine is None or (unlimited is not None and unlimited > 1_000_000)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert toolbox.usable_memory() == 300_000
    (tmp_path / "memory.stat").write_text(
        "anon 100000\ninactive_anon 7\ninactive_file 500000\nactive_file 9\n"
    )
    assert toolbox.usable_memory() == 800_000


def test_usable_cores_stay_within_the_quota_of_the_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(toolbox, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16), raising=False)
    assert toolbox.usable_cores() == 16
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert toolbox.usable_cores() == 4
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert toolbox.usable_cores() == 16


def test_a_tool_can_be_named_and_one_that_cannot_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_RASTERISER", "torch")
    assert open_toolbox(preset_with(), device="cpu", threads=1).raster.name == "torch"
    for variable, name, says in (
        ("CRM_RASTERISER", "nvdiffrast", "rasteriser nvdiffrast: "),
        ("CRM_RASTERISER", "nosuch", "no rasteriser named nosuch"),
        ("CRM_SURFACE", "nosuch", "no surface named nosuch works on cpu; known: crm, kaolin"),
    ):
        monkeypatch.setenv(variable, name)
        with pytest.raises(EnvironmentProblem, match=says):
            open_toolbox(preset_with(), device="cpu", threads=1)
        monkeypatch.delenv(variable)


def test_beside_a_lane_all_is_done_on_the_cpu_but_for_a_rasteriser_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened() -> toolbox.Toolbox:
        return open_toolbox(preset_with(), device="cpu", threads=1, lane_device="cuda:0")

    class OnGpus(TorchRaster):
        name = "nvdiffrast"

        @staticmethod
        def why_not(device: str) -> str | None:
            return None if device.startswith("cuda") else "needs CUDA"

    monkeypatch.setattr("crm_cli.mesh.raster.RASTERS", (TorchRaster, OnGpus))
    # What draws the surface is the lane's business.
    monkeypatch.setenv("CRM_SURFACE", "nosuch")
    box = opened()
    assert box.networks == {} and box.device == "cpu"
    assert (box.raster.name, box.surfacer.name) == ("torch", "crm")
    monkeypatch.setenv("CRM_RASTERISER", "nvdiffrast")
    assert opened().raster.name == "nvdiffrast"
