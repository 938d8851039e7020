"""What `bench check` says: a table a section."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..measure import check
from ..records.rows import rows
from ..records.schema import is_switched
from ..records.store import read
from ..show import formats, tables
from . import dry
from .behaviours import Behaviour
from .items import Item
from .listed import SETTINGS, fault_items

SECTIONS = {
    "protocols": "exchange protocols alone",
    "equivalence": "y, hn and all gradients against fp64",
    "speed": "rnn_triton against torch.nn.RNN on cuDNN",
    "switches": "settings of the group kernel, side by side",
    "constants": "constants of the latency model",
    "faults": "what must fail, and does",
    "graphs": "repeated calls and CUDA graphs",
}


# ---- what it says ---------------------------------------------------------------------------------------------------


def table_of(path: Path, left: Sequence[Item], is_dry: bool) -> str:
    found, _ = read([path])
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        by_kind.setdefault(record["kind"], []).append(record)
    timing = list(rows(found))
    behaviours = by_kind.get("behaviour", [])
    exchanges = by_kind.get("exchange", [])
    switched = [r for r in exchanges if is_switched(r)]
    faults = [r for r in behaviours if r["name"] in {i.of for i in fault_items() if isinstance(i, Behaviour)}]
    parts = {
        "protocols": formats.text(EXCHANGE_HEADINGS, exchange_rows(r for r in exchanges if r not in switched)),
        "equivalence": _equivalence_table(by_kind.get("check", [])),
        "speed": "a stub's times are not shown" if is_dry else formats.text(tables.HEADINGS, tables.timing_rows(timing)),
        "switches": formats.text(SWITCH_HEADINGS, switch_rows(switched)),
        "constants": formats.text(CONSTANT_HEADINGS, constant_rows(by_kind.get("constant", []))),
        "faults": formats.text(BEHAVIOUR_HEADINGS, behaviour_rows(faults)),
        "graphs": formats.text(BEHAVIOUR_HEADINGS, behaviour_rows(r for r in behaviours if r not in faults)),
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
    return formats.text(("case", "plan", "worst", "error", "tolerance", "verdict"), body)


def _verdict(record: dict[str, Any]) -> str:
    if record["status"] == "ok":
        return "ok"
    shout = record["status"] if record["status"] == "unsupported" else record["status"].upper()
    return f"{shout}: {record['message'].splitlines()[0][:160] if record['message'] else ''}"
