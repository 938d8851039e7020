"""What the operator is given besides data: the weights of each layer and direction, and the settings of a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cells import Cell, named
from .gradients import DB, DV, DW_HH, DW_IH

States = tuple[Tensor, ...]  # those of a cell, in its order


class Layer(NamedTuple):
    """The weights of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    vectors: tuple[Tensor, ...] = ()  # the cell's own parameters, [H] each


_new_layer: Callable[..., Layer] = functools.partial(tuple.__new__, Layer)


class _Given(NamedTuple):
    b_ih: bool  # layers have this bias
    b_hh: bool
    cell: str  # its name
    direction: str  # "forward", "reverse" (backwards in time) or "both"
    precision: str | None  # "tf32", "tf32x3" or "ieee" for fp32, None for other dtypes
    dropped: int = 0  # of 65536 elements between layers
    recompute: bool = False  # the backward pass computes again what its cell would keep


class Settings(_Given):
    """What a network is besides tensors, as the ops take it.  A layer is a network of one layer in one direction.

    What follows from the fields is kept with them, and `settings` makes each only once."""

    @property  # not kept: Dynamo knows a cell by where it lies
    def described(self) -> Cell:
        return named(self.cell)

    @functools.cached_property
    def directions(self) -> int:
        return 2 if self.direction == "both" else 1

    @functools.cached_property
    def no_states(self) -> tuple[None, ...]:
        """What stands for states of zeros in launches."""
        return (None,) * len(self.described.states)

    @functools.cached_property
    def tiles(self) -> int:
        """The number of tiles that launches of a forward pass keep."""
        return len(self.described.unseen) if self.recompute and self.described.kept else self.described.kept

    @functools.cached_property
    def tensors(self) -> int:
        """The number of weights, biases and vectors of a layer in one direction."""
        return 2 + self.b_ih + self.b_hh + len(self.described.vectors)

    @functools.cached_property
    def gradients(self) -> tuple[int, ...]:
        """The gradients that a backward pass has for a layer in one direction, each by the bit that asks for it: dw_ih, dw_hh, db, of
        a cell with split gates db_ih and db_hh in its place, and those of the vectors."""
        return DW_IH, DW_HH, *[DB] * (2 if self.described.split else 1), *[DV] * len(self.described.vectors)

    def reverse(self, n: int) -> bool:
        """True if the n-th of the recurrences, in the order of h_n, runs backwards in time."""
        return self.direction == "reverse" or (self.direction == "both" and n % 2 == 1)

    def layers(self, weights: Sequence[Any]) -> list[Layer]:
        """Returns `weights`, as the ops take them, layer by layer and direction by direction."""
        if self.b_ih and self.b_hh and len(weights) == 4:  # one layer, in less host time
            return [_new_layer((*weights, ()))]
        count, layers = self.tensors, []
        for n in range(0, len(weights), count):
            w_ih, w_hh, *others = weights[n : n + count]
            b_ih, b_hh = (others.pop(0) if there else None for there in (self.b_ih, self.b_hh))
            layers.append(Layer(w_ih, w_hh, b_ih, b_hh, tuple(others)))
        return layers


_made = functools.lru_cache(maxsize=1024)(Settings)


def settings(*fields: Any) -> Settings:
    """Returns Settings(*fields), the same object for the same fields, with what has been asked of it before."""
    return Settings(*fields) if torch.compiler.is_compiling() else _made(*fields)  # Dynamo warns of a cache


def in_turn(
    x: Tensor,
    layers: Sequence[Layer],
    states: States,
    directions: int,
    *,
    one: Callable[..., tuple[Tensor, States]],
    between: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, States]:
    """Returns (y, last) of layers that run one after the other: one(x, layer, states, n) is the n-th of them, and between(y, n) what
    layer n + 1 gets of y of layer n.  `states`, () for zeros, and the last ones as in network.py: [B,H] each of one recurrence."""
    if len(layers) == 1:
        return one(x, layers[0], states, 0)
    last: list[States] = []
    for n in range(0, len(layers), directions):
        x = between(x, n // directions - 1) if n else x
        ys = []
        for i in range(n, n + directions):
            y, after = one(x, layers[i], tuple([state[i] for state in states]), i)
            ys.append(y)
            last.append(after)
        x = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
    return x, tuple(map(torch.stack, zip(*last)))
