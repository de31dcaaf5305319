"""The warp kernels of mesh/raster.py. Only WarpRaster imports this module: importing warp takes time.

Positions are sub-pixels (mesh/subpixels.py, SUBPIXELS), all edge tests are whole numbers.
"""
# Warp compiles these functions from their source: its decorators carry no types and its array
# annotations are calls, which it reads at definition (so no postponed annotations here).
# mypy: disable-error-code="valid-type, untyped-decorator, misc"

import warp as wp

from crm_cli.mesh import subpixels

# Warp has no mixed arithmetic: every whole number below must be a 64-bit one.
BITS = wp.constant(wp.int64(subpixels.SUBPIXEL_BITS))
SUBPIXELS = wp.constant(wp.int64(subpixels.SUBPIXELS))
CENTRE = wp.constant(wp.int64(subpixels.CENTRE))
ZERO = wp.constant(wp.int64(0))
ONE = wp.constant(wp.int64(1))
EMPTY = wp.constant(wp.int64(subpixels.EMPTY))
LAST_FACE = wp.constant(wp.int64(subpixels.LAST_FACE))
MAGNITUDE = wp.constant(wp.int32(subpixels.LAST_FACE))


@wp.func
def edge(corners: wp.array2d(dtype=wp.int64), a: wp.int64, b: wp.int64, x: wp.int64, y: wp.int64) -> wp.int64:
    """Return twice the signed area of the triangle (a, b, point)."""
    along_x = corners[b, 0] - corners[a, 0]
    along_y = corners[b, 1] - corners[a, 1]
    return along_x * (y - corners[a, 1]) - along_y * (x - corners[a, 0])


@wp.func
def threshold(corners: wp.array2d(dtype=wp.int64), a: wp.int64, b: wp.int64, winding: wp.int64) -> wp.int64:
    """Return the least weight that is inside: zero where the edge owns the centres on it, else one."""
    along_x = (corners[b, 0] - corners[a, 0]) * winding
    along_y = (corners[b, 1] - corners[a, 1]) * winding
    if along_y > ZERO or (along_y == ZERO and along_x > ZERO):
        return ZERO
    return ONE


@wp.func
def blend(
    u: wp.int64, v: wp.int64, w: wp.int64, depth_u: wp.float32, depth_v: wp.float32, depth_w: wp.float32
) -> wp.float32:
    """Interpolate depth."""
    weighted = wp.float64(u) * wp.float64(depth_u) + wp.float64(v) * wp.float64(depth_v)
    return wp.float32((weighted + wp.float64(w) * wp.float64(depth_w)) / wp.float64(u + v + w))


@wp.func
def pack(depth: wp.float32, face: wp.int64) -> wp.int64:
    """Make a key whose maximum is the nearest face and, at equal depth, the lowest index."""
    bits = wp.cast(depth + wp.float32(0.0), wp.int32)  # adding zero turns -0 into +0
    if bits < 0:
        bits = bits ^ MAGNITUDE  # negative floats order backwards
    return (wp.int64(bits) << wp.int64(32)) | (LAST_FACE - face)


@wp.kernel(enable_backward=False)
def draw(
    corners: wp.array2d(dtype=wp.int64),
    depths: wp.array(dtype=wp.float32),
    faces: wp.array2d(dtype=wp.int64),
    keys: wp.array2d(dtype=wp.int64),
) -> None:
    """Leave the greatest key at every pixel that the thread's triangle covers."""
    face = wp.tid()
    a = faces[face, 0]
    b = faces[face, 1]
    c = faces[face, 2]
    area = edge(corners, a, b, corners[c, 0], corners[c, 1])
    if area == ZERO:
        return
    winding = wp.sign(area)
    left = wp.min(wp.min(corners[a, 0], corners[b, 0]), corners[c, 0])
    right = wp.max(wp.max(corners[a, 0], corners[b, 0]), corners[c, 0])
    top = wp.min(wp.min(corners[a, 1], corners[b, 1]), corners[c, 1])
    bottom = wp.max(wp.max(corners[a, 1], corners[b, 1]), corners[c, 1])
    # Shifting right rounds down, also below zero.
    first_column = wp.max((left + CENTRE - ONE) >> BITS, ZERO)
    end_column = wp.min((right + CENTRE) >> BITS, wp.int64(keys.shape[1]))
    first_row = wp.max((top + CENTRE - ONE) >> BITS, ZERO)
    end_row = wp.min((bottom + CENTRE) >> BITS, wp.int64(keys.shape[0]))
    if first_column >= end_column or first_row >= end_row:
        return  # most triangles of a fine mesh lie between the centres of a small picture
    least_u = threshold(corners, b, c, winding)
    least_v = threshold(corners, c, a, winding)
    least_w = threshold(corners, a, b, winding)
    whole = area * winding
    depth_a = depths[a]
    depth_b = depths[b]
    depth_c = depths[c]
    # Weights are linear in whole numbers: steps from centre to centre give what `edge` gives at each.
    x = first_column * SUBPIXELS + CENTRE
    y = first_row * SUBPIXELS + CENTRE
    row_u = edge(corners, b, c, x, y) * winding
    row_v = edge(corners, c, a, x, y) * winding
    right_u = (corners[b, 1] - corners[c, 1]) * winding * SUBPIXELS
    right_v = (corners[c, 1] - corners[a, 1]) * winding * SUBPIXELS
    down_u = (corners[c, 0] - corners[b, 0]) * winding * SUBPIXELS
    down_v = (corners[a, 0] - corners[c, 0]) * winding * SUBPIXELS
    for row in range(wp.int32(first_row), wp.int32(end_row)):
        u = row_u
        v = row_v
        for column in range(wp.int32(first_column), wp.int32(end_column)):
            w = whole - u - v
            if u >= least_u and v >= least_v and w >= least_w:
                depth = blend(u, v, w, depth_a, depth_b, depth_c)
                wp.atomic_max(keys, row, column, pack(depth, wp.int64(face)))
            u += right_u
            v += right_v
        row_u += down_u
        row_v += down_v


@wp.func
def fragment(
    corners: wp.array2d(dtype=wp.int64),
    depths: wp.array(dtype=wp.float32),
    faces: wp.array2d(dtype=wp.int64),
    keys: wp.array2d(dtype=wp.int64),
    face_out: wp.array2d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.float32),
    depth_out: wp.array2d(dtype=wp.float32),
    row: wp.int32,
    column: wp.int32,
) -> None:
    """Turn a pixel's winning key into a fragment; empty pixels keep what they hold."""
    key = keys[row, column]
    if key == EMPTY:
        return
    face = LAST_FACE - (key & LAST_FACE)
    a = faces[wp.int32(face), 0]
    b = faces[wp.int32(face), 1]
    c = faces[wp.int32(face), 2]
    x = wp.int64(column) * SUBPIXELS + CENTRE
    y = wp.int64(row) * SUBPIXELS + CENTRE
    u = edge(corners, b, c, x, y)
    v = edge(corners, c, a, x, y)
    w = edge(corners, a, b, x, y)
    area = wp.float64(u + v + w)
    face_out[row, column] = face
    barycentric[row, column, 0] = wp.float32(wp.float64(u) / area)
    barycentric[row, column, 1] = wp.float32(wp.float64(v) / area)
    barycentric[row, column, 2] = wp.float32(wp.float64(w) / area)
    depth_out[row, column] = blend(u, v, w, depths[a], depths[b], depths[c])


@wp.kernel(enable_backward=False)
def resolve(
    corners: wp.array2d(dtype=wp.int64),
    depths: wp.array(dtype=wp.float32),
    faces: wp.array2d(dtype=wp.int64),
    keys: wp.array2d(dtype=wp.int64),
    face_out: wp.array2d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.float32),
    depth_out: wp.array2d(dtype=wp.float32),
) -> None:
    """Make the fragment of the thread's pixel."""
    row, column = wp.tid()
    fragment(corners, depths, faces, keys, face_out, barycentric, depth_out, row, column)


@wp.kernel(enable_backward=False)
def resolve_row(
    corners: wp.array2d(dtype=wp.int64),
    depths: wp.array(dtype=wp.float32),
    faces: wp.array2d(dtype=wp.int64),
    keys: wp.array2d(dtype=wp.int64),
    face_out: wp.array2d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.float32),
    depth_out: wp.array2d(dtype=wp.float32),
) -> None:
    """Make the fragments of the thread's row: a CPU finds its next pixel sooner than a thread its first."""
    row = wp.tid()
    for column in range(keys.shape[1]):
        fragment(corners, depths, faces, keys, face_out, barycentric, depth_out, row, column)
