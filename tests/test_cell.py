"""RNNCell beside torch.nn.RNNCell."""

import copy
import pickle
import warnings

import pytest
import torch
from support.pairs import TOLERANCE, B, H, I, data, outcome
from support.problems import gradients, like
from test_modules import ODD
from torch import nn
from torch.nn.utils import parametrizations

import rnn_triton


def cells(**options):
    torch.manual_seed(7)
    ours = rnn_triton.RNNCell(I, H, dtype=torch.float64, **options)
    torch.manual_seed(7)
    theirs = nn.RNNCell(I, H, dtype=torch.float64, **options)
    return ours, theirs


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batch", [(), (B,), (0,)])
def test_cell(nonlinearity, bias, hx, batch):
    ours, theirs = cells(nonlinearity=nonlinearity, bias=bias)
    assert isinstance(ours, nn.RNNCellBase) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    arguments = [data(*batch, I).requires_grad_()] + [data(*batch, H, seed=1).requires_grad_()] * hx
    results = []
    for module in (ours, theirs):
        h = module(*arguments)
        results.append((h, gradients([h], like([h]), [*arguments, *module.parameters()])))
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
def test_cell_errors(x, hx):
    ours, theirs = cells()
    arguments = [data(*shape) for shape in (x, hx) if shape is not None]
    expected = outcome(lambda: theirs(*arguments))
    assert isinstance(expected[0], type)
    assert outcome(lambda: ours(*arguments)) == expected
    # and where torch takes an hx of [H,H] beside an input [I] for a batch of H states
    with pytest.raises(ValueError, match=r"hx must have shape \[H\] = \[4\] for an input \[I\], got \[4, 4\]"):
        ours(data(I), data(H, H))


def test_cell_arguments():
    for arguments in ((3.0, 4), (3, -1), (-1, 4), (3,)):
        expected = outcome(lambda arguments=arguments: nn.RNNCell(*arguments))
        assert outcome(lambda arguments=arguments: rnn_triton.RNNCell(*arguments))[0] is expected[0]
    for sizes in ((0, 4), (3, 0)):
        with warnings.catch_warnings(), pytest.raises(rnn_triton.UnsupportedError, match="sizes above 0"):
            warnings.simplefilter("ignore")  # torch's, about the empty parameters
            rnn_triton.RNNCell(*sizes)
    odd = rnn_triton.RNNCell(3, 4, nonlinearity="gelu")
    with pytest.raises(RuntimeError, match="^Unknown nonlinearity: gelu$"):
        odd(torch.randn(2, 3))
    assert rnn_triton.RNNCell(3, 4, False, "relu", "meta", torch.bfloat16).weight_hh.dtype is torch.bfloat16
    assert repr(rnn_triton.RNNCell(3, 4, False, "relu")) == "RNNCell(3, 4, bias=False, nonlinearity=relu)"


@pytest.mark.parametrize("argument", ["input_size", "hidden_size", "bias", "nonlinearity", "device", "dtype", "what"])
def test_odd_arguments(argument):
    """As of RNN; sizes of 0 and complex numbers are not supported."""
    refused = 0
    for value in ODD:
        if (argument.endswith("size") and isinstance(value, int) and value == 0) or value is torch.complex64:
            continue
        results = []
        for cls in (rnn_triton.RNNCell, nn.RNNCell):
            cell = outcome(lambda cls=cls: cls(**{"input_size": I, "hidden_size": H, argument: value}))
            if isinstance(cell, nn.Module):
                called = outcome(lambda cell=cell: cell(torch.zeros(B, I, dtype=cell.weight_hh.dtype)))
                # of another device torch says it in words of each operator
                cell = (repr(cell), called if isinstance(called, tuple) and value != "meta" else type(called))
            else:
                refused += 1
            results.append(cell)
        assert results[0] == results[1], value
    assert refused or argument in ("bias", "nonlinearity")


def test_cell_computes_a_parametrization_once_as_torch():
    results = []
    for cell in cells():
        torch.manual_seed(2)
        parametrizations.spectral_norm(cell, "weight_hh")
        parametrizations.spectral_norm(cell, "weight_ih")
        for seed in range(3):
            h = cell(data(B, I, seed=seed))
        results.append((h, cell.state_dict()))
        assert copy.deepcopy(cell)(data(B, I)).shape == (B, H)
    torch.testing.assert_close(*results, **TOLERANCE)


def test_cell_state_dict_copies_and_autocast():
    ours, theirs = cells()
    x, hx = data(B, I), data(B, H)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    for copied in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied(x, hx), theirs(x, hx), **TOLERANCE)
    replacement = {name: data(*p.shape, seed=i) for i, (name, p) in enumerate(ours.named_parameters())}
    got, expected = (torch.func.functional_call(m, replacement, (x, hx)) for m in (ours, theirs))
    torch.testing.assert_close(got, expected, **TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.float()(x.float(), hx.float()).dtype is torch.bfloat16


def test_cell_in_place_change_of_a_state():
    """Right gradients, as the state that is handed out is not what the backward pass reads."""
    ours, _ = cells()
    x = data(B, I).requires_grad_()
    h = ours(x)
    expected = torch.autograd.grad((2 * h).sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(h.mul_(2).sum(), x), expected, **TOLERANCE)


def test_cell_compiles_into_one_graph():
    torch._dynamo.reset()
    ours, _ = cells()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for arguments in ((data(B, I), data(B, H)), (data(I),)):
        torch.testing.assert_close(compiled(*arguments), ours(*arguments), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_dynamic_quantization_leaves_it():
    kinds = []
    for cell in cells():
        kinds.append(type(torch.ao.quantization.quantize_dynamic(nn.Sequential(cell.float()))[0]))
    assert kinds[0] is rnn_triton.RNNCell and kinds[1] is not nn.RNNCell
