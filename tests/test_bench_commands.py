"""The command line before anything is measured: its first word, what is read, tables and time left; providers from outside; what a
profiler is given; the summary of `make bench`."""

import contextlib
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from support import bench_dry, bench_records

from bench import __main__ as bench
from bench import command, quick
from bench.cases import suites
from bench.cases.case import PASSES, Job
from bench.instruments.progress import Progress
from bench.measure import check, profiled, run
from bench.measure import job as measure_job
from bench.providers import registry
from bench.records.rows import rows
from bench.show import formats
from bench.show.figures import FIGURES
from rnn_triton.plan.hardware import RECORDS

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

# ---- the first word -------------------------------------------------------------------------------------------------

FIRST = 0.3  # seconds of CPU
_SAY = """
import resource, sys
from bench.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = {"torch", "triton", "numpy", "matplotlib", "rnn_triton"} & set(sys.modules)
print("\\n", code, used.ru_utime + used.ru_stime, *sorted(heavy))
"""


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("--help", 0, "{run,check,compare"), ("run --help", 0, "--repeats N"), ("list", 0, "quick "), ("list --suite quick", 0, "h128-b16-t1024-bf16"),
        ("list figures", 0, "roofline"), ("list results", 0, ""), ("rnu", 2, "invalid choice: 'rnu'"), ("run --suite quik", 2, "nearest: quick"),
        ("run --providers cudn", 2, "nearest: cudnn"), ("figures --only step,spedup", 2, "nearest: speedup"), ("explain h128", 2, "nearest: "),
        ("model --arch sm_1", 2, "known: sm_80"), ("compare a b --providers x", 2, "unknown provider 'x'"), ("list suits", 2, "nearest: suites"),
    ],
)  # fmt: skip
def test_help_lists_and_typos_take_no_time(words, code, said):
    done = subprocess.run([sys.executable, "-c", _SAY, *words.split()], cwd=ROOT, capture_output=True, text=True)
    got, seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert said in done.stdout + done.stderr and (int(got), heavy) == (code, [])
    # what Python takes for so many imports on a machine that is busy is no fault of theirs
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import argparse, dataclasses, importlib.metadata, json, subprocess"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert float(seconds) < max(FIRST, 3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def test_what_is_written_down_is_true():
    assert tuple(FIGURES) == command.FIGURES and tuple(RECORDS) == command.ARCHITECTURES
    assert all(PROVIDER.name == name for name, PROVIDER in registry.PROVIDERS.items())
    assert all(callable(bench._function(c.run)) for c in bench.COMMANDS.values())


def test_a_suite_of_a_file(tmp_path, capsys):
    file = tmp_path / "mine.txt"
    file.write_text("h128-b16-t256-bf16  # usual\n\n# gates\nlstm-h64-b8-t99-fp16 gru-h64-b8-t99-fp16\n")
    assert [c.name for c in suites.suites(str(file))] == ["h128-b16-t256-bf16", "lstm-h64-b8-t99-fp16", "gru-h64-b8-t99-fp16"]
    assert len(suites.suites(f"{file},quick")) == 18
    file.write_text("h128-b16-t256-bf16\nh128-b16-t256-bf61\n")
    assert bench.main(["list", "--suite", str(file)]) == 2 and f"{file}:2: unknown case 'h128-b16-t256-bf61'" in capsys.readouterr().err
    assert bench.main(["list", "--suite", str(tmp_path / "none.txt")]) == 2 and "No such file" in capsys.readouterr().err


def test_tables_fit_a_terminal():
    found = rows(bench_records.suite("quick"))
    from bench.show import tables

    for headings, body in (
        (tables.HEADINGS, tables.timing_rows(found)), (("case", "why"), [("h128-b16-t256-bf16", "word " * 60)]),
        (tuple("abcdefghijklmnop"), [("a value with words",) * 16]),
    ):  # fmt: skip
        text = formats.text(headings, body)
        assert max(map(len, text.splitlines())) <= formats.WIDTH
        for cell in {cell for line in body for cell in line}:
            assert all(word[:3] in text for word in cell.split())
    assert formats.text(("a", "bb"), [("1", "2")]) == "a  bb\n1  2"  # nothing is broken without need


class Terminal(list):
    def __bool__(self):
        return True

    def isatty(self):
        return False

    def write(self, text):
        self.append(text)

    def flush(self):
        pass


def test_the_time_left_does_not_grow_while_a_unit_runs():
    now, out = [0.0], Terminal()
    progress = Progress("timing", 4, out, weights=[1, 1, 2, 4], clock=lambda: now[0])

    def left():
        out.clear()
        progress._next_line = 0.0
        progress.now("a case")
        found = re.search(r"(\d+) s left", "".join(out))
        return found and int(found[1])

    assert left() is None  # nothing is known yet
    now[0] = 10.0
    progress.step()
    assert left() == 70
    now[0] = 15.0
    assert left() == 65
    now[0] = 100.0
    assert left() == 0  # it was to end at 80
    progress.step()
    assert left() == 300  # two of weight 2 took 100


# ---- providers from outside -----------------------------------------------------------------------------------------

CASE = "h16-i6-b3-t5-fp32-ieee"


def example():
    """The provider of docs/benchmarks.md"""
    (found,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "benchmarks.md").read_text(), re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Adds a provider of this source"""
    monkeypatch.setattr(registry.PROVIDERS, "data", dict(registry.PROVIDERS.data))
    monkeypatch.setenv(registry.VARIABLE, "{}")

    def add(source, kind="Mine"):
        (tmp_path / "mine.py").write_text(source)
        return registry.add(f"{tmp_path / 'mine.py'}:{kind}")

    return add


def measured(*providers, name=CASE):
    found = run.measure(Job(suites.parse(name), PASSES, providers), CPU, bench_dry)
    return {(r["provider"], r["pass"]): r for r in found}


def test_the_example_of_the_page_passes_the_gate_beside_cudnn(outside):
    assert len(example().splitlines()) <= 33
    name = outside(example())
    found = measured(name, "cudnn")
    assert {r["status"] for r in found.values()} == {"ok"} and all(r["device_us"]["samples"] for r in found.values())
    assert registry.PROVIDERS[name].label == "my kernel" and len(found[name, "fwd"]["version"]) == 12
    other = measured(name, name="lstm-h16-i6-b3-t5-fp32")[name, "fwd"]
    assert (other["status"], other["message"]) == ("unsupported", "one layer of tanh alone")
    before = registry.PROVIDERS[name].version()
    assert registry.PROVIDERS[outside(example() + "\n# changed\n")].version() != before  # measured anew


@pytest.mark.parametrize(
    "source, status, said",
    [
        ("def set_up(:", "missing", "SyntaxError"), ("import nothing_like_it", "missing", "No module named 'nothing_like_it'"),
        ("x = 1", "missing", "has no attribute 'Mine'"), ("class Mine:\n    pass", "missing", "no method set_up"),
        ("Mine = 3", "missing", "expected a class, got int"), ("class Mine:\n    def __init__(self, x):\n        pass\n    def set_up(self, case, inputs):\n        pass", "missing", "argument"),
        ("class Mine:\n    def set_up(self, case, inputs):\n        return object()", "error", "has no attribute"),
        (None, "wrong", "y: relative error"),
    ],
)  # fmt: skip
def test_one_that_is_broken_is_named_and_costs_itself(source, status, said, outside):
    name = outside(example().replace("h = torch.tanh(", "h = 0.9 * torch.tanh(") if source is None else source)
    found = measured(name, "cudnn")
    for pass_ in PASSES:
        assert found[name, pass_]["status"] == status and said in found[name, pass_]["message"], found[name, pass_]["message"]
        assert found["cudnn", pass_]["status"] == "ok"


def test_one_that_hangs_or_dies_is_given_up(outside, monkeypatch):
    """and no process imports it again"""
    monkeypatch.setattr(measure_job, "ASKING", 900.0)  # of wall time, which on a busy machine says nothing
    name = outside("import os\nos._exit(7)\n")
    found = measure_job.providers_here([name, "cudnn"])
    assert "exit code 7" in found[name].missing and found["cudnn"].missing == ""
    assert "exit code 7" in registry.PROVIDERS[name].missing(CPU)
    assert json.loads(os.environ[registry.VARIABLE])[name].startswith("!importing it failed")
    hung = outside("import time\ntime.sleep(1000)\n", "Other")
    monkeypatch.setattr(measure_job, "ASKING", 0.5)
    assert "no answer" in measure_job.providers_here([hung])[hung].missing


def test_a_worker_knows_what_was_added(outside, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_job, "CHECK_TIMEOUT", 900.0)
    name = outside(example())
    table, failures = measure_job.run_check([suites.parse(CASE)], tmp_path, [name])
    assert failures == [] and "my kernel" in table and " ok" in table
    wrong = outside(example().replace("h = torch.tanh(", "h = 0.9 * torch.tanh("))
    _, failures = measure_job.run_check([suites.parse(CASE)], tmp_path, [wrong])
    assert len(failures) == 1 and "wrong" in failures[0]


def test_names_of_those_from_outside(outside, tmp_path, capsys):
    for where, said in (("mine.py", "file.py:Class"), ("none.py:Mine", "there is no file none.py"), ("mine.py:", "file.py:Class")):
        assert bench.main(["list", "providers", "--provider", where]) == 2 and said in capsys.readouterr().err
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(ValueError, match="cudnn is the name of a provider that comes"):
        registry.add(f"{tmp_path / 'mine.py'}:cudnn")
    given = bench.parser().parse_args(["run", "--case", CASE, "--provider", f"{tmp_path / 'mine.py'}:Mine", "--providers", "cudnn"])
    bench.read(given)
    assert given.own == ["cudnn", "Mine"]


def test_entry_points(outside, monkeypatch, capsys, tmp_path):
    (tmp_path / "their_kernels.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    points = [SimpleNamespace(name=name, value="their_kernels:Mine") for name in ("theirs", "cudnn")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "rnn_triton.providers" else [])
    found = registry.Providers(registry._INSIDE | registry._outside())
    assert "entry point cudnn" in capsys.readouterr().err and type(found["cudnn"]).__name__ == "TorchRNN"
    assert found["theirs"].name == "theirs" and check.gate(suites.parse(CASE), found["theirs"], CPU).ok


# ---- under a profiler -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", profiled.TOOLS)
def test_a_profiler_gets_the_case(tool, tmp_path, monkeypatch):
    for code in (0, 3):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexit {code}\n')
        (tmp_path / tool).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        text, failures = profiled.run(tool, suites.parse(CASE), ["fwd", "train"], ["rnn_triton", "cudnn"], tmp_path)
        told = (tmp_path / "told").read_text().split()
        assert told[-4:] == ["bench.measure.profiled", CASE, "fwd,train", "rnn_triton,cudnn"] and "-m" in told
        assert told[told.index("-o") + 1] == str(tmp_path / f"{tool}-{CASE}") and f"{tool}-{CASE}" in text
        assert failures == ([f"{tool} ended with status 3"] if code else [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=f"{tool} is not installed"):
        profiled.run(tool, suites.parse(CASE), ["fwd"], ["cudnn"], tmp_path)


def test_only_warm_calls_are_profiled_each_in_a_range(monkeypatch, capsys):
    log = []

    @contextlib.contextmanager
    def opened(label):
        log.append(label)
        yield

    profiler = SimpleNamespace(start=lambda: log.append("start"), stop=lambda: log.append("stop"))
    cuda = SimpleNamespace(profiler=profiler, nvtx=SimpleNamespace(range=opened), synchronize=lambda: None)
    kind = type(registry.PROVIDERS["cudnn"])
    set_up = kind.set_up

    def noting(self, case, inputs):
        session = set_up(self, case, inputs)
        call = session.call
        session.call = lambda: log.append("call") or call()
        return session

    monkeypatch.setattr(kind, "set_up", noting)
    profiled.calls(suites.parse(CASE), ["fwd", "train"], ["graph", "cudnn"], CPU, cuda)
    each = [[f"cudnn {pass_} {CASE}", "call"] * profiled.CALLS for pass_ in ("fwd", "train")]
    assert log == ["call"] * 2 * profiled.WARMUP + ["start", *each[0], *each[1], "stop"]
    assert "graph: a CUDA graph needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [("--suite quick", "--profile is of one case, got 15"), ("--case " + CASE, "")])
def test_one_case_is_profiled(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measure_job, "needs_gpu", lambda: None)
    asked = mock.Mock(return_value=("a report", []))
    monkeypatch.setattr(profiled, "run", asked)
    code = bench.main(["run", *words.split(), "--profile", "nsys", "--providers", "cudnn", "--out", str(tmp_path)])
    if said:
        assert code == 2 and said in capsys.readouterr().err
    else:
        assert code == 0 and asked.call_args.args == ("nsys", suites.parse(CASE), ["fwd", "train"], ["cudnn"], tmp_path)


# ---- make bench -----------------------------------------------------------------------------------------------------


def test_make_bench_says_what_it_does_and_ends_with_a_summary(tmp_path, monkeypatch, capsys):
    outcome = SimpleNamespace(accuracy={"rnn_triton": 0.975, "torch": 0.973}, failures=["digits: too bad"])
    monkeypatch.setattr(quick, "run_check", lambda cases, out: (f"checked {len(cases)}", ["check: a case: wrong: y"]))
    monkeypatch.setattr(quick, "run_resources", lambda arch, out, few: ("compiled", []))
    monkeypatch.setattr(quick, "run_host", lambda: "host cost: 20 us")
    monkeypatch.setattr(quick, "_train", lambda out: ("trained", outcome.failures, outcome))
    monkeypatch.setattr(quick, "make_report", lambda *_: "report: page.html")
    records = bench_records.suite("quick", ("rnn_triton", "cudnn", "flashrnn"))
    for found in (records, []):
        monkeypatch.setattr(quick, "load", lambda paths: found)
        assert quick.quick(tmp_path, 480.0) == ["check: a case: wrong: y", "digits: too bad"]
        out = capsys.readouterr().out
        first, _, last = out.partition(quick.IN_SHORT)
        assert first.startswith("what follows, in this order") and "about" in first.partition("\n\n")[0]
        lines = last.strip().splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 120
        assert any("97.5 %" in line for line in lines) and any("page.html" in line for line in lines) and "digits: too bad" in last
        if found:
            assert "forward, bf16" in last and re.search(r"3\.00 times \(.* to .*\)", last)
        else:
            assert "no recorded GPU results" in last
