"""Modules: RNN in place of torch.nn.RNN, and SimpleRNN, the recurrence with its linear readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from .errors import UnsupportedError


class RNN(nn.RNNBase):
    """torch.nn.RNN on persistent kernels: same constructor, parameters, initial values, state_dict and call.

    One layer in one direction so far. `precision` as in `rnn_triton.rnn`. What differs from torch.nn.RNN:
    the backward pass also works in eval mode and is differentiable to any order; weights are read at each call
    and need not lie together in memory; batch_first costs no copy (output is a transposed view).
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    # nn.RNNBase, not nn.RNN: Dynamo refuses to trace instances of the latter
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        precision: str | None = None,
        **kwargs: Any,  # device, dtype
    ) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            **kwargs,
        )
        if num_layers > 1:
            raise UnsupportedError(f"rnn_triton.RNN has one layer so far, got num_layers={num_layers}")
        if bidirectional:
            raise UnsupportedError("rnn_triton.RNN runs in one direction so far, got bidirectional=True")
        self.nonlinearity = nonlinearity
        self.precision = precision

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read separate weights, and keep the alignment each has by itself."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(output, h_n) of input [T,B,I], [B,T,I] if batch_first, or [T,I], and hx [1,B,H] or, then, [1,H]."""
        if isinstance(input, PackedSequence):
            raise UnsupportedError("rnn_triton.RNN takes padded tensors so far, got a PackedSequence")
        dim = input.dim()
        if dim == 3:
            x = input.transpose(0, 1) if self.batch_first else input
        elif dim == 2:
            x = input.unsqueeze(1)
        else:
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {dim}D tensor instead")
        h0 = hx if hx is None else self._initial_state(x, hx, batched=dim == 3)
        y, hn = functional.rnn(
            x,
            self.weight_ih_l0,
            self.weight_hh_l0,
            self.bias_ih_l0 if self.bias else None,
            self.bias_hh_l0 if self.bias else None,
            h0,
            nonlinearity=self.nonlinearity,
            precision=self.precision,
        )
        if dim == 2:
            return y.squeeze(1), hn
        return y.transpose(0, 1) if self.batch_first else y, hn.unsqueeze(0)

    def _initial_state(self, x: Tensor, hx: Tensor, batched: bool) -> Tensor:
        """hx as h0[B,H]; an unbatched hx [1,H] is that already."""
        if batched and hx.dim() != 3:
            raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {hx.dim()}-D tensor")
        if not batched and hx.dim() != 2:
            raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {hx.dim()}-D tensor")
        expected = (1, x.shape[1], self.hidden_size)
        if hx.shape[-3:] != expected[-hx.dim() :]:
            got = list(hx.shape) if batched else [hx.shape[0], 1, hx.shape[1]]
            raise RuntimeError(f"Expected hidden size {expected}, got {got}")
        return hx[0] if batched else hx


class SimpleRNN(nn.Module):
    """The recurrence h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) with its readout y_t = W_hy h_t + b_y.

    `rnn` holds the recurrence (an RNN), `readout` W_hy and b_y (an nn.Linear); bias=False drops all biases.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        *,
        precision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.rnn = RNN(
            input_size,
            hidden_size,
            nonlinearity=nonlinearity,
            bias=bias,
            batch_first=batch_first,
            precision=precision,
            device=device,
            dtype=dtype,
        )
        self.readout = nn.Linear(hidden_size, output_size, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(outputs, h_n): as RNN.forward, with outputs [T,B,O], [B,T,O] or [T,O] for the hidden states."""
        hidden, h_n = self.rnn(input, hx)
        if self.rnn.batch_first and hidden.dim() == 3:
            # time-major is how the states lie in memory: the readout of the transposed view would copy them
            return self.readout(hidden.transpose(0, 1)).transpose(0, 1), h_n
        return self.readout(hidden), h_n
