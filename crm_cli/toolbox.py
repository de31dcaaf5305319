"""Which implementation, on which device: every tool of the pipeline, opened once per worker.

Each protocol has one table, best first. An implementation says by `why_not(device)` what keeps it from
working here; that sentence drives the automatic choice, the error when somebody asked for it by name, and
the table that `crm doctor` prints. This is the only file that asks about devices.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar

from crm_cli.errors import EnvironmentProblem
from crm_cli.fragments import Raster
from crm_cli.preset import Preset

if TYPE_CHECKING:
    from crm_cli.models.denoiser import MultiViewUNet
    from crm_cli.models.matting import Matte
    from crm_cli.models.reconstruction import Reconstruction
    from crm_cli.models.weights import WeightsSet


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Toolbox:
    """Every tool that the stations use, opened and placed."""

    device: str
    mattes: Mapping[str, Matte]
    raster: Raster
    weights: WeightsSet
    rgb: MultiViewUNet
    ccm: MultiViewUNet
    reconstruction: Reconstruction


def open_toolbox(preset: Preset, *, device: str, threads: int) -> Toolbox:
    """Load the networks and open the tools a preset asks for, or raise EnvironmentProblem."""
    import torch

    from crm_cli.mesh.raster import RASTERS
    from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB, MultiViewUNet
    from crm_cli.models.matting import MATTES
    from crm_cli.models.reconstruction import SMALL, Reconstruction
    from crm_cli.models.weights import find, load

    device = resolve_device(device)
    torch.set_num_threads(threads)
    choose("matting", MATTES, device, preset.matting.method)
    mattes = {matte.name: matte() for matte in MATTES if matte.why_not(device) is None}
    weights = find(preset.weights)
    rgb, ccm, reconstruction = MultiViewUNet(SMALL_RGB), MultiViewUNet(SMALL_CCM), Reconstruction(SMALL)
    for name, network in (("rgb", rgb), ("ccm", ccm), ("reconstruction", reconstruction)):
        load(network, weights.files[name])
        network.eval().requires_grad_(False).to(device)
    return Toolbox(
        device=device,
        mattes=mattes,
        raster=choose("rasteriser", RASTERS, device)(),
        weights=weights,
        rgb=rgb,
        ccm=ccm,
        reconstruction=reconstruction,
    )


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


def survey(device: str = "cpu") -> list[ToolRow]:
    """List every implementation and what keeps it from working here."""
    from crm_cli.mesh.raster import RASTERS
    from crm_cli.models.flexicubes import KaolinSurface
    from crm_cli.models.matting import MATTES

    rows = [ToolRow("matting", tool.name, tool.why_not(device)) for tool in MATTES]
    rows += [ToolRow("rasteriser", tool.name, tool.why_not(device)) for tool in RASTERS]
    # Our own surface is part of the package; kaolin's is there to compare it with.
    return [
        *rows,
        ToolRow("surface", "crm", None),
        ToolRow("surface", KaolinSurface.name, KaolinSurface.why_not(device)),
    ]


def usable_cores() -> int:
    """Cores this process may use: its affinity, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
