"""Options that do not go together, and runs that may not go on with others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from crm_cli.errors import CrmError, UsageError
from crm_cli.learn.beginning import open_start
from crm_cli.learn.checkpoint import NAME
from crm_cli.learn.course import Course, run_course
from crm_cli.learn.latent import LatentSettings
from crm_cli.learn.lesson import lesson_of, require_sense
from crm_cli.learn.sources import digest_of_folder
from crm_cli.learn.surface import EndToEnd
from crm_cli.learn.train import TrainSettings

SETTINGS = TrainSettings(steps=2, batch=2, warmup=1, save_every=1, log_every=1)

pytestmark = pytest.mark.usefixtures("tiny_networks")


def course_of(network: str, data: Path, folder: Path, **more: Any) -> Course:
    return Course(network=network, data=data, folder=folder, examples=4, **more)


EMBEDDED = open_start("embedded", "rgb")
ROUGH = open_start("embedded", "reconstruction")


@pytest.mark.parametrize(
    ("network", "options", "named"),
    [
        ("rgb", {"surface": EndToEnd()}, "--end-to-end: rgb makes no surface"),
        ("reconstruction", {"grow": 0.5}, "--grow"),
        ("rgb", {"first": Path("rgb.safetensors")}, "--first: rgb"),
        ("reconstruction", {"first": Path("rgb.safetensors")}, "--first: reconstruction"),
        ("rgb", {"latent": LatentSettings(hidden=0.1)}, "--hide"),
        ("ccm", {"first": Path()}, "--first .: a folder"),
        ("ccm", {"latent": LatentSettings(is_recomputed=True)}, "--recompute"),
        ("rgb", {"start": EMBEDDED, "latent": LatentSettings(photos=1.0)}, "--photos"),
        ("rgb", {"start": replace(EMBEDDED, is_fresh=True)}, "--fresh"),
        ("rgb", {"start": EMBEDDED, "size_px": 128}, "--size, or --data"),
        (
            "reconstruction",
            {"start": ROUGH, "surface": EndToEnd(architecture="release")},
            "--architecture release",
        ),
    ],
)
def test_options_that_would_be_passed_over_are_refused_before_anything_is_made(
    tmp_path: Path, network: str, options: dict[str, Any], named: str
) -> None:
    course = course_of(network, tmp_path / "data", tmp_path / "run", **options)
    with pytest.raises(UsageError, match=named) as caught:
        list(run_course(course, SETTINGS))
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("rgb", {"start": EMBEDDED, "size_px": 64, "grow": 0.5, "latent": LatentSettings()}),
        ("ccm", {"first": Path("rgb.safetensors")}),
        ("reconstruction", {"start": ROUGH, "surface": EndToEnd(grid=24)}),
        ("reconstruction", {"surface": EndToEnd(architecture="release")}),
    ],
)
def test_options_that_go_together_are_taken(network: str, options: dict[str, Any]) -> None:
    require_sense(course_of(network, Path("data"), Path("run"), **options))


def begin(course: Course) -> None:
    """Leave a run in its second step, after the first was saved."""
    for line in run_course(course, SETTINGS):
        if line.step == 2:
            return


def test_embedded_networks_learn_from_no_folder_of_smaller_pictures(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at 64 px"):
        require_sense(course_of("rgb", data, tmp_path / "run", start=EMBEDDED))


def refusal(course: Course) -> CrmError:
    with pytest.raises(UsageError) as caught:
        list(run_course(course, SETTINGS))
    return caught.value


def test_a_run_goes_on_with_what_it_learned_from_or_not_at_all(data: Path, tmp_path: Path) -> None:
    course = course_of("rgb", data, tmp_path / "run")
    begin(course)
    before = (course.folder / NAME).read_bytes()
    options: dict[str, Any]
    for options, said in (
        ({"examples": 3}, "--examples 4, not --examples 3"),
        ({"grow": 0.5}, "without --grow, not --grow 0.5"),
    ):
        error = refusal(replace(course, **options))
        assert said in str(error) and error.code == "E_TRAIN_SETTINGS" and "--out" in error.remedy
    assert (course.folder / NAME).read_bytes() == before
    assert lesson_of(replace(course, start=EMBEDDED))["start"] == EMBEDDED.digest[:12]
    assert [line.step for line in run_course(replace(course, workers=2, held_out=9), SETTINGS)] == [2]


def test_a_folder_of_objects_stands_for_what_is_in_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.glb").write_bytes(content)
    a, b, c = (
        lesson_of(course_of("rgb", data, tmp_path / "run", source=tmp_path / name))["from"] for name in "abc"
    )
    assert a == b != c
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} is read once more"))
        assert digest_of_folder(tmp_path / "c")[:12] == c
    (tmp_path / "c" / "c.glb").write_bytes(b"three")
    assert digest_of_folder(tmp_path / "c")[:12] != c
    course = course_of("rgb", data, tmp_path / "run")
    begin(course)
    other = replace(course, source=tmp_path / "a", data=tmp_path / "data", size_px=16)
    # Before anything is rendered.
    assert f"without --from, not --from {a}" in str(refusal(other))
    assert not (tmp_path / "data").exists()


def test_how_a_surface_is_looked_at_is_remembered(data: Path, tmp_path: Path) -> None:
    course = course_of("reconstruction", data, tmp_path / "run")
    begin(course)
    assert "without --end-to-end, not with --end-to-end" in str(refusal(replace(course, surface=EndToEnd())))
    coarse, fine = (lesson_of(replace(course, surface=EndToEnd(grid=grid))) for grid in (24, 32))
    assert {name for name in coarse if coarse[name] != fine[name]} == {"grid"}


def test_a_checkpoint_that_does_not_say_what_it_learned_goes_on(data: Path, tmp_path: Path) -> None:
    new, old = (course_of("rgb", data, tmp_path / name) for name in ("new", "old"))
    begin(new)
    shutil.copytree(new.folder, old.folder)
    file = old.folder / NAME
    step_of = json.loads(metadata(file)["progress"])
    del step_of["lesson"]
    save_file(load_file(file), file, {"progress": json.dumps(step_of)})
    for course in (new, old):
        assert [line.step for line in run_course(course, SETTINGS)] == [2]
    assert (new.folder / NAME).read_bytes() == file.read_bytes()


def metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_a_damaged_checkpoint_is_refused_before_anything_is_rendered(tmp_path: Path) -> None:
    course = course_of("rgb", tmp_path / "data", tmp_path / "run")
    course.folder.mkdir()
    (course.folder / NAME).write_bytes(b"damaged")
    error = refusal(course)
    assert error.code == "E_TRAIN_CHECKPOINT" and "remove it" in error.remedy
    assert not course.data.exists()
