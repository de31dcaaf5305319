"""Photos that do what bad photos do to a line, among many good ones (A10)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from blows.bench import Bench, Finding, attempts

PHOTOS = 40

POISONED = 2
"""Of them: five in a hundred."""

FATES = {
    "raise_": "internal",
    "nan_": "internal",
    "segv_": "crash",
    "exit0_": "crash",
    "hang_": "timeout",
    "input_": "input",
    "liar_": "io",
    "noisy_": None,
    "once_": None,
    "flaky_": None,
    "oom_": "oom",
}
"""What becomes of a photo by its name: the class of its failure, or None where it becomes an asset."""

MAX_TRIES = 3

DEADLINE_S = 1.0


def mixed(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Each bad photo fails in its own class, and costs the others nothing."""
    trials = 0
    while True:
        fates = dice.choices([*FATES], k=POISONED)
        names = [f"{index:02}.jpg" for index in range(PHOTOS - POISONED)]
        names += [f"{fate}{index}.jpg" for index, fate in enumerate(fates)]
        trials += 1
        bench = Bench(root / f"{trials}", *names, flags=("--jobs", "2", "--no-report"))
        out = bench.fresh()
        done = bench.run(out, "--json", "--timeout", f"unwrap={DEADLINE_S}")
        kinds = [FATES[fate] for fate in fates]
        finding = Finding(done.surprises(expected=[3 if any(kinds) else 0]))
        events = [json.loads(line) for line in done.stdout.splitlines()]
        ends = {event["path"]: event for event in events if event["type"] == "asset_finished"}
        for name in names:
            wanted = next((kind for fate, kind in FATES.items() if name.startswith(fate)), None)
            end = ends.get(name, {"status": "never told", "kind": ""})
            is_right = end["status"] == "converted" if wanted is None else end["kind"] == wanted
            finding.wrong += [] if is_right else [f"{name}: {end['status']} {end['kind']}"]
        finding.wrong += [f"{name} was tried {n} times" for name, n in attempts(out).items() if n > MAX_TRIES]
        finding.figures.update({"photos": PHOTOS, "poisoned": sum(kind is not None for kind in kinds)})
        finding.longest_s["a run"] = done.seconds
        yield finding
