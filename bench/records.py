"""Records: one JSON object a line, written as the run goes; the only writer and the only reader of them.

Every record has `schema`, `kind`, `run` (an id shared by one run), `date` and `environment`; KINDS names the other
fields of each kind. Times are in microseconds unless a field's name says otherwise. Raw samples are kept, beside their
median and 20th and 80th percentile. A field may be added within a schema version; removing or redefining one raises
SCHEMA. `rows` turns timing records into the tidy table that figures, tables and comparisons are made from.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 2
STATUSES = ("ok", "wrong", "error", "timeout", "unsupported", "missing")

OURS = "rnn_triton"
# torch.nn.RNN as it is, and as a module for every layer and direction: the faster of them is what ours is compared with.
BASELINES = ("cudnn", "cudnn-layers")

_NUMBER = (int, float)
_NONE = type(None)
# field -> accepted types
COMMON: dict[str, tuple[type, ...]] = {
    "schema": (int,), "kind": (str,), "run": (str,), "date": (str,), "environment": (dict,),
}  # fmt: skip
ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "commit": (str, _NONE), "dirty": (bool, _NONE), "source": (str,),  # a digest of the code that runs and measures
    "device": (str,), "capability": (int, _NONE), "hardware": (dict, _NONE),  # rnn_triton.hardware.Device
    "driver": (str, _NONE), "clocks": (dict,),  # when the run began
    "torch": (str,), "triton": (str,), "cudnn": (int, _NONE), "cuda": (str, _NONE), "python": (str,),
}  # fmt: skip
# Samples: {"samples": raw, "p20", "median", "p80"}, the last three None where there are no samples.
SAMPLED = ("device_us", "graph_us", "wall_us", "short_us")
KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    # one (case, provider, pass) on a GPU
    "timing": {
        "case": (str,), "shape": (dict,), "pass": (str,), "provider": (str,), "status": (str,), "message": (str,),
        "version": (str, _NONE),  # of the provider's package, where it is not torch's
        "device_us": (dict,), "graph_us": (dict,), "wall_us": (dict,),  # per call: eager, replayed, host and all
        "short_T": (int, _NONE), "short_us": (dict,),  # the same problem over short_T steps, for the slope
        "peak_bytes": (int, _NONE), "errors": (dict,), "plan": (dict, _NONE), "kernels": (list,),
        "floor_us_per_step": (*_NUMBER, _NONE), "practical_us_per_step": (*_NUMBER, _NONE),  # estimates
        "parts_us_per_step": (dict,),  # of the practical estimate; the largest is the bottleneck
        "telemetry": (dict,),  # while it was measured, medians: sm_mhz, memory_mhz, power_w, temperature_c
        "seconds": _NUMBER,  # that measuring the case took, all its providers and passes
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
        "device_us": (dict,), "short_T": (int, _NONE), "short_us": (dict,),  # as of a timing
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
    for field in SAMPLED:
        if field in record:
            _samples(record[field], field)


def _fields(mapping: dict[str, Any], fields: dict[str, tuple[type, ...]], prefix: str) -> None:
    for field, types in fields.items():
        if field not in mapping:
            raise ValueError(f"field {prefix}{field} is missing")
        value = mapping[field]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"field {prefix}{field}: expected {expected}, got {type(value).__name__}")


def sampled(samples: Sequence[float] = ()) -> dict[str, Any]:
    """A field of SAMPLED: the samples in the order they were taken, and their quantiles."""
    found = quantiles(samples)
    return dict(zip(("samples", "p20", "median", "p80"), (list(samples), *(found or (None,) * 3))))


def _samples(value: dict[str, Any], field: str) -> None:
    _fields(value, {"samples": (list,)}, f"{field}.")
    for sample in value["samples"]:
        if isinstance(sample, bool) or not isinstance(sample, _NUMBER) or not sample > 0 or math.isinf(sample):
            raise ValueError(f"{field}: {sample!r} is not a time")
    for name, expected in sampled(value["samples"]).items():
        got = value.get(name)
        same = got == expected
        if isinstance(got, _NUMBER) and isinstance(expected, float):
            same = math.isclose(got, expected, rel_tol=1e-9)
        if not same:
            raise ValueError(f"{field}.{name} is {got!r}, but its samples give {expected!r}")


class Writer:
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
        """Add one record of `kind`; returns it as a reader would see it."""
        record = {"schema": SCHEMA, "kind": kind, "run": self.run, "date": now(), "environment": self.environment, **fields}
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


def now() -> str:
    """UTC, to the second: a record's date"""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


Quantiles = tuple[float, float, float]  # p20, median, p80


@dataclass(frozen=True)
class Row:
    """A timing record as figures and tables want it; None: not measured. Times per step in microseconds."""

    run: str
    date: str
    environment: dict[str, Any]
    case: str
    shape: dict[str, Any]  # the fields of cases.Case
    pass_: str
    provider: str
    status: str
    message: str
    version: str | None
    us: Quantiles | None  # per call on the device
    graph_us: Quantiles | None
    wall_us: Quantiles | None
    samples: tuple[float, ...]  # raw device microseconds per call
    us_per_step: float | None  # median over T
    slope_us_per_step: float | None  # free of launch cost
    floor_us_per_step: float | None  # an estimate, as are the next two
    practical_us_per_step: float | None
    bound: str | None  # the largest part of the practical estimate: the model's bottleneck
    fraction_of_floor: float | None  # floor time / measured time
    peak_bytes: int | None
    errors: dict[str, dict[str, float]]  # quantity -> rel, rel_tol, max, max_tol
    plan: dict[str, Any] | None
    kernels: list[dict[str, Any]]  # by the profiler: name, count, us
    telemetry: dict[str, Any]
    baseline: str | None = None  # the faster of BASELINES in the same run, case and pass
    speedup: float | None = None  # over it, by `us`
    graph_speedup: float | None = None  # over the faster of BASELINES by `graph_us`

    @property
    def regime(self) -> str | None:
        """Of the forward plan of ours"""
        return ((self.plan or {}).get("forward") or {}).get("regime")

    @property
    def error(self) -> float | None:
        """The largest relative error of y or hn against fp64"""
        return max((self.errors[q]["rel"] for q in ("y", "hn") if q in self.errors), default=None)

    def tidy(self) -> dict[str, Any]:
        """One line of a CSV file: scalars alone, the same columns for every row."""
        e = self.environment
        return {
            "case": self.case, "pass": self.pass_, "provider": self.provider, "status": self.status,
            **self.shape,
            **{f"us_{name}": value for name, value in zip(("p20", "median", "p80"), self.us or (None,) * 3)},
            "graph_us_median": self.graph_us[1] if self.graph_us else None,
            "wall_us_median": self.wall_us[1] if self.wall_us else None,
            "us_per_step": self.us_per_step, "slope_us_per_step": self.slope_us_per_step,
            "floor_us_per_step": self.floor_us_per_step, "practical_us_per_step": self.practical_us_per_step,
            "fraction_of_floor": self.fraction_of_floor, "bound": self.bound, "regime": self.regime,
            "speedup": self.speedup, "graph_speedup": self.graph_speedup, "baseline": self.baseline,
            "peak_bytes": self.peak_bytes, "error": self.error, "device": e["device"], "driver": e["driver"],
            "torch": e["torch"], "triton": e["triton"], "cudnn": e["cudnn"], "commit": e["commit"],
            "version": self.version, "date": self.date, "run": self.run, "message": self.message,
        }  # fmt: skip


def rows(records: Iterable[dict[str, Any]]) -> list[Row]:
    """The newest timing of each (device, case, pass, provider), with speedups within its run.

    Only a status of ok carries times; a wrong result has no speedup, on either side."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        if record["kind"] == "timing":
            key = (record["environment"]["device"], record["case"], record["pass"], record["provider"])
            if key not in newest or record["date"] >= newest[key]["date"]:
                newest[key] = record
    found = []
    for (device, case, pass_, _), record in newest.items():
        base = [newest.get((device, case, pass_, name)) for name in BASELINES]
        found.append(_row(record, [b for b in base if b and b["run"] == record["run"]]))
    return found


def measured(record: dict[str, Any], field: str) -> Quantiles | None:
    """(p20, median, p80) of a sampled field of a timing record; None where it was not measured or is wrong."""
    s = record[field]
    return (s["p20"], s["median"], s["p80"]) if record["status"] == "ok" and s["samples"] else None


def _row(record: dict[str, Any], baselines: Sequence[dict[str, Any]]) -> Row:
    def fastest(field: str) -> tuple[float, str] | None:
        return min(((q[1], b["provider"]) for b in baselines if (q := measured(b, field))), default=None)

    T = record["shape"]["T"]
    us, short, graph = (measured(record, field) for field in ("device_us", "short_us", "graph_us"))
    floor, parts = record["floor_us_per_step"], record["parts_us_per_step"]
    base, graph_base = fastest("device_us"), fastest("graph_us")
    return Row(
        run=record["run"],
        date=record["date"],
        environment=record["environment"],
        case=record["case"],
        shape=record["shape"],
        pass_=record["pass"],
        provider=record["provider"],
        status=record["status"],
        message=record["message"],
        version=record["version"],
        us=us,
        graph_us=graph,
        wall_us=measured(record, "wall_us"),
        samples=tuple(record["device_us"]["samples"]) if us else (),
        us_per_step=us[1] / T if us else None,
        slope_us_per_step=(us[1] - short[1]) / (T - record["short_T"]) if us and short and record["short_T"] < T else None,
        floor_us_per_step=floor,
        practical_us_per_step=record["practical_us_per_step"],
        bound=max(parts, key=lambda part: parts[part]) if parts else None,
        fraction_of_floor=floor * T / us[1] if us and floor else None,
        peak_bytes=record["peak_bytes"],
        errors=record["errors"],
        plan=record["plan"],
        kernels=record["kernels"],
        telemetry=record["telemetry"],
        baseline=base[1] if base else None,
        speedup=base[0] / us[1] if base and us else None,
        graph_speedup=graph_base[0] / graph[1] if graph_base and graph else None,
    )
