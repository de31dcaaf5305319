"""The gate's words, tables and pictures; tests/test_evaluate.py has what it measures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gate
import gate_pictures as pictures
import gate_table as tables
import numpy as np
import pytest
from PIL import Image
from scored import better_by, score, varied

from crm_cli.learn.compare import decide
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.evaluate import Score, summary


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_overall_table_has_every_figure_beside_the_solids_and_other_weights() -> None:
    before = varied(30)
    scores = better_by(before, 0.05, 0.01)
    head, _, *rows = rows_of(tables.overall(scores, decide(scores, before), before))
    assert head[:4] == ["30 products, medians", "networks", "inflated", "turned"]
    assert [row[0] for row in rows] == list(tables.FIGURES.values())
    assert {len(row) for row in rows} == {len(head)}
    told = rows[0]
    assert told[1:5] == [
        f"{summary(scores)['f_score']:.3f}",
        "0.200",
        "0.300",
        f"{summary(before)['f_score']:.3f}",
    ]
    assert told[5].startswith("+0.0") and told[6] == "better"
    assert rows[4][2:4] == ["", ""]  # solids have no views


def test_the_table_of_families_names_the_better_solid_by_each_figure() -> None:
    far = replace(score(0, 0.5).inflated, chamfer=0.02, volume_iou=0.6)
    scores = [replace(score(0, 0.5, family="vase"), inflated=replace(far, f_score=0.2)), score(1, 0.4)]
    head, _, *rows = rows_of(tables.families(scores, decide(scores)))
    assert [row[0] for row in rows] == ["mug", "vase"]
    assert {len(row) for row in rows} == {len(head)}
    vase = dict(zip(head[2:5] + head[5:7], rows[1][2:7], strict=True))
    assert rows[1][2:9] == ["0.500", "0.300", "+0.200", "0.050", "0.020", "0.500", "0.600"]
    assert vase["ahead by, mean"] == "+0.200"


def test_the_verdict_says_why() -> None:
    before = varied(60)
    assert tables.verdict(decide(better_by(before, 0.05, 0.01), before)).endswith(
        "weights before. May ship.\n"
    )
    said = tables.verdict(decide(before, before))
    assert "Not better than the weights before" in said and said.endswith("May not ship.\n")
    behind = [score(0, 0.5), score(1, 0.1, family="chair")]
    assert tables.verdict(decide(behind)) == "A solid is as good in: chair. May not ship.\n"


def test_what_became_worse_is_named_even_where_the_weights_may_ship() -> None:
    before = varied(60)
    scores = [replace(one, silhouette_iou=0.9) for one in better_by(before, 0.05, 0.01)]
    said = tables.verdict(decide(scores, before))
    assert "Worse in: front against the photo, IoU." in said and said.endswith("May ship.\n")


def test_the_typical_product_of_a_family_is_its_median_not_its_best() -> None:
    scores = [score(seed, value) for seed, value in enumerate((0.9, 0.4, 0.6, 0.5))]
    assert gate.typical(scores).made.f_score == 0.5
    assert gate.typical(scores[:3]).made.f_score == 0.6


@pytest.mark.parametrize(
    "words",
    [["--given", "legs"], ["--given", "rgb", "--against", "embedded"]],
    ids=["no such part", "nothing to decide"],
)
def test_options_that_mean_nothing_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        gate.options(words)
    assert refused.value.code == 2
    assert "--given" in capsys.readouterr().err


def test_scores_of_an_earlier_run_stand_in_for_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    kept = [score(HELD_OUT + number, 0.5) for number in range(5)]
    file.write_text(json.dumps({"scores": [one.as_json() for one in kept]}))
    seeds = range(HELD_OUT + 1, HELD_OUT + 4)
    assert gate.scores_before(str(file), seeds) == kept[1:4]
    with pytest.raises(SystemExit, match="5 of the 6 products"):
        gate.scores_before(str(file), range(HELD_OUT, HELD_OUT + 6))


class Pool:
    """Does at once what it is asked, and notes it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def submit(self, work: Any, *arguments: Any) -> Any:
        from concurrent.futures import Future

        self.asked.append(arguments)
        done: Future[Any] = Future()
        seeds, weights, _ = arguments
        f_scores = [0.6 if name == "new" else 0.5 for name in weights]
        done.set_result([[score(seed, value) for value in f_scores] for seed in seeds])
        return done


def judged(words: list[str]) -> tuple[list[Score], list[Score] | None, Any, Pool]:
    pool = Pool()
    return *gate.judge(pool, gate.options(words)), pool  # type: ignore[arg-type]


def test_two_sets_of_weights_are_measured_on_the_same_held_out_products() -> None:
    words = ["--count", "25", "--first", "3", "--weights", "new", "--against", "embedded"]
    scores, before, decision, pool = judged(words)
    assert before is not None
    seeds = list(range(HELD_OUT + 3, HELD_OUT + 28))
    assert [one.seed for one in scores] == [one.seed for one in before] == seeds
    assert {one.made.f_score for one in scores} == {0.6}
    assert {one.made.f_score for one in before} == {0.5}
    assert decision.may_ship
    assert max(len(arguments[0]) for arguments in pool.asked) <= gate.SHARE


def test_weights_against_themselves_may_not_ship() -> None:
    scores, before, decision, _ = judged(["--count", "4", "--against", "embedded"])
    assert before == scores
    assert not decision.may_ship


def test_without_other_weights_the_solids_alone_decide() -> None:
    scores, before, decision, _ = judged(["--count", "4"])
    assert len(scores) == 4
    assert before is None
    assert decision.may_ship


class Finished(Pool):
    """Has looked at the photos already."""

    def __init__(self, *are_sound: bool) -> None:
        super().__init__()
        self.are_sound = are_sound

    def map(self, work: Any, files: Sequence[Path], weights: Sequence[str]) -> list[Any]:
        told = [photo_found(file.name, sound) for file, sound in zip(files, self.are_sound, strict=True)]
        return [(one, [cell((0, 0, 0))] * len(gate.PHOTO_HEADS)) for one in told]


def photo_found(name: str, is_sound: bool) -> dict[str, Any]:
    return {
        "photo": name,
        "grade": "pass",
        "reasons": ("likeness.colour", "photo.seen"),
        "silhouette_iou": 0.9,
        "colour_distance": 4.21,
        "seen_share": 0.25,
        "is_low": False,
        "is_sound": is_sound,
        "components": 1,
        "handles": 3,
    }


@pytest.mark.parametrize("second", [True, False], ids=["whole", "torn"])
def test_a_torn_photo_stops_weights_and_every_photo_gets_its_picture(tmp_path: Path, second: bool) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    given = gate.options(["--photos", str(tmp_path), "-o", str(tmp_path)])
    report = gate.Report({})
    gate.on_photos(Finished(True, second), given, report)  # type: ignore[arg-type]
    assert report.may_ship is second
    assert [one["photo"] for one in report.kept["photos"]] == ["a.png", "b.png"]
    row = rows_of(report.text[0])[3]
    closed = "yes" if second else "no"
    assert row[:-1] == ["b.png", "pass", "0.900", "4.2", "25%", closed, "1", "3"]
    assert row[-1] == "likeness.colour, photo.seen"
    assert (tmp_path / "a.webp").stat().st_size and (tmp_path / "b.webp").stat().st_size


def test_what_is_decided_is_told_and_kept() -> None:
    words = ["--count", "12", "--weights", "old", "--against", "new"]
    report = gate.Report({})
    gate.on_products(Pool(), gate.options(words), report)  # type: ignore[arg-type]
    assert not report.may_ship
    assert len(report.kept["scores"]) == 12
    assert report.kept["decision"]["differences"][0]["figure"] == "f_score"
    assert report.text[-1].endswith("May not ship.\n")


def test_nothing_is_decided_about_views_that_were_given() -> None:
    report = gate.Report({})
    gate.on_products(Pool(), gate.options(["--count", "2", "--given", "rgb"]), report)  # type: ignore[arg-type]
    assert report.may_ship
    assert "decision" not in report.kept
    assert not any("ship" in text for text in report.text)


@pytest.mark.slow
def test_the_gate_measures_products_and_photos_to_the_end(tmp_path: Path) -> None:
    """Two products and a photo, in half a minute of two processors."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(Path(__file__).parent / "photos" / "kitchen" / "mug.jpg", photos)
    command = [sys.executable, gate.__file__, "--count", "2", "--photos", photos, "-o", out]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (0, 1)
    assert done.stdout == (out / "table.md").read_text()
    kept = json.loads((out / "scores.json").read_text())
    assert [one["seed"] for one in kept["scores"]] == [HELD_OUT, HELD_OUT + 1]
    assert all(0.1 < one["made"]["f_score"] < 1 for one in kept["scores"])
    assert kept["photos"][0]["is_sound"]
    with Image.open(out / "families.webp") as drawn:
        assert (
            drawn.width == 2 * (len(gate.HEADS) * pictures.CELL_PX + pictures.MARGIN_PX) + pictures.MARGIN_PX
        )
    assert (out / "mug.webp").exists()


def cell(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGBA", (pictures.CELL_PX, pictures.CELL_PX), colour)


def test_a_sheet_is_filled_column_by_column() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    rows = [pictures.Row("", [cell(colour), cell((9, 9, 9))]) for colour in colours]
    drawn = pictures.sheet(rows, ("one", "two"), columns=2)
    size_px, line_px, margin_px = pictures.CELL_PX, pictures.LINE_PX, pictures.MARGIN_PX
    left, top = margin_px + size_px // 2, margin_px + line_px + size_px // 2
    assert drawn.getpixel((left, top)) == colours[0]
    assert drawn.getpixel((left, top + size_px + line_px)) == colours[1]
    assert drawn.getpixel((left + 2 * size_px + margin_px, top)) == colours[2]
    assert drawn.getpixel((left + size_px, top)) == (9, 9, 9)


def test_a_photo_of_any_shape_lies_in_the_middle_of_its_cell() -> None:
    from crm_cli.learn.unseen import held

    wide = np.full((4, 64, 64), 255, np.uint8)
    photo, _ = held(wide, 0)
    photo = replace(photo, rgb=photo.rgb[:32], alpha=None)
    drawn = np.asarray(pictures.as_cell(photo, 40))
    assert drawn[20, 20, 3] == 255 and drawn[2, 20, 3] == 0
    assert drawn.shape == (40, 40, 4)


def test_pictures_that_are_kept_are_small(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    pictures.save(noise, tmp_path / "noise.webp", max_bytes=20_000)
    assert 2_000 < (tmp_path / "noise.webp").stat().st_size <= 20_000
    with pytest.raises(ValueError, match="at any quality"):
        pictures.save(noise, tmp_path / "noise.webp", max_bytes=1_000)


def test_photos_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.webp", "README.md"):
        (tmp_path / name).touch()
    assert [file.name for file in gate.photos_in(tmp_path)] == ["a.webp", "b.JPG"]
