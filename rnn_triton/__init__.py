"""Persistent recurrent networks for PyTorch, written in Triton."""

import torch.fx

from . import onnx
from .check_cell import check_cell
from .errors import ExchangeError, UnsupportedError
from .functional import gru, leaky, lstm, rnn
from .launch.faults import synchronize
from .modules import GRU, LSTM, RNN, GRUCell, LeakyRNN, LSTMCell, Recurrent, RNNCell, SimpleRNN
from .plan.explain import explain
from .plan.overriding import overriding
from .replace import Replaced, replace, restore

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ExchangeError",
    "GRUCell",
    "LSTMCell",
    "LeakyRNN",
    "RNNCell",
    "Recurrent",
    "Replaced",
    "SimpleRNN",
    "UnsupportedError",
    "check_cell",
    "explain",
    "gru",
    "leaky",
    "lstm",
    "onnx",
    "overriding",
    "replace",
    "restore",
    "rnn",
    "synchronize",
]
for _name in ("gru", "leaky", "lstm", "rnn"):
    torch.fx.wrap(_name)  # torch.fx records calls of rnn_triton.rnn and its like, and does not look into them
__version__ = "0.1.0"
