from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Crm

from crm_cli.bench import bench as module
from crm_cli.bench import command, peak, systems
from crm_cli.bench.bench import Result, Settings, choose_networks
from crm_cli.bench.command import Command
from crm_cli.bench.cost import Spread, StageCost, SystemCost
from crm_cli.bench.subjects import Solid
from crm_cli.errors import EnvironmentProblem
from crm_cli.models.field import surface

CPU_SIDE = ["unwrap", "bake", "deliver"]
PARTS = ["prepare", "conditions", "rgb", "hand-over", "ccm", "decode", "reconstruct", *CPU_SIDE]


def ball(points: torch.Tensor) -> torch.Tensor:
    distance: torch.Tensor = points.norm(dim=1) - 0.7
    return distance


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little to measure: coarse surfaces, one thread, short looks at the machine."""
    coarse = tmp_path / "coarse.yaml"
    coarse.write_text("extends: exact\nreconstruction: {grid: 16}\n", "ascii")
    monkeypatch.setattr(systems, "EXACT", str(coarse))
    monkeypatch.setattr(systems, "corpus", lambda: [surface(Solid(ball), 16)])
    monkeypatch.setattr(peak, "CPU_SIDE", 128)
    monkeypatch.setattr(peak, "CPU_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(module, "threads_each", lambda devices, *, is_small, jobs: 1)


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A preset with less to write than turbo has."""
    preset = tmp_path / "narrow.yaml"
    preset.write_text(
        "extends: turbo\nreconstruction: {grid: 16}\ntexture: {size_px: 128}\n"
        "preview: {size_px: 32, turns: 1, viewer: false}\n",
        "ascii",
    )
    return preset


def test_the_published_structure_is_measured_from_photos_to_tables(
    small: None, narrow: Path, crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Result] = []
    run = module.run_bench

    def keep(settings: Settings, tell: Any) -> Result:
        found.append(run(settings, tell))
        return found[-1]

    monkeypatch.setattr(module, "run_bench", keep)
    words = f"--networks miniature -p {narrow} -n 1 --steps 3 --precision float32 --json"
    told = crm("bench", *words.split())
    assert told.code == 0, told.err
    answer = json.loads(told.out)
    assert answer["command"] == ["crm", "bench", *words.split()]
    baseline, ours = answer["systems"]
    assert (baseline["name"], ours["name"]) == ("baseline", str(narrow))
    assert baseline["steps"] == {"rgb": [2, 50], "ccm": [2, 50]}
    assert ours["steps"] == {"rgb": [3, 10], "ccm": [3, 10]}
    for system in (baseline, ours):
        stages = {stage["stage"]: stage for stage in system["stages"]}
        assert list(stages) == PARTS
        assert system["photo_s"]["median"] == pytest.approx(
            sum(stage["wall_s"]["median"] for stage in stages.values())
        )
        assert system["operations"] == pytest.approx(sum(s["operations"] or 0 for s in stages.values()))
        assert [name for name in PARTS if stages[name]["floor_s"] is None] == ["prepare", "unwrap", "deliver"]
        # On a busy machine nothing may be left of what comes before a first step.
        assert all(stages[name]["over_floor"] > 0 for name in ("rgb", "ccm", "reconstruct", "bake"))
        assert system["busy"] is None and system["peak_bytes"] > 10**8
    ratio = baseline["photo_s"]["median"] / ours["photo_s"]["median"]
    assert ours["over_baseline"] == pytest.approx(ratio)
    # A fifth of the steps, two fifths of them without guidance, and constants calculated once.
    assert baseline["operations"] > 5 * ours["operations"]
    shown = table_of(found[0], crm, monkeypatch)
    assert "2 × 2 of 50" in shown and "2 × 3 of 10" in shown
    assert "such times are reckoned" in shown and "random values" in shown


def table_of(result: Result, crm: Crm, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "run_bench", lambda settings, tell: result)
    told = crm("bench", "--device", "cpu")
    assert told.code == 0, told.err
    return told.out


def cost(name: str, **changes: Any) -> SystemCost:
    stages = (
        StageCost(
            stage="imagine",
            wall_s=Spread(median=2.0, low=1.5, high=2.5),
            cpu_s=1.0,
            operations=4e12,
            floor_s=0.5,
            over_floor=4.0,
        ),
        StageCost(
            stage="unwrap",
            wall_s=Spread(median=0.5, low=0.5, high=0.5),
            cpu_s=0.25,
            operations=None,
            floor_s=None,
            over_floor=None,
        ),
    )
    known = SystemCost(
        name=name,
        photos=3,
        photo_s=Spread(median=2.5, low=2.0, high=3.0),
        photos_an_hour=1440,
        networks_an_hour=1800,
        over_baseline=None,
        over_baseline_cpu=None,
        cpu_s=1.25,
        cpu_side_s=0.25,
        busy=None,
        peak_bytes=6_500_000_000,
        opened_s=1.0,
        first_s=4.0,
        steps={"rgb": (20, 20), "ccm": (20, 20)},
        operations=4e12,
        floor_s=0.5,
        stages=stages,
    )
    return replace(known, **changes)


def result(*costs: SystemCost, **changes: Any) -> Result:
    known = Result(
        version="1.2.3",
        machine="Some CPU + Some GPU",
        device="cuda:0",
        torch="2.9",
        networks="published",
        precision="bfloat16",
        threads=1,
        cores=16,
        peak_operations={"bfloat16": 790e12, "float32": 50e12},
        peak_bytes=4.3e12,
        run=None,
        systems=costs,
        took_s=100.0,
    )
    return replace(known, **changes)


def test_the_tables_say_what_was_measured_and_where(crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = cost(
        "fast",
        photos_an_hour=14400,
        over_baseline=10.0,
        busy=0.93,
        photo_s=Spread(median=0.25, low=0.2, high=0.3),
    )
    lines = table_of(result(cost("baseline"), fast), crm, monkeypatch).splitlines()
    assert lines[0].startswith("crm 1.2.3 on Some CPU + Some GPU, device cuda:0, torch 2.9")
    assert "790 TFLOP/s in bfloat16, 50 TFLOP/s in float32 and copies 4.3e+03 GB/s" in lines[1]
    rows = dict(_cells(line) for line in lines[2:20])
    assert rows["photos an hour"] == ["1,440", "14,400"]
    assert rows["times the baseline"] == ["–", "10.0×"]
    assert rows["networks alone"] == ["1,800", "1,800"]
    assert rows["besides the networks"] == ["0.25", "0.25"]
    assert rows["so at most, 16 cores"] == ["230,400", "230,400"]
    assert rows["accelerator busy"] == ["–", "93%"]
    assert rows["memory at most, GB"] == ["6.50", "6.50"]
    assert rows["photos measured"] == ["3", "3"]
    assert rows["steps measured"] == ["20 + 20"] * 2
    imagine = next(line for line in lines if line.startswith("imagine")).split()
    # 4 TFLOP in 2 s, where half a second would do.
    assert imagine == ["imagine", "2,000.0", "80%", "1", "4", "2", "4.00"]
    unwrap = next(line for line in lines if line.startswith("unwrap")).split()
    assert unwrap == ["unwrap", "500.0", "20%", "0.25"]


def _cells(line: str) -> tuple[str, list[str]]:
    name, *values = re.split(r"\s{2,}", line.strip())
    return name, values


def test_what_holds_for_none_is_left_out(crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = cost("default", steps={"rgb": (1, 1), "ccm": (2, 2)})
    run = Command(first_s=8.0, again_s=5.0, photos=6, photos_s=20.0)
    told = table_of(result(alone, networks="embedded", device="cpu", cores=2, run=run), crm, monkeypatch)
    rows = dict(_cells(line) for line in told.splitlines()[2:20])
    # Each of two cores makes one in 1.25 s.
    assert rows["photos an hour, 2 cores"] == ["5,760"]
    assert rows["steps measured"] == ["1 + 2"]
    assert "accelerator busy" not in told and "times the baseline" not in told
    assert "random values" not in told and "reckoned" not in told
    assert "8.0 s from its start to the first mesh, 5.0 s once" in told
    assert "6 photos in 20.0 s: 1,080 an hour" in told
    assert "core-seconds over threads" in told


def test_four_systems_fit_in_eighty_columns(crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {
        "cpu_s": 1234.5,
        "over_baseline": 123.4,
        "photo_s": Spread(median=1250.0, low=1230.0, high=1290.0),
    }
    short = {"rgb": (3, 50), "ccm": (3, 50)}
    four = [cost(name, steps=short, **slow) for name in ("baseline", "exact", "fast", "turbo")]
    told = table_of(result(*four, device="cpu"), crm, monkeypatch)
    tables = told.split("One photo at a time")[0].splitlines()[2:]
    assert len(tables) > 25 and max(map(len, tables)) <= 80
    rows = dict(_cells(line) for line in tables[:22])
    assert rows["from–to"] == ["1,230–1,290"] * 4 and rows["steps measured"] == ["2 × 3 of 50"] * 4


def test_one_photo_has_no_spread_and_embedded_networks_no_server(
    crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = table_of(result(cost("default", photos=1), networks="embedded"), crm, monkeypatch)
    assert "from–to" not in told and "16 cores" not in told.split("default", 1)[1]


def test_a_cpu_measures_the_embedded_networks_and_an_accelerator_the_published_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_networks("cpu") == "embedded"
    monkeypatch.setattr(module, "resolve_device", lambda device: "cuda:0")
    assert choose_networks("auto") == "published"


def test_a_preset_that_is_none_ends_with_its_name_and_nothing_is_measured(crm: Crm) -> None:
    told = crm("bench", "--networks", "miniature", "-p", "fsat")
    assert told.code == 2 and "fsat" in told.err


@pytest.mark.parametrize("words", [("--precision", "float8"), ("-p", "tiny", "--steps", "0")])
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(
    words: tuple[str, ...], crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_peaks", lambda *given: pytest.fail("something was measured"))
    told = crm("bench", "--networks", "miniature", *words)
    assert told.code == 2 and words[-2] in told.err


def test_networks_that_do_not_fit_are_refused_before_they_are_drawn(
    crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "usable_memory", lambda: 10**10)
    monkeypatch.setattr(module, "measure_peaks", lambda *given: pytest.fail("something was measured"))
    told = crm("bench", "--networks", "published", "--device", "cpu", "--precision", "float32")
    # 2 × 941.7 million values in the denoisers, 1.2 thousand million beside them, and 3 GB to work in.
    needed = float(told.err.split("need ")[1].split(" GB")[0])
    assert told.code == 6 and 14 < needed < 17
    assert "10.0 GB are free" in told.err and "--no-baseline" in told.err


def test_a_time_limit_that_is_none_is_refused(crm: Crm) -> None:
    told = crm("bench", "--time-limit", "soon", "--device", "cpu")
    assert told.code == 2 and "--time-limit soon: not a time" in told.err


def test_the_command_is_timed_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    ticks = iter([0.0, 8.0, 10.0, 15.0, 20.0, 60.0, 70.0, 75.0, 80.0, 92.0])

    def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        called.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    photos = [tmp_path / name for name in ("a.png", "b.png")]
    found = command.time_command(photos, device="cpu")
    assert found == Command(first_s=8.0, again_s=5.0, photos=2, photos_s=40.0)
    assert found.photos_an_hour == 180
    assert command.time_command(photos[:1], device="cpu").photos_s == 12.0, "the second time, once more"
    *given, _, _ = [words[words.index("convert") + 1 : words.index("-o")] for words in called]
    assert given == [[str(photos[0])], [str(photos[0])], [str(photo) for photo in photos]]


def test_a_command_that_does_not_work_ends_the_measuring_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"crm convert ends with 7: .*nowhere\.png: No such file"):
        command.time_command([tmp_path / "nowhere.png"], device="cpu")
