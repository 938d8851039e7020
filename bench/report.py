"""Tables from records: Markdown for files and the README, aligned text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .figures import PASS_TITLES, caption
from .records import BASELINE, Row

OURS = "rnn_triton"
HEADINGS = (
    "case", "pass", "us/step", "slope", "cuDNN us/step", "speedup", "graph speedup", "floor", "of floor",
)  # fmt: skip


def timing_rows(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line per (case, pass) of ours beside cuDNN; what is missing or wrong is said in its place."""
    by_key = {(r.case, r.pass_, r.provider): r for r in rows}
    out: list[tuple[str, ...]] = []
    for (name, pass_, provider), row in by_key.items():
        if provider != OURS:
            continue
        theirs = by_key.get((name, pass_, BASELINE))
        out.append(
            (
                name,
                pass_,
                _time(row, row.us_per_step),
                _number(row.slope_us_per_step),
                _time(theirs, theirs.us_per_step) if theirs else "not measured",
                _number(row.speedup, "x", 2),
                _number(row.graph_speedup, "x", 2),
                _number(row.floor_us_per_step),
                "-" if row.fraction_of_floor is None else f"{row.fraction_of_floor:.0%}",
            )
        )
    return out


def markdown(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join(lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in body]) + "\n"


def text(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Columns aligned for a terminal."""
    table = [tuple(headings), *map(tuple, body)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def timing_markdown(rows: Sequence[Row]) -> str:
    """The timing table with what it was measured on, a section a device; also the README's table."""
    parts = []
    for device in sorted({row.environment["device"] for row in rows}):
        here = [row for row in rows if row.environment["device"] == device]
        parts.append(f"### {device}\n\n{caption(here)}. `floor` is an estimate by the latency model, `of floor` is floor")
        parts[-1] += " over measured time, `slope` the time of a step free of launch cost.\n\n"
        parts[-1] += markdown(HEADINGS, timing_rows(here))
        bad = sorted({f"{r.case} {PASS_TITLES[r.pass_]}, {r.provider}: {r.status}, {r.message}" for r in here if r.status != "ok"})
        if bad:
            parts[-1] += "\nNot timed:\n\n" + "".join(f"- {line}\n" for line in bad)
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> list[str]:
    """Few lines: the range of speedups per dtype and pass, and where ours loses."""
    lines = []
    ours = [row for row in rows if row.provider == OURS]
    for pass_ in PASS_TITLES:
        for dtype in dict.fromkeys(row.shape["dtype"] for row in ours):
            found = sorted(
                row.speedup for row in ours if row.pass_ == pass_ and row.shape["dtype"] == dtype and row.speedup
            )
            if found:
                middle = found[len(found) // 2]
                lines.append(
                    f"{PASS_TITLES[pass_]}, {dtype}: {found[0]:.2f}x to {found[-1]:.2f}x, middle {middle:.2f}x, "
                    f"{len(found)} cases"
                )
    lost = [f"{row.case} {row.pass_} {row.speedup:.2f}x" for row in ours if row.speedup is not None and row.speedup < 1]
    if lost:
        lines.append(f"slower than cuDNN: {', '.join(lost)}")
    return lines


RESOURCE_HEADINGS = (
    "direction", "H", "I", "B", "dtype", "plan", "regs", "spills", "shared KB", "barriers/step", "loads/step from",
    "MMA/step", "instr/step", "cycles/step*", "floor us*", "practical us*",
)  # fmt: skip


def resource_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per compiled plan. Starred columns are estimates."""
    out: list[tuple[str, ...]] = []
    for record in records:
        problem, plan, found = record["problem"], record["plan"], record["resources"]
        dtype = problem["dtype"] + (f" {problem['precision']}" if problem["precision"] else "")
        head = (problem["direction"], str(problem["H"]), str(problem["I"]), str(problem["B"]), dtype)
        shape = f"{plan.get('regime', '')} {plan.get('warps', '?')} warps, {plan.get('block_b', '?')} rows"
        if record["status"] != "ok":
            out.append((*head, shape, f"{record['status']}: {record['message']}", *["-"] * 9))
            continue
        loads = ", ".join(f"{name} {count}" for name, count in found["global_load_arguments"].items()) or "none"
        out.append(
            (
                *head, shape, str(found["registers"]), f"{found['spill_stores']}/{found['spill_loads']}",
                f"{found['shared_bytes'] / 1024:.1f}", f"{found['barriers']:g}", loads, f"{found['mma']:g}",
                f"{found['instructions']:.0f}", f"{found['estimated_cycles']:.0f}",
                _number(record["floor_us_per_step"]), _number(record["practical_us_per_step"]),
            )
        )  # fmt: skip
    return out


def _time(row: Row | None, value: float | None) -> str:
    if value is not None:
        return f"{value:.3f}"
    return row.status if row is not None and row.status != "ok" else "not measured"


def _number(value: float | None, unit: str = "", digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"
