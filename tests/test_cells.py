"""Every registered cell: its step in torch against torch's own cell, its description against its kernels."""

import pytest
import torch

from rnn_triton import cells
from rnn_triton.cells import elman
from rnn_triton.kernels import cells as device


@pytest.mark.parametrize("nonlinearity", elman.ELMAN)
def test_a_step_is_that_of_torchs_cell(nonlinearity):
    cell = elman.ELMAN[nonlinearity]
    torch.manual_seed(0)
    theirs = torch.nn.RNNCell(3, 4, nonlinearity=nonlinearity, dtype=torch.float64)
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    a = x @ theirs.weight_ih.T + theirs.bias_ih + h @ theirs.weight_hh.T + theirs.bias_hh
    states = cell.step((a,), (h,))
    assert len(states) == len(cell.states)
    torch.testing.assert_close(states[0], theirs(x, h))


@pytest.mark.parametrize("cell", elman.ELMAN.values(), ids=lambda cell: cell.name)
def test_a_cell_names_its_own_device_functions(cell):
    assert cells.named(cell.name) is cell
    assert cell.forward is getattr(device, f"{cell.name}_forward") and cell.backward is getattr(device, f"{cell.name}_backward")


def test_a_cell_can_be_registered_again_but_not_replaced():
    tanh = cells.named("elman_tanh")
    assert cells.register(tanh) is tanh
    with pytest.raises(ValueError, match="elman_tanh"):
        cells.register(cells.Cell(**{**vars(tanh), "transcendentals": 2}))
    assert cells.named("elman_tanh") is tanh


def cell(gates, states, **others):
    nothing = dict(name="", step=None, forward=None, backward=None, transcendentals=0, aten="", onnx=("", ()))
    return cells.Cell(gates=gates, states=states, **(nothing | others))


# By hand: parts, blocks of W_hh, the exchanged tiles they multiply, the parts they add to, parts of W_ih's blocks, tiles carried,
# published, exchanged, kept; is y read; vectors
ROUTES = {
    "elman": (
        cell(("a",), ("h",), reads_y=True),
        (1, (0,), (0,), (0,), (0,), 0, 1, 1, 0, False, 0), (1, (0,), (0,), (0,), (), 0, 1, 1, 0, True, 0),
    ),
    "gru": (
        cell(("r", "z", "n"), ("h",), split=("n",), carried=("h",), kept=5),
        (4, (0, 1, 2), (0, 0, 0), (0, 1, 2), (0, 1, 3), 1, 1, 1, 5, False, 0),
        (1, (2, 0, 1), (0, 1, 2), (0, 0, 0), (), 1, 4, 3, 5, False, 0),
    ),
    "lstm": (
        cell(("i", "f", "g", "o"), ("h", "c"), carried=("c",), kept=6, vectors=("p_i", "p_f", "p_o")),
        (4, (0, 1, 2, 3), (0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 2, 3), 1, 1, 1, 6, False, 3),
        (1, (0, 1, 2, 3), (0, 1, 2, 3), (0, 0, 0, 0), (), 1, 4, 4, 6, False, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
def test_routes(name):
    cell, forward, backward = ROUTES[name]
    assert cell.routes(True) == forward and cell.routes(False) == backward
