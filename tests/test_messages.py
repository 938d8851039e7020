"""Every error that wrong arguments raise: torch's own words where torch has some, else the argument, what was got and what was expected.

The last test reads the sources: each `raise` of a ValueError, TypeError or RuntimeError in the package must be reached by a case
here. What is no matter of arguments (UnsupportedError, ExchangeError) is tested where it arises.
"""

import ast
import dataclasses
import json
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnn_triton
from rnn_triton import cells, functional
from rnn_triton.plan import measured, problem

PACKAGE = Path(rnn_triton.__file__).parent
T, B, I, H = 5, 2, 3, 4


def rnn(**changes):
    shapes = {"x": (T, B, I), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,), "h0": (B, H)}
    rnn_triton.rnn(**({name: torch.zeros(shape) for name, shape in shapes.items()} | changes))


def lstm(**changes):
    shapes = {"x": (T, B, I), "w_ih": (4 * H, I), "w_hh": (4 * H, H)}
    rnn_triton.lstm(**({name: torch.zeros(shape) for name, shape in shapes.items()} | changes))


def leaky(leak, **options):
    rnn_triton.leaky(z(T, B, I), z(H, I), z(H, H), leak, **options)


def network(weights, states=(), **options):
    functional.network(z(T, B, I), weights, states, cells.named("elman_tanh"), **({"bias": False} | options))


def without(library, name, layers):
    """A module one of whose weights is None."""
    module = library.RNN(I, H, layers)
    setattr(module, name, None)
    return lambda: module(torch.zeros(T, B, I))


def layer(library, *call, name="RNN", **options):
    return lambda: getattr(library, name)(I, H, **options)(*call)


def cell(library, *call, name="RNNCell", nonlinearity="tanh"):
    def run():
        module = getattr(library, name)(I, H)
        module.nonlinearity = nonlinearity  # torch checks it at the call
        module(*call)

    return run


def both(make, *call, **options):
    """Ours and torch's."""
    return make(rnn_triton, *call, **options), make(nn, *call, **options)


def packed(batch_sizes):
    data = PackedSequence(torch.zeros(5, I), torch.tensor([3, 2]))
    rnn_triton.RNN(I, H)(data._replace(batch_sizes=torch.tensor(batch_sizes)))


def registered(**changes):
    cells.register(dataclasses.replace(cells.named("elman_relu"), **({"name": "new"} | changes)))


def explain(**changes):
    rnn_triton.explain(**(dict(T=T, B=B, I=I, H=H) | changes))


def overriding(explained=None, **choices):
    with rnn_triton.overriding(**choices):
        explain(**(explained or {}))


ROW = dict(device="H200", direction="forward", dtype="bf16", precision=None, H=128, B=[1, 8], choices={"block_b": 8})


def measured_rows(*rows):
    measured.read_measured(json.dumps([ROW | row for row in rows]))


z = torch.zeros
meta, double = dict(device="meta"), dict(dtype=torch.float64)
check = nn.RNN(I, H).check_input  # what torch checks before any other thing of its own

# Ours and torch's, which must raise the same error class with the same message.
TORCHS = {
    "nonlinearity": (layer(rnn_triton, nonlinearity="gelu"), layer(nn, nonlinearity="gelu")),
    "nonlinearity of a function": (lambda: rnn(nonlinearity="gelu"), layer(nn, nonlinearity="gelu")),
    "nonlinearity of explain": (lambda: explain(nonlinearity="gelu"), layer(nn, nonlinearity="gelu")),
    "proj_size": (layer(rnn_triton, proj_size=2), layer(nn, proj_size=2)),
    "4 dimensions": (layer(rnn_triton, z(1, T, B, I)), layer(nn, z(1, T, B, I))),
    "hx batched": (layer(rnn_triton, z(T, B, I), z(1, H)), layer(nn, z(T, B, I), z(1, H))),
    "hx unbatched": (layer(rnn_triton, z(T, I), z(1, B, H)), layer(nn, z(T, I), z(1, B, H))),
    "T = 0": (lambda: rnn(x=z(0, B, I)), layer(nn, z(0, B, I))),
    "dtype of input": (lambda: rnn(x=z(T, B, I, **double)), layer(nn, z(T, B, I, **double))),
    "2 dimensions": (lambda: rnn(x=z(T, I)), lambda: check(z(T, I), None)),
    "input size": (lambda: rnn(x=z(T, B, 7)), layer(nn, z(T, B, 7))),
    "H = 0": (lambda: rnn(w_ih=z(0, I)), lambda: nn.RNN(I, 0)),
    "I = 0": (lambda: rnn(x=z(T, B, 0), w_ih=z(H, 0)), lambda: nn.RNN(0, H)),
    "device of hx": (layer(rnn_triton, z(T, B, I), z(1, B, H, **meta)), layer(nn, z(T, B, I), z(1, B, H, **meta))),
    "bias None": (without(rnn_triton, "bias_hh_l0", 1), without(nn, "bias_hh_l0", 1)),
    "bias of a second layer None": (without(rnn_triton, "bias_ih_l1", 2), without(nn, "bias_ih_l1", 2)),
    "cell, 3 dimensions": (cell(rnn_triton, z(T, B, I)), cell(nn, z(T, B, I))),
    "cell, hx of 4 dimensions": (cell(rnn_triton, z(B, I), z(1, 1, B, H)), cell(nn, z(B, I), z(1, 1, B, H))),
    "cell, nonlinearity": (cell(rnn_triton, z(B, I), nonlinearity="gelu"), cell(nn, z(B, I), nonlinearity="gelu")),
    "cell, input size": (cell(rnn_triton, z(B, 7)), cell(nn, z(B, 7))),
    "cell, batch of hx": (cell(rnn_triton, z(B, I), z(3, H)), cell(nn, z(B, I), z(3, H))),
    "cell, size of hx": (cell(rnn_triton, z(B, I), z(B, 7)), cell(nn, z(B, I), z(B, 7))),
    "cell, dtype": (cell(rnn_triton, z(B, I, **double)), cell(nn, z(B, I, **double))),
    **{
        f"{name}, {what}": both(layer, *call, name=name)
        for name in ("GRU", "LSTM")
        for what, *call in (("4 dimensions", z(1, T, B, I)), ("input size", z(T, B, 7)), ("dtype of input", z(T, B, I, **double)))
    },
    "GRU, proj_size": both(layer, name="GRU", proj_size=2),
    "GRU, hx batched": both(layer, z(T, B, I), z(1, H), name="GRU"),
    "LSTM, proj_size": both(layer, name="LSTM", proj_size=H),
    "LSTM, negative proj_size": both(layer, name="LSTM", proj_size=-1),
    "LSTM, hx batched": both(layer, z(T, B, I), (z(1, H), z(1, B, H)), name="LSTM"),
    "LSTM, hx unbatched": both(layer, z(T, I), (z(1, H), z(1, B, H)), name="LSTM"),
    "LSTM, size of h": both(layer, z(T, B, I), (z(1, 3, H), z(1, B, H)), name="LSTM"),
    "LSTM, size of c": both(layer, z(T, B, I), (z(1, B, H), z(1, B, 7)), name="LSTM"),
    "LSTM, size of a projected h": both(layer, z(T, B, I), (z(1, B, H), z(1, B, H)), name="LSTM", proj_size=2),
    "cell of LSTM, 3 dimensions": both(cell, z(T, B, I), name="LSTMCell"),
    "cell of LSTM, c of 4 dimensions": both(cell, z(B, I), (z(B, H), z(1, 1, B, H)), name="LSTMCell"),
    "cell of LSTM, batch of c": both(cell, z(B, I), (z(B, H), z(3, H)), name="LSTMCell"),
    "cell of LSTM, size of c": both(cell, z(B, I), (z(B, H), z(B, 7)), name="LSTMCell"),
    "cell of GRU, hx of 4 dimensions": both(cell, z(B, I), z(1, 1, B, H), name="GRUCell"),
    "cell of GRU, dtype": both(cell, z(B, I, **double), name="GRUCell"),
    # which of two torch names first
    "cell, dtypes": both(cell, z(B, I, **double), z(B, H, dtype=torch.bfloat16)),
    "cell of GRU, dtypes": both(cell, z(B, I, **double), z(B, H, dtype=torch.bfloat16), name="GRUCell"),
    "cell of LSTM, dtypes": both(cell, z(B, I, **double), (z(B, H, dtype=torch.bfloat16), z(B, H)), name="LSTMCell"),
}

# Torch's words, where torch has them at another place than we do, or of another size: (call, error class, message).
TORCHS_WORDS = {
    "proj_size by place": (
        lambda: rnn_triton.RNN(I, H, 1, "tanh", True, False, 0.0, False, 2),
        ValueError,
        "proj_size argument is only supported for LSTM, not RNN or GRU",
    ),
    "shape of h0": (lambda: rnn(h0=z(3, H)), RuntimeError, "Expected hidden size (2, 4), got [3, 4]"),
    "shape of h0 of lstm": (
        lambda: lstm(states=(z(B, H), z(3, H))), RuntimeError, "Expected hidden[1] size (2, 4), got [3, 4]"
    ),
    "shape of h0 with a projection": (
        lambda: lstm(w_hh=z(4 * H, 2), w_hr=z(2, H), states=(z(B, H), z(B, H))), RuntimeError, "Expected hidden[0] size (2, 2), got [2, 4]",
    ),
    "dtype of h0 with a projection": (
        lambda: lstm(w_hh=z(4 * H, 2), w_hr=z(2, H), states=(z(B, 2, **double), z(B, H))), RuntimeError,
        "Input and hidden tensors are not the same dtype, found input tensor with Float and hidden tensor with Double",
    ),
    "dtype of c": (
        cell(rnn_triton, z(B, I), (z(B, H), z(B, H, **double)), name="LSTMCell"), RuntimeError,
        "Input and hidden tensors are not the same dtype, found input tensor with Float and hidden tensor with Double",
    ),
    "dtype of a projection": (
        lambda: lstm(w_hh=z(4 * H, 2), w_hr=z(2, H, **double)), RuntimeError,
        "Input and parameter tensors are not the same dtype, found input tensor with Float and parameter tensor with Double",
    ),
    "dtype of an input with a projection": (
        lambda: lstm(x=z(T, B, I, **double), w_hh=z(4 * H, 2), w_hr=z(2, H)), ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
    ),
    "input size with a projection": (
        lambda: lstm(x=z(T, B, 7), w_hh=z(4 * H, 2), w_hr=z(2, H), states=(z(B, 2), z(B, H))), RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 3, got 7",
    ),
    "dtype of a weight": (
        lambda: rnn(w_hh=z(H, H, **double)),
        RuntimeError,
        "Input and parameter tensors are not the same dtype, found input tensor with Float and parameter tensor with Double",
    ),
}

# Ours: (call, error class, the argument, what was got, what was expected)
OURS = {
    "precision": (lambda: rnn(precision="bf16"), ValueError, "precision", "'bf16'", "'tf32', 'tf32x3' or 'ieee'"),
    "precision of fp64": (
        lambda: explain(precision="tf32", dtype=torch.float64), ValueError, "precision", "'tf32' and torch.float64", "torch.float32",
    ),
    "dtype": (
        lambda: rnn(**{name: z(shape, dtype=torch.int64) for name, shape in (("x", (T, B, I)), ("w_ih", (H, I)))}),
        ValueError, "x", "torch.int64", "float32, bfloat16, float16 or float64",
    ),
    "w_ih": (lambda: rnn(w_ih=z(H)), ValueError, "w_ih", "[4]", "[H, I]"),
    "w_hh": (lambda: rnn(w_hh=z(H, 5)), ValueError, "w_hh", "[4, 5]", "[H, H] = [4, 4]"),
    "b_ih": (lambda: rnn(b_ih=z(5)), ValueError, "b_ih", "[5]", "[H] = [4]"),
    "b_hh": (lambda: rnn(b_hh=z(1, H)), ValueError, "b_hh", "[1, 4]", "[H] = [4]"),
    "heads": (layer(rnn_triton, heads=3), ValueError, "heads", "got 3", "a positive number that divides hidden_size = 4"),
    "heads with a projection": (
        layer(rnn_triton, name="LSTM", heads=2, proj_size=2), ValueError, "heads", "heads=2 and proj_size=2", "1 with a proj_size",
    ),
    "layers": (lambda: network([]), ValueError, "weights", "got 0", "a positive multiple of 2"),
    "half a layer": (lambda: network([z(H, I), z(H, H), z(H, H)]), ValueError, "weights", "got 3", "a positive multiple of 2"),
    "biases of one layer": (
        lambda: network([z(H, I), z(H, H), z(H), z(H), z(H, H), z(H, H)], bias=True), ValueError, "weights", "got 6",
        "a positive multiple of 4",
    ),
    "directions": (
        lambda: network([z(H, I), z(H, H)] * 3, bidirectional=True), ValueError, "weights", "got 6", "a positive multiple of 4"
    ),
    "one direction": (lambda: network([z(H, I), z(H, H)], bidirectional=True), ValueError, "weights", "got 2", "a positive multiple of 4"),
    "hidden sizes": (
        lambda: network([z(H, I), z(H, H), z(7, H), z(7, 7)]), ValueError, "weights", "[7, 4]", "one hidden size H = 4"
    ),
    "states of a network": (
        lambda: network([z(H, I), z(H, H)], [z(2, B, H)]), RuntimeError, "h0", "[2, 2, 4]", "Expected 1",
    ),
    "w_ih of lstm": (lambda: lstm(w_ih=z(6, I)), ValueError, "w_ih", "[6, 3]", "[4*H, I]"),
    "w_hh of lstm": (lambda: lstm(w_hh=z(H, H)), ValueError, "w_hh", "[4, 4]", "[4*H, H] = [16, 4]"),
    "b_ih of lstm": (lambda: lstm(b_ih=z(H)), ValueError, "b_ih", "[4]", "[4*H] = [16]"),
    "w_hr": (lambda: lstm(w_hr=z(2, H)), ValueError, "w_hr", "[2, 4] and [16, 4]", "[P, H]"),
    "states of lstm": (lambda: lstm(states=(z(B, H),)), ValueError, "states", "got 1 tensors", "2 tensors (h, c)"),
    "hx of LSTM": (layer(rnn_triton, z(T, B, I), z(1, B, H), name="LSTM"), ValueError, "hx", "a Tensor", "2 tensors (h, c)"),
    "hx of GRU": (layer(rnn_triton, z(T, B, I), (z(1, B, H),), name="GRU"), ValueError, "hx", "a tuple of 1", "a tensor"),
    "hx of LSTMCell": (cell(rnn_triton, z(B, I), (z(B, H),) * 3, name="LSTMCell"), ValueError, "hx", "a tuple of 3", "2 tensors (h, c)"),
    **{
        f"leak of {leak}": (lambda leak=leak: leaky(leak), ValueError, "leak", repr(leak), "in (0, 1]")
        for leak in (0.0, 1.01, -0.5, float("nan"), "0.5", None)
    },
    "shape of a leak": (lambda: leaky(z(5)), ValueError, "leak", "[5]", "[H] = [4]"),
    "leak of a module": (lambda: rnn_triton.LeakyRNN(I, H, leak=2.0), ValueError, "leak", "2.0", "(0, 1]"),
    "leak of a hidden unit": (
        lambda: rnn_triton.LeakyRNN(I, H, leak=torch.tensor([0.5, 0.5, 0.0, 0.5])), ValueError, "leak", "0.0", "(0, 1]"
    ),
    **{
        f"a parameter as leak, {learn}": (
            lambda learn=learn: rnn_triton.LeakyRNN(I, H, leak=nn.Parameter(torch.full((H,), 0.5)), learn_leak=learn), ValueError, "leak",
            "a tensor that does", "not require grad",
        )
        for learn in (False, True)
    },
    "leaks in a list": (lambda: rnn_triton.LeakyRNN(I, H, leak=[0.5] * H), ValueError, "leak", "[0.5, 0.5, 0.5, 0.5]", "(0, 1]"),
    "leak that is learned": (lambda: rnn_triton.LeakyRNN(I, H, leak=1.0, learn_leak=True), ValueError, "leak", "1.0", "(0, 1)"),
    "shape of a module's leak": (lambda: rnn_triton.LeakyRNN(I, H, leak=z(5)), ValueError, "leak", "[5]", "[H] = [4]"),
    "cell of a module": (lambda: rnn_triton.Recurrent("peephole", I, H), ValueError, "cell", "'peephole'", "elman_tanh, elman_relu"),
    "cell of the same name": (
        lambda: rnn_triton.Recurrent(dataclasses.replace(cells.named("gru"), kept=4), I, H), ValueError, "cell", "'gru'", "a registered one",
    ),
    "bidirectional": (layer(rnn_triton, bidirectional=1), TypeError, "bidirectional", "int", "bool"),
    "num_layers of a module": (layer(rnn_triton, num_layers=True), TypeError, "num_layers", "bool", "int"),
    "hx of an unbatched cell": (cell(rnn_triton, z(I), z(H, H)), ValueError, "hx", "[4, 4]", "[H] = [4]"),
    **{
        f"{name} as {got}": (lambda name=name, t=t: rnn(**{name: t}), ValueError, name, got, expected)
        for name, t, got, expected in (
            ("lengths", z(B), "torch.float32", "dtype int64, int32, .."), ("lengths", z(3).int(), "[3]", "[B] = [2]"),
            ("lengths", z(B, device="meta").int(), "meta", "cpu"), ("reset", z(T, B), "torch.float32", "dtype torch.bool"),
            ("reset", z(B, T).bool(), "[2, 5]", "[T, B] = [5, 2]"), ("reset", z(T, B, device="meta").bool(), "meta", "cpu"),
            ("reset_state", z(B, H), "1 tensors", "None without reset"), ("lengths", [5, 3], "a list", "a tensor"),
            ("reset", [[True] * B] * T, "a list", "a tensor"),
        )
    },
    "a length": (
        lambda: rnn(lengths=torch.tensor([5, 6]), validate=True), ValueError, "lengths", "6 in row 1", "from 0 to T = 5",
    ),
    "shape of a reset_state": (lambda: rnn(reset=z(T, B).bool(), reset_state=z(H)), ValueError, "reset_state", "[4]", "[B, H] = [2, 4]"),
    "dtype of a reset_state": (
        lambda: rnn(reset=z(T, B).bool(), reset_state=z(B, H).double()), ValueError, "reset_state", "torch.float64", "dtype torch.float32",
    ),
    "reset_states": (lambda: lstm(reset=z(T, B).bool(), reset_state=(z(B, H),)), ValueError, "reset_state", "got 1", "2 tensors (h, c)"),
    "reset_state of a module": (
        lambda: rnn_triton.LSTM(I, H)(z(T, B, I), reset=z(T, B).bool(), reset_state=z(1, B, H)), ValueError, "reset_state", "a Tensor",
        "2 tensors (h, c)",
    ),
    "lengths of an unbatched input": (lambda: rnn_triton.RNN(I, H)(z(T, I), lengths=3), ValueError, "lengths", "a int", "a tensor"),
    "reset of an unbatched input": (lambda: rnn_triton.RNN(I, H)(z(T, I), reset=[True]), ValueError, "reset", "a list", "a tensor"),
    "reset_state as a number": (
        lambda: rnn_triton.RNN(I, H)(z(T, B, I), reset=z(T, B).bool(), reset_state=0.0), ValueError, "reset_state", "a float", "of tensors",
    ),
    "reset_state of heads": (
        lambda: rnn_triton.RNN(I, H, heads=2)(z(T, B, I), reset=z(T, B).bool(), reset_state=z(1, B, 7)), ValueError, "reset_state", "[2, 7]",
        "[B, H] = [2, 4]",
    ),
    "reset_state of layers": (
        lambda: rnn_triton.RNN(I, H, 2)(z(T, B, I), reset=z(T, B).bool(), reset_state=z(1, B, H)), ValueError, "reset_state", "[1, 2, 4]",
        "L*D = 2",
    ),
    "reset_state of a projected layer": (
        lambda: lstm(w_hh=z(4 * H, 2), w_hr=z(2, H), reset=z(T, B).bool(), reset_state=(z(B, H), z(B, H))), ValueError, "reset_state",
        "[2, 4]", "[B, P] = [2, 2]",
    ),
    "lengths of a PackedSequence": (
        lambda: rnn_triton.RNN(I, H)(PackedSequence(z(5, I), torch.tensor([3, 2])), lengths=torch.tensor([2, 2, 1])), ValueError, "lengths",
        "a PackedSequence", "None",
    ),
    "batch_sizes grow": (lambda: packed([2, 3]), ValueError, "batch_sizes", "[2, 3]", "never grow"),
    "batch_sizes": (lambda: packed([3, 1]), ValueError, "batch_sizes", "[3, 1]", "sum to its 5 rows"),
    "dtype of explain": (lambda: explain(dtype=torch.int8), ValueError, "dtype", "torch.int8", "torch.bfloat16"),
    **{
        f"{name} of explain": (lambda name=name: explain(**{name: -1}), ValueError, name, "-1", f"at least {0 if name == 'B' else 1}")
        for name in ("T", "B", "I", "H", "models", "num_layers")
    },
    "direction": (lambda: explain(direction="up"), ValueError, "direction", "'up'", "'forward' or 'backward'"),
    "dropout": (lambda: explain(dropout=1.5), ValueError, "dropout", "1.5", "[0, 1]"),
    "overriding a name": (lambda: overriding(colour=1), ValueError, "colour", "colour", "block_b"),
    "overriding a list": (lambda: overriding(units=[16]), ValueError, "units", "[16]", "a string or a number"),
    "overriding recurrences": (lambda: overriding(recurrences=0), ValueError, "recurrences", "0", "an integer of at least 1"),
    "overriding beyond the plans": (
        lambda: overriding({"H": 1024, "dtype": torch.bfloat16}, units=48), ValueError, "units", "48", "16 | 32 | 64",
    ),
    "measured names": (lambda: measured_rows({"colour": 1}), ValueError, "row 0", "colour", "expected B, H"),
    "measured direction": (lambda: measured_rows({"direction": "up"}), ValueError, "direction", "'up'", "'backward'"),
    "measured sizes": (lambda: measured_rows({"B": [0, 8]}), ValueError, "B", "[0, 8]", "from 1"),
    "measured choices": (lambda: measured_rows({"choices": {"colour": 1}}), ValueError, "choices", "colour", "block_b"),
    "measured twice": (lambda: measured_rows({}, {}), ValueError, "row 1", "'H200'", "what another row covers"),
    "cell": (lambda: cells.named("gru_relu"), ValueError, "cell", "'gru_relu'", "elman_tanh, elman_relu"),
    "a cell's name": (lambda: registered(name="elman_relu"), ValueError, "name", "'elman_relu'", "not be that of a registered cell"),
    "a cell's name, no identifier": (lambda: registered(name="a b"), ValueError, "name", "'a b'", "a Python identifier"),
    "gates": (lambda: registered(gates=("a", "a")), ValueError, "gates", "('a', 'a')", "a tuple of different names"),
    "no gates": (lambda: registered(gates=()), ValueError, "gates", "()", "one at least"),
    "split gates": (lambda: registered(split=("b",)), ValueError, "split", "('b',)", "the last of the gates ('a',)"),
    "carried states": (lambda: registered(carried=("c",)), ValueError, "carried", "('c',)", "states of ('h',)"),
    "tiles that are kept": (lambda: registered(kept=-1), ValueError, "kept", "-1", "a number of 0 or more"),
    "device function": (lambda: registered(forward=len), ValueError, "forward", "len", "a function with triton.jit"),
    "step": (lambda: registered(step=None), ValueError, "step", "None", "a function of torch"),
    "regime of a record": (lambda: problem.plan_from_fields({"regime": "cube"}), ValueError, "regime", "'cube'", "per_step"),
    "fields of a record": (
        lambda: problem.plan_from_fields({"regime": "one_cta", "colour": 1}), ValueError, "fields", "colour", "one_cta plan",
    ),
}  # fmt: skip


def raised(call):
    """The error of a call, and the line in the package that raised it, as (file, line); None if torch did."""
    try:
        call()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        path = Path(frame.filename)
        return error, (path, frame.lineno) if PACKAGE in path.parents else None
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_words(name):
    ours, torchs = TORCHS[name]
    error, expected = raised(ours)[0], raised(torchs)[0]
    assert type(error) is type(expected) and str(error) == str(expected)


@pytest.mark.parametrize("name", TORCHS_WORDS)
def test_torchs_words_elsewhere(name):
    call, kind, message = TORCHS_WORDS[name]
    error, _ = raised(call)
    assert type(error) is kind and str(error) == message


@pytest.mark.parametrize("name", OURS)
def test_ours_name_argument_got_and_expected(name):
    call, kind, argument, got, expected = OURS[name]
    error, _ = raised(call)
    assert type(error) is kind
    assert all(part in str(error) for part in (argument, got, expected)), str(error)


def test_every_error_of_arguments_has_a_case():
    written = {}
    for path in PACKAGE.rglob("*.py"):
        # nobody calls these with arguments of theirs; wrong cells, which need kernels that run, are those of tests/test_own_cell.py
        if path.relative_to(PACKAGE).parts[0] in ("kernels", "interpret", "bench", "check_cell.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                if ast.unparse(node.exc.func) in ("ValueError", "TypeError", "RuntimeError"):
                    written[path, node.lineno] = range(node.lineno, node.end_lineno + 1)
    assert len(written) > 30
    calls = [call for call, *_ in (*TORCHS.values(), *TORCHS_WORDS.values(), *OURS.values())]
    reached = {place for call in calls if (place := raised(call)[1])}
    missing = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for (path, line), lines in written.items()
        if not any(path == at and number in lines for at, number in reached)
    ]
    assert missing == []
