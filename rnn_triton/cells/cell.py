"""What a cell is: the one description of it that kernels, planner, launches, operators and the reference ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A recurrent cell of H hidden units, elementwise over them but for its two products:

        a_g = W_ih_g x_t + b_ih_g + W_hh_g h_{t-1} + b_hh_g    for each gate g
        states_t = step(a, states_{t-1})

    `gates` are the blocks of H rows in W_ih, W_hh and the biases, in torch's order; `states` are what a step hands to the next, the
    first of them being the output y, which W_hh multiplies."""

    name: str  # in problems, plans, records, names of kernels and the schemas of operators
    gates: tuple[str, ...]
    states: tuple[str, ...]
    step: Callable[
        [Tensors, Tensors], Tensors
    ]  # in torch, differentiable to any order: (a, states) -> states
    forward: Any  # device functions of kernels/cells.py, whose head says what they take and return
    backward: Any
    transcendentals: (
        int  # values of tanh, exp or the like that a unit's forward step evaluates; the backward step: none
    )
    aten: str  # the function of torch._VF that runs whole layers on CPU tensors
    onnx: tuple[str, tuple[str, ...]]  # ONNX's operator and its activations


_KNOWN: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Makes a cell known by its name, for good, and returns it.  ValueError: another cell has the name."""
    if _KNOWN.setdefault(cell.name, cell) is not cell:
        raise ValueError(f"name must not be that of a registered cell, got {cell.name!r}")
    return cell


def named(name: str) -> Cell:
    """Returns the registered cell of this name.  ValueError: there is none."""
    try:
        return _KNOWN[name]
    except KeyError:
        raise ValueError(f"cell must be one of {', '.join(_KNOWN)}, got {name!r}") from None
