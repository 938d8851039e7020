"""Single steps: RNNCell, LSTMCell and GRUCell, which stand in for those of torch.nn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import cells, checks, functional
from ..cells import Cell
from ..cells.elman import ELMAN
from ..errors import UnsupportedError
from .leaf import make_leaf


class Step(nn.RNNCellBase):
    """A step of a cell, on the kernels of layers, called and checked as the cells of torch.nn.  A derived class says which cell.

    A loop over steps launches a kernel for each; layers run all steps in one launch. Sizes of 0 raise UnsupportedError.
    """

    _cell: Cell
    _states: tuple[str, ...] = ("h",)  # of the cell
    _name: str  # torch's
    _state = "hidden"  # torch's word for a state; {n} for its number
    _states_first = True  # torch multiplies states before the input, so it is their dtype that it refuses first

    def __init__(self, input_size: int, hidden_size: int, bias: bool, gates: int, device: Any, dtype: Any, precision: str | None):
        super().__init__(input_size, hidden_size, bias, num_chunks=gates, device=device, dtype=dtype)
        if input_size == 0 or hidden_size == 0:
            raise UnsupportedError(
                f"rnn_triton.{self._name} needs sizes above 0, got input_size={input_size}, hidden_size={hidden_size}"
            )
        self.precision = precision
        make_leaf(self)

    def forward(self, input: Tensor, hx: checks.States | None = None) -> Any:
        """Returns the next state, [B,H] or [H], from input [B,I] or [I] and hx [B,H] or [H] (zeros if None); of a cell with several
        states hx and the result are tuples with one for each."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"{self._name}: Expected input to be 1D or 2D, got {dim}D instead")
        states = () if hx is None else checks.states_of(hx, self._states)
        for n, t in enumerate(states):
            if t.dim() not in (1, 2):
                raise ValueError(f"{self._name}: Expected {self._state.format(n=n)} to be 1D or 2D, got {t.dim()}D instead")
        x = input if dim == 2 else input.unsqueeze(0)
        states = states if dim == 2 else tuple([t.unsqueeze(0) for t in states])
        cell, w_ih, w_hh = self._cell, self.weight_ih, self.weight_hh  # once: parametrizations may compute them
        self._check(x, states, w_ih, w_hh)
        weights = (w_ih, w_hh, self.bias_ih, self.bias_hh)
        _, last = functional.layer(x.unsqueeze(0), weights, states, cell, precision=self.precision)
        last = last if dim == 2 else tuple([t.squeeze(0) for t in last])
        return last if len(last) > 1 else last[0]

    def _check(self, x: Tensor, states: tuple[Tensor, ...], w_ih: Tensor, w_hh: Tensor) -> None:
        """Raises torch's error if x [B,I], the states (of any shape) and the weights do not fit, checking in torch's order."""
        B, I = x.shape
        if w_ih.shape[1] != I:
            raise RuntimeError(f"input has inconsistent input_size: got {I} expected {w_ih.shape[1]}")
        H = w_hh.shape[1]
        for n, state in enumerate(states):
            if state.shape[0] != B:
                raise RuntimeError(f"Input batch size {B} doesn't match hidden{n} batch size {state.shape[0]}")
            if state.size(1) != H:
                raise RuntimeError(f"hidden{n} has inconsistent hidden_size: got {state.size(1)}, expected {H}")
        for state in states:
            if state.dim() == 3:
                raise ValueError(f"hx must have shape [H] = [{H}] for an input [I], got {list(state.shape[1:])}")
        if not torch._C._is_any_autocast_enabled():
            pairs = [(states[0] if states else x, w_hh), (x, w_ih)]
            for t, weight in pairs if self._states_first else reversed(pairs):
                if t.dtype is not weight.dtype:
                    names = [checks.dtype_name(dtype) for dtype in (t.dtype, weight.dtype)]
                    raise RuntimeError("mat1 and mat2 must have the same dtype, but got {} and {}".format(*names))


class RNNCell(Step):
    """Stands in for torch.nn.RNNCell, on the kernels of RNN: it has torch.nn.RNNCell's constructor, parameters, call and errors.

    `precision` is that of `rnn_triton.rnn`.
    """

    _name = "RNNCell"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, precision: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 1, device, dtype, precision)
        self.nonlinearity = nonlinearity

    @property
    def _cell(self) -> Cell:  # type: ignore[override]
        if self.nonlinearity not in tuple(ELMAN):  # of what cannot be hashed, too
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return ELMAN[self.nonlinearity]


class GRUCell(Step):
    """Stands in for torch.nn.GRUCell as RNNCell does for torch.nn.RNNCell."""

    _cell = cells.named("gru")
    _name = "GRUCell"
    _states_first = False

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, *, precision: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 3, device, dtype, precision)


class LSTMCell(Step):
    """Stands in for torch.nn.LSTMCell as RNNCell does for torch.nn.RNNCell.  hx and the result are (h, c)."""

    _cell = cells.named("lstm")
    _states = _cell.states
    _name = "LSTMCell"
    _state = "hx[{n}]"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, *, precision: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 4, device, dtype, precision)
