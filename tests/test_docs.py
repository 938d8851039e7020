"""What the pages say is there is there: files, tests, commands and their options, snippets that run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").rglob("*.md")])
# `path` of a file or folder of the checkout, perhaps with ::test
PATHS = r"`((?:bench|docs|examples|kernels|rnn_triton|tests)/[\w/.]*|\.ci/run)(?:::(\w+))?`"
WRITTEN = ("bench/out/", "bench/results/nvidia-h200/")  # by a run


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_paths_and_tests_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path, test in re.findall(PATHS, text):
        assert (ROOT / path).exists() or path in WRITTEN, path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


def commands(text, start):
    """The commands that begin with `start`: in backticks, or on lines of their own with a comment behind them."""
    lines = re.findall(rf"^    ({start}.*)$", text, re.MULTILINE)
    return [shlex.split(c, comments=True) for c in lines + re.findall(rf"`({start}[^`]*)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_are_understood(page):
    from bench import __main__ as bench
    from bench.cases.case import choose
    from bench.cases.suites import parse, suites
    from bench.show.figures import FIGURES

    text = page.read_text(encoding="utf-8")
    for command in commands(text, "python -m bench"):
        if "NAME" in command or command[3:] == []:
            continue
        given = bench.parser().parse_args(command[3:])
        if getattr(given, "suite", None):
            suites(given.suite)
        if getattr(given, "case", None):
            [parse(name) for name in given.case.split(",")]
        if getattr(given, "only", None):
            choose(given.only, tuple(FIGURES), "figure")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for _, *words in commands(text, "make "):
        assert {word for word in words if "=" not in word} <= set(targets), words


def test_snippets_run():
    code = ""
    for page in PAGES:  # a snippet goes on from those before it on its page
        snippets = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        code += f"exec(compile({chr(10).join(snippets)!r}, {page.name!r}, 'exec'), {{}})\n"
    assert "rnn_triton.RNN(" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_row_of_the_drop_in_table_is_held_by_a_test():
    text = (ROOT / "docs" / "dropin.md").read_text(encoding="utf-8")
    section = text.split("## What works here", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10 and all(re.search(r"`tests/\w+\.py::test_\w+`", row) for row in rows)
