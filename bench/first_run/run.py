"""`bench check` on a GPU: the first thing to run there, within a budget.

Kernels are compiled in parallel first.  Then one worker process does item after item (items.py), section by section:
the exchange protocols alone; equivalence of every regime; speed against cuDNN; constants of the latency model; what must
fail, and does; graphs.  A record is on disk as soon as it is known.  An item that raises or hangs costs itself, and the
worker is replaced.  A section that takes long leaves the later ones the time that is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cases import case as cases
from ..instruments.progress import Progress
from ..instruments.worker import Worker, WorkerError
from ..measure import check, run
from ..measure.compiling import Call, compile_ahead, compile_call, compile_calls
from ..records import environment
from ..records.schema import OURS, Writer, is_switched, read, rows
from ..show import tables
from . import dry
from .items import (
    Behaviour,
    Equivalence,
    Exchange,
    Gather,
    Item,
    Launch,
    Rate,
    Replay,
    Slope,
    Speed,
    Switch,
    grid,
    per_step,
    perform,
)

FILE = "first-run.jsonl"
DRY_FILE = "dry-run.jsonl"  # its times are a stub's: nothing else reads it
SECTIONS = {
    "protocols": "exchange protocols alone",
    "equivalence": "y, hn and all gradients against fp64",
    "speed": "rnn_triton against torch.nn.RNN on cuDNN",
    "switches": "settings of the group kernel, side by side",
    "constants": "constants of the latency model",
    "faults": "what must fail, and does",
    "graphs": "repeated calls and CUDA graphs",
}
# What part of the budget is gone when a section ends, at the latest.
ENDS = {
    "compiling": 0.3, "protocols": 0.42, "equivalence": 0.62, "speed": 0.79, "switches": 0.87, "constants": 0.93,
    "faults": 0.96, "graphs": 1.0,
}  # fmt: skip
LEAST = 3.0  # seconds that are left when an item begins
START = 60.0  # seconds more for the first item of a worker process: imports, CUDA, libraries


# ---- what is done, most informative first ---------------------------------------------------------------------------


def items() -> list[Item]:
    """On a GPU"""
    return [*_protocols(), *_equivalence(), *_speed(), *_switches(), *_constants(), *_faults(), *_graphs()]


def _protocols() -> Iterable[Item]:
    case = cases.case
    both = ("sentinel", "counter")
    for H in (1024, 512):
        for protocol in both:
            yield Exchange(case(H, 8, 2048, "bf16", 8), grid(protocol=protocol))
    for protocol in both:
        yield Exchange(case(1024, 8, 2048, "bf16", 8), grid(protocol=protocol), "backward")
    yield Exchange(case(1024, 8, 2048, "fp32", 8), grid(protocol="sentinel"))
    for H, B in ((2048, 8), (1024, 64)):
        for protocol in both:
            yield Exchange(case(H, B, 1024, "bf16", 8), grid(protocol=protocol))
    for units in (32, 64):
        yield Exchange(case(1024, 8, 2048, "bf16", 8), grid(protocol="sentinel", units=units))
    yield Exchange(case(4096, 8, 512, "bf16", 8), grid(protocol="sentinel"))
    yield Exchange(case(4096, 8, 512, "bf16", 8), grid(protocol="counter"), "backward")


def _equivalence() -> Iterable[Item]:
    T = 6

    def of(H: int, B: int, dtype: str, choices: Any, I: int | None = None, **how: Any) -> Item:
        return Equivalence(cases.case(H, B, T, dtype, I, **how), choices)

    sentinel, counter = grid(protocol="sentinel"), grid(protocol="counter")
    yield of(1024, 8, "bf16", sentinel)
    yield of(1024, 8, "bf16", counter)
    yield of(1024, 8, "fp32", sentinel)
    yield of(384, 16, "bf16", sentinel)
    yield of(2048, 16, "bf16", sentinel)
    yield of(4096, 8, "bf16", sentinel)
    yield of(1024, 8, "fp16", sentinel)
    yield of(512, 8, "bf16", per_step())
    yield of(128, 16, "bf16", ())
    yield of(256, 16, "fp16", ())
    yield of(128, 16, "fp32", ())
    yield of(1000, 3, "bf16", sentinel)
    yield of(1024, 300, "bf16", sentinel)  # several tiles a group
    yield of(1024, 300, "bf16", counter)
    yield of(384, 5, "fp32", counter)
    yield of(512, 8, "fp16", counter, 50)
    yield of(320, 1, "fp16", sentinel)
    yield of(1760, 17, "bf16", sentinel)
    yield of(2048, 8, "fp32", sentinel)
    yield of(4096, 3, "fp16", counter)
    yield of(512, 33, "fp32", sentinel, 37)
    yield of(1000, 9, "fp32", counter, 1)
    for home in ("shared", "gemm"):
        yield of(512, 8, "bf16", grid(protocol="sentinel", w_ih_home=home), 512)
    yield of(512, 8, "bf16", sentinel, relu=True)
    for units in (32, 64):
        yield of(1024, 16, "bf16", grid(protocol="sentinel", units=units, block_b=16))
    yield of(1760, 50, "fp16", counter)
    yield of(5000, 8, "bf16", per_step())
    yield of(1000, 3, "fp32", per_step())
    yield of(320, 16, "fp32", per_step(), ieee=True)
    yield of(1024, 300, "fp16", per_step(), 333)
    # several layers or directions a launch, of a CTA each and of groups; one stack in two launches
    for H, dtype, layers in ((512, "bf16", 4), (128, "bf16", 2), (1024, "fp16", 8), (300, "fp32", 3), (2048, "bf16", 4)):
        yield of(H, 8, dtype, (), layers=layers)
    for H, dtype, layers in ((512, "bf16", 1), (128, "fp16", 2), (300, "fp32", 2)):
        yield of(H, 9, dtype, (), layers=layers, bidirectional=True)
    for listed in cases.suite("check"):
        yield Equivalence(listed)


def _speed() -> Iterable[Item]:
    for listed in cases.suite("first"):
        yield Speed(listed)


# What is chosen by itself, and one change at a time; the first three are all that matters most.
SETTINGS = (
    {"x_loads": "behind", "look_every": 64, "probe_delay": 200},
    {"x_loads": "before", "look_every": 1, "probe_delay": 0},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 0},
    {"x_loads": "behind", "look_every": 1, "probe_delay": 200},
    {"x_loads": "before", "look_every": 64, "probe_delay": 200},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 100},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 400},
)


def _switches() -> Iterable[Item]:
    for settings in SETTINGS:
        for H in (1024, 512, 2048):
            yield Switch(cases.case(H, 8, 1024, "bf16"), grid(protocol="sentinel", **settings))
            if settings["x_loads"] == "behind" or settings["look_every"] == 1:  # no x there: the others are the same twice
                yield Switch(cases.case(H, 8, 1024, "bf16"), grid(protocol="sentinel", **settings), "backward")


def _constants() -> Iterable[Item]:
    case = cases.case
    small = case(128, 8, 1, "bf16", 8)
    wide = case(512, 8, 1, "bf16", 8)
    yield Slope(small, constant="local_us")
    for protocol in ("sentinel", "counter"):
        for units in (16, 64):
            chosen = grid(protocol=protocol, units=units, groups=1)
            yield Slope(wide, chosen, constant=f"{protocol}_us", steps=(256, 2048))
    yield Gather(
        case(2048, 8, 64, "bf16", 8), grid(protocol="sentinel", groups=1, block_b=8), constant="L2 gather",
        unit="bytes a cycle, CTA",
    )
    yield Launch(wide, grid(), constant="launch of a grid")
    yield Launch(small, constant="launch of one CTA")
    yield Slope(small, per_step(), constant="host_us", steps=(64, 512), by="wall")
    yield Slope(small, per_step(), constant="node_us", steps=(64, 512), by="graph")
    yield Rate(small, constant="GEMM", unit="TFLOP/s", size=8192)
    yield Rate(small, constant="fill", unit="TB/s", size=2**28)


def _faults() -> Iterable[Item]:
    case = cases.case
    yield Behaviour(case(1024, 8, 16, "bf16", 8), grid(protocol="sentinel"), of="stuck_launch_ends")
    yield Behaviour(case(64, 8, 4, "bf16", 8), grid(), of="over_subscription_raises")
    yield Behaviour(case(1024, 8, 4, "bf16", 8), grid(), of="planner_refuses")
    yield Behaviour(case(384, 8, 16, "fp32", 8), grid(protocol="sentinel"), of="stuck_launch_ends")


def _graphs() -> Iterable[Item]:
    case = cases.case
    calls = [
        (case(1024, 8, 64, "bf16"), grid(protocol="sentinel")),
        (case(1024, 8, 64, "bf16"), grid(protocol="counter")),
        (case(512, 64, 32, "fp32"), grid(protocol="sentinel")),
        (case(512, 8, 32, "bf16"), per_step()),
        (case(128, 16, 64, "bf16"), ()),
    ]
    for of in ("graph_replays_bitwise", "repeats_bitwise"):
        for chosen, choices in calls:
            yield Replay(chosen, choices, of=of)


def dry_items() -> list[Item]:
    """By interpreter: an item of every sort, tiny"""
    case = cases.case
    tiny, odd = case(24, 3, 3, "bf16", 8), case(20, 9, 3, "fp32", 5)
    sentinel, counter = grid(protocol="sentinel", warps=4), grid(protocol="counter", warps=4)
    return [
        Exchange(tiny.at(4), sentinel),
        Exchange(tiny.at(4), counter, "backward"),
        Switch(tiny.at(4), grid(protocol="sentinel", warps=4, **SETTINGS[1])),
        Equivalence(tiny, counter),
        Equivalence(odd, sentinel),
        Equivalence(case(20, 3, 3, "fp16", 8), per_step()),
        Equivalence(case(16, 3, 3, "bf16", 8)),
        Speed(case(16, 3, 4, "bf16", 8)),
        Slope(case(16, 3, 1, "bf16", 8), constant="local_us", steps=(2, 4)),
        Slope(tiny, sentinel, constant="sentinel_us", steps=(2, 4)),
        Slope(case(16, 3, 1, "bf16", 8), per_step(), constant="host_us", steps=(2, 4), by="wall"),
        Slope(case(16, 3, 1, "bf16", 8), per_step(), constant="node_us", steps=(2, 4), by="graph"),
        Gather(case(24, 8, 2, "bf16", 8), grid(groups=1, block_b=8, warps=4), constant="L2 gather", tiles=(1, 2)),
        Launch(tiny, sentinel, constant="launch of a grid"),
        Rate(tiny, constant="GEMM", unit="TFLOP/s", size=32),
        Rate(tiny, constant="fill", unit="TB/s", size=1024),
        Behaviour(tiny, sentinel, of="stuck_launch_ends"),
        Behaviour(tiny, sentinel, of="over_subscription_raises"),
        Behaviour(tiny, sentinel, of="planner_refuses"),
        Replay(tiny, sentinel, of="graph_replays_bitwise"),
        Replay(tiny, sentinel, of="repeats_bitwise"),
    ]


# ---- doing it -------------------------------------------------------------------------------------------------------


def first_run(
    out: Path,
    budget: float,
    is_dry: bool = False,
    todo: Sequence[Item] | None = None,
    function: Callable[[Any], Any] = perform,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[str, list[str]]:
    """(table, failures) after about `budget` seconds at most; records in out/first-run.jsonl, dry ones in out/dry-run.jsonl, as they come.

    `function` runs in the worker and gets (item, is_dry)."""
    began = clock()
    todo = list(todo if todo is not None else dry_items() if is_dry else items())
    described = environment.describe(torch.device("cpu") if is_dry else environment.best_device())
    if is_dry:
        described |= {"device": "none (dry run)"}
    failures: list[str] = []
    left: list[Item] = []
    path = out / (DRY_FILE if is_dry else FILE)
    with Writer(path, environment.new_run(), described) as writer:
        failures += _compile(todo, budget * ENDS["compiling"], is_dry)
        settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if is_dry else {}
        with Worker(function, settings) as worker, Progress("checking", len(todo)) as progress:
            for item in todo:
                used = clock() - began
                if budget * ENDS[item.section] - used < LEAST:
                    left.append(item)
                    continue
                progress.now(f"{item.section}: {item.name}")
                failed = _do(item, is_dry, worker, budget - used, writer)
                progress.step(failed=bool(failed))
                failures += failed if item.judges else []
    return _table(path, left, is_dry), failures


def _compile(todo: Sequence[Item], seconds: float, is_dry: bool) -> list[str]:
    calls: list[Call] = [call for item in todo for call in item.calls()]
    if is_dry:  # nothing runs that was compiled; a grid of each protocol shows that it compiles
        chosen = [call for call in calls if dict(call.choices).get("regime") == "cta_group"]
        calls = list({dict(call.choices).get("protocol"): call for call in chosen}.values())
    failed, cut = compile_calls(calls, seconds, compile_ahead if is_dry else compile_call)
    if cut:
        print(f"compiling took its {seconds:.0f} s: {cut} calls are left, and compile when they run", flush=True)
    return [f"compiling {call.case.name} {dict(call.choices)}: {message}" for call, message in failed.items()]


def _do(item: Item, is_dry: bool, worker: Worker, seconds: float, writer: Writer) -> list[str]:
    """Do an item and write its records; what failed."""
    allowed = min(item.timeout + (0.0 if worker.is_warm else START), seconds)
    try:
        found = worker.call((item, is_dry), allowed, allowed)
    except WorkerError as error:
        found = item.blank()
        run.fail(found, error.status, str(error))
    failures = []
    for fields in found:
        record = writer.write(item.kind, **fields)
        ours = record.get("provider", OURS) == OURS
        if ours and (why := run.fault(record)):
            failures.append(f"{item.section}: {item.name}: {why}")
    return failures


# ---- what it says ---------------------------------------------------------------------------------------------------


def _table(path: Path, left: Sequence[Item], is_dry: bool) -> str:
    found, _ = read([path])
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        by_kind.setdefault(record["kind"], []).append(record)
    timing = list(rows(found))
    behaviours = by_kind.get("behaviour", [])
    exchanges = by_kind.get("exchange", [])
    switched = [r for r in exchanges if is_switched(r)]
    faults = [r for r in behaviours if r["name"] in {i.of for i in _faults() if isinstance(i, Behaviour)}]
    parts = {
        "protocols": tables.text(EXCHANGE_HEADINGS, exchange_rows(r for r in exchanges if r not in switched)),
        "equivalence": _equivalence_table(by_kind.get("check", [])),
        "speed": "a stub's times are not shown" if is_dry else tables.text(tables.HEADINGS, tables.timing_rows(timing)),
        "switches": tables.text(SWITCH_HEADINGS, switch_rows(switched)),
        "constants": tables.text(CONSTANT_HEADINGS, constant_rows(by_kind.get("constant", []))),
        "faults": tables.text(BEHAVIOUR_HEADINGS, behaviour_rows(faults)),
        "graphs": tables.text(BEHAVIOUR_HEADINGS, behaviour_rows(r for r in behaviours if r not in faults)),
    }
    if is_dry:
        where = "Triton's interpreter, all programs of a launch alive"
        if not dry.has_cooperative_interpreter():
            where = "Triton's interpreter; groups of CTAs are planned and compiled only (tests/cooperative is not here)"
        intro = f"dry run by {where}. Times are a stub's: they mean nothing."
    else:
        intro = f"on {found[0]['environment']['device']}" if found else "nothing was run"
    lines = [intro]
    lines += [f"\n{SECTIONS[section]}:\n{table}" for section, table in parts.items()]
    if left:
        lines.append(f"\nnot run, for the time was up: {', '.join(f'{item.section}: {item.name}' for item in left)}")
    lines.append(f"\nrecords in {path}")
    return "\n".join(lines)


EXCHANGE_HEADINGS = ("case", "direction", "protocol", "CTAs", "ns/step", "model*", "verdict")


def exchange_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per exchange record; ns/step is the slope between the two numbers of steps. Starred: estimates."""
    out: list[tuple[str, ...]] = []
    for r in records:
        plan, practical = r["plan"] or {}, r["practical_us_per_step"]
        ctas = f"{plan['groups']} x {plan['ctas']}" if "ctas" in plan else "-"
        model = "-" if practical is None else f"{1e3 * practical:.0f}"
        protocol = str(plan.get("protocol", r["choices"].get("protocol", "-")))
        out.append((r["case"], r["direction"], protocol, ctas, _ns(r), model, _verdict(r)))
    return out


SWITCH_HEADINGS = ("case", "direction", "loads of x", "turns a look", "cycles of delay", "ns/step", "verdict")


def switch_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per setting, those of one case and direction below each other"""
    out = []
    for r in sorted(records, key=lambda r: (r["shape"]["H"], r["direction"])):
        settings = (str(r["choices"][name]) for name in SETTINGS[0])
        out.append((r["case"], r["direction"], *settings, _ns(r), _verdict(r)))
    return out


def _ns(r: dict[str, Any]) -> str:
    """Of a step, by the slope between the two numbers of steps"""
    full, short = r["device_us"]["median"], r["short_us"]["median"]
    if not full or not short or r["short_T"] >= r["shape"]["T"]:
        return "-"
    return f"{1e3 * (full - short) / (r['shape']['T'] - r['short_T']):.0f}"


CONSTANT_HEADINGS = ("constant", "case", "measured", "model", "unit", "note")


def constant_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per constant record: measured beside the model's."""
    out: list[tuple[str, ...]] = []
    for r in records:
        value, model = ("-" if r[key] is None else f"{r[key]:.3g}" for key in ("value", "model"))
        note = r["message"] if r["status"] == "ok" else _verdict(r)
        plan = r["plan"] or {}
        ctas = f" of {plan['ctas']} CTAs" if "ctas" in plan else ""
        case = f"{r['case']} {plan.get('regime', '')}{ctas}".rstrip()
        out.append((r["name"], case, value, model, r["unit"], note))
    return out


BEHAVIOUR_HEADINGS = ("what", "case", "regime", "seconds", "verdict")


def behaviour_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for r in records:
        regime = " ".join(str(v) for k, v in r["choices"].items() if k in ("regime", "protocol")) or "one_cta"
        verdict = f"ok: {r['message']}" if r["status"] == "ok" else _verdict(r)
        out.append((r["name"].replace("_", " "), r["case"], regime, f"{r['seconds']:.1f}", verdict))
    return out


def _equivalence_table(records: Sequence[dict[str, Any]]) -> str:
    body = []
    for r in records:
        verdict = check.Verdict(r["errors"], "" if r["status"] == "ok" else f"{r['message']}")
        ((_, worst, error, tolerance, _),) = check.summary([("", verdict)])
        plan = (r["plan"] or {}).get("forward") or {}
        regime = " ".join(str(plan[key]) for key in ("regime", "protocol") if key in plan) or "-"
        body.append((r["case"], regime, worst, error, tolerance, _verdict(r)))
    return tables.text(("case", "plan", "worst", "error", "tolerance", "verdict"), body)


def _verdict(record: dict[str, Any]) -> str:
    if record["status"] == "ok":
        return "ok"
    shout = record["status"] if record["status"] == "unsupported" else record["status"].upper()
    return f"{shout}: {record['message'].splitlines()[0][:160] if record['message'] else ''}"
