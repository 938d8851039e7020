"""The layer as a function: checks the arguments, settles dtype and precision, and calls the op."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.backends.cudnn.rnn
from torch import Tensor

from . import autocast
from .op import layer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PRECISIONS = (None, "tf32", "tf32x3", "ieee")
_cudnn_rnn: Any = torch.backends.cudnn.rnn  # held: `torch.backends.cudnn` resolves its attributes slowly


def quiet_checks() -> None:
    """torch.jit.trace warns of every size that decides something; of what only decides whether to raise it is told not to."""
    warnings.filterwarnings(
        "ignore", "Converting a tensor to a Python boolean", torch.jit.TracerWarning, r"rnn_triton\.(functional|modules)$"
    )


quiet_checks()


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """An Elman layer: every h_t = f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh) as y[T,B,H], and the last as hn[B,H].

    x[T,B,I], w_ih[H,I], w_hh[H,H], b_ih[H], b_hh[H], h0[B,H] (zeros if None), of any strides, all on one
    device and of one dtype: fp32, bf16, fp16 or fp64. f is tanh or relu. `reverse` runs from t = T-1 to 0, y
    staying in the order of x. Under autocast everything but fp64 is cast to, and returned in, its dtype.

    `precision` says how fp32 is multiplied: "tf32", "tf32x3" (three TF32 products, close to fp32) or "ieee";
    None follows torch.backends.cudnn.rnn.fp32_precision. Other dtypes take None only.

    Raises ValueError or RuntimeError as torch.nn.RNN does; UnsupportedError where no plan runs the problem.
    """
    x, w_ih, w_hh, b_ih, b_hh, h0, precision = settled(
        x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, precision
    )
    return layer.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)


def settled(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    precision: str | None,
) -> tuple[Any, ...]:
    """(x, w_ih, w_hh, b_ih, b_hh, h0, precision) as `op` takes them: checked, cast where autocast is on, and precision what
    None stands for."""
    if nonlinearity != "tanh" and nonlinearity != "relu":
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be None, 'tf32', 'tf32x3' or 'ieee', got {precision!r}")

    device = "cuda" if x.is_cuda else "cpu"
    if torch.is_autocast_enabled(device):
        x, w_ih, w_hh, b_ih, b_hh, h0 = autocast.cast(
            torch.get_autocast_dtype(device), x, (w_ih, w_hh, b_ih, b_hh), h0
        )
        if x.dtype is not torch.float32:
            precision = None  # meant for the fp32 that autocast replaced
    _check(x, w_ih, w_hh, b_ih, b_hh, h0)

    if x.dtype is torch.float32:
        if precision is None:
            precision = _default_precision()
    elif precision is not None:
        raise ValueError(
            f"precision must be None unless the dtype is torch.float32, got {precision!r} and {x.dtype}"
        )
    return x, w_ih, w_hh, b_ih, b_hh, h0, precision


def _default_precision() -> str:
    try:
        return "tf32" if _cudnn_rnn.fp32_precision == "tf32" else "ieee"
    except RuntimeError:  # torch refuses to answer where its older and newer TF32 switches were both set
        return "ieee"


def _check(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, h0: Tensor | None
) -> None:
    """Raises as torch.nn.RNN does, in its words where it has any."""
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
                break  # to what torch raises then
            raise RuntimeError(
                f"Input and {kind} tensors are not the same dtype, "
                f"found input tensor with {dtype_name(dtype)} and {kind} tensor with {dtype_name(t.dtype)}"
            )
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's C++ messages call it: Float, Double, Half, BFloat16, ..."""
    return torch.empty(0, dtype=dtype).type().split(".")[-1].removesuffix("Tensor")
