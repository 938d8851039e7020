"""What of PyTorch surrounds a module: autocast, DDP and FSDP2, torch's checks of an op; and that nothing waits for the GPU.

Kernels run by interpreter, or on a GPU, where a test takes `device`; the others are about what surrounds them.
torch.compile and export: tests/test_op.py and tests/test_modules.py.
"""

import copy

import pytest
import torch
from support import ranks
from support.problems import problem
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_triton
from rnn_triton import interpreter, launcher, op


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
    forward = (*tensors, "tanh", False, None)
    torch.library.opcheck(torch.ops.rnn_triton.rnn_forward.default, forward)
    x, w_ih, w_hh, _, _, h0 = (t.detach() for t in tensors)
    y, hn = (t.detach() for t in torch.ops.rnn_triton.rnn_forward(*forward))
    backward = (x, w_ih, w_hh, h0, y, y, hn, "tanh", False, None, 31, None)
    torch.library.opcheck(torch.ops.rnn_triton.rnn_backward.default, backward)


# ---- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    """16-bit kernels and outputs; gradients of fp32 parameters and of fp32 x in fp32, close to fp64's"""
    T, B, I, H = 3, 2, 5, 18
    net = rnn_triton.RNN(I, H, device=device)
    exact = torch.nn.RNN(I, H).double()
    exact.load_state_dict(net.state_dict())
    x = data(T, B, I).to(device).requires_grad_()
    x64 = x.detach().double().cpu().requires_grad_()
    with torch.autocast(torch.device(device).type, dtype):
        y, hn = net(x)
    assert y.dtype is hn.dtype is dtype
    (y.float().pow(2).sum() + hn.float().sum()).backward()
    y64, hn64 = exact(x64)
    (y64.pow(2).sum() + hn64.sum()).backward()
    # weights, x and every state are rounded once, relative rms u / sqrt(3), and errors of T steps add in quadrature; a
    # gradient takes as many steps back, in products of two such values: as in tests/test_kernels.py, of 16-bit operands
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    pairs = [(y, y64), (hn, hn64), (x.grad, x64.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(net.parameters(), exact.parameters(), strict=True)]
    for got, expected in pairs:
        limit = 4 * 3 * unit * (2 * T + 1) ** 0.5
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
REGIMES = [(2, 16, 32, "single_cta"), (2, 13, 250, "single_cta"), (2, 16, 512, "grid"), (3, 5, 300, "per_step")]


@pytest.mark.parametrize("B, I, H, regime", REGIMES)
@pytest.mark.parametrize("h0, needs", [(True, 31), (False, 15)])
def test_nothing_waits(B, I, H, regime, h0, needs, monkeypatch):
    """The whole host path of a launch, forward and backward, on CPU tensors that pass for CUDA ones; no kernel runs."""
    record = rnn_triton.hardware.RECORDS["sm_90"]
    monkeypatch.setattr(rnn_triton.launch.hardware, "of", lambda device: record)
    monkeypatch.setattr(interpreter, "active", lambda: True)
    ran = []
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda self, *a: ran.append(self.kernel))
    rnn_triton.launch._site.cache_clear()
    tensors = [None if t is None else t.detach() for t in problem(4, B, I, H, h0=h0, dtype=torch.bfloat16)]
    with rnn_triton.overriding(regime=regime), NoSync():
        y, hn = op.run_forward(*tensors, "tanh", False, None)
        x, w_ih, w_hh, _, _, state = tensors
        op._run_backward(x, w_ih, w_hh, state, y, y, hn, "tanh", False, None, needs, None)
        many = [None if t is None else t.expand(3, *t.shape) for t in tensors]
        y, hn = op.run_forward(*many, "tanh", False, None)
        op._run_backward(many[0], many[1], many[2], many[5], y, y, hn, "tanh", False, None, needs, None)
    rnn_triton.launch._site.cache_clear()
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
