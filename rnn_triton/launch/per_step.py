"""Prepares launches of kernels/per_step.py: projects x by a GEMM, then launches the kernel for every time step.

They are plain launches on the current stream: not a CUDA graph, but nothing keeps them from being captured in one.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver

from .. import cells
from ..cells.sequences import Sequences
from ..interpret import interpreter
from ..kernels import facts
from ..kernels.per_step import per_step
from ..plan.hardware import Device
from ..plan.problem import ONE, SIZES, PerStep, Problem, row_units
from . import gemm, operands
from .launcher import POINTERS, Launcher, cell, compiled_ahead, current, tile
from .operands import NOTHING, OF_SEQUENCES, States, empty, missing, padded, strided, unpadded, whole
from .sequences import ALL, cuts, last_of, lengths, not_read


class Operands(NamedTuple):
    """The tensors of a launch, in the order of the kernel's pointer parameters.  None stands for an absent one, never read."""

    u: Tensor | None = None
    w_rec: Tensor | None = None
    bias0: Tensor | None = None
    bias1: Tensor | None = None
    state: Tensor | None = None
    first: Tensor | None = None
    saved: Tensor | None = None
    out: Tensor | None = None
    carried: Tensor | None = None
    kept: Tensor | None = None
    vectors: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    restart: Tensor | None = None
    restart_carried: Tensor | None = None


new_operands = functools.partial(Operands.__new__, Operands)  # as in operands.py


class Steps:
    """The launches of a call, prepared for a problem and a plan, to be called as recurrence.py's Recurrence is."""

    def __init__(self, problem: Problem, plan: PerStep) -> None:
        self.problem, self.plan = problem, plan
        cell, forward = cells.named(problem.cell), problem.direction == "forward"
        self.gates, self.routes = len(cell.gates), cell.routes(forward, problem.recompute)
        self.row = row_units(problem.H, problem.dtype)
        self.carried = operands.Carried(cell, forward, problem.H, self.row)
        lacking = self.row - problem.H
        self.state, self.recurrent, self.rows = missing(lacking), missing(lacking, lacking), missing(0, lacking)
        self.unit = _unit(problem)
        grid = (math.ceil(problem.B / plan.block_b) * math.ceil(self.row / plan.block_h), 1, 1)
        self.launch = Launcher(per_step, grid, functools.partial(constants, problem, plan), options(problem, plan), OF_SEQUENCES)

    def forward(
        self, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, states: States,
        reverse: bool = False, keep: bool = False, vectors: Tensor | None = None, sequences: Sequences = ALL,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:  # fmt: skip
        T, B, _ = x.shape
        # Padding the smallest operands of the projection gives u whole rows.
        w_ih = self._by_gate(w_ih, self.rows).flatten(0, -2)
        b_ih, b_hh = (None if b is None else self._by_gate(b, self.state) for b in (b_ih, b_hh))
        projected = operands.gemm_adds_biases(self.problem, ONE, True)  # with the biases
        u = gemm.project(x, w_ih, *((b_ih, b_hh) if projected else (None, None)), self.problem.precision)
        u, *strides, _ = strided(u, self.unit)
        bias0, bias1 = (None if b is None or projected else whole(b) for b in (b_ih, b_hh))
        # Without h0 zeros are multiplied, as in torch: 0 * W_hh is NaN where W_hh is infinite.
        before = x.new_zeros(B, self.row) if states[0] is None else whole(states[0], self.state)
        y = empty(x, T, B, self.row)
        kept = empty(x, T, B, self.routes.kept, self.row) if keep and self.routes.kept else None
        carried = self.carried.before(states, x, B)
        restart = (sequences.restart or NOTHING) if sequences.reset is not None else NOTHING
        self._run(
            y, before, self.row, reverse, strides, u=u, w_rec=whole(self._by_gate(w_hh, self.recurrent)), bias0=bias0, bias1=bias1,
            carried=carried, kept=kept, vectors=self._whole(vectors), lengths=lengths(sequences), reset=cuts(sequences, T, reverse),
            first=None if states[0] is None or sequences.lengths is None else before,
            restart=self._whole(restart[0]), restart_carried=None if restart[0] is None else self.carried.before(restart, x, B),
        )  # fmt: skip
        y = unpadded(y, self.state)
        last = (last_of(y, states[0], sequences, reverse), *self.carried.states(carried, x.dtype))
        return y, last, None if kept is None else unpadded(kept, self.state)

    def backward(
        self, w_hh: Tensor, y: Tensor, kept: Tensor | None, dy: Tensor | None, dstates: States, reverse: bool = False,
        vectors: Tensor | None = None, sequences: Sequences = ALL,
    ) -> tuple[Tensor, States]:  # fmt: skip
        T, B, _ = y.shape
        strides = [0, 0]
        if dy is not None:
            dy, *strides, _ = strided(padded(dy, self.state), self.unit)
        w_rec = self._by_gate(w_hh, self.recurrent)
        if self.routes.rec_gates != tuple(range(self.gates)):
            w_rec = torch.stack([w_rec[gate] for gate in self.routes.rec_gates])
        da = empty(y, T, B, self.routes.published * self.row)
        carried = self.carried.before((None, *dstates[1:]), y, B)  # the gradient of h comes by dy and dhn
        self._run(
            da, da, 0, not reverse, strides, u=dy, w_rec=whole(w_rec), first=self._whole(dstates[0]),
            saved=whole(y, self.state) if self.routes.reads_y else None, carried=carried, kept=self._whole(kept),
            vectors=self._whole(vectors), lengths=lengths(sequences), reset=cuts(sequences, T, not reverse),
        )  # fmt: skip
        if self.state:
            da = unpadded(da.unflatten(-1, (-1, self.row)), self.state).flatten(2)
        return da, self.carried.gradients(carried, not_read(sequences, T, not reverse))

    def _whole(self, t: Tensor | None) -> Tensor | None:
        """Returns a state, kept tiles or vectors as the kernel takes them, or None."""
        return None if t is None else whole(t, self.state)

    def _by_gate(self, t: Tensor, lacking: tuple[int, ...]) -> Tensor:
        """Returns a weight or a bias [G*H, ..], the block of each gate padded, as [G, .., ..]; of one gate without the G."""
        return padded(t if self.gates == 1 else t.unflatten(0, (self.gates, -1)), lacking)

    def _run(
        self, out: Tensor, state: Tensor, first_k: int, descending: bool, strides: list[int], **others: Tensor | None
    ) -> None:
        """Launches all steps, which write `out`.  The first step reads `state` and multiplies `first_k` columns of W_rec; each
        later one reads what the step before it has written, and multiplies all of them."""
        T, B, _ = out.shape
        columns = self.routes.exchanged * self.row
        times = range(T - 1, -1, -1) if descending else range(T)
        self.launch(new_operands(state=state, out=out, **others), out, (times[0], 0, first_k, B, *strides))
        tensors = new_operands(state=out, out=out, **others)
        kept = self.launch.kept.get(tuple([t is not None for t in tensors]))
        if kept is None or max(strides) >= 2**31:  # such strides are arguments of another type, and of another kernel
            with interpreter.accurate():
                for before, t in itertools.pairwise(times):
                    self.launch(tensors, out, (t, before, columns, B, *strides))
            return
        # All further steps need what the launcher would look up for each of them.  Addresses may stand for tensors, and Triton
        # then need not ask the driver whose they are.
        kernel, constexprs = kept
        addresses: list[Any] = [(out if t is None else t).data_ptr() for t in tensors]
        addresses[-OF_SEQUENCES:] = [None if t is None else t.data_ptr() for t in tensors[-OF_SEQUENCES:]]
        with current(out.device):
            launch = kernel[self.launch.grid]
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            for before, t in itertools.pairwise(times):
                launch(*addresses, t, before, columns, B, *strides, *constexprs, stream=stream)


def compile_ahead(problem: Problem, plan: PerStep, device: Device) -> Any:
    """Returns the compiled kernel of a plan for a device, which need not be present: the variant with every optional tensor."""
    there, pointer = present(problem), POINTERS[problem.dtype]
    names = [name for name in ("carried", "restart_carried", "vectors", "u" if problem.direction == "forward" else "") if there.get(name)]
    types = {f"{name}_ptr": "*fp64" if problem.dtype == "fp64" else "*fp32" for name in names}
    types |= {"lengths_ptr": "*i32", "reset_ptr": "*i32"}
    return compiled_ahead(
        per_step, constants(problem, plan, tuple(there.values())) | operands.no_parameters(Operands._fields, tuple(there.values())),
        lambda name: types.get(name, pointer) if name.endswith("_ptr") else "i32", options(problem, plan), device.capability,
    )  # fmt: skip


def present(problem: Problem) -> dict[str, bool]:
    """Returns of each of Operands, by its name, whether a launch with every optional tensor has it."""
    forward = problem.direction == "forward"
    routes = cells.named(problem.cell).routes(forward, problem.recompute)
    restarts = forward and "restart" in problem.sequences
    biases = forward and not operands.gemm_adds_biases(problem, ONE, True)
    return dict.fromkeys(Operands._fields, True) | dict(
        bias0=biases, bias1=biases, first=not forward or "lengths" in problem.sequences, saved=routes.reads_y, carried=routes.carried > 0, kept=routes.kept > 0,
        vectors=routes.vectors > 0, lengths="lengths" in problem.sequences, reset="reset" in problem.sequences,
        restart=restarts, restart_carried=restarts and routes.carried > 0,
    )  # fmt: skip


def options(problem: Problem, p: PerStep) -> dict[str, int]:
    options = dict(num_warps=p.warps, num_stages=p.stages)
    if problem.dtype != "fp64" and problem.precision != "ieee":  # there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    return options


def constants(problem: Problem, p: PerStep, present: tuple[bool, ...]) -> dict[str, Any]:
    """Returns the constexpr parameters of the kernel, in its order.  `present` says of each of Operands whether it is there."""
    return dict(
        TILE=tile(facts.StepTile, problem, p),
        SHAPE=facts.StepShape(H=problem.H, row=row_units(problem.H, problem.dtype), u_unit=_unit(problem)),
        HAS=facts.Has.of(Operands._fields, present),
        CELL=cell(problem, p.accuracy),
    )


def _unit(problem: Problem) -> int:
    """Returns the elements in a 16-byte vector of u: forward the projected x, in fp32 or fp64; backward dy."""
    size = max(4, SIZES[problem.dtype]) if problem.direction == "forward" else SIZES[problem.dtype]
    return 16 // size
