"""A few of each kind of fault; `python tests/hammer.py` deals them in thousands."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from blows import fuzz, gone, injected, killed, poison, power, rivals, signalled, space
from blows.bench import Experiment, hammer

Reason = Callable[[], str | None]


def nothing_found(
    experiment: Experiment, tmp_path: Path, *, count: int, why_not: Reason = lambda: None
) -> Counter[str]:
    """Deal so many blows; what was counted on the way."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    tally = hammer(experiment.__name__, experiment, root=tmp_path / "blows", count=count)
    assert not tally.wrong, "\n".join(tally.wrong[:10])
    assert tally.trials == count
    return Counter(tally.figures)


def test_a_fault_at_a_call_that_touches_the_output_folder_costs_nothing(tmp_path: Path) -> None:
    figures = nothing_found(injected.into_an_empty_folder, tmp_path, count=7, why_not=injected.why_not)
    assert figures["errors, exit 5"]


def test_a_fault_while_an_older_version_is_replaced_costs_nothing(tmp_path: Path) -> None:
    nothing_found(injected.over_an_older_version, tmp_path, count=5, why_not=injected.why_not)


def test_a_coordinator_killed_at_random_times_loses_nothing(tmp_path: Path) -> None:
    figures = nothing_found(killed.coordinator, tmp_path, count=8)
    assert figures["kills"] and figures["looks"] > 10


def test_killed_workers_cost_no_innocent_photo_its_asset(tmp_path: Path) -> None:
    assert nothing_found(killed.workers, tmp_path, count=3)["photos tried again"]


def test_after_a_power_cut_nothing_wrong_is_trusted_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    figures = nothing_found(power.crashes, tmp_path, count=800, why_not=power.why_not)
    assert figures["renames"] > 30


def test_a_full_disk_ends_a_run_with_its_last_words_and_nothing_torn(tmp_path: Path) -> None:
    assert nothing_found(space.full_disks, tmp_path, count=3, why_not=space.why_not)["exit 5"]


def test_a_limit_on_the_size_of_files_ends_a_run_with_nothing_torn(tmp_path: Path) -> None:
    assert nothing_found(space.limits, tmp_path, count=len(space.SIZES))["exit 5"]


def test_of_eight_runs_at_once_one_works(tmp_path: Path) -> None:
    figures = nothing_found(rivals.starts, tmp_path, count=1)
    assert figures["exit 11"] and figures["exit 0"] + figures["exit 11"] == rivals.RIVALS


def test_sixteen_shards_at_once_do_everything_once(tmp_path: Path) -> None:
    assert nothing_found(rivals.shards, tmp_path, count=1) == {"exit 0": rivals.SHARDS}


def test_runs_that_see_no_lock_corrupt_nothing(tmp_path: Path) -> None:
    nothing_found(rivals.unlocked, tmp_path, count=1)


def test_a_signal_at_a_random_time_ends_a_run_tidily(tmp_path: Path) -> None:
    figures = nothing_found(signalled.once, tmp_path, count=6)
    assert figures["tidy ends"] and figures["on a terminal"] and figures["on a pipe"]


def test_a_second_interrupt_leaves_no_photo_blamed(tmp_path: Path) -> None:
    assert nothing_found(signalled.twice, tmp_path, count=2)["tidy ends"]


def test_poisoned_photos_fail_in_their_own_class_and_alone(tmp_path: Path) -> None:
    nothing_found(poison.mixed, tmp_path, count=1)


def test_a_damaged_folder_is_seen_through_by_every_command(tmp_path: Path) -> None:
    figures = nothing_found(fuzz.damage, tmp_path, count=25)
    assert figures["records spoilt"] and figures["assets spoilt"] and figures["journals and logs spoilt"]


def test_a_folder_that_is_removed_is_not_made_again(tmp_path: Path) -> None:
    assert nothing_found(gone.deleted, tmp_path, count=3)["exit 5"]


def test_a_disk_that_gives_up_ends_a_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    assert nothing_found(gone.given_up, tmp_path, count=3, why_not=gone.why_not)["exit 5"]


def test_a_clock_that_jumps_a_day_makes_nothing_anew(tmp_path: Path) -> None:
    nothing_found(gone.clocks, tmp_path, count=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "count", "why_not"),
    [
        (injected.into_an_empty_folder, 400, injected.why_not),
        (injected.over_an_older_version, 400, injected.why_not),
        (killed.coordinator, 200, lambda: None),
        (killed.workers, 60, lambda: None),
        (power.crashes, 20_000, power.why_not),
        (space.full_disks, 30, space.why_not),
        (space.limits, 30, lambda: None),
        (rivals.starts, 10, lambda: None),
        (rivals.shards, 3, lambda: None),
        (rivals.unlocked, 15, lambda: None),
        (signalled.once, 100, lambda: None),
        (signalled.twice, 20, lambda: None),
        (poison.mixed, 10, lambda: None),
        (fuzz.damage, 1_000, lambda: None),
        (gone.deleted, 20, lambda: None),
        (gone.given_up, 20, gone.why_not),
        (gone.clocks, 5, lambda: None),
    ],
)
def test_many_faults_of_a_kind_cost_nothing(
    tmp_path: Path, experiment: Experiment, count: int, why_not: Reason
) -> None:
    nothing_found(experiment, tmp_path, count=count, why_not=why_not)
