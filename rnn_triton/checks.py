"""Refuses arguments that do not fit, in torch's words where it has any, and settles dtype and precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.backends.cudnn.rnn
from torch import Tensor

from . import autocast
from .cells import Cell
from .cells.elman import ELMAN

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PRECISIONS = (None, "tf32", "tf32x3", "ieee")
_cudnn_rnn: Any = torch.backends.cudnn.rnn  # held: `torch.backends.cudnn` resolves its attributes slowly


def quiet_tracer() -> None:
    """Silences torch.jit.trace about sizes that only decide whether to raise; it warns of every size that decides something."""
    modules = r"rnn_triton\.(checks|functional|modules)$"
    warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", torch.jit.TracerWarning, modules)


quiet_tracer()


def elman(nonlinearity: str) -> Cell:
    """Returns the Elman cell with this nonlinearity.  Raises torch.nn.RNN's ValueError where there is none."""
    if nonlinearity not in tuple(ELMAN):  # of what cannot be hashed, too
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return ELMAN[nonlinearity]


def check_precision(precision: str | None) -> None:
    """Raises ValueError unless fp32 can be multiplied in this precision; None stands for torch's setting."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be None, 'tf32', 'tf32x3' or 'ieee', got {precision!r}")


def precision_of(dtype: torch.dtype, precision: str | None) -> str | None:
    """Returns how values of `dtype` are multiplied: for fp32 the precision, by default torch's setting; for other dtypes None.

    Raises ValueError if another dtype than fp32 comes with a precision."""
    if dtype is torch.float32:
        return _default_precision() if precision is None else precision
    if precision is not None:
        raise ValueError(f"precision must be None unless the dtype is torch.float32, got {precision!r} and {dtype}")
    return None


def _default_precision() -> str:
    try:
        return "tf32" if _cudnn_rnn.fp32_precision == "tf32" else "ieee"
    except RuntimeError:  # torch refuses to answer if both its older and its newer TF32 switches were set
        return "ieee"


def settled(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, h0: Tensor | None,
    nonlinearity: str, precision: str | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Returns (x, w_ih, w_hh, b_ih, b_hh, h0, precision) of one layer as the operator takes them: checked, cast if autocast is on,
    and with what None stands for in place of a precision of None.  Shapes and errors are those of functional.rnn."""
    elman(nonlinearity)
    check_precision(precision)

    device = "cuda" if x.is_cuda else "cpu"
    if torch.is_autocast_enabled(device):
        x, w_ih, w_hh, b_ih, b_hh, h0 = autocast.cast(
            torch.get_autocast_dtype(device), x, (w_ih, w_hh, b_ih, b_hh), h0
        )
        if x.dtype is not torch.float32:
            precision = None  # meant for the fp32 that autocast replaced
    _check(x, w_ih, w_hh, b_ih, b_hh, h0)
    return x, w_ih, w_hh, b_ih, b_hh, h0, precision_of(x.dtype, precision)


def check_layers(weights: Sequence[Tensor], count: int, directions: int) -> None:
    """Raises unless `weights` are `count` tensors for each of some layers in so many directions, all of one hidden size."""
    if not weights or len(weights) % (count * directions):
        raise ValueError(
            f"weights must be {count} tensors for each layer and direction, a positive multiple of {count * directions}, got {len(weights)}"
        )
    for n, w in enumerate(weights):
        if w is None:
            raise TypeError(f"expected Tensor as element {n} in argument 2, but got NoneType")
    for w_ih in weights[count::count]:
        if w_ih.shape[:1] != weights[0].shape[:1]:
            H = weights[0].shape[0]
            raise ValueError(f"weights of all layers must have one hidden size H = {H}, got a w_ih of shape {list(w_ih.shape)}")


def settled_network(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    h0: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    precision: str | None,
) -> tuple[Tensor, list[Tensor], Tensor | None, str | None]:
    """Returns (x, weights, h0, precision) of a network as the operator takes them, each layer and direction `settled`.

    `layers` has (w_ih, w_hh, b_ih, b_hh) for each, in the order of h_n.  Shapes and errors are those of functional.network."""
    directions = 2 if bidirectional else 1
    states = [None] * len(layers) if h0 is None else list(h0)
    flat: list[Tensor] = []
    below = x
    for n, layer in enumerate(layers):
        below, *weights, states[n], settled_precision = settled(below, *layer, states[n], nonlinearity, precision)
        flat += [w for w in weights if w is not None]
        if n == 0:
            x = below
        if n == directions - 1:  # y of the layer below, as far as a check looks at it
            below = x.new_empty(()).expand(*x.shape[:2], directions * flat[1].shape[0])
    if h0 is not None and h0.dtype is not x.dtype:  # autocast
        h0 = torch.stack(states)  # type: ignore[arg-type]
    return x, flat, h0, settled_precision


def _check(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, h0: Tensor | None
) -> None:
    """Raises the error of torch.nn.RNN, in its words where it has any, unless the tensors fit together."""
    dtype, device = x.dtype, x.device
    if w_ih.dtype is not dtype:
        raise ValueError(
            f"RNN input dtype ({dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}), or convert model: model.to({dtype})"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"x must be of dtype float32, bfloat16, float16 or float64, got {dtype}")
    if x.dim() != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {x.dim()}")
    if w_ih.dim() != 2:
        raise ValueError(f"w_ih must have shape [H, I], got {list(w_ih.shape)}")
    T, B, I = x.shape
    H, input_size = w_ih.shape
    if I != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {I}")
    if H == 0:
        raise ValueError("hidden_size must be greater than zero")
    if I == 0:
        raise ValueError("input_size must be greater than zero")
    if w_hh.shape != (H, H):
        raise ValueError(f"w_hh must have shape [H, H] = [{H}, {H}], got {list(w_hh.shape)}")
    if b_ih is not None and b_ih.shape != (H,):
        raise ValueError(f"b_ih must have shape [H] = [{H}], got {list(b_ih.shape)}")
    if b_hh is not None and b_hh.shape != (H,):
        raise ValueError(f"b_hh must have shape [H] = [{H}], got {list(b_hh.shape)}")
    if h0 is not None and h0.shape != (B, H):
        raise RuntimeError(f"Expected hidden size {(B, H)}, got {list(h0.shape)}")
    for t in (w_ih, w_hh, b_ih, b_hh, h0):
        if t is not None and (t.dtype is not dtype or t.device != device):
            kind = "hidden" if t is h0 else "parameter"
            if t.device != device:
                raise RuntimeError(
                    f"Input and {kind} tensors are not at the same device, "
                    f"found input tensor at {device} and {kind} tensor at {t.device}"
                )
            if T == 0:
                break  # torch raises its error for T == 0
            raise RuntimeError(
                f"Input and {kind} tensors are not the same dtype, "
                f"found input tensor with {dtype_name(dtype)} and {kind} tensor with {dtype_name(t.dtype)}"
            )
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype in torch's C++ messages: Float, Double, Half, BFloat16, ..."""
    return torch.empty(0, dtype=dtype).type().split(".")[-1].removesuffix("Tensor")
