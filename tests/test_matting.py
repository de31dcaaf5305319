import sys
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from crm_cli.errors import EnvironmentProblem, PhotoError
from crm_cli.models.matting import (
    MATTES,
    AlphaMatte,
    GrabCutMatte,
    Matte,
    Matted,
    NoMatte,
    RembgMatte,
    cut_out,
    find_subject,
    whole_canvas,
)
from crm_cli.records import Cutout, Photo

Pixels = NDArray[np.uint8]


def photo_of(rgb: Pixels, alpha: Pixels | None = None, warnings: tuple[str, ...] = ()) -> Photo:
    return Photo(path=PurePosixPath("a.png"), rgb=rgb, alpha=alpha, digest="0" * 64, warnings=warnings)


def rectangle(height: int, width: int, rows: slice, columns: slice) -> Photo:
    """An opaque red rectangle; what is transparent is green, which must never be seen."""
    rgb, alpha = np.full((height, width, 3), (0, 255, 0), np.uint8), np.zeros((height, width), np.uint8)
    rgb[rows, columns], alpha[rows, columns] = (200, 40, 20), 255
    return photo_of(rgb, alpha)


def cut(photo: Photo, *, size_px: int, fill: float = 0.8) -> Cutout:
    return cut_out(photo, AlphaMatte()(photo), size_px=size_px, fill=fill)


def codes(matted: Matted) -> list[str]:
    return [warning.rsplit("[", 1)[1].rstrip("]") for warning in matted.warnings]


@pytest.mark.parametrize(
    ("photo", "rows", "columns"),
    [
        (rectangle(300, 400, slice(50, 210), slice(100, 180)), (20, 180), (60, 140)),  # portrait
        (rectangle(300, 400, slice(50, 130), slice(100, 260)), (60, 140), (20, 180)),  # landscape
        (rectangle(300, 400, slice(220, 300), slice(240, 400)), (60, 140), (20, 180)),  # in a corner
        (rectangle(300, 160, slice(0, 80), slice(0, 160)), (60, 140), (20, 180)),  # as wide as the photo
    ],
)
def test_a_known_rectangle_lands_on_known_pixels(
    photo: Photo, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    cutout = cut(photo, size_px=200)
    expected = torch.zeros(1, 200, 200)
    expected[:, slice(*rows), slice(*columns)] = 1
    torch.testing.assert_close(cutout.alpha, expected)
    torch.testing.assert_close(cutout.rgb, expected * torch.tensor([200, 40, 20])[:, None, None] / 255)


@pytest.mark.parametrize("scale", [0.25, 0.37, 0.5, 1.5, 2.0])
def test_size_and_place_hold_at_every_scale(scale: float) -> None:
    size_px = round(200 * scale)
    alpha = cut(rectangle(300, 400, slice(50, 210), slice(101, 180)), size_px=size_px).alpha[0]
    step = 160 / 0.8 / size_px
    assert float(alpha.sum()) * step**2 == pytest.approx(160 * 79, rel=0.01)
    place = (torch.arange(size_px) + 0.5 - size_px / 2) * step
    assert float((alpha.sum(0) * place).sum() / alpha.sum()) == pytest.approx(0, abs=0.05)
    assert float((alpha.sum(1) * place).sum() / alpha.sum()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("size_px", [64, 150, 330])
def test_no_background_bleeds_into_the_outline(size_px: int) -> None:
    cutout = cut(rectangle(301, 401, slice(51, 210), slice(103, 180)), size_px=size_px)
    seen = cutout.rgb[:, cutout.alpha[0] > 0]
    assert torch.allclose(seen, torch.tensor([[200.0], [40.0], [20.0]]) / 255, atol=0.03)
    assert not cutout.rgb[:, cutout.alpha[0] == 0].any()


def test_the_crop_leads_back_to_the_photos_pixels() -> None:
    crop = cut(rectangle(300, 400, slice(50, 210), slice(100, 180)), size_px=128, fill=0.5).crop
    assert (crop.centre_x, crop.centre_y, crop.side_px) == (140, 130, 320)


def test_a_cutout_carries_what_was_said_before() -> None:
    photo = photo_of(np.zeros((40, 40, 3), np.uint8), warnings=("before",))
    matted = Matted(alpha=np.full((40, 40), 255, np.uint8), method="fake", warnings=("then",))
    cutout = cut_out(photo, matted, size_px=64, fill=0.8)
    assert (cutout.matting, cutout.photo, cutout.digest) == ("fake", photo.path, photo.digest)
    assert cutout.warnings[:2] == ("before", "then") and "W_MATTE_SMALL" in cutout.warnings[2]


def test_colours_of_the_matte_replace_those_of_the_photo() -> None:
    photo = photo_of(np.zeros((40, 40, 3), np.uint8))
    opaque = np.full((40, 40), 255, np.uint8)
    matted = Matted(alpha=opaque, rgb=np.full((40, 40, 3), 255, np.uint8), method="fake")
    assert float(cut_out(photo, matted, size_px=64, fill=1.0).rgb.min()) == 1


def test_an_alpha_without_a_subject_is_an_error() -> None:
    photo = rectangle(40, 40, slice(5, 20), slice(5, 20))
    with pytest.raises(PhotoError) as caught:
        cut_out(photo, Matted(alpha=np.zeros((40, 40), np.uint8), method="fake"), size_px=64, fill=0.8)
    assert caught.value.code == "E_MATTE_EMPTY"
    assert "--matting none" in caught.value.remedy


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(100, 200), slice(100, 200), []),
        (slice(100, 200), slice(0, 200), ["W_MATTE_FRAME"]),
        (slice(100, 130), slice(100, 130), ["W_MATTE_TINY"]),
        (slice(2, 298), slice(2, 298), ["W_MATTE_FULL"]),
    ],
)
def test_what_looks_wrong_is_a_warning(rows: slice, columns: slice, expected: list[str]) -> None:
    assert codes(AlphaMatte()(rectangle(300, 300, rows, columns))) == expected


def test_two_products_in_one_photo_are_a_warning_and_specks_are_not() -> None:
    photo = rectangle(300, 300, slice(100, 200), slice(20, 120))
    assert photo.alpha is not None
    photo.alpha[20:28, 20:28] = 255
    assert codes(AlphaMatte()(photo)) == []
    photo.alpha[100:200, 180:260] = 255
    assert codes(AlphaMatte()(photo)) == ["W_MATTE_PARTS"]


class Recorder:
    """A matte that takes everything and remembers nothing but its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def why_not(device: str) -> str | None:
        return None

    def __call__(self, photo: Photo) -> Matted:
        return Matted(alpha=np.full(photo.rgb.shape[:2], 255, np.uint8), method=self.name)


def mattes(*names: str) -> dict[str, Matte]:
    return {name: Recorder(name) for name in names}


CUT_OUT = rectangle(60, 60, slice(10, 40), slice(10, 40))
PLAIN = photo_of(np.zeros((60, 60, 3), np.uint8))
OPAQUE = photo_of(PLAIN.rgb, np.full((60, 60), 255, np.uint8))
ALMOST_OPAQUE = photo_of(PLAIN.rgb, np.full((60, 60), 250, np.uint8))
INVISIBLE = photo_of(PLAIN.rgb, np.zeros((60, 60), np.uint8))


@pytest.mark.parametrize(
    ("photo", "method"),
    [(CUT_OUT, "alpha"), (PLAIN, "rembg"), (OPAQUE, "rembg"), (ALMOST_OPAQUE, "rembg"), (INVISIBLE, "rembg")],
)
def test_alpha_is_used_only_when_it_means_something(photo: Photo, method: str) -> None:
    available = mattes("alpha", "grabcut", "rembg", "none")
    assert find_subject(photo, available, method="auto").method == method


def test_auto_does_without_what_is_not_installed_and_a_name_does_not() -> None:
    available = mattes("alpha", "grabcut", "none")
    assert find_subject(PLAIN, available, method="auto").method == "grabcut"
    assert find_subject(CUT_OUT, available, method="none").method == "none"
    with pytest.raises(EnvironmentProblem, match="matting rembg"):
        find_subject(PLAIN, available, method="rembg")


@pytest.mark.parametrize("photo", [PLAIN, OPAQUE, INVISIBLE])
def test_asking_for_an_alpha_that_is_not_there_is_an_error(photo: Photo) -> None:
    with pytest.raises(PhotoError, match="E_MATTE_ALPHA"):
        AlphaMatte()(photo)


def test_every_method_of_the_table_can_be_asked_about() -> None:
    assert [matte.name for matte in MATTES] == ["alpha", "rembg", "grabcut", "none"]
    assert {matte.name: matte.why_not("cpu") for matte in MATTES if matte is not RembgMatte} == {
        "alpha": None,
        "grabcut": None,
        "none": None,
    }


def test_no_matting_takes_the_whole_picture_as_viewers_show_it() -> None:
    matted = NoMatte()(CUT_OUT)
    assert (matted.alpha == 255).all() and matted.rgb is not None
    assert tuple(matted.rgb[0, 0]) == (255, 255, 255) and tuple(matted.rgb[20, 20]) == (200, 40, 20)


def test_grabcut_finds_the_same_subject_that_an_alpha_gives() -> None:
    photo = rectangle(300, 400, slice(60, 240), slice(90, 300))
    found = GrabCutMatte()(photo)
    assert photo.alpha is not None and found.warnings == ()
    assert np.mean((found.alpha >= 128) != (photo.alpha >= 128)) < 0.002


def test_grabcut_says_when_there_is_nothing_to_find() -> None:
    with pytest.raises(PhotoError, match="E_MATTE_EMPTY"):
        GrabCutMatte()(photo_of(np.full((100, 100, 3), 200, np.uint8)))


def test_rembg_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setattr("crm_cli.models.matting.find_spec", lambda name: None)
    assert RembgMatte.why_not("cpu") == "not installed: pip install 'rembg[cpu]'"
    monkeypatch.setattr("crm_cli.models.matting.find_spec", lambda name: object())
    assert (
        RembgMatte.why_not("cpu") == f"no model: put u2net.onnx of rembg's releases at {tmp_path}/u2net.onnx"
    )
    (tmp_path / "u2net.onnx").touch()
    assert RembgMatte.why_not("cpu") is None


def test_rembg_reads_the_users_model_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class U2netSession:
        """Opens like rembg's session: asks its class to download, then loads what it was told."""

        def __init__(self, name: str, options: object) -> None:
            assert self.download_models() == str(tmp_path / "u2net.onnx")

        @classmethod
        def download_models(cls) -> str:
            raise AssertionError("downloads")

        def predict(self, image: Image.Image) -> list[Image.Image]:
            return [Image.fromarray(np.where(np.asarray(image)[..., 1] == 40, 255, 0).astype(np.uint8))]

    module = ModuleType("rembg.sessions.u2net")
    module.U2netSession = U2netSession  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rembg", ModuleType("rembg"))
    monkeypatch.setitem(sys.modules, "rembg.sessions", ModuleType("rembg.sessions"))
    monkeypatch.setitem(sys.modules, "rembg.sessions.u2net", module)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(SessionOptions=object))
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    photo = rectangle(60, 60, slice(10, 40), slice(10, 40))
    np.testing.assert_array_equal(RembgMatte()(photo).alpha, photo.alpha)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (7, 7)])
def test_a_whole_canvas_keeps_every_pixel_in_the_middle_of_a_square(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    photo = photo_of(rng.integers(0, 256, (height, width, 3), np.uint8))
    alpha = rng.integers(0, 256, (height, width), np.uint8)
    alpha[0] = 0
    cutout = whole_canvas(photo, Matted(alpha=alpha, rgb=None, method="alpha"))
    side = max(height, width)
    pixels = (torch.cat([cutout.rgb, cutout.alpha]) * 255).round().byte().permute(1, 2, 0).numpy()
    row, column = (side - height) // 2, (side - width) // 2
    assert pixels.shape == (side, side, 4)
    inside = pixels[row : row + height, column : column + width]
    np.testing.assert_array_equal(inside[..., 3], alpha)
    np.testing.assert_array_equal(inside[..., :3], photo.rgb * (alpha > 0)[..., None])
    assert pixels.astype(int).sum() == inside.astype(int).sum(), "nothing but transparent black around it"
    # The crop leads back: the square's corner lies outside the photo by the padding.
    assert cutout.crop.centre_x - cutout.crop.side_px / 2 == -column
    assert cutout.crop.centre_y - cutout.crop.side_px / 2 == -row
