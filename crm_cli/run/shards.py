"""One of several parts that a batch is divided into, for several machines with one output folder."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Self

from crm_cli.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read `3/16`; UsageError where it is none."""
        # So few digits that nobody can make int() work long.
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(
                f"--shard {text}: not one of n parts",
                code="E_SHARD",
                remedy="write i/n with i from 1 to n, as in --shard 3/16",
            )
        return cls(number=int(found[1]), of=int(found[2]))

    def holds(self, asset: str) -> bool:
        """Whether an asset is in this part: its name alone decides, so other photos move nothing."""
        digest = hashlib.sha256(os.fsencode(asset)).digest()
        return int.from_bytes(digest) % self.of == self.number - 1

    def __str__(self) -> str:
        """Return the name that files carry."""
        return f"shard-{self.number}-of-{self.of}"
