"""Compares a cell's device functions with its step in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .cells.cell import Cell, check
from .errors import UnsupportedError
from .launch import elementwise
from .launch.elementwise import Operands
from .launch.launcher import has_kernels

_ROWS, _H = 8, 16
# Of fp64, relative to the largest value of a tile: a formula that is wrong errs by far more, one that passes through fp32 by less.
_TOLERANCE = 1e-6


def check_cell(cell: Cell) -> None:
    """Runs the forward device function of a cell on small tiles and compares what it returns with `cell.step`, and the backward one
    with the derivatives that autograd finds of that step, in fp64.  The cell need not be registered.

    Raises ValueError that names every tile which differs and by how much, or which are too many or too few.  UnsupportedError: there
    is no GPU, and TRITON_INTERPRET=1 is not in the environment, with which Triton's interpreter runs the functions."""
    check(cell)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not has_kernels(torch.empty(0, device=device)):
        raise UnsupportedError("check_cell runs device functions on a GPU, or by Triton's interpreter with TRITON_INTERPRET=1: there is neither")
    _Check(cell, device).run()


class _Check:
    def __init__(self, cell: Cell, device: str) -> None:
        self.cell, self.device = cell, device
        self.generator = torch.Generator().manual_seed(0)
        self.wrong: list[str] = []

    def normal(self, count: int) -> list[Tensor]:
        """Returns tiles [rows, H], in fp64, that autograd may differentiate by."""
        tiles = torch.randn(count, _ROWS, _H, dtype=torch.float64, device="cpu", generator=self.generator).to(self.device)
        return [tile.requires_grad_() for tile in tiles]

    def run(self) -> None:
        cell, forward, backward = self.cell, self.cell.routes(True), self.cell.routes(False)
        a, states = self.normal(forward.parts), self.normal(len(cell.states))
        # of a value each unit, like a leak in (0, 1)
        own = torch.rand(forward.vectors, _H, dtype=torch.float64, device="cpu", generator=self.generator) * 0.8 + 0.1
        vectors = [v.to(self.device).requires_grad_() for v in own]
        new = cell.step(tuple(a), tuple(states), tuple(vectors))
        if not isinstance(new, tuple) or len(new) != len(cell.states):
            raise ValueError(f"step of cell '{cell.name}' must return a tuple of the states {cell.states}, got {_described(new)}")

        G, S = len(cell.gates), len(cell.split)
        of_x = torch.stack([a[part] for part in forward.in_parts], 1)
        of_h = torch.stack([torch.zeros_like(t) if part < G - S else t for part, t in enumerate(a[:G])], 1)
        carried = [states[cell.states.index(state)] for state in cell.carried]
        published, after, kept = self.called(True, vectors, of_x=of_x, of_h=of_h, carried=_stacked(carried))
        self.compare("forward", "published[0]", f"state '{cell.states[0]}'", published[:, 0], new[0])
        for n, state in enumerate(cell.carried):
            self.compare("forward", f"carried[{n}]", f"state '{state}'", after[:, n], new[cell.states.index(state)])
        if self.wrong:  # what is kept may be as wrong
            raise ValueError("\n".join(self.wrong))

        # dh is the gradient of y; of what is carried later steps leave a gradient, too, and of vectors what they have added up
        dh, *later = (t.detach() for t in self.normal(1 + backward.carried))
        cotangents = [torch.zeros_like(dh) for _ in new]
        cotangents[0] += dh
        for state, gradient in zip(cell.carried, later):
            cotangents[cell.states.index(state)] += gradient
        by_row = [v.detach().expand(_ROWS, -1).clone().requires_grad_() for v in vectors]
        again = cell.step(tuple(a), tuple(states), tuple(by_row))
        inputs = [*a, *states, *by_row]
        found = torch.autograd.grad(again, inputs, cotangents, allow_unused=True)
        gradients = [torch.zeros_like(dh) if g is None else g for g in found]
        saved = [new[0]] * backward.reads_y + list(kept.unbind(1))
        published, after, _ = self.called(False, vectors, of_x=dh[:, None], carried=_stacked(later), saved=_stacked(saved))
        names = [f"gate '{gate}'" + " by W_hh" * (gate in cell.split) for gate in cell.gates]
        names += [f"gate '{gate}' by W_ih" for gate in cell.split]
        for n, part in enumerate([*range(G - S, G), *range(G - S), *range(G, G + S)]):
            self.compare("backward", f"published[{n}]", f"the gradient of {names[part]}", published[:, n], gradients[part])
        for n, state in enumerate(cell.carried):
            expected = gradients[G + S + cell.states.index(state)]
            self.compare("backward", f"carried[{n}]", f"the gradient of state '{state}'", after[:, n], expected)
        for n, vector in enumerate(cell.vectors):
            at = len(cell.carried) + n
            expected = later[at] + gradients[G + S + len(states) + n]
            self.compare("backward", f"carried[{at}]", f"the gradient of vector '{vector}', added to what was there", after[:, at], expected)
        if self.wrong:
            raise ValueError("\n".join(self.wrong))

    def called(self, forward: bool, vectors: list[Tensor], **tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what a device function returns as published, carried and kept, [rows, number, H] each."""
        cell, routes = self.cell, self.cell.routes(forward)
        expected = [routes.published, routes.carried, routes.kept if forward else 0]
        results = [torch.full((_ROWS, n, _H), float("nan"), dtype=torch.float64, device=self.device) for n in (*expected[:2], routes.kept)]
        counts = torch.full((3,), -1, dtype=torch.int32, device=self.device)
        given = {name: None if t is None else t.detach() for name, t in tensors.items()}
        operands = Operands(
            **given, vectors=torch.stack(vectors).detach() if vectors else None, published=results[0], after=results[1], kept=results[2],
            counts=counts,
        )  # fmt: skip
        name = "forward" if forward else "backward"
        try:
            elementwise.run(cell, forward, "fp64", "double", operands)
        except Exception as error:
            raise ValueError(f"{name} of cell '{cell.name}' does not run: {error}") from error
        for what, count, number in zip(("published", "carried", "kept"), counts.tolist(), expected, strict=True):
            if count != number:
                raise ValueError(f"{name} of cell '{cell.name}' must return {number} tiles as {what}, got {count}")
        return results[0], results[1], results[2]

    def compare(self, pass_: str, place: str, meaning: str, tile: Tensor, expected: Tensor) -> None:
        """Notes a tile that differs from what the step says."""
        error, size = (tile - expected).abs().max().item(), expected.abs().max().item()
        if not error <= _TOLERANCE * max(size, 1.0):
            self.wrong.append(
                f"{pass_} of cell '{self.cell.name}': {place}, {meaning}, differs from that of step by up to {error:.2g} (values up to {size:.2g})"
            )


def _stacked(tiles: list[Tensor]) -> Tensor | None:
    return torch.stack(tiles, 1) if tiles else None


def _described(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
