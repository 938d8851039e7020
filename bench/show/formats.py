"""Tables as aligned text, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ..records.rows import Row

NONE = "-"

Body = list[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """`name` is its label in LaTeX and its anchor in HTML; `note` says what its columns mean."""

    name: str
    title: str
    headings: tuple[str, ...]
    body: Sequence[tuple[str, ...]]
    note: str = ""


WIDTH = 120  # characters of a terminal's line


def text(headings: Sequence[str], body: Iterable[Sequence[str]], limit: int = WIDTH) -> str:
    """Columns aligned for a terminal, together no wider than `limit`: the widest ones break their lines."""
    table = [tuple(headings), *map(tuple, body)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    while sum(widths) + 2 * (len(widths) - 1) > limit and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in table:
        broken = [textwrap.wrap(cell, width) if len(cell) > width else [cell] for cell, width in zip(row, widths)]
        lines += ["  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip() for parts in zip_longest(*broken, fillvalue="")]
    return "\n".join(lines)


def markdown(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown"""

    def line(cells: Iterable[str]) -> str:
        escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        return f"| {' | '.join(' '.join(cell.split()) for cell in escaped)} |"

    return "\n".join([line(headings), f"|{'---|' * len(headings)}", *map(line, body)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",  # after \\ a bracket would be an argument
}  # fmt: skip
WIDEST, PARAGRAPH = 40, "0.25\\linewidth"  # characters; a column with more breaks its lines at this width


def latex_escape(value: str) -> str:
    """Text as LaTeX sets it; what is not printable ASCII becomes a question mark."""
    return "".join(_LATEX.get(c, c if c.isascii() and c.isprintable() else "?") for c in " ".join(value.split()))


def latex(table: Table, source: str = "") -> str:
    """A float for \\usepackage{booktabs}; `source`: what it was measured on."""
    widest = [max(map(len, column)) for column in zip(table.headings, *table.body)]
    columns = "".join("l" if width <= WIDEST else f"p{{{PARAGRAPH}}}" for width in widest)
    words = ". ".join(part.rstrip(".") for part in (table.title, table.note, source) if part)
    lines = table.body or [("none", *[""] * (len(table.headings) - 1))]
    body = "\n".join(" & ".join(map(latex_escape, line)) + r" \\" for line in lines)
    return (
        "\\begin{table}\n\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{latex_escape(words)}.}}\n\\label{{tab:{label(table.name)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{' & '.join(map(latex_escape, table.headings))} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def csv_text(rows: Iterable[Row]) -> str:
    """Row.tidy() of every row; nothing for what was not measured."""
    lines = [row.tidy() for row in rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def label(name: str) -> str:
    """A name as it can stand in a label or an anchor"""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
