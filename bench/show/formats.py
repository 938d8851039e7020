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

    @property
    def right(self) -> list[bool]:
        """Of each column: does it hold numbers, and words where there is none? Such a column is set flush right."""
        columns = list(zip(*self.body)) or [()] * len(self.headings)
        numbers = [[bool(_NUMBER.fullmatch(cell)) for cell in column] for column in columns]
        return [any(n) and all(is_ or not re.search(r"\d", cell) for is_, cell in zip(n, column)) for n, column in zip(numbers, columns)]


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?(x|%| s| MiB)?")
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


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown"""

    def line(cells: Iterable[str]) -> str:
        escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        return f"| {' | '.join(' '.join(cell.split()) for cell in escaped)} |"

    rule = "".join("---:|" if right else "---|" for right in table.right)
    return "\n".join([line(table.headings), f"|{rule}", *map(line, table.body)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",  # after \\ a bracket would be an argument
    "µ": r"\textmu{}", "×": r"$\times$",
}  # fmt: skip
WIDEST, PARAGRAPH, NARROW = 40, 30, 62  # characters: a column with more breaks its lines, at about so many; a table in a column of two
LINES = 42  # of a float
NEEDS = "\\usepackage{array,booktabs,graphicx,textcomp}"


def latex_escape(value: str, breaks: bool = False) -> str:
    """Text as LaTeX sets it, with `breaks` in long words too; a question mark for what is neither printable ASCII nor in _LATEX"""
    text = " ".join(value.split())
    found = [_LATEX.get(c, c if c.isascii() and c.isprintable() else "?") for c in text]
    return "".join(f + r"\allowbreak{}" * (breaks and (not c.isalnum() or i % 12 == 11)) for i, (c, f) in enumerate(zip(text, found)))


def latex(table: Table, source: str = "") -> str:
    """A table for NEEDS, numbers flush right, no wider than the text; one of many lines is several floats, the first of them with
    the caption.  `source`: what it was measured on."""
    widest = [max(map(len, column)) for column in zip(table.headings, *table.body)]
    broken = [width > WIDEST for width in widest]
    paragraph = f">{{\\raggedright\\arraybackslash}}p{{{PARAGRAPH * 0.5:g}em}}"
    columns = "".join(paragraph if long else "r" if right else "l" for long, right in zip(broken, table.right))
    words = ". ".join(part.rstrip(".") for part in (table.title, table.note, source) if part)
    parts, used = [list[str]()], 0
    for cells in table.body or [("none", *[""] * (len(table.headings) - 1))]:
        high = max(-(-len(cell) // (PARAGRAPH - 6)) if long else 1 for cell, long in zip(cells, broken))
        if parts[-1] and used + high > LINES:
            parts, used = [*parts, []], 0
        parts[-1].append(" & ".join(map(latex_escape, cells, broken)) + r" \\")
        used += high
    name, kind = f"tab:{label(table.name)}", "table" + "*" * (sum(min(w, PARAGRAPH) + 2 for w in widest) > NARROW)
    out = [f"% needs {NEEDS}\n"]
    for i, lines in enumerate(parts):
        head = f"Table~\\ref{{{name}}}, continued\\\\[2pt]" if i else f"\\caption{{{latex_escape(words)}.}}\n\\label{{{name}}}"
        out += [f"\\begin{{{kind}}}[p]\n\\centering\n{head}\n\\scriptsize\n\\setlength{{\\tabcolsep}}{{3pt}}\n"]
        out += ["\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}", f"{{{columns}}}\n\\toprule\n"]
        out += [" & ".join(map(latex_escape, table.headings)), " \\\\\n\\midrule\n", "\n".join(lines)]
        out += [f"\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{{kind}}}\n"]
    return "".join(out)


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
