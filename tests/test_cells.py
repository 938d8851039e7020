"""Every registered cell: its step in torch against torch's own cell, its device functions against the derivatives of that step."""

import pytest
import torch
import triton
import triton.language as tl

from rnn_triton import cells
from rnn_triton.cells import elman, gru, leaky, lstm
from rnn_triton.interpret import interpreter
from rnn_triton.kernels import cells as device
from rnn_triton.op import network
from rnn_triton.op.gradients import DW_HH, DW_IH, DX
from rnn_triton.op.layers import Layer, Settings

CELLS = {cell.name: cell for cell in (*elman.ELMAN.values(), *leaky.LEAKY.values(), gru.GRU, lstm.LSTM)}
TORCHS = {
    "elman_tanh": torch.nn.RNNCell(3, 4, nonlinearity="tanh", dtype=torch.float64),
    "elman_relu": torch.nn.RNNCell(3, 4, nonlinearity="relu", dtype=torch.float64),
    "gru": torch.nn.GRUCell(3, 4, dtype=torch.float64),
    "lstm": torch.nn.LSTMCell(3, 4, dtype=torch.float64),
}
by_name = pytest.mark.parametrize("name", CELLS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(cell, of_x, of_h):
    """The pre-activations of a cell from those of its gates, W_ih x + b_ih and W_hh h + b_hh, [B, gates H] each"""
    of_x, of_h = (t.chunk(len(cell.gates), -1) for t in (of_x, of_h))
    whole = len(cell.gates) - len(cell.split)
    return (*(i + h for i, h in zip(of_x[:whole], of_h[:whole])), *of_h[whole:], *of_x[whole:])


@pytest.mark.parametrize("name", TORCHS)
def test_a_step_is_that_of_torchs_cell(name):
    cell, theirs = CELLS[name], TORCHS[name]
    x, states = normal(2, 3), tuple(normal(len(cell.states), 2, 4, seed=1))
    a = parts(cell, x @ theirs.weight_ih.T + theirs.bias_ih, states[0] @ theirs.weight_hh.T + theirs.bias_hh)
    expected = theirs(x, states if name == "lstm" else states[0])
    torch.testing.assert_close(cell.step(a, states, ()), expected if name == "lstm" else (expected,))


@by_name
def test_a_network_of_a_cell_counts_the_products_of_all_gates(name):
    """T = 2, B = 3, I = 5, H = 4, by shapes: forward a product of x and one of h for each step and gate, and backward two of each but
    that of the first step's gradient"""
    G = len(CELLS[name].gates)
    net = Settings(False, False, name, "forward", None)
    call = network.Call([2, 3, 5], [Layer([G * 4, 5], [G * 4, 4])], (), None, net)
    assert call.forward_flops(False) == 2 * 3 * G * 4 * (2 * 5 + 2 * 4)
    needs = [DX, DW_IH | DW_HH]
    assert call.backward_flops(None, None, None, needs, None) == 2 * 3 * G * 4 * (2 * 2 * 5 + 3 * 4)


@by_name
def test_a_cell_names_its_own_device_functions(name):
    cell = CELLS[name]
    assert cells.named(cell.name) is cell
    assert cell.forward is getattr(device, f"{cell.name}_forward") and cell.backward is getattr(device, f"{cell.name}_backward")


@triton.jit
def load(ptr, n: tl.constexpr, BLOCK: tl.constexpr):
    tiles = ()
    for k in tl.static_range(n):
        tiles = tiles + (tl.load(ptr + k * BLOCK + tl.arange(0, BLOCK)),)
    return tiles


@triton.jit
def call(a_ptr, carried_ptr, saved_ptr, vectors_ptr, out_ptr, FUNCTION: tl.constexpr, A: tl.constexpr, CARRIED: tl.constexpr,
         SAVED: tl.constexpr, VECTORS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out [published + carried + kept, BLOCK]: what a device function makes of a [A, BLOCK], carried, saved and vectors"""
    function: tl.constexpr = FUNCTION
    published, carried, kept = function(
        load(a_ptr, A, BLOCK), load(carried_ptr, CARRIED, BLOCK), load(saved_ptr, SAVED, BLOCK),
        load(vectors_ptr, VECTORS, BLOCK), "double"
    )
    tiles = published + carried + kept
    for k in tl.static_range(len(tiles)):
        tl.store(out_ptr + k * BLOCK + tl.arange(0, BLOCK), tiles[k])


def called(function, number, a, carried, saved, vectors):
    tensors = [torch.stack(t) if t else torch.empty(0, dtype=torch.float64) for t in (a, carried, saved, vectors)]
    out = torch.full((number, a[0].numel()), float("nan"), dtype=torch.float64)
    with interpreter.accurate():
        call[(1,)](*tensors, out, function, len(a), len(carried), len(saved), len(vectors), a[0].numel())
    return out.unbind()


@pytest.mark.interpret
@by_name
def test_device_functions_against_the_step_and_its_derivatives(name):
    """fp64, a few roundings of values below 10"""
    cell, tolerance = CELLS[name], dict(rtol=0, atol=1e-14)
    forward, backward = cell.routes(True), cell.routes(False)
    a = [t.requires_grad_() for t in normal(forward.parts, 64)]
    states = [t.requires_grad_() for t in normal(len(cell.states), 64, seed=1)]
    vectors = [t.abs().requires_grad_() for t in normal(len(cell.vectors), 64, seed=3)]
    new = cell.step(tuple(a), tuple(states), tuple(vectors))
    own = [t.detach() for t in vectors]
    given = [t.detach() for t in a], [states[cell.states.index(state)].detach() for state in cell.carried]
    y, *others = called(cell.forward, 1 + forward.carried + forward.kept, *given, [], own)
    carried, kept = others[: forward.carried], others[forward.carried :]
    torch.testing.assert_close(y, new[0], **tolerance)
    for state, tile in zip(cell.carried, carried, strict=True):
        torch.testing.assert_close(tile, new[cell.states.index(state)], **tolerance)

    # dh of y; of a carried state that is not y a gradient of its own, of one that is y none but what later steps leave there
    dh, *later = normal(1 + backward.carried, 64, seed=2)
    before = later[len(cell.carried) :]  # what later steps have added to the gradients of vectors
    cotangents = {"h": dh}
    for state, gradient in zip(cell.carried, later):
        cotangents[state] = cotangents.get(state, 0) + gradient
    expected = torch.autograd.grad(
        new, (*a, *states, *vectors), [cotangents.get(s, torch.zeros(64, dtype=torch.float64)) for s in cell.states], allow_unused=True
    )
    da, dstates, dvectors = (expected[n:] for n in (0, forward.parts, forward.parts + len(states)))
    saved = ([y] if backward.reads_y else []) + kept
    found = called(cell.backward, backward.published + backward.carried, [dh], later, saved, own)
    gates, split = len(cell.gates), len(cell.split)
    published = (*da[gates - split : gates], *da[: gates - split], *da[gates : forward.parts])
    for tile, gradient in zip(found, published):
        torch.testing.assert_close(tile, gradient, **tolerance)
    carried = found[backward.published :]
    for state, tile in zip(cell.carried, carried):
        torch.testing.assert_close(tile, dstates[cell.states.index(state)], **tolerance)
    for tile, earlier, gradient in zip(carried[len(cell.carried) :], before, dvectors, strict=True):
        torch.testing.assert_close(tile, earlier + gradient, **tolerance)


def test_a_cell_can_be_registered_again_but_not_replaced():
    tanh = cells.named("elman_tanh")
    assert cells.register(tanh) is tanh
    with pytest.raises(ValueError, match="elman_tanh"):
        cells.register(cells.Cell(**{**vars(tanh), "special": 2}))
    assert cells.named("elman_tanh") is tanh


def cell(gates, states, **others):
    nothing = dict(name="", step=None, forward=None, backward=None, special=0)
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
    "peepholes": (
        cell(("i", "f", "g", "o"), ("h", "c"), carried=("c",), kept=6, vectors=("p_i", "p_f", "p_o")),
        (4, (0, 1, 2, 3), (0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 2, 3), 1, 1, 1, 6, False, 3),
        (1, (0, 1, 2, 3), (0, 1, 2, 3), (0, 0, 0, 0), (), 4, 4, 4, 6, False, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
def test_routes(name):
    cell, forward, backward = ROUTES[name]
    assert cell.routes(True) == (*forward, ()) and cell.routes(False) == (*backward, ())


@pytest.mark.parametrize("name, kept, states", [("elman_tanh", 0, ()), ("gru", 0, ()), ("leaky_relu", 0, ()), ("lstm", 1, (0,))])
def test_routes_of_a_pass_that_is_computed_again(name, kept, states):
    """what y does not give is saved"""
    cell = CELLS[name]
    assert cell.routes(True, True) == cell.routes(True)._replace(kept=kept, kept_states=states)
    assert cell.routes(False, True) == cell.routes(False)
