import pytest

from crm_cli.errors import UsageError
from crm_cli.run.amounts import LONGEST_S, Share, read_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("90", 90), ("2.5", 2.5), ("20s", 20), ("250ms", 0.25), ("30m", 1800), ("30min", 1800),
        ("1h30m", 5400), ("1h 30m 5s", 5405), ("2D", 172800), ("4:00:00", 14400), ("3:07", 187), (" 5 s ", 5),
    ],
)  # fmt: skip
def test_times_are_read_as_people_and_schedulers_write_them(text: str, seconds: float) -> None:
    assert read_duration(text, flag="--grace") == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "-3", "1x", "1h30", "30 5", "nan", "inf", "1e5", "1:2:3:4", "1:60", "²", f"{LONGEST_S + 1}"],
)
def test_what_is_no_time_is_refused_with_the_flag_it_was_given_to(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--grace .*not a time \[E_DURATION\]"):
        read_duration(text, flag="--grace")


@pytest.mark.parametrize(
    ("text", "total", "number"),
    [
        ("0", 50, 0), ("5", 50, 5), ("5", 2, 5), ("10%", 50, 5), ("10%", 59, 5), ("7%", 100, 7),
        ("0.5%", 199, 0), ("0.5%", 200, 1), ("100%", 3, 3), ("29%", 100, 29),
    ],
)  # fmt: skip
def test_a_share_is_a_number_or_a_part_rounded_down(text: str, total: int, number: int) -> None:
    assert Share.from_text(text, flag="--max-failures").of(total) == number


@pytest.mark.parametrize("text", ["", "-1", "5.5", "101%", "%", "5 %%", "five", "1e3"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"\[E_SHARE\]; write --max-failures 5 or"):
        Share.from_text(text, flag="--max-failures")
