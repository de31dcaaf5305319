import json
import os
from pathlib import Path, PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crm_cli import cache
from crm_cli.cache import MARK, TENSORS, Imagined
from crm_cli.records import Crop, Cutout, SixViews


def imagined(seed: int = 0, warnings: tuple[str, ...] = ("soft [W_MATTE_SMALL]",)) -> Imagined:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    cutout = Cutout(
        rgb=noise(4, 12, 12)[:3],
        alpha=noise(4, 12, 12)[3:],
        crop=Crop(centre_x=0.1 + 0.2, centre_y=-7.0, side_px=1 / 3),
        photo=PurePosixPath("a/b.png"),
        digest="d" * 64,
        matting="grabcut",
        warnings=warnings,
    )
    return Imagined(
        cutout=cutout, views=SixViews(rgb=noise(6, 3, 8, 8), ccm=noise(6, 3, 8, 8), alpha=noise(6, 1, 8, 8))
    )


def same(one: Imagined, other: Imagined) -> bool:
    tensors = [
        (one.cutout.rgb, other.cutout.rgb),
        (one.cutout.alpha, other.cutout.alpha),
        (one.views.rgb, other.views.rgb),
        (one.views.ccm, other.views.ccm),
        (one.views.alpha, other.views.alpha),
    ]
    words = [(c.crop, c.digest, c.matting, c.warnings) for c in (one.cutout, other.cutout)]
    return all(torch.equal(a, b) for a, b in tensors) and words[0] == words[1]


def test_what_is_kept_comes_back_bit_by_bit_under_the_name_asked_for(tmp_path: Path) -> None:
    cache.write(tmp_path / "aa" / "key", imagined())
    back = cache.read(tmp_path / "aa" / "key", photo=PurePosixPath("other.png"))
    assert back is not None and same(back, imagined())
    assert back.cutout.photo == PurePosixPath("other.png")
    assert sorted(path.name for path in (tmp_path / "aa").iterdir()) == ["key"]


def test_what_is_not_there_is_no_complaint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.read(tmp_path / "key", photo=PurePosixPath("a")) is None
    assert not caplog.records


def test_the_time_of_the_mark_is_that_of_the_last_use(tmp_path: Path) -> None:
    cache.write(tmp_path / "key", imagined())
    mark = tmp_path / "key" / MARK
    os.utime(mark, (1, 1))
    cache.read(tmp_path / "key", photo=PurePosixPath("a"))
    assert mark.stat().st_mtime > 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "key"
    cache.write(folder, imagined())
    return folder


@given(name=st.sampled_from([TENSORS, MARK]), data=st.data())
def test_whatever_is_damaged_is_made_again(whole: Path, name: str, data: st.DataObject) -> None:
    file = whole / name
    good = file.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    harm = data.draw(st.sampled_from(["cut", "flip", "gone"]))
    try:
        if harm == "cut":
            file.write_bytes(good[:place])
        elif harm == "flip":
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        else:
            file.unlink()
        back = cache.read(whole, photo=PurePosixPath("a"))
        # The mark's own length field may be wrong without harm: the digest decides.
        assert back is None or (name == MARK and same(back, imagined()))
    finally:
        file.write_bytes(good)
    assert cache.read(whole, photo=PurePosixPath("a")) is not None


def test_a_newer_answer_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    cache.write(tmp_path / "key", imagined(seed=1))
    (tmp_path / "key" / TENSORS).write_bytes(b"rubbish")
    cache.write(tmp_path / "key", imagined())
    back = cache.read(tmp_path / "key", photo=PurePosixPath("a"))
    assert back is not None and same(back, imagined())


def test_a_cache_that_cannot_be_written_costs_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_through", full)
    cache.write(tmp_path / "aa" / "key", imagined())
    assert "not kept: No space left on device" in caplog.text
    assert list((tmp_path / "aa").iterdir()) == []


def test_the_mark_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = cache._write_through
    monkeypatch.setattr(
        cache, "_write_through", lambda file, data: (written.append(file.name), real(file, data))
    )
    cache.write(tmp_path / "key", imagined())
    assert written == [TENSORS, MARK]
    mark = json.loads((tmp_path / "key" / MARK).read_bytes())
    assert mark["bytes"] == (tmp_path / "key" / TENSORS).stat().st_size


def test_whole_views_under_another_ones_mark_are_not_used(tmp_path: Path) -> None:
    for seed in (0, 1):
        cache.write(tmp_path / f"key{seed}", imagined(seed=seed))
    (tmp_path / "key0" / TENSORS).write_bytes((tmp_path / "key1" / TENSORS).read_bytes())
    assert cache.read(tmp_path / "key0", photo=PurePosixPath("a")) is None


def test_views_are_not_kept_in_an_output_folder_that_has_vanished(tmp_path: Path) -> None:
    cache.write(tmp_path / "out" / ".crm" / "cache" / "aa" / "key", imagined())
    assert not (tmp_path / "out").exists()
