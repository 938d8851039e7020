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


def anchors(page):
    """What a link may name in a page: its headings, as GitHub and the site spell them"""
    lines = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_paths_and_tests_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        assert (page.parent / target).exists(), target
        assert not anchor or anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"
    for path, test in re.findall(PATHS, text):
        assert (ROOT / path).exists() or path in WRITTEN, path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


def test_the_api_page_has_every_public_name_and_its_docstring():
    """and names nothing twice, nor what is not there"""
    import rnn_triton
    from rnn_triton import cells, onnx

    listed = re.findall(r"^\.\. auto\w+:: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {name: getattr(rnn_triton, name) for name in rnn_triton.__all__}
    public |= {f"rnn_triton.cells.{name}": getattr(cells, name) for name in cells.__all__}
    public |= {"rnn_triton.onnx": public.pop("onnx"), "rnn_triton.onnx.decompositions": onnx.decompositions}
    assert sorted(listed) == sorted(public)
    for name, value in public.items():
        # its own, not that of a class it derives from
        assert vars(value).get("__doc__") if isinstance(value, type) else value.__doc__, name


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


def snippets(page):
    """The code of a page: a snippet goes on from those before it"""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def test_snippets_run(tmp_path):
    """from files, whose source Triton reads"""
    code = "import runpy\n"
    for page in PAGES:
        path = tmp_path / f"{page.stem}.py"
        path.write_text(snippets(page), encoding="utf-8")
        code += f"runpy.run_path({str(path)!r})\n"
    assert "rnn_triton.RNN(" in snippets(ROOT / "README.md") and "cells.register(" in snippets(ROOT / "docs" / "own_cell.md")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interpret
def test_the_cell_of_the_page_runs_in_the_kernels(tmp_path):
    """One CTA, and single steps beyond it; two layers; outputs and gradients, the vectors' too, against `step` in fp64.

    Limits: of "ieee" 2^-24 for some hundred terms; of bf16 twice its roundoff 2^-8 for each of two layers"""
    import runpy

    import torch

    path = tmp_path / "own_cell.py"
    path.write_text(snippets(ROOT / "docs" / "own_cell.md"), encoding="utf-8")
    page = runpy.run_path(str(path))
    page["rnn_triton"].check_cell(page["peephole"])
    for dtype, precision, H, limit in ((torch.float32, "ieee", 24, 1e-5), (torch.float32, "ieee", 150, 1e-5), (torch.bfloat16, None, 24, 2**-6)):
        torch.manual_seed(0)
        model = page["rnn_triton"].Recurrent(page["peephole"], 5, H, num_layers=2, dtype=dtype, precision=precision)
        leaves = dict(model.named_parameters())
        for name, shape in (("x", (4, 3, 5)), ("h0", (2, 3, H)), ("c0", (2, 3, H))):
            leaves[name] = torch.randn(shape).to(dtype).requires_grad_()
        dy = torch.randn(4, 3, H).to(dtype)
        y, last = model(leaves["x"], (leaves["h0"], leaves["c0"]))
        got = [y, *last, *torch.autograd.grad((y, *last), list(leaves.values()), (dy, dy[:2], dy[1:3]))]

        wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
        h, ends = wide["x"], []
        for n in range(2):
            w_ih, w_hh, b_ih, b_hh, *vectors = (
                wide[f"{name}_l{n}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "p_i", "p_f", "p_o")
            )
            state, ys = (wide["h0"][n], wide["c0"][n]), []
            for x_t in h:
                a = (x_t @ w_ih.T + b_ih + state[0] @ w_hh.T + b_hh).chunk(4, -1)
                state = page["step"](a, state, vectors)
                ys.append(state[0])
            h = torch.stack(ys)
            ends.append(state)
        last = [torch.stack(parts) for parts in zip(*ends)]
        gradients = torch.autograd.grad((h, *last), list(wide.values()), [t.double() for t in (dy, dy[:2], dy[1:3])])
        for name, ours, exact in zip(["y", "hn", "cn", *leaves], got, [h, *last, *gradients], strict=True):
            assert (ours.double() - exact).norm() <= limit * exact.norm(), (dtype, H, name)


def test_estimates_of_lstm_and_gru_are_the_models():
    from bench.cases.estimate import of_case
    from bench.cases.suites import parse
    from rnn_triton.plan.hardware import RECORDS

    rows = re.findall(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \|$", (ROOT / "docs" / "cta_group.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 12
    for name, *said in rows:
        forward, train = (of_case(parse(name), pass_, RECORDS["sm_90"]) for pass_ in ("fwd", "train"))
        assert said == [f"{us:.2f}" for us in (forward.floor_us, forward.practical_us, train.practical_us)], name


def test_every_row_of_the_drop_in_table_is_held_by_a_test():
    text = (ROOT / "docs" / "dropin.md").read_text(encoding="utf-8")
    section = text.split("## What works here", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10 and all(re.search(r"`tests/\w+\.py::test_\w+`", row) for row in rows)
