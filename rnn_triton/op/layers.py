"""What the operator is given besides data: the weights of each layer and direction, and the settings of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """The weights of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None


class Settings(NamedTuple):
    """What a network is besides tensors, as the ops take it.  A layer is a network of one layer in one direction."""

    b_ih: bool  # layers have this bias
    b_hh: bool
    cell: str  # its name
    direction: str  # "forward", "reverse" (backwards in time) or "both"
    precision: str | None  # "tf32", "tf32x3" or "ieee" for fp32, None for other dtypes
    dropped: int = 0  # of 65536 elements between layers

    @property
    def directions(self) -> int:
        return 2 if self.direction == "both" else 1

    @property
    def tensors(self) -> int:
        """The number of weights and biases of a layer in one direction."""
        return 2 + self.b_ih + self.b_hh

    def reverse(self, n: int) -> bool:
        """True if the n-th of the recurrences, in the order of h_n, runs backwards in time."""
        return self.direction == "reverse" or (self.direction == "both" and n % 2 == 1)

    def layers(self, weights: Sequence[Any]) -> list[Layer]:
        """Returns `weights`, as the ops take them, layer by layer and direction by direction."""
        count = 2 + self.b_ih + self.b_hh
        if len(weights) == 4 == count:  # one layer, in less host time
            return [Layer._make(weights)]
        layers = [Layer(*weights[n : n + count]) for n in range(0, len(weights), count)]
        if self.b_hh and not self.b_ih:
            return [Layer(w_ih, w_hh, None, b_hh) for w_ih, w_hh, b_hh, _ in layers]  # type: ignore[misc]
        return layers


def in_turn(
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    directions: int,
    *,
    one: Callable[..., tuple[Tensor, Tensor]],
    between: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Returns (y, h_n) of layers that run one after the other: one(x, *layer, h0, n) is the n-th of them, and between(y, n) what
    layer n + 1 gets of y of layer n.  h0 and h_n as in network.py: [B,H] of one recurrence."""
    if len(layers) == 1:
        return one(x, *layers[0], h0, 0)
    h_n: list[Tensor] = []
    for n in range(0, len(layers), directions):
        x = between(x, n // directions - 1) if n else x
        ys = []
        for i in range(n, n + directions):
            y, hn = one(x, *layers[i], None if h0 is None else h0[i], i)
            ys.append(y)
            h_n.append(hn)
        x = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
    return x, torch.stack(h_n)
