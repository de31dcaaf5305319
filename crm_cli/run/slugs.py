"""Names of assets for targets that take no more than a-z, 0-9, _ and -."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from crm_cli.names import slug

DIGEST_DIGITS = 8
"""Of the name a slug stands for, where two would meet: 4 billion to one for any two."""


def slugs(stems: Iterable[PurePosixPath]) -> Mapping[PurePosixPath, PurePosixPath]:
    """Give every asset name its slug, folders and all.

    Where several would have one, each gets a digest of its own name, so that none depends on the order;
    a name that is a slug already keeps it. So do the others when such a photo goes or comes.
    """
    plain = {stem: PurePosixPath(*map(_part, stem.parts)) for stem in stems}
    counts = Counter(plain.values())
    return {
        stem: made if counts[made] == 1 or made == stem else _told_apart(made, stem)
        for stem, made in plain.items()
    }


def _part(name: str) -> str:
    """The slug of one folder or file; of a name that cannot be spelt at all, its digest."""
    return slug(name) or _digest(name)


def _told_apart(made: PurePosixPath, stem: PurePosixPath) -> PurePosixPath:
    return made.with_name(f"{made.name}-{_digest(stem)}")


def _digest(name: str | PurePosixPath) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGEST_DIGITS]
