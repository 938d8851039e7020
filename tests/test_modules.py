"""RNN, GRU and LSTM beside torch.nn's, whose answers, errors and habits are the expected values, and SimpleRNN."""

import contextlib
import copy
import io
import itertools
import operator
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from support.pairs import IDS, MODULES, STACKS, TOLERANCE, B, H, I, T, data, flat, outcome, pair, same, state
from support.problems import gradients, like
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_triton

KEYS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
modules = pytest.mark.parametrize("module", MODULES, ids=IDS)
names = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])


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


@names
@pytest.mark.parametrize("argument", NAMES)
def test_odd_arguments(name, argument):
    """Every argument with every odd value: refused where torch's module refuses it, in its words where they name it."""
    refused = 0
    for value in ODD:
        if value is torch.complex64:
            continue  # tests/test_functional.py
        ours, ours_called = built_and_called(getattr(rnn_triton, name), argument, value)
        theirs, theirs_called = built_and_called(getattr(nn, name), argument, value)
        refused += isinstance(theirs, tuple)
        if theirs_called is TypeError:
            kinds, but, right = LATE[argument]
            assert isinstance(value, kinds) and not isinstance(value, but), value
            got = "bool" if argument == "num_layers" else type(value).__name__
            assert ours == (TypeError, f"{argument} should be of type {right}, got: {got}"), value
        elif isinstance(theirs, tuple):
            # torch's words name its own class, and the arguments that the class before it has
            expected = theirs[1].replace("RNNBase", name)
            assert (ours[0], re.sub(r"RNNBase|Layers", name, ours[1])) == (theirs[0], expected), value
        else:
            assert not isinstance(ours, tuple) and ours_called is theirs_called, (value, ours)
            assert repr(ours) == repr(theirs)
    assert refused or argument == "bidirectional"


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("RNN", (3, 5, 2, "tanh", True, False, 0.0, False, 5)),
        ("RNN", (3, 5, 1, "gelu")),
        ("RNN", (10, 0, 1)),
        ("GRU", (10, 0, 1)),
        ("GRU", (3, 5, 2, True, False, 0.0, False, 5)),
        ("LSTM", (3, 5, 2, True, False, 0.0, False, 5)),
        ("LSTM", (3, 5, 2, True, False, 0.0, False, -1)),
    ],
)
def test_positional_arguments_are_refused_alike(name, arguments):
    theirs = outcome(lambda: getattr(nn, name)(*arguments))
    assert isinstance(theirs, tuple)  # it does raise
    assert outcome(lambda: getattr(rnn_triton, name)(*arguments)) == theirs


@names
def test_constructor_type_errors(name):
    for arguments, options in (
        ((), {}),
        ((3,), {}),
        ((3, 4, 1, "tanh"), dict(nonlinearity="relu")),
        ((3, 4), dict(what=1)),
    ):
        for library in (nn, rnn_triton):
            with pytest.raises(TypeError):
                getattr(library, name)(*arguments, **options)


@modules
def test_dropout_of_a_single_layer_warns_and_does_nothing(module):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        ours, theirs = pair(dropout=0.5, **module)
    same(ours, theirs, data(T, B, I))


@pytest.mark.parametrize(
    "name, arguments, options",
    [
        ("RNN", (3, 4), {}),
        ("RNN", (3, 4, 1, "relu", False, True), {}),
        ("RNN", (3, 4), dict(batch_first=True, bias=False, nonlinearity="relu")),
        ("RNN", (3, 4, 3, "tanh", True, False, 0.25, True), {}),
        ("RNN", (3, 4, 2, "tanh", True, False, 0.0, False, 0, "cpu", torch.float64), {}),
        ("RNN", (3, 4), dict(num_layers=2, bidirectional=True, bias=False)),
        ("GRU", (3, 4, 3, True, False, 0.25, True), {}),
        ("GRU", (3, 4, 2, False, True, 0.0, False, 0, "cpu", torch.float64), {}),
        ("LSTM", (3, 4, 3, True, False, 0.25, True), {}),
        ("LSTM", (3, 4, 2, False, True, 0.0, False, 3, "cpu", torch.float64), {}),
        ("LSTM", (3, 4), dict(num_layers=2, bidirectional=True, proj_size=2)),
    ],
)
def test_same_initial_values_repr_and_attributes(name, arguments, options):
    built = []
    for library in (rnn_triton, nn):
        torch.manual_seed(7)
        built.append(getattr(library, name)(*arguments, **options))
    ours, theirs = built
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    torch.manual_seed(8)
    ours.reset_parameters()
    torch.manual_seed(8)
    theirs.reset_parameters()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    for attribute in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                      "bidirectional", "proj_size", "training", *["nonlinearity"] * (name == "RNN")):  # fmt: skip
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert all(map(operator.is_, ours._flat_weights, itertools.chain(*ours.all_weights)))
    assert isinstance(ours, nn.RNNBase) and ours.flatten_parameters() is None
    same(ours.double().eval(), theirs.double().eval(), data(T, B, I))


@names
def test_device_and_dtype(name):
    cls = getattr(rnn_triton, name)
    assert {p.dtype for p in cls(I, H, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in cls(I, H, device="meta").parameters()} == {"meta"}
    y, *last = flat(cls(I, H, device="meta")(torch.empty(T, B, I, device="meta")))
    assert y.shape == (T, B, H) and all(t.shape == (1, B, H) for t in last)


# ---- forward and backward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [*MODULES, dict(name="RNN", nonlinearity="relu")], ids=[*IDS, "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_forward_and_gradients(module, bias, batch_first, hx, batched):
    check_forward(dict(bias=bias, batch_first=batch_first, **module), hx, batched)


@modules
@pytest.mark.parametrize("options", STACKS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_layers_and_directions(module, options, batch_first, hx, batched):
    check_forward(dict(batch_first=batch_first, **module, **options), hx, batched)


def check_forward(options, hx, batched):
    ours, theirs = pair(**options)
    x = data(T, I) if not batched else data(B, T, I) if options["batch_first"] else data(T, B, I)
    first = state(theirs, *[B] * batched) if hx else None
    results = ours(x, first), theirs(x, first)
    assert type(results[0][1]) is type(results[1][1])
    assert [t.shape for t in flat(results[0])] == [t.shape for t in flat(results[1])]
    same(ours, theirs, x, first)
    same(ours.eval(), theirs.eval(), x, first)


@modules
@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_is_torch_s_seed_for_seed(module, rate, packed):
    ours, theirs = pair(num_layers=3, bidirectional=True, dropout=rate, **module)
    x = pack_sequence([data(n, I, seed=n) for n in (5, 3, 3)]) if packed else data(T, B, I)
    for training in (True, False):
        results = []
        for module in (ours.train(training), theirs.train(training)):
            torch.manual_seed(3)
            results.append(module(x))
        torch.testing.assert_close(*results, **TOLERANCE)
    torch.manual_seed(3)
    changed, kept = flat(ours.train()(x)[1])[0], flat(results[0][1])[0]
    assert not torch.allclose(changed[2:], kept[2:])  # it does something


# ---- sizes, strides, errors --------------------------------------------------------------------------------


@modules
@pytest.mark.parametrize("shape", [(0, 3), (0, 1), (1, 1), (7, 1), (1, 5)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_sizes(module, shape, batch_first):
    ours, theirs = pair(batch_first=batch_first, **module)
    steps, batch = shape[::-1] if shape[0] == 0 else shape
    x = data(batch, steps, I) if batch_first else data(steps, batch, I)
    same(ours, theirs, x)
    same(ours, theirs, x, state(theirs, batch))


@modules
def test_strided_and_expanded_inputs(module):
    ours, theirs = pair(**module)
    strided = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in flat(state(theirs, B))]
    expanded = [t[:, :1].expand(-1, B, -1) for t in flat(state(theirs, B))]
    xs = data(B, I, 2 * T).permute(2, 0, 1)[::2], data(1, 1, I).expand(T, B, I)
    for x, states in zip(xs, (strided, expanded), strict=True):
        same(ours, theirs, x, tuple(states) if len(states) > 1 else states[0])


@names
def test_batch_first_copies_nothing(name, monkeypatch):
    seen = []
    original = rnn_triton.functional._layer
    monkeypatch.setattr(rnn_triton.functional, "_layer", lambda x, *a, **k: seen.append(x) or original(x, *a, **k))
    x = data(B, T, I)
    y, h_n = getattr(rnn_triton, name)(I, H, batch_first=True, dtype=torch.float64)(x)
    assert seen[0].data_ptr() == x.data_ptr() and seen[0].shape == (T, B, I)
    assert y.stride() == (H, B * H, 1)


@modules
def test_h_n_does_not_alias_output(module):
    for x in (data(1, B, I), data(1, I)):
        results = flat(pair(**module)[0](x))
        assert len({t.untyped_storage().data_ptr() for t in results}) == len(results)


@modules
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
def test_forward_errors(module, x, hx, batch_first):
    ours, theirs = pair(batch_first=batch_first, **module)
    if batch_first and len(x) == 3:
        x = (x[1], x[0], x[2])
    x = data(*x)
    wrong = [] if hx is None else [data(*hx)]
    if wrong and module["name"] == "LSTM":  # each of the two in turn
        right = flat(state(theirs, *[B] * (x.dim() == 3)))
        wrong = [(wrong[0], right[1]), (right[0], wrong[0])]
    for arguments in [(x, hx) for hx in wrong] or [(x,)]:
        expected = outcome(lambda arguments=arguments: theirs(*arguments))
        assert isinstance(expected[0], type)  # it does raise
        assert outcome(lambda arguments=arguments: ours(*arguments)) == expected


@modules
def test_dtype_errors(module):
    ours, theirs = pair(dtype=torch.float32, **module)
    for x in (data(T, B, I), torch.ones(T, B, I, dtype=torch.int64)):
        expected = outcome(lambda x=x: theirs(x))
        assert expected[0] is ValueError
        assert outcome(lambda x=x: ours(x)) == expected
    states = flat(state(theirs, B))
    for n in range(len(states)):  # each in turn
        mixed = [t if i == n else t.float() for i, t in enumerate(states)]
        with pytest.raises(RuntimeError, match="not the same dtype, found input tensor with Float and hidden tensor with Double"):
            ours(data(T, B, I).float(), tuple(mixed) if len(mixed) > 1 else mixed[0])


@pytest.mark.parametrize(
    "name, count, got",
    [("RNN", 2, "a tuple of 2"), ("GRU", 1, "a tuple of 1"), ("LSTM", 0, "a Tensor"), ("LSTM", 1, "a tuple of 1"), ("LSTM", 3, "a tuple of 3")],
)
def test_a_state_of_the_wrong_number_of_tensors(name, count, got):
    h = data(1, B, H)
    expected = "2 tensors (h, c)" if name == "LSTM" else "a tensor"
    for cls, x, hx in ((name, data(T, B, I), h), (name + "Cell", data(B, I), h[0]), (name, pack_sequence([data(T, I)] * B), h)):
        with pytest.raises(ValueError, match=re.escape(f"hx must be {expected}, got {got}")):
            getattr(rnn_triton, cls)(I, H, dtype=torch.float64)(x, (hx,) * count if count else hx)


@modules
def test_autocast_as_torch(module):
    ours, theirs = pair(dtype=torch.float32, **module)
    x = data(T, B, I, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = flat(ours(x))
        with torch.backends.mkldnn.flags(enabled=False):  # it has no LSTM of bf16 on some CPUs, and torch then raises an error
            expected = flat(theirs(x))
    assert {t.dtype for t in got} == {torch.bfloat16}
    expected = [t.bfloat16() for t in expected]  # torch leaves some in fp32 on a CPU
    # bf16: 2^-9 a rounding, some sqrt(I+H) + 2 < 5 of them a step, T steps, |h| < 1, |c| < 2
    torch.testing.assert_close(got, expected, rtol=0, atol=5 * T * 2.0**-9)


# ---- parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@modules
def test_state_dict_goes_both_ways(module, assign, bias):
    ours, theirs = pair(bias=bias, **module)
    assert list(ours.state_dict()) == (KEYS if bias else KEYS[:2]) + ["weight_hr_l0"] * ("proj_size" in module)
    ours.load_state_dict(theirs.state_dict(), assign=assign)
    same(ours, theirs, data(T, B, I))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), assign=assign)
    same(ours, theirs, data(T, B, I))


@modules
def test_weights_are_read_at_call_time(module):
    ours, theirs = pair(**module)
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
@modules
def test_parametrized_weights(module, parametrize):
    for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
        found = []
        for one in pair(num_layers=2, bidirectional=True, **module):
            torch.manual_seed(2)  # spectral_norm starts from a random vector
            found.append(parametrize(one, name).eval())  # and moves it at each call in training
        ours, theirs = found
        theirs.load_state_dict(ours.state_dict())
        same(ours, theirs, data(T, B, I))
        assert repr(ours) == repr(theirs)


@names
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cached", [False, True])
def test_a_parametrization_with_a_state_trains_as_in_torch(name, training, cached):
    """spectral_norm moves a vector each time it is computed in training, which .to() does, too."""
    results = []
    for module in pair(num_layers=2, name=name):
        torch.manual_seed(2)
        for weight in ("weight_hh_l0", "weight_ih_l1"):
            parametrizations.spectral_norm(module, weight)
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
@names
def test_copies_of_a_parametrized_module(name, parametrization, prepare):
    """deepcopy, which torch.nn.RNN refuses after a conversion or a call, as it holds on to what was computed"""
    module = getattr(rnn_triton, name)(I, H, num_layers=2, dtype=torch.float64)
    for weight in ("weight_ih_l0", "weight_hh_l1"):
        parametrization(module, weight)
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
        wrong = torch.zeros(2, B, H + 1)
        module(torch.zeros(T, B, I), (wrong, wrong) if name == "LSTM" else wrong)


@modules
def test_copies_after_parametrizations_are_removed(module):
    ours, theirs = pair(**module)
    for one in (ours, theirs):
        parametrizations.orthogonal(one, "weight_hh_l0")
        one(data(T, B, I))
        parametrize.remove_parametrizations(one, "weight_hh_l0")
    assert type(ours) is getattr(rnn_triton, module["name"])
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        same(copied, theirs, data(T, B, I))


@modules
def test_pruned_weights(module):
    ours, theirs = (prune.l1_unstructured(one, "weight_hh_l0", 0.5) for one in pair(**module))
    assert (ours.weight_hh_l0 == 0).sum() == ours.weight_hh_l0.numel() // 2
    same(ours, theirs, data(T, B, I))


@modules
def test_copies(module):
    ours, theirs = pair(**module)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        same(copied, theirs, data(T, B, I))
    empty = pair(device="meta", **module)[0].to_empty(device="cpu")
    empty.load_state_dict(ours.state_dict())
    same(empty, theirs, data(T, B, I))


@modules
def test_conversions(module):
    ours, theirs = pair(dtype=torch.float32, **module)
    same(ours.double(), theirs.double(), data(T, B, I))
    assert ours.bfloat16()(data(T, B, I).bfloat16())[0].dtype is torch.bfloat16


@names
def test_no_warnings(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = getattr(rnn_triton, name)(I, H, batch_first=True)
        module.weight_hh_l0.data = module.weight_hh_l0.data.T.contiguous().T
        module(data(B, T, I, dtype=torch.float32))[0].sum().backward()


def test_precision_reaches_the_op(monkeypatch):
    seen = []
    original = rnn_triton.op.autograd.network
    monkeypatch.setattr(rnn_triton.op.autograd, "network", lambda *a: seen.append(a[4].precision) or original(*a))
    x = data(T, B, I, dtype=torch.float32)
    packed = pack_sequence(list(x.unbind(1)))
    for precision in ("tf32", "tf32x3", "ieee"):
        seen.clear()
        modules = [cls(I, H, **more, precision=precision) for cls, more in (
            (rnn_triton.RNN, {}), (rnn_triton.GRU, {}), (rnn_triton.LSTM, {}), (rnn_triton.LSTM, dict(proj_size=2)),
            (rnn_triton.GRU, dict(num_layers=2)))]  # fmt: skip
        modules.append(rnn_triton.SimpleRNN(I, H, 2, precision=precision))
        modules.append(rnn_triton.Recurrent("gru", I, H, precision=precision))
        for module in modules:
            module(x)
            assert seen.pop() == precision and not seen
        rnn_triton.GRU(I, H, precision=precision)(packed)
        assert seen == [precision]
        for cell in (rnn_triton.RNNCell, rnn_triton.GRUCell, rnn_triton.LSTMCell):
            cell(I, H, precision=precision)(x[0])
        assert seen == [precision] * 4


def test_recompute_reaches_the_op(monkeypatch):
    class Reached(Exception):
        pass

    def network(x, weights, states, seed, net, sequences):
        raise Reached(net.recompute)

    monkeypatch.setattr(rnn_triton.op.autograd, "network", network)
    x, kwargs = data(T, B, I), dict(dtype=torch.float64)
    for recompute in (True, False):
        for module in (
            rnn_triton.GRU(I, H, recompute=recompute, **kwargs),
            rnn_triton.LSTM(I, H, recompute=recompute, **kwargs),
            rnn_triton.LSTM(I, H, 2, recompute=recompute, **kwargs),
            rnn_triton.LSTM(I, H, proj_size=2, recompute=recompute, **kwargs),
            rnn_triton.Recurrent("lstm", I, H, recompute=recompute, **kwargs),
        ):
            for given in (x, pack_sequence([x[:, 0]])):
                with pytest.raises(Reached) as info:
                    module(given)
                assert info.value.args == (recompute,)


# ---- transforms --------------------------------------------------------------------------------------------


@modules
def test_gradgradcheck(module):
    ours = pair(2, 4, **module)[0]
    inputs = [t.requires_grad_() for t in (data(3, 2, 2), *flat(state(ours, 2)))]

    def call(x, *states):
        return tuple(flat(ours(x, states if len(states) > 1 else states[0])))

    assert torch.autograd.gradcheck(call, inputs, fast_mode="proj_size" in module)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@modules
@pytest.mark.parametrize("batch_first", [False, True])
def test_compiles_into_one_graph(module, batch_first):
    torch._dynamo.reset()
    check_compiled(pair(batch_first=batch_first, **module)[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_simple_rnn_compiles_into_one_graph(batch_first):
    torch._dynamo.reset()
    module = rnn_triton.SimpleRNN(I, H, 2, batch_first=batch_first, dtype=torch.float64)
    check_compiled(module, module.rnn)


def check_compiled(module, recurrence=None):
    recurrence = recurrence or module
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    batch = T if recurrence.batch_first else B
    for arguments in ((data(T, B, I), state(recurrence, batch)), (data(T, I), state(recurrence)), (data(T, B, I),)):
        ours, expected = flat(compiled(*arguments)), flat(module(*arguments))
        torch.testing.assert_close(ours, expected, **TOLERANCE)
        torch.testing.assert_close(
            gradients(ours, like(expected), list(module.parameters())),
            gradients(expected, like(expected), list(module.parameters())),
            **TOLERANCE,
        )


@modules
@pytest.mark.parametrize("options", STACKS)
def test_stacks_compile_into_one_graph(module, options):
    torch._dynamo.reset()
    ours = pair(**module, **options)[0]
    compiled = torch.compile(ours, backend="eager", fullgraph=True, dynamic=True)
    for steps, batch in ((T, B), (3, 4)):
        x, hx = data(steps, batch, I), state(ours, batch)
        torch.testing.assert_close(compiled(x, hx), ours(x, hx), **TOLERANCE)


@modules
def test_export(module):
    ours = pair(**module)[0]
    steps, batch = torch.export.Dim("T"), torch.export.Dim("B")
    program = torch.export.export(ours, (data(T, B, I),), dynamic_shapes=({0: steps, 1: batch},))
    torch.testing.assert_close(program.module()(data(9, 6, I)), ours(data(9, 6, I)), **TOLERANCE)


class Within(nn.Module):
    def __init__(self, recurrence):
        super().__init__()
        self.recurrence = recurrence

    def forward(self, x, hx):
        return self.recurrence(2 * x, hx)


def test_leaves_of_fx():
    built = [pair(**options)[0] for options in MODULES]
    built += [copy.deepcopy(built[2]), pickle.loads(pickle.dumps(built[1]))]
    built += [rnn_triton.Recurrent("gru", I, H, dtype=torch.float64), rnn_triton.LeakyRNN(I, H, leak=0.5, dtype=torch.float64)]
    for module in built:
        x, hx = data(T, B, I), state(module, B)
        graph = torch.fx.symbolic_trace(Within(module))
        assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["recurrence"]
        torch.testing.assert_close(graph(x, hx), module(2 * x, hx), rtol=0, atol=0)
    for cls in (rnn_triton.GRUCell, rnn_triton.LSTMCell):
        graph = torch.fx.symbolic_trace(Within(cls(I, H)))
        assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["recurrence"]


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


@pytest.mark.parametrize("batch_first", [False, True])
def test_simple_rnn_passes_sequences_and_heads_on(batch_first):
    model = rnn_triton.SimpleRNN(I, H, 6, batch_first=batch_first, heads=2, dtype=torch.float64)
    x, hx, anew = data(T, B, I), data(1, B, H, seed=1), data(1, B, H, seed=2)
    lengths, reset = torch.tensor([T, 2]), torch.arange(T).unsqueeze(1) == torch.tensor([1, 0])
    if batch_first:
        x, reset = x.transpose(0, 1), reset.T
    given = (x, hx, lengths, reset, anew, True)
    outputs, h_n = model(*given)
    hidden, expected = model.rnn(*given)
    torch.testing.assert_close((outputs, h_n), (model.readout(hidden), expected), **TOLERANCE)
    assert not torch.allclose(outputs, model(x, hx)[0]) and model.rnn.heads == 2
    beyond = outputs[1, 2:] if batch_first else outputs[2:, 1]
    assert torch.equal(beyond, model.readout.bias.expand_as(beyond))
    with pytest.raises(ValueError, match="lengths must be from 0 to T"):
        model(x, lengths=lengths + 1, validate=True)


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
