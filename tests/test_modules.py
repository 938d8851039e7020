"""RNN beside torch.nn.RNN, whose answers, errors and habits are the expected values, and SimpleRNN."""

import contextlib
import copy
import io
import itertools
import operator
import pickle
import warnings

import numpy as np
import pytest
import torch
from support.pairs import STACKS, TOLERANCE, B, H, I, T, data, outcome, pair, same
from support.problems import gradients, like
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_triton

KEYS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


# ---- construction ------------------------------------------------------------------------------------------


class Index:
    def __index__(self):
        return 2


ODD = [
    None, True, False, 0, 1, 2, -1, 10, 1.0, 2.5, 0.5, 1.5, -0.1, float("nan"), float("inf"), "1", "tanh", "relu", "RELU",
    "gelu", "", "cpu", "meta", "nope", b"x", [1], (), {}, 1j, Index(), object, np.int64(2), np.float32(0.5), np.bool_(True),
    torch.tensor(2), torch.tensor(1.5), torch.tensor(True), torch.device("cpu"), torch.float64, torch.int64, torch.complex64,
]  # fmt: skip
NAMES = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional",
         "proj_size", "device", "dtype", "what")  # fmt: skip
# what torch.nn.RNN refuses at its first call, in words that do not name the argument
LATE = {"bidirectional": (object, bool, "bool"), "num_layers": ((bool, np.bool_, torch.Tensor), (), "int")}


def built_and_called(cls, argument, value):
    """What comes of the constructor, as in `outcome`, and of a call, as the class of what it raises or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout in a single layer
        module = outcome(lambda: cls(**{"input_size": I, "hidden_size": H, argument: value}))
    if isinstance(module, tuple):
        return module, None
    called = outcome(lambda: module(torch.zeros(T, B, I, dtype=module.weight_hh_l0.dtype)))
    return module, called[0] if isinstance(called[0], type) else None


@pytest.mark.parametrize("argument", NAMES)
def test_odd_arguments(argument):
    """Every argument with every odd value: refused where torch.nn.RNN refuses it, in its words where they name it."""
    refused = 0
    for value in ODD:
        if value is torch.complex64:
            continue  # tests/test_functional.py
        ours, ours_called = built_and_called(rnn_triton.RNN, argument, value)
        theirs, theirs_called = built_and_called(nn.RNN, argument, value)
        refused += isinstance(theirs, tuple)
        if theirs_called is TypeError:
            kinds, but, right = LATE[argument]
            assert isinstance(value, kinds) and not isinstance(value, but), value
            name = "bool" if argument == "num_layers" else type(value).__name__
            assert ours == (TypeError, f"{argument} should be of type {right}, got: {name}"), value
        elif isinstance(theirs, tuple):
            # torch's words name its own class, and the arguments that the class before it has
            expected = theirs[1].replace("RNNBase", "RNN")
            assert (ours[0], ours[1].replace("RNNBase", "RNN")) == (theirs[0], expected), value
        else:
            assert not isinstance(ours, tuple) and ours_called is theirs_called, (value, ours)
            assert repr(ours) == repr(theirs)
    assert refused or argument == "bidirectional"


@pytest.mark.parametrize("arguments", [(3, 5, 2, "tanh", True, False, 0.0, False, 5), (3, 5, 1, "gelu"), (10, 0, 1)])
def test_positional_arguments_are_refused_alike(arguments):
    theirs = outcome(lambda: nn.RNN(*arguments))
    assert isinstance(theirs, tuple)  # it does raise
    assert outcome(lambda: rnn_triton.RNN(*arguments)) == theirs


def test_constructor_type_errors():
    for arguments, options in (
        ((), {}),
        ((3,), {}),
        ((3, 4, 1, "tanh"), dict(nonlinearity="relu")),
        ((3, 4), dict(what=1)),
    ):
        with pytest.raises(TypeError):
            nn.RNN(*arguments, **options)
        with pytest.raises(TypeError):
            rnn_triton.RNN(*arguments, **options)


def test_dropout_of_a_single_layer_warns_and_does_nothing():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        ours, theirs = pair(dropout=0.5)
    same(ours, theirs, data(T, B, I))


@pytest.mark.parametrize(
    "arguments, options",
    [
        ((3, 4), {}),
        ((3, 4, 1, "relu", False, True), {}),
        ((3, 4), dict(batch_first=True, bias=False, nonlinearity="relu")),
        ((3, 4, 3, "tanh", True, False, 0.25, True), {}),
        ((3, 4, 2, "tanh", True, False, 0.0, False, 0, "cpu", torch.float64), {}),
        ((3, 4), dict(num_layers=2, bidirectional=True, bias=False)),
    ],
)
def test_same_initial_values_repr_and_attributes(arguments, options):
    built = []
    for cls in (rnn_triton.RNN, nn.RNN):
        torch.manual_seed(7)
        built.append(cls(*arguments, **options))
    ours, theirs = built
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    torch.manual_seed(8)
    ours.reset_parameters()
    torch.manual_seed(8)
    theirs.reset_parameters()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                 "bidirectional", "proj_size", "nonlinearity", "training"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name)
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert all(map(operator.is_, ours._flat_weights, itertools.chain(*ours.all_weights)))
    assert isinstance(ours, nn.RNNBase) and ours.flatten_parameters() is None
    same(ours.double().eval(), theirs.double().eval(), data(T, B, I))


def test_device_and_dtype():
    assert {p.dtype for p in rnn_triton.RNN(I, H, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in rnn_triton.RNN(I, H, device="meta").parameters()} == {"meta"}
    y, h_n = rnn_triton.RNN(I, H, device="meta")(torch.empty(T, B, I, device="meta"))
    assert y.shape == (T, B, H) and h_n.shape == (1, B, H)


# ---- forward and backward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_forward_and_gradients(nonlinearity, bias, batch_first, hx, batched):
    ours, theirs = pair(nonlinearity=nonlinearity, bias=bias, batch_first=batch_first)
    x = data(T, I) if not batched else data(B, T, I) if batch_first else data(T, B, I)
    state = None if not hx else data(1, B, H, seed=1) if batched else data(1, H, seed=1)
    assert [o.shape for o in ours(x, state)] == [o.shape for o in theirs(x, state)]
    same(ours, theirs, x, state)
    same(ours.eval(), theirs.eval(), x, state)


@pytest.mark.parametrize("options", STACKS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_layers_and_directions(options, batch_first, hx, batched):
    ours, theirs = pair(batch_first=batch_first, **options)
    states = len(ours.all_weights)
    x = data(T, I) if not batched else data(B, T, I) if batch_first else data(T, B, I)
    state = None if not hx else data(states, B, H, seed=1) if batched else data(states, H, seed=1)
    assert [o.shape for o in ours(x, state)] == [o.shape for o in theirs(x, state)]
    same(ours, theirs, x, state)


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_is_torch_s_seed_for_seed(rate, packed):
    ours, theirs = pair(num_layers=3, bidirectional=True, dropout=rate)
    x = pack_sequence([data(n, I, seed=n) for n in (5, 3, 3)]) if packed else data(T, B, I)
    for training in (True, False):
        results = []
        for module in (ours.train(training), theirs.train(training)):
            torch.manual_seed(3)
            results.append(module(x))
        torch.testing.assert_close(*results, **TOLERANCE)
    torch.manual_seed(3)
    assert not torch.allclose(ours.train()(x)[1][2:], results[0][1][2:])  # it does something


# ---- sizes, strides, errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (0, 1), (1, 1), (7, 1), (1, 5)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_sizes(shape, batch_first):
    ours, theirs = pair(batch_first=batch_first)
    steps, batch = shape[::-1] if shape[0] == 0 else shape
    x = data(batch, steps, I) if batch_first else data(steps, batch, I)
    same(ours, theirs, x)


def test_strided_and_expanded_inputs():
    ours, theirs = pair()
    same(ours, theirs, data(B, I, 2 * T).permute(2, 0, 1)[::2], data(H, B, 1).permute(2, 1, 0))
    same(ours, theirs, data(1, 1, I).expand(T, B, I), data(1, 1, H).expand(1, B, H))


def test_batch_first_copies_nothing(monkeypatch):
    seen = []
    original = rnn_triton.functional.rnn
    monkeypatch.setattr(
        rnn_triton.functional, "rnn", lambda x, *a, **k: seen.append(x) or original(x, *a, **k)
    )
    x = data(B, T, I)
    y, h_n = rnn_triton.RNN(I, H, batch_first=True, dtype=torch.float64)(x)
    assert seen[0].data_ptr() == x.data_ptr() and seen[0].shape == (T, B, I)
    assert y.stride() == (H, B * H, 1)


def test_h_n_does_not_alias_output():
    for x in (data(1, B, I), data(1, I)):
        y, h_n = rnn_triton.RNN(I, H, dtype=torch.float64)(x)
        assert y.untyped_storage().data_ptr() != h_n.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "x, hx",
    [
        ((T,), None),
        ((1, T, B, I), None),
        ((T, B, 7), None),
        ((T, 7), None),
        ((0, B, I), None),
        ((0, I), None),
        ((T, B, I), (B, H)),
        ((T, B, I), (1, 1, B, H)),
        ((T, I), (1, 1, H)),
        ((T, I), (2, H)),
        ((T, I), (1, 7)),
        ((T, B, I), (1, 3, H)),
        ((T, B, I), (2, B, H)),
        ((T, B, I), (1, B, 7)),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_forward_errors(x, hx, batch_first):
    ours, theirs = pair(batch_first=batch_first)
    if batch_first and len(x) == 3:
        x = (x[1], x[0], x[2])
    arguments = [data(*shape) for shape in (x, hx) if shape is not None]
    expected = outcome(lambda: theirs(*arguments))
    assert isinstance(expected[0], type)  # it does raise
    assert outcome(lambda: ours(*arguments)) == expected


def test_dtype_errors():
    ours, theirs = pair(dtype=torch.float32)
    for x in (data(T, B, I), torch.ones(T, B, I, dtype=torch.int64)):
        expected = outcome(lambda x=x: theirs(x))
        assert expected[0] is ValueError
        assert outcome(lambda x=x: ours(x)) == expected
    with pytest.raises(RuntimeError, match="not the same dtype"):
        ours(data(T, B, I).float(), data(1, B, H))


def test_autocast_as_torch():
    ours, theirs = pair(dtype=torch.float32)
    x = data(T, B, I, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(x), theirs(x)
    assert [t.dtype for t in got] == [t.dtype for t in expected] == [torch.bfloat16] * 2
    # bf16: 2^-9 a rounding, some sqrt(I+H) + 2 < 5 of them a step, T steps, |h| < 1
    torch.testing.assert_close(got, expected, rtol=0, atol=5 * T * 2.0**-9)


# ---- parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_goes_both_ways(assign, bias):
    ours, theirs = rnn_triton.RNN(I, H, bias=bias).double(), nn.RNN(I, H, bias=bias).double()
    assert list(ours.state_dict()) == (KEYS if bias else KEYS[:2])
    ours.load_state_dict(theirs.state_dict(), assign=assign)
    same(ours, theirs, data(T, B, I))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), assign=assign)
    same(ours, theirs, data(T, B, I))


def test_weights_are_read_at_call_time():
    ours, theirs = pair()
    x = data(T, B, I)
    replacement = {name: data(*p.shape, seed=i) for i, (name, p) in enumerate(ours.named_parameters())}
    torch.testing.assert_close(
        torch.func.functional_call(ours, replacement, x), torch.func.functional_call(theirs, replacement, x)
    )
    same(ours, theirs, x)
    for module in (ours, theirs):
        for name, value in replacement.items():
            setattr(module, name, nn.Parameter(value.clone()))
    same(ours, theirs, x)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight_hh_l0.data = module.weight_hh_l0.data * 0.5
            module.bias_hh_l0.mul_(2)
    same(ours, theirs, x)


@pytest.mark.parametrize(
    "parametrize", [parametrizations.orthogonal, parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_parametrized_weights(parametrize):
    for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
        found = []
        for module in pair(num_layers=2, bidirectional=True):
            torch.manual_seed(2)  # spectral_norm starts from a random vector
            found.append(parametrize(module, name).eval())  # and moves it at each call in training
        ours, theirs = found
        theirs.load_state_dict(ours.state_dict())
        same(ours, theirs, data(T, B, I))
        assert repr(ours).replace("ParametrizedRNN", "") == repr(theirs).replace("ParametrizedRNN", "")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cached", [False, True])
def test_a_parametrization_with_a_state_trains_as_in_torch(training, cached):
    """spectral_norm moves a vector each time it is computed in training, which .to() does, too."""
    results = []
    for module in pair(num_layers=2):
        torch.manual_seed(2)
        for name in ("weight_hh_l0", "weight_ih_l1"):
            parametrizations.spectral_norm(module, name)
        module.train(training).to(torch.float64)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            with parametrize.cached() if cached else contextlib.nullcontext():
                loss = sum(module(data(T, B, I, seed=s))[0].square().sum() for s in range(2))
            loss.backward()
            optimizer.step()
        results.append((loss, module.state_dict()))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prepare", [lambda m: m, lambda m: m.double(), lambda m: m(data(T, B, I)) and m])
@pytest.mark.parametrize(
    "parametrization", [parametrizations.orthogonal, parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_copies_of_a_parametrized_module(parametrization, prepare):
    """deepcopy, which torch.nn.RNN refuses after a conversion or a call, as it holds on to what was computed"""
    module = rnn_triton.RNN(I, H, num_layers=2, dtype=torch.float64)
    for name in ("weight_ih_l0", "weight_hh_l1"):
        parametrization(module, name)
    module = prepare(module)
    copied = copy.deepcopy(module).eval()
    same(copied, module.eval(), data(T, B, I))
    expected = module(data(T, B, I))[0]
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(2)
    assert torch.equal(module(data(T, B, I))[0], expected)
    assert not torch.allclose(copied(data(T, B, I))[0], expected)
    for save in (pickle.dumps, lambda m: torch.save(m, io.BytesIO())):  # torch allows neither
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"):
            save(module)
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float32\) does not match weight dtype"):
        module(torch.zeros(T, B, I), torch.zeros(2, B, H + 1))


def test_copies_after_parametrizations_are_removed():
    ours, theirs = pair()
    for module in (ours, theirs):
        parametrizations.orthogonal(module, "weight_hh_l0")
        module(data(T, B, I))
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(ours) is rnn_triton.RNN
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        same(copied, theirs, data(T, B, I))


def test_pruned_weights():
    ours, theirs = (prune.l1_unstructured(module, "weight_hh_l0", 0.5) for module in pair())
    assert (ours.weight_hh_l0 == 0).sum() == H * H // 2
    same(ours, theirs, data(T, B, I))


def test_copies():
    ours, theirs = pair()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        same(copied, theirs, data(T, B, I))
    empty = rnn_triton.RNN(I, H, device="meta", dtype=torch.float64).to_empty(device="cpu")
    empty.load_state_dict(ours.state_dict())
    same(empty, theirs, data(T, B, I))


def test_conversions():
    ours, theirs = pair(dtype=torch.float32)
    same(ours.double(), theirs.double(), data(T, B, I))
    assert ours.bfloat16()(data(T, B, I).bfloat16())[0].dtype is torch.bfloat16


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = rnn_triton.RNN(I, H, batch_first=True)
        module.weight_hh_l0.data = module.weight_hh_l0.data.T
        module(data(B, T, I, dtype=torch.float32))[0].sum().backward()


def test_precision_reaches_the_op(monkeypatch):
    seen = []
    original = rnn_triton.op.autograd.network
    monkeypatch.setattr(rnn_triton.op.autograd, "network", lambda *a: seen.append(a[4].precision) or original(*a))
    x = data(T, B, I, dtype=torch.float32)
    for precision in ("tf32", "tf32x3", "ieee"):
        rnn_triton.RNN(I, H, precision=precision)(x)
        rnn_triton.SimpleRNN(I, H, 2, precision=precision)(x)
    assert seen == ["tf32", "tf32", "tf32x3", "tf32x3", "ieee", "ieee"]


# ---- transforms --------------------------------------------------------------------------------------------


def test_gradgradcheck():
    module = rnn_triton.RNN(2, 3, dtype=torch.float64)
    inputs = (data(3, 2, 2).requires_grad_(), data(1, 2, 3).requires_grad_())
    assert torch.autograd.gradcheck(module, inputs)
    assert torch.autograd.gradgradcheck(module, inputs, fast_mode=True)


@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_into_one_graph(batch_first):
    torch._dynamo.reset()
    for module in (
        rnn_triton.RNN(I, H, batch_first=batch_first),
        rnn_triton.SimpleRNN(I, H, 2, batch_first=batch_first),
    ):
        module.double()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for arguments in (
            (data(T, B, I), data(1, T if batch_first else B, H)),
            (data(T, I), data(1, H)),
            (data(T, B, I),),
        ):
            ours, expected = compiled(*arguments), module(*arguments)
            torch.testing.assert_close(ours, expected, **TOLERANCE)
            torch.testing.assert_close(
                gradients(ours, like(expected), list(module.parameters())),
                gradients(expected, like(expected), list(module.parameters())),
                **TOLERANCE,
            )


@pytest.mark.parametrize("options", STACKS)
def test_stacks_compile_into_one_graph(options):
    torch._dynamo.reset()
    module = rnn_triton.RNN(I, H, dtype=torch.float64, **options)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for steps, batch in ((T, B), (3, 4)):
        x, hx = data(steps, batch, I), data(len(module.all_weights), batch, H)
        torch.testing.assert_close(compiled(x, hx), module(x, hx), **TOLERANCE)


def test_export():
    module = rnn_triton.RNN(I, H, dtype=torch.float64)
    steps, batch = torch.export.Dim("T"), torch.export.Dim("B")
    program = torch.export.export(module, (data(T, B, I),), dynamic_shapes=({0: steps, 1: batch},))
    torch.testing.assert_close(program.module()(data(9, 6, I)), module(data(9, 6, I)), **TOLERANCE)


# ---- SimpleRNN ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched, hx", list(itertools.product([False, True], repeat=2)))
def test_simple_rnn(nonlinearity, bias, batch_first, batched, hx):
    O = 6
    ours = rnn_triton.SimpleRNN(I, H, O, nonlinearity, bias, batch_first, dtype=torch.float64)
    recurrence = nn.RNN(I, H, 1, nonlinearity, bias, batch_first, dtype=torch.float64)
    readout = nn.Linear(H, O, bias, dtype=torch.float64)
    recurrence.load_state_dict(ours.rnn.state_dict())
    readout.load_state_dict(ours.readout.state_dict())

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.readout = recurrence, readout

        def forward(self, *arguments):
            output, h_n = self.rnn(*arguments)
            return self.readout(output), h_n

    theirs = Theirs()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = data(T, I) if not batched else data(B, T, I) if batch_first else data(T, B, I)
    state = None if not hx else data(1, B, H, seed=1) if batched else data(1, H, seed=1)
    assert [o.shape for o in ours(x, state)] == [o.shape for o in theirs(x, state)]
    same(ours, theirs, x, state)


def test_simple_rnn_in_layers_directions_and_packed():
    model = rnn_triton.SimpleRNN(I, H, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    theirs = nn.RNN(I, H, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict(model.rnn.state_dict())
    for x in (data(T, B, I), pack_sequence([data(n, I) for n in (2, 4, 3)], enforce_sorted=False)):
        outputs, h_n = model(x)
        expected, expected_h_n = theirs(x)
        if isinstance(x, PackedSequence):
            assert outputs.unsorted_indices is x.unsorted_indices
            outputs, expected = outputs.data, expected.data
        torch.testing.assert_close((outputs, h_n), (model.readout(expected), expected_h_n), **TOLERANCE)


def test_simple_rnn_learns_to_count():
    torch.manual_seed(0)
    model = rnn_triton.SimpleRNN(1, 16, 1, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    x = torch.randint(0, 2, (32, 6, 1)).float()
    target = x.cumsum(1) / 6
    losses = []
    for _ in range(80):
        outputs, _ = model(x)
        losses.append(nn.functional.mse_loss(outputs, target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 20
