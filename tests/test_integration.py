"""What of PyTorch surrounds a module: autocast, DDP and FSDP2, torch's checks of an op; and that nothing waits for the GPU.

Kernels run by interpreter, or on a GPU, where a test takes `device`; the others are about what surrounds them.
torch.compile and export: tests/test_op.py and tests/test_modules.py.
"""

import contextlib
import copy
import functools
import io
import pickle
import warnings
import weakref

import pytest
import torch
from support import ops, ranks
from support.problems import problem
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import rnn_triton
from rnn_triton import checks
from rnn_triton.interpret import interpreter
from rnn_triton.launch import launcher
from rnn_triton.op import network
from rnn_triton.op.gradients import DH0, DX


def data(T, B, I, seed=0, **options):
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(seed)).to(**options)


class Model(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.rnn = rnn_triton.RNN(5, 7, **options)
        self.readout = torch.nn.Linear(7, 3, **options)

    def forward(self, x):
        y, hn = self.rnn(x * 2)
        return self.readout(y), hn


@pytest.mark.long
def test_opcheck_by_the_kernels(device):
    """torch's own checks of a custom operator: schema, fake tensors, autograd, AOT dispatch with dynamic sizes"""
    tensors = [t.detach().to(device).requires_grad_() for t in problem(2, 2, 3, 4)]
    forward = (*ops.arguments(tensors), True)
    torch.library.opcheck(network.forward, forward)
    x, weights, states, seed, *net = ops.arguments([t.detach() for t in tensors])
    y, (hn,), _ = network.forward(*forward)
    y, hn = y.detach(), hn.detach()
    torch.library.opcheck(network.backward, (x, weights, states, seed, *net, [y], y, [hn], ops.ALL, None))


# ---- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_autocast(name, dtype, device):
    """16-bit kernels and outputs; gradients of fp32 parameters and of fp32 x in fp32, close to fp64's"""
    T, B, I, H = 3, 2, 5, 18
    net = getattr(rnn_triton, name)(I, H, device=device)
    exact = getattr(torch.nn, name)(I, H).double()
    exact.load_state_dict(net.state_dict())
    x = data(T, B, I).to(device).requires_grad_()
    x64 = x.detach().double().cpu().requires_grad_()
    with torch.autocast(torch.device(device).type, dtype):
        y, *last = plain(net(x))
    assert {t.dtype for t in (y, *last)} == {dtype}
    (y.float().pow(2).sum() + sum(t.float().sum() for t in last)).backward()
    y64, *last64 = plain(exact(x64))
    (y64.pow(2).sum() + sum(t.sum() for t in last64)).backward()
    # weights, x and every state are rounded once, relative rms u / sqrt(3), and errors of T steps add in quadrature; a
    # gradient takes as many steps back, in products of two such values: as in tests/test_kernels.py, of 16-bit operands
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    kept = {"RNN": 0, "GRU": 5, "LSTM": 6}[name]  # tiles, each of which is rounded once, too
    pairs = [(y, y64), *zip(last, last64, strict=True), (x.grad, x64.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(net.parameters(), exact.parameters(), strict=True)]
    for got, expected in pairs:
        limit = 4 * 3 * unit * (1 + kept) ** 0.5 * (2 * T + 1) ** 0.5
        assert (got.double().cpu() - expected).norm() <= limit * expected.norm()
    assert all(p.grad.dtype is torch.float32 for p in (x, *net.parameters()))
    assert all(p.dtype is torch.float32 for p in net.parameters())


def test_autocast_caches_nothing_stale(device):
    """A step of the optimiser between two calls under one autocast: the second reads the new weights."""
    net = rnn_triton.RNN(5, 18, device=device)
    x = data(2, 2, 5).to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        first = net(x)[0].detach()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(-1)
        second = net(x)[0]
    assert not torch.equal(first, second)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        assert torch.equal(net(x)[0], second)


def kept_for_backward(run):
    """Sizes of the memory that autograd keeps, by address"""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = run()
    return sorted(tuple(t.shape) for t in kept.values() if t.dim() == 2 and t.shape[0] == 18), found


def steps_of_a_cell(package, x):
    cell, h = package.RNNCell(5, 18), None
    for x_t in x:
        h = cell(x_t, h)
    return h


def step_by_step(package, x):
    rnn, h = package.RNN(5, 18, 2, nonlinearity="relu"), None
    for x_t in x:
        h = rnn(x_t[None], h)[1]
    return h


def packed_input(package, x):
    return package.RNN(5, 18, bidirectional=True)(pack_padded_sequence(x, [6, 5, 3, 1]))[1]


@pytest.mark.parametrize("run", [steps_of_a_cell, step_by_step, packed_input])
def test_autocast_keeps_one_cast_of_each_weight(run):
    """However many calls there are in a region, as torch.nn"""
    x = data(6, 4, 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours, h = kept_for_backward(lambda: run(rnn_triton, x))
        theirs, _ = kept_for_backward(lambda: run(torch.nn, x))
    assert h.requires_grad
    weights = {steps_of_a_cell: [(18, 5), (18, 18)], step_by_step: [(18, 5)] + 3 * [(18, 18)]}
    assert ours == weights.get(run, 2 * [(18, 5)] + 2 * [(18, 18)])
    assert ours.count((18, 18)) == theirs.count((18, 18))  # torch keeps W_ih transposed


def test_autocast_casts_end_with_the_region():
    net, before = rnn_triton.RNNCell(5, 18), rnn_triton.autocast._kept
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            net(data(3, 2, 5)[0])
        entry = weakref.ref(before[torch.device("cpu")]().entry(net.weight_hh, torch.bfloat16))
        assert entry() is not None
        with torch.autocast("cpu", torch.float16):  # another dtype, in the same region
            assert net(data(3, 2, 5)[0]).dtype is torch.float16
        torch.clear_autocast_cache()
        assert before[torch.device("cpu")]() is None and entry() is None
        net(data(3, 2, 5)[0])
    assert before[torch.device("cpu")]() is None
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        net(data(3, 2, 5)[0])
        assert before[torch.device("cpu")]() is None


def test_autocast_hides_how_it_learns_of_the_end():
    """No mode sees the marker, nor hooks, nor does a marker made under a mode stay"""
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    rnn_triton.autocast._markers.clear()
    with Record(), torch.autocast("cpu", torch.bfloat16):
        kept, _ = kept_for_backward(lambda: rnn_triton.RNNCell(5, 18)(data(3, 2, 5)[0].requires_grad_()))
    assert kept == [(18, 5), (18, 18)]
    assert torch.ops.rnn_triton.forward.default in seen and torch.ops.aten.mm.default not in seen
    assert type(rnn_triton.autocast._markers[torch.device("cpu")]) is torch.Tensor


def test_autocast_in_inference_mode():
    """Where enable_grad does not record, and with weights that were made there, which have no version"""
    x = data(3, 2, 5)[0]
    with torch.inference_mode():
        made_there = rnn_triton.RNNCell(5, 18)
    cell = rnn_triton.RNNCell(5, 18)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode(), torch.enable_grad():
            inside = cell(x)
            assert made_there(x).dtype is torch.bfloat16
        assert made_there(x).dtype is torch.bfloat16
        after = cell(x)
    assert inside.is_inference() and torch.equal(inside, after)
    after.float().sum().backward()
    assert cell.weight_hh.grad is not None


def test_autocast_where_hooks_are_disabled():
    cell, x = rnn_triton.RNNCell(5, 18), data(3, 2, 5)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert cell(x).requires_grad


def test_autocast_shares_no_cast_among_streams(monkeypatch):
    """Another stream may read it before it is there."""
    cell, x = rnn_triton.RNNCell(5, 18), data(4, 2, 5)
    streams = iter([1, 1, 2, 2, 1, 1, 2, 2])  # two weights a call
    monkeypatch.setattr(rnn_triton.autocast, "_stream", lambda _: next(streams))
    with torch.autocast("cpu", torch.bfloat16):
        kept, _ = kept_for_backward(lambda: [cell(x_t) for x_t in x])
    assert kept == [(18, 5), (18, 5), (18, 18), (18, 18)]


def test_autocast_of_a_thread_beside_a_backward_pass(monkeypatch):
    """A gradient of another thread reaches a weight after its cast was found, and before the call has it."""
    cell, x = rnn_triton.RNNCell(5, 18), data(3, 2, 5)[0]
    find = rnn_triton.autocast._Casts.entry

    def find_late(self, *arguments):
        entry = find(self, *arguments)
        first.backward(retain_graph=True)
        return entry

    with torch.autocast("cpu", torch.bfloat16):
        first = cell(x).float().sum()
        monkeypatch.setattr(rnn_triton.autocast._Casts, "entry", find_late)
        assert torch.equal(cell(x).float().sum(), first)


def changed_in_place(cell):
    with torch.no_grad():
        cell.weight_hh.mul_(-1)


def changed_memory(cell):
    cell.weight_hh.data = -cell.weight_hh.data


def transposed(cell):
    cell.weight_hh.data = cell.weight_hh.data.T


def loaded(cell):
    cell.load_state_dict({name: -p for name, p in cell.state_dict().items()})


def assigned(cell):
    cell.load_state_dict({name: -p for name, p in cell.state_dict().items()}, assign=True)


def replaced(cell):
    cell.weight_hh = torch.nn.Parameter(-cell.weight_hh.detach())


def optimized(cell, **options):
    """A fused optimizer changes a weight without a new version."""
    cell(data(3, 2, 5)[0], torch.ones(2, 18)).float().sum().backward()
    torch.optim.Adam(cell.parameters(), lr=0.5, **options).step()


def optimized_fused(cell):
    optimized(cell, fused=True)


def optimized_by_data(cell):
    cell(data(3, 2, 5)[0], torch.ones(2, 18)).float().sum().backward()
    for p in cell.parameters():
        p.data.sub_(p.grad)


CHANGES = [changed_in_place, changed_memory, transposed, loaded, assigned, replaced, optimized, optimized_fused, optimized_by_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("regions", [1, 2])
def test_autocast_reads_changed_weights(change, regions):
    """A weight that changes between two calls of a region, while the graph of the first one lives, or between regions"""
    cell, x, h = rnn_triton.RNNCell(5, 18), data(3, 2, 5)[0], torch.ones(2, 18)
    stack = contextlib.ExitStack()
    with stack:
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        first = cell(x, h)
        if regions == 2:
            stack.close()
        change(cell)
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        second = cell(x, h)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = copy.deepcopy(cell)(x, h)
    assert torch.equal(second, expected) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["plain", "checkpoint", "create_graph", "no_grad first", "frozen", "flops"])
def test_autocast_gradients_do_not_depend_on_kept_casts(kind):
    """Gradients of all calls are added up in fp32, wherever the first cast was made and whatever surrounds it."""
    results = []
    for cache in (True, False):
        torch.manual_seed(1)
        cell, x = rnn_triton.RNNCell(5, 18), data(8, 2, 5).requires_grad_()
        cell.weight_ih.requires_grad_(kind != "frozen")

        def steps(x, h):
            for x_t in x:
                h = cell(x_t, h)
            return h

        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            with torch.no_grad():
                steps(x, torch.zeros(2, 18)) if kind == "no_grad first" else None
            h = torch.zeros(2, 18)
            if kind == "checkpoint":
                h = checkpoint(steps, x[:4], h, use_reentrant=False)
                h = checkpoint(steps, x[4:], h, use_reentrant=False)
            elif kind == "flops":
                with FlopCounterMode(display=False) as counter:
                    h = steps(x, h)
                assert counter.get_total_flops() == 8 * 2 * 2 * 18 * (5 + 18)
            else:
                h = steps(x, h)
        leaves = [x, *(p for p in cell.parameters() if p.requires_grad)]
        found = torch.autograd.grad(h.float().square().sum(), leaves, create_graph=kind == "create_graph")
        if kind == "create_graph":
            found = torch.autograd.grad(sum(g.square().sum() for g in found), leaves)
        results.append(found)
    for got, expected in zip(*results, strict=True):
        # the same sums in another order of their parts
        torch.testing.assert_close(got, expected, rtol=2.0**-20, atol=2.0**-20 * expected.abs().max())


# ---- nothing waits for the GPU -------------------------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """An error for every operator that must wait for a GPU: those that bring a value to the host, or whose result has a
    size that depends on values.  Of CPU tensors these three read memory past every operator."""

    PAST = ("tolist", "numpy", "cpu")

    def __enter__(self):
        self.before = {name: getattr(torch.Tensor, name) for name in self.PAST}
        for name in self.PAST:
            setattr(torch.Tensor, name, self.read)
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self.before.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    @staticmethod
    def read(*_, **__):
        raise AssertionError("reading memory waits for the GPU")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func is torch.ops.aten.index.Tensor:
            waits = any(i is not None and i.dtype is torch.bool for i in args[1])
        if waits or func in (torch.ops.aten.equal.default, torch.ops.aten._local_scalar_dense.default):
            raise AssertionError(f"{func} waits for the GPU")
        return func(*args, **kwargs or {})


def test_the_guard_sees_what_waits():
    t = torch.ones(3)
    for waits in (
        lambda: t[0].item(), lambda: bool(t[0] > 0), lambda: t.nonzero(), lambda: t[t > 0], lambda: torch.equal(t, t),
        lambda: t.tolist(), lambda: t.numpy(), lambda: t.cpu(),
    ):  # fmt: skip
        with NoSync(), pytest.raises(AssertionError, match="waits for the GPU"):
            waits()


# B, I, H and the regime that runs it
REGIMES = [(2, 16, 32, "one_cta"), (2, 13, 250, "one_cta"), (2, 16, 512, "cta_group"), (3, 5, 300, "per_step")]


@pytest.mark.parametrize("B, I, H, regime", REGIMES)
@pytest.mark.parametrize("h0, needs", [(True, 31), (False, 15)])
def test_nothing_waits(B, I, H, regime, h0, needs, monkeypatch):
    """The whole host path of a launch, forward and backward, on CPU tensors that pass for CUDA ones; no kernel runs."""
    record = rnn_triton.plan.hardware.RECORDS["sm_90"]
    monkeypatch.setattr(rnn_triton.launch.dispatch.hardware, "of", lambda device: record)
    monkeypatch.setattr(interpreter, "active", lambda: True)
    ran = []
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda self, *a: ran.append(self.kernel))
    rnn_triton.launch.dispatch._launch_for.cache_clear()
    tensors = [None if t is None else t.detach() for t in problem(4, B, I, H, h0=h0, dtype=torch.bfloat16)]
    with rnn_triton.overriding(regime=regime), NoSync():
        many = [None if t is None else t.expand(3, *t.shape) for t in tensors]
        for given in (tensors, many):
            y, hn = ops.run_forward(*given, "tanh", False, None)
            ops.run_backward(given, y, y, hn, [needs & (DX | DH0), needs & ~(DX | DH0)])
    rnn_triton.launch.dispatch._launch_for.cache_clear()
    assert ran


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_waits_around_the_ops(autocast):
    """From the module down, and back by autograd, with a second derivative"""
    net = rnn_triton.RNN(5, 7)
    x = data(4, 3, 5).requires_grad_()
    with NoSync(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, hn = net(x, None)
        value = y.float().pow(2).sum() + hn.float().sum()
        dx = torch.autograd.grad(value, x, create_graph=True)[0]
        dx.pow(2).sum().backward()


# ---- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.long  # mostly imports, by two processes
def test_two_ranks_are_one_process(tmp_path):
    """DDP and FSDP2: two gloo ranks with half of the batch each reach losses and parameters of one process with all of it."""
    steps, batch = 3, 4
    torch.manual_seed(0)
    model = Model(dtype=torch.float64)
    start = copy.deepcopy(model.state_dict())
    x = data(5, batch, 5, dtype=torch.float64)
    losses = ranks.train(model, x, steps)
    assert losses[-1] < losses[0]
    for rank in ranks.run(start, x, steps, tmp_path):
        for kind in ("ddp", "fsdp2"):
            assert rank[kind]["sharded"] == (kind == "fsdp2")
            torch.testing.assert_close(rank[kind]["losses"], losses)
            torch.testing.assert_close(rank[kind]["state"], dict(model.state_dict()))


# ---- torch.jit.trace, torch.fx, torch's FLOP counter ---------------------------------------------------------------


def plain(result):
    """The tensors of a result of a module"""
    return tree_leaves(tree_map(lambda t: t.data if isinstance(t, PackedSequence) else t, result))


MODULES = [
    lambda package: package.RNN(5, 7),
    lambda package: package.RNN(5, 7, 2, "relu", batch_first=True, bidirectional=True),
    lambda package: package.RNN(5, 7, 3, bias=False, dropout=0.5).eval(),
    lambda package: package.RNNCell(5, 7),
    lambda package: package.GRU(5, 7, 2, bidirectional=True),
]
STATES = [(1, 3, 7), (4, 3, 7), (3, 3, 7), (3, 7), (4, 3, 7)]


@pytest.mark.filterwarnings("ignore:.torch.jit")  # deprecated
@pytest.mark.parametrize("make", [*MODULES, lambda package: package.LSTM(5, 7, 2, bidirectional=True)])
@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace(make, grad):
    """Traced in either mode, saved and loaded: other T and B, and gradients of input, state and weights"""
    module = make(rnn_triton)
    cell = isinstance(module, rnn_triton.RNNCell)
    with torch.set_grad_enabled(grad):
        x = data(6, 3, 5)[0] if cell else data(6, 3, 5)
        with warnings.catch_warnings(record=True) as warned:
            checks.quiet_tracer()  # as at import; pytest puts filters of its own in their place
            traced = torch.jit.trace(module, (x,))
    assert not [w for w in warned if issubclass(w.category, torch.jit.TracerWarning)]
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for T, B in ((9, 2), (1, 4), (6, 3)):
        results = []
        for run in (module, loaded):
            x = (data(T, B, 5, seed=1)[0] if cell else data(T, B, 5, seed=1)).requires_grad_()
            found = plain(run(x))
            leaves = [x, *run.parameters()]
            results.append((found, torch.autograd.grad(sum((t * t).sum() for t in found), leaves)))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_jit_trace_by_the_kernels(device):
    module = rnn_triton.RNN(5, 7, 2, device=device)
    traced = torch.jit.trace(module, (data(3, 2, 5).to(device),))
    x = data(4, 3, 5).to(device)
    torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)


class Within(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.readout = torch.nn.Linear(7, 2)

    def forward(self, x, hx=None):
        y, h_n = self.rnn(2 * x, hx)
        return self.readout(y[..., :7]), h_n


@pytest.mark.parametrize("training", [True, False])
def test_symbolic_trace(training):
    """Leaves to torch.fx, as torch.nn's: also with hooks, parametrizations, copies and a state"""
    built = [
        rnn_triton.RNN(5, 7, 2, batch_first=True),
        rnn_triton.SimpleRNN(5, 7, 7, batch_first=True),
        copy.deepcopy(rnn_triton.RNN(5, 7)),
        pickle.loads(pickle.dumps(rnn_triton.RNN(5, 7, bidirectional=True))),
        torch.nn.utils.parametrizations.orthogonal(rnn_triton.RNN(5, 7), "weight_hh_l0"),
    ]
    for module in built:
        module.register_forward_hook(lambda m, inputs, found: (found[0] * 3, found[1]))
        model = Within(module).train(training)
        graph = torch.fx.symbolic_trace(model)
        assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["rnn", "readout"]
        x = data(4, 3, 5)
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
        hx = model(x)[1].detach()
        torch.testing.assert_close(graph(x, hx), model(x, hx), rtol=0, atol=0)
    assert all(pickle.loads(pickle.dumps(cls)) is cls for cls in (rnn_triton.RNN, rnn_triton.RNNCell, rnn_triton.SimpleRNN))


class Doubled(rnn_triton.RNN):
    """Another forward: torch.fx must look into it, or it would be lost"""

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_symbolic_trace_of_a_cell_a_function_and_a_class_of_a_user():
    class Cells(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = rnn_triton.RNNCell(5, 7)

        def forward(self, x):
            h = self.cell(x[0])
            return self.cell(x[1], h), rnn_triton.rnn(x, self.cell.weight_ih, self.cell.weight_hh, nonlinearity="relu")

    model = Cells()
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(data(4, 3, 5)), model(data(4, 3, 5)), rtol=0, atol=0)
    with pytest.raises(torch.fx.proxy.TraceError):  # as of a class derived from torch.nn.RNN
        torch.fx.symbolic_trace(Within(Doubled(5, 7)))


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("make, state", list(zip(MODULES, STATES, strict=True)))
@pytest.mark.parametrize("wanted", ["all", "none", "x", "hx", "weights", "weight_hh", "bias", "no hx"])
def test_flops_are_torch_s(make, state, wanted):
    """Forward, and backward for what is wanted: as torch counts its own modules on a CPU"""
    counts = []
    for package in (torch.nn, rnn_triton):
        module = make(package)
        x = data(6, 3, 5)[0] if len(state) == 2 else data(6, 3, 5).transpose(0, int(module.batch_first))
        hx = torch.zeros(state, requires_grad=wanted in ("all", "hx")) if wanted != "no hx" else None
        x.requires_grad_(wanted in ("all", "x"))
        for name, p in module.named_parameters():
            p.requires_grad_(wanted in ("all", "weights", "no hx") or name.startswith(wanted))
        found = [flops(lambda: module(x, hx))]
        y = plain(module(x, hx))[0]
        if y.requires_grad:
            found.append(flops(y.sum().backward))
        counts.append(found)
    assert counts[0] == counts[1] and counts[0][0] > 0


@pytest.mark.parametrize("options", [dict(), dict(num_layers=3, bidirectional=True), dict(num_layers=2, bias=False)])
@pytest.mark.parametrize("wanted", ["all", "x", "weight_hh", "weight_ih_l0", "weight_ih_l1", "hx"])
def test_flops_of_the_op_of_a_network(options, wanted):
    theirs, ours = torch.nn.RNN(5, 7, **options), rnn_triton.RNN(5, 7, **options)
    counts = []
    for module in (theirs, ours):
        x = data(6, 3, 5).requires_grad_(wanted in ("all", "x"))
        hx = torch.zeros(len(ours.all_weights), 3, 7, requires_grad=wanted in ("all", "hx"))
        for name, p in module.named_parameters():
            p.requires_grad_(wanted == "all" or name.startswith(wanted))
        run = functools.partial(module, x, hx)
        forward, y = flops(run), run()[0]
        counts.append((forward, flops(y.sum().backward) if y.requires_grad else 0))
    assert counts[0] == counts[1] and counts[0][0] > 0


def test_flops_of_ensembles_and_parts():
    """vmap over weights and over data: as many as of each by itself"""
    x, w_ih, w_hh = data(4, 3, 5), data(2, 7, 5), data(2, 7, 7)

    def loss(w_ih, w_hh, x):
        return rnn_triton.rnn(x, w_ih, w_hh)[0].sum()

    def one_by_one():
        for m in range(2):
            torch.func.grad(loss, (0, 1))(w_ih[m], w_hh[m], x)

    assert flops(lambda: torch.vmap(torch.func.grad(loss, (0, 1)), (0, 0, None))(w_ih, w_hh, x)) == flops(one_by_one) > 0
    each = torch.vmap(torch.func.grad(loss, (0, 1)), (None, None, 1))
    single = flops(lambda: torch.func.grad(loss, (0, 1))(w_ih[0], w_hh[0], x))
    assert flops(lambda: each(w_ih[0], w_hh[0], x.unsqueeze(2))) == single > 0
