"""A cell of a user's own (support/peepholes.py): its launches in every regime, with the gradients of its vectors; what is said of one that is
wrong.  Tolerances: test_gated_launches.py."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import peepholes
from test_gated_launches import Case, grouped
from test_recompute import assert_same, both_ways

import rnn_triton
from rnn_triton import UnsupportedError, cells, check_cell, overriding
from rnn_triton.cells import cell as cell_module
from rnn_triton.cells import elman, gru, leaky, lstm
from rnn_triton.interpret import interpreter

CELL = peepholes.CELL


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(cell_module, "_KNOWN", dict(cell_module._KNOWN))
    return cells.register(CELL)


@pytest.mark.interpret
@pytest.mark.parametrize("kind, H", [("bf16", 29), ("tf32", 16), ("fp64", 13)])
@pytest.mark.parametrize("regime", ["one_cta", "per_step"])
def test_launches(registered, kind, H, regime):
    with overriding(regime=regime):
        case = Case(registered.name, kind, 3, 3, 24, H, reverse=kind == "tf32")
        case.check()
        assert_same(*both_ways(case), case)


@pytest.mark.interpret
def test_launches_of_groups(registered):
    with overriding(regime="cta_group", warps=4, units=16, block_b=8, protocol="sentinel"):
        case = Case(registered.name, "bf16", 3, 3, 24, 40)
        case.check(grouped("forward"), grouped("backward"))
        assert_same(*both_ways(case, lambda: grouped("forward")), case)


# ---- what is registered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    (dict(name="lstm"), "name must not be that of a registered cell, got 'lstm'"),
    (dict(name="my cell"), "name must be a Python identifier, got 'my cell'"),
    (dict(gates=()), "gates must name one at least"),
    (dict(gates=("i", "i")), r"gates must be a tuple of different names, got \('i', 'i'\)"),
    (dict(gates=["i"]), r"gates must be a tuple of different names, got \['i'\]"),
    (dict(split=("i",)), r"split must be the last of the gates .*, got \('i',\)"),
    (dict(carried=()), r"carried must be states of \('h', 'c'\), and all but the first of them, got \(\)"),
    (dict(carried=("c", "d")), "carried must be states of"),
    (dict(kept=-1), "kept must be a number of 0 or more, got -1"),
    (dict(kept=None), "kept must be a number of 0 or more, got None"),
    (dict(forward=peepholes.step), "forward must be a function with triton.jit, got <function step"),
    (dict(step=None), "step must be a function of torch, got None"),
])  # fmt: skip
def test_wrong_descriptions(monkeypatch, changes, message):
    monkeypatch.setattr(cell_module, "_KNOWN", dict(cell_module._KNOWN))
    known = dict(cell_module._KNOWN)
    with pytest.raises(ValueError, match=f"^{message}"):
        cells.register(replace(CELL, **changes))
    assert cell_module._KNOWN == known


# ---- check_cell -----------------------------------------------------------------------------------------------------


@pytest.mark.interpret
@pytest.mark.parametrize("cell", [*elman.ELMAN.values(), *leaky.LEAKY.values(), gru.GRU, lstm.LSTM, CELL], ids=lambda cell: cell.name)
def test_right_cells(cell):
    """whatever the device is on which torch makes tensors by default"""
    with torch.device("meta"):
        check_cell(cell)


def changed(folder, old, new, **fields):
    """The cell with a change of its source, in a module of its own"""
    source = Path(peepholes.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1
    path = folder / "changed_cell.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("changed_cell", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return replace(module.CELL, **fields)


WRONG = {
    "a gate": ("df = dc * saved[1]", "df = dc * saved[0]", [
        r"backward of cell 'peepholes': published\[1\], the gradient of gate 'f', differs from that of step by up to \S+ \(values up to \S+\)",
        r"carried\[0\], the gradient of state 'c', differs", r"carried\[2\], the gradient of vector 'p_f', added to what was there, differs",
    ]),
    "a vector": ("carried[3] + do * saved[7]", "carried[3] + do * saved[6]", [r"carried\[3\], the gradient of vector 'p_o'.*"]),
    "a vector that is not added up": ("carried[1] + di * saved[6]", "di * saved[6]", [r"carried\[1\], the gradient of vector 'p_i'.*"]),
    "a state": ("saved[5] + di * vectors[0]", "saved[5] - di * vectors[0]", [r"carried\[0\], the gradient of state 'c'.*"]),
    "y": ("return (o * tanh_c,)", "return (o * c,)", [r"forward of cell 'peepholes': published\[0\], state 'h', differs.*"]),
    "what is carried": ("tanh_c,), (c,)", "tanh_c,), (before,)", [r"forward of cell 'peepholes': carried\[0\], state 'c', differs.*"]),
    "the step": ("torch.tanh(c), c", "torch.sigmoid(c), c", [r"forward of cell 'peepholes': published\[0\].*"]),
    "few kept": (", f, before, c)", ", f, before)", ["forward of cell 'peepholes' must return 8 tiles as kept, got 7"]),
    "many kept": (", f, before, c)", ", f, before, c, c)", ["forward of cell 'peepholes' must return 8 tiles as kept, got 9"]),
    "few published": ("(di, df, dc * saved[2], do)", "(di, df, do)", ["backward of cell 'peepholes' must return 4 tiles as published, got 3"]),
    "no gradients of vectors": (",) + of_vectors", ",)", ["backward of cell 'peepholes' must return 4 tiles as carried, got 1"]),
    "one result": ("return (o * tanh_c,), (c,), of_gates", "return of_gates", ["forward of cell 'peepholes' does not run: .*"]),
    "too far": ("do * saved[7]", "do * saved[8]", ["backward of cell 'peepholes' does not run: .*"]),
    "states": ("torch.tanh(c), c", "torch.tanh(c), c, c", [r"step of cell 'peepholes' must return a tuple of the states \('h', 'c'\), got a tuple of 3"]),
}  # fmt: skip


@pytest.mark.interpret
@pytest.mark.parametrize("what", WRONG)
def test_wrong_cells(what, tmp_path):
    old, new, messages = WRONG[what]
    with pytest.raises(ValueError) as found:
        check_cell(changed(tmp_path, old, new))
    text = str(found.value)
    for message in messages:
        assert re.search(message, text), text
    if "does not run" not in text:
        assert len(text.splitlines()) == len(messages), text


def test_nothing_runs_device_functions():
    if torch.cuda.is_available() or interpreter.active():
        pytest.skip("they run here")
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET=1"):
        check_cell(CELL)
    with pytest.raises(ValueError, match="kept"):
        rnn_triton.check_cell(replace(CELL, kept=-1))
