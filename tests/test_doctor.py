import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crm_cli import doctor
from crm_cli.cli.app import app
from crm_cli.doctor import examine
from crm_cli.models import weights
from crm_cli.models.memory import Need


def test_a_machine_with_everything_can_convert() -> None:
    report = examine()
    assert report.can_convert
    assert not [line for line in report.lines if "MISSING" in line or line.startswith("required:")]


@pytest.mark.parametrize(("name", "module"), [("torch", "torch"), ("xatlas", "xatlas"), ("usd-core", "pxr")])
def test_a_missing_library_is_named_with_its_remedy_and_the_exit_code_says_so(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    told = CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == 6
    assert f"{name} MISSING" in told.stdout and f"pip install {name}" in told.stdout
    assert "weights: " in told.stdout


@pytest.mark.parametrize("error", [OSError("libcudart.so.13: cannot open"), RuntimeError("half installed")])
def test_a_torch_that_breaks_while_it_is_loaded_is_reported_and_not_met_with_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> list[str]:
        raise error

    monkeypatch.setattr(doctor, "accelerators", break_down)
    report = examine()
    assert not report.can_convert
    assert f"tools: cannot be loaded: {type(error).__name__}: {error}" in report.lines


@pytest.mark.parametrize(("name", "module"), doctor.COMPILED.items())
def test_a_compiled_library_that_does_not_load_is_reported_with_its_reason_and_how_to_build_it_again(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open\\nsearched: /usr/lib')")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda wanted: "9.9" if wanted == name else found(wanted))
    lines = examine().lines
    reason = "found but cannot be imported: OSError: libcudart.so.13: cannot open"
    place = lines.index(f"optional: {name} 9.9 {reason}")
    assert lines[place + 1] == f"  {doctor.OPTIONAL[name]} --force-reinstall --no-deps"


@pytest.mark.parametrize("name", doctor.COMPILED)
def test_a_compiled_library_is_built_against_the_torch_that_is_there(name: str) -> None:
    tools, build = doctor.OPTIONAL[name].split(" && ")
    assert {"wheel", "ninja"} <= set(tools.split())
    assert build.endswith(" --no-build-isolation")


def test_the_weights_in_use_are_told_with_their_kind_digest_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path))
    found = weights.find("embedded")
    line = f"weights: embedded (small, {found.digest[:12]}, {weights.DIRECTORY})"
    assert line in examine().lines


def test_broken_weights_are_told_with_their_remedy_and_nothing_can_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_WEIGHTS_HOME", str(tmp_path))
    (tmp_path / "published").mkdir()
    report = examine()
    assert not report.can_convert
    [line] = [line for line in report.lines if line.startswith("weights: ")]
    assert "E_WEIGHTS_BROKEN" in line and "crm weights fetch" in line


@pytest.mark.parametrize(
    ("free", "fate"), [(8e9, "all stay"), (3.5e9, "2.4 GB free for them: they take turns")]
)
def test_what_the_published_networks_need_is_told_beside_what_there_is(
    monkeypatch: pytest.MonkeyPatch, free: float, fate: str
) -> None:
    found = Need(weights={"rgb": 1_900_000_000, "rest": 3_700_000_000}, work={"rgb": 0, "rest": 0})
    monkeypatch.setattr("crm_cli.models.memory.need", lambda architecture, preset, dtype: found)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (int(free), int(free)))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    line = doctor._memory("release", "cuda:0")
    needs = "6.7 GB with all networks in bfloat16, 4.8 GB with one at a time"
    assert line == f"memory on cuda:0: {needs}; {fate}"


def test_the_embedded_networks_need_too_little_to_be_told() -> None:
    lines, can_convert = doctor._weights([])
    assert can_convert and len(lines) == 1
