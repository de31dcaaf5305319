"""The warp kernels of learn/solid.py and learn/visibility.py, imported late: importing warp takes time."""
# Warp compiles these functions from their source: its decorators carry no types and its array
# annotations are calls, which it reads at definition (so no postponed annotations here).
# mypy: disable-error-code="valid-type, untyped-decorator, misc, index, no-any-return"

import warp as wp

MARGIN = wp.constant(1e-5)
"""Half width of the box around a ray: float32 resolves 2e-5 at the fortieth part."""

NONE = wp.constant(0)


@wp.func
def side_of(mesh: wp.uint64, a: int, b: int, x: float, y: float) -> float:
    """Say on which side of an edge, seen from above, a place lies: ±1.

    The edge is always taken from its lower to its higher vertex, so that the two faces which share it
    agree on who has the place: a ray through an edge is counted once.
    """
    points = wp.mesh_get(mesh).points
    p = points[wp.min(a, b)]
    q = points[wp.max(a, b)]
    value = (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
    # On the edge itself, the place counts as moved a little along +x, and much less along +y.
    if value == 0.0:
        value = p[1] - q[1]
    if value == 0.0:
        value = q[0] - p[0]
    side = wp.where(value < 0.0, -1.0, 1.0)
    return wp.where(a > b, -side, side)


@wp.func
def winding(mesh: wp.uint64, p: wp.vec3, top: float) -> int:
    """Count how often a ray straight up leaves the surface, less how often it enters."""
    count = int(NONE)
    face = int(NONE)
    query = wp.mesh_query_aabb(
        mesh, p - wp.vec3(MARGIN, MARGIN, 0.0), wp.vec3(p[0] + MARGIN, p[1] + MARGIN, top)
    )
    indices = wp.mesh_get(mesh).indices
    points = wp.mesh_get(mesh).points
    while wp.mesh_query_aabb_next(query, face):
        i = indices[3 * face]
        j = indices[3 * face + 1]
        k = indices[3 * face + 2]
        side = side_of(mesh, i, j, p[0], p[1])
        if side == side_of(mesh, j, k, p[0], p[1]) and side == side_of(mesh, k, i, p[0], p[1]):
            normal = wp.cross(points[j] - points[i], points[k] - points[i])
            if normal[2] != 0.0:
                away = points[i] - p
                if (normal[0] * away[0] + normal[1] * away[1]) / normal[2] + away[2] > 0.0:
                    count += int(side)
    return count


@wp.kernel
def measure(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    reach: float,
    spacing: float,
    result: wp.array(dtype=float),
) -> None:
    """Measure one place against every part: the smallest of their signed distances, at most `reach`."""
    i = wp.tid()
    best = float(reach)
    for part in range(lower.shape[0]):
        p = places[i] + wp.vec3(spacing * float(part), 0.0, 0.0)
        gap = wp.length(p - wp.max(wp.min(p, upper[part]), lower[part]))
        if gap == 0.0 and winding(mesh, p, upper[part][2] + 0.01) > 0:
            inside = wp.mesh_query_point_no_sign(mesh, p, reach)
            depth = float(reach)
            if inside.result:
                depth = wp.length(p - wp.mesh_eval_position(mesh, inside.face, inside.u, inside.v))
            best = wp.min(best, -depth)
        elif gap < best:
            outside = wp.mesh_query_point_no_sign(mesh, p, best)
            if outside.result:
                at = wp.mesh_eval_position(mesh, outside.face, outside.u, outside.v)
                best = wp.min(best, wp.length(p - at))
    result[i] = best


FAR = wp.constant(8.0)
"""Longer than any line through the cube of the world."""

BESIDE = wp.constant(0.004)
"""A pixel of 512: a gap that one view sees through is wider."""


@wp.kernel
def look_out(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    axes: int,
    leaks: int,
    result: wp.array(dtype=int),
) -> None:
    """Say whether a place sees far away: along one of the first `axes` directions, or `leaks` others.

    Along an axis it must see so from beside itself, too.
    """
    i = wp.tid()
    free = int(NONE)
    for k in range(directions.shape[0]):
        if free < leaks:
            d = directions[k]
            if not wp.mesh_query_ray_anyhit(mesh, places[i], d, FAR):
                if k >= axes:
                    free += 1
                elif not wp.mesh_query_ray_anyhit(
                    mesh, places[i] + BESIDE * wp.vec3(d[1], d[2], d[0]), d, FAR
                ):
                    free += leaks
    result[i] = wp.where(free >= leaks, 1, 0)


@wp.kernel
def measure_shell(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    seen: wp.array(dtype=int),
    is_sheet: wp.array(dtype=int),
    thin: float,
    reach: float,
    result: wp.array(dtype=float),
) -> None:
    """Measure one place against a surface: negative where it is not seen, or within a sheet."""
    i = wp.tid()
    distance = float(reach)
    nearest = wp.mesh_query_point_no_sign(mesh, places[i], reach + thin)
    if nearest.result:
        at = wp.mesh_eval_position(mesh, nearest.face, nearest.u, nearest.v)
        distance = wp.length(places[i] - at)
        if seen[i] == 1 and is_sheet[nearest.face] == 1:
            distance -= thin
    if seen[i] == 0:
        distance = -distance
    result[i] = wp.clamp(distance, -reach, reach)
