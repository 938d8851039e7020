"""Persistent recurrent networks for PyTorch, written in Triton."""

from .errors import UnsupportedError
from .functional import rnn
from .modules import RNN, SimpleRNN
from .plan import explain

__all__ = ["RNN", "SimpleRNN", "UnsupportedError", "explain", "rnn"]
__version__ = "0.1.0"
