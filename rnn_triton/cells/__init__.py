"""Cells: what a recurrent layer computes in a step.  `Cell` describes one; Elman's are registered here."""

from . import elman as _  # noqa: F401  (registers its cells)
from .cell import Cell, named, register

__all__ = ["Cell", "named", "register"]
