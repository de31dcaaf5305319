"""File names as a person may read them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

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


SUFFIXES: Mapping[str, str] = {"glb": ".glb", "obj": ".obj", "usd": ".usdc", "usdz": ".usdz"}
"""Format as a preset names it → suffix of its main file."""

SLUG = re.compile("[a-z0-9_-]+")
"""What shops, engines and URLs all take."""

MAX_SLUG = 80
"""Characters of a slug: a digest and the suffixes of a chain fit every disk and URL behind them."""


def slug(text: str) -> str:
    """Spell a name in a-z, 0-9, _ and -, each ideograph as a word; empty where nothing can be spelt."""
    from anyascii import anyascii

    # Composed first: transliteration looks at one character at a time.
    characters = unicodedata.normalize("NFC", text)
    spelt = "".join(f" {anyascii(c)} " if _is_ideograph(c) else anyascii(c) for c in characters)
    return re.sub("[^a-z0-9_]+", "-", spelt.lower()).strip("-")[:MAX_SLUG].rstrip("-")


def lod_names(name: str, lods: Sequence[float]) -> list[str]:
    """Name the files of a chain without their suffixes; a chain of one whole asset has the plain name.

    No two assets of one chain's length can meet: what comes before `_lod0` is each one's own.
    """
    if tuple(lods) == (1.0,):
        return [name]
    return [f"{name}_lod{level}" for level in range(len(lods))]


def _is_ideograph(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK UNIFIED")
