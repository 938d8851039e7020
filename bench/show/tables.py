"""Tables from records, and from nothing else: aligned text, Markdown, LaTeX (booktabs) and CSV.

What is missing is shown as missing, what is wrong as wrong; where ours loses is a table of its own.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cases.case import DTYPES, PASSES
from ..cases.suites import SUITES
from ..records.rows import APART, Row
from ..records.schema import BASELINES, OURS
from . import rows_in_words as words
from .formats import NONE, Body, Table, csv_text, label, latex, markdown
from .rows_in_words import REGIMES, arithmetic, by_device, by_suite, caption

FLOOR_MARK = 0.45  # of the floor: a case that reaches less is listed with what remains to be done

HEADINGS = (
    "case", "pass", "us/step", "slope", "best cuDNN us/step", "by", "speedup", "graph speedup", "floor*", "of floor*", "bound*", "regime",
)  # fmt: skip
LEGEND = (
    "us/step: median device time of a call over its steps, the newest; slope: the time of a step free of launch cost; speedup: "
    "over the faster of torch.nn on cuDNN and a module for each layer, by device time, and by CUDA graph replay, in the newest "
    f"run that timed both with the code and versions of ours; {APART}: no run did; floor: the latency model's lower bound, and the part of it reached; bound: what the model says limits the step. *: estimates."
)


def timing_rows(rows: Iterable[Row]) -> Body:
    """A line of HEADINGS per (case, pass) of ours beside the best of cuDNN; what is missing or wrong is said in its place."""
    index = {_key(r): r for r in rows}
    out: Body = []
    for device, case, pass_ in dict.fromkeys(key[:3] for key in index):
        ours = index.get((device, case, pass_, OURS))
        theirs = [r for name in BASELINES if (r := index.get((device, case, pass_, name)))]
        best = min((r for r in theirs if r.us_per_step), key=lambda r: r.us_per_step or math.inf, default=None)
        *times, floor, of_floor, bound, regime = _judged(ours) if ours else (NONE,) * 6
        line = (_number(ours.slope_us_per_step if ours else None), _time(best or next(iter(theirs), None)), best.provider if best else NONE)
        out.append((case, pass_, _time(ours), *line, *times, floor, of_floor, bound, regime))
    return out


def _judged(row: Row) -> tuple[str, ...]:
    """Speedups, floor, the part of it, bound and regime"""
    return (
        APART if row.gap == APART else _number(row.speedup, "x", 2), _number(row.graph_speedup, "x", 2),
        _number(row.floor_us_per_step), NONE if row.fraction_of_floor is None else f"{row.fraction_of_floor:.0%}", row.bound or NONE,
        REGIMES.get(row.regime or "", row.regime or NONE),
    )  # fmt: skip


def results(rows: Iterable[Row], name: str = "results", title: str = "Results") -> Table:
    return Table(name, title, HEADINGS, timing_rows(rows), LEGEND)


def published(rows: Sequence[Row]) -> Table:
    """Ours beside what others published for a case: a line a published figure"""
    from ..cases import published as others

    body: Body = []
    for row in _ours(rows):
        for p in others.of(row.case, row.pass_):
            body.append((row.case, row.pass_, _time(row), f"{p.us_per_step:g}", p.what, p.device, p.source))
    headings = ("case", "pass", "ours, us/step", "published, us/step", "of", "on", "source")
    return Table(
        "published", "Beside published figures", headings, body,
        f"Ours on {' and '.join(by_device(rows)) or 'nothing'}; published figures were measured by others, on the device named: "
        "for orientation, not a comparison.",
    )  # fmt: skip


def streaming(rows: Iterable[Row]) -> Table:
    """Wall time of a call in the cases of this suite, a line a provider"""
    listed = {case.name for case in SUITES["streaming"]}
    body = [(r.case, r.pass_, r.provider, f"{r.wall_us[1]:.1f}", _number(r.wall_p99, digits=1)) for r in rows if r.case in listed and r.wall_us]
    note = "Microseconds from the call until the GPU is idle, the host's time included; p99 of the samples of a case, 200 at most."
    return Table("streaming", "Wall time of short calls", ("case", "pass", "provider", "p50", "p99"), body, note)


def per_suite(rows: Sequence[Row]) -> list[Table]:
    """results() of each suite touched"""
    titles = {suite: f"Suite {suite}" if suite != words.OTHER else "Other cases" for suite in (*SUITES, words.OTHER)}
    return [results(mine, f"suite-{label(suite)}", titles[suite]) for suite, mine in by_suite(rows).items()]


def providers(rows: Sequence[Row]) -> Table:
    """us/step of every provider side by side, a line a (case, pass); the fastest is named."""
    names = sorted({r.provider for r in rows}, key=lambda n: (n != OURS, n not in BASELINES, n))
    index = {_key(r): r for r in rows}
    body: Body = []
    for key in dict.fromkeys(key[:3] for key in index):
        found = [index.get((*key, name)) for name in names]
        least = min((r.us_per_step for r in found if r and r.us_per_step), default=None)
        fastest = [r.provider for r in found if r and least and r.us_per_step == least]
        body.append((*key[1:], *map(_time, found), ", ".join(fastest) or NONE))
    return Table("providers", "All providers, us/step", ("case", "pass", *names, "fastest"), body, "Median device time over T.")


def summary(rows: Iterable[Row]) -> Table:
    """A line per pass and arithmetic: how many cases were compared, their speedups, and what of the floor was reached."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(_ours(rows), key=lambda r: (PASSES.index(r.pass_), DTYPES.index(r.shape["dtype"]), arithmetic(r))):
        groups.setdefault((words.PASS_TITLES[row.pass_], arithmetic(row)), []).append(row)
    body: Body = []
    for key, mine in groups.items():
        found = sorted(row.speedup for row in mine if row.speedup)
        reached = [row.fraction_of_floor for row in mine if row.fraction_of_floor]
        line = [f"{value:.2f}x" for value in (found[0], statistics.geometric_mean(found), found[-1])] if found else [NONE] * 3
        below = str(sum(s < 1 for s in found)) if found else NONE
        floor = f"{min(reached):.0%} to {max(reached):.0%}" if reached else NONE
        body.append((*key, str(len(mine)), str(len(found)), *line, below, floor))
    headings = ("pass", "dtype", "cases", "compared", "lowest", "geometric mean", "highest", "below 1x", "of floor*")
    note = "Compared: both sides right and timed in one run, by the same code and versions. *: of an estimate."
    return Table("summary", "Speedup over the best of cuDNN", headings, body, note)


def wins(rows: Iterable[Row]) -> Table:
    """Every case of ours at 1x or above, the largest speedup first"""
    return _listing("wins", "Where ours wins: at 1x or above", sorted((r for r in _ours(rows) if (r.speedup or 0) >= 1), key=lambda r: -(r.speedup or 0)))


def losses(rows: Iterable[Row]) -> Table:
    """Every case of ours below 1x, the smallest speedup first"""
    return _listing("losses", "Where ours loses: below 1x", sorted((r for r in _ours(rows) if (r.speedup or 1) < 1), key=lambda r: r.speedup or 0))


def far_from_floor(rows: Iterable[Row]) -> Table:
    """Every case of ours that reaches less than FLOOR_MARK of the floor, the smallest part first"""
    chosen = sorted((r for r in _ours(rows) if (r.fraction_of_floor or 1) < FLOOR_MARK), key=lambda r: r.fraction_of_floor or 0)
    return _listing("floor", f"Below {FLOOR_MARK:.0%} of the floor (an estimate)", chosen)


def missing(rows: Sequence[Row]) -> Table:
    """What the suites touched list and no record has: a line a (suite, case), with the passes and providers left out."""
    body: Body = []
    for device, here in by_device(rows).items():
        passes = [p for p in PASSES if any(r.pass_ == p for r in here)]
        there, cases = {(r.case, r.pass_, r.provider) for r in here}, {r.case for r in here}
        for suite, mine in by_suite(here).items():
            for name in dict.fromkeys([c.name for c in SUITES.get(suite, ())] or [r.case for r in mine]):
                lacks = [(p, provider) for p in passes for provider in (OURS, BASELINES[0]) if (name, p, provider) not in there]
                if name not in cases:
                    body.append((device, suite, name, words.EVERYTHING))
                elif lacks:
                    body.append((device, suite, name, ", ".join(f"{provider} {p}" for p, provider in lacks)))
    return Table("missing", "Not measured", ("device", "suite", "case", "no record of"), body)


MEMORY, NAMED = (OURS, "rnn_triton-recompute", *BASELINES), 3  # providers; kernels of a call, those that took longest


def memory(rows: Iterable[Row]) -> Table:
    """A line per case that was trained by ours and by torch: the most memory a step takes, ours over torch's"""
    index = {(r.case, r.provider): r.peak_bytes for r in rows if r.pass_ == "train" and r.status == "ok" and r.peak_bytes}
    body: Body = []
    for case in dict.fromkeys(case for case, _ in index):
        ours, theirs = index.get((case, OURS)), index.get((case, BASELINES[0]))
        if ours and theirs:
            found = [index.get((case, name)) for name in MEMORY]
            body.append((case, *(NONE if b is None else f"{b / 2**20:.1f}" for b in found), f"{ours / theirs:.2f}x"))
    headings = ("case", *(f"{name}, MiB" for name in MEMORY), "ours over cudnn")
    return Table(
        "memory", "Peak memory of a training step", headings, body, "Allocated at most during a forward and backward pass beyond what was there "
        "before it: results and gradients are in it, inputs and weights are not.",
    )  # fmt: skip


def kernels(rows: Iterable[Row]) -> Table:
    """What the profiler saw: a line per (pass, provider, longest kernels), which tell cuDNN's algorithm, with one of their cases"""
    groups: dict[tuple[str, ...], tuple[set[str], tuple[str, ...]]] = {}  # -> its cases, the first of them in words
    for row in rows:
        total, count = (sum(kernel[what] for kernel in row.kernels) for what in ("us", "count"))
        longest = sorted(row.kernels, key=lambda kernel: -kernel["us"])[:NAMED] if total > 0 else []
        named = "; ".join(f"{kernel['us'] / total:.0%} {kernel['count']} x {short_name(kernel['name'])}" for kernel in longest)
        key = (row.pass_, row.provider, *(short_name(kernel["name"]) for kernel in longest))
        if longest:
            groups.setdefault(key, (set(), (row.case, str(count), named)))[0].add(row.case)
    return Table(
        "ran", "Kernels that ran", ("pass", "provider", "cases", "such as", "launches", "longest kernels"),
        [(pass_, provider, str(len(cases)), *first) for (pass_, provider, *_), (cases, first) in groups.items()],
        "Of one call under the profiler, which may run fewer steps than the case. Launches, and each kernel with its part of the kernels' "
        f"time and its launches, of the case named; the longest {NAMED}; names without types and arguments.",
    )  # fmt: skip


def short_name(kernel: str) -> str:
    """A kernel's C++ name without return type, namespaces, template and call arguments"""
    name = kernel.replace("(anonymous namespace)::", "")
    while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)", "", name)) != name:
        name = shorter
    return (name.split() or [kernel])[-1].rsplit("::", 1)[-1][:80] or kernel[:80]


def not_timed(rows: Sequence[Row]) -> list[Table]:
    """The records without a time, with their reasons: what is wrong, what failed, what does not run. A line a reason, with the
    number of cases that have it."""
    found = []
    for name, title, note, *statuses in (
        ("wrong", "Wrong or inaccurate results", words.summed(rows), "wrong", "inaccurate"),
        ("failed", "Failed", "", "error", "timeout"),
        ("unsupported", "Unsupported or not installed", "", "unsupported", "missing"),
    ):
        groups: dict[tuple[str, ...], list[str]] = {}
        for r in (r for r in rows if r.status in statuses):
            key = (r.environment["device"], r.provider, r.pass_, r.status, r.message or "no reason recorded")
            groups.setdefault(key, []).append(r.case)
        body = [(*key[:4], str(len(cases)), cases[0], key[4]) for key, cases in groups.items()]
        found.append(Table(name, title, ("device", "provider", "pass", "status", "cases", "such as", "reason"), body, note))
    return found


def every(rows: Sequence[Row]) -> list[Table]:
    """All tables of one device's rows that have a line; those of losses even without one."""
    found = [summary(rows), losses(rows), far_from_floor(rows), *per_suite(rows), published(rows), streaming(rows), providers(rows), memory(rows)]
    found += [kernels(rows), missing(rows), *not_timed(rows)]
    return [table for table in found if table.body or table.name in ("losses", "floor")]


def _ours(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.provider == OURS]


def _listing(name: str, title: str, rows: Iterable[Row]) -> Table:
    body = [(r.case, r.pass_, *_judged(r)[:2], _time(r), *_judged(r)[2:]) for r in rows]
    headings = ("case", "pass", "speedup", "graph speedup", "us/step", "floor*", "of floor*", "bound*", "regime")
    return Table(name, title, headings, body, "*: estimates by the latency model.")


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.environment["device"], row.case, row.pass_, row.provider


def _time(row: Row | None) -> str:
    """us/step, or why there is none"""
    if row is not None and row.us_per_step is not None:
        return f"{row.us_per_step:.3f}"
    return row.status if row is not None and row.status != "ok" else "not measured"


def _number(value: float | None, unit: str = "", digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}{unit}"


RESOURCE_HEADINGS = (
    "direction", "H", "I", "B", "dtype", "plan", "regs", "spills", "shared KB", "barriers/step", "loads/step from", "MMA/step", "instr/step",
    "floor us*", "practical us*",
)  # fmt: skip


def resource_rows(records: Iterable[dict[str, Any]]) -> Body:
    """A line per compiled plan. Starred columns are estimates."""
    out: Body = []
    for record in records:
        problem, plan, found = record["problem"], record["plan"], record["resources"]
        dtype = problem["dtype"] + (f" {problem['precision']}" if problem["precision"] else "")
        head = (problem["direction"], *(str(problem[size]) for size in "HIB"), dtype)
        shape = f"{plan.get('regime', '')} {plan.get('warps', '?')} warps, {plan.get('block_b', '?')} rows"
        if record["status"] != "ok":
            out.append((*head, shape, f"{record['status']}: {record['message']}", *["-"] * 8))
            continue
        loads = ", ".join(f"{name} {count}" for name, count in found["global_load_arguments"].items()) or "none"
        counts = (str(found["registers"]), f"{found['spill_stores']}/{found['spill_loads']}", f"{found['shared_bytes'] / 1024:.1f}")
        times = (_number(record["floor_us_per_step"]), _number(record["practical_us_per_step"]))
        step = (f"{found['barriers']:g}", loads, f"{found['mma']:g}", f"{found['instructions']:.0f}")
        out.append((*head, shape, *counts, *step, *times))
    return out


def resources(records: Iterable[dict[str, Any]]) -> Table:
    note = "Counts of one warp and one step, read from the machine code; nothing was timed. *: estimates."
    return Table("resources", "Compiled kernels", RESOURCE_HEADINGS, resource_rows(records), note)


def training(records: Iterable[dict[str, Any]]) -> Table:
    """A line per training run of an example"""
    words = ((r["example"], r["implementation"], str(r["seed"]), f"{r['accuracy']:.2%}", f"{r['seconds']:.1f} s", r) for r in records)
    body = [(*line, record["environment"]["device"]) for *line, record in words]
    return Table("training", "Training runs", ("example", "implementation", "seed", "test accuracy", "training", "device"), body)


def markdown_document(rows: Sequence[Row], level: int = 2) -> str:
    """Every table, a section a device with what it was measured on."""
    parts = []
    for device, here in by_device(rows).items():
        parts.append(f"{'#' * level} {device}\n\n{caption(here)}\n")
        for table in every(here):
            shown = markdown(table) if table.body else "none\n"
            parts.append(f"{'#' * (level + 1)} {table.title}\n\n{shown}" + (f"\n{table.note}\n" if table.note else ""))
    return "\n".join(parts) or "No timing records.\n"


def latex_tables(rows: Sequence[Row]) -> dict[str, str]:
    """name -> every table, each to be read by \\input; a name starts with the device where there are several."""
    devices, found = by_device(rows), dict[str, str]()
    for device, here in devices.items():
        prefix, source = f"{label(device)}-" * (len(devices) > 1), caption(here)
        found |= {prefix + table.name: latex(replace(table, name=prefix + table.name), source) for table in every(here)}
    return found


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """results.md, results.csv and tables/NAME.tex in `out`; no files where there is no row."""
    if not rows:
        return []
    (out / "tables").mkdir(parents=True, exist_ok=True)
    found = {"results.md": f"# rnn_triton: results\n\n{markdown_document(rows)}", "results.csv": csv_text(rows)}
    found |= {f"tables/{name}.tex": text for name, text in latex_tables(rows).items()}
    for name, content in found.items():
        (out / name).write_text(content, encoding="utf-8")
    return [out / name for name in found]
