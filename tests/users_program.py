"""A user's program that has every public name in it. mypy reads it as strictly as it can (pyproject.toml); a test runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rnn_triton
from rnn_triton import cells


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = rnn_triton.LSTM(4, 6, num_layers=2, batch_first=True)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y, _ = self.lstm(x, state)
        out: Tensor = self.readout(y)
        return out


def layers(x: Tensor) -> list[Tensor]:
    gru = cells.named("gru")
    made = [
        rnn_triton.RNN(4, 6, nonlinearity="relu"), rnn_triton.GRU(4, 6, recompute=True), rnn_triton.LeakyRNN(4, 6, leak=0.5),
        rnn_triton.Recurrent(gru, 4, 6), rnn_triton.SimpleRNN(4, 6, 2),
    ]  # fmt: skip
    return [layer(x)[0] for layer in made]


def steps(x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    return rnn_triton.RNNCell(4, 6)(x), rnn_triton.GRUCell(4, 6)(x), rnn_triton.LSTMCell(4, 6)(x)


def functions(x: Tensor) -> Tensor:
    def weights(gates: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(gates * 6, 4), torch.zeros(gates * 6, 6)

    y, h_n = rnn_triton.rnn(x, *weights(1), nonlinearity="tanh", precision="ieee")
    y, h_n = rnn_triton.gru(y[..., :4], *weights(3), h0=h_n)
    y, (h_n, c_n) = rnn_triton.lstm(y[..., :4], *weights(4), states=(h_n, h_n))
    y, h_n = rnn_triton.leaky(y[..., :4], *weights(1), 0.5, h0=c_n, reverse=True)
    return y


def program() -> str:
    x = torch.randn(3, 2, 4)
    Model()(x).sum().backward()
    layers(x), steps(x[0]), functions(x)
    try:
        rnn_triton.check_cell(cells.named("lstm"))
    except rnn_triton.UnsupportedError as error:
        print(error)  # there is neither a GPU nor an interpreter
    try:
        rnn_triton.synchronize()
    except rnn_triton.ExchangeError as error:
        print(error)
    replaced: rnn_triton.Replaced[nn.LSTM] = rnn_triton.replace(nn.LSTM(4, 6))
    rnn_triton.restore(replaced.model)
    rnn_triton.onnx.decompositions()
    with rnn_triton.overriding(regime="per_step"):
        text: str = rnn_triton.explain(3, 2, 4, 6, dtype=torch.bfloat16)
    return text
