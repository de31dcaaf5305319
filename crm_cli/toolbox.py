"""Which implementation, on which device: every tool of the pipeline, opened once per worker.

Each protocol has one table, best first. An implementation says by `why_not(device)` what keeps it from
working here; that sentence drives the automatic choice, the error when somebody asked for it by name, and
the table that `crm doctor` prints. This is the only file that asks about devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from crm_cli.errors import EnvironmentProblem
from crm_cli.fragments import Raster
from crm_cli.preset import EMBEDDED, Preset

if TYPE_CHECKING:
    import torch
    from torch import nn

    from crm_cli.models.engine import Engines, Step
    from crm_cli.models.flexicubes import Surfacer
    from crm_cli.models.matting import Matte
    from crm_cli.models.weights import WeightsSet

log = logging.getLogger(__name__)

RASTERISER, SURFACE = "CRM_RASTERISER", "CRM_SURFACE"
"""Environment variables that name a tool, to compare one with another; assets need neither."""

GRAPHS = "CRM_GRAPHS"
"""Environment variable: `off` launches every kernel of a denoiser by itself, to compare."""

WORK_BYTES = 1_100_000_000
"""What one photo needs on an accelerator beside the networks: 0.3 GB of a guided step, which a recording
keeps, 0.7 GB of the reconstruction, and what the allocator keeps; see `models.memory`."""

WORK_BYTES_MORE = 300_000_000
"""What every further photo of a batch adds to that."""

WORK_BYTES_CPU = 3_000_000_000
"""The same on a CPU, where activations are single precision and convolutions unfold their input."""

BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
"""Processors without one of these compute bfloat16 many times slower than single precision."""


CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Limits of the container or service that this process belongs to; its own group, as seen from inside."""


class Tool(Protocol):
    """What the chooser needs to know of an implementation."""

    name: ClassVar[str]

    @staticmethod
    def why_not(device: str) -> str | None:
        """Say what keeps it from working on this device, or None."""
        ...


AnyTool = TypeVar("AnyTool", bound=Tool)


class ToolRow(NamedTuple):
    """One line of the table of tools."""

    protocol: str
    name: str
    why_not: str | None


class GraphRecorder:
    """Records the kernels that a step launches on a GPU, and launches them again as one (a CUDA graph).

    A denoiser's step is some thousand kernels of a few microseconds; one by one, starting them takes longer
    than they do.
    """

    def __init__(self, why_not: str | None = None) -> None:
        self.why_not = why_not
        """What keeps it from recording here; None as long as nothing does."""
        self.held_bytes = 0
        """Memory that recordings keep for themselves. To the allocator it is not in use between them."""
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, step: Step) -> Step | None:
        """Record a step, or say why not; see `engine.Record`. Want of memory is the caller's matter."""
        import torch

        if self.why_not is not None:
            return None
        cuda = torch.cuda  # noqa: TID251
        if self._pool is None:
            # All recordings work in the same memory, one after the other: what lasts lies outside of it.
            self._stream, self._pool = cuda.Stream(), cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        graph, before, aside = cuda.CUDAGraph(), cuda.current_stream(), self._stream
        aside.wait_stream(before)
        try:
            # Around both, because a recording that cannot be ended leaves its own stream the current one.
            with cuda.stream(aside):
                # Libraries set themselves up in a first run, which no recording may contain: on the same
                # stream, for which they keep memory of their own.
                step()
                with cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
                    kept_bytes = cuda.memory_reserved()
                    step()
                    self.held_bytes += cuda.memory_reserved() - kept_bytes
        except RuntimeError as error:
            self._end_recording()
            if isinstance(error, cuda.OutOfMemoryError):
                raise
            why = next(iter(str(error).splitlines()), type(error).__name__)
            self.why_not = f"recording failed: {why}"
            log.warning("kernels are launched one by one: %s", self.why_not)
            return None
        before.wait_stream(aside)
        replay: Step = graph.replay
        return replay

    def _end_recording(self) -> None:
        """Tell the allocator what torch forgets to where a recording cannot be ended.

        With one under way it gives nothing back of what it keeps, and a next one could not begin. (PyTorch,
        aten/src/ATen/cuda/CUDAGraph.cpp, capture_end)
        """
        import torch

        place = torch.cuda.current_device(), self._pool  # noqa: TID251
        with contextlib.suppress(RuntimeError, AttributeError):  # none is under way
            torch._C._cuda_endAllocateToPool(*place)
            torch._C._cuda_releasePool(*place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where networks calculate, and in what."""

    device: str
    """Its kind: cpu or cuda."""
    precision: str
    surface: str
    """What draws the surface of their field."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Toolbox:
    """Every tool that the stations use, opened and placed."""

    device: str
    mattes: Mapping[str, Matte]
    raster: Raster
    surfacer: Surfacer
    weights: WeightsSet
    networks: Mapping[str, nn.Module]
    """The parts of the weights; a part is read when it is first asked for."""
    dtype: torch.dtype
    """What the networks calculate in, but for the reconstruction."""
    engines: Engines
    """What the published denoisers run on."""
    recorder: GraphRecorder
    """What the engines record their steps with, or why they do not."""
    batch: int = 1
    """Photos in one call of a network."""
    is_frugal: bool = False
    """Whether memory has run out before, and stations should ask for less of it at once."""
    takes_turns: bool = False
    """Whether its networks are not all in memory at a time."""

    @property
    def place(self) -> Place:
        """Where its networks calculate."""
        return Place(
            device=self.device.partition(":")[0],
            precision=str(self.dtype).removeprefix("torch."),
            surface=self.surfacer.name,
        )


def open_toolbox(
    preset: Preset,
    *,
    device: str,
    threads: int,
    precision: str = "auto",
    sharers: int = 1,
    batch: int = 1,
    is_frugal: bool = False,
    lane_device: str = "",
) -> Toolbox:
    """Open the tools a preset asks for, or raise EnvironmentProblem.

    precision: float32, bfloat16 or float16; auto is what the device does best.
    sharers: how many processes like this one share the memory of the CPU.
    batch: how many photos the networks are given at a time; with another number the last bits are others.
    is_frugal: keep one network at a time on the device.
    lane_device: of the lane that has the networks, so that there are none in this box; see `lane`. Nothing
        else is done there, but for a rasteriser that is asked for by name.
    """
    import torch

    from crm_cli.mesh.raster import RASTERS
    from crm_cli.models.engine import Engines
    from crm_cli.models.flexicubes import SURFACES
    from crm_cli.models.matting import MATTES
    from crm_cli.models.shelf import Shelf
    from crm_cli.models.weights import find

    raster, surface = (os.environ.get(name, "auto") for name in (RASTERISER, SURFACE))
    device = resolve_device(device)
    if device != "cpu":
        torch.cuda.set_device(device)  # noqa: TID251  # libraries that are not told use the current one
    torch.set_num_threads(threads)
    choose("matting", MATTES, device, preset.matting.method)
    mattes = {matte.name: matte() for matte in MATTES if matte.why_not(device) is None}
    weights = find(preset.weights)
    # The embedded networks are so small that single precision costs nothing, and was measured with them.
    is_small = weights.architecture == EMBEDDED
    if is_small and precision == "auto":
        precision = "float32"
    dtype = getattr(torch, resolve_precision(precision, device))
    # Who asks for single precision gets it: by default convolutions on a GPU round to ten bits.
    torch.backends.cudnn.allow_tf32 = dtype != torch.float32
    room_bytes = 0 if is_frugal else None if is_small else room_for_networks(device, sharers, batch)
    networks = Shelf(weights, device=device, dtype=dtype, room_bytes=room_bytes)
    has_all = not lane_device and networks.preload()
    recorder = GraphRecorder(_why_no_graphs(device, networks_take_turns=not has_all))
    if recorder.why_not is not None and device != "cpu":
        log.warning("kernels are launched one by one: %s", recorder.why_not)
    return Toolbox(
        device=device,
        mattes=mattes,
        raster=choose("rasteriser", RASTERS, device if raster == "auto" else lane_device or device, raster)(),
        surfacer=choose("surface", SURFACES, device, "auto" if lane_device else surface)(),
        weights=weights,
        networks={} if lane_device else networks,
        dtype=dtype,
        engines=Engines(recorder),
        recorder=recorder,
        batch=batch,
        is_frugal=is_frugal,
        takes_turns=not has_all,
    )


def _why_no_graphs(device: str, *, networks_take_turns: bool) -> str | None:
    """Say what speaks against recording what a GPU does, or None."""
    if device == "cpu":
        return "a CPU has nothing to launch"
    if os.environ.get(GRAPHS) == "off":
        return f"{GRAPHS} is off"
    # A recording holds the addresses of the weights: each time they had gone it would have to be made again.
    return "the networks take turns in memory" if networks_take_turns else None


def resolve_precision(precision: str, device: str) -> str:
    """Turn `auto` into the number format that a device calculates fastest in without losing range."""
    if precision != "auto":
        return precision
    return next(best for best in ("bfloat16", "float16", "float32") if _has_units(device, best))


def precision_doubt(precision: str, device: str) -> str | None:
    """Say why a number format is slow on a device, or None."""
    if _has_units(device, precision):
        return None
    if device == "cpu":
        return f"this CPU calculates {precision} many times slower than float32"
    instead = "float16 is faster" if precision == "bfloat16" else "float32 is as fast"
    return f"this GPU has no units for {precision}; {instead}"


def _has_units(device: str, precision: str) -> bool:
    """Whether a device has units for a number format, so that it is no slower than a wider one."""
    if precision == "float32":
        return True
    if device == "cpu":
        return precision == "bfloat16" and bool(BFLOAT16_FLAGS & _processor_flags())
    import torch

    if precision == "bfloat16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # noqa: TID251
    return bool(torch.cuda.get_device_capability(device) >= (7, 0))  # noqa: TID251


def _processor_flags() -> set[str]:
    """What the processor says it can do; nothing where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split())
    return set()


def room_for_networks(device: str, sharers: int = 1, batch: int = 1) -> int | None:
    """Bytes that networks may take on a device; None where nobody knows.

    sharers: workers that open at the same time on a CPU and all find the same memory free, so that each takes
    its share alone. An accelerator's networks are in one process.
    """
    import torch

    if device == "cpu":
        free = usable_memory()
        return None if free is None else max(0, free // sharers - WORK_BYTES_CPU)
    free, _ = torch.cuda.mem_get_info(device)  # noqa: TID251
    return max(0, free - WORK_BYTES - (batch - 1) * WORK_BYTES_MORE)


def peak_memory(device: str) -> int:
    """The most bytes that this process has held so far, on an accelerator or of the machine's memory.

    On an accelerator what tensors took, without what the driver and the allocator keep for themselves.
    """
    if device != "cpu":
        # Whoever never needed torch holds nothing there, and need not wait for it now.
        torch = sys.modules.get("torch")
        return 0 if torch is None else int(torch.cuda.max_memory_allocated(device))
    # Where it can be helped not by ru_maxrss, which on Linux remembers the process that started this one.
    held = _number_in(Path("/proc/self/status"), "VmHWM:")
    if held is not None:
        return 1024 * held
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def choose(protocol: str, table: Sequence[type[AnyTool]], device: str, wanted: str = "auto") -> type[AnyTool]:
    """Take the named implementation, or the first that works on the device."""
    for tool in table:
        reason = tool.why_not(device)
        if wanted == tool.name and reason is not None:
            raise EnvironmentProblem(
                f"{protocol} {wanted}: {reason}", code="E_TOOL", remedy="see `crm doctor`"
            )
        if reason is None and wanted in ("auto", tool.name):
            return tool
    names = ", ".join(tool.name for tool in table)
    raise EnvironmentProblem(f"no {protocol} named {wanted} works on {device}; known: {names}", code="E_TOOL")


def resolve_device(device: str) -> str:
    """Turn `auto` into the best device of this machine, and refuse one that it does not have."""
    found = accelerators()
    if device == "auto":
        return found[0] if found else "cpu"
    if device == "cpu" or device in found or (device == "cuda" and found):
        return device
    raise EnvironmentProblem(
        f"device {device}: torch can use {', '.join(['cpu', *found])} on this machine",
        code="E_DEVICE",
        remedy="leave --device out, or see `crm doctor`",
    )


def accelerators() -> list[str]:
    """Devices of this machine that torch can use, beside the CPU."""
    import torch

    if not torch.cuda.is_available():  # noqa: TID251
        return []
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]  # noqa: TID251


def free_bytes(device: str) -> int:
    """Memory that is free on an accelerator."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])  # noqa: TID251


def accelerator_name(device: str) -> str:
    """What a device calls itself: `NVIDIA H200`."""
    import torch

    return torch.cuda.get_device_name(device)  # noqa: TID251


def survey(device: str = "cpu") -> list[ToolRow]:
    """List every implementation and what keeps it from working here."""
    from crm_cli.mesh.raster import RASTERS
    from crm_cli.models.flexicubes import SURFACES
    from crm_cli.models.matting import MATTES

    tables: dict[str, Sequence[type[Tool]]] = {"matting": MATTES, "rasteriser": RASTERS, "surface": SURFACES}
    return [
        ToolRow(protocol, tool.name, tool.why_not(device))
        for protocol, table in tables.items()
        for tool in table
    ]


def usable_cores() -> int:
    """Cores this process may use: its affinity, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CONTROL_GROUP / "cpu.max").read_text("ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory() -> int | None:
    """Bytes that workers may fill: what the machine has left, within the limit of the control group."""
    free: list[int] = []
    available = _number_in(Path("/proc/meminfo"), "MemAvailable:")
    if available is not None:
        free.append(1024 * available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((CONTROL_GROUP / "memory.max").read_text("ascii"))
        taken = int((CONTROL_GROUP / "memory.current").read_text("ascii"))
        free.append(limit - taken + _cached_files())
    return min(free, default=None)


def memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it counts; None where it does not.

    Those of the whole machine and those of this control group: one that was killed is in either.
    """
    counts = [
        _number_in(path, "oom_kill") for path in (Path("/proc/vmstat"), CONTROL_GROUP / "memory.events")
    ]
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


def _cached_files() -> int:
    """Bytes that a control group counts as taken and gives up for the asking: files read some time ago.

    After fetching and converting weights these are gigabytes.
    """
    return _number_in(CONTROL_GROUP / "memory.stat", "inactive_file") or 0


def _number_in(file: Path, name: str) -> int | None:
    """The number behind a name in a file in which the kernel tells one a line; None where it does not."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text("utf-8", "replace").splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1])
    return None
