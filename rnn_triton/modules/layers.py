"""Layers of one cell in one or two directions: RNN, LSTM and GRU, which stand in for those of torch.nn, and the class they share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import cells, checks, functional, packed, projection
from .. import heads as of_heads
from ..cells import Cell
from ..cells.elman import ELMAN
from .leaf import make_leaf


class Layers(nn.RNNBase):
    """L layers of a cell in D directions, called and checked as those of torch.nn.  A derived class says which cell.

    Unlike those of torch.nn, the backward pass also works in eval mode and is differentiable to any order; weights are read at each
    call and need not lie together in memory; batch_first costs no copy (the output is a transposed view).
    """

    # nn.RNNBase, not nn.RNN and its like: Dynamo refuses to trace instances of those
    _cell: Cell
    heads = 1  # blocks of W_hh
    _wrong_input = "{name}: Expected input to be 2D or 3D, got {dim}D instead"

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool, dropout: float,
        bidirectional: bool, *args: Any, precision: str | None, recompute: bool = False, heads: int = 1, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Takes the arguments of nn.RNNBase.  Checks here what torch checks at the first call, without naming the argument.

        With `heads` = N the hidden units are N groups of H/N, each of which reads its own of the state before: W_hh is block-diagonal, and
        weight_hh_l0 is [N,G*H/N,H/N] for G gates.  Rows of weight_ih_l0 and of biases lie head by head, in each gate by gate."""
        super().__init__(mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, *args, **kwargs)
        if not isinstance(bidirectional, bool):
            raise TypeError(f"bidirectional should be of type bool, got: {type(bidirectional).__name__}")
        if isinstance(num_layers, bool) or getattr(num_layers, "dtype", None) is torch.bool:
            raise TypeError("num_layers should be of type int, got: bool")
        self.precision = precision
        self.recompute = recompute
        of_heads.check(heads, self.hidden_size, self.proj_size)
        if heads > 1:
            self._divide(heads)
        make_leaf(self)

    def _divide(self, heads: int) -> None:
        """Puts weights of `heads` blocks in place of each W_hh, and draws all weights anew."""
        self.heads = heads
        for name in self._flat_weights_names:
            if name.startswith("weight_hh"):
                w = getattr(self, name)
                blocks = torch.empty(heads, *[n // heads for n in w.shape], device=w.device, dtype=w.dtype)
                setattr(self, name, nn.Parameter(blocks))
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as torch does, from U(-1/sqrt(H), 1/sqrt(H)); with heads those of W_hh, which multiply the H/N units
        of a head, from U(-1/sqrt(H/N), 1/sqrt(H/N))."""
        super().reset_parameters()
        if self.heads > 1:
            for name, weight in self.named_parameters():
                if name.startswith("weight_hh"):
                    nn.init.uniform_(weight, -self._bound(name), self._bound(name))

    def _bound(self, name: str) -> float:
        """Returns the largest absolute value that a parameter is drawn with."""
        return (self.hidden_size / (self.heads if name.startswith("weight_hh") else 1)) ** -0.5

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", heads={self.heads}" if self.heads > 1 else "")

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

    def forward(
        self, input: Tensor | PackedSequence, hx: checks.States | None = None, lengths: Tensor | None = None,
        reset: Tensor | None = None, reset_state: checks.States | None = None, validate: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Returns (output, h_n) for L layers in D directions.

        input is [T,B,I], [B,T,I] if batch_first, [T,I] without a batch, or a PackedSequence. hx (zeros if None) and h_n are one tensor
        if the cell has one state, else a tuple with one for each. Each is [L*D,B,H], or [L*D,H] with an input [T,I]: layer by layer,
        and in each layer the forward direction before the reverse one. With a PackedSequence their rows are in the order of its
        sequences before they were sorted. output has the form of input, with D*H features in place of I.

        `lengths` are integers [B], `reset` is bool [T,B], [B,T] if batch_first, and `reset_state` has the form of hx; with an input [T,I]
        they have no B. All layers and directions share them, as `rnn_triton.rnn` describes them, `validate` included. A PackedSequence,
        which has lengths of its own, takes none of them.

        Raises torch's errors for shapes, dtypes and devices that do not fit together, ValueError for those of sequences.
        """
        states = () if hx is None else checks.states_of(hx, self._cell.states)
        of_sequences: dict[str, Any] = {}
        if lengths is not None or reset is not None or reset_state is not None:
            if isinstance(input, PackedSequence):
                raise ValueError("lengths, reset and reset_state must be None for a PackedSequence, which has lengths of its own")
            of_sequences = self._of_sequences(input.dim(), lengths, reset, reset_state) | dict(validate=validate)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, states)
        dim = input.dim()
        if dim == 3:
            x = input.transpose(0, 1) if self.batch_first else input
        elif dim == 2:
            x = input.unsqueeze(1)
        else:
            raise ValueError(self._wrong_input.format(name=self.mode, dim=dim))
        if states:
            self._check_dims(states, dim)
            if dim == 2:
                states = tuple([t.unsqueeze(1) for t in states])
            self._check_sizes(states, x.shape[1], x.transpose(0, 1) if self.batch_first else x, None)
        y, last = self._run(x, states, **of_sequences)
        if dim == 2:
            y, last = y.squeeze(1), tuple([t.squeeze(1) for t in last])
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, last if len(last) > 1 else last[0]

    def _forward_packed(self, input: PackedSequence, states: tuple[Tensor, ...]) -> tuple[PackedSequence, checks.States]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if data.dim() != 2:
            self.check_input(data, batch_sizes)
        self._check_sizes(states, int(batch_sizes[0]), data, batch_sizes)  # of a tensor on the CPU
        batch = packed.Packed.of(data, batch_sizes)
        states = tuple([self.permute_hidden(t, sorted_indices) for t in states])

        def drop(y: Tensor, dropout: float) -> Tensor:  # torch draws masks of packed rows
            return batch.pad(nn.functional.dropout(batch.pick(y), dropout))

        y, last = self._run(batch.pad(data), states, lengths=batch.lengths, drop=drop)
        last = tuple([self.permute_hidden(t, unsorted_indices) for t in last])
        return PackedSequence(batch.pick(y), batch_sizes, sorted_indices, unsorted_indices), last if len(last) > 1 else last[0]

    def _of_sequences(
        self, dim: int, lengths: Tensor | None, reset: Tensor | None, reset_state: checks.States | None
    ) -> dict[str, Any]:
        """Returns what functional.network takes as options of sequences, for an input of so many dimensions."""
        restart = () if reset_state is None else checks.states_of(reset_state, self._cell.states, "reset_state")
        if dim == 2:
            lengths = lengths.unsqueeze(0) if isinstance(lengths, Tensor) else lengths  # anything else is refused later
            reset = reset.unsqueeze(1) if isinstance(reset, Tensor) and reset.dim() else reset
            restart = tuple([t.unsqueeze(1) if isinstance(t, Tensor) and t.dim() == 2 else t for t in restart])
        elif self.batch_first and isinstance(reset, Tensor) and reset.dim() == 2:
            reset = reset.transpose(0, 1)
        return dict(lengths=lengths, reset=reset, reset_state=restart)

    def _check_dims(self, states: tuple[Tensor, ...], dim: int) -> None:
        """Raises torch's error unless all states have as many dimensions as the input."""
        if all([t.dim() == dim for t in states]):
            return
        kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
        if len(states) == 1:
            raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {states[0].dim()}-D tensor")
        names, dims = " and ".join(f"{name}x" for name in self._cell.states), ", ".join(f"{t.dim()}-D" for t in states)
        raise RuntimeError(f"For {kind} input, {names} should also be {dim}-D but got ({dims}) tensors")

    def _check_sizes(self, states: tuple[Tensor, ...], batch: int, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises torch's error unless the states fit the module and `input`, as torch's check_input takes it.  Like torch, it checks
        the input first."""
        number = self.num_layers * (2 if self.bidirectional else 1)
        shapes = [(number, batch, self.hidden_size)] * len(states)
        if states and self.proj_size:
            shapes[0] = number, batch, self.proj_size
        if all([t.shape == shape for t, shape in zip(states, shapes)]):
            return
        self._update_flat_weights()
        self.check_input(input, batch_sizes)
        for n, (state, shape) in enumerate(zip(states, shapes)):
            which = "" if len(states) == 1 else f"[{n}]"
            self.check_hidden_size(state, shape, f"Expected hidden{which} size {{}}, got {{}}")

    def _run(self, x: Tensor, states: Sequence[Tensor], **of_sequences: Any) -> functional.Results:
        one: Callable[..., functional.Results] | None = None
        if self.proj_size:
            one = functools.partial(projection.layer, one=functional.layer)
        if self.heads > 1:
            one = functools.partial(functional.layer, heads=self.heads)
        return functional.network(
            x,
            self._weights(),
            states,
            self._cell,
            bias=self.bias,
            bidirectional=self.bidirectional,
            dropout=self.dropout if self.training else 0.0,
            precision=self.precision,
            recompute=self.recompute,
            one=one,
            more=1 if self.proj_size else 0,
            **of_sequences,
        )

    def _weights(self) -> list[Any]:
        """Returns the weights as they are now: functional_call, load_state_dict(assign=True), parametrizations and pruning put others
        in place."""
        parameters, buffers = self._parameters, self._buffers  # mostly; Module.__getattr__ would take 4 times as long
        try:
            return [parameters[name] if name in parameters else buffers[name] for name in self._flat_weights_names]
        except KeyError:
            return self._computed()

    def _computed(self) -> list[Any]:
        """Returns the weights if parametrizations compute some of them, computing each as often as torch does: one with a state,
        such as spectral_norm, then trains as in torch.nn.RNN."""
        if torch.compiler.is_compiling() or not self._weights_have_changed():
            return [getattr(self, name) for name in self._flat_weights_names]
        return self._take_weights()


def refuse_projection(module: nn.RNNBase | None = None, **kwargs: Any) -> None:
    """Raises torch's error for a proj_size by keyword, and for one that is not 0 by place."""
    if "proj_size" in kwargs or module is not None and module.proj_size:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(Layers):
    """Stands in for torch.nn.RNN, on persistent kernels: it has torch.nn.RNN's constructor, parameters, initial values, state_dict,
    call and errors, but isinstance(module, torch.nn.RNN) is False.  `precision` is that of `rnn_triton.rnn`, `heads` that of Layers.
    """

    _wrong_input = "RNN: Expected input to be 2D or 3D, got {dim}D tensor instead"

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        *args: Any,  # as torch takes them: proj_size, which must be 0, device, dtype
        precision: str | None = None, heads: int = 1,
        **kwargs: Any,  # device, dtype
    ) -> None:  # fmt: skip
        refuse_projection(**kwargs)
        checks.elman(nonlinearity)
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, *args,
            precision=precision, heads=heads, **kwargs,
        )  # fmt: skip
        refuse_projection(self)
        self.nonlinearity = nonlinearity

    @property
    def _cell(self) -> Cell:  # type: ignore[override]
        return checks.by_nonlinearity(ELMAN, self.nonlinearity)


class GRU(Layers):
    """Stands in for torch.nn.GRU as RNN does for torch.nn.RNN.  `precision` and `recompute` are those of `rnn_triton.gru`, `heads` is that
    of Layers."""

    _cell = cells.named("gru")

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False,
        *args: Any,  # as torch takes them: proj_size, which must be 0, device, dtype
        precision: str | None = None, recompute: bool = False, heads: int = 1,
        **kwargs: Any,  # device, dtype
    ) -> None:  # fmt: skip
        refuse_projection(**kwargs)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, *args,
            precision=precision, recompute=recompute, heads=heads, **kwargs,
        )  # fmt: skip
        refuse_projection(self)


class LSTM(Layers):
    """Stands in for torch.nn.LSTM as RNN does for torch.nn.RNN.  `precision` and `recompute` are those of `rnn_triton.lstm`, `heads` is
    that of Layers.

    With proj_size = P, which runs the layers one after the other (projection.py), output, h_0 and h_n have P in place of H."""

    _cell = cells.named("lstm")

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, *, precision: str | None = None, recompute: bool = False, heads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            precision=precision, recompute=recompute, heads=heads,
        )  # fmt: skip
