"""Persistent recurrent networks for PyTorch, written in Triton."""

from .errors import ExchangeError, UnsupportedError
from .explain import explain
from .faults import synchronize
from .functional import rnn
from .modules import RNN, RNNCell, SimpleRNN
from .plan import overriding

__all__ = [
    "RNN",
    "ExchangeError",
    "RNNCell",
    "SimpleRNN",
    "UnsupportedError",
    "explain",
    "overriding",
    "rnn",
    "synchronize",
]
__version__ = "0.1.0"
