"""The functions: what they refuse and in whose words, precision, autocast, and one graph when compiled."""

import pytest
import torch
from support.pairs import flat
from support.problems import gradients, like, problem

import rnn_triton
from rnn_triton import checks, functional
from rnn_triton.launch import dispatch
from rnn_triton.op import autograd, on_cpu

T, B, I, H = 5, 2, 3, 4


def tensors(dtype=torch.float32, **options):
    return dict(zip(["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0"], problem(T, B, I, H, dtype=dtype, **options)))


def torch_error(*arguments, weights=None):
    """What torch.nn.RNN(3, 4) raises."""
    module = torch.nn.RNN(I, H)
    with pytest.raises(Exception) as info:
        torch.func.functional_call(module, weights or {}, arguments)
    return info.value


def test_exported():
    for name in ("rnn", "gru", "lstm", "leaky"):
        assert getattr(rnn_triton, name) is getattr(functional, name)


@pytest.fixture
def op_is_not_reached(monkeypatch):
    monkeypatch.setattr(autograd, "network", None)


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, hx",
    [
        (torch.randn(T, B, 7), None),
        (torch.randn(0, B, I), None),
        (torch.randn(T, B, I, dtype=torch.float64), None),
        (torch.ones(T, B, I, dtype=torch.int32), None),
        (torch.randn(T, B, I), torch.randn(1, B, H, device="meta")),
    ],
)
@pytest.mark.usefixtures("op_is_not_reached")
def test_raises_what_torch_raises(x, hx):
    theirs = torch_error(*((x,) if hx is None else (x, hx)))
    with pytest.raises(Exception) as info:
        functional.rnn(**(tensors() | dict(x=x, h0=None if hx is None else hx[0])))
    assert type(info.value) is type(theirs) and str(info.value) == str(theirs)


PARAMETERS = ["w_ih", "w_hh", "b_ih", "b_hh"]
DTYPE_MESSAGE = (
    "Input and {} tensors are not the same dtype, found input tensor with Float and {} tensor with Double"
)
DEVICE_MESSAGE = (
    "Input and {} tensors are not at the same device, found input tensor at cpu and {} tensor at meta"
)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(x=torch.randn(T, I)), RuntimeError, "input must have 3 dimensions, got 2"),
        (dict(w_ih=torch.randn(H)), ValueError, "w_ih must have shape [H, I], got [4]"),
        (
            dict(w_ih=torch.randn(H, 7)),
            RuntimeError,
            "input.size(-1) must be equal to input_size. Expected 7, got 3",
        ),
        (dict(w_hh=torch.randn(H, 5)), ValueError, "w_hh must have shape [H, H] = [4, 4], got [4, 5]"),
        (dict(w_hh=torch.randn(H)), ValueError, "w_hh must have shape [H, H] = [4, 4], got [4]"),
        (dict(b_ih=torch.randn(5)), ValueError, "b_ih must have shape [H] = [4], got [5]"),
        (dict(b_hh=torch.randn(1, H)), ValueError, "b_hh must have shape [H] = [4], got [1, 4]"),
        (dict(x=torch.randn(0, B, I)), RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
        (dict(h0=torch.randn(3, H)), RuntimeError, "Expected hidden size (2, 4), got [3, 4]"),
        (dict(h0=torch.randn(1, B, H)), RuntimeError, "Expected hidden size (2, 4), got [1, 2, 4]"),
        (dict(w_ih=torch.randn(0, I)), ValueError, "hidden_size must be greater than zero"),
        (
            dict(x=torch.randn(T, B, 0), w_ih=torch.randn(H, 0)),
            ValueError,
            "input_size must be greater than zero",
        ),
        (dict(h0=torch.randn(B, H).double()), RuntimeError, DTYPE_MESSAGE.format("hidden", "hidden")),
        (dict(w_hh=torch.randn(H, H).double()), RuntimeError, DTYPE_MESSAGE.format("parameter", "parameter")),
        (dict(b_ih=torch.randn(H).double()), RuntimeError, DTYPE_MESSAGE.format("parameter", "parameter")),
        (dict(b_hh=torch.randn(H).double()), RuntimeError, DTYPE_MESSAGE.format("parameter", "parameter")),
        (dict(h0=torch.randn(B, H, device="meta")), RuntimeError, DEVICE_MESSAGE.format("hidden", "hidden")),
        *[
            (
                {name: torch.empty(*shape, device="meta")},
                RuntimeError,
                DEVICE_MESSAGE.format("parameter", "parameter"),
            )
            for name, shape in zip(PARAMETERS, [(H, I), (H, H), (H,), (H,)])
        ],
        (dict(nonlinearity="gelu"), ValueError, "Unknown nonlinearity 'gelu'. Select from 'tanh' or 'relu'."),
        (
            dict(precision="bf16"),
            ValueError,
            "precision must be None, 'tf32', 'tf32x3' or 'ieee', got 'bf16'",
        ),
    ],
)
@pytest.mark.usefixtures("op_is_not_reached")
def test_bad_arguments(changes, error, message):
    with pytest.raises(error) as info:
        functional.rnn(**(tensors() | changes))
    assert type(info.value) is error and str(info.value) == message


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool])
@pytest.mark.usefixtures("op_is_not_reached")
def test_unsupported_dtype(dtype):
    given = {name: t.detach().to(dtype) for name, t in tensors().items()}
    with pytest.raises(
        ValueError, match=f"x must be of dtype float32, bfloat16, float16 or float64, got {dtype}"
    ):
        functional.rnn(**given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_is_for_fp32(dtype):
    with pytest.raises(ValueError, match=f"unless the dtype is torch.float32, got 'tf32' and {dtype}"):
        functional.rnn(**tensors(dtype), precision="tf32")


def test_bad_input_raises_in_a_graph_too():
    torch._dynamo.reset()
    compiled = torch.compile(functional.rnn, backend="eager")
    with pytest.raises(Exception, match="Expected 3, got 7"):
        compiled(**(tensors() | dict(x=torch.randn(T, B, 7))))


def test_unsupported_error_propagates(monkeypatch):
    def refuse(*arguments):
        raise rnn_triton.UnsupportedError("needs 3 of it, there are 2")

    monkeypatch.setattr(on_cpu, "forward", refuse)
    monkeypatch.setattr(dispatch, "forward", refuse)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(rnn_triton.UnsupportedError, match="^needs 3 of it"):
            functional.rnn(**tensors())


# ---- precision ---------------------------------------------------------------------------------------------


@pytest.fixture
def precisions(monkeypatch):
    """What reaches the op, call by call."""
    seen = []
    original = autograd.network
    monkeypatch.setattr(autograd, "network", lambda *a: seen.append(a[4].precision) or original(*a))
    return seen


@pytest.fixture
def cudnn_precision():
    return torch.backends.cudnn.rnn  # whose precision conftest.py puts back


def test_precision_follows_cudnn_unless_given(precisions, cudnn_precision):
    for setting in ("tf32", "ieee", "tf32"):
        cudnn_precision.fp32_precision = setting
        functional.rnn(**tensors())
    for given in ("tf32", "tf32x3", "ieee"):
        functional.rnn(**tensors(), precision=given)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        functional.rnn(**tensors(dtype))
    assert precisions == ["tf32", "ieee", "tf32", "tf32", "tf32x3", "ieee", None, None, None]


def test_precision_is_ieee_where_torch_cannot_tell(precisions, monkeypatch):
    class Refuses:
        @property
        def fp32_precision(self):
            raise RuntimeError("mix of the legacy and new APIs to set the TF32 flags")

    monkeypatch.setattr(checks, "_cudnn_rnn", Refuses())
    functional.rnn(**tensors())
    assert precisions == ["ieee"]


def test_compiled_graph_follows_the_setting(cudnn_precision):
    torch._dynamo.reset()
    seen = []

    def backend(graph, inputs):
        seen.extend(
            n.args[8] for n in graph.graph.nodes if n.target is torch.ops.rnn_triton.forward.default
        )
        return graph.forward

    compiled = torch.compile(functional.rnn, backend=backend, fullgraph=True)
    for setting in ("tf32", "ieee"):
        cudnn_precision.fp32_precision = setting
        compiled(**tensors())
    assert seen == ["tf32", "ieee"]


# ---- autocast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_casts_and_returns_its_dtype(dtype, compiled):
    torch._dynamo.reset()
    given = tensors()
    function = (
        torch.compile(functional.rnn, backend="aot_eager", fullgraph=True) if compiled else functional.rnn
    )
    with torch.autocast("cpu", dtype):
        mixed = given | dict(x=given["x"].to(dtype))  # as a Linear under autocast hands it on
        for arguments in (given, mixed, dict(given, precision="tf32x3")):
            y, hn = function(**arguments)
            assert y.dtype is hn.dtype is dtype
    cast = {name: t.detach().to(dtype).requires_grad_() for name, t in given.items()}
    expected = functional.rnn(**cast)
    torch.testing.assert_close((y, hn), expected, rtol=0, atol=0)
    got = gradients((y, hn), like(expected), given.values())
    assert all(g.dtype is torch.float32 for g in got)
    torch.testing.assert_close(
        got, tuple(g.float() for g in gradients(expected, like(expected), cast.values())), rtol=0, atol=0
    )


def test_autocast_leaves_fp64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.rnn(**tensors(torch.float64))[0].dtype is torch.float64
        with pytest.raises(ValueError, match="does not match weight dtype"):
            functional.rnn(**(tensors() | dict(x=torch.randn(T, B, I).double())))


# ---- good input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_dtype_throughout(dtype):
    given = tensors(dtype)
    y, hn = functional.rnn(**given)
    assert y.shape == (T, B, H) and hn.shape == (B, H) and y.dtype is hn.dtype is dtype
    grads = gradients((y, hn), like((y, hn)), given.values())
    assert all(g.dtype is dtype and g.shape == t.shape for g, t in zip(grads, given.values(), strict=True))


def test_empty_batch():
    y, hn = functional.rnn(**(tensors() | dict(x=torch.randn(T, 0, I), h0=torch.randn(0, H))))
    assert y.shape == (T, 0, H) and hn.shape == (0, H)


def test_defaults():
    given = tensors(torch.float64)  # fp32 would follow the setting, TF32 perhaps
    x, w_ih, w_hh = given["x"], given["w_ih"], given["w_hh"]
    y, hn = functional.rnn(x, w_ih, w_hh)
    # 3 products, their sum and an activation, 2^-53 each, of values below 8
    torch.testing.assert_close(y[0], torch.tanh(x[0] @ w_ih.T), rtol=0, atol=7 * 8 * 2.0**-53)
    assert torch.equal(hn, y[-1])
    y, hn = functional.rnn(x, w_ih, w_hh, reverse=True, nonlinearity="relu")
    torch.testing.assert_close(y[-1], torch.relu(x[-1] @ w_ih.T), rtol=0, atol=7 * 8 * 2.0**-53)
    assert torch.equal(hn, y[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(functional.rnn, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    given = tensors(torch.float64)
    ours, theirs = compiled(**given), functional.rnn(**given)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        gradients(ours, like(ours), given.values()), gradients(theirs, like(theirs), given.values())
    )


# ---- gru, lstm: the layers of torch's modules ----------------------------------------------------------------


@pytest.mark.parametrize("name, options", [("gru", {}), ("lstm", {}), ("lstm", dict(proj_size=2))])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_one_direction_of_torchs(name, options, bias, given):
    module = getattr(torch.nn, name.upper())(I, H, bias=bias, bidirectional=True, dtype=torch.float64, **options)
    x, P = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True), options.get("proj_size", H)
    states = [torch.randn(2, B, n, dtype=torch.float64, requires_grad=True) for n in ([P, H] if name == "lstm" else [P])]
    first = states if given else [torch.zeros_like(t) for t in states]
    y, last = module(x, tuple(first) if name == "lstm" else first[0])
    for direction, suffix in enumerate(("", "_reverse")):
        weights = dict(zip(("w_ih", "w_hh", "b_ih", "b_hh"), [getattr(module, n + suffix, None) for n in (
            "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]))  # fmt: skip
        if given:
            weights |= dict(states=tuple(t[direction] for t in states)) if name == "lstm" else dict(h0=states[0][direction])
        if options:
            weights["w_hr"] = getattr(module, "weight_hr_l0" + suffix)
        ours = flat(getattr(rnn_triton, name)(x, **weights, reverse=direction == 1))
        expected = [y[..., direction * P : (direction + 1) * P], *[t[direction] for t in flat(last)]]
        leaves = [x, *states, *module.parameters()]
        got = [(outputs, gradients(outputs, like(expected), leaves, retain_graph=True, allow_unused=True)) for outputs in (ours, expected)]
        # fp64: 2^-53 a rounding, some 100 of them on values below 10, and a decade to spare
        torch.testing.assert_close(*[[*o, *[torch.zeros_like(p) if t is None else t for t, p in zip(g, leaves)]] for o, g in got], rtol=0, atol=1e4 * 2.0**-53)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_gated_functions_compile_into_one_graph(name):
    torch._dynamo.reset()
    x, gates = torch.randn(T, B, I), {"gru": 3, "lstm": 4}[name]
    weights = torch.randn(gates * H, I), torch.randn(gates * H, H)
    function = getattr(rnn_triton, name)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for steps in (T, 3):
        torch.testing.assert_close(compiled(x[:steps], *weights), function(x[:steps], *weights))
