"""Launches one recurrence, a layer in one direction, or several: the layers of a stack as a wavefront, or both directions of a
layer.  The kernel is that of one_cta.py or of cta_group.py, which say in what form it takes its operands."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import cells
from ..cells.sequences import Sequences
from ..plan.hardware import Device
from ..plan.problem import ONE, Bundle, CtaGroup, OneCta, Problem, is_wide
from . import cta_group, faults, gemm, one_cta, operands
from .launcher import compiled_ahead
from .operands import (
    NO_SEQUENCES,
    NOTHING,
    Engine,
    Operands,
    Scalars,
    States,
    Weight,
    as_operands,
    as_scalars,
    empty,
    missing,
    padded,
    per_model,
    strided,
    whole,
)
from .sequences import ALL, events, lengths, not_read


def _engine(problem: Problem, plan: OneCta | CtaGroup, bundle: Bundle) -> Engine:
    if isinstance(plan, OneCta):
        return one_cta.engine(problem, plan, bundle)
    return cta_group.engine(problem, plan, bundle)


def compile_ahead(problem: Problem, plan: OneCta | CtaGroup, device: Device, bundle: Bundle = ONE) -> Any:
    """Returns the compiled kernel of a launch for a device, which need not be present: the variant with every optional tensor."""
    engine = _engine(problem, plan, bundle)
    present, parameter = operands.described(problem, plan.w_ih_home, bundle, engine.words, engine.gathers)
    launch = engine.launch
    constants = launch.constants(present) | operands.no_parameters(operands.Operands._fields, present)
    return compiled_ahead(launch.kernel, constants, parameter, launch.options, device.capability)


class Recurrence:
    """A launch prepared for a problem, a plan and the recurrences it carries, to be called with tensors.

    `problem` is that of one recurrence, in a stack of the bottom layer.  What a call takes depends on `bundle` (plan/problem.py):

                                        one recurrence      layers (linked)         both directions
        weights and biases              a tensor            a list, bottom          a list, forward in time
                                                            layer first             first
        x                               [T,B,I]             [T,B,I]                 [T,B,I]
        y                               [T,B,H]             [L,T,B,H]               [T,B,2H]
        kept                            [T,B,K,H]           [L,T,B,K,H]             [2,T,B,K,H]
        da as returned                  [T,B,P*H]           [L,T,B,P*H]             [T,B,2,P*H]
        dy                              [T,B,H]             [T,B,H], of the top     [T,B,2H]
        each state, its gradient        [B,H]               [L,B,H]                 [2,B,H]

    with G gates of the cell W_ih[G*H,I], W_hh[G*H,H], biases [G*H]; K tiles are kept and P published (Cell.routes).  Every tensor
    of an ensemble, which is one recurrence in one CTA, has M in front.  If `bundle` has dropout, elements of what passes between
    layers are dropped, `dropped` of 65536 on average, chosen by `seed`, int64 [1] on the device."""

    def __init__(self, problem: Problem, plan: OneCta | CtaGroup, bundle: Bundle = ONE, first: int = 0) -> None:
        """`first` is the number of the bottom layer, for reports and masks."""
        self.problem, self.plan, self.bundle, self.first = problem, plan, bundle, first
        self.engine = engine = _engine(problem, plan, bundle)
        cell, forward = cells.named(problem.cell), problem.direction == "forward"
        self.routes = cell.routes(forward, problem.recompute)
        self.carried = operands.Carried(cell, forward, problem.H, engine.row)
        self.gates = len(cell.gates)
        self.several = bundle.count > 1
        self.directions = self.several and not bundle.linked
        wide = bundle.linked and is_wide(problem.I, problem.H, problem.dtype)
        self.projects = wide if bundle.linked else plan.w_ih_home == "gemm"
        # the GEMM adds the biases, not the kernel
        self.projects_biases = self.projects and operands.gemm_adds_biases(problem, bundle, engine.words)
        # the zeros that each tensor lacks
        H, I = problem.H, problem.I
        self.state = missing(engine.row - H)
        self.recurrent = missing(engine.recurrent - H, engine.recurrent - H)
        self.x = missing(engine.input - I)
        # linked recurrences have W_in of one size, and that of the bottom layer has fewer columns
        self.input = missing((engine.row if bundle.linked else engine.input) - I, engine.row - H)
        self.projected = missing(0, engine.projected - H)
        self.u_unit = 1 if engine.projected % engine.u_unit else engine.u_unit
        lacking = self.state or self.recurrent or self.input or self.projected
        self.pads_gates = len(cell.gates) > 1 and bool(lacking)  # the block of each gate
        self.id = 0
        if engine.words:
            tiles = math.ceil(problem.B / plan.block_b)
            # error words of the groups, counters of the tiles
            self.sync_words = operands.LINE_WORDS * bundle.count * (engine.groups + tiles)
            p = problem
            name = f"{p.direction} of {p.dtype} B={p.B} I={p.I} H={p.H} over {engine.groups} groups of {engine.ctas} CTAs"
            self.id = faults.register(name, engine.groups, bundle.names(p.direction, first))

    def forward(
        self, x: Tensor, w_ih: Weight, w_hh: Weight, b_ih: Weight | None, b_hh: Weight | None, states: States,
        reverse: bool = False, keep: bool = False, vectors: Tensor | None = None, seed: Tensor | None = None, dropped: int = 0,
        sequences: Sequences = ALL,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:  # fmt: skip
        """Returns y, the last states, and what the backward pass needs besides y (None without `keep`, and for a cell that keeps
        nothing), each in memory of its own.

        `states` are those before the first step, None for zeros.  x may have any strides; T, B >= 1.  `vectors` are the cell's own
        parameters, [V,H] in fp32 (fp64).  The states that a reset puts in place have the shape of the first ones."""
        *models, T, B, _ = x.shape
        engine, linked, routes = self.engine, self.bundle.linked, self.routes
        h0 = states[0]
        if self.several:
            w_hh, b_ih, b_hh = (None if t is None else torch.stack(t) for t in (w_hh, b_ih, b_hh))
            w_ih = w_ih if linked else torch.stack(w_ih)
        dtype = w_hh.dtype
        if self.pads_gates:
            w_hh, b_ih, b_hh = self._apart(w_hh, -2), self._apart(b_ih, -1), self._apart(b_hh, -1)
            w_ih = [self._apart(w, -2) for w in w_ih] if linked else self._apart(w_ih, -2)
        outer = [self.bundle.count] if linked else models
        lanes = [self.bundle.count] if self.several else models
        restart = NOTHING
        if sequences.reset is not None:
            restart = sequences.restart or NOTHING
            if engine.gathers:
                zeros = w_hh.new_zeros(*lanes, B, self.problem.H)
                h0 = zeros if h0 is None else h0
                restart = sequences.restart or (zeros,) * len(states)
        out, sync, report, limit = self._out(w_hh, sequences, *outer, T, B)
        last = empty(out, *outer, B, *out.shape[len(outer) + 2 :])
        kept: Tensor | None = None
        if keep and routes.kept:
            kept = empty(w_hh, *lanes, T, B, routes.kept, engine.row)
        carried = self.carried.before(states, w_hh, *lanes, B) if routes.carried else None
        of_sequences: tuple[Tensor | None, ...] = NO_SEQUENCES
        if sequences is not ALL:
            before = None if restart[0] is None else self.carried.before(restart, w_hh, *lanes, B)
            of_sequences = (*self._of_sequences(sequences, T, reverse), self._first(restart[0], sequences), before)
        x_in: Tensor | None = None
        u: Tensor | None = None
        x_t = x_b = x_m = u_t = u_b = u_m = models_with = 0
        if self.projects:
            u, u_t, u_b, u_m = strided(self._project(x, w_ih, b_ih, b_hh), self.u_unit)
            if self.projects_biases:
                b_ih = b_hh = None
            w_ih = w_ih if linked else None
        else:
            x_in, x_t, x_b, x_m = strided(pad(x, self.x) if self.x else x, engine.x_unit)
        if models:
            (w_ih, w_hh, b_ih, b_hh, h0), models_with = per_model(w_ih, w_hh, b_ih, b_hh, h0)
        if linked:  # the layers above the bottom one take what has the rows and columns of W_rec
            bottom = self._zeros(w_hh) if self.projects else padded(w_ih[0], self.input)
            w_ih = torch.stack([bottom, *[padded(w, self.recurrent) for w in w_ih[1:]]])
        elif w_ih is not None:
            w_ih = whole(w_ih, self.input)
        b_ih = None if b_ih is None else whole(b_ih, self.state)
        b_hh = None if b_hh is None else whole(b_hh, self.state)
        vectors = None if vectors is None else whole(vectors, self.state)
        w_hh = whole(w_hh, self.recurrent)
        h0 = None if h0 is None else self._first(h0, sequences)
        tensors = as_operands(
            (x_in, w_ih, w_hh, b_ih, b_hh, h0, u, None, out, last, sync, report, seed, carried, kept, vectors, *of_sequences)
        )
        scalars = (T, B, int(reverse), x_t, x_b, u_t, u_b, self.id, limit, dropped, self.first, models_with, x_m, u_m)
        if not engine.words and carried is None:
            engine.launch(tensors, out, scalars)
            return out, (last,), kept
        self._launch(tensors, out, as_scalars(scalars))
        y, hn = out, last
        if engine.words:
            y, hn = operands.units(out, dtype, self.state), operands.units(last, dtype, self.state)
            if kept is not None:
                kept = operands.unpadded(kept, self.state)
            if self.directions:  # no views, whose in-place changes autograd would refuse
                y, hn = y.flatten(2).detach(), hn.transpose(0, 1).contiguous().detach()
        return y, (hn, *self.carried.states(carried, dtype)), kept

    def backward(
        self, w_hh: Weight, y: Tensor, kept: Tensor | None, dy: Tensor | None, dstates: States, reverse: bool = False,
        vectors: Tensor | None = None, w_ih: SequenceOf[Tensor] | None = None, seed: Tensor | None = None, dropped: int = 0,
        sequences: Sequences = ALL,
    ) -> tuple[Tensor, States]:  # fmt: skip
        """Returns da, the gradients of every pre-activation in the order in which the cell publishes them, which may be a view of
        longer rows; and of each first state what W_hh^T da_first lacks of its gradient, in fp32 (fp64), or None if it lacks nothing;
        behind these the gradient of each vector, which is still to be summed over B.

        y and `kept` are the forward pass's.  dy and the gradients of the last states may be None, but not all of them.  `reverse` is
        that of the forward pass.  `w_ih` has the weights of all layers if they are linked, else it is None."""
        *outer, T, B, _ = y.shape
        routes, dhn = self.routes, dstates[0]
        out, sync, report, limit = self._out(y, sequences, *outer, T, B)
        u_t = u_b = u_m = models_with = 0
        if dy is not None:
            dy, u_t, u_b, u_m = strided(self._padded_rows(dy) if self.state else dy, self.engine.u_unit)
        if self.engine.transposes:
            w_hh = torch.stack(w_hh) if self.several else w_hh
            w_hh = self._apart(w_hh, -2) if self.pads_gates else w_hh
        elif self.several:
            w_hh = torch.stack([self._transposed(w, routes.rec_gates) for w in w_hh])
        else:
            w_hh = self._transposed(w_hh, routes.rec_gates)
        if outer and not self.several:
            (_, w_hh, _, _, dhn), models_with = per_model(None, w_hh, None, None, dhn)
        w_in: Tensor | None = None
        if w_ih is not None:  # each layer takes W_ih of the layer above it; nothing but dy comes from above the last one
            above = [self._transposed(w, range(self.gates), self.recurrent) for w in w_ih[1:]]
            w_in = torch.stack([*above, torch.zeros_like(above[0])])
        of_sequences: tuple[Tensor | None, ...] = NO_SEQUENCES
        if sequences is not ALL:
            of_sequences = (*self._of_sequences(sequences, T, not reverse), None, None)
        # the gradient of h comes by dy and dhn
        carried: Tensor | None = None
        if routes.carried:
            carried = self.carried.before((None, *dstates[1:]), y, *([self.bundle.count] if self.several else outer), B)
        saved: Tensor | None = None
        if routes.reads_y:
            saved = whole(self._padded_rows(y) if self.state else y)
        w_hh = whole(w_hh, self.recurrent if self.engine.transposes or self.gates == 1 else ())
        dhn = None if dhn is None else self._first(dhn, ALL)
        kept = None if kept is None else whole(kept, self.state)
        vectors = None if vectors is None else whole(vectors, self.state)
        tensors = as_operands(
            (None, w_in, w_hh, None, None, dhn, dy, saved, out, None, sync, report, seed, carried, kept, vectors, *of_sequences)
        )
        scalars = (T, B, int(not reverse), 0, 0, u_t, u_b, self.id, limit, dropped, self.first, models_with, 0, u_m)
        self._launch(tensors, out, as_scalars(scalars))
        da = out.view(y.dtype) if self.engine.words else out
        if self.state:
            da = da[..., : self.problem.H] if routes.published == 1 else self._without_padding(da)
        if sequences is ALL:
            return da, self.carried.gradients(carried)
        return da, self.carried.gradients(carried, not_read(sequences, T, *self._descending(not reverse)))

    def _launch(self, tensors: Operands, out: Tensor, scalars: Scalars) -> None:
        engine = self.engine
        engine.launch(tensors, out, scalars[: engine.scalars])
        if engine.words:
            faults.after_launch(out.device)

    def _first(self, states: Tensor | None, sequences: Sequences) -> Tensor | None:
        """Returns states, or their gradients, that the kernel reads where a row begins: with `sequences` in place of exchanged words."""
        if states is None:
            return None
        states = whole(states.transpose(0, 1) if self.directions else states, self.state)
        return operands.without_sentinel(states) if self.engine.gathers and sequences is not ALL else states

    def _of_sequences(self, sequences: Sequences, T: int, descending: bool) -> tuple[Tensor | None, Tensor | None]:
        """Returns lengths and events as the kernel takes them, in a pass in which time runs down if `descending`."""
        steps = lengths(sequences)
        if steps is None and sequences.reset is None:  # all of them are whole
            return None, None
        sequences = sequences._replace(lengths=steps)  # so that the events need no conversion of their own
        if steps is None and not self.engine.gathers:  # in one CTA a step costs more where ptxas knows of resets alone
            steps = torch.full((self.problem.B,), T, dtype=torch.int32, device=sequences.reset.device)  # type: ignore[union-attr]
        return steps, events(sequences, T, self.plan.block_b, self.engine.groups, self.engine.gathers, *self._descending(descending))

    def _descending(self, reverse: bool) -> tuple[bool, ...]:
        """Returns whether time runs down, of several directions for each."""
        return (reverse, not reverse) if self.directions else (reverse,)

    def _apart(self, w: Tensor | None, dim: int) -> Tensor | None:
        """Returns a weight (dim -2) or biases (-1) with the blocks of the gates as a dimension, in front of which may be others."""
        return None if w is None else w.unflatten(dim, (self.gates, -1))

    def _transposed(self, w: Tensor, order: SequenceOf[int], lacking: tuple[int, ...] = ()) -> Tensor:
        """Returns the transpose of a weight [G*H,H], its gates in this order: of several each padded, [ROW, G*ROW], of one with the
        zeros of `lacking`."""
        if self.gates == 1:
            return padded(w.t(), lacking)
        blocks = w.chunk(self.gates)
        return torch.cat([padded(blocks[gate].t(), self.recurrent) for gate in order], 1)

    def _without_padding(self, da: Tensor) -> Tensor:
        """Returns the gradients of several pre-activations [.., P*ROW] as [.., P*H]."""
        return da.unflatten(-1, (self.routes.published, -1))[..., : self.problem.H].flatten(-2)

    def _project(self, x: Tensor, w_ih: Weight, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
        """Returns u, which a GEMM makes of x: that of the bottom layer, or those of both directions at once."""
        w = padded(w_ih[0] if self.bundle.linked else w_ih, self.projected)  # it is smaller than u, whose rows this pads
        if self.directions or self.pads_gates:
            w = w.flatten(0 if self.directions else -3, -2)
        biases = (b_ih, b_hh) if self.projects_biases else (None, None)
        b_ih, b_hh = (None if b is None else padded(b, self.state).flatten() for b in biases)
        return gemm.project(x, w, b_ih, b_hh, self.problem.precision)

    def _zeros(self, like: Tensor) -> Tensor:
        """Returns W_in of a layer that is given u."""
        shape = (self.engine.row, self.engine.row)
        return like.new_zeros(self.gates, *shape) if self.gates > 1 else like.new_zeros(shape)

    def _out(self, like: Tensor, sequences: Sequences, *shape: int) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
        """Returns the tensor to which the kernel writes the published tiles [*shape, P*ROW], with zeros in rows that end early unless
        the kernel writes them, the synchronisation words, the host's word, and the limit of polls; None and 0 for what a launch
        without words has not."""
        engine = self.engine
        row = self.routes.published * engine.row
        if not engine.words:
            return empty(like, *shape, row) if sequences.lengths is None else like.new_zeros(*shape, row), None, None, 0
        shape = (*shape, 2) if self.directions else shape
        fill = -1 if engine.waits else None if sequences.lengths is None else 0
        out, sync = operands.words(like, row, shape, self.sync_words, fill)
        return out, sync, faults.word(out.device), operands.poll_limit()

    def _padded_rows(self, states: Tensor) -> Tensor:
        """Returns y or dy with padded rows; if it has both directions, with the part of each direction padded."""
        if self.directions:
            return pad(states.unflatten(2, (2, -1)), self.state).flatten(2)
        return pad(states, self.state)
