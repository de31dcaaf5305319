"""`crm train` from outside: signals, exit codes, refusals before anything is begun."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from crm_cli.cli.app import app
from crm_cli.errors import CrmError, EnvironmentProblem, OutputError, StoppedEarly, UsageError
from crm_cli.learn import course
from crm_cli.learn.checkpoint import NAME, saved_step
from crm_cli.learn.data import Shards
from crm_cli.learn.tasks import RgbTask

SETTINGS = [
    *("--examples", "4", "--held-out", "8", "--steps", "9"),
    *("--batch", "2", "--warmup", "2", "--save-every", "4"),
]

pytestmark = pytest.mark.usefixtures("tiny_networks", "no_board")


def train(network: str, data: Path, out: Path, more: Sequence[str | Path] = ()) -> Result:
    words = ["train", network, "--data", str(data), "--out", str(out), *SETTINGS, *map(str, more)]
    return CliRunner().invoke(app, words)


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, result.exception or result.output
    return result.output


def refused(result: Result, kind: type[CrmError]) -> CrmError:
    assert isinstance(result.exception, kind), result.exception or result.output
    return result.exception


def test_one_command_trains_looks_and_ships(data: Path, tmp_path: Path) -> None:
    more = ["--sample-every", 4, "--measure-every", 9, "--ship", tmp_path / "rgb.safetensors"]
    output = succeeded(train("rgb", data, tmp_path / "run", [str(word) for word in more]))
    assert "rgb.safetensors: colour 0." in output
    assert f"crm weights combine {tmp_path / 'rgb.safetensors'} -o FOLDER" in " ".join(output.split())
    assert (tmp_path / "rgb.safetensors").exists()
    names = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*.*")}
    pictures = {f"samples/step-{step:06d}.png" for step in (4, 8, 9)}
    assert names == {NAME, "log.csv", "held-out.csv", *pictures}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    succeeded(train("ccm", data, tmp_path / "straight"))
    real, left = Shards.batch, [6]

    def batch(self: Shards, indices: object) -> object:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)
        return real(self, indices)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "batch", batch)
        result = train("ccm", data, tmp_path / "run", ["--ship", tmp_path / "ccm.safetensors"])
    assert result.exit_code == 128 + number
    assert f"{number.name}: stopped at step 6 of 9; the same command goes on" in result.output
    assert saved_step(tmp_path / "run") == 6
    assert not (tmp_path / "ccm.safetensors").exists()
    assert "resuming ccm at step 6" in succeeded(train("ccm", data, tmp_path / "run"))
    assert (tmp_path / "run" / NAME).read_bytes() == (tmp_path / "straight" / NAME).read_bytes()


def test_an_interrupt_while_weights_are_shipped_has_its_code(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "ship", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    result = train("rgb", data, tmp_path / "run", ["--ship", tmp_path / "rgb.safetensors"])
    assert result.exit_code == 130
    assert saved_step(tmp_path / "run") == 9


def test_a_loss_that_is_no_number_ends_with_the_code_for_stopping_early(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = RgbTask.loss, [6]

    def loss(self: RgbTask, *given: object) -> object:
        left[0] -= 1
        total, terms = real(self, *given)  # type: ignore[arg-type]
        return (total if left[0] else total * torch.inf), terms

    monkeypatch.setattr(RgbTask, "loss", loss)
    error = refused(train("rgb", data, tmp_path / "run"), StoppedEarly)
    assert "step 6:" in str(error) and "E_TRAIN_DIVERGED" in str(error) and error.exit_code == 4
    assert saved_step(tmp_path / "run") == 4


def test_accumulating_is_part_of_the_settings(data: Path, tmp_path: Path) -> None:
    succeeded(train("rgb", data, tmp_path / "run", ["--accumulate", "2"]))
    error = refused(train("rgb", data, tmp_path / "run"), UsageError)
    assert error.cause.endswith("other settings: --accumulate 2, not 1")


def test_a_place_for_weights_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for file, said in ((tmp_path, "a folder"), (tmp_path / "missing" / "rgb.safetensors", "no folder")):
        error = refused(train("rgb", tmp_path / "data", tmp_path / "run", ["--ship", file]), OutputError)
        assert said in error.cause
    assert list(tmp_path.iterdir()) == []


def test_first_weights_that_are_not_there_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    more = ["--first", tmp_path / "missing.safetensors"]
    error = refused(train("ccm", tmp_path / "data", tmp_path / "run", more), EnvironmentProblem)
    assert "missing.safetensors" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--learning-rate", "inf"], "E_TRAIN_SETTINGS"),
        (["--learning-rate", "0"], "E_TRAIN_SETTINGS"),
        (["--average", "1"], "E_TRAIN_SETTINGS"),
        (["--precision", "float8"], "E_TRAIN_PRECISION"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_anything_is_made(
    tmp_path: Path, words: list[str], code: str
) -> None:
    assert refused(train("rgb", tmp_path / "data", tmp_path / "run", words), UsageError).code == code
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_written_or_read_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--data" in str(refused(train("rgb", tmp_path / "file", tmp_path / "run"), OutputError))
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "0000000.npz").write_bytes(b"PK")
    error = refused(train("rgb", tmp_path / "data", tmp_path / "run"), UsageError)
    assert error.code == "E_TRAIN_DATA" and "damaged" in str(error) and "remove it" in error.remedy
    assert not (tmp_path / "run").exists()


def test_a_precision_that_a_cpu_is_slow_in_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = succeeded(train("rgb", data, tmp_path / "a", ["--precision", "float16", "--steps", "2"]))
    assert "--precision float16: this CPU calculates float16 many times slower than float32" in output
    monkeypatch.setattr("crm_cli.toolbox._processor_flags", lambda: {"avx2"})
    output = succeeded(train("rgb", data, tmp_path / "b", ["--precision", "bfloat16", "--steps", "2"]))
    assert "this CPU calculates bfloat16 many times slower" in output
    monkeypatch.setattr("crm_cli.toolbox._processor_flags", lambda: {"amx_bf16"})
    output = succeeded(train("rgb", data, tmp_path / "c", ["--precision", "bfloat16", "--steps", "2"]))
    assert "slower" not in output


def test_the_help_puts_flags_together_by_what_they_are_about() -> None:
    output = succeeded(CliRunner().invoke(app, ["train", "--help"]))
    titles = ["What to learn from:", "Where:", "How long, and how:", "What is told and kept:", "Options:"]
    places = [output.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    ends = [*places[1:], len(output)]
    sections = {title: output[start:end] for title, start, end in zip(titles, places, ends, strict=True)}
    for title, flag in zip(
        titles, ("--examples", "--device", "--accumulate", "--sample-every", "--help"), strict=True
    ):
        assert [name for name, text in sections.items() if f"  {flag} " in text or f", {flag} " in text] == [
            title
        ]
