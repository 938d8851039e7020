"""Records: what each kind holds, as dataclasses that `validate` reads by their annotations.

A record is one JSON object a line (store.py): the fields of Common and those of its kind in KINDS, `pass_` by the name "pass". Times are in
microseconds unless a field's name says otherwise. Raw samples are kept, beside their median and 20th and 80th percentile. A field may be
added within a schema version; removing or redefining one raises SCHEMA. Every field must be there but those that are `optional`; a default
is what `blank` fills in where nothing was measured.

What `validate` lets pass, figures and tables can show: it knows type and range of all that they read. """

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from reprlib import repr as _brief
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ..cases import suites
from ..cases.case import Case

SCHEMA = 7
TELEMETRY = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")

OURS = "rnn_triton"
# torch.nn.RNN as it is, and as a module for every layer and direction: the faster of them is what ours is compared with.
BASELINES = ("cudnn", "cudnn-layers")

# What a time depends on beside the case: records that agree in these are of the same commit and versions.  Not the
# commit itself: `source` is the same for all commits that change nothing of what runs and measures.
VERSIONS = ("source", "device", "driver", "torch", "triton", "cudnn", "cuda")


def quantiles(samples: Sequence[float]) -> tuple[float, float, float] | None:
    """(p20, median, p80), linear interpolation between the sorted samples; None for no samples."""
    if len(samples) < 2:
        return (float(samples[0]),) * 3 if samples else None
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return deciles[1], deciles[4], deciles[7]


def sampled(samples: Sequence[float] = ()) -> dict[str, Any]:
    """A field of times: the samples in the order they were taken, and their quantiles."""
    return dict(zip(("samples", "p20", "median", "p80"), (list(samples), *(quantiles(samples) or (None,) * 3))))


def is_switched(record: dict[str, Any]) -> bool:
    """Is it of one of several settings of a kernel side by side (probes.Switch), and not of a plan's own?"""
    return record["kind"] == "exchange" and "look_every" in record["choices"]


SHORTEST, LARGEST = 1e-9, 1e15  # no time in microseconds is outside of these, and no count, size or rate is larger

# Annotated with the least value; None: any float, infinite and NaN too.  A plain int or float reaches from -LARGEST to LARGEST.
Count = Annotated[int, 0]
Size = Annotated[int, 1]
Time = Annotated[float, SHORTEST]
AnyNumber = Annotated[float, None]
Scalar = str | int | float | bool | None
Scalars = dict[str, Scalar]
Status = Literal["ok", "inaccurate", "wrong", "error", "timeout", "unsupported", "missing"]  # inaccurate: measure/check.py
# of cases.Case; that the values are those of a case, is seen by its name
Shape = make_dataclass("Shape", [(f.name, Size if f.type == "int" else Scalar) for f in fields(Case)])


def optional() -> Any:
    return field(default=None, metadata={"optional": True})


def empty(kind: Any) -> Any:
    return field(default_factory=kind)


@dataclass(frozen=True)
class Samples:
    """Raw times and their quantiles, None where there are no samples"""

    samples: list[Any]
    p20: AnyNumber | None = optional()
    median: AnyNumber | None = optional()
    p80: AnyNumber | None = optional()

    @staticmethod
    def also(value: dict[str, Any], name: str) -> None:
        for sample in value["samples"]:
            if isinstance(sample, bool) or not isinstance(sample, (int, float)) or not SHORTEST <= sample <= LARGEST:
                raise ValueError(f"field {name}: {_brief(sample)} is not a time")
        for part, expected in sampled(value["samples"]).items():
            got = value.get(part)
            same = got == expected
            if isinstance(got, (int, float)) and isinstance(expected, float):
                same = math.isclose(got, expected, rel_tol=1e-9)
            if not same:
                raise ValueError(f"field {name}.{part} is {_brief(got)}, but its samples give {_brief(expected)}")


@dataclass(frozen=True)
class Error:
    """rel_tol and max_tol are limits of rel and max, which a wrong result can have without bounds"""

    rel: AnyNumber
    rel_tol: Time
    max: AnyNumber
    max_tol: Time


@dataclass(frozen=True)
class Launch:
    bundle: Scalars
    forward: Scalars | None = optional()
    backward: Scalars | None = optional()


@dataclass(frozen=True)
class Plan:
    """Provider.plan: of ours a plan for each direction, of a network that of each launch besides; `others` by any name"""

    others: ClassVar[Any] = Scalar | Scalars
    forward: Scalars | None = optional()
    backward: Scalars | None = optional()
    launches: list[Launch] = optional()


@dataclass(frozen=True)
class Kernel:
    name: str
    count: Count
    us: float


@dataclass(frozen=True)
class Hardware:
    """rnn_triton.plan.hardware.Device"""

    name: str
    capability: Size
    sms: Size
    shared_bytes: Size
    registers: Size
    l2_bytes: Size
    clock_ghz: Time
    cooperative: bool
    together: Count | None = optional()  # of a device whose SMs are not all ours


@dataclass(frozen=True)
class Environment:
    commit: str | None
    dirty: bool | None
    source: str  # a digest of the code that runs and measures
    device: str
    capability: Size | None
    hardware: Hardware | None
    driver: str | None
    torch: str
    triton: str
    cudnn: Count | None
    cuda: str | None
    python: str
    cpu: str | None = optional()  # its model


@dataclass(frozen=True)
class Common:
    schema: Count
    kind: str
    run: str  # an id shared by one run
    date: str
    environment: Environment


@dataclass(frozen=True)
class Problem:
    direction: str
    H: Size
    I: Size
    B: Size
    dtype: str
    precision: str | None


@dataclass(frozen=True)
class Compiled:
    """bench.compiled.resources.Resources, as far as it is shown"""

    registers: Count
    spill_stores: Count
    spill_loads: Count
    shared_bytes: Count
    barriers: float
    global_load_arguments: Scalars
    mma: float
    instructions: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    status: Status = "ok"
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class OfCase:
    case: str
    shape: Shape  # type: ignore[valid-type]
    errors: dict[str, Error] = empty(dict)


@dataclass(frozen=True, kw_only=True)
class Timing(Judged, OfCase):
    """One (case, provider, pass) on a GPU"""

    pass_: Literal["fwd", "train"]
    provider: str
    version: str | None = None  # of the provider's package, where it is not torch's
    device_us: Samples = empty(sampled)  # per call: eager
    graph_us: Samples = empty(sampled)  # replayed
    wall_us: Samples = empty(sampled)  # host and all
    spin_us: float | None = None  # before each sample of device_us
    late: Count | None = None  # how many of them began before the whole call was queued (timing.py)
    short_T: Size | None = None
    short_us: Samples = empty(sampled)  # the same problem over short_T steps, for the slope
    peak_bytes: Count | None = None
    plan: Plan | None = None
    kernels: list[Kernel] = empty(list)  # by the profiler, longest first
    floor_us_per_step: Time | None = None  # an estimate
    practical_us_per_step: Time | None = None  # an estimate
    parts_us_per_step: dict[str, float] = empty(dict)  # of the practical estimate; the largest is the bottleneck
    telemetry: dict[str, float] = empty(dict)  # medians of TELEMETRY while this provider ran alone (timing.alone)
    throttled: list[str] | None = optional()  # what kept the clocks down meanwhile
    other_processes: Count | None = optional()  # that had the GPU besides the one that measures
    joules: Time | None = optional()  # of a call, where calls ran for long enough
    seconds: float = 0.0  # that measuring the case took, all its providers and passes


@dataclass(frozen=True, kw_only=True)
class Check(Judged, OfCase):
    """One (case, provider) against the fp64 reference"""

    provider: str = OURS
    implementation: str = "none"
    choices: Scalars = empty(dict)  # what rnn_triton.overriding was given
    plan: Plan | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange(Judged, OfCase):
    """One recurrence alone, without GEMMs after it"""

    direction: Literal["forward", "backward"]
    choices: Scalars = empty(dict)
    plan: Scalars | None = None
    device_us: Samples = empty(sampled)
    short_T: Size | None = None
    short_us: Samples = empty(sampled)  # as of a timing
    practical_us_per_step: Time | None = None  # an estimate


@dataclass(frozen=True, kw_only=True)
class Behaviour(Judged):
    """One fault of a launch that must be seen"""

    name: str
    case: str
    choices: Scalars = empty(dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Resources(Judged):
    """One compiled plan"""

    problem: Problem
    plan: Scalars
    resources: dict[str, Any] = empty(dict)
    floor_us_per_step: Time | None  # an estimate
    practical_us_per_step: Time | None  # an estimate


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run of an example"""

    example: str
    implementation: str
    seed: int
    accuracy: float
    loss: list[AnyNumber]
    seconds: float


KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Timing, Check, Exchange, Behaviour, Resources, Training)}
COMMON = tuple(f.name for f in fields(Common))


def blank(kind: str, **values: Any) -> dict[str, Any]:
    """The fields of a record of a kind with these values, `pass_` as "pass"; all others as where nothing was measured."""
    return {name.rstrip("_"): value for name, value in vars(KINDS[kind](**values)).items()}


@functools.cache
def fields_of(kind: type) -> dict[str, Any]:
    """name in a record -> annotation, of a dataclass"""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name.rstrip("_"): hints[f.name] for f in fields(kind)}


def check(value: Any, kind: Any, name: str) -> None:
    """ValueError that names the field, where a value is not as its annotation says.

    A number is finite and in its range, a text can be written as UTF-8; a dataclass is a dict with its fields, and others."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and NoneType in parts):
        return
    if origin in (Union, UnionType):
        parts = tuple(part for part in parts if part is not NoneType) if len(parts) == 2 else parts
        of_dict = [part for part in parts if get_origin(part) is dict]
        if len(parts) > 1 and not (of_dict and isinstance(value, dict)):
            return _plain(value, parts, name)
        return check(value, (of_dict or parts)[0], name)
    if origin is Annotated:
        if parts[1] is None and isinstance(value, float):
            return
        return _plain(value, parts[:1], name, -LARGEST if parts[1] is None else parts[1])
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"field {name}: expected one of {', '.join(parts)}, got {_brief(value)}")
    elif origin is list:
        _plain(value, (list,), name)
        for i, part in enumerate(value):
            check(part, parts[0], f"{name}[{i}]")
    elif origin is dict or is_dataclass(kind):
        _plain(value, (dict,), name)
        known, others = ({}, parts[1]) if origin is dict else (fields_of(kind), getattr(kind, "others", Any))
        prefix = f"{name}." if name else ""
        for part in known:
            if part not in value and part not in _optional(kind):
                raise ValueError(f"field {prefix}{part} is missing")
        for part, inner in value.items():
            if part not in known and others is not Any:
                _plain(part, (str,), f"{name}: a name")
            check(inner, known.get(part, others), prefix + part)
        if hasattr(kind, "also"):
            kind.also(value, name)
    else:
        _plain(value, (kind,), name)


@functools.cache
def _optional(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.metadata.get("optional"))


def _plain(value: Any, types: Sequence[Any], name: str, low: float = -LARGEST) -> None:
    """One of plain types; float takes an int as well"""
    types = (int, float) if tuple(types) == (float,) else tuple(types)
    types = tuple(t for t in types if get_origin(t) is None)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(t.__name__ for t in types)
        raise ValueError(f"field {name}: expected {expected}, got {type(value).__name__}")
    if isinstance(value, (int, float)) and not low <= value <= LARGEST:
        raise ValueError(f"field {name}: {_brief(value)} is not from {low:g} to {LARGEST:g}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"field {name}: {_brief(value)} has half of a surrogate pair")


def validate(record: Any) -> None:
    """ValueError that names the first fault."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {_brief(record.get('schema'))}; this reader knows {SCHEMA}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {_brief(kind)}; known: {', '.join(KINDS)}")
    check(record, Common, "")
    check(record, KINDS[kind], "")
    if "shape" in record:
        _case(record["shape"], record["case"])
    if kind == "resources" and record["status"] == "ok":
        check(record["resources"], Compiled, "resources")
    if "short_us" in record and record["short_us"]["samples"] and record["short_T"] is None:
        raise ValueError("field short_T: None, but short_us has samples")


def _case(shape: dict[str, Any], name: str) -> None:
    try:
        expected = suites.parse(name)
    except ValueError as error:
        raise ValueError(f"field case: {error}") from None
    unknown = shape.keys() - {f.name for f in fields(Case)}
    if unknown:
        raise ValueError(f"field shape.{min(unknown)} is of no cases.Case")
    got = Case(**shape)
    if str(got) != str(expected) or got.name != name:  # as text 1, 1.0 and True differ
        raise ValueError(f"field shape: it is {got}, but {name} is {expected}")
