"""One HTML page of everything the records say: no script, nothing loaded from elsewhere, figures within it and beside it.

Where ours loses stands beside where it wins, in the same form; what was not measured is listed; estimates are called estimates.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records.rows import Row
from ..records.schema import OURS
from . import figures, rows_in_words, style, tables
from .formats import Table, label
from .panels import Page

LARGEST_SVG, EMBEDDED = 60_000, 300_000  # bytes; a larger one is shown as PNG; of all figures together, further ones are read from FOLDER
MEASURED, KEY = "What was measured, and where", "profile"  # a title; the figure that stands beside the summary
FOLDER = "figures"  # beside the page
PAGE = Path(__file__).with_name("page.html")  # the template


@dataclass(frozen=True)
class Section:
    """A part of the page, in the order: `words` as (heading, paragraphs), tables, figures, lines as they are."""

    anchor: str
    title: str
    words: Sequence[tuple[str, Sequence[str]]] = ()
    tables: Sequence[Table] = ()
    prefix: str = ""  # of the tables' anchors
    figures: Sequence[tuple[Page, str]] = ()  # with the sources of their images
    lines: str = ""


def html(
    rows: Sequence[Row], training: Sequence[dict[str, Any]], resources: Sequence[dict[str, Any]], out: Path,
    sections: Sequence[str] = (), names: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """Write out/report.html and the figures beside it; returns its path.  `training` and `resources`: records of these kinds.
    `sections`: further text, each a title, a newline and lines to show as they are. `names`: of figures.FIGURES, all of them
    without. The same arguments give the same bytes."""
    from jinja2 import Environment  # torch depends on it

    drawn, why = _drawn(rows, out, names)
    nothing = "Nothing was timed: there are no timing records. This page shows no speed, and no figure of speed. What follows was computed, "
    parts = [] if rows else [Section("measured", MEASURED, [("", [nothing + "compiled or trained without timing a GPU."])])]
    every = []
    devices = rows_in_words.by_device(rows)
    for device, here in devices.items():
        prefix, on = (f"{label(device)}-", f" on {device}") if len(devices) > 1 else ("", "")
        key = [figure for figure in drawn if figure[0].name == f"{prefix}{KEY}"]
        for anchor, title, words, shown in _judging(here):
            parts.append(Section(prefix + anchor, title + on, words, shown, prefix, key if anchor == "summary" else ()))
        shown = [*tables.per_suite(here), tables.published(here), tables.streaming(here), tables.providers(here), tables.kernels(here)]
        every.append(Section(f"{prefix}tables", f"All results{on}", (), shown, prefix))
    others = [figure for figure in drawn if not figure[0].name.endswith(KEY)]
    parts += [Section("figures", "Figures", [("", [] if drawn else [f"No figures: {why}."])], figures=others), *every]
    if training:
        parts.append(Section("training", "Training", (), [tables.training(training)]))
    if resources:
        parts.append(Section("kernels", "Compiled kernels", (), [tables.resources(resources)]))
    for number, section in enumerate(sections):
        title, _, lines = section.partition("\n")
        parts.append(Section(f"section-{number + 1}", title.strip().rstrip(":"), lines=lines))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(PAGE.read_text("utf-8"))
    path.write_text(page.render(sections=parts, folder=FOLDER), encoding="utf-8")
    return path


def _judging(rows: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, list[str]]], list[Table]]]:
    """The sections (anchor, title, words, tables) of a device: summary, what was measured, wins, losses, what is missing or wrong"""
    compared = any(row.provider == OURS and row.speedup for row in rows)
    none = "No case of ours could be compared with cuDNN: one side was not measured or is wrong."
    cases, providers, timed = len({r.case for r in rows}), len({r.provider for r in rows}), sum(r.us is not None for r in rows)
    count = f"{len(rows)} records of {cases} cases, {providers} providers; {timed} with a time. Every result was compared with an fp64 reference "
    count += "before it was timed; one that misses its tolerance is listed as wrong or inaccurate and has no speedup."
    return [
        ("summary", "Summary", [] if compared else [("", [none])], [tables.summary(rows)]),
        ("measured", MEASURED, [("", [rows_in_words.caption(rows), count])], []),
        ("wins", "Where ours wins", [], [tables.wins(rows)]),
        ("losses", "Where ours loses", [], [tables.losses(rows)]),
        ("floor", "Far from the floor", [], [tables.far_from_floor(rows)]),
        ("missing", "Not measured", [], [tables.missing(rows)]),
        ("wrong", "Wrong, failed, unsupported", [], tables.not_timed(rows)),
    ]


def _drawn(rows: Sequence[Row], out: Path, names: Sequence[str] | None) -> tuple[list[tuple[Page, str]], str]:
    """(the figures, each written to out/FOLDER too, with the sources of their images, why there are none)"""
    found, left = list[tuple[Page, str]](), EMBEDDED
    try:
        for page, files in figures.draw(rows, out / FOLDER, names, "page"):
            file, kind = (files[1], "svg+xml") if files[1].stat().st_size <= LARGEST_SVG else (files[0], "png")
            source = f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
            found.append((page, source if (left := left - len(source)) >= 0 else f"{FOLDER}/{page.name}.png"))
    except style.MissingMatplotlib as error:
        return [], str(error)
    return found, "there is nothing to draw"
