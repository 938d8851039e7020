"""op.py: values and gradients against the reference, and the ways torch has of calling or transforming an op.

Everything here holds for CPU tensors whatever runs them: torch's own RNN, or the kernels by interpreter.
"""

import contextlib
import gc
import itertools
import threading
import weakref

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support import ops
from support.problems import gradients, like, over_present, problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import rnn_triton
from rnn_triton import functional
from rnn_triton.cells import reference
from rnn_triton.launch import dispatch, gemm
from rnn_triton.op import autograd, network, on_cpu
from rnn_triton.op.gradients import DH0, DW_HH, DX
from rnn_triton.op.layers import Settings

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# T, B, I, H
SHAPES = [(1, 1, 1, 1), (1, 3, 5, 4), (3, 1, 5, 7), (4, 5, 7, 3), (3, 2, 17, 19), (2, 4, 16, 32)]
cells = pytest.mark.parametrize("cell", ops.CELLS)
QUICK = ["elman_tanh", "lstm"]  # one gate and one state, and several of both, where a case takes seconds
kinds = pytest.mark.parametrize(
    "layer",
    [ops.Layer(cell, reverse) for cell in (*ops.CELLS, "elman_relu") for reverse in (False, True)],
    ids=lambda layer: layer.cell.name + "-reverse" * layer.reverse,
)

EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
SUBNORMAL = {torch.float16: 2.0**-24}  # the spacing near zero, where it is not far below anything here


def rnn(x, w_ih, w_hh, b_ih=None, b_hh=None, h0=None, nonlinearity="tanh", reverse=False):
    precision = "ieee" if x.dtype is torch.float32 else None
    return functional.rnn(
        x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity=nonlinearity, reverse=reverse, precision=precision
    )


def assert_close(actual, expected, T=8):
    """Within some EPS of the largest value for each of T dependent steps, times 2 to spare.

    The errors of the steps add up. Each is that of rounding h, da and the result (3 EPS), and of accumulating
    K <= 64 products (sqrt(K) EPS = 8 EPS), which happens in fp32 for bf16 and fp16 and does not count there.
    """
    for a, e in zip(actual, expected, strict=True):
        per_step = {2: 3, 4: 3 + 8, 8: 3 + 8}[a.element_size()]
        atol = (
            2 * T * per_step * EPS[a.dtype] * e.abs().max().item() + SUBNORMAL.get(a.dtype, 0)
            if e.numel()
            else 0
        )
        torch.testing.assert_close(a, e.to(a.dtype), rtol=0, atol=atol)


def in_fp64(tensors):
    return [t if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def check(tensors, layer=ops.Layer("elman_tanh"), given=None):  # noqa: B008
    """y, the last states and all gradients against the reference in fp64; `given`: which of them have a gradient."""
    exact = in_fp64(tensors)
    ours, theirs = layer.ours(*tensors), layer.theirs(*exact)
    assert_close(ours, theirs)
    cotangents = [c if given is None or n in given else None for n, c in enumerate(like(ours))]
    assert_close(gradients(ours, cotangents, tensors), gradients(theirs, in_fp64(cotangents), exact))


@pytest.fixture
def calls(monkeypatch):
    """Counts of the two runs."""
    counts = dict(forward=0, backward=0)
    for name in counts:
        for where in (on_cpu, dispatch):
            original = getattr(where, name)

            def counted(*arguments, original=original, name=name, **options):
                counts[name] += 1
                return original(*arguments, **options)

            monkeypatch.setattr(where, name, counted)
    return counts


# ---- values and gradients ----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, layer):
    check(problem(*shape, dtype=dtype, cell=layer.cell.name), layer)


@kinds
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("h0", [False, True])
@pytest.mark.parametrize("bias", [(False, False), (True, False), (False, True)])
def test_without_some_arguments(T, h0, bias, layer):
    check(problem(T, 3, 5, 7, bias=bias, h0=h0, cell=layer.cell.name), layer)


@kinds
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("given", [0, 1, -1])
def test_loss_of_y_or_one_state_alone(given, T, layer, monkeypatch):
    seen = []
    for where in (on_cpu, dispatch):
        original = where.backward
        monkeypatch.setattr(where, "backward", lambda *a, run=original, **k: seen.append(a[3:5]) or run(*a, **k))
    number = 1 + len(layer.cell.states)
    check(problem(T, 3, 5, 7, cell=layer.cell.name), layer, [given % number])
    dy, dlast = seen[0]
    assert [t is not None for t in (dy, *dlast)] == [n == given % number for n in range(number)]  # no tensor of zeros is made for the unused output


@pytest.mark.parametrize("reverse", [False, True])
def test_strided_and_expanded_inputs(reverse):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    leaves = [
        randn(3, 5, 8).requires_grad_(),  # batch first, and every second feature
        randn(7, 6).requires_grad_(),
        randn(6, 6).requires_grad_(),
        randn(1).requires_grad_(),
        randn(12).requires_grad_(),
        randn(6).requires_grad_(),
    ]
    x, w_ih, w_hh, b_ih, b_hh, h0 = leaves
    views = [x.transpose(0, 1)[..., ::2], w_ih.T[:, 2:6], w_hh.T, b_ih.expand(6), b_hh[::2], h0.expand(3, 6)]
    assert not any(v.is_contiguous() for v in views)
    ours, theirs = rnn(*views, reverse=reverse), reference.rnn(*views, reverse=reverse)
    assert_close(ours, theirs)
    for cotangents in (
        (randn(3, 5, 6).transpose(0, 1), randn(6).expand(3, 6)),
        (randn(1).expand(5, 3, 6), randn(6, 3).T),
    ):
        got = torch.autograd.grad(ours, leaves, cotangents, retain_graph=True)
        assert_close(got, torch.autograd.grad(theirs, leaves, cotangents, retain_graph=True))


@cells
@pytest.mark.parametrize("h0", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_batch(h0, dtype, cell, calls):
    tensors = problem(4, 0, 3, 5, h0=h0, dtype=dtype, cell=cell)
    y, *last = outputs = ops.Layer(cell).ours(*tensors)
    assert y.shape == (4, 0, 5) and all(t.shape == (0, 5) for t in last) and all(t.dtype is dtype for t in outputs)
    present = [t for t in tensors if t is not None]
    for t, g in zip(present, gradients(outputs, [o.detach() for o in outputs], tensors), strict=True):
        assert g.shape == t.shape and g.dtype is dtype and torch.equal(g, torch.zeros_like(t))
    assert calls == dict(forward=0, backward=0)


def test_saturated_tanh():
    tensors = problem(4, 3, 5, 7)
    with torch.no_grad():
        tensors[0].mul_(200)
    y = rnn(*tensors)[0]
    assert (y.abs() > 0.999).float().mean() > 0.9
    check(tensors)


@kinds
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_go_through_as_in_torch(bad, layer):
    tensors = problem(4, 3, 5, 7, cell=layer.cell.name)
    with torch.no_grad():
        tensors[0][1, 2, 3] = bad
    ours, theirs = layer.ours(*tensors), layer.theirs(*tensors)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    cotangents = [torch.ones_like(t) for t in ours]
    torch.testing.assert_close(
        gradients(ours, cotangents, tensors), gradients(theirs, cotangents, tensors), equal_nan=True
    )


@pytest.mark.parametrize("dtype, B", [(torch.bfloat16, 150), (torch.float16, 1100)])
def test_16_bit_bias_gradient_accumulates_in_fp32(dtype, B):
    T = 2  # T * B ones, of which a 16-bit sum stalls at 256 (bf16) or 2048 (fp16)
    x, w_ih, w_hh, b_ih, _, _ = problem(T, B, 1, 1, bias=(True, False), h0=False, dtype=dtype)
    x, w_ih, w_hh = torch.ones_like(x), torch.ones_like(w_ih), torch.zeros_like(w_hh)
    y, _ = rnn(x, w_ih, w_hh, b_ih, nonlinearity="relu")
    (db,) = torch.autograd.grad(y.sum(), b_ih)
    assert db.item() == torch.tensor(float(T * B), dtype=dtype).item()


@pytest.mark.parametrize("dtype, big", [(torch.bfloat16, 256), (torch.float16, 2048)])
@pytest.mark.parametrize("reverse", [False, True])
def test_16_bit_dh_accumulates_in_fp32(dtype, big, reverse):
    # dh = da W_hh + dy = (big + 1) - big, where big + 1 is not a number of this dtype
    x = torch.ones(2, 1, 2, dtype=dtype, requires_grad=True)
    y, _ = rnn(
        x, torch.eye(2, dtype=dtype), torch.ones(2, 2, dtype=dtype), nonlinearity="relu", reverse=reverse
    )
    first, last = ([-big, -big], [big, 1])
    dy = torch.tensor([[last], [first]] if reverse else [[first], [last]], dtype=dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx[-1 if reverse else 0].tolist() == [[1, 1]]


@kinds
@pytest.mark.parametrize("grad", [False, True])
def test_last_states_have_memory_of_their_own(grad, layer):
    with torch.set_grad_enabled(grad):
        outputs = layer.ours(*problem(1, 2, 3, 4, cell=layer.cell.name))
    assert len({t.untyped_storage().data_ptr() for t in outputs}) == len(outputs)
    assert all(t.is_contiguous() for t in outputs)


@cells
def test_bitwise_repeatable(cell):
    tensors = problem(5, 3, 7, 9, dtype=torch.float32, cell=cell)

    def run():
        outputs = ops.Layer(cell).ours(*tensors)
        return *outputs, *gradients(outputs, like(outputs), tensors)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


# ---- what is saved and what is computed --------------------------------------------------------------------


@cells
def test_saves_inputs_and_y_only(cell):
    tensors = problem(4, 3, 5, 7, cell=cell)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, *_ = ops.Layer(cell).ours(*tensors)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in (*tensors, y)}


@pytest.mark.interpret
@pytest.mark.parametrize("T, h0", [(4, True), (4, False), (1, True), (1, False)])
def test_frozen_arguments_cost_no_gemm(T, h0, monkeypatch):
    products = []
    original = gemm.matmul
    monkeypatch.setattr(
        gemm, "matmul", lambda a, b, p: products.append((a.shape, b.shape)) or original(a, b, p)
    )
    full = gradients(rnn(*(t := problem(T, 3, 5, 7, h0=h0))), [None, t[0].new_ones(3, 7)], t)
    full = dict(zip([i for i, v in enumerate(t) if v is not None], full, strict=True))
    cost = [1, 1, (T > 1) + h0, 0, 0, 1]  # products for x, w_ih, w_hh (two terms), b_ih, b_hh, h0
    for count in range(1, len(full)):
        for wanted in itertools.combinations(full, count):
            tensors = [v if v is None else v.detach().requires_grad_(i in wanted) for i, v in enumerate(t)]
            products.clear()
            got = gradients(rnn(*tensors), [None, t[0].new_ones(3, 7)], tensors)
            assert len(products) == sum(cost[i] for i in wanted)
            assert all(torch.equal(g, full[i]) for g, i in zip(got, wanted, strict=True))


@pytest.mark.interpret
def test_weight_gradient_does_not_copy_y(monkeypatch):
    bases = []
    original = gemm.matmul
    monkeypatch.setattr(
        gemm, "matmul", lambda a, b, p: bases.append(b.untyped_storage().data_ptr()) or original(a, b, p)
    )
    for reverse in (False, True):
        x, w_ih, w_hh, *_ = problem(5, 3, 4, 7)
        y, _ = rnn(x.detach(), w_ih.detach(), w_hh, reverse=reverse)
        y.sum().backward()
        assert bases == [y.untyped_storage().data_ptr()]
        bases.clear()


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **kwargs or {})


def global_state():
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.rnn.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_one_op_each_way_no_host_sync_no_state_change(dtype, reverse):
    tensors = problem(4, 3, 5, 7, dtype=dtype)
    before = global_state()
    versions, values = [t._version for t in tensors], [t.detach().clone() for t in tensors]
    with Recorder() as recorder:
        y, hn = rnn(*tensors, reverse=reverse)
        forward = list(recorder.calls)
        torch.autograd.grad((y, hn), tensors, (torch.ones_like(y), torch.ones_like(hn)))
    ours = [f for f in recorder.calls if f.namespace == "rnn_triton"]
    # detach: of y, to save it
    assert {str(f) for f in forward} == {"rnn_triton.forward.default", "aten.detach.default"}
    assert ours == [torch.ops.rnn_triton.forward.default, torch.ops.rnn_triton.backward.default]
    with Recorder() as inside:  # the launches themselves: the ops below the level that the first recorder saw
        tensors_ = [t.detach() for t in tensors]
        y, hn = ops.run_forward(*tensors_, "tanh", reverse, None)
        ops.run_backward(tensors_, y, y, hn, ops.ALL, "tanh", reverse)
    assert not {"_local_scalar_dense", "item", "nonzero"} & {f.overloadpacket.__name__ for f in inside.calls}
    assert global_state() == before
    assert [t._version for t in tensors] == versions
    assert all(torch.equal(a, b) for a, b in zip(tensors, values))


# What must see a call of the ops, though eager mode calls their bodies where nothing does


def calls_of(surroundings, tensors):
    """The ops that the dispatcher is asked for in a call and its backward pass, in some surroundings"""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "backward"):
            run = getattr(network, name)
            patch.setattr(network, name, lambda *a, name=name, run=run: seen.append(name) or run(*a))
        with surroundings:
            outputs = rnn(*tensors)
            gradients(outputs, [torch.ones_like(o) for o in outputs], tensors)
    return seen


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "mode", [Recorder, FunctionMode, lambda: FlopCounterMode(display=False), lambda: torch.profiler.profile(), FakeTensorMode]
)
def test_modes_see_the_ops(mode):
    tensors = problem(2, 3, 5, 7)
    assert calls_of(contextlib.nullcontext(), tensors) == []
    surroundings = mode()
    if isinstance(surroundings, FakeTensorMode):
        tensors = [surroundings.from_tensor(t) for t in tensors]
    # torch runs no backward pass under a mode of functions
    assert calls_of(surroundings, tensors) == (["forward"] if mode is FunctionMode else ["forward", "backward"])


def test_tensors_that_the_dispatcher_must_see():
    """Transforms, subclasses, meta tensors, and tensors whose memory does not say all: negative views; and, of gradients, zeros without memory"""

    class Plain(torch.Tensor):
        pass

    x, *rest = [t.detach() for t in problem(2, 3, 5, 7)]
    assert not autograd._may_be_seen(x, None, *rest, torch.nn.Parameter(x))
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg() and torch.equal(negative, x)
    special = [negative, x.as_subclass(Plain), x.to("meta"), x.to_sparse(), torch._efficientzerotensor(x.shape, dtype=x.dtype)]
    assert all(autograd._may_be_seen(t, *rest) and autograd._may_be_seen(t, t) for t in special)
    seen = []
    for transform in (torch.func.grad, torch.vmap):
        transform(lambda t: seen.append(autograd._may_be_seen(x)) or t.sum())(x[0, 0, 0] if transform is torch.func.grad else x)
    assert seen == [True, True]
    y, _ = rnn(x.clone().requires_grad_(), *rest)
    with pytest.MonkeyPatch.context() as patch:  # compiled autograd traces the backward pass
        op = autograd.ops.backward
        patch.setattr(autograd.ops, "backward", lambda *arguments: seen.append("op") or op(*arguments))
        y.sum().backward(retain_graph=True)
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        y.sum().backward()
        assert seen == [True, True, "op"]
    assert torch.equal(rnn(negative, *rest)[0], rnn(x, *rest)[0])
    assert type(rnn(x.as_subclass(Plain), *rest)[0]) is Plain
    x.requires_grad_()
    for which in (0, 1):
        o = rnn(x, *rest)[which]
        (dx,) = torch.autograd.grad(o, x, torch._efficientzerotensor(o.shape, dtype=o.dtype))
        assert torch.equal(dx, torch.zeros_like(x))


def test_profilers_of_all_threads_see_the_ops():
    seen, tensors = [], problem(2, 3, 5, 7)
    options = torch.profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(experimental_config=options):
        thread = threading.Thread(target=lambda: seen.extend(calls_of(contextlib.nullcontext(), tensors)))
        thread.start()
        thread.join()
    assert seen == ["forward", "backward"]


@pytest.mark.parametrize("grad", [True, False])
def test_legacy_vmap_of_the_forward_pass(grad):
    x, *rest = problem(2, 3, 5, 7)
    xs = torch.stack([x, -x])
    with torch.set_grad_enabled(grad):
        found = torch._vmap_internals._vmap(lambda x: rnn(x, *rest))(xs)
    torch.testing.assert_close(found, torch.vmap(lambda x: reference.rnn(x, *rest))(xs))


def test_sparse_input_is_refused_by_the_dispatcher():
    x, *rest = [t.detach() for t in problem(2, 3, 5, 7)]
    for wrong in (x.to_sparse(), x.float().to_mkldnn()):
        others = [t.to(wrong.dtype) for t in rest]
        with pytest.raises(NotImplementedError, match="rnn_triton::forward"):
            rnn(wrong, *others)


# ---- autograd ----------------------------------------------------------------------------------------------


@kinds
def test_gradcheck(layer):
    function, tensors = over_present(layer.ours, problem(3, 2, 2, 3, cell=layer.cell.name))
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@cells
@pytest.mark.parametrize("h0", [False, True])
def test_gradcheck_batched(h0, cell):
    function, tensors = over_present(ops.Layer(cell).ours, problem(3, 2, 2, 3, h0=h0, cell=cell))
    assert torch.autograd.gradcheck(
        function, tensors, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        function, tensors, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True
    )


def penalty(function, tensors, order):
    """Gradients of a scalar that is itself made of derivatives of the given order."""
    value = sum(o.pow(2).sum() for o in function(*tensors))
    for _ in range(order):
        grads = gradients([value], [torch.ones_like(value)], tensors, create_graph=True)
        value = sum(g.pow(2).sum() for g in grads)
    return gradients([value], [torch.ones_like(value)], tensors)


@cells
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("frozen", [(), (1,), (0, 3, 4), (2, 5)])
def test_derivatives_of_derivatives(order, frozen, cell):
    layer, tensors = ops.Layer(cell), problem(3, 2, 4, 3, cell=cell)
    for i in frozen:
        tensors[i].requires_grad_(False)
    # fp64 sums of squares of sums, a thousandfold the unit roundoff per order
    torch.testing.assert_close(
        penalty(layer.ours, tensors, order),
        penalty(layer.theirs, tensors, order),
        rtol=1e-12 * 1000**order,
        atol=1e-12,
    )


@pytest.mark.parametrize("given", [(True, False), (False, True)])
def test_double_backward_of_y_or_hn_alone(given):
    tensors = problem(3, 2, 4, 3)

    def twice(function):
        outputs = function(*tensors)
        cotangents = [o.detach() if g else None for o, g in zip(outputs, given)]
        grads = gradients(outputs, cotangents, tensors, create_graph=True)
        return gradients(grads, like(grads), tensors)

    torch.testing.assert_close(twice(rnn), twice(reference.rnn), rtol=1e-9, atol=1e-12)


def test_create_graph_gives_the_same_gradients():
    tensors = problem(4, 3, 5, 7, dtype=torch.float32)
    outputs = rnn(*tensors)
    plain = gradients(outputs, like(outputs), tensors, retain_graph=True)
    again = gradients(outputs, like(outputs), tensors, retain_graph=True)
    graphed = gradients(outputs, like(outputs), tensors, create_graph=True)
    for a, b, c in zip(plain, again, graphed, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and c.requires_grad


def test_y_edited_in_place_is_an_error_not_a_wrong_gradient():
    tensors = problem(4, 3, 5, 7)
    y, hn = rnn(*tensors)
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y, hn = rnn(*tensors)
    hn += 1
    torch.testing.assert_close(
        gradients([y, hn], [None, torch.ones_like(hn)], tensors),
        gradients(reference.rnn(*tensors), [None, torch.ones_like(hn)], tensors),
    )


def test_checkpoint_and_saved_tensor_hooks():
    tensors = problem(4, 3, 5, 7)
    expected = gradients(rnn(*tensors), like(rnn(*tensors)), tensors)
    outputs = checkpoint(rnn, *tensors, use_reentrant=False)
    assert all(map(torch.equal, gradients(outputs, like(outputs), tensors), expected))
    with torch.autograd.graph.save_on_cpu():
        outputs = rnn(*tensors)
    assert all(map(torch.equal, gradients(outputs, like(outputs), tensors), expected))


def second_derivatives(tensors, surroundings):
    with surroundings():
        return penalty(rnn, tensors, 1)


def of_tangents(tensors, surroundings):
    """Tangents, and the gradients of those, of a call in some surroundings"""
    with surroundings(), forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[0], torch.cos(tensors[0]))
        tangent = forward_ad.unpack_dual(rnn(dual, *tensors[1:])[0]).tangent
        return [tangent, *torch.autograd.grad(tangent.sum(), tensors[1])]


class Checkpointed:
    """In place of `rnn`: a call under a checkpoint"""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        plain = rnn
        self.patch.setitem(globals(), "rnn", lambda *t: checkpoint(plain, *t, use_reentrant=False))

    def __exit__(self, *_):
        self.patch.undo()


@pytest.mark.parametrize("derivative", [second_derivatives, of_tangents])
@pytest.mark.parametrize("surroundings", [torch.autograd.graph.save_on_cpu, Checkpointed])
def test_derivatives_under_hooks_of_saved_tensors(derivative, surroundings):
    tensors = problem(4, 3, 5, 7)
    expected = derivative(tensors, contextlib.nullcontext)
    torch.testing.assert_close(derivative(tensors, surroundings), expected)
    with surroundings():
        before = torch._C._autograd._top_saved_tensors_default_hooks(False)
        derivative(tensors, contextlib.nullcontext)
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) == before


def test_autocast_does_not_round_derivatives_of_gradients():
    tensors = problem(4, 3, 5, 7, dtype=torch.float32)

    def second(surroundings):
        value = sum(o.pow(2).sum() for o in rnn(*tensors))
        value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, tensors, create_graph=True))
        with surroundings:
            return torch.autograd.grad(value, tensors)

    assert all(map(torch.equal, second(torch.autocast("cpu", torch.bfloat16)), second(contextlib.nullcontext())))
    tensors = [t.detach() for t in tensors]

    def pushed(surroundings):
        with surroundings:  # of what is not cast: the op itself
            tangents = [torch.cos(t) for t in tensors]
            return autograd._Function(reference.rnn, tensors).push_forward(tangents)

    assert all(map(torch.equal, pushed(torch.autocast("cpu", torch.bfloat16)), pushed(contextlib.nullcontext())))


def test_derivatives_of_gradients_of_meta_tensors():
    tensors = [t.detach().to("meta").requires_grad_() for t in problem(4, 3, 5, 7)]
    assert [g.shape for g in penalty(rnn, tensors, 1)] == [t.shape for t in tensors]
    with forward_ad.dual_level():
        y, _ = rnn(forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0])), *tensors[1:])
        assert forward_ad.unpack_dual(y).tangent.shape == y.shape


@pytest.mark.parametrize("derivative", [second_derivatives, of_tangents])
def test_derivatives_leave_nothing_behind(derivative):
    """without the garbage collector: no cycle of references holds tensors"""
    derivative(problem(4, 3, 5, 7), contextlib.nullcontext)  # the first call of torch.func.vjp leaves a cycle of its own
    tensors = problem(4, 3, 5, 7)
    gc.collect()
    gc.disable()
    try:
        derivative(tensors, contextlib.nullcontext)
        left = [weakref.ref(t) for t in tensors]
        del tensors
        assert not any(ref() is not None for ref in left)
    finally:
        gc.enable()


def test_modes_without_gradients():
    tensors = problem(4, 3, 5, 7)
    expected = rnn(*tensors)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = rnn(*tensors)
        assert all(map(torch.equal, outputs, expected)) and not any(o.requires_grad for o in outputs)


def test_no_signature_is_inspected(monkeypatch):
    monkeypatch.setattr(torch.autograd.function.inspect, "signature", None)  # 10 us a call, were it called
    tensors = problem(4, 3, 5, 7)
    outputs = rnn(*tensors)
    gradients(outputs, like(outputs), tensors)


def test_backward_under_autocast_keeps_the_dtype():
    tensors = problem(4, 3, 5, 7, dtype=torch.float32)
    outputs = rnn(*tensors)
    cotangents = like(outputs)
    expected = gradients(outputs, cotangents, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(outputs, tensors, cotangents)
    assert all(map(torch.equal, got, expected))


# ---- forward mode and torch.func ---------------------------------------------------------------------------


def detached(tensors):
    return [t if t is None else t.detach() for t in tensors]


def same(transform, cell):
    """A transform of the op and of the reference."""
    layer, tensors = ops.Layer(cell), detached(problem(3, 2, 4, 5, cell=cell))
    torch.testing.assert_close(transform(layer.ours, *tensors), transform(layer.theirs, *tensors))


@cells
@pytest.mark.parametrize("grad", [True, False])
def test_dual_numbers(grad, cell):
    layer, tensors = ops.Layer(cell), detached(problem(3, 2, 4, 5, cell=cell))
    tangents = like(tensors)

    def tangents_of(function):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            outputs = function(*map(forward_ad.make_dual, tensors, tangents))
            return [forward_ad.unpack_dual(o).tangent for o in outputs]

    torch.testing.assert_close(tangents_of(layer.ours), tangents_of(layer.theirs))


@cells
def test_jvp_vjp_jacobians_and_hessian(cell):
    everything = tuple(range(len(problem(1, 1, 1, 1, cell=cell))))
    same(lambda f, *t: torch.func.jvp(f, tuple(t), tuple(like(t))), cell)
    same(lambda f, *t: torch.func.jacrev(f, argnums=everything)(*t), cell)
    same(lambda f, *t: torch.func.jacfwd(f, argnums=everything)(*t), cell)
    same(lambda f, *t: torch.func.jacrev(torch.func.jacfwd(lambda w: f(t[0], t[1], w, *t[3:])[0].sum()))(t[2]), cell)
    same(lambda f, *t: torch.func.hessian(lambda w: f(t[0], t[1], w, *t[3:])[0].pow(2).sum())(t[2]), cell)


@cells
def test_forward_mode_within_forward_mode(cell):
    for place in (0, 2):
        same(lambda f, *t: jacobian_twice(lambda w: f(*t[:place], w, *t[place + 1 :])[0].pow(2).sum())(t[place]), cell)  # noqa: B023


def jacobian_twice(function):
    return torch.func.jacfwd(torch.func.jacfwd(function))


def test_vjp_called_after_its_transform_has_ended():
    tensors = detached(problem(3, 2, 4, 5))

    def pulled(function):
        outputs, pull_back = torch.func.vjp(function, *tensors)
        first = pull_back(tuple(like(outputs)))
        with torch.no_grad():
            return first, pull_back(tuple(like(outputs)))

    torch.testing.assert_close(pulled(rnn), pulled(reference.rnn))


def test_no_grad_within_a_transform():
    tensors = detached(problem(3, 2, 4, 5))

    def gradient(function):
        def loss(x):
            with torch.no_grad():
                constant = function(x, *tensors[1:])[0]
            return (function(x, *tensors[1:])[0] * constant).sum()

        return torch.func.grad(loss)(tensors[0]), torch.vmap(torch.func.grad(loss))(
            torch.stack([tensors[0]] * 2)
        )

    torch.testing.assert_close(gradient(rnn), gradient(reference.rnn))


@pytest.mark.parametrize("reverse", [False, True])
def test_functional_call_of_gradients_and_penalties(reverse):
    def twice(f, *t):
        def loss(w):
            inner = torch.func.grad(lambda w: f(t[0], t[1], w, *t[3:], "tanh", reverse)[1].pow(2).sum())
            return inner(w).pow(2).sum()

        return torch.func.grad(loss)(t[2])

    torch.testing.assert_close(twice(rnn, *detached(problem(3, 2, 4, 5))), twice(reference.rnn, *detached(problem(3, 2, 4, 5))))


@kinds
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (2, 1)])
def test_vmap_over_data_joins_the_batch(in_dims, layer, calls):
    x, w_ih, w_hh, b_ih, b_hh, h0, *others = detached(problem(3, 2, 4, 5, cell=layer.cell.name))
    if in_dims[0] is not None:
        x = torch.stack(like([x] * 6), in_dims[0])
    if in_dims[1] is not None:
        h0 = torch.stack(like([h0] * 6), in_dims[1])

    def mapped(function):
        one = lambda x, h0: function(x, w_ih, w_hh, b_ih, b_hh, h0, *others)  # noqa: E731
        return torch.vmap(one, in_dims=in_dims)(x, h0)

    ours = mapped(layer.ours)
    assert calls == dict(forward=1, backward=0)
    torch.testing.assert_close(ours, mapped(layer.theirs))


@kinds
@pytest.mark.parametrize("h0", [False, True])
def test_per_sample_gradients_launch_once(layer, h0, calls):
    _, *weights = detached(problem(3, 2, 4, 5, h0=h0, cell=layer.cell.name))
    weights, others = weights[:4], weights[4:]
    xs = torch.stack(like([torch.empty(3, 2, 4, dtype=torch.float64)] * 6), 1)

    def per_sample(function):
        def loss(x, *weights):
            y, *last = function(x, *weights, *others)
            return y.pow(2).sum() + sum(t.sum() for t in last)

        gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))
        return torch.vmap(gradient, in_dims=(1, None, None, None, None))(xs, *weights)

    ours = per_sample(layer.ours)
    assert calls == dict(forward=1, backward=1)
    torch.testing.assert_close(ours, per_sample(layer.theirs))


@cells
def test_vmap_over_weights(cell, calls):
    layer = ops.Layer(cell)
    x, w_ih, *rest = detached(problem(3, 2, 4, 5, cell=cell))
    stacks = [torch.stack(like([t] * 3), 1) for t in rest]  # an ensemble: w_hh, biases and h0 of its own each

    def ensemble(function):
        return torch.vmap(lambda *t: function(x, w_ih, *t), in_dims=1)(*stacks)

    torch.testing.assert_close(ensemble(layer.ours), ensemble(layer.theirs))

    def gradient(function):
        one = torch.func.grad(lambda *t: function(x, w_ih, *t)[0].pow(2).sum(), argnums=tuple(range(len(stacks))))
        return torch.vmap(one, in_dims=1)(*stacks)

    torch.testing.assert_close(gradient(layer.ours), gradient(layer.theirs))


@cells
def test_nested_vmap(cell):
    layer = ops.Layer(cell)
    x, *rest = detached(problem(3, 2, 4, 5, cell=cell))
    xs = torch.stack([torch.stack(like([x] * 3, seed=s)) for s in range(4)])

    def nested(function):
        gradient = torch.func.grad(lambda x, *t: function(x, *t)[0].pow(2).sum(), argnums=tuple(range(1 + len(rest))))
        in_dims = (0, *[None] * len(rest))
        return torch.vmap(torch.vmap(gradient, in_dims), in_dims)(xs, *rest)

    torch.testing.assert_close(nested(layer.ours), nested(layer.theirs))


def test_vmap_of_an_empty_batch():
    x, *rest = detached(problem(3, 0, 4, 5))
    y, hn = torch.vmap(lambda x: rnn(x, *rest))(torch.stack([x] * 6))
    assert y.shape == (6, 3, 0, 5) and hn.shape == (6, 0, 5)


# ---- torch.compile, export and their kin -------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("cell", QUICK)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("frozen", [(), (1, 3)])
def test_compile_fullgraph(backend, frozen, cell):
    layer, tensors = ops.Layer(cell), problem(4, 3, 5, 7, cell=cell)
    for i in frozen:
        tensors[i].requires_grad_(False)

    def model(x, *rest):
        y, *last = layer.ours(x * 2, *rest)
        return y * 3, *[t + 1 for t in last]

    outputs = torch.compile(model, backend=backend, fullgraph=True)(*tensors)
    expected = model(*tensors)
    torch.testing.assert_close(outputs, expected)
    for given in itertools.product((True, False), repeat=len(expected)):
        if any(given):
            cotangents = [c if g else None for c, g in zip(like(expected), given)]
            torch.testing.assert_close(
                gradients(outputs, cotangents, tensors, retain_graph=True),
                gradients(expected, cotangents, tensors, retain_graph=True),
            )


@pytest.mark.usefixtures("fresh_dynamo")
@cells
def test_compile_with_dynamic_sizes_compiles_once(cell):
    layer = ops.Layer(cell)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer.ours, backend=backend, fullgraph=True, dynamic=True)
    for T, B in ((4, 3), (6, 2), (7, 5)):
        tensors = problem(T, B, 5, 7, cell=cell)
        outputs, expected = compiled(*tensors), layer.ours(*tensors)
        torch.testing.assert_close(outputs, expected)
        found, wanted = (gradients(o, like(expected), tensors) for o in (outputs, expected))
        torch.testing.assert_close(found, wanted)
    assert len(graphs) == 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("which", ["vmap", "vmap weights", "grad", "jvp"])
def test_compile_of_transforms(which):
    tensors = detached(problem(3, 2, 4, 5))
    x, w_ih, w_hh, *rest = tensors
    transform, arguments = {
        "vmap": (lambda f: torch.vmap(lambda x: f(x, w_ih, w_hh, *rest)), [torch.stack(like([x] * 3))]),
        "vmap weights": (
            lambda f: torch.vmap(lambda w: f(x, w_ih, w, *rest)),
            [torch.stack(like([w_hh] * 3))],
        ),
        "grad": (lambda f: torch.func.grad(lambda w: f(x, w_ih, w, *rest)[0].pow(2).sum()), [w_hh]),
        "jvp": (
            lambda f: lambda w, t: torch.func.jvp(lambda w: f(x, w_ih, w, *rest), (w,), (t,)),
            [w_hh, *like([w_hh])],
        ),
    }[which]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    expected = transform(reference.rnn)(*arguments)
    for each in ("aot_eager", backend):
        torch._dynamo.reset()
        compiled = torch.compile(transform(rnn), backend=each, fullgraph=True)
        torch.testing.assert_close(compiled(*arguments), expected)
    targets = {node.target for graph in graphs for node in graph.graph.nodes}
    assert (torch.ops.rnn_triton.forward.default in targets) == which.startswith("vmap")


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_of_an_ensemble_trains():
    x, w_ih, w_hh, *rest = detached(problem(3, 2, 4, 5))
    stack = torch.stack(like([w_hh] * 3)).requires_grad_()

    def gradient(function, run):
        y, hn = run(torch.vmap(lambda w: function(x, w_ih, w, *rest)))(stack)
        return torch.autograd.grad(y.pow(2).sum() + hn.sum(), stack)

    compiled = gradient(rnn, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled, gradient(reference.rnn, lambda f: f))


class Layer(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for i, t in enumerate(tensors[1:5]):
            self.register_parameter(f"p{i}", torch.nn.Parameter(t.detach().clone()))

    def forward(self, x, h0):
        return rnn(x, self.p0, self.p1, self.p2, self.p3, h0)


def test_export_with_dynamic_sizes():
    x, *_, h0 = tensors = detached(problem(4, 3, 5, 7))
    layer = Layer(tensors)
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    program = torch.export.export(layer, (x, h0), dynamic_shapes=dict(x={0: T, 1: B}, h0={0: B}))
    assert torch.ops.rnn_triton.forward.default in {n.target for n in program.graph.nodes}
    x, *_, h0 = problem(6, 2, 5, 7)
    outputs, expected = program.module()(x, h0), layer(x, h0)
    torch.testing.assert_close(outputs, expected)

    def penalty(outputs):  # in eager mode, through the registered autograd of the op
        (dx,) = torch.autograd.grad(outputs[0].pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), (x, h0))

    torch.testing.assert_close(penalty(outputs), penalty(expected))


@cells
def test_make_fx_records_the_op(cell):
    layer, tensors = ops.Layer(cell), detached(problem(3, 2, 4, 5, cell=cell))
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda *t: layer.ours(*t))(*tensors)
    assert torch.ops.rnn_triton.forward.default in {n.target for n in graph.graph.nodes}
    torch.testing.assert_close(graph(*tensors), layer.ours(*tensors))


@pytest.mark.thin(3)
@pytest.mark.parametrize("cell, reverse", [*itertools.product(QUICK, (False, True)), ("gru", False), ("leaky_tanh", True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(dtype, cell, reverse, requires_grad):
    layer = ops.Layer(cell, reverse)
    for h0, bias in ((True, (True, True)), (False, (False, False))):
        tensors = problem(3, 2, 4, 5, h0=h0, bias=bias, dtype=dtype, cell=layer.cell.name)
        tensors = tensors if requires_grad else detached(tensors)
        torch.library.opcheck(network.forward, (*layer.arguments(tensors), True))


# all of a cell of one gate, and what has all gradients of the others: opcheck takes seconds
CHECKED = [("elman_tanh", *c) for c in itertools.product([0, 1, 2, 4, 8, 16, 63], [None, 2], [4, 0])]
CHECKED += [(cell, 63, pieces, 4) for cell in ops.CELLS[1:] for pieces in (None, 2)] + [("lstm", 0, None, 4), ("leaky_tanh", 32, None, 4)]


@pytest.mark.thin(3)
@pytest.mark.parametrize("cell, needs, pieces, B", CHECKED)
def test_opcheck_backward(cell, needs, pieces, B):
    layer, tensors = ops.Layer(cell), detached(problem(3, B, 4, 5, cell=cell))
    y, *last = layer.ours(*tensors)
    wanted = [needs & (DX | DH0), needs & ~(DX | DH0)]
    nothing = [None] * len(last)
    for dy, dlast, given in ((y, last, True), (y, nothing, False), (None, [*nothing[1:], last[-1]], True)):
        x, weights, states, seed, *net = layer.arguments(tensors)
        states = states if given else []
        torch.library.opcheck(network.backward, (x, weights, states, seed, *net, [y], dy, dlast, wanted, pieces))


@cells
def test_meta_tensors(cell):
    tensors = [t.detach().to("meta").requires_grad_() for t in problem(3, 2, 4, 5, cell=cell)]
    y, *last = outputs = ops.Layer(cell).ours(*tensors)
    assert y.shape == (3, 2, 5) and all(t.shape == (2, 5) for t in last) and y.device.type == "meta"
    assert [g.shape for g in gradients(outputs, outputs, tensors)] == [t.shape for t in tensors]


# ---- networks ----------------------------------------------------------------------------------------------


def networks(T=3, B=2, I=3, H=4):
    """By name: (a network of ours, torch's with its weights, x), in fp64"""
    found, both = {}, dict(num_layers=2, bidirectional=True)
    for name, options in dict(layers=dict(num_layers=2), directions=dict(bidirectional=True), both=both).items():
        torch.manual_seed(1)
        ours, theirs = (library.RNN(I, H, **options, dtype=torch.float64) for library in (rnn_triton, torch.nn))
        theirs.load_state_dict(ours.state_dict())
        found[name] = ours, theirs, torch.randn(T, B, I, dtype=torch.float64)
    return found


NETWORKS = networks()
several = pytest.mark.parametrize("name", NETWORKS)


def of_reference(net, x, weights):
    """y of a module by the reference"""
    settings = Settings(True, True, "elman_tanh", "both" if net.bidirectional else "forward", None)
    return autograd._reference(x, weights, None, settings, 0)(x, *weights)[0]


@several
def test_vmap_keeps_nothing_that_no_gradient_needs(name, monkeypatch):
    net, _, x = NETWORKS[name]
    xs, seen = torch.stack([x, -x]), []
    expected = [net(x)[0], net(-x)[0]]
    monkeypatch.setattr(autograd, "_forward", lambda *a, run=autograd._forward: seen.append(a[5]) or run(*a))  # `keep`
    mapped = torch.vmap(lambda x: net(x)[0])
    with torch.no_grad():
        assert seen == []
        torch.testing.assert_close(mapped(xs), torch.stack(expected))  # of another batch, whose sums may have another order
        assert seen == [False]
        torch.func.grad(lambda x: mapped(x).sum())(xs)
        torch.func.jvp(mapped, (xs,), (xs,))
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(mapped(forward_ad.make_dual(xs, torch.cos(xs)))).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(mapped, (xs,), (torch.cos(xs),))[1])
    xs.requires_grad_()
    assert mapped(xs).requires_grad
    assert seen == [False, *[True] * 5]


@several
def test_y_that_is_no_part_of_what_is_kept_is_not_copied(name, monkeypatch):
    net, _, x = NETWORKS[name]
    copies, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t: copies.append(t) or clone(t))
    y, _ = net(x)
    assert copies == []
    expected = torch.autograd.grad(y.sum(), net.weight_hh_l0)
    y, _ = net(x)
    if name != "directions":  # y of the last layer is what is saved: of one layer
        y.detach().zero_()
        assert all(map(torch.equal, torch.autograd.grad(y.sum(), net.weight_hh_l0), expected))


TRANSFORMS = {
    "jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "jacfwd": lambda f, x, v: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x, v: torch.func.hessian(lambda x: f(x).pow(3).sum())(x),
    "grad of jvp": lambda f, x, v: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (v,))[1].pow(2).sum())(x),
}


@pytest.mark.parametrize("mapped", ["x", "weights"])
def test_vmap_of_nothing_under_dropout(mapped):
    net, _, x = NETWORKS["layers"]
    weights = [p.detach() for p in net.parameters()]
    settings = Settings(True, True, "elman_tanh", "forward", None, 100)

    def both(x, w):
        these = (x, [w, *weights[1:]], [], torch.tensor([3]), *settings)
        y, last, kept = network.forward(*these, True)
        dx, _, dweights = network.backward(*these, kept, y, last, [DX, DW_HH, DW_HH], None)
        return y, *last, dx, dweights[1]

    in_dims = (0, None) if mapped == "x" else (None, 0)
    expected = both(x, weights[0])
    for n in (0, 2):
        x_, w = (t if d is None else t.expand(n, *t.shape) for t, d in zip((x, weights[0]), in_dims))
        found = torch.vmap(both, in_dims)(x_, w)
        assert [t.shape for t in found] == [(n, *t.shape) for t in expected]


@several
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_forward_mode_over_vmap_of_data(name, transform):
    net, _, x = NETWORKS[name]
    weights = [p.detach() for p in net.parameters()]
    x = torch.stack([x, -x])[:, :2, :1]
    found, expected = (
        TRANSFORMS[transform](torch.vmap(f), x, torch.cos(x)) for f in (lambda x: net(x)[0], lambda x: of_reference(net, x, weights))
    )
    torch.testing.assert_close(found, expected)


@several
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_forward_mode_over_vmap_of_weights(name, transform):
    net, _, x = NETWORKS[name]
    weights = {name: p.detach() for name, p in net.named_parameters()}
    w = torch.stack([weights["weight_hh_l0"], -weights["weight_hh_l0"]])

    def ours(w):
        return torch.func.functional_call(net, weights | {"weight_hh_l0": w}, (x,))[0]

    def expected(w):
        return of_reference(net, x, [*(weights | {"weight_hh_l0": w}).values()])

    found, expected = (TRANSFORMS[transform](torch.vmap(f), w, torch.cos(w)) for f in (ours, expected))
    torch.testing.assert_close(found, expected)
