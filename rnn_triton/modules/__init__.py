"""The modules: those that stand in for torch.nn's, leaky networks, networks of any cell, and a recurrence with a readout."""

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN
from .recurrent import LeakyRNN, Recurrent
from .simple import SimpleRNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "LeakyRNN", "RNNCell", "Recurrent", "SimpleRNN"]
