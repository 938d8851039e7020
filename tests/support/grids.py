"""Launches of kernels whose CTAs exchange data, by hand-written plans: in the cooperative interpreter, or on a GPU.

Tolerances are relative, in the Frobenius norm, as in test_kernels.py:

    4 * (u_state + 2 u_product) * sqrt(T + 1)

A step rounds its state once (relative rms at most u / sqrt(3)) and, in tf32, both operands of its products; steps add
in quadrature through a map whose gain is about one; 4 covers the spread, accumulation in fp32, and tanh.
"""

import contextlib
from dataclasses import dataclass, replace

import torch
from cooperative import cooperate

from rnn_triton.cells import reference
from rnn_triton.interpret import interpreter
from rnn_triton.launch import recurrence
from rnn_triton.plan.problem import DTYPES, CtaGroup, Problem, row_units

from .problems import problem, state_roundoff

# kind: (dtype, precision, accuracy, unit roundoff of the state, of an operand of a product)
KINDS = {
    "bf16": (torch.bfloat16, None, "approx", 2.0**-8, 0.0),
    "fp16": (torch.float16, None, "fast", 2.0**-11, 0.0),
    "tf32": (torch.float32, "tf32", "fast", 2.0**-24, 2.0**-11),
    "tf32x3": (torch.float32, "tf32x3", "full", 2.0**-24, 2.0**-24),
    # one CTA only
    "ieee": (torch.float32, "ieee", "full", 2.0**-24, 2.0**-24),
    "fp64": (torch.float64, None, "double", 2.0**-53, 2.0**-53),
}

# How the interpreter runs a launch, and in which memory; the race detector is on in all of them.
MODES = (
    dict(schedule="rr"),
    dict(schedule="random", switch="mem", seed=1),
    dict(schedule="ahead", seed=1, memory="weak"),
    dict(schedule="starve", seed=1),
    dict(schedule="random", seed=2, memory="weak", drain=0.5),
    dict(schedule="pct", switch="mem", memory="weak", seed=3),
)


@dataclass(frozen=True)
class Case:
    """A problem and the plan it runs by; `kind` of KINDS, the rest as in Problem and CtaGroup"""

    T: int
    B: int
    I: int
    H: int
    kind: str = "bf16"
    units: int = 16
    block_b: int = 8
    warps: int = 4
    groups: int = 1
    shared: int = 0
    home: str = "registers"
    protocol: str = "sentinel"
    x_loads: str = "behind"
    look_every: int = 64
    probe_delay: int = 200
    chains: int = 2
    nonlinearity: str = "tanh"
    reverse: bool = False
    first: bool = True  # h0, or dhn, is given
    dy: bool = True
    bias: tuple[bool, bool] = (True, True)
    signal: float = 1.0  # as of `problem`, forward

    def __str__(self):
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != Case.__dataclass_fields__[k].default]
        return "-".join(changed).replace("(", "").replace(")", "").replace(" ", "")

    @property
    def dtype(self):
        return KINDS[self.kind][0]

    @property
    def tolerance(self):
        *_, state, product = KINDS[self.kind]
        state = state_roundoff(self.kind, state, self.signal)
        return 4 * (state + 2 * product) * (self.T + 1) ** 0.5

    @property
    def polled(self):
        """Do programs wait for words of the output?"""
        return self.protocol != "counter"

    def having(self, **changes):
        return replace(self, **changes)

    def launch(self, direction, module=recurrence):
        """`module`.Recurrence; another than rnn_triton.launch.recurrence for a changed one"""
        _, precision, accuracy, *_ = KINDS[self.kind]
        name = DTYPES[self.dtype]
        forward = direction == "forward"
        of = Problem(
            direction, self.B, self.I if forward else 1, self.H, name, precision, f"elman_{self.nonlinearity}"
        )
        plan = CtaGroup(
            block_b=self.block_b, warps=self.warps, formulation="mma32" if name == "fp32" else "mma16",
            precision=precision or "ieee", accuracy=accuracy, units=self.units,
            ctas=-(-row_units(self.H, name) // self.units), groups=self.groups, w_hh_shared=self.shared,
            w_ih_home=self.home if forward else "none", protocol=self.protocol, x_loads=self.x_loads,
            look_every=self.look_every, probe_delay=self.probe_delay, chains=self.chains, reason="test",
        )  # fmt: skip
        return module.Recurrence(of, plan)

    def inputs(self, direction):
        """forward: [x, w_ih, w_hh, b_ih, b_hh, h0]; backward: [w_hh, y, dy, dhn]; None for what is not given"""
        if direction == "forward":
            tensors = problem(self.T, self.B, self.I, self.H, bias=self.bias, h0=self.first, dtype=self.dtype, signal=self.signal)
            return [None if t is None else t.detach() for t in tensors]
        w_hh = problem(1, 1, 1, self.H, dtype=self.dtype)[2].detach()
        g = torch.Generator().manual_seed(7)
        y, dy = (torch.randn(self.T, self.B, self.H, generator=g) for _ in range(2))
        dhn = torch.randn(self.B, self.H, generator=g)
        y = y.tanh() if self.nonlinearity == "tanh" else y.relu()
        given = [w_hh, y, dy if self.dy else None, dhn if self.first else None]
        return [None if t is None else t.to(self.dtype) for t in given]

    def expected(self, direction, tensors):
        """What `run` returns, in fp64"""
        exact = [None if t is None else t.detach().double().cpu() for t in tensors]
        if direction == "forward":
            return reference.rnn(*exact, self.nonlinearity, self.reverse)
        return (pre_activation_gradients(*exact, self.nonlinearity, self.reverse),)

    def run(self, direction, tensors, device="cpu", module=recurrence, mode=MODES[0]):
        """(y, hn) or (da,)"""
        launch = self.launch(direction, module)
        there = [None if t is None else t.to(device) for t in tensors]
        with self.interpreted(direction, mode):
            if direction == "forward":
                *tensors, h0 = there
                y, (hn,), _ = launch.forward(*tensors, (h0,), self.reverse)
                return y, hn
            w_hh, y, dy, dhn = there
            return (launch.backward(w_hh, y, None, dy, (dhn,), self.reverse)[0],)

    @contextlib.contextmanager
    def interpreted(self, direction, mode=MODES[0]):
        """All programs alive, outputs poisoned before each launch, unless `mode` says otherwise; nothing where kernels are
        compiled."""
        if not interpreter.active():
            yield
            return
        # hn exists in the forward pass only; in the backward pass `out` stands for it
        poisoned = ("last_ptr",) if direction == "forward" else ()
        if self.polled:
            roles = dict(channels=("out_ptr",), poisoned=poisoned)
        else:
            roles = dict(poisoned=("out_ptr", *poisoned))
        with cooperate(**{**roles, **mode}) as session:
            yield session

    def check(self, direction, tensors=None, device="cpu", **how):
        """Run and compare; returns the results."""
        tensors = self.inputs(direction) if tensors is None else tensors
        results = self.run(direction, tensors, device, **how)
        assert_close(results, self.expected(direction, tensors), self.tolerance)
        return results


def pre_activation_gradients(w_hh, y, dy, dhn, nonlinearity, reverse):
    """da[T,B,H]: da_t = (dy_t + da_{t+1} W_hh) f'(a_t), dhn in place of the product at the last step"""
    T = y.shape[0]
    da = torch.empty_like(y)
    after = dhn if dhn is not None else torch.zeros_like(y[0])
    for t in range(T) if reverse else range(T - 1, -1, -1):
        dh = after if dy is None else after + dy[t]
        da[t] = dh * (1 - y[t] * y[t]) if nonlinearity == "tanh" else torch.where(y[t] <= 0, 0.0, dh)
        after = da[t] @ w_hh
    return da


def assert_close(actual, expected, limit):
    """Relative error in the Frobenius norm; an expected zero must come out exactly."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        e = e.detach().cpu()
        error = (a.detach().double().cpu() - e).norm() / e.norm() if e.norm() > 0 else a.abs().max()
        assert error <= limit, f"error {error:.2e} > {limit:.2e}"  # NaN fails


def assert_same_where_finite(actual, expected, limit):
    """NaN and inf of the same sign where they are expected, and `assert_close` elsewhere"""
    for a, e in zip(actual, expected, strict=True):
        a = a.detach().double().cpu()
        assert torch.equal(a.isnan(), e.isnan()), "NaN elsewhere"
        assert torch.equal(a.isposinf(), e.isposinf()) and torch.equal(a.isneginf(), e.isneginf())
        finite = e.isfinite()
        if finite.any():
            assert_close([a[finite]], [e[finite]], limit)


def bits(t):
    """The tensor's bits, which NaN do not make unequal"""
    return t.contiguous().view(torch.uint8)
