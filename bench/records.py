"""Records: one JSON object a line, written as the run goes; the only writer and the only reader of them.

Every record has `schema`, `kind`, `run` (an id shared by one run) and `environment`; KINDS names the other fields of
each kind. Times are in microseconds unless a field's name says otherwise; raw samples are kept, statistics are made
by the reader. A field may be added within a schema version; removing or redefining one raises SCHEMA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "wrong", "error", "timeout", "unsupported")

_NUMBER = (int, float)
_NONE = type(None)
# field -> accepted types
COMMON: dict[str, tuple[type, ...]] = {"schema": (int,), "kind": (str,), "run": (str,), "environment": (dict,)}
ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "date": (str,), "commit": (str, _NONE), "dirty": (bool, _NONE), "device": (str,), "capability": (int, _NONE),
    "driver": (str, _NONE), "clocks": (dict,), "torch": (str,), "triton": (str,), "cudnn": (int, _NONE),
    "cuda": (str, _NONE), "python": (str,),
}  # fmt: skip
KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    # one (case, provider, pass) on a GPU
    "timing": {
        "case": (str,), "shape": (dict,), "pass": (str,), "provider": (str,), "status": (str,), "message": (str,),
        "device_us": (list,), "graph_us": (list,), "wall_us": (list,),  # raw samples per call; empty: not measured
        "short_T": (int, _NONE), "short_us": (list,),  # the same problem over short_T steps, for the slope
        "peak_bytes": (int, _NONE), "errors": (dict,), "plan": (dict, _NONE), "kernels": (list,),
        "floor_us_per_step": (*_NUMBER, _NONE), "practical_us_per_step": (*_NUMBER, _NONE),  # estimates
    },
    # one (case, provider) against the fp64 reference; choices: what rnn_triton.overriding was given
    "check": {
        "case": (str,), "shape": (dict,), "provider": (str,), "implementation": (str,), "status": (str,),
        "message": (str,), "errors": (dict,), "choices": (dict,), "plan": (dict, _NONE),
    },
    # one recurrence alone, without GEMMs after it
    "exchange": {
        "case": (str,), "shape": (dict,), "direction": (str,), "choices": (dict,), "plan": (dict, _NONE),
        "status": (str,), "message": (str,), "errors": (dict,),
        "device_us": (list,), "short_T": (int, _NONE), "short_us": (list,),  # raw samples per call, as of a timing
        "practical_us_per_step": (*_NUMBER, _NONE),  # an estimate
    },
    # one constant of the latency model, measured
    "constant": {
        "name": (str,), "unit": (str,), "case": (str,), "choices": (dict,), "plan": (dict, _NONE), "status": (str,),
        "message": (str,), "value": (*_NUMBER, _NONE), "model": (*_NUMBER, _NONE),
        "x": (list,), "us": (list,),  # where it was measured, and the median microseconds there
    },
    # one property of launches that is there or not
    "behaviour": {
        "name": (str,), "case": (str,), "choices": (dict,), "status": (str,), "message": (str,), "seconds": _NUMBER,
    },
    # one compiled plan
    "resources": {
        "problem": (dict,), "plan": (dict,), "resources": (dict,), "status": (str,), "message": (str,),
        "floor_us_per_step": (*_NUMBER, _NONE), "practical_us_per_step": (*_NUMBER, _NONE),  # estimates
    },
    # one training run of an example
    "training": {
        "example": (str,), "implementation": (str,), "seed": (int,), "accuracy": _NUMBER, "loss": (list,),
        "seconds": _NUMBER,
    },
}  # fmt: skip

# Fields added within this schema version, and what a record without them means.
ADDED: dict[str, dict[str, Any]] = {"check": {"choices": {}, "plan": None}}


@dataclass(frozen=True)
class Problem:
    """A line that is not a record."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def validate(record: Any) -> None:
    """ValueError that names the first fault."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}; this reader knows {SCHEMA}")
    kind = record.get("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    _fields(record, COMMON | KINDS[kind], "")
    _fields(record["environment"], ENVIRONMENT, "environment.")
    if "status" in record and record["status"] not in STATUSES:
        raise ValueError(f"status {record['status']!r}; expected one of {', '.join(STATUSES)}")
    for field in ("device_us", "graph_us", "wall_us", "short_us"):
        for sample in record.get(field, ()):
            if isinstance(sample, bool) or not isinstance(sample, _NUMBER) or not sample > 0 or math.isinf(sample):
                raise ValueError(f"{field}: {sample!r} is not a time")


def _fields(mapping: dict[str, Any], fields: dict[str, tuple[type, ...]], prefix: str) -> None:
    for field, types in fields.items():
        if field not in mapping:
            raise ValueError(f"field {prefix}{field} is missing")
        value = mapping[field]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"field {prefix}{field}: expected {expected}, got {type(value).__name__}")


class Writer:
    """Writes validated records to `path`, each on disk before write() returns; the file starts empty."""

    def __init__(self, path: Path, run: str, environment: dict[str, Any]):
        self.path, self.run, self.environment = path, run, environment
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Add one record of `kind`; returns it as a reader would see it."""
        record = {"schema": SCHEMA, "kind": kind, "run": self.run, "environment": self.environment, **fields}
        line = json.dumps(record, allow_nan=True)
        record = json.loads(line)
        validate(record)
        self._file.write(line + "\n")
        self._file.flush()
        return record

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
                    if isinstance(record, dict):
                        record = {**ADDED.get(str(record.get("kind")), {}), **record}
                    validate(record)
                except ValueError as error:  # JSON and UTF-8 errors are ValueErrors too
                    problems.append(Problem(str(path), number, str(error)))
                else:
                    found.append(record)
    return found, problems


def quantiles(samples: Sequence[float]) -> tuple[float, float, float] | None:
    """(p20, median, p80), linear interpolation between the sorted samples; None for no samples."""
    if not samples:
        return None
    ordered = sorted(samples)

    def at(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return at(0.2), at(0.5), at(0.8)


@dataclass(frozen=True)
class Row:
    """A timing record as figures and tables want it; None: not measured. Times per step in microseconds."""

    run: str
    environment: dict[str, Any]
    case: str
    shape: dict[str, Any]
    pass_: str
    provider: str
    status: str
    message: str
    us: tuple[float, float, float] | None  # per call on the device: p20, median, p80
    graph_us: tuple[float, float, float] | None
    wall_us: tuple[float, float, float] | None
    us_per_step: float | None  # median over T
    slope_us_per_step: float | None  # free of launch cost
    floor_us_per_step: float | None  # an estimate
    fraction_of_floor: float | None  # floor time / measured time
    peak_bytes: int | None
    speedup: float | None = None  # of this provider over BASELINE, same run, case and pass, by `us`
    graph_speedup: float | None = None


BASELINE = "torch.nn.RNN"


def rows(records: Iterable[dict[str, Any]]) -> list[Row]:
    """The newest timing of each (device, case, pass, provider), with speedups within its run.

    Only a status of ok carries times; a wrong result has no speedup, on either side.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        if record["kind"] == "timing":
            key = (record["environment"]["device"], record["case"], record["pass"], record["provider"])
            if key not in newest or record["environment"]["date"] >= newest[key]["environment"]["date"]:
                newest[key] = record
    found = []
    for (device, case, pass_, _), record in newest.items():
        base = newest.get((device, case, pass_, BASELINE))
        found.append(_row(record, base if base and base["run"] == record["run"] else None))
    return found


def _row(record: dict[str, Any], base: dict[str, Any] | None) -> Row:
    def measured(of: dict[str, Any] | None, field: str) -> tuple[float, float, float] | None:
        return quantiles(of[field]) if of and of["status"] == "ok" else None

    def ratio(field: str) -> float | None:
        ours, theirs = measured(record, field), measured(base, field)
        return theirs[1] / ours[1] if ours and theirs else None

    T = record["shape"]["T"]
    us, short = measured(record, "device_us"), measured(record, "short_us")
    floor = record["floor_us_per_step"]
    return Row(
        run=record["run"],
        environment=record["environment"],
        case=record["case"],
        shape=record["shape"],
        pass_=record["pass"],
        provider=record["provider"],
        status=record["status"],
        message=record["message"],
        us=us,
        graph_us=measured(record, "graph_us"),
        wall_us=measured(record, "wall_us"),
        us_per_step=us[1] / T if us else None,
        slope_us_per_step=(us[1] - short[1]) / (T - record["short_T"]) if us and short else None,
        floor_us_per_step=floor,
        fraction_of_floor=floor * T / us[1] if us and floor else None,
        peak_bytes=record["peak_bytes"],
        speedup=ratio("device_us"),
        graph_speedup=ratio("graph_us"),
    )
