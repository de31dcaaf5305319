from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.names import MAX_SLUG, SLUG, slug
from crm_cli.run.slugs import slugs


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("皮鞋", "pi-xie"),
        ("皮鞋 2024 (neu)", "pi-xie-2024-neu"),
        ("Größe 42_links", "grosse-42_links"),
        ("cafe\u0301", "cafe"),
        ("Сапоги.v2", "sapogi-v2"),
        ("가방", "gabang"),
        ("-x-", "x"),
        ("Mug", "mug"),
        ("!!!", ""),
        ("\udcff", ""),
    ],
)
def test_a_slug_is_what_one_reads_aloud(name: str, spelt: str) -> None:
    assert slug(name) == spelt


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_a_slug_is_empty_or_fits_every_shop_and_is_its_own_slug(name: str) -> None:
    made = slug(name)
    assert not made or SLUG.fullmatch(made)
    assert len(made) <= MAX_SLUG
    assert slug(made) == made


def slugs_of(*stems: str) -> dict[str, str]:
    made = slugs(map(PurePosixPath, stems))
    return {str(stem): str(name) for stem, name in made.items()}


def test_folders_are_spelt_as_well() -> None:
    assert slugs_of("Küche/皮鞋", "a/b.c") == {"Küche/皮鞋": "kuche/pi-xie", "a/b.c": "a/b-c"}


def test_two_that_would_meet_are_told_apart_and_the_name_that_is_a_slug_already_stays() -> None:
    made = slugs_of("red shoe", "Red Shoe", "red-shoe")
    assert made["red-shoe"] == "red-shoe"
    assert len(set(made.values())) == 3
    assert all(name.startswith("red-shoe") and SLUG.fullmatch(name) for name in made.values())


def test_a_name_does_not_depend_on_the_order_or_on_names_it_never_meets() -> None:
    both = slugs_of("A b", "a B", "c")
    assert slugs_of("a B", "A b") == {name: both[name] for name in ("a B", "A b")}


def test_what_cannot_be_spelt_is_called_by_a_digest() -> None:
    made = slugs_of("!!!", "???", "x/!!!")
    assert len(set(made.values())) == 3
    assert all(SLUG.fullmatch(part) for name in made.values() for part in name.split("/"))


# No half characters but those that stand for bytes: no disk has a name with others.
LETTERS = st.characters(exclude_characters="/\0.", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]
)


@given(st.sets(st.text(LETTERS, min_size=1), max_size=8))
def test_no_two_names_meet(names: set[str]) -> None:
    made = slugs(map(PurePosixPath, names))
    assert len(set(made.values())) == len(names)
