"""What this machine can do: the lines that `crm doctor` prints."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem
from crm_cli.installed import why_not_importable
from crm_cli.preset import DEFAULT, EMBEDDED, load_preset
from crm_cli.run.machine import default_workers
from crm_cli.toolbox import (
    WORK_BYTES,
    WORK_BYTES_CPU,
    accelerators,
    resolve_precision,
    room_for_networks,
    survey,
    usable_cores,
    usable_memory,
)

OPTIONAL = {
    "nvdiffrast": "pip install setuptools wheel ninja"
    " && pip install git+https://github.com/NVlabs/nvdiffrast --no-build-isolation",
    # Its setup reads pkg_resources, which setuptools 82 dropped. Its last release knows no torch after 2.8;
    # the sources since then do not compile with torch 2.13. It imports torchvision without asking for it.
    "kaolin": "pip install 'setuptools<81' wheel ninja cython torchvision && IGNORE_TORCH_VER=1"
    " pip install git+https://github.com/NVIDIAGameWorks/kaolin@v0.18.0 --no-build-isolation",
    "rembg": "pip install 'rembg[cpu]'",
    "pillow-heif": "pip install pillow-heif",
    "meshopt": "pip install 'crm-cli[meshopt]'",
    "DracoPy": "pip install 'crm-cli[draco]'",
}
"""What a plain install leaves out, and the command that adds it."""

COMPILED = {"nvdiffrast": "nvdiffrast.torch", "kaolin": "kaolin.ops.conversions"}
"""Those that a CUDA compiler builds, against the torch that is there, and the module that tells."""

REQUIRED = {
    "torch": "torch",
    "safetensors": "safetensors",
    "huggingface-hub": "huggingface_hub",
    "numpy": "numpy",
    "scipy": "scipy",
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "warp-lang": "warp",
    "xatlas": "xatlas",
    "fast-simplification": "fast_simplification",
    "pygltflib": "pygltflib",
    "usd-core": "pxr",
    "jinja2": "jinja2",
}
"""What a conversion needs, and the module that tells: OpenCV, for one, comes under several names."""

MISSING = "MISSING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found, and whether it is enough."""

    lines: tuple[str, ...]
    can_convert: bool


def examine() -> Examination:
    """Look at the machine, the libraries, the tools and the weights."""
    memory = usable_memory()
    free = f", {memory / 1e9:.1f} GB of memory free" if memory is not None else ""
    lines = [
        f"crm {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"{usable_cores()} cores{free}; {default_workers(['cpu'])} photos at a time on the CPU",
        "libraries: " + ", ".join(f"{name} {_state(name)}" for name in REQUIRED),
    ]
    lacking = [name for name in REQUIRED if _state(name) == MISSING]
    if lacking:
        lines += [f"required: {', '.join(lacking)} not installed", f"  pip install {' '.join(lacking)}"]
    tools, found, has_tools = _devices()
    weights, has_weights = _weights(found)
    lines += [*tools, *weights, *_missing(has_accelerator=bool(found))]
    return Examination(lines=tuple(lines), can_convert=has_tools and has_weights and not lacking)


def _devices() -> tuple[list[str], list[str], bool]:
    """Lines about devices and tools, the accelerators, and whether the tools could be loaded at all."""
    try:
        found = accelerators()
        lines = [f"devices: {', '.join(['cpu', *found])}"]
        for device in ["cpu", *found[:1]]:
            lines += [f"tools on {device}:", *_tools(device)]
    # A broken installation can raise anything while it is loaded, and to say so is what this is for.
    except Exception as error:
        return [f"tools: cannot be loaded: {type(error).__name__}: {error}"], [], False
    return lines, found, True


def _tools(device: str) -> list[str]:
    """One line for every implementation; the first that works is the one that is used."""
    lines, chosen = [], set()
    for row in survey(device):
        is_first = row.why_not is None and row.protocol not in chosen
        if is_first:
            chosen.add(row.protocol)
        state = row.why_not or ("used" if is_first else "works")
        lines.append(f"  {row.protocol:12} {row.name:12} {state}")
    return lines


def _weights(devices: Sequence[str]) -> tuple[list[str], bool]:
    """The weights in use with what they need, or what is wrong with them."""
    from crm_cli.models.weights import find

    try:
        found = find("auto")
    except EnvironmentProblem as error:
        return [f"weights: {error}"], False
    where = f"{found.architecture}, {found.digest[:12]}, {found.directory}"
    needs = [] if found.architecture == EMBEDDED else [_memory(found.architecture, [*devices, "cpu"][0])]
    return [f"weights: {found.name} ({where})", *needs], True


def _memory(architecture: str, device: str) -> str:
    """What networks of the published kind need on a device, and whether they will stay there."""
    import torch

    from crm_cli.models.memory import need

    precision = resolve_precision("auto", device)
    preset = load_preset(DEFAULT, architecture=architecture).preset
    needed = need(architecture, preset, dtype=getattr(torch, precision))
    weights_bytes = sum(needed.weights.values())
    work_bytes = WORK_BYTES_CPU if device == "cpu" else WORK_BYTES
    room_bytes = room_for_networks(device)
    stays = room_bytes is None or weights_bytes <= room_bytes
    return (
        f"memory on {device}: {_gb(weights_bytes + work_bytes)} with all networks in {precision}, "
        f"{_gb(max(needed.weights.values()) + work_bytes)} with one at a time; "
        + ("all stay" if stays else f"{_gb(room_bytes or 0)} free for them: they take turns")
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _missing(*, has_accelerator: bool) -> list[str]:
    """Commands that install what is optional and not there, or build again what does not load."""
    lines = []
    for name, command in OPTIONAL.items():
        if _version(name) is None:
            note = " (needs a CUDA device and compiler)" if name in COMPILED and not has_accelerator else ""
            lines += [f"optional: {name} is not installed{note}", f"  {command}"]
        elif name in COMPILED and (reason := why_not_importable(COMPILED[name], remedy="see below")):
            lines += [
                f"optional: {name} {_version(name)} {reason}",
                f"  {command} --force-reinstall --no-deps",
            ]
    return lines


def _state(name: str) -> str:
    """The version of a required library, or that it is missing."""
    if find_spec(REQUIRED[name]) is None:
        return MISSING
    return _version(name) or "installed"


def _version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
