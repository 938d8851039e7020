"""Cells that keep other tiles than rnn_triton's, y among them, for tests of the engine; and their launches by kernels/one_cta.py.

A test makes them known (test_gates.py)."""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from rnn_triton.cells import Cell
from rnn_triton.cells.leaky import LEAKY
from rnn_triton.kernels.activations import tanh
from rnn_triton.launch import one_cta, operands, recurrence
from rnn_triton.launch.operands import Operands, Scalars
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import DTYPES, Problem


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def gru_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    r = sigmoid(a[0])
    z = sigmoid(a[1])
    n = tanh(a[3] + r * a[2], ACCURACY)
    h = n + z * (carried[0] - n)
    return (h,), (h,), (r, z, n, a[2])


@triton.jit
def gru_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    y, r, z, n, of_h = saved[0], saved[1], saved[2], saved[3], saved[4]
    dh = a[0] + carried[0]
    dn = dh * (1.0 - z) * (1.0 - n * n)
    return (dn * r, dn * of_h * r * (1.0 - r), dh * (y - n) * (1.0 - z), dn), (dh * z,), ()  # z (h_{t-1} - n) = y - n


@triton.jit
def lstm_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    i = sigmoid(a[0])
    f = sigmoid(a[1])
    g = tanh(a[2], ACCURACY)
    o = sigmoid(a[3])
    c = f * carried[0] + i * g
    return (o * tanh(c, ACCURACY),), (c,), (i, f, g, o, carried[0])


@triton.jit
def lstm_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    i, f, g, o, before = saved[0], saved[1], saved[2], saved[3], saved[4]
    tanh_c = tanh(f * before + i * g, ACCURACY)
    dc = carried[0] + a[0] * o * (1.0 - tanh_c * tanh_c)
    da = (dc * g * i * (1.0 - i), dc * before * f * (1.0 - f), dc * i * (1.0 - g * g), a[0] * tanh_c * o * (1.0 - o))
    return da, (dc * f,), ()


def _gru(a, states, vectors):
    n = torch.tanh(a[3] + torch.sigmoid(a[0]) * a[2])
    return (n + torch.sigmoid(a[1]) * (states[0] - n),)


def _lstm(a, states, vectors):
    i, f, o = (torch.sigmoid(a[k]) for k in (0, 1, 3))
    c = f * states[1] + i * torch.tanh(a[2])
    return o * torch.tanh(c), c


_NO_MATTER = dict(special=0)
CELLS = {
    "leaky": replace(LEAKY["tanh"], name="leaky"),
    "gru": Cell(
        name="gru", gates=("r", "z", "n"), states=("h",), split=("n",), carried=("h",), kept=4, reads_y=True, step=_gru,
        forward=gru_forward, backward=gru_backward, **_NO_MATTER,
    ),
    "lstm": Cell(
        name="lstm", gates=("i", "f", "g", "o"), states=("h", "c"), carried=("c",), kept=5, step=_lstm,
        forward=lstm_forward, backward=lstm_backward, **_NO_MATTER,
    ),
}  # fmt: skip


def gradients_of_gates(name, da):
    """da of the published tiles [T, B, P, H] -> (of what W_hh makes, of what W_ih makes), [T, B, gates, H] each"""
    of = CELLS[name].routes(False)
    order = torch.tensor(of.rec_gates).argsort()
    return da[:, :, : of.exchanged][:, :, order], da[:, :, of.published - of.exchanged :]


def planned(name, direction, B, I, H, dtype, precision, **changes):
    """(problem, plan) of one CTA on sm_90, the one for Elman's cell but for the changes"""
    problem = Problem(direction, B, I, H, dtype, precision, "elman_tanh")
    return replace(problem, cell=name), replace(choose.plan(problem, hardware.RECORDS["sm_90"]), **changes)


def _launch(problem, plan, tensors, T, reverse):
    engine = one_cta.engine(problem, plan)
    of, x_t, x_b, u_t, u_b = dict(tensors), 0, 0, 0, 0
    if "x" in of:
        of["x"], x_t, x_b, _ = operands.strided(of["x"], engine.x_unit)
    if "u" in of:
        of["u"], u_t, u_b, _ = operands.strided(of["u"], engine.u_unit)
    engine.launch(Operands(**of), of["out"], Scalars(T, problem.B, int(reverse), x_t, x_b, u_t, u_b))


def _nan(like, *shape):
    return like.new_full(shape, float("nan"))


def forward(name, x, w_ih, w_hh, b_ih, b_hh, h0, carried, vectors, precision, reverse=False, **changes):
    """(y, hn, what is carried last, kept); carried: [C, B, H] before the first step, overwritten"""
    (T, B, I), H, of = x.shape, w_hh.shape[-1], CELLS[name]
    problem, plan = planned(name, "forward", B, I, H, DTYPES[x.dtype], precision, **changes)
    y, hn, kept = _nan(x, T, B, H), _nan(x, B, H), _nan(x, T, B, of.kept, H)
    tensors = dict(x=x, w_in=w_ih)
    if plan.w_ih_home == "gemm":
        row = one_cta.engine(problem, plan).projected
        u = torch.einsum("tbi,ghi->tbgh", x.double(), w_ih.double()).to(torch.promote_types(x.dtype, torch.float32))
        tensors = dict(u=operands.padded(u, operands.missing(row - H)).flatten(2))
    tensors |= dict(w_rec=w_hh, bias0=b_ih, bias1=b_hh, first=h0, out=y, last=hn, kept=kept, carried=carried, vectors=vectors)
    _launch(problem, plan, tensors, T, reverse)
    return y, hn, carried, kept


def backward(name, w_hh, y, kept, dy, dhn, carried, vectors, precision, reverse=False, **changes):
    """(da of the published tiles [T, B, P, H], what is carried last: behind the cell's own the gradients of its vectors)"""
    (T, B, H), of = y.shape, CELLS[name]
    carried = torch.cat([carried, carried.new_zeros(len(of.vectors), B, H)])
    problem, plan = planned(name, "backward", B, 1, H, DTYPES[y.dtype], precision, **changes)
    da = _nan(y, T, B, of.routes(False).published, H)
    tensors = dict(w_rec=w_hh, first=dhn, u=dy, out=da, kept=kept, carried=carried, vectors=vectors)
    if of.reads_y:
        tensors["saved"] = y
    _launch(problem, plan, tensors, T, not reverse)
    return da, carried


def compiled(name, direction, H, dtype, precision, **changes):
    """The kernel for sm_90, with every tensor that the cell has in this pass"""
    problem, plan = planned(name, direction, 8, H if direction == "forward" else 1, H, dtype, precision, **changes)
    return recurrence.compile_ahead(problem, plan, hardware.RECORDS["sm_90"])
