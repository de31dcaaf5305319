import os
import subprocess
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.errors import NoInput, UsageError
from crm_cli.run.selection import Selection
from crm_cli.run.walk import Found, Walk, _refuse_collisions, walk


def plant(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return root


def paths_in(root: Path, select: Selection | None = None) -> list[str]:
    found = walk([root], root.parent / "out", select=select or Selection())
    return [str(photo.path) for photo in found.photos]


def test_photos_come_in_the_order_of_their_bytes_and_assets_mirror_the_folders(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "b.JPG", "a/z.v2.jpeg", "a.png", "é.webp", "C.tiff", "note.txt", "noext")
    found = walk([root], tmp_path / "out", select=Selection())
    assert [str(photo.path) for photo in found.photos] == [
        "C.tiff",
        "a.png",
        "a/z.v2.jpeg",
        "b.JPG",
        "é.webp",
    ]
    assert [str(photo.stem) for photo in found.photos] == ["C", "a", "a/z.v2", "b", "é"]
    assert found.passed_over == ()


def test_hidden_names_and_the_output_folder_are_not_searched(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", ".hidden.jpg", ".git/b.jpg", "done/report/thumbs/c.png")
    found = walk([root], root / "done", select=Selection())
    assert [str(photo.path) for photo in found.photos] == ["a.jpg"]


def test_only_regular_files_inside_the_input_are_taken(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "sub/b.jpg")
    plant(tmp_path, "secret.jpg", "elsewhere/d.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "inside.jpg").symlink_to(root / "sub" / "b.jpg")
    (root / "escape.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    (root / "dangling.jpg").symlink_to(root / "nothing.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "folder.jpg").mkdir()
    found = walk([root], tmp_path / "out", select=Selection())
    # What is called a photo and cannot be read is a failure of its own, told when its turn comes.
    assert [str(photo.path) for photo in found.photos] == [
        "a.jpg", "circle.jpg", "dangling.jpg", "inside.jpg", "sub/b.jpg"
    ]  # fmt: skip
    reasons = {skipped.path: skipped.reason for skipped in found.passed_over}
    assert set(reasons) == {"pipe.jpg", "escape.jpg", "device.jpg"}
    assert reasons["pipe.jpg"] == "not a regular file"
    assert "leads out" in reasons["escape.jpg"]


def follow(root: Path, out: Path) -> Walk:
    return walk([root], out, select=Selection(follow_symlinks=True))


def test_links_are_followed_out_of_the_input_where_that_is_asked_for(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "sub/b.jpg", ".hidden/h.jpg")
    plant(tmp_path, "secret.jpg", "elsewhere/d.jpg", "elsewhere/deep/e.jpg")
    os.mkfifo(tmp_path / "elsewhere" / "pipe.jpg")
    (root / "escape.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    (root / "dangling").symlink_to(root / "nothing")
    (root / "linked.jpg").symlink_to(tmp_path / "elsewhere")
    (root / ".more").symlink_to(tmp_path / "elsewhere")
    found = follow(root, tmp_path / "out")
    assert [str(photo.path) for photo in found.photos] == [
        "a.jpg",
        "circle.jpg",
        "escape.jpg",
        "linked.jpg/d.jpg",
        "linked.jpg/deep/e.jpg",
        "sub/b.jpg",
    ]
    assert {skipped.path for skipped in found.passed_over} == {
        "device.jpg",
        "linked.jpg/pipe.jpg",
    }
    assert found.photos[3].file.read_bytes() == b"elsewhere/d.jpg"
    shallow = walk([root], tmp_path / "out", select=Selection(follow_symlinks=True, is_recursive=False))
    assert [str(photo.path) for photo in shallow.photos] == ["a.jpg", "circle.jpg", "escape.jpg"]


def test_a_folder_with_many_names_is_searched_once_under_its_own(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "z/a.jpg", "z/deep/b.jpg")
    (root / "a_link").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "z" / "deep" / "round").symlink_to(root / "z" / "deep")
    found = follow(root, tmp_path / "out")
    assert [str(photo.path) for photo in found.photos] == ["z/a.jpg", "z/deep/b.jpg"]
    assert {skipped.path: skipped.reason for skipped in found.passed_over} == {
        "a_link": "the same folder as z, which is searched already",
        "z/up": "the same folder as ., which is searched already",
        "z/deep/round": "the same folder as z/deep, which is searched already",
    }


def test_a_link_to_the_folder_above_finds_its_other_folders_and_ends(tmp_path: Path) -> None:
    root = plant(tmp_path / "above" / "in", "a.jpg")
    plant(tmp_path / "above", "other/b.jpg", "out/c.jpg")
    (root / "up").symlink_to(tmp_path / "above")
    found = follow(root, tmp_path / "above" / "out")
    assert [str(photo.path) for photo in found.photos] == ["a.jpg", "up/other/b.jpg"]


def test_links_that_double_their_ways_at_every_step_are_searched_once(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "00/photo.jpg")
    # Systems follow no more than forty links in one path.
    for number in range(30):
        here, following = tmp_path / "steps" / str(number), tmp_path / "steps" / str(number + 1)
        here.mkdir(parents=True)
        (here / "x").symlink_to(following)
        (here / "y").symlink_to(following)
    plant(tmp_path / "steps" / "30", "last.jpg")
    (root / "steps").symlink_to(tmp_path / "steps" / "0")
    found = follow(root, tmp_path / "out")
    assert [photo.path.name for photo in found.photos] == ["photo.jpg", "last.jpg"]


def test_links_into_the_output_folder_are_not_followed(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg")
    out = plant(tmp_path / "out", "report/thumbs/b.webp")
    (root / "out").symlink_to(out)
    (root / "thumbs").symlink_to(out / "report" / "thumbs")
    assert [str(photo.path) for photo in follow(root, out).photos] == ["a.jpg"]


def test_folders_in_folders_without_end_are_searched_without_a_deep_stack(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    try:
        [photo] = walk([root], tmp_path / "out", select=Selection()).photos
        assert len(photo.path.parts) == 1501
    finally:
        # shutil.rmtree of this version recurses.
        subprocess.run(["rm", "-r", root], check=True)


def test_a_file_given_by_name_is_taken_or_its_refusal_told(tmp_path: Path) -> None:
    root = plant(tmp_path, "a.jpg", "list.txt")
    found = walk([root / "a.jpg", root / "list.txt"], tmp_path / "out", select=Selection())
    assert [photo.file for photo in found.photos] == [root / "a.jpg"]
    assert [skipped.path for skipped in found.passed_over] == ["list.txt"]


def test_patterns_depth_and_limit_select(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "b.png", "shoes/c.jpg", "shoes/d_back.jpg")
    assert paths_in(root, Selection(include=("*.jpg",))) == ["a.jpg", "shoes/c.jpg", "shoes/d_back.jpg"]
    assert paths_in(root, Selection(include=("shoes/*",), exclude=("*_back*",))) == ["shoes/c.jpg"]
    assert paths_in(root, Selection(is_recursive=False)) == ["a.jpg", "b.png"]
    assert paths_in(root, Selection(limit=3)) == ["a.jpg", "b.png", "shoes/c.jpg"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.jpg", "a.png"),
        ("Shoe.jpg", "shoe.jpg"),
        ("straße.jpg", "STRASSE.png"),
        ("caf\u00e9.jpg", "cafe\u0301.png"),
        ("A/x.jpg", "a/x.jpg"),
    ],
)
def test_two_photos_for_one_asset_are_refused_with_both_names(
    tmp_path: Path, first: str, second: str
) -> None:
    root = plant(tmp_path / "in", first, second, "other.jpg")
    with pytest.raises(UsageError, match="--keep-ext") as caught:
        walk([root], tmp_path / "out", select=Selection())
    assert first in str(caught.value) and second in str(caught.value)


def test_the_collision_is_found_even_where_the_limit_would_hide_it(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "z.jpg", "z.png")
    with pytest.raises(UsageError):
        walk([root], tmp_path / "out", select=Selection(limit=1))


def test_with_their_extensions_two_photos_of_one_name_both_stay(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "a.png")
    found = walk([root], tmp_path / "out", select=Selection(), keep_ext=True)
    assert [str(photo.stem) for photo in found.photos] == ["a.jpg", "a.png"]


def test_one_name_in_two_inputs_is_a_collision_but_one_photo_given_twice_is_not(tmp_path: Path) -> None:
    plant(tmp_path, "x/a.jpg", "y/a.jpg")
    with pytest.raises(UsageError) as caught:
        walk([tmp_path / "x", tmp_path / "y"], tmp_path / "out", select=Selection())
    assert str(tmp_path / "x" / "a.jpg") in str(caught.value)
    assert str(tmp_path / "y" / "a.jpg") in str(caught.value)
    found = walk([tmp_path / "x", tmp_path / "x" / "a.jpg"], tmp_path / "out", select=Selection())
    assert len(found.photos) == 1


def test_a_missing_input_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(NoInput, match="nowhere"):
        walk([tmp_path / "nowhere"], tmp_path / "out", select=Selection())


def test_the_input_cannot_be_the_output(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg")
    with pytest.raises(UsageError, match="input and the output"):
        walk([root], tmp_path / "in", select=Selection())


def test_an_asset_keeps_its_identity_across_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (
        Found(root=tmp_path, path=PurePosixPath(name), stem=PurePosixPath("x"))
        for name in (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    )
    assert composed.path != decomposed.path
    assert composed.id == decomposed.id


def test_a_name_that_is_not_utf8_has_an_asset_as_well(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", os.fsdecode(b"caf\xe9.jpg"))
    [photo] = walk([root], tmp_path / "out", select=Selection()).photos
    assert photo.file.read_bytes() == b"caf\xe9.jpg"
    assert len(photo.id) == 16


names = st.lists(st.text("aA.ßs\u0301e\u00e9", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)


@given(st.sets(names, max_size=8))
def test_what_is_not_refused_never_shares_an_asset_name_on_a_disk_that_folds_case(stems: set[str]) -> None:
    photos = [
        Found(root=Path("/"), path=PurePosixPath(f"{s}.jpg"), stem=PurePosixPath(s)) for s in sorted(stems)
    ]
    folded = [unicodedata.normalize("NFC", str(photo.stem)).casefold() for photo in photos]
    has_twins = len({unicodedata.normalize("NFC", name) for name in folded}) < len(photos)
    if has_twins:
        with pytest.raises(UsageError):
            _refuse_collisions(photos)
    else:
        _refuse_collisions(photos)


def test_output_folders_of_earlier_runs_are_no_photos(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", "a.jpg", "old/b.png", "old/report/thumbs/c.webp", "old/.crm/FORMAT")
    found = walk([root], tmp_path / "out", select=Selection())
    assert [str(photo.path) for photo in found.photos] == ["a.jpg"]
    assert [(one.path, one.reason) for one in found.passed_over] == [("old", "an output folder of crm")]
    # Whoever names it means it.
    assert len(walk([root / "old"], tmp_path / "out", select=Selection()).photos) == 2
