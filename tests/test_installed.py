import sys
import warnings
from pathlib import Path

import pytest

from crm_cli.installed import why_not_importable


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The source of a library that is nowhere else, and leaves with the test."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "brittle_library.py"
    sys.modules.pop("brittle_library", None)


def test_what_imports_has_nothing_against_it(library: Path) -> None:
    library.write_text("import warnings; warnings.warn('old', DeprecationWarning)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert why_not_importable("brittle_library", remedy="") is None


def test_what_is_missing_is_told_with_its_remedy() -> None:
    assert why_not_importable("brittle_library.part", remedy="build it") == "not installed: build it"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import brittle_dependency", "ModuleNotFoundError: No module named 'brittle_dependency'"),
        (
            "raise ImportError('undefined symbol: _ZN3c10\\nlong')",
            "ImportError: undefined symbol: _ZN3c10",
        ),
        ("raise OSError('libcudart.so.13: cannot open')", "OSError: libcudart.so.13: cannot open"),
        ("raise RuntimeError", "RuntimeError"),
        ("(", "SyntaxError: '(' was never closed (brittle_library.py, line 1)"),
    ],
)
def test_what_is_there_but_does_not_load_is_told_with_its_reason(
    library: Path, source: str, reason: str
) -> None:
    library.write_text(source)
    told = why_not_importable("brittle_library", remedy="")
    assert told == f"found but cannot be imported: {reason}"


def test_a_part_that_a_library_lacks_is_not_the_library_missing(library: Path) -> None:
    library.touch()
    told = why_not_importable("brittle_library.part", remedy="")
    assert told is not None and told.startswith("found but cannot be imported: ModuleNotFoundError")
