"""Photos that were made to do harm: bombs, lies, circles, and good files with the damage they may take."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms

PNG_HEAD = b"\x89PNG\r\n\x1a\n"

SIDE_64_MP = 8000


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    # Pillow leaves settings of one save on the picture for the next.
    if "append_images" in options:
        options["append_images"] = [other.copy() for other in options["append_images"]]
    image.copy().save(stream, kind, **options)
    return stream.getvalue()


def encode_heic(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, **options)
    return stream.getvalue()


def corners(height: int = 24, width: int = 32) -> Image.Image:
    """A smooth picture that no turn or mirror leaves as it was."""
    row, col = np.mgrid[:height, :width]
    pixels = np.stack([row * 255 // height, col * 255 // width, 128 + 0 * row], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, interlaced: bool = False,
    before: bytes = b"", bytes_per_row: int | None = None, rows: int | None = None,
) -> bytes:  # fmt: skip
    """A black PNG of any size, without ever holding its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (bytes_per_row or -(-width * depth * channels // 8)))
    packer = zlib.compressobj(9)
    data = [packer.compress(row) for _ in range(rows or height)]
    return PNG_HEAD + head + before + chunk(b"IDAT", b"".join([*data, packer.flush()])) + chunk(b"IEND", b"")


def small_png(extra: bytes, *, end: bytes = b"") -> bytes:
    """A good little PNG with more chunks before its pixels and after them."""
    whole = encode(corners(), "PNG")
    return whole[:33] + extra + whole[33:-12] + end + whole[-12:]


def tiff(
    *entries: tuple[int, int, int, int],
    data: bytes = b"",
    order: str = "<",
    following: int = 0,
    place: int = 8,
) -> bytes:
    """A TIFF of one directory, as (tag, type, count, value or offset), and what lies behind it."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        packed = (
            struct.pack(order + "H", value) + b"\0\0"
            if (kind, count) == (3, 1)
            else struct.pack(order + "I", value)
        )
        body += struct.pack(order + "HHI", tag, kind, count) + packed
    return mark + struct.pack(order + "I", place) + body + struct.pack(order + "I", following) + data


def grey_tiff(
    width: int,
    height: int,
    *,
    strip_bytes: int,
    offset: int = 200,
    data: bytes = b"",
    more: tuple[tuple[int, int, int, int], ...] = (),
    following: int = 0,
    compression: int = 1,
) -> bytes:
    """A grey TIFF of one strip."""
    entries = (
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, strip_bytes),
    )  # fmt: skip
    raw = tiff(*sorted((*entries, *more)), following=following)
    return raw.ljust(offset, b"\0") + data if data else raw


def many_pages(pages: int) -> bytes:
    """A TIFF of so many directories, all with the same few pixels."""
    pixels, size = 32 * 32, 2 + 9 * 12 + 4
    raw = bytearray(b"II*\0" + struct.pack("<I", 8 + pixels) + bytes(pixels))
    for page in range(pages):
        following = 0 if page == pages - 1 else len(raw) + size
        one = grey_tiff(32, 32, strip_bytes=pixels, offset=8, following=following)
        raw += one[8 : 8 + size]
    return bytes(raw)


def progressive(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG that goes over its picture again and again, each time in a few bytes."""

    def segment(mark: int, data: bytes) -> bytes:
        return bytes([0xFF, mark]) + struct.pack(">H", len(data) + 2) + data

    blocks = -(-width // 8) * -(-height // 8)
    # One code of one bit, and what follows it: fifteen bits of how many blocks have nothing more.
    table = bytes([0x10, 1] + [0] * 15 + [0xE0])
    run, bits = (1 << 14) + (1 << 14) - 1, ""
    while blocks > 0:
        bits += "0" + format(min(run, blocks) - (1 << 14), "014b") if blocks >= 1 << 14 else ""
        blocks -= run if blocks >= 1 << 14 else blocks
    bits += "1" * (-len(bits) % 8)
    body = int(bits or "0", 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    head = b"\xff\xd8" + segment(0xDB, bytes([0]) + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    head += segment(0xC4, bytes([0x00, 1] + [0] * 15 + [0])) + segment(0xC4, table)
    first = segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0x00])) + bytes(
        -(-(-(-width // 8) * -(-height // 8)) // 8)
    )
    again = segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + body
    return head + first + again * scans + b"\xff\xd9"


def bmp_rle(width: int, height: int, data: bytes) -> bytes:
    """A BMP whose pixels are runs."""
    palette = bytes(1024)
    offset = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset)
    return (
        head
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
        + palette
        + data
    )


def resized(content: bytes, box: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC whose `ispe` says another size than its picture has."""
    at = content.index(box) + 8
    return content[:at] + struct.pack(">II", width, height) + content[at + 8 :]


def webp_canvas(content: bytes, width: int, height: int) -> bytes:
    """An extended WebP whose canvas says another size than its picture has."""
    at = content.index(b"VP8X") + 12
    return (
        content[:at]
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
        + content[at + 6 :]
    )


def webp_size(width: int, height: int) -> bytes:
    """A lossless WebP that says another size than it has pixels for."""
    content = bytearray(encode(corners(), "WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    flags = struct.unpack_from("<I", content, at)[0] >> 28
    struct.pack_into("<I", content, at, (width - 1) | (height - 1) << 14 | flags << 28)
    return bytes(content)


def exif_in_jpeg(exif: bytes) -> bytes:
    return encode(corners(), "JPEG", exif=b"Exif\0\0" + exif)


def frames(count: int, kind: str, **options: Any) -> bytes:
    pictures = [Image.new("RGB", (32, 32), (number % 256, number // 256, 0)) for number in range(count)]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)


def packed_text(size: int) -> bytes:
    """A PNG's text of zeros."""
    return chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(size), 9))


TOO_LARGE, TRUNCATED, UNREADABLE, FORMAT = (
    "E_IMG_TOO_LARGE",
    "E_IMG_TRUNCATED",
    "E_IMG_UNREADABLE",
    "E_IMG_FORMAT",
)
SLOW, PHOTO = "E_IMG_SLOW", "photo"

S = SIDE_64_MP
EXTENDED = encode(corners(), "WEBP", icc_profile=b"none")
AVIF, HEIC = encode(corners(64, 64), "AVIF"), encode_heic(corners(64, 64))

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a 64 MP grey PNG": (lambda: png(S, S, colour=0), PHOTO),
    "a 64 MP PNG of single bits": (lambda: png(S, S, depth=1, colour=0), PHOTO),
    "a 64 MP PNG of 16-bit grey": (lambda: png(S, S, depth=16, colour=0), PHOTO),
    "a 64 MP PNG of 16-bit RGBA": (lambda: png(S, S, depth=16, colour=6), PHOTO),
    "a 64 MP PNG of 16-bit grey and alpha": (lambda: png(S, S, depth=16, colour=4), PHOTO),
    "a 64 MP PNG with palette and alpha": (
        lambda: png(S, S, colour=3, before=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256))),
        PHOTO,
    ),
    "a PNG just above 64 MP": (lambda: png(S, S + 1, colour=0), TOO_LARGE),
    "a 196 MP PNG": (lambda: png(14000, 14000, depth=1, colour=0), TOO_LARGE),
    "a 100 MP PNG of 16-bit RGBA": (lambda: png(10000, 10000, depth=16, colour=6), TOO_LARGE),
    "a PNG of 65500²": (lambda: png(65500, 65500, rows=1), TOO_LARGE),
    "a PNG of 2³¹ − 1 rows": (lambda: png(2**31 - 1, 2**31 - 1, bytes_per_row=9, rows=1), TOO_LARGE),
    "a PNG that is one pixel wide": (lambda: png(1, 1_000_000, colour=0), "E_IMG_TOO_SMALL"),
    "an interlaced 36 MP PNG of 16-bit RGBA": (
        lambda: png(6000, 6000, depth=16, colour=6, interlaced=True, rows=12000),
        PHOTO,
    ),
    "a PNG with 400 MB of text": (lambda: small_png(packed_text(400_000_000)), UNREADABLE),
    "a PNG with 200 texts of 1 MB": (lambda: small_png(packed_text(1_000_000) * 200), UNREADABLE),
    "a PNG with 200 texts of 1 MB at its end": (
        lambda: small_png(b"", end=packed_text(1_000_000) * 200),
        UNREADABLE,
    ),
    "a PNG with zTXt without end": (
        lambda: small_png(chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(400_000_000), 9))),
        UNREADABLE,
    ),
    "a PNG with a profile of 400 MB": (
        lambda: small_png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(400_000_000), 9))),
        UNREADABLE,
    ),
    "a PNG with a chunk longer than itself": (
        lambda: small_png(struct.pack(">I", 0x7FFFFFFF) + b"teXt"),
        TRUNCATED,
    ),
    "a PNG of 5,000 frames": (lambda: frames(5000, "PNG"), PHOTO),
    "an APNG that says it has two milliard frames": (
        lambda: small_png(chunk(b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))),
        PHOTO,
    ),
    "a WebP of 5,000 frames": (lambda: frames(5000, "WEBP", lossless=True), PHOTO),
    "a GIF that is called PNG": (lambda: frames(300, "GIF"), FORMAT),
    "a TIFF of 10,000 pages": (lambda: many_pages(10_000), PHOTO),
    "a TIFF that follows itself": (
        lambda: grey_tiff(32, 32, strip_bytes=1024, data=bytes(1024), following=8),
        PHOTO,
    ),
    "a TIFF whose strip is said to be 4 GB": (
        lambda: grey_tiff(32, 32, strip_bytes=0xFFFFFFF0, data=bytes(1024)),
        PHOTO,
    ),
    "a TIFF whose strip lies behind its end": (
        lambda: grey_tiff(32, 32, strip_bytes=1024, offset=1 << 30),
        TRUNCATED,
    ),
    "a TIFF of 65500²": (lambda: grey_tiff(65500, 65500, strip_bytes=100, data=bytes(100)), TOO_LARGE),
    "a 64 MP TIFF without pixels": (lambda: grey_tiff(S, S, strip_bytes=100, data=bytes(100)), TRUNCATED),
    "a deflated 64 MP TIFF in one strip": (
        lambda: (lambda data: grey_tiff(S, S, strip_bytes=len(data), data=data, compression=8))(
            zlib.compress(bytes(S * S), 9)
        ),
        PHOTO,
    ),
    "a TIFF of one tile of 4 GP": (
        lambda: tiff(
            (256, 4, 1, 64),
            (257, 4, 1, 64),
            (258, 3, 1, 8),
            (259, 3, 1, 8),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
            (322, 4, 1, 65536),
            (323, 4, 1, 65536),
            (324, 4, 1, 300),
            (325, 4, 1, 1000),
            data=bytes(2000),
        ),
        UNREADABLE,
    ),
    "a TIFF with a tag of four milliard values": (
        lambda: grey_tiff(32, 32, strip_bytes=1024, data=bytes(1024), more=((40000, 12, 0xFFFFFFFF, 8),)),
        PHOTO,
    ),
    "a TIFF whose directory is its own sub-directory": (
        lambda: grey_tiff(
            32, 32, strip_bytes=1024, data=bytes(1024), more=((330, 4, 1, 8), (34665, 4, 1, 8))
        ),
        PHOTO,
    ),
    "a JPEG of 65500²": (lambda: progressive(65500, 65500, 0), TOO_LARGE),
    "a 64 MP JPEG without pixels": (lambda: progressive(S, S, 0)[:200], TRUNCATED),
    "a JPEG whose EXIF runs in a circle": (
        lambda: exif_in_jpeg(tiff((34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8), following=8)),
        PHOTO,
    ),
    "a JPEG whose EXIF says four milliard values": (
        lambda: exif_in_jpeg(tiff((274, 3, 0xFFFFFFFF, 8), (700, 7, 0xFFFFFFFF, 8))),
        PHOTO,
    ),
    "a WebP of 16383²": (lambda: webp_size(16383, 16383), TOO_LARGE),
    "a WebP just above 64 MP": (lambda: webp_size(S, S + 1), TOO_LARGE),
    "a 64 MP WebP without pixels": (lambda: webp_size(S, S), UNREADABLE),
    "a WebP whose canvas is larger than its picture": (lambda: webp_canvas(EXTENDED, S, S), UNREADABLE),
    "a WebP whose canvas is smaller than its picture": (lambda: webp_canvas(EXTENDED, 16, 16), UNREADABLE),
    "an AVIF that says it has 65500²": (lambda: resized(AVIF, b"ispe", 65500, 65500), FORMAT),
    "an AVIF that says it has 8000²": (lambda: resized(AVIF, b"ispe", S, S), PHOTO),
    "an AVIF that says it is smaller": (lambda: resized(AVIF, b"ispe", 32, 32), PHOTO),
    "an HEIC that says it has 65500²": (lambda: resized(HEIC, b"ispe", 65500, 65500), TOO_LARGE),
    "an HEIC that says it has 8000²": (lambda: resized(HEIC, b"ispe", S, S), UNREADABLE),
    "an HEIC that says it is smaller": (lambda: resized(HEIC, b"ispe", 32, 32), UNREADABLE),
    "a BMP of runs that lead beyond it": (lambda: bmp_rle(S, S, b"\0\2\xff\xff" * 2000), PHOTO),
    "a BMP of 65500²": (lambda: bmp_rle(65500, 65500, b""), TOO_LARGE),
    "a BMP upside down beyond all bounds": (lambda: bmp_rle(32, -(2**31), b""), TOO_LARGE),
}
"""How to make each, and what must become of it."""

SLOW_BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a progressive 64 MP JPEG of 20,000 scans": (lambda: progressive(S, S, 20_000), SLOW),
    "a PNG of fifteen million chunks": (lambda: small_png(chunk(b"teSt", b"") * 15_000_000), "E_IMG_MEMORY"),
    "a 64 MP BMP of runs of one pixel": (lambda: bmp_rle(S, S, b"\1\0" * (S * S)), UNREADABLE),
}

TABLES = {"bombs": BOMBS, "slow bombs": SLOW_BOMBS}


@cache
def seeds() -> dict[str, bytes]:
    """One small good file of each kind, with the parts that break: EXIF, profile, alpha, frames, palette."""
    image, wide = corners(), np.asarray(corners()).astype(np.uint16) * 257
    rgba, grey = image.convert("RGBA"), image.convert("L")
    palette = grey.convert("P")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9003: "2026:01:01 00:00:00"}
    extra = {
        "exif": exif.tobytes(),
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    import cv2

    return {
        "JPEG": encode(image, "JPEG", **extra),
        "JPEG, progressive": encode(image, "JPEG", progressive=True),
        "JPEG, CMYK": encode(image.convert("CMYK"), "JPEG"),
        "JPEG, grey": encode(grey, "JPEG", restart_marker_blocks=2),
        "MPO": encode(image, "MPO", save_all=True, append_images=[image]),
        "PNG": encode(rgba, "PNG", **extra),
        "PNG, palette": encode(palette, "PNG", transparency=10),
        "PNG, 16 bits": cv2.imencode(".png", wide)[1].tobytes(),
        "PNG, single bits": encode(image.convert("1"), "PNG"),
        "APNG": encode(image, "PNG", save_all=True, append_images=[rgba.convert("RGB").rotate(90)]),
        "WebP": encode(image, "WEBP"),
        "WebP, lossless": encode(rgba, "WEBP", lossless=True, **extra),
        "WebP, alpha": encode(half_transparent(rgba), "WEBP"),
        "WebP, frames": encode(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
        "TIFF": encode(image, "TIFF", **extra),
        "TIFF, LZW": encode(rgba, "TIFF", compression="tiff_lzw"),
        "TIFF, deflate": encode(palette, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, JPEG": encode(image, "TIFF", compression="jpeg"),
        "TIFF, fax": encode(image.convert("1"), "TIFF", compression="group4"),
        "TIFF, 16 bits": encode(Image.fromarray(wide[..., 0]), "TIFF"),
        "TIFF, pages": encode(image.copy(), "TIFF", save_all=True, append_images=[grey, palette]),
        "TIFF, other order": tiff(
            (256, 3, 1, 32), (257, 3, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, 32), (279, 4, 1, 1024), data=bytes(2000), order=">",
        ),
        "BMP": encode(image, "BMP"),
        "BMP, palette": encode(palette, "BMP"),
        "BMP, runs": bmp_rle(32, 32, b"\x20\1\0\0" * 32 + b"\0\1"),
        "AVIF": encode(image, "AVIF", **extra),
        "AVIF, alpha": encode(half_transparent(rgba), "AVIF"),
        "HEIC": encode_heic(image, **{"exif": exif.tobytes()}),
        "HEIC, alpha": encode_heic(half_transparent(rgba)),
    }  # fmt: skip


def half_transparent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.getchannel("R"))
    return image


CUT_EVERY = 64


@cache
def cuts() -> tuple[tuple[str, int], ...]:
    """Every good file, cut off at every 64th byte."""
    return tuple((name, end) for name, whole in seeds().items() for end in range(1, len(whole), CUT_EVERY))


def mutant(seed: int, index: int) -> bytes:
    """A good file that was damaged in a few ways; the same one for the same numbers."""
    dice = random.Random(f"{seed} {index}")
    files = list(seeds().values())
    content = bytearray(dice.choice(files))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        # Half of the hits go to the first bytes, where headers are.
        reach = max(1, min(dice.choice((128, len(content))), len(content)))
        at = dice.randrange(reach)
        length = min(dice.choice((1, 2, 4, 16, 64, 256)), max(0, len(content) - at))
        match dice.randrange(8):
            case 0:
                content[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                content[at : at + 1] = bytes([content[at] ^ 1 << dice.randrange(8)]) if content else b""
            case 2:  # a number, in either order
                number = dice.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF))
                content[at : at + 4] = number.to_bytes(4, dice.choice(("big", "little")))
            case 3:
                content[at : at + length] = bytes(length)
            case 4:
                del content[at : at + length]
            case 5:
                content[at:at] = content[at : at + length] * dice.choice((1, 2, 50))
            case 6:
                other = dice.choice(files)
                place = dice.randrange(len(other))
                content[at : at + length] = other[place : place + length]
            case 7:
                del content[dice.randrange(len(content) + 1) :]
                content = content or bytearray(b"\0")
    return bytes(content)


def iterate(kind: str, *, seed: int, first: int, last: int) -> Iterator[tuple[str, bytes, str]]:
    """Cases of one kind: what each is called, its bytes, and what must become of it, where that is known."""
    for index in range(first, last):
        match kind:
            case "mutants":
                yield f"mutant {seed} {index}", mutant(seed, index), ""
            case "cuts":
                name, end = cuts()[index]
                yield f"{name} cut at {end}", seeds()[name][:end], ""
            case "good files":
                name = list(seeds())[index]
                yield name, seeds()[name], PHOTO
            case _:
                name, (make, wanted) = list(TABLES[kind].items())[index]
                yield name, make(), wanted


def count(kind: str) -> int:
    """How many cases of a kind there are."""
    return len(cuts() if kind == "cuts" else {"good files": seeds(), **TABLES}[kind])
