"""Cells: what a recurrent layer computes in a step.  `Cell` describes one; Elman's, leaky ones, GRU and LSTM are registered here."""

from . import elman, gru, leaky, lstm  # noqa: F401  (each registers its cells)
from .cell import Cell, named, register

__all__ = ["Cell", "named", "register"]
