"""Records as JSON and back: between processes, and in the output folder.

Decoding checks every type, so that a damaged file or a confused worker is a ValueError here and not a
surprise further on.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

LENGTH = struct.Struct(">I")
"""Every message is preceded by its size in bytes."""

MAX_MESSAGE_BYTES = 64 << 20
"""No message comes near; a larger size is a stream that lost its place."""


def to_plain(value: Any) -> Any:
    """Turn a record into what JSON can hold.

    A path that is not UTF-8 becomes `{"b64": …}`: JSON has no bytes, and such names exist.
    """
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path | PurePosixPath):
        raw = os.fsencode(value)
        return str(value) if _is_utf8(raw) else {"b64": base64.b64encode(raw).decode("ascii")}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """Rebuild a record from what JSON gave; ValueError where it does not fit."""
    decoded: T = _decode(kind, value)
    return decoded


def dumps(value: Any) -> str:
    """One line of compact JSON, ASCII only: neither newlines nor half characters can break a stream."""
    return json.dumps(to_plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)


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
def _hints(kind: type) -> dict[str, Any]:
    """Field types of a record, resolved once."""
    return get_type_hints(kind)


def _decode(kind: Any, value: Any) -> Any:
    """Rebuild one value of the given type."""
    origin = get_origin(kind)
    if origin is None:
        return _decode_plain(kind, value)
    arguments = get_args(kind)
    if origin is Annotated:
        return _decode(arguments[0], value)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin in (Union, types.UnionType):
        # Only `X | None` occurs in records.
        return None if value is None else _decode(arguments[0], value)
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_decode(arguments[0], item) for item in value)
    elif isinstance(value, dict):  # Mapping[str, X]
        return {str(key): _decode(arguments[1], item) for key, item in value.items()}
    raise ValueError(f"expected {kind}, got {type(value).__name__}")


def _decode_plain(kind: type, value: Any) -> Any:
    """Rebuild a record, a path or a plain value."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
        hints = _hints(kind)
        try:
            return kind(**{name: _decode(hints[name], value[name]) for name in hints if name in value})
        except TypeError as error:  # a field without default is missing
            raise ValueError(f"{kind.__name__}: {error}") from error
    if issubclass(kind, PurePosixPath | Path):
        if isinstance(value, dict) and isinstance(value.get("b64"), str):
            return kind(os.fsdecode(base64.b64decode(value["b64"])))
        if isinstance(value, str):
            return kind(value)
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
