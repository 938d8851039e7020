"""Records: one JSON object a line, written as the run goes; the only writer and the only reader of them.

Every record has `schema`, `kind`, `run` (an id shared by one run), `date` and `environment`; KINDS names the other
fields of each kind. Times are in microseconds unless a field's name says otherwise. Raw samples are kept, beside their
median and 20th and 80th percentile. A field may be added within a schema version; removing or redefining one raises
SCHEMA. `rows` turns timing records into the tidy table that figures and tables are made from.

What `validate` lets pass, figures and tables can show: it knows type and range of all that they read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as _brief
from typing import Any

from ..cases import case as cases
from ..cases import suites

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
        expected = suites.parse(name)
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


def is_switched(record: dict[str, Any]) -> bool:
    """Is it of one of several settings of a kernel side by side (probes.Switch), and not of a plan's own?"""
    return record["kind"] == "exchange" and "look_every" in record["choices"]


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
