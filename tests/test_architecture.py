"""Imports go from room to room as the tables of docs/architecture.md say, and no two files import each other in a circle.

The tables are the rules: a row names a room (a file or a folder), its job, and the rooms it may import. Rows stand in order: a
room may import rows below its own only. Imports inside functions count; those of a room from itself are its own affair, but for
circles.
"""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = {"rnn_triton": ROOT / "rnn_triton", "rnn_triton.kernels": ROOT / "kernels", "rnn_triton.bench": ROOT / "bench"}

# Imports that break a rule of the page today: (importing file, imported file): why, and what will end it.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def sources():
    """{module name: its file} of all three packages; the link rnn_triton/kernels is left out."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if not (package == "rnn_triton" and parts[0] == "kernels"):
                found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(name, path, modules):
    """The modules of ours that a file imports, wherever in the file, by the names in `modules`."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in names:
            if dotted.split(".")[0] in ("bench", "kernels"):  # as a checkout has them at its top
                dotted = f"rnn_triton.{dotted}"
            while dotted not in modules and "." in dotted:  # a name in a module
                dotted = dotted.rpartition(".")[0]
            if dotted in modules and dotted != name:
                yield dotted


def tables():
    """{room: (place in the order, rooms it may import)}. A room is a path in the package, rnn_triton/kernels and
    rnn_triton/bench included; the rows of the benchmark, which the page has last, stand above all others."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            (room,) = re.findall(r"`([^`]+)`", cells[0])
            assert room not in rows, f"{room} has two rows"
            place = len(rows) - (1000 if room.startswith("bench/") else 0)
            rows[room] = (place, set(re.findall(r"`([^`]+)`", cells[2])))
    return rows


def room_of(path, rooms):
    """The row of a file: the file itself, or the folder it lies in at any depth."""
    at = path.relative_to(ROOT).as_posix().removeprefix("rnn_triton/")
    return next((room for room in rooms if at == room or (room.endswith("/") and at.startswith(room))), None)


MODULES = sources()
IMPORTS = {name: set(imported(name, path, MODULES)) for name, path in MODULES.items()}
ROOMS = tables()


def short(name):
    return MODULES[name].relative_to(ROOT).as_posix()


def test_every_file_is_in_a_room_and_every_room_is_there():
    assert {room_of(path, ROOMS) for path in MODULES.values()} - {None} == set(ROOMS)
    assert [short(name) for name, path in MODULES.items() if room_of(path, ROOMS) is None] == []


def test_a_room_may_import_rooms_below_it_only():
    for room, (place, allowed) in ROOMS.items():
        assert allowed <= set(ROOMS), f"{room}: no such rooms {allowed - set(ROOMS)}"
        assert all(place < ROOMS[other][0] for other in allowed), f"{room} may import what stands above it"


def test_imports_keep_to_the_tables():
    broken = {}
    for name, others in IMPORTS.items():
        room = room_of(MODULES[name], ROOMS)
        for other in others:
            target = room_of(MODULES[other], ROOMS)
            if room and target not in (room, *ROOMS[room][1]):
                broken[short(name), short(other)] = f"{room} may not import {target}"
    assert {pair: why for pair, why in broken.items() if pair not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(broken), "an exception that is none any more: delete it"


def test_every_permission_is_used():
    used = {(room_of(MODULES[name], ROOMS), room_of(MODULES[other], ROOMS)) for name in IMPORTS for other in IMPORTS[name]}
    assert {(room, other) for room, (_, allowed) in ROOMS.items() for other in allowed} - used == set()


def test_the_benchmark_stays_within_its_size():
    """What measures is no larger than it has to be: who adds to it looks first for what can go."""
    assert sum(len(file.read_text("utf-8").splitlines()) for file in (ROOT / "bench").rglob("*.py")) <= 8500


def test_no_circle_between_files():
    # a package's __init__.py runs before any of its modules, so a module that names its package imports what it reads there
    try:
        list(graphlib.TopologicalSorter(IMPORTS).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(map(short, reversed(error.args[1]))))


def test_the_drawing_shows_every_room_of_a_call():
    drawing = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r">([\w/]+(?:\.py|/))<", drawing))
    assert shown <= {*ROOMS, "bench/"}
    assert {room for room in ROOMS if room.endswith("/") and not room.startswith("bench/")} <= shown
