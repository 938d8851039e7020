"""Jobs that read records: figures, the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command import Answer, records_of
from ..records.rows import rows
from . import figures, report, style, tables


def make_report(records: Sequence[dict[str, Any]], out: Path, sections: Sequence[str] = ()) -> str:
    """The HTML page with PDF figures and tables beside it; a line on what was written."""
    training = [r for r in records if r["kind"] == "training"]
    resources = [r for r in records if r["kind"] == "resources"]
    page = report.html(rows(records), training, resources, out, sections)
    beside = [f.name for f in tables.write(rows(records), out)]
    figures_ = sorted({f.stem for f in (out / report.FOLDER).glob("*.pdf")})
    if figures_:
        beside.append(f"{report.FOLDER}/ ({', '.join(figures_)}; PDF, SVG and PNG)")
    return f"report: {page}" + (f"; beside it: {', '.join(beside)}" if beside else "")


def figures_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    try:
        files = figures.draw(rows(records_of(given, out)), out / report.FOLDER, given.only)
    except style.MissingMatplotlib as error:
        return f"no figures: {error}", []
    stems = ", ".join(sorted({f.stem for f in files}))
    return f"figures: {stems} (PNG, SVG and PDF) in {out / report.FOLDER}" if files else "no figures: there is nothing to draw", []


def report_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    return make_report(records_of(given, out), out), []
