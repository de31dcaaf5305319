"""Presets and flags that make no sense: one line and exit code 2, never a traceback, never a wait."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fakes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from output import plant

from crm_cli.cli.app import main
from crm_cli.errors import UsageError
from crm_cli.preset import MAX_PRESET_BYTES, Override, load_preset
from crm_cli.preset import settings as all_settings

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""A hundred before a release."""

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

SCALARS = st.one_of(
    st.sampled_from(
        [
            "~",
            "null",
            "true",
            "yes",
            "1",
            "-1",
            "1.5",
            ".nan",
            ".inf",
            "-.inf",
            "1e400",
            "0x1F",
            "0o17",
            "1:30:00",
            "1" * 4000,
            "9" * 5000,
            "2020-13-45",
            "2020-01-01",
            "!!python/object/apply:os.system [touch canary]",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!python/object/new:os.system [touch canary]",
            "!!binary x",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "!!int x",
            "!!float x",
            "!!timestamp x",
            "!foo bar",
            "&a *a",
            "*a",
            "&a [*a]",
            "[" * 3000,
            "{" * 3000,
            "- " * 3000,
            "? [a]\n: b",
            "<<: 1",
            "|\n x",
            "'",
            '"',
            "%YAML 9.9",
            "---\n---",
            "@",
            "`",
            "\t",
            "\t- a",
            "a:\tb",
            "default.yaml",
            "~/x.yaml",
            "~nobody-of-this-name/x.yaml",
            '"a\\0.yaml"',
            "/dev/zero",
            "/dev/stdin",
            "n" * 300 + ".yaml",
            "own.yaml",
            "$(touch canary)",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)

KEYS = st.one_of(
    st.sampled_from([*all_settings(), "rgb", "extends", "mesh", "<<", "? ", "a" * 5000]), st.text(max_size=8)
)

LINES = st.builds(
    lambda key, value, indent, flow: f"{' ' * indent}{key}: " + (f"{{{value}: {value}}}" if flow else value),
    KEYS,
    SCALARS,
    st.integers(0, 3),
    st.booleans(),
)

FILES = st.one_of(
    st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    SCALARS.map(lambda text: text.encode("utf-8", "surrogatepass")),
)


def complaint(load: Callable[[], object]) -> str:
    """The one line of a refusal; empty where nothing is refused."""
    try:
        load()
    except UsageError as error:
        assert error.exit_code == 2 and "\n" not in str(error) and len(str(error)) < 1000
        return str(error)
    return ""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=500 * TIMES, suppress_health_check=SHARED)
@given(content=FILES)
def test_any_preset_file_is_taken_or_refused_in_one_line(workplace: Path, content: bytes) -> None:
    (workplace / "own.yaml").write_bytes(content)
    complaint(lambda: load_preset("own.yaml"))
    assert not (workplace / "canary").exists()


@settings(max_examples=250 * TIMES, suppress_health_check=SHARED)
@given(key=KEYS, text=SCALARS, name=st.one_of(SCALARS, st.text(max_size=5).map(lambda text: f"{text}.yaml")))
def test_any_override_and_any_name_is_taken_or_refused_in_one_line(
    workplace: Path, key: str, text: str, name: str
) -> None:
    complaint(lambda: load_preset(overrides=[Override(key, text, "--set")]))
    complaint(lambda: load_preset(name))
    assert not (workplace / "canary").exists()


def laughs(line: str) -> str:
    return "a0: &a0 {x: 1}\n" + "\n".join(
        line.replace("A", f"a{n}").replace("B", f"a{n - 1}") for n in range(1, 12)
    )


BOMBS = {
    "a billion laughs": laughs("A: &A [" + ", ".join(["*B"] * 9) + "]"),
    "a billion laughs as mappings": laughs("A: &A {" + ", ".join(f"k{n}: *B" for n in range(9)) + "}"),
    "merged without end": laughs("A: &A {<<: [" + ", ".join(["*B"] * 9) + "]}"),
    "merged once too often": "a: &a {x: 1}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(9)),
    "merged as large as may be": (
        "a: &a {" + ", ".join(f"k{n}: 1" for n in range(5000)) + "}\n"
        "b: &b {<<: [*a, *a, *a]}\nc: &c {<<: [*b, *b, *b]}\nd: {<<: [*c, *c]}\n"
    ),
    "ten thousand keys": "\n".join(f"k{n}: 1" for n in range(7000)),
    "brackets": "seed: " + "[" * 60_000,
    "braces": "seed: " + "{a: " * 15_000,
    "dashes": "- " * 30_000,
    "a key without end": "k" * 60_000 + ": 1",
    "a number without end": "seed: " + "1" * 60_000,
    "a number in sixties": "seed: " + "1:" * 30_000 + "1",
    "a text without end": "weights: '" + "x" * 60_000,
    "a circle": "a: &a {b: *a}",
    "a circle of merging": "a: &a {<<: *a}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_preset_that_grows_is_refused_in_little_time_and_few_words(workplace: Path, name: str) -> None:
    assert len(BOMBS[name]) < MAX_PRESET_BYTES
    (workplace / "own.yaml").write_text(BOMBS[name])
    began = time.process_time()
    assert complaint(lambda: load_preset("own.yaml"))
    # Unbounded, the worst of them takes more years than this has seconds; the clock is the process's own.
    assert time.process_time() - began < 30


def test_a_few_aliases_are_as_good_as_what_they_stand_for(workplace: Path) -> None:
    (workplace / "own.yaml").write_text("rgb: &rgb {steps: 7, solver: ddim}\nccm: {<<: *rgb, steps: 9}\n")
    preset = load_preset("own.yaml").preset
    assert (preset.rgb.steps, preset.ccm.steps, preset.ccm.solver) == (7, 9, "ddim")


@pytest.mark.parametrize(
    "name",
    [
        "~nobody-of-this-name/x.yaml",
        "a\0.yaml",
        "n" * 300 + ".yaml",
        "circle.yaml",
        "folder.yaml",
        "a.yaml/b.yaml",
        "\x1b[2J.yaml",
    ],
)
def test_a_name_that_leads_nowhere_is_no_such_preset(workplace: Path, name: str) -> None:
    (workplace / "circle.yaml").symlink_to("circle.yaml")
    (workplace / "folder.yaml").mkdir()
    (workplace / "a.yaml").touch()
    assert "no such preset file [E_PRESET_NAME]" in complaint(lambda: load_preset(name))
    (workplace / "own.yaml").write_text(
        f"extends: {name!r}\n" if "\0" not in name else 'extends: "a\\0.yaml"\n'
    )
    assert "E_PRESET" in complaint(lambda: load_preset("own.yaml"))


@pytest.mark.parametrize("where", ["seed", "weights", "rgb", "extends", "export.formats"])
def test_presets_cannot_name_code(workplace: Path, where: str) -> None:
    for tag in (
        "object/apply:os.system",
        "object/new:os.system",
        "object/apply:subprocess.Popen",
        "name:os.system",
    ):
        text = f"!!python/{tag} [touch canary]"
        section, _, inner = where.partition(".")
        (workplace / "own.yaml").write_text(
            f"{section}: {{{inner}: {text}}}" if inner else f"{where}: {text}"
        )
        assert "not valid YAML" in complaint(lambda: load_preset("own.yaml"))
        override = Override(where, text, "--set")
        assert "not valid YAML" in complaint(partial(load_preset, overrides=[override]))
    assert not (workplace / "canary").exists()


FLAGS = (
    "--preset",
    "--set",
    "--matting",
    "--weights",
    "--format",
    "--from-file",
    "--include",
    "--exclude",
    "--limit",
    "--shard",
    "--jobs",
    "--device",
    "--precision",
    "--timeout",
    "--max-mpixels",
    "--cache-size",
    "--wait-lock",
    "--progress",
    "--out",
    "--no-such-flag",
    "--color",
)

VALUES = st.one_of(
    SCALARS,
    st.sampled_from(
        [
            "",
            "-",
            "--",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "1/0",
            "0/1",
            "-1/2",
            "2/1",
            "1/99999999999999999999",
            "[",
            "[!",
            "**",
            "seed=",
            "=",
            "rgb.steps=nan",
            "unwrap=nan",
            "unwrap=-1",
            "=5",
            "20G",
            "-1G",
            "1e3G",
            "G",
            "cuda:-1",
            "cuda:" + "9" * 50,
            "0" * 5000,
            "9" * 5000,
            "glb,,",
            ",",
            "\ud800",
            "\udcff",
            "a\nb",
            "\x1b[2J",
            "/dev/null",
        ]
    ),
)


@settings(max_examples=100 * TIMES, suppress_health_check=SHARED)
@given(words=st.lists(st.tuples(st.sampled_from(FLAGS), VALUES), min_size=1, max_size=3))
def test_any_flag_with_any_value_is_taken_or_refused_with_a_code_and_without_a_traceback(
    workplace: Path, words: list[tuple[str, str]]
) -> None:
    plant(workplace / "in", "a.jpg")
    given_words = [f"{flag}={value}" for flag, value in words]
    if any("\0" in word or "stdin" in word or word == "--from-file=-" for word in given_words):
        return  # no argument can hold a NUL, and nobody writes to this test's stdin
    if any(word.startswith("--from-file=/dev/zero") for word in given_words):
        return  # a list without end is the caller's own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["crm", "convert", "in", "-o", "out", "--dry-run", "--progress=none", *given_words]
        )
        with pytest.raises(SystemExit) as ended:
            main(fakes.engine())
    assert ended.value.code in (0, 2, 5, 6, 7), given_words
    assert sorted(os.listdir(workplace)) == ["in"]  # noqa: PTH208
