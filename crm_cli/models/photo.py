"""A file anyone may have sent → an upright sRGB photo, or one PhotoError that says what to do.

Nothing about the file is believed: its size is looked at before its pixels are, only named formats are
tried, memory and time are counted while they are, and whatever the decoders raise becomes a PhotoError, so
that one bad file never ends a run.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from crm_cli.errors import PhotoError
from crm_cli.models.bounds import TookTooLong, bounded
from crm_cli.names import display_name
from crm_cli.records import MAX_PHOTO_BYTES, Photo

LOG = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
"""What Pillow may try. Its other formats are rare in photo folders, and some run programs or take seconds."""

LONGEST_SIDE_PX = 2048
"""Larger photos are reduced while they are read: a subject that fills half the frame still covers the 1024 px
of the largest cut-out."""

SHORTEST_SIDE_PX = 16
"""Below, there is no outline to find."""

MEMORY_BYTES, MEMORY_BYTES_PER_PIXEL = 400_000_000, 16
"""What decoding may take: of all files of 64 MP that were tried, a WebP with alpha took most, 1.4 GB."""

CPU_S, CPU_S_PER_MPIXEL = 10.0, 0.3
"""Ten times what any sound file of 64 MP took; at 64 MP half a minute."""

BAND_ROWS = 256
"""How much of a 16-bit picture is narrowed at once: whole, it would need ten times its size."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""Brands after `ftyp` in files of the HEIF family. (ISO/IEC 23008-12, annex B)"""

UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright. (Exif 2.32 §4.6.4)"""

ORIENTATION_TAG = 0x0112


def read_photo(file: Path, *, path: PurePosixPath, max_mpixels: float) -> Photo:
    """Read one photo: first frame, turned upright, converted to 8-bit sRGB, at most LONGEST_SIDE_PX.

    Args:
        file: Where it is.
        path: What to call it, relative to the input folder.
        max_mpixels: Largest picture that is decoded, in 10⁶ pixels.
    """
    name = display_name(path)
    said: list[str] = []
    with _only_photo_errors(name, max_mpixels=max_mpixels):
        content = _read(file, name)
        image = _open(content, name, max_mpixels=max_mpixels, said=said)
        orientation = _orientation(image, said)
        profile = image.info.get("icc_profile")
        small = _shrink(_to_bytes(image, name), name)
        colours = _to_srgb(small.convert("RGB") if small.mode == "RGBA" else small, profile, said)
        alpha = small.getchannel("A") if small.mode == "RGBA" else None
        if orientation in UPRIGHT:
            colours = colours.transpose(UPRIGHT[orientation])
            alpha = alpha.transpose(UPRIGHT[orientation]) if alpha else None
    return Photo(
        path=path,
        rgb=np.array(colours),
        alpha=None if alpha is None else np.array(alpha),
        digest=hashlib.sha256(content).hexdigest(),
        warnings=tuple(said),
    )


def _read(file: Path, name: str) -> bytes:
    """All bytes of a regular file."""
    try:
        # A pipe would wait for its writer for ever, also one that has taken a photo's place just now.
        with open(file, "rb", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PhotoError(f"{name}: no regular file", code="E_IMG_UNREADABLE", kind="io")
            content = stream.read(MAX_PHOTO_BYTES + 1)
    except OSError as error:
        raise PhotoError(
            f"{name}: cannot be read ({error.strerror})", code="E_IMG_UNREADABLE", kind="io"
        ) from error
    if not content:
        raise PhotoError(f"{name}: the file is empty", code="E_IMG_EMPTY", remedy="copy or export it again")
    if len(content) > MAX_PHOTO_BYTES:
        raise PhotoError(
            f"{name}: the file has more than {MAX_PHOTO_BYTES // 1_000_000} MB",
            code="E_IMG_TOO_LARGE",
            remedy="export it smaller",
        )
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for anybody."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def _only_photo_errors(name: str, *, max_mpixels: float) -> Iterator[None]:
    """Hold the decoders to their bounds, and turn whatever they raise into a PhotoError."""
    is_counted = False
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's own limit knows neither ours nor the file's width and height; ours is checked in its place.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with (
            warnings.catch_warnings(record=True) as said,
            bounded(
                memory_bytes=int(MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * max_mpixels * 1e6),
                cpu_s=CPU_S + CPU_S_PER_MPIXEL * max_mpixels,
            ) as is_counted,
        ):
            warnings.simplefilter("always")
            yield
        for warning in said:
            LOG.debug("%s: %s", name, warning.message)
    except PhotoError:
        raise
    except MemoryError as error:
        # Where we set the limit it is the file's fault, and another try would end the same way.
        raise PhotoError(
            f"{name}: needs more memory than any picture of {_short(max_mpixels)} MP"
            if is_counted
            else f"{name}: out of memory while reading",
            code="E_IMG_MEMORY",
            remedy="export it again" if is_counted else "use fewer --jobs",
            kind="input" if is_counted else "oom",
        ) from error
    except TookTooLong as error:
        raise PhotoError(
            f"{name}: takes longer to decode than any picture of {_short(max_mpixels)} MP",
            code="E_IMG_SLOW",
            remedy="export it again",
        ) from error
    except Image.DecompressionBombError as error:
        raise PhotoError(
            f"{name}: far more pixels than the limit of {_short(max_mpixels)} MP",
            code="E_IMG_TOO_LARGE",
            remedy="use --max-mpixels or downscale",
        ) from error
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"{name}: not a picture in a format crm reads, or damaged from its first bytes on",
            code="E_IMG_FORMAT",
            remedy="use JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC",
        ) from error
    # Damaged files raise nearly every built-in exception somewhere in Pillow's plugins: no list is complete.
    except Exception as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        cut = "truncated" in text.lower()
        raise PhotoError(
            f"{name}: the file ends too early" if cut else f"{name}: damaged or unsupported ({text})",
            code="E_IMG_TRUNCATED" if cut else "E_IMG_UNREADABLE",
            remedy="copy or export it again",
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open(content: bytes, name: str, *, max_mpixels: float, said: list[str]) -> Image.Image:
    """Decode the first frame, JPEGs straight at a reduced size."""
    formats = [*FORMATS, *_heif(content, name)]
    if content[8:12] == b"WEBP":
        # Its decoder takes memory for the canvas before anybody can ask for its size.
        Image.MAX_IMAGE_PIXELS = int(max_mpixels * 1e6)
    image = Image.open(io.BytesIO(content), formats=formats)
    mpixels = image.width * image.height / 1e6
    if mpixels > max_mpixels:
        raise PhotoError(
            f"{name}: {image.width}x{image.height} is {_short(mpixels)} MP, limit {_short(max_mpixels)} MP",
            code="E_IMG_TOO_LARGE",
            remedy="use --max-mpixels or downscale",
        )
    # Phones' MPO files are not animated: behind the photo they keep its preview or depth.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        said.append("several frames or pages: the first is used [W_IMG_FRAMES]")
    image.draft(None, _reduced(image.size))
    image.load()
    return image


def _heif(content: bytes, name: str) -> list[str]:
    """Pillow's name for HEIC where the file is one, after teaching Pillow to read it."""
    if content[4:8] != b"ftyp" or content[8:12] not in HEIF_BRANDS:
        return []
    try:
        import pillow_heif
    except ImportError as error:
        # `mif1` and `msf1` are general brands, which AVIF files carry as well.
        if content[8:12] in (b"mif1", b"msf1") and b"avif" in content[12:64]:
            return []
        raise PhotoError(
            f"{name}: HEIC needs a library that is not installed",
            code="E_IMG_HEIC",
            remedy="pip install pillow-heif",
        ) from error
    pillow_heif.register_heif_opener()
    return ["HEIF"]


def _orientation(image: Image.Image, said: list[str]) -> int:
    """EXIF orientation, 1 where there is none; the TIFF and HEIF decoders have applied and removed theirs."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    # EXIF is a TIFF inside the file, as freely damaged as the file itself; the picture is still good.
    except MemoryError:
        raise
    except Exception as error:
        LOG.debug("unreadable EXIF: %s", error)
        said.append("unreadable EXIF: the photo may lie on its side [W_IMG_EXIF]")
        return 1


def _to_bytes(image: Image.Image, name: str) -> Image.Image:
    """The picture in a mode of 8-bit channels that can be resized: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I;16"):
        # convert() would clip at 255 instead of scaling; 65535 = 255 · 257.
        wide = np.asarray(image)
        narrow = np.zeros(wide.shape, np.uint8)
        for top in range(0, len(wide), BAND_ROWS):
            band = slice(top, top + BAND_ROWS)
            narrow[band] = (wide[band].astype(np.uint32) + 128) // 257
        return Image.fromarray(narrow)
    if image.mode in ("I", "F"):
        raise PhotoError(
            f"{name}: 32-bit pixels say neither what is black nor what is white",
            code="E_IMG_FORMAT",
            remedy="export it with 8 or 16 bits",
        )
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _shrink(image: Image.Image, name: str) -> Image.Image:
    """The picture at no more than LONGEST_SIDE_PX; colours under transparency do not bleed."""
    size = _reduced(image.size)
    if min(size) < SHORTEST_SIDE_PX:
        raise PhotoError(
            f"{name}: {image.width}x{image.height} px is too small or too narrow",
            code="E_IMG_TOO_SMALL",
            remedy=f"the short side needs {SHORTEST_SIDE_PX} px",
        )
    # reducing_gap 3: indistinguishable from resampling every pixel (Pillow's handbook), several times faster.
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height with the longest side at most LONGEST_SIDE_PX."""
    scale = min(1.0, LONGEST_SIDE_PX / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _to_srgb(image: Image.Image, profile: bytes | None, said: list[str]) -> Image.Image:
    """The picture in RGB; its colour profile, if it has a sound one, is applied."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == "RGB":  # also stands in many grey pictures
                image = image.convert("RGB")
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        # OSError: no profile at all; PyCMSError: a profile for another kind of picture.
        except (OSError, ImageCms.PyCMSError) as error:
            LOG.debug("unusable profile: %s", error)
            said.append("unusable colour profile: colours are taken as sRGB [W_IMG_PROFILE]")
        else:
            assert converted is not None  # only with inPlace
            return converted
    elif image.mode == "CMYK":
        said.append("CMYK without a colour profile: colours are approximate [W_IMG_CMYK]")
    return image.convert("RGB")


def _short(number: float) -> str:
    """A number with at most two decimals."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
