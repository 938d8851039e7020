"""Cells: what a recurrent layer computes in a step.  `Cell` describes one; Elman's, GRU and LSTM are registered here."""

from . import elman, gru, lstm  # noqa: F401  (each registers its cells)
from .cell import Cell, named, register

__all__ = ["Cell", "named", "register"]
