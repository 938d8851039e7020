"""The modules: RNN and RNNCell, which stand in for those of torch.nn, and SimpleRNN, a recurrence with a linear readout."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, functional, packed
from .cells.elman import ELMAN
from .errors import UnsupportedError


class RNN(nn.RNNBase):
    """Stands in for torch.nn.RNN, on persistent kernels: it has torch.nn.RNN's constructor, parameters, initial values, state_dict,
    call and errors.

    Constructor arguments are those of torch.nn.RNN, and `precision`, that of `rnn_triton.rnn`. Unlike torch.nn.RNN, the backward
    pass also works in eval mode and is differentiable to any order; weights are read at each call and need not lie together in
    memory; batch_first costs no copy (the output is a transposed view); isinstance(module, torch.nn.RNN) is False.
    """

    # nn.RNNBase, not nn.RNN: Dynamo refuses to trace instances of the latter
    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        *args: Any,  # as torch takes them: proj_size, which must be 0, device, dtype
        precision: str | None = None,
        **kwargs: Any,  # device, dtype
    ) -> None:  # fmt: skip
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        checks.elman(nonlinearity)
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, *args, **kwargs
        )
        if self.proj_size:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        # torch takes these, and refuses them at the first call without naming the argument
        if not isinstance(bidirectional, bool):
            raise TypeError(f"bidirectional should be of type bool, got: {type(bidirectional).__name__}")
        if isinstance(num_layers, bool) or getattr(num_layers, "dtype", None) is torch.bool:
            raise TypeError("num_layers should be of type int, got: bool")
        self.nonlinearity = nonlinearity
        self.precision = precision
        _make_leaf(self, RNN)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read separate weights, and keep the alignment each has by itself."""

    def _init_flat_weights(self) -> None:
        self._take_weights()

    def _take_weights(self) -> list[Any]:
        """Returns the weights as they are now, and keeps them for torch's checks in a form that can be copied: without the graph,
        if a parametrization computes them."""
        super()._init_flat_weights()
        weights = self._flat_weights
        self._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in weights]
        return weights

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Returns (output, h_n) for L layers in D directions.

        input is [T,B,I], [B,T,I] if batch_first, [T,I] without a batch, or a PackedSequence. hx (zeros if None) and h_n are
        [L*D,B,H], or [L*D,H] with an input [T,I]: layer by layer, and in each layer the forward direction before the reverse one.
        With a PackedSequence their rows are in the order of its sequences before they were sorted. output has the form of input,
        with D*H features in place of I.

        Raises torch.nn.RNN's errors for shapes, dtypes and devices that do not fit together.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        dim = input.dim()
        if dim == 3:
            x = input.transpose(0, 1) if self.batch_first else input
        elif dim == 2:
            x = input.unsqueeze(1)
        else:
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {dim}D tensor instead")
        if hx is not None:
            if hx.dim() != dim:
                kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {hx.dim()}-D tensor")
            if dim == 2:
                hx = hx.unsqueeze(1)
            if hx.shape != self._state_shape(x.shape[1]):
                self._refuse(x.transpose(0, 1) if self.batch_first else x, hx, None)
        y, h_n = self._run(x, hx)
        if dim == 2:
            return y.squeeze(1), h_n.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y, h_n

    def _forward_packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        sizes = batch_sizes.tolist()  # of a tensor on the CPU
        if data.dim() != 2 or hx is not None and hx.size() != self._state_shape(sizes[0]):
            self._refuse(data, hx, batch_sizes)
        pieces = packed.pieces_of(sizes, data.shape[0])
        h0 = None if hx is None else self.permute_hidden(hx, sorted_indices)
        y, h_n = self._run(data, h0, pieces)
        return (
            PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices),
            self.permute_hidden(h_n, unsorted_indices),
        )

    def _state_shape(self, batch: int) -> tuple[int, int, int]:
        return self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size

    def _refuse(self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None) -> None:
        """Raises torch's error for arguments that do not fit.  Like torch, it checks the input before hx."""
        self._update_flat_weights()
        self.check_input(input, batch_sizes)
        if hx is not None:
            self.check_hidden_size(hx, self.get_expected_hidden_size(input, batch_sizes))

    def _run(self, x: Tensor, h0: Tensor | None, pieces: list[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        # The weights as they are now: functional_call, load_state_dict(assign=True), parametrizations and pruning put others in
        # place. They are mostly registered parameters, for which Module.__getattr__ would take 4 times as long.
        registered = self._parameters
        try:
            weights: list[Any] = [registered[name] for name in self._flat_weights_names]
        except KeyError:
            weights = self._computed()
        return functional.network(
            x,
            weights,
            h0,
            bias=self.bias,
            nonlinearity=self.nonlinearity,
            bidirectional=self.bidirectional,
            dropout=self.dropout if self.training else 0.0,
            precision=self.precision,
            packed=None if pieces is None else functools.partial(packed.rnn, pieces=pieces),
        )

    def _computed(self) -> list[Any]:
        """Returns the weights if parametrizations compute some of them, computing each as often as torch does: one with a state,
        such as spectral_norm, then trains as in torch.nn.RNN."""
        if torch.compiler.is_compiling() or not self._weights_have_changed():
            return [getattr(self, name) for name in self._flat_weights_names]
        return self._take_weights()


class RNNCell(nn.RNNCellBase):
    """Stands in for torch.nn.RNNCell, on the kernels of RNN: it has torch.nn.RNNCell's constructor, parameters, call and errors.

    `precision` is that of `rnn_triton.rnn`. A loop over a cell launches a kernel for each step; RNN runs all steps in one launch.
    Sizes of 0 raise UnsupportedError.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, precision: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        if input_size == 0 or hidden_size == 0:
            raise UnsupportedError(
                f"rnn_triton.RNNCell needs sizes above 0, got input_size={input_size}, hidden_size={hidden_size}"
            )
        self.nonlinearity = nonlinearity
        self.precision = precision
        _make_leaf(self, RNNCell)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Returns the next state, [B,H] or [H], from input [B,I] or [I] and hx [B,H] or [H] (zeros if None)."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        x = input if dim == 2 else input.unsqueeze(0)
        h0 = hx if hx is None or dim == 2 else hx.unsqueeze(0)
        if self.nonlinearity not in tuple(ELMAN):  # of what cannot be hashed, too
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        w_ih, w_hh = self.weight_ih, self.weight_hh  # once: parametrizations may compute them
        self._check(x, h0, w_ih, w_hh)
        _, h = functional.rnn(
            x.unsqueeze(0), w_ih, w_hh, self.bias_ih, self.bias_hh, h0, nonlinearity=self.nonlinearity, precision=self.precision
        )
        return h if dim == 2 else h.squeeze(0)

    def _check(self, x: Tensor, h0: Tensor | None, w_ih: Tensor, w_hh: Tensor) -> None:
        """Raises torch's error if x [B,I], h0 (of any shape) and the weights do not fit, checking in torch's order."""
        B, I = x.shape
        if w_ih.shape[1] != I:
            raise RuntimeError(f"input has inconsistent input_size: got {I} expected {w_ih.shape[1]}")
        if h0 is not None:
            H = w_hh.shape[1]
            if h0.shape[0] != B:
                raise RuntimeError(f"Input batch size {B} doesn't match hidden0 batch size {h0.shape[0]}")
            if h0.size(1) != H:
                raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {h0.size(1)}, expected {H}")
            if h0.dim() == 3:
                raise ValueError(f"hx must have shape [H] = [{H}] for an input [I], got {list(h0.shape[1:])}")
        if not torch._C._is_any_autocast_enabled():
            for t, weight in ((x if h0 is None else h0, w_hh), (x, w_ih)):
                if t.dtype is not weight.dtype:
                    names = [checks.dtype_name(dtype) for dtype in (t.dtype, weight.dtype)]
                    raise RuntimeError("mat1 and mat2 must have the same dtype, but got {} and {}".format(*names))


class SimpleRNN(nn.Module):
    """Runs the recurrence h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) and its linear readout y_t = W_hy h_t + b_y.

    `rnn` is the recurrence (an RNN). `readout` (an nn.Linear, W_hy and b_y) reads the states of the last layer, of both
    directions if bidirectional. bias=False leaves out all biases. The other arguments are those of RNN.
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, *, num_layers: int = 1, dropout: float = 0.0, bidirectional: bool = False,
        precision: str | None = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rnn = RNN(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
            precision=precision, device=device, dtype=dtype,
        )  # fmt: skip
        states = hidden_size * (2 if bidirectional else 1)
        self.readout = nn.Linear(states, output_size, bias=bias, device=device, dtype=dtype)
        _make_leaf(self, SimpleRNN)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Returns (outputs, h_n) as RNN.forward does, with the output_size features of the readout in place of the states."""
        hidden, h_n = self.rnn(input, hx)
        if isinstance(hidden, PackedSequence):
            return PackedSequence(self.readout(hidden.data), *hidden[1:]), h_n
        if self.rnn.batch_first and hidden.dim() == 3:
            # time-major is how the states lie in memory: the readout of the transposed view would copy them
            return self.readout(hidden.transpose(0, 1)).transpose(0, 1), h_n
        return self.readout(hidden), h_n


def _make_leaf(module: nn.Module, cls: type) -> None:
    """Makes torch.fx take `module` as a leaf in place of tracing through it, unless it is of a class derived from `cls`, which may
    change what the module does.  torch.fx asks a module for `__module__`, and takes those of torch.nn as leaves."""
    if type(module) is cls:
        module.__dict__["__module__"] = f"torch.nn:{cls.__module__}"
