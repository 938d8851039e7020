"""Tables from records, and from nothing else: aligned text, Markdown, LaTeX (booktabs) and CSV.

What is missing is shown as missing, what is wrong as wrong; where ours loses is a table of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..cases.case import DTYPES, PASSES
from ..cases.suites import SUITES
from ..records.rows import APART, Row
from ..records.schema import BASELINES, OURS
from .formats import NONE, Body, Table, csv_text, label, latex, markdown
from .rows_in_words import (
    EVERYTHING,
    OTHER,
    PASS_TITLES,
    REGIMES,
    arithmetic,
    by_device,
    by_suite,
    caption,
    summed,
)

FLOOR_MARK = 0.45  # of the floor: a case that reaches less is listed with what remains to be done


HEADINGS = (
    "case", "pass", "us/step", "slope", "best cuDNN us/step", "by", "speedup", "graph speedup", "floor*", "of floor*",
    "bound*", "regime",
)  # fmt: skip
LEGEND = (
    "us/step: median device time of a call over its steps, the newest; slope: the time of a step free of launch cost; speedup: "
    "over the faster of torch.nn on cuDNN and a module for each layer, by device time, and by CUDA graph replay, in the newest "
    f"run that timed both with the code and versions of ours; {APART}: no run did; floor: the latency model's lower bound, and the part of it reached; bound: what the model says limits the step. *: estimates."
)


def timing_rows(rows: Iterable[Row]) -> Body:
    """A line of HEADINGS per (case, pass) of ours beside the best of cuDNN; what is missing or wrong is said in its place."""
    rows = list(rows)
    index = {_key(r): r for r in rows}
    out: Body = []
    for device, case, pass_ in dict.fromkeys(_key(r)[:3] for r in rows):
        ours = index.get((device, case, pass_, OURS))
        theirs = [r for name in BASELINES if (r := index.get((device, case, pass_, name)))]
        best = min((r for r in theirs if r.us_per_step), key=lambda r: r.us_per_step or math.inf, default=None)
        regime = (ours and ours.regime) or ""
        out.append(
            (
                case,
                pass_,
                _time(ours, ours.us_per_step if ours else None),
                _number(ours.slope_us_per_step if ours else None),
                _time(best or (theirs[0] if theirs else None), best.us_per_step if best else None),
                best.provider if best else NONE,
                _speedup(ours),
                _number(ours.graph_speedup if ours else None, "x", 2),
                _number(ours.floor_us_per_step if ours else None),
                _percent(ours.fraction_of_floor if ours else None),
                (ours and ours.bound) or NONE,
                REGIMES.get(regime, regime or NONE),
            )
        )
    return out


def results(rows: Iterable[Row], name: str = "results", title: str = "Results") -> Table:
    return Table(name, title, HEADINGS, timing_rows(rows), LEGEND)


def published(rows: Sequence[Row]) -> Table:
    """Ours beside what others published for a case: a line a published figure"""
    from ..cases import published as others

    body: Body = []
    for row in rows:
        if row.provider == OURS:
            for p in others.of(row.case, row.pass_):
                ours = _time(row, row.us_per_step)
                body.append((row.case, row.pass_, ours, f"{p.us_per_step:g}", p.what, p.device, p.source))
    headings = ("case", "pass", "ours, us/step", "published, us/step", "of", "on", "source")
    return Table(
        "published", "Beside published figures", headings, body,
        f"Ours on {' and '.join(by_device(rows)) or 'nothing'}; published figures were measured by others, on the device named: "
        "for orientation, not a comparison.",
    )  # fmt: skip


def per_suite(rows: Sequence[Row]) -> list[Table]:
    """results() of each suite touched"""
    return [
        results(mine, f"suite-{label(suite)}", f"Suite {suite}" if suite != OTHER else "Other cases")
        for suite, mine in by_suite(rows).items()
    ]


def providers(rows: Sequence[Row]) -> Table:
    """us/step of every provider side by side, a line a (case, pass); the fastest is marked."""
    names = sorted({r.provider for r in rows}, key=lambda n: (n != OURS, n not in BASELINES, n))
    index = {_key(r): r for r in rows}
    body: Body = []
    for key in dict.fromkeys(_key(r)[:3] for r in rows):
        found = [index.get((*key, name)) for name in names]
        least = min((r.us_per_step for r in found if r and r.us_per_step), default=None)
        cells = [
            _time(r, r.us_per_step if r else None) + (" (fastest)" if r and least and r.us_per_step == least else "")
            for r in found
        ]
        body.append((*key[1:], *cells))
    return Table("providers", "All providers, us/step", ("case", "pass", *names), body, "Median device time over T.")


def summary(rows: Iterable[Row]) -> Table:
    """A line per pass and arithmetic: how many cases were compared, their speedups, and what of the floor was reached."""
    ours = [row for row in rows if row.provider == OURS]
    body: Body = []
    for pass_ in PASSES:
        kinds = sorted({arithmetic(row) for row in ours}, key=lambda k: (DTYPES.index(k[:4]), k))
        for kind in kinds:
            mine = [row for row in ours if row.pass_ == pass_ and arithmetic(row) == kind]
            found = sorted(row.speedup for row in mine if row.speedup)
            reached = [row.fraction_of_floor for row in mine if row.fraction_of_floor]
            if not mine:
                continue
            line = (
                (
                    f"{found[0]:.2f}x",
                    f"{geometric_mean(found):.2f}x",
                    f"{found[-1]:.2f}x",
                    str(sum(s < 1 for s in found)),
                )
                if found
                else (NONE,) * 4
            )
            floor = f"{min(reached):.0%} to {max(reached):.0%}" if reached else NONE
            body.append((PASS_TITLES[pass_], kind, str(len(mine)), str(len(found)), *line, floor))
    headings = ("pass", "dtype", "cases", "compared", "lowest", "geometric mean", "highest", "below 1x", "of floor*")
    return Table(
        "summary", "Speedup over the best of cuDNN", headings, body,
        "Compared: both sides right and timed in one run, by the same code and versions. *: of an estimate.",
    )  # fmt: skip


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def wins(rows: Iterable[Row]) -> Table:
    """Every case of ours at 1x or above, the largest speedup first"""
    chosen = sorted(
        _chosen(rows, lambda r: r.speedup is not None and r.speedup >= 1), key=lambda r: -(r.speedup or 0)
    )
    return _listing("wins", "Where ours wins: at 1x or above", chosen)


def losses(rows: Iterable[Row]) -> Table:
    """Every case of ours below 1x, the smallest speedup first"""
    chosen = sorted(_chosen(rows, lambda r: r.speedup is not None and r.speedup < 1), key=lambda r: r.speedup or 0)
    return _listing("losses", "Where ours loses: below 1x", chosen)


def far_from_floor(rows: Iterable[Row]) -> Table:
    """Every case of ours that reaches less than FLOOR_MARK of the floor, the smallest part first"""

    def far(row: Row) -> bool:
        return row.fraction_of_floor is not None and row.fraction_of_floor < FLOOR_MARK

    chosen = sorted(_chosen(rows, far), key=lambda r: r.fraction_of_floor or 0)
    return _listing("floor", f"Below {FLOOR_MARK:.0%} of the floor (an estimate)", chosen)


def missing(rows: Sequence[Row]) -> Table:
    """What the suites touched list and no record has: a line a (suite, case), with the passes and providers left out."""
    body: Body = []
    expected = (OURS, BASELINES[0])
    for device, here in by_device(rows).items():
        passes = [p for p in PASSES if any(r.pass_ == p for r in here)]
        there = {(r.case, r.pass_, r.provider) for r in here}
        cases = {r.case for r in here}
        for suite, mine in by_suite(here).items():
            for name in dict.fromkeys([c.name for c in SUITES.get(suite, ())] or [r.case for r in mine]):
                lacks = [(p, provider) for p in passes for provider in expected if (name, p, provider) not in there]
                if name not in cases:
                    body.append((device, suite, name, EVERYTHING))
                elif lacks:
                    body.append((device, suite, name, ", ".join(f"{provider} {p}" for p, provider in lacks)))
    return Table("missing", "Not measured", ("device", "suite", "case", "no record of"), body)


NAMED = 3  # kernels of a call, those that took longest


def kernels(rows: Iterable[Row]) -> Table:
    """What the profiler saw: a line per (case, pass, provider) with its longest kernels, which tell cuDNN's algorithm"""
    body: Body = []
    for row in rows:
        total = sum(kernel["us"] for kernel in row.kernels)
        longest = sorted(row.kernels, key=lambda kernel: -kernel["us"])[:NAMED]
        if total > 0:
            named = "; ".join(f"{kernel['us'] / total:.0%} {kernel['count']} x {short_name(kernel['name'])}" for kernel in longest)
            launches = str(sum(kernel["count"] for kernel in row.kernels))
            body.append((row.case, row.pass_, row.provider, launches, named))
    return Table(
        "ran", "Kernels that ran", ("case", "pass", "provider", "launches", "longest kernels"), body,
        "Of one call under the profiler, which may run fewer steps than the case. Each kernel with its part of the kernels' "
        f"time and its launches, the longest {NAMED}; names without types and arguments.",
    )  # fmt: skip


def short_name(kernel: str) -> str:
    """A kernel's C++ name without return type, namespaces, template and call arguments"""
    name = kernel.replace("(anonymous namespace)::", "")
    while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)", "", name)) != name:
        name = shorter
    return (name.split() or [kernel])[-1].rsplit("::", 1)[-1][:80] or kernel[:80]


def not_timed(rows: Iterable[Row], statuses: Sequence[str], name: str, title: str, note: str = "") -> Table:
    """Every record of one of the statuses, with its reason"""
    body = [
        (r.environment["device"], r.case, r.pass_, r.provider, r.status, r.message or "no reason recorded")
        for r in rows if r.status in statuses
    ]  # fmt: skip
    return Table(name, title, ("device", "case", "pass", "provider", "status", "reason"), body, note)


def wrong(rows: Sequence[Row]) -> Table:
    return not_timed(rows, ("wrong",), "wrong", "Wrong results", summed(rows))


def failed(rows: Iterable[Row]) -> Table:
    return not_timed(rows, ("error", "timeout"), "failed", "Failed")


def unsupported(rows: Iterable[Row]) -> Table:
    return not_timed(rows, ("unsupported", "missing"), "unsupported", "Unsupported or not installed")


def every(rows: Sequence[Row]) -> list[Table]:
    """All tables of one device's rows that have a line; those of losses even without one."""
    found = [summary(rows), losses(rows), far_from_floor(rows), *per_suite(rows), published(rows), providers(rows)]
    found += [kernels(rows), missing(rows), wrong(rows), failed(rows), unsupported(rows)]
    return [table for table in found if table.body or table.name in ("losses", "floor")]


def _chosen(rows: Iterable[Row], condition: Callable[[Row], bool]) -> list[Row]:
    return [row for row in rows if row.provider == OURS and condition(row)]


def _listing(name: str, title: str, rows: Iterable[Row]) -> Table:
    body = [
        (
            r.case, r.pass_, _speedup(r), _number(r.graph_speedup, "x", 2), _time(r, r.us_per_step),
            _number(r.floor_us_per_step), _percent(r.fraction_of_floor), r.bound or NONE,
            REGIMES.get(r.regime or "", r.regime or NONE),
        )
        for r in rows
    ]  # fmt: skip
    headings = ("case", "pass", "speedup", "graph speedup", "us/step", "floor*", "of floor*", "bound*", "regime")
    return Table(name, title, headings, body, "*: estimates by the latency model.")


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.environment["device"], row.case, row.pass_, row.provider


def _time(row: Row | None, value: float | None) -> str:
    if value is not None:
        return f"{value:.3f}"
    return row.status if row is not None and row.status != "ok" else "not measured"


def _number(value: float | None, unit: str = "", digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}{unit}"


def _speedup(row: Row | None) -> str:
    return APART if row is not None and row.gap == APART else _number(row.speedup if row else None, "x", 2)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"


RESOURCE_HEADINGS = (
    "direction", "H", "I", "B", "dtype", "plan", "regs", "spills", "shared KB", "barriers/step", "loads/step from",
    "MMA/step", "instr/step", "floor us*", "practical us*",
)  # fmt: skip


def resource_rows(records: Iterable[dict[str, Any]]) -> Body:
    """A line per compiled plan. Starred columns are estimates."""
    out: Body = []
    for record in records:
        problem, plan, found = record["problem"], record["plan"], record["resources"]
        dtype = problem["dtype"] + (f" {problem['precision']}" if problem["precision"] else "")
        head = (problem["direction"], str(problem["H"]), str(problem["I"]), str(problem["B"]), dtype)
        shape = f"{plan.get('regime', '')} {plan.get('warps', '?')} warps, {plan.get('block_b', '?')} rows"
        if record["status"] != "ok":
            out.append((*head, shape, f"{record['status']}: {record['message']}", *["-"] * 8))
            continue
        loads = ", ".join(f"{name} {count}" for name, count in found["global_load_arguments"].items()) or "none"
        out.append(
            (
                *head, shape, str(found["registers"]), f"{found['spill_stores']}/{found['spill_loads']}",
                f"{found['shared_bytes'] / 1024:.1f}", f"{found['barriers']:g}", loads, f"{found['mma']:g}",
                f"{found['instructions']:.0f}",
                _number(record["floor_us_per_step"]), _number(record["practical_us_per_step"]),
            )
        )  # fmt: skip
    return out


def resources(records: Iterable[dict[str, Any]]) -> Table:
    return Table(
        "resources", "Compiled kernels", RESOURCE_HEADINGS, resource_rows(records),
        "Counts of one warp and one step, read from the machine code; nothing was timed. *: estimates.",
    )  # fmt: skip


def training(records: Iterable[dict[str, Any]]) -> Table:
    """A line per training run of an example"""
    body = [
        (r["example"], r["implementation"], str(r["seed"]), f"{r['accuracy']:.2%}", f"{r['seconds']:.1f} s", r["environment"]["device"])
        for r in records
    ]
    return Table("training", "Training runs", ("example", "implementation", "seed", "test accuracy", "training", "device"), body)


def markdown_document(rows: Sequence[Row], level: int = 2) -> str:
    """Every table, a section a device with what it was measured on."""
    parts = []
    for device, here in by_device(rows).items():
        parts.append(f"{'#' * level} {device}\n\n{caption(here)}\n")
        for table in every(here):
            shown = markdown(table.headings, table.body) if table.body else "none\n"
            parts.append(
                f"{'#' * (level + 1)} {table.title}\n\n{shown}" + (f"\n{table.note}\n" if table.note else "")
            )
    return "\n".join(parts) or "No timing records.\n"


def latex_document(rows: Sequence[Row]) -> str:
    """Every table as floats, to be read by \\input; a label starts with the device where there are several."""
    devices = by_device(rows)
    parts = ["% needs \\usepackage{booktabs}\n"]
    for device, here in devices.items():
        prefix = f"{label(device)}-" if len(devices) > 1 else ""
        for table in every(here):
            named = Table(prefix + table.name, table.title, table.headings, table.body, table.note)
            parts.append(latex(named, caption(here)))
    return "\n".join(parts)


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """results.md, results.tex and results.csv in `out`; no files where there is no row."""
    if not rows:
        return []
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "results.md": f"# rnn_triton: results\n\n{markdown_document(rows)}", "results.tex": latex_document(rows),
        "results.csv": csv_text(rows),
    }  # fmt: skip
    for name, content in found.items():
        (out / name).write_text(content, encoding="utf-8")
    return [out / name for name in found]
