import contextlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crm_cli.models import bounds
from crm_cli.models.bounds import TookTooLong, bounded

PLENTY = 1 << 40

PATIENCE_S = 60.0


def state() -> tuple[object, ...]:
    return (
        resource.getrlimit(resource.RLIMIT_AS),
        signal.getsignal(signal.SIGPROF),
        signal.getitimer(signal.ITIMER_PROF),
    )


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def test_a_block_that_takes_little_is_let_through() -> None:
    with bounded(memory_bytes=PLENTY, cpu_s=100) as is_counted:
        assert is_counted and signal.getitimer(signal.ITIMER_PROF)[0] > 0


def test_too_much_memory_is_a_memory_error_and_the_next_block_has_its_own_count() -> None:
    with pytest.raises(MemoryError), bounded(memory_bytes=100_000_000, cpu_s=100):
        bytearray(200_000_000)
    assert len(bytearray(200_000_000)) == 200_000_000
    held = bytearray(200_000_000)
    with bounded(memory_bytes=100_000_000, cpu_s=100):
        assert len(bytearray(50_000_000)) < len(held)


def early() -> Callable[[], bool]:
    """Tells whether a loop that should have been ended may go on."""
    ends = time.process_time() + PATIENCE_S
    return lambda: time.process_time() < ends


def test_too_much_time_is_an_exception_that_nobody_swallows() -> None:
    swallowed, is_early = 0, early()
    with pytest.raises(TookTooLong), bounded(memory_bytes=PLENTY, cpu_s=0.05):
        while is_early():
            try:
                sum(range(1000))
            except Exception:
                swallowed += 1
    assert swallowed == 0


def test_where_it_is_swallowed_all_the_same_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "AGAIN_S", 0.05)
    is_early = early()
    with pytest.raises(TookTooLong), bounded(memory_bytes=PLENTY, cpu_s=0.05):
        with contextlib.suppress(BaseException):
            while is_early():
                sum(range(1000))
        while is_early():
            sum(range(1000))


def test_waiting_takes_no_time() -> None:
    with bounded(memory_bytes=PLENTY, cpu_s=0.1):
        time.sleep(0.3)


def test_a_thread_counts_memory_alone() -> None:
    seen: list[tuple[float, float] | bool] = []

    def work() -> None:
        with bounded(memory_bytes=PLENTY, cpu_s=0.001) as is_counted:
            seen.extend([is_counted, signal.getitimer(signal.ITIMER_PROF)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, (0.0, 0.0)]


def test_without_proc_and_under_a_lower_limit_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import resource\n"
        "from crm_cli.models.bounds import bounded\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n"
        "with bounded(memory_bytes=1 << 34, cpu_s=9) as is_counted: assert not is_counted\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (1 << 33, 1 << 33)\n"
        "with bounded(memory_bytes=1 << 30, cpu_s=9) as is_counted: assert is_counted\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (1 << 33, 1 << 33)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setattr(bounds, "_address_space", lambda: None)
    with bounded(memory_bytes=1, cpu_s=100) as is_counted:
        assert not is_counted and len(bytearray(1 << 20)) == 1 << 20
