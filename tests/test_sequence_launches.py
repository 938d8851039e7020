"""Launches with lengths, resets and states to begin anew from, in each regime, against a loop over rows and steps (support/sequences.py)."""

import pytest
from support.sequences import Rows

from rnn_triton import overriding

CELLS = ["elman_tanh", "gru", "lstm", "leaky_tanh"]
all_cells = pytest.mark.parametrize("name", CELLS)
GIVEN = [("lengths",), ("reset",), ("lengths", "reset", "restart")]
given = pytest.mark.parametrize("given", GIVEN, ids="-".join)
ways = pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])


@pytest.mark.interpret
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
