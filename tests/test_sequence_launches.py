"""Launches with lengths, resets and states to begin anew from, in each regime, against a loop over rows and steps (support/sequences.py)."""

import pytest
from cooperative import CooperativeError, cooperate
from support.mutants import Change, launched_with
from support.sequences import NOWHERE, Rows

from rnn_triton import overriding

CELLS = ["elman_tanh", "gru", "lstm", "leaky_tanh"]
all_cells = pytest.mark.parametrize("name", CELLS)
GIVEN = [("lengths",), ("reset",), ("lengths", "reset", "restart")]
given = pytest.mark.parametrize("given", GIVEN, ids="-".join)
ways = pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])


@pytest.mark.interpret
@pytest.mark.thin(10)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 5, 9, 24, 30, {}),
    ("tf32", 4, 3, 7, 16, dict(w_ih_home="gemm")),
    ("fp64", 4, 4, 5, 13, {}),
])  # fmt: skip
def test_one_cta(name, given, reverse, kind, T, B, I, H, how):
    with overriding(regime="one_cta", **how):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind != "tf32").check()


@pytest.mark.interpret
@pytest.mark.thin(10)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H", [("bf16", 4, 3, 24, 29), ("fp64", 3, 4, 5, 13)])
def test_a_launch_a_step(name, given, reverse, kind, T, B, I, H):
    with overriding(regime="per_step"):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind == "bf16").check()


def grouped(passes):
    """Runs a launch's CTAs side by side, in memory where they see each other's words late."""
    return lambda: cooperate(channels=("out_ptr",), poisoned=("last_ptr",) if passes == "forward" else (), schedule="rr")


GROUPS = dict(regime="cta_group", warps=4, units=16, block_b=8)


@pytest.mark.interpret
@pytest.mark.thin(10)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 4, 9, 24, 30, dict(protocol="sentinel")),
    ("tf32", 3, 3, 7, 29, dict(protocol="counter")),
])  # fmt: skip
def test_groups(name, given, reverse, kind, T, B, I, H, how):
    with overriding(**GROUPS, **how):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind == "bf16").check(grouped("forward"), grouped("backward"))


@pytest.mark.interpret
@pytest.mark.thin(4)
@all_cells
@pytest.mark.parametrize("given", GIVEN[-1:], ids="-".join)
@pytest.mark.parametrize("lanes", ["both", "linked"])
@pytest.mark.parametrize("how", [GROUPS, dict(regime="one_cta")], ids=lambda how: how["regime"])
def test_lanes(name, given, lanes, how):
    alone = lanes == "both" and how["regime"] == "one_cta"  # nobody waits for anybody
    contexts = () if alone else (grouped("forward"), grouped("backward"))
    with overriding(**how):
        Rows(name, "bf16", 3, 3, 24, 29, given, lanes=lanes).check(*contexts)


# What is changed in a kernel, and the cell, direction and what is given of the case that notices it.
EVERYTHING = ("lengths", "reset", "restart")
CHANGES = {
    "one_cta.py": {
        "a length one too long": ("live = t < lengths", "live = t <= lengths", "elman_tanh", False, ("lengths",)),
        "a reset a step late": ("            reset_ptr += step_reset\n            anew = load_rows(reset_ptr, rows, TILE)\n",
                                "            anew = load_rows(reset_ptr, rows, TILE)\n            reset_ptr += step_reset\n",
                                "elman_tanh", False, ("reset",)),
        "no reset before the first step": ("    if HAS.reset and FIRST_IS_STATE:\n", "    if False:\n", "elman_tanh", False, ("reset",)),
        "h_n is not held": ("rounded = tl.where(live, rounded, before[n])", "rounded = tl.where(live, rounded, rounded)",
                            "elman_tanh", False, ("lengths",)),
        "h0 is not held": ("rounded = tl.where(live, rounded, before[n])", "rounded = tl.where(live, rounded, rounded)",
                           "elman_tanh", True, ("lengths",)),
        "c is not held": ("tl.where(live, after[n], carried[n])", "tl.where(live, after[n], after[n])", "lstm", False, ("lengths",)),
        "c passes a reset": ("range(len(carried) - OF_VECTORS):", "range(0):", "lstm", False, ("reset",)),
        "dh passes a reset": ("range(len(s)):\n        s = replaced(s, n, _put", "range(CELL.forward):\n        s = replaced(s, n, _put",
                              "elman_tanh", False, ("reset",)),
        "dc passes a reset": ("range(len(carried) - OF_VECTORS):", "range(len(carried) if CELL.forward else 0):", "lstm", False, ("reset",)),
        "gradients of vectors are cut": ("OF_VECTORS: tl.constexpr = 0 if CELL.forward else CELL.routes.vectors", "OF_VECTORS: tl.constexpr = 0",
                                         "leaky_tanh", False, ("reset",)),
        "dhn enters at the last step of all": ("first_t_of = reverse * (load_rows_of_state(lengths_ptr + row0, rows, TILE) - 1)",
                                               "first_t_of = reverse * (T - 1)", "elman_tanh", False, ("lengths",)),
        "what begins anew begins with zeros": ("tl.where(anew, load_state(ptr, stride_b, rows, there, STORED, TILE), tile)", "tl.where(anew, 0.0, tile)",
                                               "elman_tanh", False, EVERYTHING),
        "both directions begin anew at the same steps": ("            reset_ptr += lane * ((T + 2)", "            reset_ptr += 0 * ((T + 2)",
                                                         "elman_tanh", "both", ("reset",)),
        "layers begin anew with the same states": ("restart_ptr += layer * step_out if LINKED else lane * H", "restart_ptr += lane * 0",
                                                   "elman_tanh", "both", EVERYTHING),
    },
    "cta_group.py": {
        "a length one too long": ("live = t < lengths", "live = t <= lengths", "elman_tanh", False, ("lengths",)),
        "a reset a step late": ("reset_ptr + ((t_1 + 1) * step_reset", "reset_ptr + ((t + 1) * step_reset", "elman_tanh", False, ("reset",)),
        "h_n of the last step of all": ("(1 - reverse) * tl.maximum(steps - 1, 0) * step_words", "(1 - reverse) * (T - 1) * step_words",
                                        "elman_tanh", False, ("lengths",)),
        "h_n of a row without steps": ("last = tl.where(steps > 0, last, first", "last = tl.where(steps >= 0, last, first",
                                       "elman_tanh", False, ("lengths",)),
        "h0 is not read in reverse": ("starts = (step == 0) | (t ==", "starts = (step == 0) | (T ==", "elman_tanh", True, ("lengths",)),
        "c is not held": ("stored = tl.where(live, rows, 0)", "stored = tl.where(live, rows, rows)", "lstm", False, ("lengths",)),
        "dh passes a reset": ("alone = alone | anew", "alone = alone | (anew & (step < 0))", "elman_tanh", False, ("reset",)),
        "dc passes a reset": ("follows = anew == 0", "follows = step >= 0", "lstm", False, ("reset",)),
        "c passes a reset": ("c = tl.where(anew, restart_carried_ptr", "c = tl.where(anew & (step < 0), restart_carried_ptr",
                             "lstm", False, ("reset",)),
        "dhn enters at the last step of all": ("alone = t == reverse * (lengths - 1)", "alone = t == reverse * (T - 1)",
                                               "elman_tanh", False, ("lengths",)),
        "what begins anew goes on": ("before = tl.where(anew_gathered,", "before = tl.where(anew_gathered & (step < 0),",
                                     "elman_tanh", False, EVERYTHING),
    },
}  # fmt: skip
SOURCES = [(file, what) for file, changes in CHANGES.items() for what in changes]


def check_changed(file, name, how, given):
    """how: does time run down?  Or "both" directions in a launch"""
    groups = file == "cta_group.py"
    lanes = dict(lanes="both") if how == "both" else dict(reverse=how)
    with overriding(**GROUPS if groups else dict(regime="one_cta")):
        Rows(name, "tf32", 4, 5, 7, 16, given, **lanes).check(*((grouped("forward"), grouped("backward")) if groups else (NOWHERE, NOWHERE)))


@pytest.mark.interpret
@pytest.mark.thin(8)
@pytest.mark.parametrize("file, what", SOURCES)
def test_defects_are_noticed(file, what):
    old, new, *by = CHANGES[file][what]
    with launched_with(Change(file, old, new)):
        with pytest.raises((AssertionError, CooperativeError)):
            check_changed(file, *by)


@pytest.mark.interpret
@pytest.mark.thin(8)
@pytest.mark.parametrize("file, by", sorted({(file, by) for file, changes in CHANGES.items() for _, _, *by in changes.values() for by in [tuple(by)]}, key=str), ids=str)
def test_the_source_as_it_is_passes(file, by):
    with launched_with():
        check_changed(file, *by)
