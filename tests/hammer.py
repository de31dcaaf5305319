"""Checks the promise about faults on this machine, and prints what was found.

    python tests/hammer.py --minutes 30        every experiment gets a share of the time
    python tests/hammer.py --kills 10000       as before a release; with fewer kills all is done less often
    python tests/hammer.py power fuzz          some experiments only

Nothing here needs a GPU or weights: stages are fakes, everything around them is what users run. Experiments
that need strace, or root for disks of their own, say so and are passed over where these are missing.
Exit code 0: no trial found anything wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from blows import fuzz, gone, injected, killed, poison, power, rivals, signalled, space  # noqa: E402
from blows.bench import Experiment, Tally, hammer  # noqa: E402

MAX_TOLD = 5
"""So many findings of an experiment are printed; more tell nothing new."""


@dataclass(frozen=True)
class Blows:
    """One experiment: what it is called, how often it is made, what it needs."""

    name: str
    experiment: Experiment
    release: int
    """Trials before a release."""
    share: float = 1.0
    """Of the time, where time is given."""
    why_not: Callable[[], str | None] = lambda: None


EXPERIMENTS = (
    Blows("fault at every call, empty folder", injected.into_an_empty_folder, 10_000, 3, injected.why_not),
    Blows("fault at every call, older version", injected.over_an_older_version, 10_000, 3, injected.why_not),
    # Some runs have ended before the kill.
    Blows("kill the coordinator", killed.coordinator, 14_000, 6),
    Blows("kill workers", killed.workers, 2_500, 3),
    Blows("power cut", power.crashes, 1_000_000, 3, power.why_not),
    Blows("full disk", space.full_disks, 200, 1, space.why_not),
    Blows("limit on file sizes", space.limits, 200),
    Blows("starts together", rivals.starts, 500),
    Blows("shards together", rivals.shards, 50),
    Blows("no lock", rivals.unlocked, 100),
    Blows("signal", signalled.once, 2_000, 2),
    Blows("second interrupt", signalled.twice, 500),
    Blows("poisoned photos", poison.mixed, 125),
    Blows("damaged folder", fuzz.damage, 50_000, 2),
    Blows("folder removed", gone.deleted, 100),
    Blows("disk gives up", gone.given_up, 100, 1, gone.why_not),
    Blows("clock jumps", gone.clocks, 50),
)
"""An injected fault is dealt once at every call: these experiments end by themselves."""


def main() -> int:
    """Hammer, print, and say whether anything was found."""
    wanted = _read_arguments()
    chosen = [blows for blows in EXPERIMENTS if any(word in blows.name for word in wanted.names or [""])]
    missing = [(blows, reason) for blows in chosen if (reason := blows.why_not())]
    chosen = [blows for blows in chosen if blows not in [blows for blows, _ in missing]]
    _tell(f"{'experiment':<36}{'trials':>9}{'wrong':>7}{'minutes':>9}  figures")
    for blows, reason in missing:
        _tell(f"{blows.name:<36}{'-':>9}{'-':>7}{'-':>9}  {reason}")
    wrong = 0
    for tally in _tallies(chosen, wanted):
        wrong += len(tally.wrong)
        figures = [f"{count} {what}" for what, count in sorted(tally.figures.items())]
        figures += [f"{what} {took_s:.1f} s at most" for what, took_s in tally.longest_s.items()]
        minutes = tally.seconds / 60
        _tell(f"{tally.name:<36}{tally.trials:>9}{len(tally.wrong):>7}{minutes:>9.1f}  {', '.join(figures)}")
        for words in tally.wrong[:MAX_TOLD]:
            _tell(f"    {words}")
    _tell("nothing was found" if not wrong else f"{wrong} findings")
    return 1 if wrong else 0


def _tallies(chosen: list[Blows], wanted: argparse.Namespace) -> Iterator[Tally]:
    """Make experiments side by side, and yield each as it ends."""
    shares = sum(blows.share for blows in chosen)
    at_once: int = wanted.at_once
    with tempfile.TemporaryDirectory(prefix="crm-hammer-") as folder, ProcessPoolExecutor(at_once) as pool:
        begun: dict[Future[Tally], str] = {}
        for index, blows in enumerate(chosen):
            seconds = wanted.minutes and 60 * wanted.minutes * at_once * blows.share / shares
            count = None if seconds else max(1, round(blows.release * wanted.kills / 10_000))
            future = pool.submit(
                hammer, blows.name, blows.experiment,
                root=Path(folder) / str(index), seed=wanted.seed, count=count, seconds=seconds,
            )  # fmt: skip
            begun[future] = blows.name
        for future in as_completed(begun):
            error = future.exception()
            if error:
                yield Tally(begun[future], 0, (f"the experiment itself failed: {error!r}",), {}, {}, 0.0)
            else:
                yield future.result()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="words of experiments' names; all without any")
    parser.add_argument("--minutes", type=float, help="time for all of them")
    parser.add_argument("--kills", type=int, default=10_000, help="the release's counts are for 10000")
    parser.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--seed", default="1", help="other blows, the same each time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
