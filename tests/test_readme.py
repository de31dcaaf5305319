"""What the README says can be typed exists, and what it says is run is what runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pickles import write_published

from crm_cli.cli.app import app
from crm_cli.errors import ExitCode
from crm_cli.preset import Override, list_presets, load_preset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CRM = typer.main.get_command(app)


def blocks() -> list[str]:
    """Contents of all fenced blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def inline() -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def shell_lines() -> Iterator[str]:
    """Every command of the fenced blocks and of the prose, one a line."""
    for block in blocks():
        joined = re.sub(r"\\\n\s*", " ", block).replace("&&\n", "&& ")
        yield from re.split(r"\s*&&\s*|\n", joined)
    yield from inline()


def crm_calls() -> list[list[str]]:
    """Words after `crm` of every call of it."""
    found = [re.fullmatch(r"\s*(?:\S*/)?crm +(.+)", line) for line in shell_lines()]
    return [shlex.split(match[1], comments=True) for match in found if match]


def parse(words: list[str]) -> dict[str, Any]:
    """Let click read a call down to its last command, without running it; returns its parameters."""
    command, context = CRM, None
    while hasattr(command, "commands"):
        context = command.make_context(str(command.name), words, parent=context)
        name, command, words = command.resolve_command(context, words)
    return dict(command.make_context(name, list(words), parent=context).params)


def options(command: Any) -> set[str]:
    """Every option of a command and of those below it."""
    names = (name for given in command.params for name in (*given.opts, *given.secondary_opts))
    own = {name for name in names if name.startswith("-")}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


def options_in_prose() -> list[str]:
    return sorted({option for text in inline() for option in re.findall(r"(?<!\S)--[a-z-]+", text)})


def marked(name: str) -> str:
    """The fenced block behind a marker."""
    found = re.findall(rf"<!-- {name} -->\n```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README.md must mark one {name}"
    return str(found[0])


def test_the_calls_of_crm_are_found() -> None:
    commands = {words[0] for words in crm_calls()}
    assert {"convert", "train", "presets", "status", "doctor"} <= commands


@pytest.mark.parametrize("words", crm_calls(), ids=" ".join)
def test_every_call_in_the_readme_is_one_that_click_accepts(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("option", options_in_prose())
def test_every_option_in_the_prose_exists(option: str) -> None:
    assert option in options(CRM)


def test_every_setting_and_preset_in_the_table_exists() -> None:
    assignments = re.findall(r"--set (\S+=\S+)", " ".join(inline()))
    named = re.findall(r"--preset (\w+)", " ".join(inline()))
    assert assignments and named
    load_preset("default", [Override.from_assignment(text) for text in assignments])
    assert set(named) <= set(list_presets())


def test_every_exit_code_is_explained_and_every_explained_one_exists() -> None:
    table = README[README.index("| exit code |") :]
    table = table[: table.index("\n\n")]
    told = {int(number) for row in table.splitlines()[2:] for number in re.findall(r"\d+", row.split("|")[1])}
    known = {int(code) for code in ExitCode}
    assert told == known


def test_the_first_command_installs_and_converts_the_photos_that_are_there() -> None:
    command = marked("first-command")
    assert len(command.strip().splitlines()) == 1
    [words] = [words for words in crm_calls() if "tests/photos" in words]
    parameters = parse(words)
    assert " ".join(["crm", *words]) in command
    assert [(ROOT / folder).is_dir() for folder in parameters["inputs"]] == [True]
    assert f"Then open `{parameters['out']}/report/index.html`" in README


def test_continuous_integration_runs_the_test_command_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    # In the last command's place, a bash that writes down what it was given.
    (tmp_path / "bash").write_text('#!/bin/sh\nprintf "%s" "$*" > given\n')
    (tmp_path / "bash").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["/bin/bash", tmp_path / ".ci" / "run"], check=True, env={"PATH": path})
    options, command = (tmp_path / "given").read_text().split(" -c ", 1)
    assert "e" in options
    assert command == marked("test-command").rstrip("\n")
    for tool in ("ruff check", "ruff format --check", "mypy", "python -m pytest"):
        assert tool in command


def test_without_a_test_command_continuous_integration_fails(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text(README.replace("<!-- test-command -->", ""), encoding="utf-8")
    done = subprocess.run(["/bin/bash", tmp_path / ".ci" / "run"], capture_output=True, text=True)
    assert done.returncode == 1 and "no test command" in done.stderr


def test_the_files_named_in_the_readme_exist() -> None:
    named = [text for text in inline() if re.fullmatch(r"(?:crm_cli|tests|presets)/[\w./]*", text)]
    assert named
    assert [text for text in named if not (ROOT / text).exists()] == []


def test_the_comparison_runs_as_it_stands_but_for_the_size(tmp_path: Path) -> None:
    [code] = re.findall(r"<!-- compare -->\n```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    smaller = {
        '"release"': '"miniature"',
        "part, tensors)": 'part, tensors, architecture="miniature")',
        "1, 77, 1024": "1, 77, 32",
    }
    for published, mini in smaller.items():
        assert published in code
        code = code.replace(published, mini)
    write_published(tmp_path)
    names: dict[str, Any] = {"pixel_diffusion": tmp_path / "pixel-diffusion.pth"}
    exec(code, names)
    assert names["noise"].shape == (1, 7, 4, 32, 32)
    assert names["noise"].std() > 0
    assert names["tokens"].shape == (1, 257, 32) and names["reference"].shape == (1, 4, 32, 32)


def test_the_presets_table_names_the_presets_of_the_published_weights() -> None:
    for name, steps, solver in re.findall(r"^\| `(\w+)` \| (\d+) \+ \d+, (\w+)", README, re.MULTILINE):
        sampling = load_preset(name).preset.rgb
        assert (sampling.steps, sampling.solver) == (int(steps), solver.lower())
