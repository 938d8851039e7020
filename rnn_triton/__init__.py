"""Persistent recurrent networks for PyTorch, written in Triton."""

import torch.fx

from . import onnx
from .errors import ExchangeError, UnsupportedError
from .functional import rnn
from .launch.faults import synchronize
from .modules import RNN, RNNCell, SimpleRNN
from .plan.explain import explain
from .plan.overriding import overriding

__all__ = [
    "RNN",
    "ExchangeError",
    "RNNCell",
    "SimpleRNN",
    "UnsupportedError",
    "explain",
    "onnx",
    "overriding",
    "rnn",
    "synchronize",
]
torch.fx.wrap("rnn")  # torch.fx records calls of rnn_triton.rnn and does not look into them
__version__ = "0.1.0"
