"""What this machine offers a run: devices, cores, memory. Asked without importing what only workers need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.toolbox import WORK_BYTES_CPU, usable_cores, usable_memory

MEMORY_PER_WORKER = 1_500_000_000
"""Bytes: torch, the small networks, and one photo at full size."""

ANSWER_S = 300.0
"""How long torch may take to say which devices there are; a driver that hangs takes for ever."""


def no_process(error: OSError) -> EnvironmentProblem:
    """Say that the system gives us no process: not a word about the output folder, which is fine."""
    return EnvironmentProblem(
        f"no worker can be started: {error.strerror or error}",
        code="E_WORKER",
        remedy="fewer --jobs, or raise the limits on processes and open files",
    )


def check_device(wanted: str) -> None:
    """Refuse a name that no machine could have a device for."""
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+(,\d+)*", wanted):
        raise UsageError(
            f"--device {wanted}: no such device", code="E_DEVICE_NAME", remedy="auto, cpu, cuda or cuda:0,1"
        )


def find_devices(wanted: str) -> tuple[str, ...]:
    """The devices that `--device` means on this machine."""
    if wanted == "cpu" or (wanted == "auto" and not _may_have_accelerator()):
        return ("cpu",)
    if wanted.startswith("cuda:"):
        return tuple(f"cuda:{index}" for index in wanted.removeprefix("cuda:").split(","))
    found = tuple(ask("from crm_cli.toolbox import accelerators; answer = accelerators()"))
    if not found and wanted == "cuda":
        raise EnvironmentProblem(
            "--device cuda: torch can use none on this machine", code="E_DEVICE", remedy="see `crm doctor`"
        )
    return found or ("cpu",)


def ask(code: str) -> Any:
    """Run a few lines of ours in a process of its own and give back what they call `answer`.

    So the coordinator learns what only torch knows without importing it.
    """
    package = Path(__file__).resolve().parents[2]
    script = f"import sys, json; sys.path.append(sys.argv[1]); {code}; print(json.dumps(answer))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, str(package)],
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_S,
            process_group=0,  # Ctrl-C is for this process to hear
        )
    except OSError as error:
        raise no_process(error) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"torch does not answer within {ANSWER_S:.0f} s which devices there are",
            code="E_TORCH",
            remedy="see to the driver, or use --device cpu",
        ) from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise EnvironmentProblem(
            f"torch does not start here: {reason[0]}", code="E_TORCH", remedy="see `crm doctor`"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _may_have_accelerator() -> bool:
    """Whether asking torch, which takes seconds, can find anything: is NVIDIA's driver here, or WSL's?"""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg"))


def default_workers(devices: Sequence[str], *, is_small: bool = True) -> int:
    """How many photos to make at the same time: one for each core, as long as memory lasts.

    Those of an accelerator take turns at it: while it imagines one, others are cut out, unwrapped and
    written. One more for each, since one waits for it, and two each at the least, so that it finds the next
    one ready.

    is_small: the networks are the embedded ones. Of larger ones a single worker uses every core of a CPU:
    more would be no faster together, and would fill gigabytes each.
    """
    memory, cores = usable_memory(), usable_cores()
    has_accelerator = devices[0] != "cpu"
    wanted = cores + len(devices) if has_accelerator else cores
    at_most = max(1, wanted if memory is None else min(wanted, memory // MEMORY_PER_WORKER))
    if has_accelerator:
        return max(2 * len(devices), at_most)
    return at_most if is_small else 1


def threads_each(devices: Sequence[str], *, is_small: bool, jobs: int | None) -> int:
    """Threads of every worker.

    Never more than one for the embedded networks, on any machine and however few photos are left: more
    threads add the same numbers in another order, and an asset must not tell whether its run was
    interrupted. Workers use the cores instead. On a CPU larger networks get all cores, shared by the jobs
    that were asked for, also where fewer photos than these are left.
    """
    if is_small or devices[0] != "cpu":
        return 1
    return max(1, usable_cores() // (jobs or 1))


def memory_problem(weights_bytes: int, *, workers: int) -> str | None:
    """Say so where workers with large networks on a CPU will fill more memory than there is.

    weights_bytes: of the largest part, which has to be there as a whole while its stage runs.
    """
    memory, wanted = usable_memory(), workers * (WORK_BYTES_CPU + weights_bytes)
    if memory is None or wanted <= memory:
        return None
    who = "a worker" if workers == 1 else f"{workers} workers"
    return f"{who} may need {wanted / 1e9:.1f} GB of memory, and {memory / 1e9:.1f} GB are free: " + (
        "expect a crash, or use --weights embedded" if workers == 1 else "use fewer --jobs"
    )
