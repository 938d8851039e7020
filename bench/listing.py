"""The command `list`: suites, cases, providers, figures, recorded results."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cases.suites import ABOUT, SUITES, suites
from .command import FIGURES, Answer
from .providers.registry import PROVIDERS
from .records import environment
from .records.store import RESULTS, known, read
from .show.formats import label, text


def list_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    lists = {
        "suites": lambda: text(("suite", "cases", "what"), [(name, str(len(cases)), ABOUT[name]) for name, cases in SUITES.items()]),
        "cases": lambda: "\n".join(case.name for case in given.cases or suites("all")), "figures": lambda: "\n".join(FIGURES),
        "providers": _providers, "results": lambda: _results(out),
    }  # fmt: skip
    return lists[given.what](), []


def _providers() -> str:
    print(f"asking {len(PROVIDERS)} providers whether they are here, in a process of its own", flush=True)
    from .measure.job import providers_here  # torch

    found = [(name, PROVIDERS[name], here) for name, here in providers_here(PROVIDERS).items()]
    body = [(name, p.label, here.version or ("-" if p.package else "torch's"), here.missing or "found") for name, p, here in found]
    return text(("provider", "what", "version", "here"), body)


def _results(out: Path) -> str:
    """The record files that are known, and where new ones of the GPU at hand belong."""
    body = []
    for path in known(out):
        found, problems = read([path])
        devices, kinds = (", ".join(sorted(names)) for names in ({r["environment"]["device"] for r in found}, {r["kind"] for r in found}))
        body.append((str(path), str(len(found)), str(len(problems)), kinds, devices))
    lines = text(("file", "records", "damaged lines", "kinds", "devices"), body) if body else "no record files"
    for name in sorted(set((environment._output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines())):
        lines += f"\nrecords of {name} belong into {RESULTS / label(name)}"
    return lines
