"""RNNCell, GRUCell and LSTMCell beside torch.nn's."""

import copy
import pickle
import warnings

import pytest
import torch
from support.pairs import TOLERANCE, B, H, I, data, flat, outcome
from support.problems import gradients, like
from test_modules import ODD
from torch import nn
from torch.nn.utils import parametrizations

import rnn_triton

names = pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])


def cells(name="RNNCell", **options):
    built = []
    for library in (rnn_triton, nn):
        torch.manual_seed(7)
        built.append(getattr(library, name)(I, H, dtype=torch.float64, **options))
    return built


def hx_of(name, *states):
    """hx for a module of this name: the first of the states, or all as a tuple."""
    return tuple(states) if name == "LSTMCell" else states[0]


@pytest.mark.parametrize("module", [*[dict(name=name) for name in ("RNNCell", "GRUCell", "LSTMCell")], dict(name="RNNCell", nonlinearity="relu")])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batch", [(), (B,), (0,)])
def test_cell(module, bias, hx, batch):
    ours, theirs = cells(bias=bias, **module)
    assert isinstance(ours, nn.RNNCellBase) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    x, *states = [data(*batch, size, seed=n).requires_grad_() for n, size in enumerate((I, H, H))]
    leaves = [x, *flat(hx_of(module["name"], *states))] if hx else [x]
    results = []
    for one in (ours, theirs):
        h = one(x, hx_of(module["name"], *states)) if hx else one(x)
        h = flat(h)
        results.append((h, gradients(h, like(h), [*leaves, *one.parameters()])))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize(
    "x, hx",
    [
        ((2, 7), None),
        ((7,), None),
        ((1, 2, I), None),
        ((), None),
        ((2, I), (2, 5)),
        ((2, I), (3, H)),
        ((2, I), (3, 5)),
        ((2, 7), (3, 5)),
        ((2, I), (H,)),
        ((H, I), (H,)),
        ((2, I), (2, H, 1)),
        ((I,), (2, H)),
        ((I,), (5,)),
    ],
)
@names
def test_cell_errors(name, x, hx):
    ours, theirs = cells(name)
    wrong = [] if hx is None else [data(*hx)]
    if wrong and name == "LSTMCell":  # each of the two in turn
        right = data(*x[:-1], H)
        wrong = [(wrong[0], right), (right, wrong[0])]
    for arguments in [(data(*x), hx) for hx in wrong] or [(data(*x),)]:
        expected = outcome(lambda arguments=arguments: theirs(*arguments))
        assert isinstance(expected[0], type)
        assert outcome(lambda arguments=arguments: ours(*arguments)) == expected
    # and where torch takes an hx of [H,H] beside an input [I] for a batch of H states
    with pytest.raises(ValueError, match=r"hx must have shape \[H\] = \[4\] for an input \[I\], got \[4, 4\]"):
        ours(data(I), hx_of(name, data(H, H), data(H)))


@names
def test_sizes(name):
    ours, theirs = getattr(rnn_triton, name), getattr(nn, name)
    for arguments in ((3.0, 4), (3, -1), (-1, 4), (3,)):
        expected = outcome(lambda arguments=arguments: theirs(*arguments))
        assert outcome(lambda arguments=arguments: ours(*arguments))[0] is expected[0]
    for sizes in ((0, 4), (3, 0)):
        with warnings.catch_warnings(), pytest.raises(rnn_triton.UnsupportedError, match=f"rnn_triton.{name} needs sizes above 0"):
            warnings.simplefilter("ignore")  # torch's, about the empty parameters
            ours(*sizes)


def test_cell_arguments():
    odd = rnn_triton.RNNCell(3, 4, nonlinearity="gelu")
    with pytest.raises(RuntimeError, match="^Unknown nonlinearity: gelu$"):
        odd(torch.randn(2, 3))
    assert rnn_triton.RNNCell(3, 4, False, "relu", "meta", torch.bfloat16).weight_hh.dtype is torch.bfloat16
    assert repr(rnn_triton.RNNCell(3, 4, False, "relu")) == "RNNCell(3, 4, bias=False, nonlinearity=relu)"


@names
@pytest.mark.parametrize("argument", ["input_size", "hidden_size", "bias", "nonlinearity", "device", "dtype", "what"])
def test_odd_arguments(name, argument):
    """As of RNN; sizes of 0 and complex numbers are not supported."""
    refused = 0
    for value in ODD:
        if (argument.endswith("size") and isinstance(value, int) and value == 0) or value is torch.complex64:
            continue
        results = []
        for cls in (getattr(rnn_triton, name), getattr(nn, name)):
            cell = outcome(lambda cls=cls: cls(**{"input_size": I, "hidden_size": H, argument: value}))
            if isinstance(cell, nn.Module):
                called = outcome(lambda cell=cell: cell(torch.zeros(B, I, dtype=cell.weight_hh.dtype)))
                # of another device torch says it in words of each operator
                failed = isinstance(called, tuple) and isinstance(called[0], type) and value != "meta"
                cell = (repr(cell), called if failed else type(called))
            else:
                refused += 1
            results.append(cell)
        assert results[0] == results[1], value
    assert refused or argument in ("bias", "nonlinearity")


@names
def test_cell_computes_a_parametrization_once_as_torch(name):
    results = []
    for cell in cells(name):
        torch.manual_seed(2)
        parametrizations.spectral_norm(cell, "weight_hh")
        parametrizations.spectral_norm(cell, "weight_ih")
        for seed in range(3):
            h = cell(data(B, I, seed=seed))
        results.append((h, cell.state_dict()))
        assert flat(copy.deepcopy(cell)(data(B, I)))[0].shape == (B, H)
    torch.testing.assert_close(*results, **TOLERANCE)


@names
def test_cell_state_dict_copies_and_autocast(name):
    ours, theirs = cells(name)
    x, hx = data(B, I), hx_of(name, data(B, H), data(B, H, seed=1))
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    for copied in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied(x, hx), theirs(x, hx), **TOLERANCE)
    replacement = {name: data(*p.shape, seed=i) for i, (name, p) in enumerate(ours.named_parameters())}
    got, expected = (torch.func.functional_call(m, replacement, (x, hx)) for m in (ours, theirs))
    torch.testing.assert_close(got, expected, **TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        h = ours.float()(x.float(), hx_of(name, *[t.float() for t in flat(hx)]))
        assert {t.dtype for t in flat(h)} == {torch.bfloat16}


@names
def test_cell_in_place_change_of_a_state(name):
    """Right gradients, as the state that is handed out is not what the backward pass reads."""
    ours, _ = cells(name)
    x = data(B, I).requires_grad_()
    for h in flat(ours(x)):
        expected = torch.autograd.grad((2 * h).sum(), x, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(h.mul_(2).sum(), x, retain_graph=True), expected, **TOLERANCE)


@names
def test_cell_compiles_into_one_graph(name):
    torch._dynamo.reset()
    ours, _ = cells(name)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for arguments in ((data(B, I), hx_of(name, data(B, H), data(B, H, seed=1))), (data(I),)):
        torch.testing.assert_close(compiled(*arguments), ours(*arguments), **TOLERANCE)


@names
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_dynamic_quantization_leaves_it(name):
    kinds = []
    for cell in cells(name):
        kinds.append(type(torch.ao.quantization.quantize_dynamic(nn.Sequential(cell.float()))[0]))
    assert kinds[0] is getattr(rnn_triton, name) and kinds[1] is not getattr(nn, name)
