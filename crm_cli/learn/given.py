"""Views in which some parts are true and the networks draw the rest: what the errors of each part cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from crm_cli.learn.unseen import Unseen
from crm_cli.models import agree
from crm_cli.models.imagine import EmbeddedImagination
from crm_cli.models.sampler import Progress, ignore
from crm_cli.preset import Preset
from crm_cli.records import Cutout, SixViews
from crm_cli.toolbox import Toolbox

Part = Literal["rgb", "outlines", "depth", "views"]
"""`views`: all of them as rendered, past every correction by the photo: the most a reconstruction can get."""

PARTS: tuple[Part, ...] = ("rgb", "outlines", "depth", "views")


class GivenImagination(EmbeddedImagination):
    """The embedded networks, which are handed some parts of a subject's views at their own size."""

    def __init__(self, toolbox: Toolbox, preset: Preset, given: Sequence[Part]) -> None:
        super().__init__(toolbox.networks, preset)
        self._given = frozenset(given)
        self._truth: SixViews | None = None

    def of(self, subject: Unseen) -> SixViews:
        """Views of a subject, who must have been photographed at the networks' own size."""
        if "views" in self._given:
            return subject.views
        self._truth = subject.views
        [views] = self([subject.cutout], ignore)
        return views

    def _draw_views(
        self, photos: Tensor, cutouts: Sequence[Cutout], progress: Progress
    ) -> tuple[Tensor, Tensor]:
        assert self._truth is not None
        rgb, alpha = super()._draw_views(photos, cutouts, progress)
        return (
            self._truth.rgb[None] if "rgb" in self._given else rgb,
            self._truth.alpha[None] if "outlines" in self._given else alpha,
        )

    def _draw_depth(
        self, rgb: Tensor, alpha: Tensor, cutouts: Sequence[Cutout], progress: Progress
    ) -> Tensor:
        assert self._truth is not None
        if "depth" not in self._given:
            return super()._draw_depth(rgb, alpha, cutouts, progress)
        # Where an imagined outline reaches past the true one, depth is that of the nearest edge.
        depth = agree.depth_of(self._truth.ccm)[:, None]
        return agree.spread(depth, self._truth.alpha > agree.SOLID)[None, :, 0]
