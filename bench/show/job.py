"""Jobs that read records: figures, the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cases.case import choose
from ..command import Answer, records_of
from ..instruments.progress import Progress
from ..records.rows import rows
from . import figures, report, style, tables
from .sweeps import AXES


def make_report(records: Sequence[dict[str, Any]], out: Path, sections: Sequence[str] = ()) -> str:
    """The HTML page with PDF figures and tables beside it, which are written before it; a line on what was written."""
    training = [r for r in records if r["kind"] == "training"]
    resources = [r for r in records if r["kind"] == "resources"]
    found = rows(records)
    with Progress("intervals of speedups", len(found)) as progress:
        for row in found:
            progress.now(row.case)
            row.drawn  # takes long, and is kept
            progress.step()
    beside = [f.name for f in tables.write(found, out) if f.suffix != ".tex"]  # first, so that they are there whatever ends the figures
    page = report.html(found, training, resources, out, sections)
    beside += ["tables/ (LaTeX)"] if beside else []
    if drawn := sorted({f.stem for f in (out / report.FOLDER).glob("*.pdf")}):
        beside.append(f"{report.FOLDER}/ ({', '.join(drawn)}; PDF, SVG and PNG)")
    return f"report: {page}" + (f"; beside it: {', '.join(beside)}" if beside else "")


def figures_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    """For one of style.PAPERS; of the figures, cases, dtypes, passes, providers and axes that are named"""
    found, cases = rows(records_of(given, out)), {case.name for case in given.cases}
    there = tuple(sorted({row.provider for row in found}))
    shown = choose(given.shown, there, "provider of the records") if given.shown else there
    found = [r for r in found if r.shape["dtype"] in given.dtypes and r.pass_ in given.passes and r.provider in shown]
    found = [r for r in found if r.case in cases] if cases else found
    names, folder = given.only or (figures.OVER_SIZES if given.axis else None), out / report.FOLDER / given.paper
    try:
        pages = figures.draw(found, folder, names, given.paper, given.axis or AXES)
    except style.MissingMatplotlib as error:
        return f"no figures: {error}", []
    stems = ", ".join(sorted(page.name for page, _ in pages))
    return f"figures: {stems} (PNG, SVG and PDF), captions.md and captions.tex in {folder}" if pages else "no figures: there is nothing to draw", []


def report_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    return make_report(records_of(given, out), out), []
