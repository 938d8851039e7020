"""What a cell is: the one description of it that kernels, planner, launches, operators and the reference ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from triton.runtime import KernelInterface

Tensors = tuple[Tensor, ...]


class Routes(NamedTuple):
    """What a kernel is told of a cell in one pass: which tiles there are, and which products make which of them.

    A kernel adds up `parts` tiles of pre-activations: block rec_gates[n] of W_hh times exchanged tile rec_states[n], for each n, into
    part rec_parts[n], with that block's bias; and block g of W_ih times x, with its bias, into part in_parts[g]."""

    parts: int
    rec_gates: tuple[int, ...]
    rec_states: tuple[int, ...]
    rec_parts: tuple[int, ...]
    in_parts: tuple[int, ...]  # backward: (), the gradient of y goes to part 0
    carried: int
    published: int
    exchanged: int  # of the published tiles, the first ones
    kept: int  # tiles that the forward pass saves, besides y
    reads_y: bool  # backward: y is the first of the saved tiles
    vectors: int
    kept_states: tuple[int, ...] = ()  # forward: carried tiles that are saved in place of those that the cell keeps


class Onnx(NamedTuple):
    """ONNX's operator of a cell."""

    operator: str
    activations: tuple[str, ...]
    gates: tuple[str, ...] = ()  # in its order, unless it is that of the cell
    attributes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A recurrent cell of H hidden units, elementwise over them but for its two products:

        a_g = W_ih_g x_t + b_ih_g + W_hh_g h_{t-1} + b_hh_g    for each gate g
        states_t = step(a, states_{t-1}, vectors)

    `gates` are the blocks of H rows in W_ih, W_hh and the biases, in torch's order; `states` are what a step hands to the next, the
    first of them being the output y, which W_hh multiplies.  A gate in `split` comes to the cell in two parts, W_hh_g h_{t-1} + b_hh_g
    in its place and W_ih_g x_t + b_ih_g behind all gates."""

    name: str  # in problems, plans, records, names of kernels and the schemas of operators
    gates: tuple[str, ...]
    states: tuple[str, ...]
    split: tuple[str, ...] = ()  # the last gates, if any: GRU's ("n",)
    carried: tuple[str, ...] = ()  # states of which the kernels keep what is not rounded: GRU's ("h",), LSTM's ("c",)
    vectors: tuple[str, ...] = ()  # parameters of the cell itself, a value a hidden unit
    kept: int = 0  # tiles that the forward device function hands to the backward one
    reads_y: bool = False  # the backward device function reads y, too, as the first of them
    step: Callable[[Tensors, Tensors, Tensors], Tensors]  # in torch, differentiable to any order: (a, states, vectors) -> states
    forward: Any  # device functions of kernels/cells.py, whose head says what they take and return
    backward: Any
    special: int  # instructions of the special-function unit (MUFU) that a hidden unit's forward step takes in 16 bits; backward none
    aten: str = ""  # the function of torch._VF that runs whole layers on CPU tensors, if there is one
    onnx: Onnx | None = None  # ONNX's operator, if there is one

    @property
    def unseen(self) -> tuple[int, ...]:
        """Of the carried states those that y does not give, by their numbers in `carried`."""
        return tuple(n for n, state in enumerate(self.carried) if state != self.states[0])

    def routes(self, forward: bool, recompute: bool = False) -> Routes:
        """Returns what a kernel is told of this cell, in its forward or its backward pass.

        The backward pass publishes the gradients of a: of the recurrent parts of `split` gates first, then of all gates (of the input
        parts, where they are split) in order.  So the gradients for W_hh are the first tiles, those for W_ih the last ones.  Behind what
        the cell carries it carries the gradients of its vectors.  With `recompute` the forward pass saves nothing but the carried states
        that y does not give, from which what is kept is computed again."""
        G, S = len(self.gates), len(self.split)
        gates, ones = tuple(range(G)), (0,) * G
        C, V = len(self.carried), len(self.vectors)
        if forward:
            in_parts = gates[: G - S] + tuple(range(G, G + S))
            states = self.unseen if recompute and self.kept else ()
            kept = len(states) if recompute else self.kept
            return Routes(G + S, gates, ones, gates, in_parts, C, 1, 1, kept, False, V, states)
        rec_gates = gates[G - S :] + gates[: G - S]
        return Routes(1, rec_gates, gates, ones, (), C + V, G + S, G, self.kept, self.reads_y, V)


_KNOWN: dict[str, Cell] = {}


def check(cell: Cell) -> None:
    """Raises ValueError if fields of a cell contradict each other, or are not of their type."""
    if not isinstance(cell.name, str) or not cell.name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {cell.name!r}")
    for field in ("gates", "states", "split", "carried", "vectors"):
        names = getattr(cell, field)
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
            raise ValueError(f"{field} must be a tuple of different names, got {names!r}")
        if not names and field in ("gates", "states"):
            raise ValueError(f"{field} must name one at least, got ()")
    if cell.split != cell.gates[len(cell.gates) - len(cell.split) :]:
        raise ValueError(f"split must be the last of the gates {cell.gates}, got {cell.split}")
    if not {*cell.states[1:]} <= {*cell.carried} <= {*cell.states}:
        raise ValueError(f"carried must be states of {cell.states}, and all but the first of them, got {cell.carried}")
    for field in ("kept", "special"):
        number = getattr(cell, field)
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{field} must be a number of 0 or more, got {number!r}")
    for field in ("forward", "backward"):
        if not isinstance(getattr(cell, field), KernelInterface):
            raise ValueError(f"{field} must be a function with triton.jit, got {getattr(cell, field)!r}")
    if not callable(cell.step):
        raise ValueError(f"step must be a function of torch, got {cell.step!r}")


def register(cell: Cell) -> Cell:
    """Makes a cell known by its name, for good, and returns it.

    ValueError: another cell has the name, or a field is not what it should be."""
    check(cell)
    if _KNOWN.setdefault(cell.name, cell) is not cell:
        raise ValueError(f"name must not be that of a registered cell, got {cell.name!r}")
    return cell


def named(name: str) -> Cell:
    """Returns the registered cell of this name.  ValueError: there is none."""
    try:
        return _KNOWN[name]
    except KeyError:
        raise ValueError(f"cell must be one of {', '.join(_KNOWN)}, got {name!r}") from None
