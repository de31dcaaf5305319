"""Parts of the views that are true, and what the networks draw beside them."""

from __future__ import annotations

import pytest
import torch

from crm_cli.frame import BACK, BOTTOM, LEFT, RIGHT, TOP
from crm_cli.learn.evaluate import view_errors
from crm_cli.learn.given import PARTS, GivenImagination, Part
from crm_cli.learn.unseen import Unseen, unseen
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import agree
from crm_cli.preset import load_preset
from crm_cli.records import SixViews
from crm_cli.toolbox import Toolbox, open_toolbox

PRESET = load_preset("tiny").preset
SIDES = [LEFT, BOTTOM, BACK, RIGHT, TOP]


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


@pytest.fixture(scope="module")
def one() -> Unseen:
    return unseen(6, WarpRaster())  # a chest: near a box, so that the photo spoils little


@pytest.fixture(scope="module")
def drawn(toolbox: Toolbox, one: Unseen) -> dict[tuple[Part, ...], SixViews]:
    wanted: list[tuple[Part, ...]] = [(), *((part,) for part in PARTS), ("rgb", "outlines", "depth")]
    return {given: GivenImagination(toolbox, PRESET, given).of(one) for given in wanted}


def test_nothing_given_is_what_the_networks_imagine(
    toolbox: Toolbox, one: Unseen, drawn: dict[tuple[Part, ...], SixViews]
) -> None:
    from crm_cli.pipeline import Imagine

    [imagined] = Imagine(toolbox, PRESET)([one.cutout])
    for name in ("rgb", "ccm", "alpha"):
        assert torch.equal(getattr(drawn[()], name), getattr(imagined, name))


def test_true_views_are_handed_on_untouched(one: Unseen, drawn: dict[tuple[Part, ...], SixViews]) -> None:
    assert drawn["views",] is one.views


def test_given_outlines_are_the_true_ones_and_depth_is_drawn_for_them(
    one: Unseen, drawn: dict[tuple[Part, ...], SixViews]
) -> None:
    imagined, given = (view_errors(drawn[parts], one.views) for parts in ((), ("outlines",)))
    assert given[0] > max(imagined[0], 0.9)  # the photo stays what it is, and walls may be put back
    assert given[1] > 0.005
    assert not torch.equal(drawn["outlines",].ccm, drawn[()].ccm)


def test_given_depth_is_the_true_one_wherever_the_outline_is(
    one: Unseen, drawn: dict[tuple[Part, ...], SixViews]
) -> None:
    imagined, given = (view_errors(drawn[parts], one.views)[1] for parts in ((), ("depth",)))
    assert given < imagined / 2


def test_given_colours_are_the_true_ones(one: Unseen, drawn: dict[tuple[Part, ...], SixViews]) -> None:
    both = ((drawn["rgb",].alpha > 1 - 1e-3) & (one.views.alpha == 1))[SIDES]
    off = [
        ((drawn[parts].rgb - one.views.rgb)[SIDES].abs() * both).sum() / both.sum()
        for parts in ((), ("rgb",))
    ]
    assert off[1] < off[0] / 3


def test_all_parts_given_leave_what_the_photo_corrects(
    one: Unseen, drawn: dict[tuple[Part, ...], SixViews]
) -> None:
    outline_iou, depth_l1 = view_errors(drawn["rgb", "outlines", "depth"], one.views)
    assert outline_iou > 0.9  # of front and back, whose outline is the photo's
    assert depth_l1 < 0.03
    assert torch.equal(agree.mirror(drawn["rgb", "outlines", "depth"].alpha[BACK], BACK), one.cutout.alpha)
