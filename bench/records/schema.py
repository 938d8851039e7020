"""Records: one JSON object a line, written as the run goes; the only writer and the only reader of them.

Every record has `schema`, `kind`, `run` (an id shared by one run), `date` and `environment`; KINDS names the other
fields of each kind. Times are in microseconds unless a field's name says otherwise. Raw samples are kept, beside their
median and 20th and 80th percentile. A field may be added within a schema version; removing or redefining one raises
SCHEMA. `rows` turns timing records into the tidy table that figures and tables are made from.

What `validate` lets pass, figures and tables can show: it knows type and range of all that they read.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _brief
from typing import Any

from ..cases import case as cases

SCHEMA = 4
TELEMETRY = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
STATUSES = ("ok", "wrong", "error", "timeout", "unsupported", "missing")

OURS = "rnn_triton"
# torch.nn.RNN as it is, and as a module for every layer and direction: the faster of them is what ours is compared with.
BASELINES = ("cudnn", "cudnn-layers")

# What a time depends on beside the case: records that agree in these are of the same commit and versions.  Not the
# commit itself: `source` is the same for all commits that change nothing of what runs and measures.
VERSIONS = ("source", "device", "driver", "torch", "triton", "cudnn", "cuda")


# ---- what a field may hold ------------------------------------------------------------------------------------------

Check = Callable[[Any, str], None]  # of a value and its field's name: ValueError that names the field

SHORTEST, LARGEST = 1e-9, 1e15  # no time in microseconds is outside of these, and no count, size or rate is larger


def _of(*types: type, low: float = -LARGEST) -> Check:
    """One of `types`: a number is finite and from `low` to LARGEST, a text can be written as UTF-8."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"field {field}: expected {expected}, got {type(value).__name__}")
        if isinstance(value, (int, float)) and not low <= value <= LARGEST:
            raise ValueError(f"field {field}: {_brief(value)} is not from {low:g} to {LARGEST:g}")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"field {field}: {_brief(value)} has half of a surrogate pair")

    return check


def _one_of(*names: str) -> Check:
    def check(value: Any, field: str) -> None:
        if value not in names:
            raise ValueError(f"field {field}: expected one of {', '.join(names)}, got {_brief(value)}")

    return check


def _if(type_: type, one: Check, other: Check) -> Check:
    """`one` of a value of that type, `other` of any other"""
    return lambda value, field: (one if isinstance(value, type_) else other)(value, field)


def _anything(value: Any, field: str) -> None:
    pass


def _or_none(one: Check) -> Check:
    return _if(type(None), _anything, one)


def _has(fields: Mapping[str, Check], optional: Mapping[str, Check] = {}, others: Check | None = None) -> Check:
    """A dict with these fields; those that are `optional`, and `others` by any name, it may have."""

    known = {**optional, **fields}

    def check(value: Any, field: str) -> None:
        OBJECT(value, field)
        prefix = f"{field}." if field else ""
        for name in fields:
            if name not in value:
                raise ValueError(f"field {prefix}{name} is missing")
        for name, part in value.items():
            if name in known:
                known[name](part, prefix + name)
            elif others is not None:
                TEXT(name, f"{field}: a name")
                others(part, prefix + name)

    return check


def _every(one: Check) -> Check:
    """A dict of such values by any name"""
    return _has({}, others=one)


def _list(one: Check) -> Check:
    def check(value: Any, field: str) -> None:
        LIST(value, field)
        for i, part in enumerate(value):
            one(part, f"{field}[{i}]")

    return check


def _samples(value: Any, field: str) -> None:
    """{"samples": raw, "p20", "median", "p80"}, the last three None where there are no samples"""
    QUANTILES(value, field)
    for sample in value["samples"]:
        if isinstance(sample, bool) or not isinstance(sample, (int, float)) or not SHORTEST <= sample <= LARGEST:
            raise ValueError(f"field {field}: {_brief(sample)} is not a time")
    for name, expected in sampled(value["samples"]).items():
        got = value.get(name)
        same = got == expected
        if isinstance(got, (int, float)) and isinstance(expected, float):
            same = math.isclose(got, expected, rel_tol=1e-9)
        if not same:
            raise ValueError(f"field {field}.{name} is {_brief(got)}, but its samples give {_brief(expected)}")


OBJECT, LIST, TEXT, NUMBER = _of(dict), _of(list), _of(str), _of(int, float)
COUNT, SIZE, TIME = _of(int, low=0), _of(int, low=1), _of(int, float, low=SHORTEST)
ANY_NUMBER = _if(float, _anything, NUMBER)  # infinite, and NaN too
QUANTILES = _has({"samples": LIST}, dict.fromkeys(("p20", "median", "p80"), _or_none(ANY_NUMBER)))
SCALAR = _of(str, int, float, bool, type(None))
SCALARS = _every(SCALAR)
STATUS = _one_of(*STATUSES)
# rel_tol and max_tol are limits of rel and max, which a wrong result can have without bounds
ERRORS = _every(_has({"rel": ANY_NUMBER, "rel_tol": TIME, "max": ANY_NUMBER, "max_tol": TIME}))
# Provider.plan: of ours a plan for each direction, of a network that of each launch besides
_DIRECTIONS: dict[str, Check] = dict.fromkeys(("forward", "backward"), _or_none(SCALARS))
_LAUNCHES = _list(_has({"lanes": SCALARS, **_DIRECTIONS}))
PLAN = _or_none(_has({}, {**_DIRECTIONS, "launches": _LAUNCHES}, _if(dict, SCALARS, SCALAR)))
# of cases.Case; that the values are those of a case, is seen by its name
SHAPE = _has({f.name: SIZE if f.type == "int" else SCALAR for f in dataclasses.fields(cases.Case)})
# rnn_triton.hardware.Device
HARDWARE: dict[str, Check] = {
    "name": TEXT, "capability": SIZE, "sms": SIZE, "shared_bytes": SIZE, "registers": SIZE, "l2_bytes": SIZE,
    "clock_ghz": TIME, "cooperative": _of(bool),
}  # fmt: skip
RESTRICTED: dict[str, Check] = {"together": _or_none(COUNT)}  # that of a device whose SMs are not all ours
ENVIRONMENT: dict[str, Check] = {
    "commit": _or_none(TEXT), "dirty": _or_none(_of(bool)), "source": TEXT,  # a digest of the code that runs and measures
    "device": TEXT, "capability": _or_none(SIZE), "hardware": _or_none(_has(HARDWARE, RESTRICTED)),
    "driver": _or_none(TEXT), "clocks": _every(_or_none(NUMBER)),  # when the run began
    "torch": TEXT, "triton": TEXT, "cudnn": _or_none(COUNT), "cuda": _or_none(TEXT), "python": TEXT,
}  # fmt: skip
COMMON: dict[str, Check] = {
    "schema": COUNT, "kind": TEXT, "run": TEXT, "date": TEXT, "environment": _has(ENVIRONMENT),
}  # fmt: skip
PROBLEM = _has({"direction": TEXT, "H": SIZE, "I": SIZE, "B": SIZE, "dtype": TEXT, "precision": _or_none(TEXT)})
# bench.resources.Resources, as far as it is shown
COMPILED = _has({
    "registers": COUNT, "spill_stores": COUNT, "spill_loads": COUNT, "shared_bytes": COUNT, "barriers": NUMBER,
    "global_load_arguments": SCALARS, "mma": NUMBER, "instructions": NUMBER, "estimated_cycles": NUMBER,
})  # fmt: skip
KINDS: dict[str, dict[str, Check]] = {
    # one (case, provider, pass) on a GPU
    "timing": {
        "case": TEXT, "shape": SHAPE, "pass": _one_of(*cases.PASSES), "provider": TEXT, "status": STATUS, "message": TEXT,
        "version": _or_none(TEXT),  # of the provider's package, where it is not torch's
        "device_us": _samples, "graph_us": _samples, "wall_us": _samples,  # per call: eager, replayed, host and all
        # of device_us: the spin before each sample, and how many began before the whole call was queued (timing.py)
        "spin_us": _or_none(NUMBER), "late": _or_none(COUNT),
        "short_T": _or_none(SIZE), "short_us": _samples,  # the same problem over short_T steps, for the slope
        "peak_bytes": _or_none(COUNT), "errors": ERRORS, "plan": PLAN,
        "kernels": _list(_has({"name": TEXT, "count": COUNT, "us": NUMBER})),  # by the profiler, longest first
        "floor_us_per_step": _or_none(TIME), "practical_us_per_step": _or_none(TIME),  # estimates
        "parts_us_per_step": _every(NUMBER),  # of the practical estimate; the largest is the bottleneck
        "telemetry": _every(NUMBER),  # while it was measured, medians: sm_mhz, memory_mhz, power_w, temperature_c
        "seconds": NUMBER,  # that measuring the case took, all its providers and passes
    },
    # one (case, provider) against the fp64 reference; choices: what rnn_triton.overriding was given
    "check": {
        "case": TEXT, "shape": SHAPE, "provider": TEXT, "implementation": TEXT, "status": STATUS,
        "message": TEXT, "errors": ERRORS, "choices": SCALARS, "plan": PLAN,
    },
    # one recurrence alone, without GEMMs after it
    "exchange": {
        "case": TEXT, "shape": SHAPE, "direction": _one_of("forward", "backward"), "choices": SCALARS, "plan": _or_none(SCALARS),
        "status": STATUS, "message": TEXT, "errors": ERRORS,
        "device_us": _samples, "short_T": _or_none(SIZE), "short_us": _samples,  # as of a timing
        "practical_us_per_step": _or_none(TIME),  # an estimate
    },
    # one constant of the latency model, measured
    "constant": {
        "name": TEXT, "unit": TEXT, "case": TEXT, "choices": SCALARS, "plan": _or_none(SCALARS), "status": STATUS,
        "message": TEXT, "value": _or_none(ANY_NUMBER), "model": _or_none(NUMBER),
        "x": _list(ANY_NUMBER), "us": _list(ANY_NUMBER),  # where it was measured, and the median microseconds there
    },
    # one property of launches that is there or not
    "behaviour": {
        "name": TEXT, "case": TEXT, "choices": SCALARS, "status": STATUS, "message": TEXT, "seconds": NUMBER,
    },
    # one compiled plan
    "resources": {
        "problem": PROBLEM, "plan": SCALARS, "resources": OBJECT, "status": STATUS, "message": TEXT,
        "floor_us_per_step": _or_none(TIME), "practical_us_per_step": _or_none(TIME),  # estimates
    },
    # one training run of an example
    "training": {
        "example": TEXT, "implementation": TEXT, "seed": _of(int), "accuracy": NUMBER, "loss": _list(ANY_NUMBER),
        "seconds": NUMBER,
    },
}  # fmt: skip
_RECORD = {kind: _has(COMMON | fields) for kind, fields in KINDS.items()}


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
        raise ValueError(f"schema {_brief(record.get('schema'))}; this reader knows {SCHEMA}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {_brief(kind)}; known: {', '.join(KINDS)}")
    _RECORD[kind](record, "")
    if "shape" in record:
        _case(record["shape"], record["case"])
    if kind == "resources" and record["status"] == "ok":
        COMPILED(record["resources"], "resources")
    if "short_us" in record and record["short_us"]["samples"] and record["short_T"] is None:
        raise ValueError("field short_T: None, but short_us has samples")


def _case(shape: dict[str, Any], name: str) -> None:
    try:
        expected = cases.parse(name)
    except ValueError as error:
        raise ValueError(f"field case: {error}") from None
    unknown = shape.keys() - {f.name for f in dataclasses.fields(cases.Case)}
    if unknown:
        raise ValueError(f"field shape.{min(unknown)} is of no cases.Case")
    got = cases.Case(**shape)
    if str(got) != str(expected) or got.name != name:  # as text 1, 1.0 and True differ
        raise ValueError(f"field shape: it is {got}, but {name} is {expected}")


def sampled(samples: Sequence[float] = ()) -> dict[str, Any]:
    """A field of times: the samples in the order they were taken, and their quantiles."""
    found = quantiles(samples)
    return dict(zip(("samples", "p20", "median", "p80"), (list(samples), *(found or (None,) * 3))))


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
        """Add one record of `kind`; returns it as a reader would see it.

        Fields that no reader would take are left empty, and the record's status is "error": they cost no more than their
        record.  ValueError where that does not help, or the kind has no status."""
        record = {"schema": SCHEMA, "kind": kind, "run": self.run, "date": now(), "environment": self.environment, **fields}
        try:
            line = _line(record)
        except ValueError as refused:
            if "status" not in KINDS[kind]:
                raise
            why = "; ".join(f"{part}" for part in (f"cannot be recorded: {refused}", fields.get("message")) if part)
            try:
                line = _line(record | _emptied(kind, fields) | {"status": "error", "message": why})
            except ValueError:
                raise refused from None
        self._file.write(line + "\n")
        self._file.flush()
        return json.loads(line)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    refused = [name for name, check in KINDS[kind].items() if not _holds(check, fields.get(name))]
    return {name: next((v for v in empty if _holds(KINDS[kind][name], v)), None) for name in refused}


def _holds(check: Check, value: Any) -> bool:
    try:
        check(json.loads(json.dumps(value)), "")
    except (TypeError, ValueError):
        return False
    return True


def is_switched(record: dict[str, Any]) -> bool:
    """Is it of one of several settings of a kernel side by side (probes.Switch), and not of a plan's own?"""
    return record["kind"] == "exchange" and "look_every" in record["choices"]


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
    late: int | None  # samples whose clock started before the whole call was queued
    baseline: str | None = None  # the faster of BASELINES in the run compared, see rows()
    speedup: float | None = None  # over it, by device time
    graph_speedup: float | None = None  # over the faster of BASELINES by replay of a CUDA graph
    gap: str = ""  # why there is no speedup although there is a time: NO_BASELINE or APART

    @property
    def regime(self) -> str | None:
        """Of the forward plan of ours"""
        found = ((self.plan or {}).get("forward") or {}).get("regime")
        return None if found is None else str(found)

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
            "peak_bytes": self.peak_bytes, "error": self.error,
            **{name: self.telemetry.get(name) for name in TELEMETRY}, "device": e["device"], "driver": e["driver"],
            "torch": e["torch"], "triton": e["triton"], "cudnn": e["cudnn"], "commit": e["commit"],
            "version": self.version, "date": self.date, "run": self.run, "message": self.message,
        }  # fmt: skip


NO_BASELINE = "no cuDNN time"
APART = "not in one run"  # both were timed, but see rows()


def rows(records: Iterable[dict[str, Any]]) -> list[Row]:
    """The newest timing of each (device, case, pass, provider), with its speedup.

    What was timed without a GPU (a dry run, whose clock is a stub) is no time, and gives no row.  A speedup is a ratio of
    two times of one run: of the newest run that timed both with the code and the versions (VERSIONS) of the row.  That is
    the row's own run, unless a newer one measured the row alone: the row's times are then of the newer run.  Only a status
    of ok carries times; a wrong result has no speedup, on either side."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}  # by point and provider
    runs: dict[tuple[str, ...], dict[str, dict[str, dict[str, Any]]]] = {}  # point -> run -> provider -> record
    for record in records:
        if record["kind"] == "timing" and record["environment"]["capability"] is not None:
            point = (record["environment"]["device"], record["case"], record["pass"])
            _keep_newer(newest, (*point, record["provider"]), record)
            _keep_newer(runs.setdefault(point, {}).setdefault(record["run"], {}), record["provider"], record)
    return [_row(record, list(runs[key[:3]].values())) for key, record in newest.items()]


def _keep_newer(known: dict[Any, dict[str, Any]], key: Any, record: dict[str, Any]) -> None:
    if key not in known or record["date"] >= known[key]["date"]:
        known[key] = record


def measured(record: dict[str, Any], field: str) -> Quantiles | None:
    """(p20, median, p80) of a sampled field of a timing record; None where it was not measured or is wrong."""
    s = record[field]
    return (s["p20"], s["median"], s["p80"]) if record["status"] == "ok" and s["samples"] else None


def _compared(
    record: dict[str, Any], runs: Iterable[dict[str, dict[str, Any]]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the record of this provider, the records of BASELINES) of the run that speedups are of, by rows(); no baseline where
    there is none. `runs`: the records of each run by provider."""
    timed = [{name: r for name, r in run.items() if measured(r, "device_us")} for run in runs]
    pairs = []
    for run in timed:
        mine, baselines = run.get(record["provider"]), [run[name] for name in BASELINES if name in run]
        if mine and baselines and _code(mine) == _code(record):
            pairs.append((mine, baselines))
    return max(pairs, key=lambda pair: pair[0]["date"], default=(record, []))


def _code(record: dict[str, Any]) -> list[Any]:
    return [record["version"], *(record["environment"][name] for name in VERSIONS)]


def _row(record: dict[str, Any], runs: Sequence[dict[str, dict[str, Any]]]) -> Row:
    compared, baselines = _compared(record, runs)

    def over_fastest(field: str) -> tuple[float | None, str | None]:
        """(the speedup over the fastest baseline, which one that is)"""
        mine = measured(compared, field)
        best = min(((q[1], b["provider"]) for b in baselines if (q := measured(b, field))), default=None)
        return (best[0] / mine[1], best[1]) if us and mine and best else (None, None)

    T = record["shape"]["T"]
    us, short, graph = (measured(record, field) for field in ("device_us", "short_us", "graph_us"))
    floor, parts = record["floor_us_per_step"], record["parts_us_per_step"]
    speedup, baseline = over_fastest("device_us")
    there = any(measured(run[name], "device_us") for run in runs for name in BASELINES if name in run)
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
        late=record["late"],
        baseline=baseline,
        speedup=speedup,
        graph_speedup=over_fastest("graph_us")[0],
        gap="" if speedup or not us else APART if there else NO_BASELINE,
    )
