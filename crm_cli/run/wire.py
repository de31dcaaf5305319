"""Records as JSON and back: between processes, and in the output folder.

Decoding checks every type, so that a damaged file or a confused worker is a ValueError here and not a
surprise further on.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

PathText = NewType("PathText", str)
"""A path as text, for thousands that are read and compared: Paths of them would take a fifth of a plan."""

Decoder = Callable[[Any], Any]
"""Turns what JSON gave into a value of one type, or raises ValueError."""

LENGTH = struct.Struct(">I")
"""Every message is preceded by its size in bytes."""

MAX_MESSAGE_BYTES = 64 << 20
"""No message comes near; a larger size is a stream that lost its place."""

_SCALARS = (str, int, float, bool)
"""Types whose values JSON gives as they are."""


def to_plain(value: Any) -> Any:
    """Turn a record into what JSON can hold.

    A path that is not UTF-8 becomes `{"b64": …}`: JSON has no bytes, and such names exist.
    """
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return to_plain(_opened(value))


def _opened(value: Any) -> Any:
    """A record, a path or a mapping as what JSON can hold, with whatever is inside it as it is."""
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: getattr(value, name) for name in field_names(kind)}
    if isinstance(value, Path | PurePosixPath):
        raw = os.fsencode(value)
        return str(value) if _is_utf8(raw) else {"b64": base64.b64encode(raw).decode("ascii")}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


@cache
def field_names(kind: Any) -> tuple[str, ...]:
    """Fields of a record, asked once: a plan of thousands would ask as often."""
    return tuple(field.name for field in fields(kind))


# The encoder walks lists and numbers in C and asks us for our own kinds alone: a run writes a dozen lines a
# photo, and this takes a third of the time that to_plain would.
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_opened)


def from_plain(kind: type[T], value: Any) -> T:
    """Rebuild a record from what JSON gave; ValueError where it does not fit."""
    hashable: Any = kind
    decoded: T = _decoder(hashable)(value)
    return decoded


def dumps(value: Any) -> str:
    """One line of compact JSON, ASCII only: neither newlines nor half characters can break a stream."""
    return _ENCODER.encode(value)


def frame(value: Any) -> bytes:
    """One message with its length before it."""
    body = dumps(value).encode("ascii")
    return LENGTH.pack(len(body)) + body


class Unframer:
    """Collects bytes from a pipe and gives back whole messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield every message that is now complete; ValueError where the bytes are none."""
        self._pending += data
        while len(self._pending) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._pending)
            if size > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {size} bytes")
            end = LENGTH.size + size
            if len(self._pending) < end:
                return
            body = bytes(self._pending[LENGTH.size : end])
            del self._pending[:end]
            message = json.loads(body)
            if not isinstance(message, dict):
                raise ValueError("a message that is no object")
            yield message


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _decoder(kind: Any) -> Decoder:
    """How a value of this type is rebuilt; worked out once, since a plan reads thousands of records."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _checking(kind, lambda value: value in arguments)
    if origin in (Union, types.UnionType):  # only `X | None` occurs in records
        inner = _decoder(arguments[0])
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        inner = _decoder(arguments[0])
        is_list = _exactly(list)
        return lambda value: tuple([inner(item) for item in is_list(value)])
    if origin is not None:  # Mapping[str, X]
        inner = _decoder(arguments[1])
        is_object = _exactly(dict)
        # Interned: thousands of records share the few names that they hold.
        return lambda value: {sys.intern(key): inner(item) for key, item in is_object(value).items()}
    if is_dataclass(kind):
        return _record_decoder(kind)
    if kind is PathText:
        return _path_text
    if issubclass(kind, PurePosixPath | Path):
        return lambda value: kind(_path_text(value))
    if kind is float:
        is_number = _checking(kind, lambda value: type(value) in (float, int))
        return lambda value: float(is_number(value))
    return _exactly(kind)


def _exactly(kind: Any) -> Decoder:
    """Hand a value on where it is of a type itself: True is no number here."""

    def decode(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(kind, value)
        return value

    return decode


def _checking(kind: Any, fits: Callable[[Any], bool]) -> Decoder:
    """Hand a value on where it fits."""

    def decode(value: Any) -> Any:
        if not fits(value):
            raise _misfit(kind, value)
        return value

    return decode


def _misfit(kind: Any, value: Any) -> ValueError:
    return ValueError(f"expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")


def _record_decoder(kind: Any) -> Decoder:
    """Rebuild a dataclass from its fields; unknown ones are passed over, as a later version may add some."""
    # Most fields are texts and numbers: these are looked at here, without a call for each.
    hints = get_type_hints(kind).items()
    parts = [(name, hint if hint in _SCALARS else None, _decoder(hint)) for name, hint in hints]

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _misfit(dict, value)
        values = {}
        for name, scalar, part in parts:
            if name in value:
                item = value[name]
                values[name] = item if type(item) is scalar else part(item)
        try:
            return kind(**values)
        except TypeError as error:  # a field without default is missing
            raise ValueError(f"{kind.__name__}: {error}") from error

    return decode


def _path_text(value: Any) -> str:
    """Rebuild a path as text, also one that is not UTF-8."""
    if type(value) is dict and type(value.get("b64")) is str:
        return os.fsdecode(base64.b64decode(value["b64"]))
    if type(value) is not str:
        raise ValueError(f"expected a path, got {type(value).__name__}")
    return value
