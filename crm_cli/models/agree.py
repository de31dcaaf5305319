"""Six generated views made to agree with each other and with the photo.

Small networks draw each view a little wrong, and a solid cut by six silhouettes is only as good as the
worst of them: one missing chair leg in one view cuts the leg off. But orthographic views of one object
repeat each other. Opposite silhouettes are mirror images, two of the three coordinates of a map are the
pixel grid, and the front view is the photo itself. Whatever follows from that is put right here.

Depth, here, is the world coordinate along a view's line of sight, larger towards the camera, in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, OPPOSITE, TOP, VIEWS, View
from crm_cli.records import Cutout, SixViews

SOLID = 0.5
"""Coverage from which a pixel belongs to the object."""

WALL = 0.06
"""World units kept at least behind every pixel of the photo: two cells of a grid of 64, so that it meshes."""

WALL_STEPS = 3
"""Voxels across a wall; at 64 px it is two voxels thick."""

WALL_COVERAGE = 0.75
"""What a view covers of a wall at least: solid, yet soft enough that enlarging rounds the voxels' corners."""

ENOUGH = 0.6
"""Coverage to which the likeliest place behind a pixel of the photo is raised, however faint: a little more
than solid, so that it does not come out as thin as a pixel."""

FAINT = 0.02
"""Coverage below which one place is as likely as another: what networks leave on an empty background."""

FADE = 0.15
"""World units beyond an inflated outline at which a place counts 1/e as likely to belong to the object."""

THICKEST = 0.3
"""World units that an outline is inflated to at most: an eighth of the largest object's depth."""

STEP = 0.08
"""World units by which neighbours of one surface differ at most: two and a half voxels of the hull."""

MIDDLE_PULL = 0.25
"""World units of contradiction that one unit away from the middle between front and back is worth."""


class Pixels(NamedTuple):
    """Row and column at which one view sees each point, and how near to the camera the point is."""

    row: Tensor
    column: Tensor
    nearness: Tensor


def centres(size_px: int) -> Tensor:
    """World coordinates of pixel centres along one axis, [S] in (-1, 1)."""
    return (torch.arange(size_px) + 0.5) * (2 / size_px) - 1


def place_photo(cutout: Cutout, size_px: int) -> Tensor:
    """Scale a cut-out to one view: [4 S S], colour not premultiplied and zero where nothing is."""
    premultiplied = torch.cat([cutout.rgb * cutout.alpha, cutout.alpha])[None]
    small = functional.interpolate(premultiplied, size=(size_px, size_px), mode="area")[0]
    alpha = small[3:]
    return torch.cat([small[:3] / alpha.clamp_min(1e-4), alpha]) * (alpha > 1e-3)


def on_grey(rgba: Tensor) -> Tensor:
    """Lay colour over mid grey, keeping alpha: [... 4 S S] to [... 4 S S]."""
    alpha = rgba[..., 3:, :, :]
    return torch.cat([rgba[..., :3, :, :] * alpha + 0.5 * (1 - alpha), alpha], dim=-3)


def depth_of(ccm: Tensor) -> Tensor:
    """Read the depth out of six coordinate maps: [6 3 S S] in [0, 1] to [6 S S]."""
    return torch.stack(
        [view.depth_sign * (2 * maps[view.depth_axis] - 1) for view, maps in zip(VIEWS, ccm, strict=True)]
    )


def maps_of(depth: Tensor, alpha: Tensor) -> Tensor:
    """Coordinate maps from depth [6 S S] and coverage [6 1 S S]: [6 3 S S] in [0, 1] on mid grey.

    The two coordinates across the line of sight are the pixel grid, exactly.
    """
    grid = centres(depth.shape[-1]).to(depth.device)
    maps = depth.new_zeros(6, 3, *depth.shape[1:])
    for index, view in enumerate(VIEWS):
        for axis in range(3):
            along_u = view.right[axis] * grid[None, :]
            along_v = -view.up[axis] * grid[:, None]
            maps[index, axis] = along_u + along_v + view.toward[axis] * depth[index]
    return torch.where(alpha > SOLID, maps / 2 + 0.5, torch.full_like(maps, 0.5))


def mirror(image: Tensor, view: int) -> Tensor:
    """Turn one view as its opposite sees the same outline: bottom and top flip, the others mirror."""
    return image.flip(-2) if view in (BOTTOM, TOP) else image.flip(-1)


def hull_depth(alpha: Tensor) -> Tensor:
    """Depth of the largest solid that shows these outlines: [B 6 1 S S] to [B 6 S S], -1 where there is none.

    The visual hull: whatever lies within all six outlines. The object's own depth is nowhere nearer.
    """
    size_px = alpha.shape[-1]
    solid = alpha.new_ones((len(alpha), size_px, size_px, size_px), dtype=torch.bool)  # [B x y z]
    for index, view in enumerate(VIEWS):
        upright = (alpha[:, index, 0] > SOLID).flip(_falling(view))
        solid.permute(0, *_axes(view)).logical_and_(upright[..., None])
    nearness = -centres(size_px).to(alpha.device)  # of the first slice, the second...
    depths = []
    for view in VIEWS:
        slices = solid.permute(0, *_axes(view))  # [B row column depth], world order
        first = (slices.flip(-1) if view.depth_sign > 0 else slices).byte().argmax(-1)
        depth = torch.where(slices.any(-1), nearness[first.long()], -1.0)
        depths.append(depth.flip(_falling(view)))
    return torch.stack(depths, dim=1)


def agree_outlines(alpha: Tensor, photo_alpha: Tensor) -> Tensor:
    """Give opposite views one outline, the front that of the photo.

    alpha: [... 6 1 S S]; photo_alpha: [... 1 S S]. Returns [... 6 1 S S].
    """
    agreed = list(alpha.unbind(-4))
    agreed[FRONT] = photo_alpha
    agreed[BACK] = mirror(photo_alpha, FRONT)
    rows = photo_alpha.amax(-1, keepdim=True)  # [... 1 S 1]: heights at which the photo shows anything
    columns = photo_alpha.amax(-2, keepdim=True)  # [... 1 1 S]
    for view, shown in ((LEFT, rows), (TOP, columns)):
        mean = (agreed[view] + mirror(agreed[OPPOSITE[view]], view)) / 2
        agreed[view], agreed[OPPOSITE[view]] = mean * shown, mirror(mean, view) * shown
    return torch.stack(agreed, dim=-4)


def show_photo(alpha: Tensor) -> Tensor:
    """Widen the outlines beside and above wherever the two together hide something that the photo shows.

    alpha: [6 1 S S], agreed. Networks that are not sure where a thin part is draw it faintly over all its
    likely places, and solidly in none. The likeliest of them become just solid, hardly deeper than the
    photo's outline is wide there; edges stay soft, so that no voxel's steps are seen on the surface.
    """
    beside, above = _to_world(alpha[LEFT, 0], LEFT), _to_world(alpha[TOP, 0], TOP)  # [y z], [x y]
    shown = _to_world(alpha[FRONT, 0], FRONT) > SOLID  # [x z]
    likely = torch.minimum(beside[None], above[:, :, None])  # [x y z]
    hidden = shown & (likely.amax(1) < ENOUGH)
    if not hidden.any():
        return alpha.clone()
    y = centres(alpha.shape[-1])
    middle = _smooth(y[_around(likely).argmax(1)], shown)
    beyond = (y[:, None] - middle[:, None]).abs() - _smooth(_half_thickness(shown), shown)[:, None]
    # The root flattens the peak: a part is as deep as it is wide, not as the network is sure of it.
    likely = likely.clamp_min(FAINT).sqrt() * torch.exp(-beyond.clamp_min(0) / FADE)
    raised = ENOUGH * likely / likely.amax(1, keepdim=True) * hidden[:, None]
    widened = alpha.clone()
    for view, grown in ((LEFT, raised.amax(0)), (TOP, raised.amax(2))):
        widened[view, 0] = torch.maximum(alpha[view, 0], _to_picture(grown, view))
        widened[OPPOSITE[view]] = mirror(widened[view], view)
    return widened


def steady(depth: Tensor, alpha: Tensor) -> Tensor:
    """Smooth depth [6 S S] within each surface that outlines [6 1 S S] enclose; its edges stay sharp.

    Depth is drawn inwards from a hull of voxels, whose steps would be seen as ridges.
    """
    size_px = depth.shape[-1]
    solid = (alpha > SOLID).to(depth)
    bell = torch.tensor([1.0, 2.0, 1.0])
    weights = (bell[:, None] * bell).flatten()[:, None] * functional.unfold(solid, 3, padding=1)  # [6 9 N]
    flat = depth.flatten(1)[:, None]  # [6 1 N]
    for _ in range(2):
        near = functional.unfold(flat.view(6, 1, size_px, size_px), 3, padding=1)
        alike = weights * ((near - flat).abs() < STEP)
        mean = (alike * near).sum(1, keepdim=True) / alike.sum(1, keepdim=True).clamp_min(1)
        flat = torch.where(solid.flatten(2) > 0, mean, flat)
    return flat.view_as(depth)


def keep_photo(alpha: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Mend the views wherever, taken together, they would cut away something that the photo shows.

    alpha: [6 1 S S]; depth: [6 S S]. Behind every pixel that is cut away a wall is put back where the views
    contradict it least, no thicker than it takes to be seen, and every view is moved to contain it.
    """
    size_px = depth.shape[-1]
    outside = _outside(alpha, depth)
    shown = _to_world(alpha[FRONT, 0], FRONT) > SOLID  # [S S] over x, z
    missing = shown & (outside.amin(1) > -WALL / 2)
    if not missing.any():
        return alpha.clone(), depth.clone()
    middle = _smooth(_likeliest(outside, depth), shown)
    at_x, at_z = torch.nonzero(missing, as_tuple=True)
    y = middle[at_x, at_z] + torch.linspace(-WALL / 2, WALL / 2, WALL_STEPS)[:, None]  # [K M]
    at_y = ((y + 1) * (size_px / 2) - 0.5).round().long().clamp(0, size_px - 1).flatten()
    voxels = torch.stack((at_x.repeat(WALL_STEPS), at_y, at_z.repeat(WALL_STEPS)))
    return _contain(alpha, depth, centres(size_px)[voxels])


def lift(
    rgb: Tensor, alpha: Tensor, depth: Tensor, cutout: Cutout, *, size_px: int, use_photo: bool
) -> SixViews:
    """Enlarge agreed views to the size the surface is cut from, with the photo itself in front.

    rgb: [6 3 s s] in [0, 1]; alpha: [6 1 s s]; depth: [6 s s].
    """
    solid = alpha > SOLID
    tall_alpha = _sharpen(_resize(alpha, size_px))
    tall_rgb = _resize(spread(rgb, solid), size_px).clamp(0, 1)
    tall_depth = _resize(spread(depth[:, None], solid), size_px)[:, 0].clamp(-1, 1)
    if use_photo:
        photo = place_photo(cutout, size_px)
        tall_alpha[FRONT] = photo[3:]
        tall_alpha[BACK] = mirror(photo[3:], FRONT)
        tall_rgb[FRONT] = torch.where(photo[3:] > SOLID, photo[:3], tall_rgb[FRONT])
    on_grey = torch.where(
        tall_alpha > 0, tall_rgb * tall_alpha + 0.5 * (1 - tall_alpha), torch.full_like(tall_rgb, 0.5)
    )
    return SixViews(rgb=on_grey, ccm=maps_of(tall_depth, tall_alpha), alpha=tall_alpha)


def seen_on(views: SixViews, depth: Tensor, alpha: Tensor) -> SixViews:
    """The same colours on another surface: what the views would show if the object were the finished one.

    depth: [6 S S] and alpha: [6 1 S S] of that surface, S as in views. Where it reaches past the views'
    own outlines their colours are carried outwards, so that no background is painted on it.
    """
    carried = spread(views.rgb, views.alpha > 1 - 1e-3, wanted=alpha > SOLID)
    rgb = torch.where(views.alpha > SOLID, views.rgb, carried)
    return SixViews(rgb=rgb, ccm=maps_of(depth, alpha), alpha=alpha)


def spread(images: Tensor, solid: Tensor, *, wanted: Tensor | None = None) -> Tensor:
    """Carry values outwards from the object over the background: [6 C S S], bool [6 1 S S].

    Enlarging, and sampling at an outline, then never mixes the object with what lies behind it.
    Each doubling of the scale fills what the finer one left empty, so a few rounds reach the frame.

    wanted: bool [6 1 S S], where values are read; it goes no further than it must. None: everywhere.
    """
    size_px = images.shape[-1]
    known = solid.to(images.dtype)
    total, weight = images * known, known
    filled, settled = total.clone(), known > 0
    idle = torch.zeros_like(settled) if wanted is None else ~wanted
    for level in range(1, size_px.bit_length() + 1):
        side = max(1, size_px >> level)
        coarse, coarse_weight = (functional.adaptive_avg_pool2d(t, side) for t in (total, weight))
        up, up_weight = (
            functional.interpolate(t, size=(size_px, size_px), mode="bilinear")
            for t in (coarse, coarse_weight)
        )
        reached = (up_weight > 1e-6) & ~settled
        filled = torch.where(reached, up / up_weight.clamp_min(1e-6), filled)
        settled = settled | reached
        if (settled | idle).all():
            break  # coarser levels reach nothing more
    return filled


def _axes(view: View) -> tuple[int, int, int]:
    """Which axes of a volume [B x y z] run along a view's rows, columns and line of sight."""
    row, column = (next(i for i in range(3) if axis[i]) for axis in (view.up, view.right))
    return row + 1, column + 1, view.depth_axis + 1


def _falling(view: View) -> list[int]:
    """Dimensions of a picture [B row column] along which the world's coordinate falls."""
    return [dim for dim, sign in ((1, -sum(view.up)), (2, sum(view.right))) if sign < 0]


def _outside(alpha: Tensor, depth: Tensor) -> Tensor:
    """How far outside the object the strictest view places each voxel of a cube as fine as the views.

    Returns [x y z] in world units.
    """
    size_px = depth.shape[-1]
    grid = centres(size_px)
    places = grid[:, None, None], grid[None, :, None], grid[None, None, :]
    strictest = torch.full((size_px,) * 3, -torch.inf)
    for view, outline, deep in zip(VIEWS, alpha[:, 0], depth, strict=True):
        strictest = torch.maximum(strictest, _contradiction(outline, deep, _look(view, *places, size_px)))
    return strictest


def _likeliest(outside: Tensor, depth: Tensor) -> Tensor:
    """World y behind each pixel of the front, [x z], where something most likely is.

    The depths of front and back are drawn upon the photo's own outline; where the views beside them
    say little, the middle between the two decides.
    """
    y = centres(depth.shape[-1])
    middle = _to_world((depth[FRONT] - mirror(depth[BACK], FRONT)) / 2, FRONT)
    away = (y[:, None] - middle[:, None]).abs()  # [x y z]
    return y[(_around(outside) + MIDDLE_PULL * away).argmin(1)]


def _around(volume: Tensor) -> Tensor:
    """Mean of a volume [x y z] over neighbours of the same depth, so that one voxel decides nothing alone."""
    slices = volume.transpose(0, 1)[:, None]  # [y 1 x z]
    return functional.avg_pool2d(slices, 5, stride=1, padding=2)[:, 0].transpose(0, 1)


def _half_thickness(shown: Tensor) -> Tensor:
    """Half of how deep the object is behind each pixel if it is as round as its outline, within limits."""
    from scipy.ndimage import distance_transform_edt

    inside = torch.from_numpy(distance_transform_edt(shown.numpy())).float() * (2 / len(shown))
    return inside.clamp(WALL / 2, THICKEST / 2)


def _smooth(values: Tensor, shown: Tensor) -> Tensor:
    """Blur [x z] within the outline alone, so that neighbours get nearly the same value."""
    weights = shown.float()[None, None]
    total = values[None, None] * weights
    for _ in range(3):  # three boxes make a bell
        total, weights = (functional.avg_pool2d(t, 7, stride=1, padding=3) for t in (total, weights))
    return (total / weights.clamp_min(1e-6))[0, 0]


def _contain(alpha: Tensor, depth: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Move every view so that it calls these voxels inside. voxels: [3 N], world coordinates."""
    size_px = depth.shape[-1]
    alpha, depth = alpha.clone(), depth.clone()
    x, y, z = voxels
    for index, view in enumerate(VIEWS):
        look = _look(view, x, y, z, size_px)
        flat = look.row * size_px + look.column
        reach = look.nearness + WALL / 2
        start = torch.where(alpha[index, 0] > SOLID, depth[index], -torch.ones(())).flatten()
        raised = start.scatter_reduce(0, flat, reach, reduce="amax")
        touched = (
            torch.zeros(size_px * size_px, dtype=torch.bool).index_fill(0, flat, True).view(size_px, size_px)
        )
        depth[index] = torch.where(touched, raised.view(size_px, size_px), depth[index])
        alpha[index, 0] = torch.where(touched, alpha[index, 0].clamp_min(WALL_COVERAGE), alpha[index, 0])
    return alpha, depth


def _to_world(picture: Tensor, view: int) -> Tensor:
    """Turn a picture [S S] so that its dimensions are the two world axes it shows, in their order, growing.

    For the front [x z], left [y z] and top [x y] and their opposites.
    """
    return picture[None].flip(_falling(VIEWS[view]))[0].T


def _to_picture(plane: Tensor, view: int) -> Tensor:
    """Turn it back."""
    return plane.T[None].flip(_falling(VIEWS[view]))[0]


def _look(view: View, x: Tensor, y: Tensor, z: Tensor, size_px: int) -> Pixels:
    """Where a view of S pixels sees points that lie on the pixel grid.

    Views look along the axes: of an open grid each answer keeps only the axes that it depends on.
    """
    u, v, near = (
        torch.as_tensor(sum(step * t for step, t in zip(axis, (x, y, z), strict=True) if step))
        for axis in (view.right, [-a for a in view.up], view.toward)
    )
    column, row = (((t + 1) * (size_px / 2) - 0.5).round().long() for t in (u, v))
    return Pixels(row, column, near)


def _contradiction(alpha: Tensor, depth: Tensor, look: Pixels) -> Tensor:
    """How far outside one view says each point is, in world units. alpha, depth: [S S]."""
    from scipy.ndimage import distance_transform_edt

    empty = alpha <= SOLID
    distance = torch.from_numpy(distance_transform_edt(empty.numpy())).to(depth) * (2 / depth.shape[-1])
    gap = look.nearness - depth[look.row, look.column]
    return torch.where(empty[look.row, look.column], distance[look.row, look.column], gap)


def _resize(images: Tensor, size_px: int) -> Tensor:
    return functional.interpolate(images, size=(size_px, size_px), mode="bicubic", align_corners=False)


def _sharpen(alpha: Tensor) -> Tensor:
    """Make an enlarged outline one pixel soft again instead of as soft as a pixel of the small view."""
    return ((alpha - SOLID) * 4 + SOLID).clamp(0, 1)
