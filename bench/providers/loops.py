"""Recurrent networks as loops: the cells' steps, a loop over them, and layers and directions around any recurrence.

Shapes of a recurrence: x[T,B,I], state (h[B,H], and an LSTM's c[B,H]), weights (w_ih[G*H,I], w_hh[G*H,H], b_ih[G*H], b_hh[G*H], and vectors
[H] of the cell) of a cell with G gates, in their order. Any number of leading dimensions, which are models, if all have them, or heads, if all but x do. """

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnn_triton.cells import Cell as Description
from rnn_triton.cells import named
from rnn_triton.plan.cudnn import torch_module

from ..cases.case import Case
from ..cases.inputs import KINDS, weight_names
from ..instruments import timing
from .interface import FEW_STEPS, Provider, Session
from .sessions import Differentiated, by_heads, cotangents_of, leaf, load, of_heads, state_leaves, weight_leaves

State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]  # x_t[B,I] and the state before it -> the state after it
# (which of the recurrences, x, initial state) -> (h of every step, last state)
Recurrence = Callable[[int, Any, State], tuple[Any, State]]


def projected(x: Tensor, weights: Weights) -> Tensor:
    """W_ih x + b_ih [T,B,G*H] of all steps, in one product"""
    rows = x.flatten(-3, -2) @ weights[0].mT + weights[2].unsqueeze(-2)
    return rows.unflatten(-2, x.shape[-3:-1])


def formula(cell: Description, of_x: Tensor, state: State, weights: Weights, more: Tensor | None = None) -> State:
    """One step of a cell, in plain operators, from `projected` [B,G*H] of the step. `more` [P,B,H] is added to the
    pre-activations, in the order of Cell.step."""
    _, w_hh, _, b_hh, *vectors = weights
    of_gates = of_x.chunk(len(cell.gates), -1)
    of_h = (state[0] @ w_hh.mT + b_hh.unsqueeze(-2)).chunk(len(cell.gates), -1)
    whole = len(cell.gates) - len(cell.split)
    a = (*(x + h for x, h in zip(of_gates[:whole], of_h)), *of_h[whole:], *of_gates[whole:])
    return cell.step(a if more is None else tuple(p + m for p, m in zip(a, more)), state, tuple(v.unsqueeze(-2) for v in vectors))


def over_steps(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
    """A cell's h of every step, and its last state."""
    states = []
    for x_t in x.unbind(-3):
        state = cell(x_t, state)
        states.append(state[0])
    return torch.stack(states, -3), state


def over_layers(case: Case, recurrence: Recurrence, x: Any, state: State) -> tuple[Any, State]:
    """(y[T,B,D*H], (hn[L*D,B,H], cn)) of all layers and directions; the reverse ones run over flipped time.

    x may be anything that the recurrence takes, where there is one direction."""
    last: list[State] = []
    for layer in range(case.layers):
        outputs = []
        for direction in range(case.directions):
            k = layer * case.directions + direction
            y, final = recurrence(k, x.flip(-3) if direction else x, tuple(s.select(-3, k) for s in state))
            outputs.append(y.flip(-3) if direction else y)
            last.append(final)
        x = torch.cat(outputs, -1) if case.bidirectional else outputs[0]
    return x, tuple(torch.stack(parts, -3) if len(parts) > 1 else parts[0].unsqueeze(-3) for parts in zip(*last))


class Loop(Provider):
    """A Python loop over the steps of torch.nn.RNNCell, GRUCell or LSTMCell; of several models or heads, whose cells do not batch, and of
    cells that torch does not have, over the cell's own step with batched products."""

    name, label = "loop", "eager loop of RNNCell"

    def missing(self, device: torch.device) -> str:
        return ""

    def unsupported(self, case: Case) -> str:
        return "" if case.lengths == "full" else "the loop takes padded tensors"

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        name, options = torch_module(case.cell)
        if case.models * case.heads > 1 or not name:
            return of_formulas(case, inputs, by_formula(case))
        leaves = {"x": leaf(inputs["x"])} | state_leaves(inputs)
        cells = []
        for names in weight_names(case):
            w_ih = inputs[names[0]]
            cell = getattr(torch.nn, f"{name}Cell")(w_ih.shape[1], case.H, device=w_ih.device, dtype=w_ih.dtype, **options)
            load(cell, {kind: inputs[name] for kind, name in zip(KINDS, names)})
            leaves |= {name: getattr(cell, kind) for kind, name in zip(KINDS, names)}
            cells.append(cell)

        def recurrence(k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
            step = cells[k] if len(state) > 1 else lambda x_t, state: (cells[k](x_t, state[0]),)
            return over_steps(step, x, state)

        return _looped(case, leaves, cotangents_of(inputs), recurrence, cells)


Steps = Callable[[Tensor, State, Weights], tuple[Tensor, State]]


def by_formula(case: Case) -> Steps:
    """All steps of one recurrence, from `projected` inputs, by the formula of the case's cell"""
    cell = named(case.cell)
    return lambda of_x, state, weights: over_steps(lambda of_x_t, state: formula(cell, of_x_t, state, weights), of_x, state)


def of_formulas(case: Case, inputs: dict[str, Tensor], steps: Steps) -> Session:
    """Layers of `steps`, of one model or of several at once"""
    leaves = {"x": leaf(inputs["x"])} | state_leaves(inputs) | weight_leaves(case, inputs)
    several = case.heads > 1
    weights = [tuple(by_heads(case, name, leaves[name]) if several else leaves[name] for name in names) for names in weight_names(case)]

    def recurrence(k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        state = tuple(by_heads(case, "h0", s) for s in state) if several else state
        y, last = steps(projected(x, weights[k]), state, weights[k])
        return (of_heads(y), tuple(map(of_heads, last))) if several else (y, last)

    return _looped(case, leaves, cotangents_of(inputs), recurrence)


def _looped(case: Case, leaves: dict[str, Tensor], cotangents: Any, recurrence: Any, modules: Any = ()) -> Differentiated:
    states = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)
    return Differentiated(lambda: over_layers(case, recurrence, leaves["x"], states), leaves, cotangents, modules, case.precision)


class Hoisted(Loop):
    """The loop over the cell's own step, all inputs projected by one product before it, as who writes a loop for speed does."""

    name, label = "hoisted", "eager loop, x projected at once"

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return of_formulas(case, inputs, by_formula(case))


class Compiled(Loop):
    """torch.compile of the hoisted loop, FEW_STEPS steps at a time: Dynamo unrolls it, and thousands of steps take it minutes."""

    name, label = "compile", "torch.compile of the loop"
    compiles = True

    def __init__(self, backend: Any = "inductor"):
        self.backend = backend

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        import torch._dynamo

        # Every layer, pass and remainder is a compilation of one function. Past the limit it would run eagerly, and
        # nothing would say so.
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        chunk = torch.compile(by_formula(case), dynamic=False, backend=self.backend)

        def steps(of_x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
            ys = []
            for part in of_x.split(FEW_STEPS, -3):
                y, state = chunk(part, state, weights)
                ys.append(y)
            return torch.cat(ys, -3), state

        return of_formulas(case, inputs, steps)

    def shortest(self, case: Case) -> Case:
        return case.at(min(case.T, FEW_STEPS + case.T % FEW_STEPS))  # the last steps are a chunk of their own

    def prepare(self, case: Case, pass_: str, device: torch.device) -> None:
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # there is a process on every core
        super().prepare(case, pass_, device)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return {"steps_compiled_at_once": FEW_STEPS}


class InGraph(Loop):
    """A loop captured once, by pass, as a CUDA graph, and replayed. Results are the graph's own tensors."""

    captured = True

    def missing(self, device: torch.device) -> str:
        return "" if device.type == "cuda" else "a CUDA graph needs a CUDA GPU"

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        session = super().set_up(case, inputs)
        session.forward, session.train = _replayed(session.forward), _replayed(session.train)  # type: ignore[method-assign]
        return session


class Graphed(InGraph, Hoisted):
    name, label = "graph", "CUDA graph of the loop"


class CompiledGraph(InGraph, Compiled):
    """What torch.compile's mode "reduce-overhead" is after, for the whole sequence instead of a chunk"""

    name, label = "compile-graph", "CUDA graph of the compiled loop"

    def prepare(self, case: Case, pass_: str, device: torch.device) -> None:
        Compiled().prepare(case, pass_, device)  # the same kernels, without a graph


def _replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call by a CUDA graph, captured when it is first called"""
    held: list[Any] = []

    def replay() -> Any:
        if not held:
            held.extend(timing.capture(call))
        graph, result = held
        graph.replay()
        return result

    return replay
