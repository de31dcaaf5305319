"""Telling a subject from its backdrop by colour alone, for photos without alpha.

Product photos stand before something smooth: paper, a wall, a gradient, with soft light and shadow on it.
The backdrop is therefore grown from the frame inwards across everything smooth that keeps the colour its
surroundings predict; what it cannot reach is the subject. That keeps white parts on white paper, where a
colour model alone (GrabCut) loses them. Shadow is told from grey parts by its edge, which is soft. Where
the frame is too busy to grow from, GrabCut decides. The numbers below were chosen on rendered studio
photos, whose outlines are known, and on photographs.
(Rother, Kolmogorov, Blake: GrabCut, 2004)

Distances are CIE 1976 ΔE: 1 is just visible, 2.3 is noticed, 10 is another shade.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Colours = NDArray[np.float32]

WORK_PX = 384
"""Longest side at which the subject is found: rods of a chair are still three pixels wide."""

GRABCUT_PX = 256
"""Larger, and GrabCut takes soft shadows for the subject."""

RING = 0.03
"""Width of the frame that is believed to be mostly backdrop, in longest sides."""

WIDE_RING = 0.1
GROWN_FROM = 0.6
"""Share of a wide ring that the backdrop must have covered on its way inwards to be believed."""

SUBTLE = 2.3
"""ΔE below which a difference may be noise."""

STEADY = 1.5
"""ΔE between neighbours that clean paper stays below, and the outline of a white cup on grey does not."""

GAP = 1
"""The backdrop does not grow through gaps of twice this many pixels: an outline may fade for so long. With
2 it would stop between leaves."""

FADES = 0.5
"""Share of its change over nine pixels that an outline makes within three; a shadow's edge makes less."""

STEEP = 15.0
"""ΔE over three pixels that no soft edge reaches."""

BRUSHES = (6, 3)
"""Pieces of shadow narrower than twice this hang together by chance only; the broad ones are found first."""

JOINED = 0.85
"""Share of a shadow's contact with the backdrop that is soft. The rest is where a thin part lies between."""

TOUCHING = 0.2
"""Share of a shadow's surroundings that is backdrop: a white part beside a small hole has less."""

LAST = 5
"""Pixels beside an outline that JPEG disturbs: less than one of its blocks of eight."""

WIDE_BLUR = 8.0
"""Pixels from which on a blur is made at half the size: pictures then differ by a hundredth at most."""

NOISE = 0.02
"""The same in RGB: five of 255 levels, as JPEG leaves around an outline."""


class Scene(NamedTuple):
    """A photo at working size, and what is known of its backdrop."""

    rgb: Colours
    """[H W 3] in [0, 1]."""
    lab: Colours
    """The same in CIE L*a*b*."""
    backdrop: Mask
    """Surely backdrop."""
    behind: Colours
    """[H W 3] in [0, 1]: what the backdrop would look like without the subject."""
    contrast: NDArray[np.float32]
    """[H W]: ΔE between the photo and `behind`."""


def separate(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Find the subject: its alpha [H W], 0 without one, and its colours [H W 3] free of the backdrop's."""
    small = _reduce(rgb, WORK_PX)
    scene = grow_backdrop(small)
    if scene.backdrop[_ring(small.shape[:2], round(WIDE_RING * WORK_PX))].mean() >= GROWN_FROM:
        # A shadow is seen through holes, and holes may lie in shadow.
        scene = _up_to_outline(_with_holes(_with_shadow(_with_holes(scene))))
        subject = _without_litter(_tightened(~scene.backdrop, scene), scene)
    else:
        subject = grabcut(small)
        scene = _look_behind(small, scene.lab, ~_spread(subject, 3), scene.behind)
    if not subject.any():
        return np.zeros(rgb.shape[:2], np.uint8), rgb
    return _refine(rgb, subject, scene)


def grow_backdrop(rgb: Colours) -> Scene:
    """Grow the backdrop from the frame inwards, and predict it behind the subject.

    Each round predicts the backdrop from what is known of it nearby, and adds what is smooth, looks as
    predicted and is connected to the frame. Light that falls off is followed step by step.
    """
    lab = _lab(rgb)
    ring = _ring(rgb.shape[:2])
    fit, noise = _fit_frame(rgb, ring)
    slope = _slope(lab)
    # Not the whole ring: a subject may stand inside it without touching the frame itself.
    edge = _ring(rgb.shape[:2], 1)
    seed = edge & (_delta_e(lab, _lab(fit)) < max(5.0, 3 * noise))
    # Paper grain and JPEG blocks set what counts as smooth; real outlines are steeper than 5.
    smooth = slope < np.clip(4 * np.percentile(slope[seed], 75) if seed.any() else 0.0, STEADY, 5.0)
    tolerance = float(np.clip(3 * noise, 5.0, 9.0))
    scene = _look_behind(rgb, lab, seed, fit)
    for _ in range(12):
        # Two backdrops that meet (wall and floor) are mixed in the prediction, but not in the nearest pixel.
        beside = _delta_e(lab, _lab(_nearest(rgb, scene.backdrop))) < tolerance / 2
        like = (scene.contrast < tolerance) | beside
        reachable = smooth & like
        seed |= edge & reachable
        wide = _connected(_spread(reachable | seed, -GAP) | seed, seed)
        grown = _flood(wide, reachable, LAST)
        gained = int((grown & ~scene.backdrop).sum())
        scene = _look_behind(rgb, lab, grown, fit)
        if gained < 0.0005 * grown.size:
            break
    return scene


def grabcut(rgb: Colours) -> Mask:
    """Subject by GrabCut, everything but a narrow frame being a candidate."""
    small = np.round(_reduce(rgb, GRABCUT_PX) * 255).astype(np.uint8)
    labels = np.where(_ring(small.shape[:2]), cv2.GC_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    # Its mixtures start from a random clustering: the same photo must give the same subject.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.float32)
    soft = cv2.resize(found, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return _large_parts(soft > 0.5, at_least=0.05)


def _reduce(rgb: NDArray[np.uint8] | Colours, longest_px: int) -> Colours:
    """The picture in [0, 1] with no side longer than this."""
    scale = longest_px / max(rgb.shape[:2])
    colours = rgb.astype(np.float32) / 255 if rgb.dtype == np.uint8 else rgb
    if scale >= 1:
        return np.asarray(colours, np.float32)
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.float32)


def _lab(rgb: Colours) -> Colours:
    """CIE L*a*b* of sRGB in [0, 1]."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab), np.float32)


def _delta_e(lab: Colours, other: Colours) -> NDArray[np.float32]:
    """CIE 1976 colour difference."""
    return _length(lab - other)


def _length(colours: NDArray[np.floating]) -> NDArray[np.float32]:
    """Euclidean length over the channels."""
    return np.sqrt(_dot(colours, colours))


def _dot(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float32]:
    """Sum of products over the channels; numpy's own sums take five times as long over an axis so short."""
    return np.asarray(np.einsum("...c,...c->...", one, other), np.float32)


def _largest(colours: NDArray[np.floating]) -> NDArray[np.float32]:
    """The largest of the three channels; pair by pair for the same reason."""
    first, second, third = cv2.split(colours)
    return np.asarray(np.maximum(np.maximum(first, second), third), np.float32)


def _ring(shape: tuple[int, ...], width: int | None = None) -> Mask:
    """The frame of the picture, so many pixels wide."""
    width = width or max(2, round(RING * max(shape)))
    ring = np.ones(shape, bool)
    ring[width:-width, width:-width] = False
    return ring


def _fit_frame(rgb: Colours, ring: Mask) -> tuple[Colours, float]:
    """A quadratic colour surface through the frame, and how far (ΔE) the frame typically is from it.

    Reweighted least squares with Geman-McClure weights, so that a subject which runs out of the picture
    does not bend the surface.
    """
    height, width = ring.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    known, colours = terms[ring], rgb[ring]
    lab = _lab(colours[None])
    weight = np.ones(len(known))
    noise = 0.0
    for _ in range(15):
        weighted = known.T * weight
        # Not `solve`: a picture two pixels wide does not determine a quadratic.
        surface = np.linalg.lstsq(weighted @ known, weighted @ colours, rcond=None)[0]
        guess = np.clip(known @ surface, 0, 1).astype(np.float32)
        residual = _delta_e(lab, _lab(guess[None]))[0]
        noise = max(0.5, 1.4826 * float(np.median(residual)))
        weight = 1 / (1 + (residual / (2 * noise)) ** 2) ** 2
    return np.clip(terms @ surface, 0, 1).astype(np.float32), noise


def _slope(lab: Colours) -> NDArray[np.float32]:
    """Largest change of a Lab channel among the eight neighbours, after a little smoothing against noise."""
    calm = cv2.GaussianBlur(lab, (0, 0), 0.8)
    window = np.ones((3, 3), np.uint8)
    return _largest(cv2.dilate(calm, window) - cv2.erode(calm, window))


def _look_behind(rgb: Colours, lab: Colours, backdrop: Mask, fit: Colours) -> Scene:
    """Predict the backdrop from the known parts nearby, and from the frame's fit where none is near."""
    behind = _average(rgb, backdrop.astype(np.float32), max(rgb.shape) / 40, fit)
    return Scene(rgb, lab, backdrop, behind, _delta_e(lab, _lab(behind)))


def _average(rgb: Colours, weight: NDArray[np.float32], sigma: float, otherwise: Colours) -> Colours:
    """Weighted local mean colour; `otherwise` where nothing with weight is near."""
    # OpenCV's: numpy takes five times as long to repeat one channel along an axis so short.
    total = _blurred(weight, sigma)
    mean = _blurred(cv2.multiply(rgb, cv2.merge([weight] * 3)), sigma)
    mean = cv2.divide(mean, cv2.merge([np.maximum(total, 1e-6)] * 3))
    np.clip(mean, 0, 1, out=mean)
    far = np.flatnonzero(total <= 1e-3)
    mean.reshape(-1, 3)[far] = otherwise.reshape(-1, 3)[far]
    return np.asarray(mean, np.float32)


def _blurred(channels: NDArray[np.floating], sigma: float) -> NDArray[np.float32]:
    """Channels [H W C] or one, [H W], blurred; at half the size where nothing is left that is lost so."""
    height, width = channels.shape[:2]
    if sigma < WIDE_BLUR or min(height, width) < 2:
        return np.asarray(cv2.GaussianBlur(channels, (0, 0), sigma), np.float32)
    half = cv2.resize(channels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(half, (0, 0), sigma / 2)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _relit(lab: Colours, behind: Colours, *, darker: float, lighter: float, tint: float) -> Mask:
    """Where the photo is the backdrop in other light: so much darker or lighter, of nearly the same tint."""
    loss = behind[..., 0] - lab[..., 0]
    # a* and b* shrink with L* when a surface gets less of the same light; light thrown back by the surface
    # around deepens them again, at most to what they were.
    least = np.clip(lab[..., :1] / np.maximum(behind[..., :1], 1), 0, 1) * behind[..., 1:]
    along = behind[..., 1:] - least
    part = _dot(lab[..., 1:] - least, along) / np.maximum(_dot(along, along), 1e-6)
    off = _length(lab[..., 1:] - least - np.clip(part, 0, 1)[..., None] * along)
    return np.asarray((loss < darker) & (loss > -lighter) & (off < tint))


def _connected(area: Mask, seed: Mask) -> Mask:
    """The parts of an area that hold a seed."""
    count, part = cv2.connectedComponents(area.astype(np.uint8), connectivity=4)
    keep = np.zeros(count, bool)
    keep[part[seed & area]] = True
    return np.asarray(keep[part])


def _spread(mask: Mask, pixels: int) -> Mask:
    """The mask grown by some pixels (shrunk where negative)."""
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(mask.astype(np.uint8), window) > 0)


def _flood(seed: Mask, area: Mask, steps: int) -> Mask:
    """The seed grown within an area, so many pixels far."""
    grown, inside = seed.astype(np.uint8), (area | seed).astype(np.uint8)
    for step in range(steps):
        # In turns, which makes octagons of points: nearly as far along the diagonals as along the axes.
        window = cv2.getStructuringElement((cv2.MORPH_CROSS, cv2.MORPH_RECT)[step % 2], (3, 3))
        grown = cv2.dilate(grown, window) & inside
    return np.asarray(grown > 0)


def _with_shadow(scene: Scene) -> Scene:
    """The scene whose backdrop includes the shadow that the subject casts on it.

    A shadow is the backdrop in less light, without texture of its own, and joined to it by a soft edge.
    """
    lab = scene.lab
    soft = _soft(lab)
    # Judged once, before shadow has darkened what is expected: a white vase is no ground in better light.
    dim = soft & _relit(lab, _lab(scene.behind), darker=60.0, lighter=8.0, tint=6.0)
    known, things = scene.backdrop, np.zeros_like(scene.backdrop)
    for brush in BRUSHES:
        known, new = _absorb(dim & ~known & ~things, known, soft, brush)
        things |= new
    return _look_behind(scene.rgb, lab, known, scene.behind)


def _soft(lab: Colours) -> Mask:
    """Where colours change too gradually for the outline of a thing."""
    calm = cv2.GaussianBlur(lab, (0, 0), 0.8)
    near, far = (
        _largest(cv2.dilate(calm, window) - cv2.erode(calm, window))
        for window in (np.ones((3, 3), np.uint8), np.ones((9, 9), np.uint8))
    )
    return np.asarray((near < SUBTLE) | ((near < FADES * far) & (near < STEEP)))


def _absorb(dim: Mask, known: Mask, soft: Mask, brush: int) -> tuple[Mask, Mask]:
    """The backdrop with those dim pieces that are shadow on it; and the other pieces.

    Whole pieces are judged, not pixels: where the outline of a grey part fades into the shadow beside it,
    the shadow would leak into the part. Round by round, because shadow lies beside shadow.
    """
    known = known.copy()
    count, part, stats, _ = cv2.connectedComponentsWithStats(
        _spread(dim, -brush).astype(np.uint8), connectivity=4
    )
    waiting, before = list(range(1, count)), count
    while len(waiting) < before:
        before = len(waiting)
        for index in tuple(waiting):
            x, y, width, height = stats[index, :4]
            margin = 2 * brush + 10
            window = np.s_[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin]
            core = part[window] == index
            piece = _flood(core, dim[window] & (part[window] == 0), brush + 3)
            if _is_joined(piece, known[window], soft[window]):
                known[window] |= piece
                waiting.remove(index)
    return known, _flood(np.isin(part, waiting), dim & ~known, brush + 1)


def _is_joined(piece: Mask, known: Mask, soft: Mask) -> bool:
    """Whether a piece lies on the backdrop: much of it is around, and hardly any behind a sharp edge."""
    ring = _spread(piece, 6) & ~piece
    around = ring & known
    reached = _flood(piece, soft | known, 6) & around
    return bool(around.sum() > TOUCHING * ring.sum() and reached.sum() > JOINED * around.sum())


def _up_to_outline(scene: Scene) -> Scene:
    """The scene whose backdrop includes the last pixels before the outline, where JPEG left its traces.

    So few steps lead nowhere, and need less caution.
    """
    calm = (scene.contrast < 6) & (_slope(scene.lab) < 5)
    return _look_behind(scene.rgb, scene.lab, _flood(scene.backdrop, calm, LAST), scene.behind)


def _with_holes(scene: Scene) -> Scene:
    """The scene whose backdrop includes what shows of it through the subject.

    Round by round, because each hole tells what the backdrop looks like behind the next.
    """
    for _ in range(10):
        holes = _holes(scene)
        if not holes.any():
            break
        scene = _look_behind(scene.rgb, scene.lab, scene.backdrop | holes, scene.behind)
    return scene


def _holes(scene: Scene) -> Mask:
    """Holes in the subject that are not yet backdrop.

    A hole looks about as the backdrop around the subject predicts, and the subject walls it in; a part of the
    subject in the backdrop's colour fades into its neighbours instead.
    """
    near = _spread(scene.backdrop, round(max(scene.backdrop.shape) / 16))
    beside = _delta_e(scene.lab, _lab(_nearest(scene.rgb, scene.backdrop)))
    alike = (scene.contrast < 6) & ~scene.backdrop
    count, part, stats, _ = cv2.connectedComponentsWithStats(alike.astype(np.uint8), connectivity=4)
    holes = np.zeros_like(scene.backdrop)
    for index in range(1, count):
        x, y, width, height, area = stats[index]
        if area < 12:  # JPEG noise inside the subject
            continue
        window = np.s_[max(0, y - 3) : y + height + 3, max(0, x - 3) : x + width + 3]
        hole, contrast = part[window] == index, scene.contrast[window]
        wall = _spread(hole, 3) & ~_spread(hole, 1)
        walled = float(np.mean(contrast[wall] > 10))
        core = _spread(hole, -2)
        allowed = _allowance(core, beside[window], walled=walled, near=bool(near[window][hole].any()))
        if walled > 0.7 and contrast[core if core.any() else hole].mean() < allowed:
            holes[window] |= hole
    return holes


def _allowance(core: Mask, beside: NDArray[np.float32], *, walled: float, near: bool) -> float:
    """Mean contrast up to which a hole looks as the backdrop predicts."""
    if not core.any():  # all of it is rim, which the subject has tinged
        return 1.5 * SUBTLE if near else 0.0
    if not near:  # by chance a part of the subject may look like a backdrop far away
        return 1.4
    # Where two backdrops meet, the prediction mixes them, but the nearest pixel does not; the median, because
    # the nearest pixel of some lies beyond where they meet.
    if np.median(beside[core]) < SUBTLE / 2:
        return 2 * SUBTLE
    return 2.6 if walled > 0.9 else 2.1


def _tightened(subject: Mask, scene: Scene) -> Mask:
    """The subject without the seam that the slope of its own outline kept the backdrop from entering."""
    mixed = _mixture(scene.rgb, _in_front(subject, scene), scene.behind)
    seam = subject & ~_spread(subject, -3)
    return subject & ~(seam & (mixed < 0.5))


def _without_litter(subject: Mask, scene: Scene) -> Mask:
    """The subject without faint threads (a skirting board, the rim of a shadow) and without specks."""
    lab = scene.lab
    beside = _lab(_nearest(scene.rgb, scene.backdrop))
    faint = (_delta_e(lab, beside) < 12) | _relit(lab, beside, darker=40.0, lighter=8.0, tint=6.0)
    thread = subject & ~_spread(_spread(subject, -3), 4)
    return _large_parts(subject & ~(thread & faint), at_least=0.02)


def _nearest(rgb: Colours, known: Mask) -> Colours:
    """At every pixel the colour of the nearest known one."""
    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    places = np.zeros(int(label.max()) + 1, np.int64)
    index = np.flatnonzero(known)
    places[label.ravel()[index]] = index
    return np.asarray(rgb.reshape(-1, 3).take(places.take(label), axis=0))


def _large_parts(mask: Mask, *, at_least: float) -> Mask:
    """The parts of a mask with at least this share of the largest one's area."""
    _, part, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA].copy()
    area[0] = 0
    return np.asarray(((area >= at_least * area.max()) & (area > 0))[part])


def _refine(
    rgb: NDArray[np.uint8], subject: Mask, scene: Scene
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Alpha and colours at the photo's resolution.

    Across the outline alpha is how far a pixel has gone from the backdrop's colour to the subject's, both
    taken from nearby pixels of which we are sure.
    """
    near, inside = _spread(subject, 2), _spread(subject, -2)
    size = rgb.shape[1::-1]

    def enlarge(picture: Colours | Mask) -> Colours:
        return np.asarray(cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_LINEAR))

    rough = enlarge(subject)
    alpha = (rough > 0.5).astype(np.float32)
    at = np.nonzero((enlarge(near) > 0) & (enlarge(inside) < 1))
    front, behind = enlarge(_in_front(subject, scene))[at], enlarge(scene.behind)[at]
    here = np.asarray(rgb[at], np.float32) / np.float32(255)
    # A working pixel away from the outline there is only noise, and where subject and backdrop have one
    # colour only the outline found at working size can tell.
    mixed = np.minimum(_mixture(here, front, behind), 2 * enlarge(_spread(subject, 1))[at])
    mixed = np.where(_length(front - behind) > 2 * NOISE, mixed, rough[at])
    alpha[at] = mixed
    colours = rgb.copy()
    share = mixed[:, None]
    unmixed = (here - (1 - share) * behind) / np.maximum(share, 0.1)
    colours[at] = np.round(np.clip(np.where(share > 0.5, unmixed, front), 0, 1) * 255).astype(np.uint8)
    return np.round(alpha * 255).astype(np.uint8), colours


def _in_front(subject: Mask, scene: Scene) -> Colours:
    """The subject's colour near each pixel."""
    # Pixels of the outline are mixtures, and count only where a part is too thin to have others; then the
    # further from the backdrop, the less of it is in them.
    most = cv2.dilate(scene.contrast, np.ones((5, 5), np.uint8))
    purest = subject * (scene.contrast / np.maximum(most, SUBTLE)) ** 4
    sure = np.maximum(_spread(subject, -2), 0.02 * purest).astype(np.float32)
    return _average(scene.rgb, sure, 2.0, scene.rgb)


def _mixture(here: Colours, front: Colours, behind: Colours) -> NDArray[np.float32]:
    """Share of the subject in a pixel: how far it has gone from the backdrop's colour to the subject's.

    In RGB, where a pixel that both share is their weighted mean; in Lab it is not.
    """
    gone, whole = _length(here - behind), _length(front - behind)
    # 0.95: some of the subject's own pixels are nearer to the backdrop than their neighbours' mean.
    return np.asarray(np.clip((gone - NOISE) / np.maximum(0.95 * whole - NOISE, 0.01), 0, 1), np.float32)
