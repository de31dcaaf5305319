"""The schema of `crm.events/1`, as JSON Schema, read off the events themselves.

Types and fields are only ever added, so a consumer must let unknown ones pass; the schema does too.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from crm_cli.run.events import SCHEMA, Event

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """What every line of an event stream is."""
    kinds = sorted(Event.__subclasses__(), key=lambda kind: kind.type)
    return {
        "$schema": DIALECT,
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        "title": SCHEMA,
        "description": "One event of a crm run, a line each. Types and fields are only ever added.",
        "type": "object",
        "required": ["schema", "type", "t"],
        "properties": {
            "schema": {"const": SCHEMA},
            "type": {"type": "string"},
            "t": {"type": "number", "description": "Seconds since 1970."},
        },
        "allOf": [
            {"if": {"properties": {"type": {"const": kind.type}}}, "then": {"$ref": f"#/$defs/{kind.type}"}}
            for kind in kinds
        ],
        "$defs": {kind.type: _described(kind) for kind in kinds},
    }


def _described(kind: type[Event]) -> dict[str, Any]:
    """One type of event."""
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {}
    for field in fields(kind):
        properties.update(_property(field, hints[field.name]))
    required = [one.name for one in fields(kind) if one.default is one.default_factory is MISSING]
    return {
        "description": (kind.__doc__ or "").split("\n")[0],
        "type": "object",
        "required": required,
        "properties": properties,
    }


def _property(field: Field[Any], hint: Any) -> Iterator[tuple[str, Any]]:
    """One field; a path has a companion that is exact where the path is not UTF-8."""
    yield field.name, _type(hint)
    exact: dict[str, Any] = {"type": "string", "contentEncoding": "base64"}
    about = f"The bytes of `{field.name}`, where they are not UTF-8."
    if hint in (Path, PurePosixPath) or Path in get_args(hint):
        yield f"{field.name}_b64", {**exact, "description": about}
    elif get_origin(hint) is tuple:
        yield f"{field.name}_b64", {"type": "array", "items": exact, "description": about}


def _type(hint: Any) -> dict[str, Any]:
    """A type as JSON has it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        kinds = [_type(argument) for argument in arguments]
        different = [kind for number, kind in enumerate(kinds) if kind not in kinds[:number]]
        return different[0] if len(different) == 1 else {"anyOf": different}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    if is_dataclass(hint):
        properties = {name: _type(kind) for name, kind in get_type_hints(hint).items()}
        return {"type": "object", "required": list(properties), "properties": properties}
    names = {bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": names.get(hint, "string")}
