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
from .items import Item
from .listed import SETTINGS

EXCHANGE_HEADINGS = ("case", "direction", "plan", "CTAs", "ns/step", "model*", "verdict")
SWITCH_HEADINGS = ("case", "direction", "loads of x", "turns a look", "cycles of delay", "ns/step", "verdict")
FAULT_HEADINGS = ("what", "case", "seconds", "verdict")


def table_of(path: Path, left: Sequence[Item]) -> str:
    found, _ = read([path])
    by_kind = {kind: [r for r in found if r["kind"] == kind] for kind in ("exchange", "check", "behaviour")}
    exchanges = [r for r in by_kind["exchange"] if not is_switched(r)]
    parts = {
        "exchange protocols and regimes, a recurrence alone": formats.text(EXCHANGE_HEADINGS, exchange_rows(exchanges)),
        "y, hn and all gradients against fp64": _equivalence_table(by_kind["check"]),
        "rnn_triton against torch.nn.RNN on cuDNN": formats.text(tables.HEADINGS, tables.timing_rows(rows(found))),
        "settings of the group kernel, side by side": formats.text(SWITCH_HEADINGS, switch_rows(filter(is_switched, by_kind["exchange"]))),
        "what must fail, and does": formats.text(FAULT_HEADINGS, fault_rows(by_kind["behaviour"])),
    }
    intro = f"on {found[0]['environment']['device']}" if found else "nothing was run"
    lines = [intro, *(f"\n{title}:\n{table}" for title, table in parts.items())]
    if left:
        lines.append(f"\nnot run, for the time was up: {', '.join(f'{item.section}: {item.name}' for item in left)}")
    return "\n".join([*lines, f"\nrecords in {path}"])


def exchange_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per exchange record; ns/step is the slope between the two numbers of steps. Starred: estimates."""
    out: list[tuple[str, ...]] = []
    for r in records:
        plan, practical = r["plan"] or {}, r["practical_us_per_step"]
        ctas = f"{plan['groups']} x {plan['ctas']}" if "ctas" in plan else "-"
        model = "-" if practical is None else f"{1e3 * practical:.0f}"
        chosen = r["choices"] | plan
        kind = str(chosen.get("protocol") or chosen.get("regime", "-"))
        out.append((r["case"], r["direction"], kind, ctas, _ns(r), model, _verdict(r)))
    return out


def switch_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line per setting, those of one case and direction below each other"""
    ordered = sorted(records, key=lambda r: (r["shape"]["H"], r["direction"]))
    return [(r["case"], r["direction"], *(str(r["choices"][name]) for name in SETTINGS[0]), _ns(r), _verdict(r)) for r in ordered]


def fault_rows(records: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    verdicts = ((r, f"ok: {r['message']}" if r["status"] == "ok" else _verdict(r)) for r in records)
    return [(r["name"].replace("_", " "), r["case"], f"{r['seconds']:.1f}", verdict) for r, verdict in verdicts]


def _ns(r: dict[str, Any]) -> str:
    """Of a step, by the slope between the two numbers of steps"""
    full, short = r["device_us"]["median"], r["short_us"]["median"]
    if not full or not short or r["short_T"] >= r["shape"]["T"]:
        return "-"
    return f"{1e3 * (full - short) / (r['shape']['T'] - r['short_T']):.0f}"


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
