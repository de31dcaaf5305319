import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.records import Failed, Job, WrittenFile
from crm_cli.run.wire import dumps, from_plain, to_plain

NAMES = st.binary(min_size=1, max_size=12).map(os.fsdecode).filter(lambda name: "\0" not in name)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    NAMES.map(PurePosixPath),
    NAMES.map(Path),
    st.builds(WrittenFile, path=NAMES.map(PurePosixPath), size=st.integers(), sha256=st.text()),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(MappingProxyType),
    ),
)


@given(VALUES)
def test_a_line_is_the_json_of_what_a_value_is_in_plain(value: Any) -> None:
    plain = json.dumps(to_plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    assert dumps(value) == plain


@given(NAMES.map(PurePosixPath), NAMES.map(Path), st.floats(0, 1e9))
def test_a_record_comes_back_as_it_was(path: PurePosixPath, root: Path, limit: float) -> None:
    job = Job(root=root, path=path, stem=path, id="i", scratch=root / "s", max_mpixels=limit)
    assert from_plain(Job, json.loads(dumps(job))) == job


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps(value)


@pytest.mark.parametrize("value", [{1}, object(), b"bytes"])
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    for tell in (dumps, to_plain):
        with pytest.raises(TypeError, match=type(value).__name__):
            tell([value])


def test_a_value_of_another_type_is_named() -> None:
    plain = to_plain(Failed(path=PurePosixPath("a"), kind="io", code="E", message="m", stage="s"))
    for name, wrong, told in (
        ("attempts", True, "expected int, got bool"),
        ("code", None, "expected str, got NoneType"),
        ("kind", "bad", "Literal"),
        ("path", 1, "expected a path, got int"),
    ):
        with pytest.raises(ValueError, match=told):
            from_plain(Failed, {**plain, name: wrong})


def test_names_in_records_are_kept_once() -> None:
    texts = ('{"some long stage": 1}', '{"some long stage": 2}')
    mappings: list[Mapping[str, int]] = [from_plain(Mapping[str, int], json.loads(text)) for text in texts]  # type: ignore[type-abstract]
    first, second = (next(iter(mapping)) for mapping in mappings)
    assert first is second
