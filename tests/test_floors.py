"""The house: who may import whom. A module imports only from floors below, or from its own room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import crm_cli

HOUSE = Path(crm_cli.__file__).parent

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"frame", "errors", "names", "installed", "srgb"}),
    frozenset({"records", "preset"}),
    frozenset({"fragments", "bundle"}),
    frozenset({"models", "mesh", "export"}),
    frozenset({"toolbox", "cache", "inspection"}),
    frozenset({"lane"}),
    frozenset({"pipeline"}),
    frozenset({"run", "learn"}),
    frozenset({"doctor", "licences", "screen", "bench"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Rooms from the ground up. A room is a module or a package; `crm_cli` itself holds only the version."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

LIGHT_ROOMS = {
    "frame",
    "errors",
    "names",
    "preset",
    "records",
    "fragments",
    "run",
    "cli",
    "screen",
    "__main__",
}
"""What the coordinator is made of: it must start fast and answer signals."""

HEAVY = {
    "torch",
    "numpy",
    "PIL",
    "warp",
    "cv2",
    "scipy",
    "trimesh",
    "xatlas",
    "pxr",
    "yaml",
    "jinja2",
    "rich",
    "fsspec",
    "s3fs",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(HOUSE.rglob("*.py")):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names of everything imported, also inside functions and for type checking alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "crm_cli" and len(parts) > 1 and parts[1] not in ("__version__",):
            yield parts[1], line


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in modules()} <= set(FLOOR_OF)


def test_a_module_imports_only_from_floors_below_or_its_own_room() -> None:
    wrong = [
        f"{path.relative_to(HOUSE)}:{line} ({room}) imports {other}"
        for room, path in modules()
        for other, line in rooms_imported(path)
        if other != room and FLOOR_OF[other] >= FLOOR_OF[room]
    ]
    assert wrong == []


def at_top(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names imported when a module is, which leaves out functions and type checking."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def test_no_heavy_library_is_imported_on_the_way_to_a_plan() -> None:
    wrong = [
        f"{path.relative_to(HOUSE)}:{line} imports {name}"
        for room, path in modules()
        if room in LIGHT_ROOMS
        for name, line in at_top(ast.parse(path.read_text()))
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_the_walk_sees_imports_inside_functions() -> None:
    tree = ast.parse("def f():\n    from crm_cli.run.batch import convert\n    import crm_cli.models.weights")
    assert [name for name, _ in imports(tree)] == ["crm_cli.run.batch.convert", "crm_cli.models.weights"]
