"""Recurrent beside torch's modules of the same cell, and LeakyRNN beside its definition in a loop."""

import copy
import io
import pickle

import pytest
import torch
from support.pairs import STACKS, TOLERANCE, B, H, I, T, data, flat, pair, same, state
from support.problems import gradients, like
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

import rnn_triton
from rnn_triton import cells

TORCHS = {"elman_tanh": "RNN", "gru": "GRU", "lstm": "LSTM"}  # modules by the name of their cell


@pytest.mark.parametrize("cell", TORCHS)
@pytest.mark.parametrize("options", [{}, *STACKS])
def test_recurrent_is_torchs_module_of_its_cell(cell, options):
    built = []
    for make in (lambda: rnn_triton.Recurrent(cells.named(cell), I, H, dtype=torch.float64, **options),
                 lambda: getattr(nn, TORCHS[cell])(I, H, dtype=torch.float64, **options)):  # fmt: skip
        torch.manual_seed(5)
        built.append(make())
    ours, theirs = built
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))  # initial values
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert repr(ours) == repr(theirs).replace(f"{TORCHS[cell]}(", f"Recurrent('{cell}', ")
    same(ours, theirs, data(T, B, I))
    same(ours, theirs, data(T, B, I), state(theirs, B))
    assert type(ours(data(T, I))[1]) is type(theirs(data(T, I))[1])
    for copied in copies(ours):
        same(copied, theirs, data(T, B, I))


def copies(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)


def test_recurrent_takes_torchs_arguments():
    module = rnn_triton.Recurrent("gru", 3, 4, 2, False, True, 0.25, True, "meta", torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert repr(module) == "Recurrent('gru', 3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.25, bidirectional=True)"
    leaky = rnn_triton.LeakyRNN(3, 4, 2, "relu", leak=0.5, learn_leak=True)
    assert repr(leaky) == "LeakyRNN(3, 4, num_layers=2, nonlinearity=relu, leak=0.5, learn_leak=True)"
    assert repr(rnn_triton.LeakyRNN(3, 4, leak=torch.full((4,), 0.5))) == "LeakyRNN(3, 4)"
    assert isinstance(module, nn.RNNBase) and module.cell == "gru"
    for options in (dict(hidden_size=0), dict(num_layers=0), dict(dropout=2), dict(bias=1), dict(input_size=2.0), dict(batch_first=0)):
        results = []
        for make in (lambda **given: rnn_triton.Recurrent("gru", **given), nn.GRU):
            with pytest.raises((ValueError, TypeError)) as info:
                make(**({"input_size": I, "hidden_size": H} | options))
            results.append((type(info.value), str(info.value)))
        assert results[0] == results[1]


# ---- leaky networks --------------------------------------------------------------------------------------------------


def loop(module, x, first=None):
    """(y, h_n) of a LeakyRNN with L layers in D directions, by its definition."""
    f = getattr(torch, module.nonlinearity)
    directions, last, halves = 2 if module.bidirectional else 1, [], []
    for n, leak in enumerate(module.leaks):
        layer, direction = divmod(n, directions)
        place = f"_l{layer}" + "_reverse" * direction
        w_ih, w_hh, *biases = [getattr(module, name + place) for name in ("weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * module.bias)]
        h, ys = x.new_zeros(x.shape[1], H) if first is None else first[n], []
        for x_t in reversed(x) if direction else x:
            h = (1 - leak) * h + leak * f(x_t @ w_ih.T + h @ w_hh.T + sum(biases))
            ys.append(h)
        last.append(h)
        halves = halves[:direction]
        halves.append(torch.stack(ys[::-1] if direction else ys))
        if direction == directions - 1:
            x = torch.cat(halves, -1)
    return x, torch.stack(last)


LEAKS = [0.3, 1.0, torch.tensor([0.1, 0.5, 0.9, 0.999])]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("options", [{}, *STACKS])
def test_leaky(nonlinearity, leak, learn, options):
    if learn and isinstance(leak, float) and leak == 1:
        leak = 0.7
    module = rnn_triton.LeakyRNN(I, H, nonlinearity=nonlinearity, leak=leak, learn_leak=learn, dtype=torch.float64, **options)
    torch.testing.assert_close(module.leaks.detach(), torch.as_tensor(leak).double().expand_as(module.leaks))
    kind, name = (module._parameters, "leak_logit_l0") if learn else (module._buffers, "leak_l0")
    assert name in kind and sum("leak" in key for key in module.state_dict()) == len(module.all_weights)
    x = data(T, B, I).requires_grad_()
    for first in (None, state(module, B).requires_grad_()):
        results = []
        for outputs in (module(x, first), loop(module, x, first)):
            leaves = [x, *flat(first), *module.parameters()]
            results.append((outputs, gradients(outputs, like(outputs), leaves)))
        torch.testing.assert_close(*results, **TOLERANCE)


def test_a_leak_of_one_is_an_rnn():
    torch.manual_seed(4)
    ours = rnn_triton.LeakyRNN(I, H, 2, bidirectional=True, leak=1.0, dtype=torch.float64)
    torch.manual_seed(4)
    theirs = nn.RNN(I, H, 2, bidirectional=True, dtype=torch.float64)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))  # initial values
    same(ours, theirs, data(T, B, I), state(theirs, B))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.reset_parameters()
    assert (ours.leaks == 1).all()


def test_a_learned_leak_stays_in_its_range():
    torch.manual_seed(0)
    module = rnn_triton.LeakyRNN(I, H, leak=0.5, learn_leak=True, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    for sign in (1, -1) * 3:
        optimizer.zero_grad()
        (sign * module(data(T, B, I))[0].square().sum()).backward()
        optimizer.step()
        assert ((0 < module.leaks) & (module.leaks < 1)).all()
    assert not torch.allclose(module.leaks, torch.tensor(0.5).double(), atol=0.05)  # they moved


@pytest.mark.parametrize("learn", [False, True])
def test_what_is_no_weight_is_not_drawn_anew(learn):
    """A mask of pruning, and a counter that a user keeps in the module"""
    module = rnn_triton.LeakyRNN(I, H, leak=0.5, learn_leak=learn)
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    module.register_buffer("calls", torch.tensor([3]))
    mask = module.weight_hh_l0_mask.clone()
    module.reset_parameters()
    assert torch.equal(module.weight_hh_l0_mask, mask) and module.calls.item() == 3 and (module.leaks == 0.5).all()


@pytest.mark.parametrize("learn", [False, True])
def test_copies_conversions_and_packed_input_of_a_leaky_network(learn):
    module = rnn_triton.LeakyRNN(I, H, 2, leak=torch.tensor([0.1, 0.2, 0.3, 0.4]), learn_leak=learn, dtype=torch.float64)
    x = data(T, B, I)
    expected = module(x)
    for copied in copies(module):
        torch.testing.assert_close(copied(x), expected, **TOLERANCE)
        with torch.no_grad():
            copied.weight_hh_l0.mul_(2)
        assert not torch.allclose(copied(x)[0], expected[0])
    torch.testing.assert_close(module(x), expected, **TOLERANCE)
    output, h_n = module(pack_sequence([x[:, 0], x[:3, 1]]))
    torch.testing.assert_close(h_n[:, 1], module(x[:3, 1])[1], **TOLERANCE)
    empty = rnn_triton.LeakyRNN(I, H, 2, leak=0.5, learn_leak=learn, device="meta", dtype=torch.float64).to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    torch.testing.assert_close(empty(x), expected, **TOLERANCE)
    empty.reset_parameters()
    assert torch.allclose(empty.leaks, torch.tensor(0.5).double())
    assert module.bfloat16()(x.bfloat16())[0].dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(x.float())[0].dtype is torch.bfloat16


def test_leaky_networks_and_others_compile_into_one_graph():
    for module in (
        rnn_triton.LeakyRNN(I, H, 2, leak=0.5, dtype=torch.float64),
        rnn_triton.LeakyRNN(I, H, leak=0.5, learn_leak=True, dtype=torch.float64),
        rnn_triton.Recurrent("lstm", I, H, dtype=torch.float64),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        results = []
        for run in (compiled, module):
            outputs = flat(run(data(T, B, I), state(pair(name="LSTM")[0], B) if module.mode == "lstm" else state(module, B)))
            results.append((outputs, gradients(outputs, like(outputs), list(module.parameters()))))
        torch.testing.assert_close(*results, **TOLERANCE)


def test_leak_of_a_function():
    """A number, a tensor without dimensions, which gets one gradient, or one of [H]."""
    x, w_ih, w_hh = data(T, B, I), data(H, I), data(H, H)
    number = rnn_triton.leaky(x, w_ih, w_hh, 0.25)
    scalar = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    vector = torch.full((H,), 0.25, dtype=torch.float64, requires_grad=True)
    results = []
    for leak in (scalar, vector):
        outputs = rnn_triton.leaky(x, w_ih, w_hh, leak)
        torch.testing.assert_close(outputs, number, **TOLERANCE)
        results.append(torch.autograd.grad(outputs[0].sum(), leak)[0])
    torch.testing.assert_close(results[0], results[1].sum(), **TOLERANCE)
    reverse = rnn_triton.leaky(x.flip(0), w_ih, w_hh, 0.25, reverse=True)
    torch.testing.assert_close((reverse[0].flip(0), reverse[1]), number, **TOLERANCE)


# ---- through the kernels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("options", [dict(nonlinearity="relu"), dict(num_layers=2, bidirectional=True, bias=False)])
def test_leaky_by_the_kernels(learn, options, device):
    leak = torch.tensor([0.1, 0.5, 0.9, 0.99])
    module = rnn_triton.LeakyRNN(I, H, leak=leak, learn_leak=learn, dtype=torch.float64, device=device, **options)
    x = data(3, B, I).to(device).requires_grad_()
    first = state(module, B).to(device).requires_grad_()
    results = []
    for outputs in (module(x, first), loop(module, x, first)):
        results.append((outputs, gradients(outputs, like(outputs), [x, first, *module.parameters()])))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "name, options",
    [("GRU", {}), ("LSTM", {}), ("LSTM", dict(proj_size=2)), ("GRU", dict(num_layers=2)), ("LSTM", dict(bidirectional=True))],
)
def test_recomputed_gates_give_torchs_gradients(recompute, name, options, device):
    ours = getattr(rnn_triton, name)(I, H, recompute=recompute, dtype=torch.float64, device=device, **options)
    theirs = getattr(nn, name)(I, H, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module, where in ((ours, device), (theirs, "cpu")):
        x = data(3, B, I).to(where).requires_grad_()
        states = [t.to(where).requires_grad_() for t in flat(state(theirs, B))]
        outputs = flat(module(x, tuple(states) if len(states) > 1 else states[0]))
        found = gradients(outputs, [t.to(where) for t in like(outputs)], [x, *states, *module.parameters()])
        results.append([t.cpu() for t in (*outputs, *found)])
    torch.testing.assert_close(*results, **TOLERANCE)
