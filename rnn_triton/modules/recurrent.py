"""Layers of any registered cell, and leaky networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import cells, checks
from ..cells import Cell
from ..cells.leaky import LEAKY
from .layers import Layers


class Recurrent(Layers):
    """L layers of any registered cell in D directions, with arguments, call and errors as those of torch.nn.GRU.

    `cell` is a Cell or its name. Parameters of a layer are torch's, G*H rows for the G gates of the cell, and behind them the cell's
    vectors, [H] each: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, then `{vector}_l0`; `_reverse` behind those of the
    other direction. All are drawn from U(-1/sqrt(H), 1/sqrt(H)). hx and h_n are one tensor if the cell has one state, else a tuple.
    `precision` and `recompute` are those of `rnn_triton.gru`, `heads` is that of Layers. `module.cell` is the cell's name: copies and pickles hold that alone.
    """

    def __init__(
        self, cell: Cell | str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        *, precision: str | None = None, recompute: bool = False, heads: int = 1,
    ) -> None:  # fmt: skip
        known = cells.named(cell.name if isinstance(cell, Cell) else cell)
        if isinstance(cell, Cell) and cell is not known:
            raise ValueError(f"cell must be a registered one, got another one of the name {cell.name!r}")
        # torch checks the arguments, and names and sizes the parameters of a cell with one gate
        super().__init__(
            "RNN_TANH", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device="meta",
            precision=precision, recompute=recompute, heads=heads,
        )  # fmt: skip
        self.mode = self.cell = known.name
        for names in self._all_weights:
            for name in names:
                shape = list(getattr(self, name).shape)
                shape[-2 if name.startswith("weight") else -1] *= len(known.gates)
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            place = names[0].removeprefix("weight_ih")
            for vector in known.vectors:
                names.append(self._add_vector(vector, place, torch.empty(hidden_size, device=device, dtype=dtype)))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self.reset_parameters()

    def _add_vector(self, vector: str, place: str, value: Tensor) -> str:
        """Registers a vector of the cell of the layer and direction that `place` names, and returns the name it gave it."""
        self.register_parameter(vector + place, nn.Parameter(value))
        return vector + place

    def extra_repr(self) -> str:
        return f"{self.cell!r}, {super().extra_repr()}"

    @property
    def _cell(self) -> Cell:  # type: ignore[override]
        return cells.named(self.cell)


class LeakyRNN(Recurrent):
    """A leaky network, as a continuous-time one (CTRNN) is in steps of time dt: h_t = (1 - leak) h_{t-1} + leak f(a_t), where
    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, and leak = dt / tau.

    `leak` is a number or a tensor [H], in (0, 1], the same for all layers and directions, whose values are copied: one that requires
    grad raises ValueError. f (`nonlinearity`) is tanh or relu. All else is as in RNN, initial weights included; with leak=1 it computes
    what RNN does.

    A fixed leak is a buffer, `leak_l0`, [H], `_reverse` behind that of the other direction. With learn_leak=True it is learned, in its
    place through a parameter `leak_logit_l0`, [H], leak = sigmoid(leak_logit): so it stays in (0, 1) whatever an optimizer does, and
    nothing has to look at its value. `leak` must then be below 1, which sigmoid does not reach. `leaks` are those of now.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, *, leak: float | Tensor, learn_leak: bool = False, precision: str | None = None,
        recompute: bool = False, heads: int = 1,
    ) -> None:  # fmt: skip
        values: Any = leak
        if isinstance(leak, Tensor):
            if leak.requires_grad:  # nobody would learn it
                raise ValueError("leak must not require grad, as its values are copied (learn_leak=True learns them), got a tensor that does")
            if leak.dim() and leak.shape != (hidden_size,):
                raise ValueError(f"leak must be a number or have shape [H] = [{hidden_size}], got {list(leak.shape)}")
            values = leak.tolist()
        checks.check_leaks(values if isinstance(leak, Tensor) and leak.dim() else [values], learn_leak)
        self.nonlinearity, self.leak, self.learn_leak = nonlinearity, values, learn_leak  # before the base class resets parameters
        super().__init__(
            checks.by_nonlinearity(LEAKY, nonlinearity), input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype, precision=precision, recompute=recompute, heads=heads,
        )  # fmt: skip

    def _add_vector(self, vector: str, place: str, value: Tensor) -> str:
        if self.learn_leak:
            return super()._add_vector(f"{vector}_logit", place, value)
        self.register_buffer(vector + place, value)
        return vector + place

    def reset_parameters(self) -> None:
        """Draws weights and biases as torch does, and sets leaks to what the constructor was given."""
        leak = torch.tensor(self.leak, dtype=torch.float64, device="cpu")
        leaks = [(name, t) for name, t in self.named_buffers() if name in self._flat_weights_names]  # not masks of pruning, and the like
        for name, t in [*self.named_parameters(), *leaks]:
            if name.startswith("leak"):
                with torch.no_grad():
                    t.copy_(leak.logit() if self.learn_leak else leak)
            else:
                nn.init.uniform_(t, -self._bound(name), self._bound(name))

    def _weights(self) -> list[Tensor]:
        weights = super()._weights()
        if self.learn_leak:
            weights[self._last] = [t.sigmoid() for t in weights[self._last]]
        return weights

    @property
    def _last(self) -> slice:
        """Where the leaks are among the weights."""
        count = len(self._all_weights[0])
        return slice(count - 1, None, count)

    @property
    def leaks(self) -> Tensor:
        """The leaks of now, [L*D,H] in the order of h_n, differentiable if they are learned."""
        return torch.stack(self._weights()[self._last])

    def extra_repr(self) -> str:
        nonlinearity = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        leak = "" if isinstance(self.leak, list) else f", leak={self.leak}"
        return Layers.extra_repr(self) + nonlinearity + leak + (", learn_leak=True" if self.learn_leak else "")
