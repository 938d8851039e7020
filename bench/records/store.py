"""Record files: one JSON object a line, written as the run goes; the only writer and the only reader of them."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schema import KINDS, SCHEMA, check, fields_of, sampled, validate


@dataclass(frozen=True)
class Problem:
    """A line that is not a record."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Adds validated records to the file at `path`, each on disk before write() returns.

    `fresh`: the file starts empty; otherwise it goes on from what is there, a broken last line kept as it is."""

    def __init__(self, path: Path, run: str, environment: dict[str, Any], fresh: bool = True):
        self.path, self.run, self.environment = path, run, environment
        path.parent.mkdir(parents=True, exist_ok=True)
        broken = not fresh and path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._file = path.open("w" if fresh else "a", encoding="utf-8")
        if broken:
            self._file.write("\n")

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Add one record of `kind`; returns it as a reader would see it.

        Fields that no reader would take are left empty, and the record's status is "error": they cost no more than their
        record.  ValueError where that does not help, or the kind has no status."""
        record = {"schema": SCHEMA, "kind": kind, "run": self.run, "date": now(), "environment": self.environment, **fields}
        try:
            line = _line(record)
        except ValueError as refused:
            if "status" not in fields_of(KINDS[kind]):
                raise
            why = "; ".join(filter(None, (f"cannot be recorded: {refused}", fields.get("message"))))
            try:
                line = _line(record | _emptied(kind, fields) | {"status": "error", "message": why})
            except ValueError:
                raise refused from None
        self._file.write(line + "\n")
        self._file.flush()
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _line(record: dict[str, Any]) -> str:
    """A record as a line of its file; ValueError where a reader would refuse it"""
    try:
        line = json.dumps(record, allow_nan=True)
    except TypeError as error:  # no JSON
        raise ValueError(str(error)) from None
    validate(json.loads(line))
    return line


def _emptied(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a record of the kind cannot have as they are, each with the first empty value that it can have"""
    empty: tuple[Any, ...] = (None, {}, [], sampled(), "", 0)
    known = fields_of(KINDS[kind])
    refused = [name for name, field in known.items() if not _holds(field, fields.get(name))]
    return {name: next((v for v in empty if _holds(known[name], v)), None) for name in refused}


def _holds(annotation: Any, value: Any) -> bool:
    try:
        check(json.loads(json.dumps(value)), annotation, "")
    except (TypeError, ValueError):
        return False
    return True


def read(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """All valid records of the files in order, and the lines that are none. Nothing valid is lost to a bad line."""
    found, problems = [], []
    for path in paths:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    record = json.loads(raw.decode("utf-8"))
                    validate(record)
                except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors too
                    problems.append(Problem(str(path), number, str(error)))
                else:
                    found.append(record)
    return found, problems


def now() -> str:
    """UTC, to the second: a record's date"""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


RESULTS = Path(__file__).resolve().parents[1] / "results"
MOST_PROBLEMS = 5  # lines of a record file that are named one by one


def known(out: Path) -> list[Path]:
    """The record files that came with the source, and those of runs in `out`."""
    return [*sorted(RESULTS.rglob("*.jsonl")), *sorted(out.glob("*.jsonl"))]


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of the files; what is damaged or foreign is said on standard error, line by line, and left out."""
    found, problems = read(paths)
    for path in dict.fromkeys(problem.path for problem in problems):
        those = [problem for problem in problems if problem.path == path]
        for problem in those[:MOST_PROBLEMS]:
            print(f"skipped {problem}", file=sys.stderr)
        if rest := len(those[MOST_PROBLEMS:]):
            print(f"skipped {path}: {rest} more lines, the last {those[-1].line}; nothing was changed", file=sys.stderr)
    return found
