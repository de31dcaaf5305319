"""The same products seen by six cameras that do not stand on the world's axes.

What the paper's views gain by looking along the axes of the triplane can only be measured against views
that do not. All six cameras are turned together, by a rotation of each product's own, so that they still
look from six sides and miss no more of the product than before: nothing differs but where a pixel lies
relative to the planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed
from crm_cli.learn.data import SHARD, Shards, shards_of, store
from crm_cli.learn.examples import draw_posed, six_views
from crm_cli.learn.materials import Random
from crm_cli.learn.train import Batch
from crm_cli.models.agree import SOLID
from crm_cli.records import SixViews
from crm_cli.toolbox import choose

OWN_STREAM = 1
"""Turns are drawn from (seed, this), so that the product stays the one that the seed alone draws."""

WITHIN = 0.95
"""Turned products are shrunk to reach no further than this from the middle of any picture."""

Turn = NDArray[np.float64]
"""World to the turned cameras' frame [3 3]: a rotation, times how much the product is shrunk."""


class Retaken(NamedTuple):
    """One product in the eyes of turned cameras."""

    views: NDArray[np.uint8]
    """[6 4 S S], as in Example."""
    depth: NDArray[np.float16]
    """[6 S S], along the turned cameras' own axes, in the turned frame's unit."""
    turn: NDArray[np.float32]
    """[3 3], see Turn."""


def draw_turn(rng: Random) -> Turn:
    """Draw a rotation [3 3], all of them equally likely (Mezzadri 2007, §5)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q if np.linalg.det(q) > 0 else -q)


def retake(seed: int, raster: Raster, *, size_px: int = 64, turn: Turn | None = None) -> Retaken:
    """Look at the product of `make_example(default_rng(seed))` through turned cameras.

    turn: a rotation; drawn from the seed where None.
    """
    posed = draw_posed(np.random.default_rng(seed))
    if turn is None:
        turn = draw_turn(np.random.default_rng([seed, OWN_STREAM]))
    turned = posed.vertices @ turn.T
    turn = turn * min(1.0, WITHIN / float(np.abs(turned).max()))
    # Normals and the way up stay in the world: the light does not turn with the cameras.
    seen = Posed(
        product=posed.product,
        vertices=(posed.vertices @ turn.T).astype(np.float32),
        normals=posed.normals,
        up=posed.up,
    )
    views, depth = six_views(seen, raster, size_px=size_px)
    return Retaken(views=views, depth=depth, turn=turn.astype(np.float32))


def in_world(views: SixViews, turn: Tensor) -> SixViews:
    """Say in the world's coordinates what coordinate maps of turned cameras say in their own frame.

    turn: [3 3], see Turn.
    """
    own = 2 * views.ccm - 1
    world = torch.einsum("dk,nkhw->ndhw", torch.linalg.inv(turn.double()).to(own), own)
    return replace(views, ccm=torch.where(views.alpha > SOLID, world / 2 + 0.5, torch.full_like(world, 0.5)))


def retake_all(folder: Path, count: int, *, first_seed: int = 0, size_px: int = 64) -> Iterator[Path]:
    """Look again at `count` products from first_seed on, into shards beside those of `data.build`.

    Yields each shard that was not there before.
    """
    from crm_cli.mesh.raster import RASTERS

    folder.mkdir(parents=True, exist_ok=True)
    raster = choose("rasteriser", RASTERS, "cpu")()
    for file, seeds in shards_of(folder, count, first_seed=first_seed, shard=SHARD):
        if file.exists():
            continue
        retaken = [retake(seed, raster, size_px=size_px) for seed in seeds]
        columns: dict[str, NDArray[np.generic]] = {
            name: np.stack([getattr(one, name) for one in retaken]) for name in Retaken._fields
        }
        store(file, seeds, columns)
        yield file


@dataclass(frozen=True, slots=True)
class TurnedShards:
    """Examples whose six views are those of turned cameras; everything else stays as it was."""

    examples: Shards
    retaken: Shards

    def __post_init__(self) -> None:
        """Check that both hold the same products."""
        if len(self.examples) != len(self.retaken):
            raise ValueError(f"{len(self.examples)} examples, seen again {len(self.retaken)} times")

    def __len__(self) -> int:
        return len(self.examples)

    def at_step(self, step: int) -> int:
        """All of them, at every step."""
        return len(self)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Read several examples, stacked [B ...], with `turn` [B 3 3] beside what others hold."""
        plain, retaken = self.examples.batch(indices), self.retaken.batch(indices)
        if not torch.equal(plain["seed"], retaken["seed"]):
            raise ValueError("not the same products: the two folders were made for different seeds")
        return {**plain, **retaken}
