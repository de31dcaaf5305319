import hashlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from crm_cli.errors import PhotoError
from crm_cli.models import bounds
from crm_cli.models.photo import LONGEST_SIDE_PX, read_photo
from crm_cli.records import Photo

NAME = PurePosixPath("shoes/a")
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "BMP": {},
}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "AVIF": {"quality": 95}}


def corners(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """A smooth picture that no turn or mirror leaves as it was."""
    row, col = np.mgrid[:height, :width]
    return np.stack([row * 255 // height, col * 255 // width, 128 + 0 * row], axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(folder: Path, content: bytes, *, max_mpixels: float = 64.0) -> Photo:
    file = folder / "photo"
    file.write_bytes(content)
    return read_photo(file, path=NAME, max_mpixels=max_mpixels)


def refusal(folder: Path, content: bytes, **limits: float) -> PhotoError:
    with pytest.raises(PhotoError) as caught:
        read(folder, content, **limits)
    assert "\n" not in str(caught.value)
    return caught.value


def heic(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, **options)
    return stream.getvalue()


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and ends where its pixels should begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_come_back_exactly(tmp_path: Path, kind: str) -> None:
    content = encode(Image.fromarray(corners()), kind, **LOSSLESS[kind])
    photo = read(tmp_path, content)
    np.testing.assert_array_equal(photo.rgb, corners())
    assert (photo.path, photo.alpha, photo.warnings) == (NAME, None, ())
    assert photo.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", [*LOSSY, "HEIC"])
def test_lossy_files_come_back_closely(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(corners())
    content = heic(image, quality=95) if kind == "HEIC" else encode(image, kind, **LOSSY[kind])
    assert np.abs(read(tmp_path, content).rgb.astype(int) - corners()).mean() < 3


# What each orientation stores in place of the upright picture. (Exif 2.32 §4.6.4)
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_comes_back_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    rgba = np.dstack([corners(), corners()[..., :1]])
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](rgba)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read(tmp_path, encode(stored, kind, exif=exif.tobytes(), **LOSSLESS[kind]))
    np.testing.assert_array_equal(photo.rgb, rgba[..., :3])
    np.testing.assert_array_equal(photo.alpha, rgba[..., 3])


def test_a_turned_heic_is_not_turned_twice(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](corners())))
    rgb = read(tmp_path, heic(stored, quality=95, exif=exif.tobytes())).rgb
    assert np.abs(rgb.astype(int) - corners()).mean() < 3


def test_damaged_exif_is_a_warning(tmp_path: Path) -> None:
    content = encode(
        Image.fromarray(corners()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff", quality=95
    )
    photo = read(tmp_path, content)
    assert photo.rgb.shape == corners().shape


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (16, 1))
    photo = read(tmp_path, encode(Image.fromarray(ramp), kind))
    np.testing.assert_array_equal(photo.rgb, np.repeat((ramp // 257).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    import cv2

    wide = corners().astype(np.uint16) * 257
    photo = read(tmp_path, cv2.imencode(".png", wide[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(photo.rgb, corners())


def test_floating_point_pixels_are_refused_with_a_remedy(tmp_path: Path) -> None:
    error = refusal(tmp_path, encode(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF"))
    assert (error.code, error.remedy) == ("E_IMG_FORMAT", "export it with 8 or 16 bits")


def test_cmyk_becomes_rgb_with_a_warning(tmp_path: Path) -> None:
    photo = read(tmp_path, encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF"))
    np.testing.assert_array_equal(photo.rgb, np.full((32, 32, 3), (255, 0, 0), np.uint8))
    assert [warning.split()[-1] for warning in photo.warnings] == ["[W_IMG_CMYK]"]


def red_and_blue_exchanged() -> bytes:
    """The sRGB profile with the names of its red and blue primaries exchanged."""
    table = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    return table.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0)).convert(mode)
    photo = read(tmp_path, encode(image, "PNG", icc_profile=red_and_blue_exchanged()))
    assert np.abs(photo.rgb.astype(int) - (0, 0, 255)).max() <= 2
    assert photo.warnings == ()


def test_an_srgb_profile_changes_nothing_even_on_a_grey_photo(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = read(tmp_path, encode(Image.new("L", (32, 32), 100), "PNG", icc_profile=profile))
    assert np.abs(photo.rgb.astype(int) - 100).max() <= 1
    assert photo.warnings == ()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("profile", [b"no profile", red_and_blue_exchanged()[:200]])
def test_a_broken_profile_is_a_warning(tmp_path: Path, mode: str, profile: bytes) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0)).convert(mode)
    photo = read(tmp_path, encode(image, "TIFF", icc_profile=profile))
    np.testing.assert_array_equal(photo.rgb[0, 0], (255, 0, 0))
    assert [warning.split()[-1] for warning in photo.warnings] == ["[W_IMG_PROFILE]"]


def half_transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """A picture whose left half is transparent, in each way a file can say so."""
    grey = Image.new("L", (32, 32), 200)
    grey.paste(10, (0, 0, 16, 32))
    if mode in ("LA", "RGBA"):
        image = grey.convert(mode)
        image.putalpha(grey.point(lambda value: 255 if value == 200 else 0))
        return image, {}
    if mode == "RGB":
        return grey.convert("RGB"), {"transparency": (10, 10, 10)}
    return (grey, {"transparency": 10}) if mode == "L" else (grey.convert("P"), {"transparency": 10})


@pytest.mark.parametrize("mode", ["LA", "RGBA", "RGB", "L", "P"])
def test_transparency_is_kept_however_it_is_stored(tmp_path: Path, mode: str) -> None:
    image, options = half_transparent(mode)
    photo = read(tmp_path, encode(image, "PNG", **options))
    assert photo.alpha is not None
    assert (photo.alpha[:, :16] == 0).all() and (photo.alpha[:, 16:] == 255).all()
    assert (photo.rgb[:, 16:] == 200).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_used(tmp_path: Path, kind: str) -> None:
    first, second = Image.fromarray(corners()), Image.fromarray(255 - corners())
    photo = read(tmp_path, encode(first, kind, save_all=True, append_images=[second], **LOSSLESS[kind]))
    np.testing.assert_array_equal(photo.rgb, corners())
    assert [warning.split()[-1] for warning in photo.warnings] == ["[W_IMG_FRAMES]"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_a_large_photo_is_reduced(tmp_path: Path, mode: str) -> None:
    photo = read(tmp_path, encode(Image.new("RGB", (4000, 1000), "white").convert(mode), "PNG"))
    assert photo.rgb.shape == (512, LONGEST_SIDE_PX, 3)
    assert (photo.rgb == 255).all()


def test_a_large_jpeg_is_reduced_without_moving(tmp_path: Path) -> None:
    big = Image.fromarray(corners(800, 3200)).resize((6400, 1600), Image.Resampling.BILINEAR)
    rgb = read(tmp_path, encode(big, "JPEG", quality=95)).rgb.astype(int)
    assert np.abs(rgb - corners(512, LONGEST_SIDE_PX)).mean() < 2


def test_colours_under_transparency_do_not_bleed_when_reduced(tmp_path: Path) -> None:
    pixels = np.full((3000, 3000, 4), (255, 255, 255, 0), np.uint8)
    pixels[501:2402, 501:2402] = (200, 0, 0, 255)
    photo = read(tmp_path, encode(Image.fromarray(pixels), "PNG", compress_level=1))
    assert photo.alpha is not None
    assert photo.rgb[photo.alpha > 32][:, 1:].max() <= 4


def test_a_bomb_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    error = refusal(tmp_path, header_of_png(13000, 13000))
    assert str(error) == (
        "shoes/a: 13000x13000 is 169 MP, limit 64 MP [E_IMG_TOO_LARGE]; use --max-mpixels or downscale"
    )
    assert refusal(tmp_path, header_of_png(2**31 - 1, 2**31 - 1)).code == "E_IMG_TOO_LARGE"


def test_the_limit_is_the_callers_and_pillows_own_comes_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    content = encode(Image.fromarray(corners(100, 100)), "PNG")
    assert read(tmp_path, content, max_mpixels=0.01).rgb.shape == (100, 100, 3)
    assert refusal(tmp_path, content, max_mpixels=0.0099).code == "E_IMG_TOO_LARGE"
    assert refusal(tmp_path, header_of_png(20000, 20000), max_mpixels=1000).code == "E_IMG_TRUNCATED"
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (65000, 100)])
def test_a_photo_too_small_to_show_anything_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    assert refusal(tmp_path, encode(Image.new("L", size), "PNG")).code == "E_IMG_TOO_SMALL"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "E_IMG_EMPTY"),
        (b"hello", "E_IMG_FORMAT"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "E_IMG_FORMAT"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "E_IMG_FORMAT"),
        (encode(Image.new("RGB", (32, 32)), "GIF"), "E_IMG_FORMAT"),
        (encode(Image.fromarray(corners()), "PNG")[:-40], "E_IMG_TRUNCATED"),
        (encode(Image.fromarray(corners(200, 200)), "JPEG")[:-400], "E_IMG_TRUNCATED"),
        (b"\x00\x00\x00\x18ftypheic" + b"\x00" * 99, "E_IMG_FORMAT"),
    ],
)
def test_what_is_no_photo_is_refused_with_a_stable_code(tmp_path: Path, content: bytes, code: str) -> None:
    error = refusal(tmp_path, content)
    assert (error.code, error.kind) == (code, "input")
    assert error.cause.startswith("shoes/a: ")
    assert error.remedy


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path, tmp_path / "pipe", tmp_path / "gone", Path(os.devnull)):
        with pytest.raises(PhotoError, match="E_IMG_UNREADABLE") as caught:
            read_photo(file, path=NAME, max_mpixels=64)
        assert caught.value.kind == "io"


def test_heic_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(tmp_path, heic(Image.fromarray(corners())))
    assert (error.code, error.remedy) == ("E_IMG_HEIC", "pip install pillow-heif")


def test_running_out_of_memory_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", greedy)
    content = encode(Image.fromarray(corners()), "PNG")
    # Where memory is counted, it is the file that wants too much, and no other time or machine helps.
    error = refusal(tmp_path, content)
    assert (error.code, error.kind, error.remedy) == ("E_IMG_MEMORY", "input", "export it again")
    monkeypatch.setattr(bounds, "_address_space", lambda: None)
    error = refusal(tmp_path, content)
    assert (error.code, error.kind, error.remedy) == ("E_IMG_MEMORY", "oom", "use fewer --jobs")


def test_a_name_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"?")
    with pytest.raises(PhotoError) as caught:
        read_photo(tmp_path / "photo", path=PurePosixPath("a\n\x1b[2Jb"), max_mpixels=64)
    assert str(caught.value).isprintable()


def seeds() -> list[bytes]:
    """One small valid file of each kind, with the parts that break: EXIF, profile, alpha, frames, palette."""
    image = Image.fromarray(corners())
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {"exif": exif.tobytes(), "icc_profile": red_and_blue_exchanged()}
    palette, options = half_transparent("P")
    return [
        encode(image, "JPEG", **extra),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image.convert("RGBA"), "PNG", **extra),
        encode(palette, "PNG", **options),
        encode(image, "WEBP", save_all=True, append_images=[image]),
        encode(image, "TIFF", compression="tiff_lzw", **extra),
        encode(Image.fromarray(corners()[..., 0].astype(np.uint16)), "TIFF"),
        encode(image, "BMP"),
        encode(image, "AVIF"),
        heic(image, exif=exif.tobytes()),
    ]


FILES = seeds()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_a_photo_or_a_photo_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 8))):
        # Half of the hits go to the first bytes, where headers are.
        reach = data.draw(st.sampled_from([min(128, len(content)), len(content)]))
        content[data.draw(st.integers(0, reach - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(1, len(content)))
    try:
        photo = read(tmp_path, bytes(content[:cut]))
    except PhotoError as error:
        assert error.code.startswith("E_IMG_") and str(error).isprintable()
    else:
        assert photo.rgb.dtype == np.uint8 and max(photo.rgb.shape) <= LONGEST_SIDE_PX
