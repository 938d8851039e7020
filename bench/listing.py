"""The command `list`: suites, cases, providers, figures, recorded results."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .cases.case import nearest
from .cases.suites import ABOUT, SUITES, suites
from .command import Answer, Command, argument
from .measure.job import providers_here
from .providers.registry import PROVIDERS
from .records import environment
from .records.store import RESULTS, known, read
from .show.figures import FIGURES
from .show.formats import label, text

LISTS = ("suites", "cases", "providers", "figures", "results")


def run(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    what = given.what or ("cases" if given.suite else "suites")
    if what not in LISTS:
        raise ValueError(f"unknown list {what!r}; {nearest(what, LISTS)}")
    lists = {
        "suites": lambda: text(("suite", "cases", "what"), [(name, str(len(cases)), ABOUT[name]) for name, cases in SUITES.items()]),
        "cases": lambda: "\n".join(case.name for case in suites(given.suite or "all")), "figures": lambda: "\n".join(FIGURES),
        "providers": _providers, "results": lambda: _results(out),
    }  # fmt: skip
    return lists[what](), []


def _providers() -> str:
    body = []
    for name, here in providers_here(PROVIDERS).items():
        provider = PROVIDERS[name]
        version = here.version or ("-" if provider.package else "torch's")
        body.append((name, provider.label, version, here.missing or "found"))
    return text(("provider", "what", "version", "here"), body)


def _results(out: Path) -> str:
    """The record files that are known, and where new ones of the GPU at hand belong."""
    body = []
    for path in known(out):
        found, problems = read([path])
        devices, kinds = (", ".join(sorted(names)) for names in ({r["environment"]["device"] for r in found}, {r["kind"] for r in found}))
        body.append((str(path), str(len(found)), str(len(problems)), kinds, devices))
    lines = text(("file", "records", "damaged lines", "kinds", "devices"), body) if body else "no record files"
    if torch.cuda.is_available():
        name = environment.describe(environment.best_device())["device"]
        lines += f"\nrecords of this device belong into {RESULTS / label(name)}"
    return lines


_ARGUMENTS = (argument("what", nargs="?", help=", ".join(LISTS)), argument("--suite", help=", ".join(SUITES)))
COMMANDS = (Command("list", "suites, the cases of a suite, providers, figures, recorded results", run, _ARGUMENTS),)
