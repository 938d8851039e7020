"""Networks of several layers or directions as an operator (rnn_triton/stack.py): launches of several recurrences, by themselves
and with everything that autograd asks of them.  The kernels' side of them is in test_stack.py.

Every launch runs in the cooperative interpreter, or on a GPU.
"""

import functools
from math import inf

import pytest
import torch
from cooperative import cooperate
from support.grids import assert_close, bits
from support.memory import Allocations
from support.stacks import Stack, dropout_masks, example
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import rnn_triton
from rnn_triton import cells, functional
from rnn_triton.cells import reference
from rnn_triton.launch import dispatch, faults, gemm
from rnn_triton.launch.launcher import DoesNotCompile
from rnn_triton.launch.recurrence import Recurrence
from rnn_triton.op import autograd, dropout, network
from rnn_triton.op.gradients import DB, DH0, DW_HH, DW_IH, DX
from rnn_triton.op.layers import Layer, Settings, in_turn
from rnn_triton.plan import choose, sharing
from rnn_triton.plan.problem import ONE, Bundle

CPU = torch.device("cpu")
WEIGHTS = DW_IH | DW_HH | DB  # needed of a layer


def one_layer(x, layer, states, n):
    y, hn = functional.rnn(x, *layer[:4], *states, precision="tf32x3")
    return y, (hn,)


@pytest.fixture
def launches(monkeypatch):
    """Programs of each cooperative launch, in order.  In the interpreter each is run with all its programs alive."""
    seen, plain = [], Recurrence._launch

    def run(launch, tensors, out, *arguments):
        if out.is_cuda or not launch.engine.words:
            return plain(launch, tensors, out, *arguments)
        roles = dict(channels=("out_ptr",)) if launch.engine.waits else dict(poisoned=("out_ptr",))
        with cooperate(**roles, schedule="random", seed=1) as session:
            plain(launch, tensors, out, *arguments)
        seen.append(session.stats["programs"])

    monkeypatch.setattr(Recurrence, "_launch", run)
    with rnn_triton.overriding(regime="cta_group"):  # on groups, unless a test asks for another one
        yield seen


def rnn(x, layers, h0, precision=None, **options):
    """(y, hn) of functional.network, of weights layer by layer"""
    flat = [t for layer in layers for t in layer]
    y, (hn,) = functional.network(x, flat, [] if h0 is None else [h0], cells.named("elman_tanh"), precision=precision, **options)
    return y, hn


def layer_by_layer(f):
    """What f() gives where each layer of a network is a call of its own, as those of packed sequences are"""
    plain = functional.network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "network", lambda *given, **options: plain(*given, **{**options, "one": functional.layer}))
        return f()


def run(x, layers, h0, precision=None, **options):
    """y, hn, and the gradients of x, h0 and weights for cotangents of one"""
    y, hn = rnn(x, layers, h0, precision, **options)
    return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *[t for layer in layers for t in layer]])]


OPERATOR = [
    ("cta_group", 3, 1, 9, 24, torch.bfloat16, None, [6, 6]),
    ("one_cta", 3, 1, 9, 21, torch.bfloat16, None, [3, 3]),
    # x has more columns than the layers
    pytest.param("one_cta", 2, 1, 40, 21, torch.float32, "tf32", [2, 2], marks=pytest.mark.long),
    pytest.param("one_cta", 2, 2, 9, 21, torch.float32, "tf32", [2, 2, 2, 2], marks=pytest.mark.long),
    pytest.param("one_cta", 2, 2, 9, 21, torch.float64, None, [2, 2, 2, 2], marks=pytest.mark.long),
]


@pytest.mark.parametrize("regime, L, D, I, H, dtype, precision, programs", OPERATOR)
def test_operator(regime, L, D, I, H, dtype, precision, programs, device, launches):
    """y, hn and all gradients against torch.nn.RNN in fp64"""
    x, layers, h0, expected = example(L, D, I, H, dtype=dtype, device=device)
    with rnn_triton.overriding(regime=regime):
        results = run(x, layers, h0, precision, bidirectional=D == 2)
    faults.synchronize(device)
    assert launches == (programs if device == "cpu" else [])
    kind = {torch.bfloat16: "bf16", torch.float32: "tf32", torch.float64: "fp64"}[dtype]
    # a weight gradient sums T * B products of two rounded values; the second pass rounds as the first one did
    limit = Stack(2 * 3, 3, I, H, kind=kind, layers=L).tolerance
    assert_close(results, expected(), limit)


def of_gates(name, L, D, how="", T=3, B=3, I=9, H=24, dropped=0, compiled=False):
    """y, the last states, and the gradients of x, the first states and the weights, of a network of GRU or LSTM in bf16 by the operator;
    and the same by torch's module in fp64, of the same rounded values, without dropout"""
    torch.manual_seed(0)
    exact = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name](I, H, L, bidirectional=D == 2).bfloat16().double()
    number = len(cells.named(name).states)
    wide = [torch.randn(T, B, I), *torch.randn(number, L * D, B, H), *[p.detach() for p in exact.parameters()]]
    tensors = [t.bfloat16().requires_grad_() for t in wide]
    cotangents = [torch.randn(*shape).bfloat16() for shape in ((T, B, D * H), *[(L * D, B, H)] * number)]
    net = Settings(True, True, name, "both" if D == 2 else "forward", None, dropped, how == "recompute")
    seed = torch.tensor([3]) if dropped else None

    def ours(x, *others):
        y, last = autograd.network(x, others[number:], others[:number], seed, net)
        return y, *last

    run = torch.compile(ours, backend="aot_eager", fullgraph=True) if compiled else ours
    outputs = run(*tensors)
    found = [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    x, *states = leaves[: 1 + number]
    y, last = torch.func.functional_call(
        exact, dict(zip([n for n, _ in exact.named_parameters()], leaves[1 + number :])), (x, tuple(states) if number > 1 else states[0])
    )
    outputs = (y, *(last if number > 1 else (last,)))
    return found, [*outputs, *torch.autograd.grad(outputs, leaves, [c.double() for c in cotangents])]


@pytest.mark.interpret
@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("L, D, programs", [(2, 1, [4, 4]), (1, 2, [4, 4]), pytest.param(2, 2, [4] * 4, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["", "recompute", pytest.param("compiled", marks=pytest.mark.long)])
def test_gates_share_launches(name, L, D, programs, how, launches, monkeypatch):
    """with what they keep, which eager mode neither copies nor stacks"""
    stacked, together = [], network._together
    monkeypatch.setattr(network, "_together", lambda parts: stacked.append((parts, together(parts))) or stacked[-1][1])
    with rnn_triton.overriding(regime="cta_group", warps=4, units=16, block_b=8):
        found, expected = of_gates(name, L, D, how, compiled=how == "compiled")
    assert launches == programs
    # as in test_gated_launches.py: relative, in the Frobenius norm; bf16, of L layers
    limit = 4 * 2.0**-9 * (1 + cells.named(name).kept) ** 0.5 * (2 * L * 3 + 1) ** 0.5
    assert all((a.double() - e).norm() <= limit * e.norm() for a, e in zip(found, expected, strict=True))
    assert len(stacked) == (0 if how == "recompute" else len(programs) // 2)
    assert all((whole.data_ptr() == parts[0].data_ptr()) == (how == "") for parts, whole in stacked)


@pytest.mark.interpret
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_dropout_between_gates_does_not_depend_on_what_is_launched(name, launches):
    shared = of_gates(name, 2, 1, dropped=30000)[0]
    with rnn_triton.overriding(recurrences=1):
        alone = of_gates(name, 2, 1, dropped=30000)[0]
    assert launches == [4, 4, 2, 2, 2, 2]
    assert all((a - b).norm() <= 2.0**-7 * b.norm() for a, b in zip(shared, alone, strict=True))  # bf16, results in another order
    assert (shared[0] != of_gates(name, 2, 1)[0][0]).any()


@pytest.mark.interpret
def test_gradients_that_nobody_asks_for_are_not_there(launches):
    """The shapes of an op's results do not depend on what a launch carries: dc0 of an LSTM is there in any case"""
    x, dy = torch.randn(2, 3, 8), torch.randn(2, 3, 16)
    layer = Layer(torch.randn(64, 8), torch.randn(64, 16))
    call = network.Call(x, [layer], (), None, Settings(False, False, "lstm", "forward", "ieee"))
    with rnn_triton.overriding(regime="one_cta"):
        y, _, kept = call.forward(True)
        dx, dstates, dweights = call.backward([y, *kept], dy, [None, None], [DX, 0], None)
    assert dx.shape == x.shape and dstates == [None, None] and dweights == [None] * 3


@pytest.mark.interpret
def test_the_module_under_autocast(launches):
    """rnn_triton.RNN takes the one launch by itself; x, weights and h0 are cast, and gradients come back, as layer by layer."""
    torch.manual_seed(0)
    module = rnn_triton.RNN(9, 24, 2, batch_first=True)
    x, h0 = torch.randn(2, 1, 9, requires_grad=True), torch.randn(2, 2, 24, requires_grad=True)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            y, hn = module(x, h0)
        return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *module.parameters()])]

    found = results()
    assert launches == [4, 4]
    alone = layer_by_layer(results)
    assert launches == [4, 4, 2, 2, 2, 2]
    assert [t.dtype for t in found] == [t.dtype for t in alone] and found[0].dtype is torch.bfloat16
    assert_close(found, [t.double() for t in alone], Stack(1, 2, 9, 24).tolerance)


@pytest.mark.interpret
def test_wrong_weights_raise_what_they_do_layer_by_layer():
    module, x = rnn_triton.RNN(5, 8, 2, bidirectional=True), torch.randn(2, 3, 5)
    wrong = {
        "weight_hh_l0_reverse": torch.zeros(8, 7), "weight_ih_l1": torch.zeros(8, 8), "bias_ih_l1": torch.zeros(8).bfloat16(),
        "weight_ih_l1_reverse": torch.zeros(8, 16, dtype=torch.float64), "bias_hh_l0": torch.zeros(9),
    }  # fmt: skip
    for name, tensor in wrong.items():
        raised = []
        for run in (lambda f: f(), layer_by_layer):
            with pytest.raises((ValueError, RuntimeError)) as error:
                run(lambda: torch.func.functional_call(module, {name: tensor}, x))  # noqa: B023
            raised.append((error.type, str(error.value)))
        assert raised[0] == raised[1], name


@pytest.mark.long
@pytest.mark.interpret
def test_operator_in_several_launches(monkeypatch, launches):
    """runs of two and one layers, with dropout between them, too"""
    monkeypatch.setattr(network, "launches", lambda *given: (Bundle(2, True, given[3]), ONE))
    x, layers, h0, expected = example(3, 1, 9, 24)
    results = run(x, layers, h0)
    assert launches == [4, 2, 2, 4]
    assert_close(results, expected(), Stack(6, 3, 9, 24, layers=3).tolerance)
    torch.manual_seed(1)
    again = run(x, layers, h0, dropout=0.5)
    assert not torch.equal(again[0], results[0])
    torch.manual_seed(1)
    assert torch.equal(rnn(x, layers, h0, dropout=0.5)[0], again[0])


@pytest.mark.interpret
def test_masks_do_not_depend_on_what_is_launched(launches, monkeypatch):
    """nor the gradients: each pass may have launches of its own"""
    x, layers, h0, _ = example(3, 1, 9, 16, T=2, B=2, dtype=torch.float32)
    weights = [t.detach() for layer in layers for t in layer]
    given = x.detach(), weights, [h0.detach()], torch.tensor([7])
    net = Settings(True, True, "elman_relu", "forward", "tf32x3", 30000)
    found = []
    for parts in ((Bundle(3, True, True),), (Bundle(2, True, True), ONE), (ONE, Bundle(2, True, True)), (ONE,) * 3):
        monkeypatch.setattr(network, "launches", lambda *_, parts=parts: parts)
        y, last, kept = network.forward(*given, *net, True)
        dx, dstates, dweights = network.backward(*given, *net, kept, y, last, [DX | DH0, *[WEIGHTS] * 3], None)
        found.append([y, *last, *kept, dx, *dstates, *dweights])
    for other in found[1:]:
        assert_close(other, [t.double() for t in found[0]], 1e-5)


@pytest.mark.long
@pytest.mark.interpret
def test_gradients_with_dropout_are_those_of_the_masks(launches):
    """of x, h0 and all weights: the same network with its masks as constants, in fp64"""
    x, layers, h0, _ = example(2, 1, 9, 24, dtype=torch.float32)
    torch.manual_seed(3)
    results = run(x, layers, h0, "tf32x3", dropout=0.4)
    torch.manual_seed(3)
    case = Stack(3, 3, 9, 24, kind="tf32x3", dropped=dropout.count(0.4))
    masks = dropout_masks(case, seed=int(dropout.new_seed(CPU)))
    exact = [t.detach().double().requires_grad_() for t in (x, h0, *[t for layer in layers for t in layer])]
    below, states = exact[0], []
    for n in range(2):
        y, hn = reference.rnn(below, *exact[2 + 4 * n : 6 + 4 * n], exact[1][n])
        below = y * masks[0]
        states.append(hn)
    hn = torch.stack(states)
    found = torch.autograd.grad(y.sum() + hn.sum(), exact)
    assert_close(results, [y, hn, *found], Stack(6, 3, 9, 24, kind="tf32x3").tolerance)


@pytest.mark.interpret
@pytest.mark.long
def test_second_derivatives(launches):
    """create_graph: of the layers one after the other, with the same masks"""
    x, layers, h0, _ = example(2, 1, 5, 16, T=2, B=2, dtype=torch.float32)
    weights = [t for layer in layers for t in layer]

    def penalty(y, hn):
        tensors = [x, h0, *weights]
        g = torch.autograd.grad(y.square().sum() + hn.sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in g), tensors)

    torch.manual_seed(3)
    ours = penalty(*rnn(x, layers, h0, "tf32x3", dropout=0.3))
    torch.manual_seed(3)
    seed = dropout.new_seed(CPU)
    count = dropout.count(0.3)
    drop = lambda y, n: dropout.drop_by_mask(y, dropout.mask(y.shape, y.dtype, seed, n, count), count)  # noqa: E731
    y, (hn,) = in_turn(x, [Layer(*layer) for layer in layers], (h0,), 1, one=one_layer, between=drop)
    theirs = penalty(y, hn)
    assert_close(ours, [t.double() for t in theirs], 1e-4)  # first derivatives of fp32, differentiated once more


@pytest.mark.long
@pytest.mark.interpret
def test_derivatives_where_arguments_depend_on_each_other(launches):
    """Weights that layers share, h0 computed from x: the layers run again for create_graph, and each gets its own gradient"""
    g = torch.Generator().manual_seed(1)
    x, w = (torch.randn(*shape, generator=g).requires_grad_() for shape in ((1, 2, 16), (16, 16)))
    layers = [Layer(w, w)] * 2

    def gradients(create_graph):
        y, hn = rnn(x, [(w, w)] * 2, torch.cat([x, 2 * x]) * 0.1, "tf32x3", bias=False)
        return torch.autograd.grad(y.square().sum() + hn.sum(), [x, w], create_graph=create_graph)

    plain = gradients(False)
    assert_close(gradients(True), [t.double() for t in plain], 1e-5)  # both to a few roundings of fp32
    y, (hn,) = in_turn(x, layers, (torch.cat([x, 2 * x]) * 0.1,), 1, one=one_layer, between=lambda y, _: y)
    assert_close(plain, [t.double() for t in torch.autograd.grad(y.square().sum() + hn.sum(), [x, w])], 1e-5)


@pytest.mark.long
@pytest.mark.interpret
def test_a_backward_pass_under_other_overrides(launches):
    """that launches of several recurrences do not have: the layers one by one"""
    x, layers, h0, expected = example(2, 1, 9, 24)
    y, hn = rnn(x, layers, h0)
    assert launches == [4]
    with rnn_triton.overriding(protocol="counter"):
        found = torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *[t for layer in layers for t in layer]])
    assert launches == [4, 2, 2]
    assert_close([y, hn, *found], expected(), Stack(6, 3, 9, 24).tolerance)


@pytest.mark.interpret
def test_what_lanes_cannot_do_goes_layer_by_layer():
    """fp64: the same call, no launch of several recurrences"""
    x, layers, h0, expected = example(2, 1, 5, 16, T=2, B=2, dtype=torch.float64)
    bundle = []
    with pytest.MonkeyPatch.context() as patch:
        forward = dispatch.forward
        patch.setattr(dispatch, "forward", lambda *given, **k: bundle.extend(given[11:]) or forward(*given, **k))
        y, hn = rnn(x, layers, h0)
    assert_close([y, hn], expected()[:2], 1e-12)
    assert bundle == []


@pytest.mark.interpret
def test_what_goes_through_the_operator(launches):
    """Whatever surrounds a call: no batch, torch.func's transforms, forward mode, a trace; all layers share its launches there, too"""
    x, layers, h0, weights = small(1)
    module = lambda x: rnn(x, layers, h0, "tf32x3")[0]  # noqa: E731
    plain = module(x).detach()
    assert rnn(x[:, :0], layers, h0[:, :0], "tf32x3")[0].shape == (2, 0, 16)
    del launches[:]
    found = [torch.func.vmap(module)(torch.stack([x, x]))[1], torch.func.vjp(module, x)[0]]
    with forward_ad.dual_level():
        dual = module(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        found.append(forward_ad.unpack_dual(dual).primal)
    layers, h0 = [[w.detach() for w in layer] for layer in layers], h0.detach()
    found.append(torch.jit.trace(module, x.detach(), check_trace=False)(x))
    assert launches == [2] * 5  # the trace, and its first call
    assert_close(found, [plain.double()] * 4, 1e-5)


@pytest.mark.long
@pytest.mark.interpret
def test_what_is_kept_for_the_backward_pass(launches):
    """The arguments and y of every layer, in one tensor; with dropout the seed besides"""
    x, layers, h0, _ = example(3, 1, 9, 24)
    given = {t.data_ptr() for t in (x, h0, *[t for layer in layers for t in layer])}
    for p in (0.0, 0.5):
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            rnn(x, layers, h0, dropout=p)
        more = [n for at, n in kept.items() if at not in given]
        sync = 128 * 3 * 2  # a line for the error word and one for the counter of the one group of each layer
        assert sorted(more)[-1] <= 3 * x.shape[0] * x.shape[1] * 24 * 2 + sync + 128
        assert sorted(more)[:-1] == ([8] if p else [])
        with torch.no_grad():
            y, _ = rnn(x, layers, h0, dropout=p)
        assert y.untyped_storage().nbytes() == y.nbytes  # without autograd the layers below are freed


@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_peak_memory_of_a_train_step(p, launches, monkeypatch):
    """y and da of every layer, no more than four activations beside (the gradients of y and of x, a dropped y, a padded
    copy), and a few times the weights"""
    T, B, H, L = 1, 24, 24, 2
    x, layers, h0, _ = example(L, 1, H, H, T=T, B=B)
    weights = [t for layer in layers for t in layer]
    monkeypatch.setattr(autograd, "_may_be_seen", lambda *_: False)  # what an op allocates inside is not seen by a mode
    with Allocations() as memory:
        y, hn = rnn(x, layers, h0, dropout=p)
        torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *weights])
    activation = T * B * H * 2
    sync = 2 * 128 * L * 2 * 8  # of both launches, a line for a group and for each tile
    assert memory.peak <= (2 * L + 4) * activation + 6 * sum(t.nbytes for t in weights) + 4 * h0.nbytes + sync


# ---- what autograd asks for -----------------------------------------------------------------------------------------


def small(directions, **options):
    """A network of two layers that is quick to run, and its weights as a list"""
    sizes = {"T": 2, "B": 2, **options}
    x, layers, h0, _ = example(1 if directions == 2 else 2, directions, 5, 16, dtype=torch.float32, **sizes)
    return x, layers, h0, [t for layer in layers for t in layer]


def alone(f):
    """What f() gives with a launch for each layer and direction"""
    with rnn_triton.overriding(recurrences=1):
        return f()




@pytest.mark.interpret
@pytest.mark.parametrize("directions", [1, pytest.param(2, marks=pytest.mark.long)])
def test_what_is_not_asked_for_is_not_computed(directions, launches, monkeypatch):
    """Any subset of gradients, of y alone, h_n alone or both, twice: those of layers one by one; what needs none costs no
    product"""
    x, layers, h0, weights = small(directions)
    inputs = [x, h0, *weights]
    products = []
    plain = gemm.matmul
    monkeypatch.setattr(gemm, "matmul", lambda *given: products.append(given) or plain(*given))
    everything = alone(lambda: run(x, layers, h0, "tf32x3", bidirectional=directions == 2))[2:]
    launches.clear()
    # h0 has a product of its own in dw_hh
    for asked, number in (([0], 1), ([1], 2), ([2], 1), ([4], 0), ([7], 2), ([0, 5, 8], 1), (range(10), 1 + 2 + 2 + 2 * 2)):
        for i, t in enumerate(inputs):
            t.requires_grad_(i in asked)
        y, hn = rnn(x, layers, h0, "tf32x3", bidirectional=directions == 2)
        wanted = [inputs[i] for i in asked]
        first = torch.autograd.grad(y.sum() + hn.sum(), wanted, retain_graph=True)
        products.clear()
        again = torch.autograd.grad(y.sum() + hn.sum(), wanted, retain_graph=True)
        assert all(map(torch.equal, first, again)), asked
        assert len(products) == number, asked
        assert_close(first, [everything[i].double() for i in asked], 1e-5)
        parts = [torch.autograd.grad(t.sum(), wanted, retain_graph=True, allow_unused=True) for t in (y, hn)]
        sums = [sum(g for g in of if g is not None).double() for of in zip(*parts, strict=True)]
        assert_close(first, sums, 1e-5)
    assert set(launches) == {2}, "one launch a pass"


@pytest.mark.interpret
@pytest.mark.parametrize("directions, bias, state", [
    (1, False, False), (2, False, True), *(pytest.param(*c, marks=pytest.mark.long) for c in ((1, True, False), (2, True, False))),
])  # fmt: skip
def test_without_bias_or_state(directions, bias, state, launches):
    x, layers, h0, weights = small(directions)
    each = 4 if bias else 2
    layers = [layer[:each] for layer in layers]
    wanted = [x, *[t for layer in layers for t in layer]] + [h0] * state

    def results():
        y, hn = rnn(x, layers, h0 if state else None, "tf32x3", bias=bias, bidirectional=directions == 2)
        return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), wanted)]

    found = results()
    assert launches == [2, 2]
    assert_close(found, [t.double() for t in alone(results)], 1e-5)


@pytest.mark.interpret
@pytest.mark.parametrize("directions, p", [(1, 0.4), *(pytest.param(d, 0.0, marks=pytest.mark.long) for d in (1, 2))])
def test_batches_of_gradients(directions, p, launches):
    """is_grads_batched, vectorized jacobians and vmap of a backward pass: as one cotangent after the other"""
    x, layers, h0, _ = small(directions)
    y, hn = rnn(x, layers, h0, "tf32x3", bidirectional=directions == 2, dropout=p)
    assert launches == [2]
    cotangents = torch.randn(2, *y.shape)
    inputs = [x, h0, layers[0][1]]

    def of(c, **options):
        return torch.autograd.grad(y, inputs, c, retain_graph=True, allow_unused=True, **options)

    expected = [torch.stack(each).double() for each in zip(*map(of, cotangents), strict=True)]
    assert_close(of(cotangents, is_grads_batched=True), expected, 1e-5)
    assert_close(torch.func.vmap(of)(cotangents), expected, 1e-5)
    weighted = lambda x: (rnn(x, layers, h0, "tf32x3", bidirectional=directions == 2)[0] * cotangents).sum((1, 2, 3))  # noqa: E731
    jacobians = [torch.autograd.functional.jacobian(weighted, x, vectorize=v) for v in (True, False)]
    assert_close(jacobians[:1], [jacobians[1].double()], 1e-5)


@pytest.mark.interpret
@pytest.mark.parametrize("directions, p, create_graph", [
    (1, 0.4, True), *(pytest.param(*c, marks=pytest.mark.long) for c in ((2, 0.0, True), (1, 0.4, False), (1, 0.0, True))),
])  # fmt: skip
def test_checkpoint(directions, p, create_graph, launches):
    """Forgotten and computed again, with the masks of the first time; saved tensors are asked for once"""
    x, layers, h0, weights = small(directions)

    def penalty(call):
        torch.manual_seed(2)
        y, hn = call(lambda x, h0: rnn(x, layers, h0, "tf32x3", bidirectional=directions == 2, dropout=p), x, h0)
        found = torch.autograd.grad(y.square().sum() + hn.sum(), [x, *weights], create_graph=create_graph)
        if not create_graph:
            return found
        return torch.autograd.grad(sum(g.square().sum() for g in found), [x, *weights], allow_unused=True)

    plain = penalty(lambda f, *given: f(*given))
    again = penalty(functools.partial(checkpoint, use_reentrant=False))
    assert_close(again, [g.double() for g in plain], 1e-5)


@pytest.mark.interpret
def test_a_checkpoint_that_is_computed_again_by_other_launches(launches):
    x, layers, h0, _ = small(1)

    def call(x):
        return rnn(x, layers, h0, "tf32x3", dropout=0.4)[0]

    torch.manual_seed(2)
    (expected,) = torch.autograd.grad(call(x).sum(), x)
    torch.manual_seed(2)
    y = checkpoint(call, x, use_reentrant=False)
    (found,) = alone(lambda: torch.autograd.grad(y.sum(), x))
    assert launches == [2, 2, 2, 1, 1, 1, 1]
    assert_close([found], [expected.double()], 1e-5)


@pytest.mark.interpret
@pytest.mark.parametrize("B, H", [pytest.param(2, 16, marks=pytest.mark.long), (1, 16), (1, 13)])
def test_results_may_be_changed_in_place(B, H, launches):
    """as torch's: they are nobody's views; only y of a single layer is needed by the backward pass"""
    for directions in (1, 2):
        x, layers, h0, _ = example(2 // directions, directions, 5, H, T=1, B=B, dtype=torch.float32)
        y, hn = rnn(x, layers, h0, "tf32", bidirectional=directions == 2)
        assert not y._is_view() and not hn._is_view()
        hn.mul_(2)
        torch.autograd.grad(hn.sum(), [x], retain_graph=True)
        before = torch.autograd.grad(y.sum(), [x], retain_graph=True)
        y.mul_(2)
        if directions == 2:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(y.sum(), [x])
        else:
            assert torch.equal(*torch.autograd.grad(y.sum() / 2, [x]), *before)
        with torch.no_grad():
            for t in rnn(x, layers, h0, "tf32", bidirectional=directions == 2):
                t.add_(1)
    assert set(launches) == {2}


# ---- torch.compile, opcheck -----------------------------------------------------------------------------------------


@pytest.mark.interpret
@pytest.mark.parametrize("directions, p, dynamic", [
    (1, 0.4, True), *(pytest.param(*c, marks=pytest.mark.long) for c in ((1, 0.4, False), (2, 0.0, True))),
])  # fmt: skip
def test_compiled(directions, p, dynamic, launches):
    """One opaque op each way, whatever shares a launch; any length and batch; the eager results"""
    x, layers, h0, weights = small(directions, T=3, B=4)  # sizes that nothing else has
    f = functools.partial(rnn, precision="tf32x3", bidirectional=directions == 2, dropout=p)
    compiled = torch.compile(lambda *given: f(*given), backend="aot_eager", fullgraph=True, dynamic=dynamic)

    def results(f, x, h0):
        torch.manual_seed(1)
        y, hn = f(x, layers, h0)
        return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *weights])]

    plain = results(f, x, h0)
    launches.clear()
    found = results(compiled, x, h0)
    assert launches == [2, 2]
    assert_close(found, [t.double() for t in plain], 1e-5)
    if dynamic:
        longer = [torch.cat([t, t], d).detach().requires_grad_() for t, d in ((x, 0), (h0, 1))]
        longer[0] = torch.cat([longer[0]] * 2, 1).detach().requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = results(compiled, *longer)
        assert_close(found, [t.double() for t in results(f, *longer)], 1e-5)
        torch.manual_seed(1)
        with torch.no_grad():
            assert_close(compiled(x, layers, h0), [t.double() for t in plain[:2]], 1e-5)


@pytest.mark.interpret
def test_exported(launches):
    """Gradients through a program that was exported as one without; any batch, none too; vmap over data and over weights"""
    x, layers, h0, _ = (t.detach() if isinstance(t, torch.Tensor) else t for t in small(1, T=3, B=4))
    module = rnn_triton.RNN(5, 16, 2, precision="tf32x3")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    batch = torch.export.Dim("B", min=0, max=64)
    program = torch.export.export(module, (x, h0), dynamic_shapes=({1: batch}, {1: batch})).module()
    for B in (4, 1, 0):
        given = x[:, :B].clone().requires_grad_(), h0[:, :B]
        found, expected = ([y, hn, *torch.autograd.grad(y.sum(), given[:1])] for y, hn in (program(*given), module(*given)))
        assert [t.shape for t in found] == [t.shape for t in expected]
        if B:
            assert_close(found, [t.double() for t in expected], 1e-5)
    samples = torch.randn(2, *x.shape)
    expected = torch.stack([module(x, h0)[0] for x in samples])
    assert_close([torch.func.vmap(lambda x: program(x, h0)[0])(samples)], [expected.double()], 1e-5)


@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize("p", [0.0, pytest.param(0.5, marks=pytest.mark.long)])
def test_vmap_of_the_ops(p, launches):
    """which compiled and exported programs are made of: as one sample after the other"""
    x, layers, h0, weights = (t.detach() if isinstance(t, torch.Tensor) else t for t in small(1))
    weights = [w.detach() for w in weights]
    seed = torch.tensor([3]) if p else None
    net = Settings(True, True, "elman_tanh", "forward", "tf32x3", dropout.count(p))
    xs, seconds = torch.stack([x, -x]), torch.stack([weights[5], 0.5 * weights[5]])

    def of(x, w_hh):
        call = x, [*weights[:5], w_hh, *weights[6:]], [h0], seed, *net
        y, last, kept = network.forward(*call, True)
        dx, dstates, dweights = network.backward(*call, kept, y, last, [DX | DH0, WEIGHTS, WEIGHTS], None)
        return y, *last, *kept, dx, *dstates, *dweights

    for dims, given in (((0, None), (xs, weights[5])), ((0, 0), (xs, seconds)), ((None, 0), (x, seconds))):
        each = [of(*[t if d is None else t[i] for t, d in zip(given, dims, strict=True)]) for i in range(2)]
        expected = [torch.stack(t).double() for t in zip(*each, strict=True)]
        assert_close(torch.func.vmap(of, dims)(*given), expected, 1e-5)


@pytest.mark.long
@pytest.mark.interpret
def test_batches_of_gradients_of_a_compiled_network(launches):
    x, layers, h0, _ = small(1)

    def some(x):
        return rnn(x, layers, h0, "tf32x3")[0][0, :, :2].sum(0)

    compiled = torch.compile(some, backend="aot_eager", fullgraph=True)
    rows, expected = (torch.autograd.functional.jacobian(f, x, vectorize=True) for f in (compiled, some))
    assert_close([rows], [expected.double()], 1e-5)


@pytest.mark.parametrize("directions, p", [(1, 0.0), (2, 0.0), (1, 0.5)])
def test_the_ops_without_kernels(directions, p):
    """on CPU tensors, as of a program that was exported on a GPU: torch's own operators, masks by torch's generator, the same
    in both passes"""
    x, layers, h0, expected = example(2, directions, 5, 8, T=3, B=2, dtype=torch.float64)
    weights = [t for layer in layers for t in layer]
    seed = torch.tensor([3]) if p else None
    net = Settings(True, True, "elman_tanh", "both" if directions == 2 else "forward", None, dropout.count(p))
    y, (hn,), _ = network.forward(x, weights, [h0], seed, *net, True)
    tensors = [x, h0, *weights]
    found = [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), tensors, retain_graph=True)]
    if not p:
        assert_close(found, expected(), 1e-12)
        return
    g = torch.autograd.grad(y.sum() + hn.sum(), tensors, create_graph=True)  # through the masks as constants
    assert_close(found[2:], g, 1e-12)
    assert not torch.equal(y, expected()[0]) and y.isfinite().all()
    ones = torch.ones(50, 4, 8, dtype=torch.float64)
    first, second = (dropout.drop(ones, seed, layer, dropout.count(p)) for layer in (0, 1))
    assert not torch.equal(first, second) and {0.0, 2.0} == set(first.unique().tolist()) == set(second.unique().tolist())
    assert 0.4 < (first != 0).double().mean() < 0.6


@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize("directions, bias, p", [(1, True, 0.4), (2, False, 0.0)])
def test_opcheck(directions, bias, p, launches):
    x, layers, h0, _ = small(directions)
    weights = [t for layer in layers for t in layer[: 4 if bias else 2]]
    x_, h0_, *weights_ = [t.detach() for t in (x, h0, *weights)]
    dropped = dropout.count(p)
    seed = torch.tensor([3]) if dropped else None
    net = Settings(bias, bias, "elman_tanh", "both" if directions == 2 else "forward", "tf32", dropped)
    torch.library.opcheck(network.forward, (x, weights, [h0], seed, *net, True))
    torch.library.opcheck(network.forward, (x_, weights_, [h0_], seed, *net, False))
    y, last, kept = network.forward(x_, weights_, [h0_], seed, *net, True)
    ys = [y] if directions == 2 else kept
    for needs in ([DX | DH0, WEIGHTS, WEIGHTS], [DH0, DW_HH, DB]):
        torch.library.opcheck(network.backward, (x_, weights_, [h0_], seed, *net, ys, y, last, needs, None))


@pytest.mark.interpret
def test_overrides(launches):
    """recurrences=1: a launch for each; what the backward pass does not have is no matter to inference"""
    x, layers, h0, _ = small(1)
    y, _ = alone(lambda: rnn(x, layers, h0, "tf32"))
    assert launches == [1, 1]
    with torch.no_grad(), rnn_triton.overriding(w_ih_home="gemm"):
        rnn(x, layers, h0, "tf32")
    assert launches == [1, 1] * 2
    x, layers, h0, _ = example(1, 2, 5, 16, T=1, B=1, dtype=torch.float64)
    with torch.no_grad(), rnn_triton.overriding(regime="one_cta"):
        rnn(x, layers, h0, bidirectional=True, dropout=0.5)  # there is nothing to drop
    assert launches[4:] == [2]
    for wrong in (0, "2"):
        with pytest.raises(ValueError, match="recurrences must be an integer of at least 1"), rnn_triton.overriding(recurrences=wrong):
            pass


@pytest.mark.interpret
@pytest.mark.parametrize("what", ["the bottom launch", "an upper launch", "the backward pass"])
def test_launches_that_do_not_compile_give_way(what, launches, monkeypatch):
    """to others, of fewer layers, and in the end to a layer each; the results are those of layers apart"""
    x, layers, h0, _ = example(4, 1, 5, 16, T=2, B=2, dtype=torch.float32)
    weights = [t for layer in layers for t in layer]
    monkeypatch.setattr(choose, "_rejected", {})
    shared = sharing._shared
    monkeypatch.setattr(sharing, "_shared", lambda of, bundle, *given: inf if bundle.count > 2 else shared(of, bundle, *given))
    sharing._launches.cache_clear()
    plain, refused = Recurrence._launch, []

    def fails(launch):
        if launch.bundle.count == 1:
            return False
        forward = launch.problem.direction == "forward"
        return {"the bottom launch": forward and launch.first == 0, "an upper launch": forward and launch.first > 0,
                "the backward pass": not forward}[what]  # fmt: skip

    def run(launch, *arguments):
        if fails(launch):
            refused.append(launch.problem)
            raise DoesNotCompile("too large")
        return plain(launch, *arguments)

    monkeypatch.setattr(Recurrence, "_launch", run)

    def results():
        y, hn = rnn(x, layers, h0, "tf32")
        return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *weights])]

    found = results()
    assert refused and 1 in launches
    assert_close(found, [t.double() for t in alone(results)], 1e-3)
    del refused[:]
    results()
    assert not refused, "what is known not to compile is not tried again"
    sharing._launches.cache_clear()


@pytest.mark.interpret
def test_a_fault_names_the_layer_of_the_network(launches, monkeypatch):
    monkeypatch.setattr(network, "launches", lambda *_: (ONE, Bundle(2, True)))
    x, layers, h0, _ = example(3, 1, 5, 16, T=1, B=1, dtype=torch.float32)
    dispatch._launch_for.cache_clear()
    rnn(x, layers, h0, "tf32")
    names = [text for text in faults._descriptions.values() if "2 recurrences" in text]
    assert names and names[-1].endswith("2 recurrences (layer 1, layer 2)")


# ---- on a GPU only --------------------------------------------------------------------------------------------------

CUDA = torch.device("cuda")


def cuda_network(L, D, H, B=8, T=20, dtype=torch.bfloat16):
    x, layers, h0, expected = example(L, D, H, H, T=T, B=B, dtype=dtype, device=CUDA)
    return x, layers, h0, expected


@pytest.mark.gpu
@pytest.mark.parametrize("L, D, H", [(2, 1, 128), (4, 1, 512), (8, 1, 1024), (9, 1, 1024), (2, 2, 512), (1, 2, 128)])
def test_networks(L, D, H):
    """y, hn and all gradients, by plans that the planner makes"""
    x, layers, h0, expected = cuda_network(L, D, H)
    results = run(x, layers, h0, bidirectional=D == 2)
    faults.synchronize(CUDA)
    assert_close(results, expected(), Stack(2 * 20, 8, H, H, layers=L).tolerance)


@pytest.mark.gpu
def test_bitwise_the_same():
    x, layers, h0, _ = cuda_network(4, 1, 512, T=200)
    first, *others = (run(x, layers, h0) for _ in range(10))
    faults.synchronize(CUDA)
    assert all(torch.equal(bits(a), bits(b)) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
def test_cuda_graph_with_dropout(monkeypatch):
    """Every replay draws another mask, the same for both passes: those of the seed it drew"""
    x, layers, h0, _ = cuda_network(2, 1, 256)
    run(x, layers, h0, dropout=0.5)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    drawn, new_seed = [], dropout.new_seed
    monkeypatch.setattr(dropout, "new_seed", lambda device: drawn.append(new_seed(device)) or drawn[-1])
    with torch.cuda.graph(graph):
        captured = run(x, layers, h0, dropout=0.5)
    seen = []
    for _ in range(3):
        graph.replay()
        faults.synchronize(CUDA)
        seen.append([t.clone() for t in captured])
        seed = drawn[0].clone()
        with monkeypatch.context() as patch:
            patch.setattr(dropout, "new_seed", lambda device, seed=seed: seed)
            expected = run(x, layers, h0, dropout=0.5)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(seen[-1], expected, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[1][0], seen[2][0])
    assert all(t.isfinite().all() for one in seen for t in one)


@pytest.mark.gpu
def test_peak_memory_against_torch(record_property):
    """of a train step of four layers; both are reported"""
    T, B, H, L = 512, 32, 512, 4
    x, layers, h0, _ = cuda_network(L, 1, H, B=B, T=T)
    theirs = torch.nn.RNN(H, H, L, device=CUDA, dtype=torch.bfloat16)

    def peak(step):
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def torch_step():
        y, hn = theirs(x, h0)
        torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *theirs.parameters()])

    found = peak(lambda: run(x, layers, h0)), peak(torch_step)
    for who, size in zip(("rnn_triton", "torch"), found, strict=True):
        record_property(f"peak_bytes_{who}", size)
    assert found[0] <= (2 * L + 4) * T * B * H * 2 + 2**24
