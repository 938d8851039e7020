"""One HTML page of everything the records say: no script, nothing loaded from elsewhere, figures within it.

Where ours loses stands beside where it wins, in the same form; what was not measured is listed as such; estimates are
called estimates.  Figures are also written beside the page as PNG, SVG and PDF.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..records.rows import Row
from ..records.schema import OURS
from . import figures, formats, panels, rows_in_words, style, tables

LARGEST_SVG = 200_000  # bytes; a larger one is embedded as PNG
FOLDER = "figures"  # beside the page

_CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --rule: #c8c8c8; --soft: #f2f2f2; --link: #0058a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --rule: #4a4f57; --soft: #22262c; --link: #8cc8ff; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem;
  padding: 0 1rem 3rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { border-bottom: 1px solid var(--rule); margin-top: 2.5rem; padding-bottom: .2rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { font-weight: 600; padding: .3rem 0; text-align: left; }
th, td { border: 1px solid var(--rule); padding: .2rem .5rem; text-align: left; vertical-align: top; }
thead th { background: var(--soft); }
tbody th { font-weight: 400; white-space: nowrap; }
figure { margin: 1.5rem 0; }
figure img { background: #fff; height: auto; max-width: 100%; }
figcaption, .note { font-size: .85rem; max-width: 60rem; }
pre { background: var(--soft); font-size: .78rem; overflow-x: auto; padding: .7rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --rule: #999; --soft: #eee; --link: #000; }
  body { font-size: 10pt; max-width: none; }
  nav { display: none; }
  .scroll, pre { overflow: visible; white-space: pre-wrap; }
  figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  thead { display: table-header-group; }
}
"""


def html(
    rows: Sequence[Row],
    training: Sequence[dict[str, Any]],
    resources: Sequence[dict[str, Any]],
    out: Path,
    sections: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Path:
    """Write out/report.html and the figures beside it; returns its path.

    `training` and `resources`: records of these kinds. `sections`: further text, each a title, a newline and lines to show
    as they are. `names`: of figures.FIGURES, all of them without. The same arguments give the same bytes."""
    drawn = _figures(rows, training, out, names)
    parts = [("measured", "What was measured, and where", _measured(rows))]
    if rows:
        devices = rows_in_words.by_device(rows)
        for device, here in devices.items():
            prefix = f"{formats.label(device)}-" if len(devices) > 1 else ""
            of = f" on {device}" if len(devices) > 1 else ""
            parts += [(prefix + anchor, title + of, body) for anchor, title, body in _of_device(here, prefix)]
    parts.append(("figures", "Figures", drawn))
    if rows:
        for device, here in devices.items():
            prefix = f"{formats.label(device)}-" if len(devices) > 1 else ""
            of = f" on {device}" if len(devices) > 1 else ""
            every = [*tables.per_suite(here), tables.published(here), tables.providers(here), tables.kernels(here)]
            parts.append((f"{prefix}tables", f"All results{of}", "\n".join(_table(table, prefix) for table in every)))
    if resources:
        parts.append(("kernels", "Compiled kernels", _table(tables.resources(resources))))
    for number, section in enumerate(sections):
        title, _, lines = section.partition("\n")
        parts.append(
            (
                f"section-{number + 1}",
                title.strip().rstrip(":"),
                f"<pre>{escape(lines)}</pre>" if lines.strip() else "",
            )
        )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    path.write_text(_page(parts), encoding="utf-8")
    return path


def _page(parts: Sequence[tuple[str, str, str]]) -> str:
    """The page of sections (anchor, title, HTML)"""
    contents = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>\n' for anchor, title, _ in parts)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n<h2 id="{anchor}-title">{escape(title)}</h2>\n{content}\n'
        "</section>\n"
        for anchor, title, content in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>rnn_triton benchmark</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<header>\n"
        "<h1>rnn_triton benchmark</h1>\n"
        "<p>Made from records alone. A number marked * or called an estimate comes from the latency model and was not "
        f'measured.</p>\n</header>\n<nav aria-label="Contents">\n<ul>\n{contents}</ul>\n</nav>\n<main>\n{body}</main>\n'
        "</body>\n</html>\n"
    )


def _measured(rows: Sequence[Row]) -> str:
    """What each device's records were made with"""
    if not rows:
        return (
            "<p><strong>Nothing was timed: there are no timing records.</strong> This page shows no speed, and no figure of "
            "speed. What follows was computed, compiled or trained without timing a GPU.</p>"
        )
    parts = []
    for device, here in rows_in_words.by_device(rows).items():
        ok = sum(row.us is not None for row in here)
        parts.append(
            f"<h3>{escape(device)}</h3>\n<p>{escape(rows_in_words.caption(here))}</p>\n<p>{len(here)} records of "
            f"{len({row.case for row in here})} cases, {len({row.provider for row in here})} providers; {ok} with a time. "
            "Every result was compared with an fp64 reference before it was timed; one that misses its tolerance is listed as "
            "wrong and has no time.</p>"
        )
    return "\n".join(parts)


def _of_device(rows: Sequence[Row], prefix: str) -> list[tuple[str, str, str]]:
    """The sections (anchor, title, HTML) that judge: summary, wins, losses, what is missing or wrong"""

    def shown(*several: formats.Table) -> str:
        return "\n".join(_table(table, prefix) for table in several)

    compared = any(row.provider == OURS and row.speedup for row in rows)
    none = (
        ""
        if compared
        else "<p>No case of ours could be compared with cuDNN: one side was not measured or is wrong.</p>"
    )
    found = [
        ("summary", "Summary", none + shown(tables.summary(rows))),
        ("wins", "Where ours wins", shown(tables.wins(rows))),
        ("losses", "Where ours loses", shown(tables.losses(rows))),
        ("floor", "Far from the floor", shown(tables.far_from_floor(rows))),
        ("missing", "Not measured", shown(tables.missing(rows))),
        (
            "wrong",
            "Wrong, failed, unsupported",
            shown(tables.wrong(rows), tables.failed(rows), tables.unsupported(rows)),
        ),
    ]
    return found


def _table(table: formats.Table, prefix: str = "") -> str:
    """A table with its caption and note; the first column heads its line. "None." where it has no line."""
    if not table.body:
        return f"<h3>{escape(table.title)}</h3>\n<p>None.</p>"
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    lines = "\n".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
        for line in table.body
    )
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" id="table-{prefix}{escape(table.name)}" role="region" tabindex="0" '
        f'aria-label="{escape(table.title)}">\n<table>\n<caption>{escape(table.title)}: {len(table.body)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>{note}"
    )


def _figures(rows: Sequence[Row], training: Iterable[dict[str, Any]], out: Path, names: Sequence[str] | None) -> str:
    """The figures as HTML, each written to out/FOLDER too; a sentence where there are none"""
    found = []
    try:
        with style.context():
            for page in figures.pages(rows, list(training), names):
                found.append(_figure(page, style.save(page.figure, out / FOLDER / page.name)))
    except style.MissingMatplotlib as error:
        return f"<p>No figures: {escape(str(error))}.</p>"
    return "\n".join(found) or "<p>No figures: there is nothing to draw.</p>"


def _figure(page: panels.Page, files: Sequence[Path]) -> str:
    by_suffix = {file.suffix: file for file in files}
    small = by_suffix[".svg"].stat().st_size <= LARGEST_SVG
    file, kind = (by_suffix[".svg"], "svg+xml") if small else (by_suffix[".png"], "png")
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    links = ", ".join(
        f'<a href="{FOLDER}/{escape(f.name)}">{f.suffix[1:].upper()}</a>'
        for f in (by_suffix[s] for s in (".pdf", ".svg", ".png"))
    )
    return (
        f'<figure id="figure-{escape(page.name)}">\n<img src="data:image/{kind};base64,{data}" '
        f'alt="{escape(f"{page.title}. {page.note}")}">\n'
        f"<figcaption><strong>{escape(page.title)}.</strong> {escape(page.note)} {escape(page.source)} Files: {links}."
        "</figcaption>\n</figure>"
    )
