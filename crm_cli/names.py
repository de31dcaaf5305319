"""File names as a person may read them."""

from __future__ import annotations

import os

SHOWN_AS_THEY_ARE = frozenset({"\u200d", "\ufe0f"})
"""Joiners inside emoji: format characters, but harmless ones."""


def display_name(text: str | os.PathLike[str]) -> str:
    r"""Make a name fit for a terminal or a page.

    Control, bidirectional and undecodable characters become `\xNN`: a file name may hold escape
    sequences that clear the screen or rewrite the line before it.
    """
    name = os.fspath(text)
    # Most are: a contact sheet of thousands of photos shows a hundred thousand texts.
    return name if name.isprintable() else "".join(map(_displayed, name))


def _displayed(character: str) -> str:
    """Return one character, or its escape."""
    if character.isprintable() or character in SHOWN_AS_THEY_ARE:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python carries it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
