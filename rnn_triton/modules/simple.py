"""SimpleRNN, a recurrence with a linear readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .layers import RNN
from .leaf import make_leaf


class SimpleRNN(nn.Module):
    """Runs the recurrence h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) and its linear readout y_t = W_hy h_t + b_y.

    `rnn` is the recurrence (an RNN). `readout` (an nn.Linear, W_hy and b_y) reads the states of the last layer, of both
    directions if bidirectional. bias=False leaves out all biases. The other arguments are those of RNN.
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, *, num_layers: int = 1, dropout: float = 0.0, bidirectional: bool = False,
        precision: str | None = None, heads: int = 1, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rnn = RNN(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
            precision=precision, heads=heads, device=device, dtype=dtype,
        )  # fmt: skip
        states = hidden_size * (2 if bidirectional else 1)
        self.readout = nn.Linear(states, output_size, bias=bias, device=device, dtype=dtype)
        make_leaf(self)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None, reset: Tensor | None = None,
        reset_state: Tensor | None = None, validate: bool = False,
    ) -> tuple[Any, Tensor]:  # fmt: skip
        """Returns (outputs, h_n) as RNN.forward does, with its arguments and errors, and with the output_size features of the readout in
        place of the states.  Beyond a length it reads zeros: outputs are b_y there."""
        given: dict[str, Any] = {}
        if lengths is not None or reset is not None or reset_state is not None:  # else `rnn` may be torch's, as `restore` leaves it
            given = dict(lengths=lengths, reset=reset, reset_state=reset_state, validate=validate)
        hidden, h_n = self.rnn(input, hx, **given)
        if isinstance(hidden, PackedSequence):
            return PackedSequence(self.readout(hidden.data), *hidden[1:]), h_n
        if self.rnn.batch_first and hidden.dim() == 3:
            # time-major is how the states lie in memory: the readout of the transposed view would copy them
            return self.readout(hidden.transpose(0, 1)).transpose(0, 1), h_n
        return self.readout(hidden), h_n
