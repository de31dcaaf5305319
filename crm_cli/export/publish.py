"""Write an asset so that its files keep the limits of their target, and say where they do not.

Limits are held against the written files (see measure.py). While one is broken, the repair that costs least
is made and the files are written again: a lighter picture format, a smaller texture, fewer triangles. What no
repair mends is flagged, never hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crm_cli.export.measure import Measured, measure
from crm_cli.export.scene import METRES_PER_UNIT, build_scene, shrink_texture
from crm_cli.export.size import Fit, fit
from crm_cli.export.writers import write_asset
from crm_cli.names import SLUG, lod_names
from crm_cli.preset import Exporting, Limiting
from crm_cli.records import LimitCheck, Publication, RealSize, TexturedMesh, UnwrappedMesh

Coarser = Callable[[UnwrappedMesh, int], UnwrappedMesh]
"""Simplifies to about so many faces under the same texture; more where fewer would tear the surface."""

QUALITIES = (90, 80, 70)
"""Of pictures that lose detail, one after the other; below, blocks of 8 texels show on plain products."""

MIN_FACES = 500
"""Fewer are no product any more, whatever the limit."""

HEADROOM = 0.97
"""Share of a limit to aim for: what simplification leaves and how seams split it is known only afterwards."""

LEVEL_SLACK = 1.1
"""So much heavier a level may be than asked: engines choose levels by size on the screen, not by count."""

MAX_REPAIRS = 24
"""Each makes the files smaller; a preset that needs more asks for what cannot be."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Published:
    """An asset as it was written."""

    files: tuple[Path, ...]
    unwrapped: UnwrappedMesh
    """The finest geometry that a file holds."""
    publication: Publication


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Draft:
    """What is about to be written; a repair makes another one of it."""

    unwrapped: UnwrappedMesh
    texture_px: int
    export: Exporting


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was given up, and for which limit."""

    what: str
    before: str
    after: str
    broken: LimitCheck

    @property
    def words(self) -> str:
        """Say it as a person may read it."""
        return f"{self.what} {self.before}→{self.after} to keep {_amount(self.broken)}"


def publish(
    textured: TexturedMesh,
    folder: Path,
    stem: str,
    *,
    export: Exporting,
    limits: Limiting,
    provenance: Mapping[str, str],
    coarser: Coarser,
    size: RealSize | None = None,
) -> Published:
    """Write one asset as `folder/stem.*`, or as a chain `stem_lod0.*`, …, within its limits where it can be.

    size: what the product measures, as far as somebody knows; unknown, the asset keeps a size of its own.
    """
    return _Publishing(
        textured=textured,
        folder=folder,
        stems=lod_names(stem, export.lods),
        limits=limits,
        provenance=provenance,
        coarser=coarser,
        size=size,
    ).publish(export)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Publishing:
    """One asset on its way into files."""

    textured: TexturedMesh
    folder: Path
    stems: Sequence[str]
    limits: Limiting
    provenance: Mapping[str, str]
    coarser: Coarser
    size: RealSize | None

    def publish(self, export: Exporting) -> Published:
        """Write the finest files until they keep their limits, then the rest of the chain."""
        fitted = fit(self.textured.mesh.vertices, self.size) if self.size else None
        shares = sorted(export.lods, reverse=True)
        draft = Draft(
            unwrapped=self._thinned(self.textured.unwrapped, shares[0]),
            texture_px=self.textured.texture.shape[0],
            export=export,
        )
        repairs: list[Repair] = []
        while True:
            files, checks = self._written(draft, self.stems[0], fitted)
            mended = next(self._mended(draft, checks), None) if len(repairs) < MAX_REPAIRS else None
            if mended is None:
                break
            draft, repair = mended
            repairs.append(repair)
            # A texture of another format has another name.
            for file in files:
                file.unlink()
        for share, stem in zip(shares[1:], self.stems[1:], strict=True):
            level = replace(draft, unwrapped=self._thinned(draft.unwrapped, share / shares[0]))
            more, more_checks = self._written(level, stem, fitted)
            reached = self._lod_check(more, _faces_of(draft.unwrapped, share / shares[0]))
            files, checks = [*files, *more], [*checks, *more_checks, reached]
        told = _together(repairs)
        return Published(
            files=tuple(files),
            unwrapped=draft.unwrapped,
            publication=Publication(
                checks=tuple(_credited(check, told) for check in [*checks, *self._aspect(fitted)]),
                mended=tuple(repair.words for repair in told),
                size_mm=fitted.size_mm if fitted else None,
            ),
        )

    def _thinned(self, unwrapped: UnwrappedMesh, share: float) -> UnwrappedMesh:
        """Keep a share of the triangles."""
        if share == 1.0:
            return unwrapped
        return self.coarser(unwrapped, _faces_of(unwrapped, share))

    def _lod_check(self, files: Sequence[Path], faces: int) -> LimitCheck:
        """Say whether a level of a chain came out as light as it was asked for."""
        found = measure(next(_by_format(files)))
        is_kept = found.triangles <= faces * LEVEL_SLACK
        return LimitCheck(
            limit="lods", file=found.file, allowed=faces, found=found.triangles, is_kept=is_kept
        )

    def _written(self, draft: Draft, stem: str, fitted: Fit | None) -> tuple[list[Path], list[LimitCheck]]:
        """Write one level in every format, and hold what was written against the limits."""
        provenance = {**self.provenance, **_sizes(self.size, fitted)}
        scene = build_scene(
            replace(self.textured, unwrapped=draft.unwrapped),
            provenance=provenance,
            metres_per_unit=fitted.metres_per_unit if fitted else METRES_PER_UNIT,
        )
        if draft.texture_px != scene.texture.shape[0]:
            scene = shrink_texture(scene, size_px=draft.texture_px)
        files = write_asset(scene, self.folder, stem, draft.export)
        checks = [check for group in _by_format(files) for check in self._checked(group)]
        return files, checks

    def _checked(self, files: Sequence[Path]) -> Iterator[LimitCheck]:
        """Hold one format's files against every limit there is."""
        limits = self.limits
        counted = ("triangles", "vertices", "texture_px", "file_bytes")
        if limits.square_texture or any(getattr(limits, name) for name in counted):
            found = measure(files)
            for name in counted:
                if getattr(limits, name):
                    yield _at_most(name, found, getattr(limits, name))
            if limits.square_texture:
                is_kept = found.has_square_texture
                yield LimitCheck(
                    limit="square_texture",
                    file=found.file,
                    allowed=0,
                    found=int(not is_kept),
                    is_kept=is_kept,
                )
        if limits.slugs:
            odd = sum(not SLUG.fullmatch(file.stem) for file in files)
            yield LimitCheck(limit="slugs", file=files[0].name, allowed=0, found=odd, is_kept=not odd)

    def _aspect(self, fitted: Fit | None) -> Iterator[LimitCheck]:
        """Hold the asset's proportions against the listing's."""
        allowed = self.limits.aspect
        if fitted and allowed:
            mismatch = round(fitted.mismatch, 4)
            yield LimitCheck(
                limit="aspect", file="", allowed=allowed, found=mismatch, is_kept=mismatch <= allowed
            )

    def _mended(self, draft: Draft, checks: Sequence[LimitCheck]) -> Iterator[tuple[Draft, Repair]]:
        """Yield repairs that bring a broken limit nearer, the one that costs least first."""
        for name, repairs in _REPAIRS.items():
            broken = [check for check in checks if check.limit == name and not check.is_kept]
            for repair in repairs if broken else ():
                mended = repair(self, draft, max(broken, key=lambda check: check.found / check.allowed))
                if mended is not None:
                    yield mended

    def _lighter_picture(self, draft: Draft, broken: LimitCheck) -> tuple[Draft, Repair] | None:
        """Let the texture lose what nobody sees."""
        if draft.export.texture != "png":
            return None
        repair = Repair(what="texture", before="png", after="jpeg", broken=broken)
        return replace(draft, export=replace(draft.export, texture="jpeg")), repair

    def _poorer_picture(self, draft: Draft, broken: LimitCheck) -> tuple[Draft, Repair] | None:
        """Let the texture lose what few see."""
        before = draft.export.texture_quality
        quality = next((step for step in QUALITIES if step < before), None)
        if quality is None:
            return None
        repair = Repair(what="texture quality", before=str(before), after=str(quality), broken=broken)
        return replace(draft, export=replace(draft.export, texture_quality=quality)), repair

    def _smaller_texture(self, draft: Draft, broken: LimitCheck) -> tuple[Draft, Repair] | None:
        """Halve the texture, as long as it says something."""
        half = draft.texture_px // 2
        if half < max(self.limits.min_texture_px, 1):
            return None
        repair = Repair(what="texture px", before=str(draft.texture_px), after=str(half), broken=broken)
        return replace(draft, texture_px=half), repair

    def _fewer_triangles(self, draft: Draft, broken: LimitCheck) -> tuple[Draft, Repair] | None:
        """Simplify as far as the limit asks; what is counted falls about as the triangles do.

        The whole surface is simplified anew, so that errors do not add up from one repair to the next.
        """
        before = len(draft.unwrapped.mesh.faces)
        headroom = 1.0 if broken.limit == "triangles" else HEADROOM
        wanted = max(int(before * headroom * broken.allowed / broken.found), MIN_FACES)
        unwrapped = self.coarser(self.textured.unwrapped, wanted)
        after = len(unwrapped.mesh.faces)
        if after >= before:
            return None
        repair = Repair(what="triangles", before=str(before), after=str(after), broken=broken)
        return replace(draft, unwrapped=unwrapped), repair


_Repairing = Callable[[_Publishing, Draft, LimitCheck], tuple[Draft, Repair] | None]

_REPAIRS: Mapping[str, tuple[_Repairing, ...]] = {
    "texture_px": (_Publishing._smaller_texture,),
    "triangles": (_Publishing._fewer_triangles,),
    "vertices": (_Publishing._fewer_triangles,),
    "file_bytes": (
        _Publishing._lighter_picture,
        _Publishing._poorer_picture,
        _Publishing._smaller_texture,
        _Publishing._fewer_triangles,
    ),
}
"""Limit → what mends it, in the order of what it costs. Bytes come last: other repairs save some as well."""


def _by_format(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Put each main file together with the companions it refers to."""
    companions = {".obj": (".mtl", ".png", ".jpg"), ".usdc": (".png", ".jpg")}
    for main in files:
        if main.suffix in (".glb", ".usdz", *companions):
            wanted = companions.get(main.suffix, ())
            yield [main, *(file for file in files if file.suffix in wanted)]


def _at_most(name: str, found: Measured, allowed: int) -> LimitCheck:
    amounts = {
        "triangles": found.triangles,
        "vertices": found.vertices,
        "texture_px": found.texture_px,
        "file_bytes": found.size_bytes,
    }
    return LimitCheck(
        limit=name, file=found.file, allowed=allowed, found=amounts[name], is_kept=amounts[name] <= allowed
    )


def _faces_of(unwrapped: UnwrappedMesh, share: float) -> int:
    """How many triangles a share of a surface is."""
    return max(round(share * len(unwrapped.mesh.faces)), 1)


def _together(repairs: Sequence[Repair]) -> list[Repair]:
    """Put steps of one repair for one limit together, so that a person reads its start and its end."""
    told: dict[tuple[str, str], Repair] = {}
    for repair in repairs:
        first = told.get((repair.what, repair.broken.limit), repair)
        told[repair.what, repair.broken.limit] = replace(repair, before=first.before)
    return list(told.values())


def _credited(check: LimitCheck, repairs: Sequence[Repair]) -> LimitCheck:
    """Say what was given up to keep a limit."""
    words = "; ".join(repair.words for repair in repairs if repair.broken.limit == check.limit)
    return replace(check, mended=words) if words else check


def _amount(check: LimitCheck) -> str:
    """A limit as people say it."""
    if check.limit == "file_bytes":
        unit, noun = (1_000_000, "MB") if check.allowed >= 1_000_000 else (1000, "KB")
        return f"{check.allowed / unit:g} {noun}"
    return f"{check.allowed:.0f} {'px' if check.limit == 'texture_px' else check.limit}"


def _sizes(listed: RealSize | None, fitted: Fit | None) -> dict[str, str]:
    """What a file says of its size: the asset's, and what its listing asked for."""
    if listed is None or fitted is None:
        return {}
    return {"listed_size_mm": str(listed), "size_mm": str(fitted.size_mm)}
