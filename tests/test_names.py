from __future__ import annotations

import os
import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.names import display_name


@pytest.mark.parametrize(
    "name", ["皮鞋.webp", "sofa (1).jpg", "שולחן.png", "👩‍🦰.png", "a[/b].png", "\\x1b.png"]
)
def test_what_a_person_can_read_is_left_alone(name):
    assert display_name(PurePosixPath(name)) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\x0ab"),
        ("\x1b[2J", r"\x1b[2J"),
        ("gpj\u202eexe", r"gpj\u202eexe"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\x85\u2028", r"\x85\u2028"),
    ],
)
def test_what_acts_on_the_screen_is_spelled_out(name, shown):
    assert display_name(name) == shown


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_nothing_shown_moves_the_cursor_or_breaks_the_encoding(name):
    shown = display_name(name)
    shown.encode("utf-8")
    harmful = {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp", "Co"}
    assert not harmful
