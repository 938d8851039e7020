"""Who is measured: each provider runs a case's forward and forward+backward on the same tensors.

Here those that need torch alone; libraries with kernels of their own are in peers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..cases.case import Case
from ..cases.inputs import DTYPES, KINDS, lengths_of, tensors, weight_names
from ..instruments import timing
from . import loops
from .interface import (
    FEW_STEPS,
    Differentiated,
    ModuleSession,
    Provider,
    Result,
    Session,
    cotangents_of,
    leaf,
    load,
    one_by_one,
    packed_inputs,
    set_precision,
    state_leaves,
    weight_leaves,
)
from .peers import XMA, FlagGems, FlashRNN, TorchRL

__all__ = [
    "DTYPES", "PROVIDERS", "Differentiated", "ModuleSession", "Provider", "Result", "Session", "lengths_of", "tensors",
]  # fmt: skip

_MODULES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
CHUNK = FEW_STEPS  # steps that torch.compile sees at once


def module_of(library: Any, case: Case, x: Tensor, **sizes: Any) -> torch.nn.Module:
    """The library's RNN, GRU or LSTM of a case, in x's dtype on its device; sizes other than the case's if given."""
    sizes = {
        "input_size": case.I, "hidden_size": case.H, "num_layers": case.layers, "bidirectional": case.bidirectional, **sizes,
    }  # fmt: skip
    if case.cell == "rnn":
        sizes["nonlinearity"] = case.nonlinearity
    return getattr(library, _MODULES[case.cell])(**sizes, device=x.device, dtype=x.dtype)


class Ours(Provider):
    """rnn_triton.RNN; several models by torch.func, as one call with stacked weights."""

    name = label = "rnn_triton"
    compiles = True

    def version(self) -> str | None:
        import rnn_triton

        return rnn_triton.__version__

    def missing(self, device: torch.device) -> str:
        return ""

    def unsupported(self, case: Case) -> str:
        import rnn_triton

        name = _MODULES[case.cell]
        if not hasattr(rnn_triton, name):
            return f"rnn_triton has no {name}"
        if case.models > 1 and case.lengths != "full":
            return "torch.func.vmap takes no PackedSequence"
        return ""

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        import rnn_triton

        set_precision(case)
        module = module_of(rnn_triton, case, inputs["x"])
        return ModuleSession(module, inputs, case) if case.models == 1 else stacked(case, module, inputs)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        from rnn_triton.plan import hardware

        return plans_on(case, hardware.of(device))


class OurLayers(Ours):
    """rnn_triton.RNN with a launch for each layer and direction: what sharing launches saves."""

    name, label = "rnn_triton-layers", "rnn_triton, a launch a layer and direction"

    def unsupported(self, case: Case) -> str:
        if case.layers * case.directions == 1:
            return "one layer in one direction: the same as rnn_triton"
        if case.models > 1 or case.lengths != "full":
            return "several models and sequences of different lengths share no launch: the same as rnn_triton"
        return super().unsupported(case)

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return Apart(super().session(case, inputs))

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        import rnn_triton

        with rnn_triton.overriding(lanes=1):
            return super().plan(case, device)


class Apart:
    """A session whose layers share no launch"""

    def __init__(self, session: Session):
        self.session = session

    def forward(self) -> tuple[Any, Any]:
        import rnn_triton

        with rnn_triton.overriding(lanes=1):
            return self.session.forward()

    def train(self) -> Result:
        import rnn_triton

        with rnn_triton.overriding(lanes=1):
            return self.session.train()


def plans_on(case: Case, device: Any) -> dict[str, Any]:
    """rnn_triton's plans for a hardware.Device: of the first launch, for one model, in each pass, and of a network of several
    layers or directions of every launch with its lanes, the layers or directions it holds"""
    from rnn_triton.plan import problem as plans

    from ..cases.estimate import launches

    found = []
    for part in launches(case, device):
        ran = {pass_: plans.fields(part.plan(pass_, device)[1]) for pass_ in ("forward", "backward")}
        found.append({"lanes": asdict(part.lanes), **ran})
    first = {name: found[0][name] for name in ("forward", "backward")}
    return first if case.layers * case.directions == 1 else {**first, "launches": found}


def stacked(case: Case, module: torch.nn.Module, inputs: dict[str, Tensor]) -> Session:
    """Several models by one module: vmap over stacked weights, as torch.func.stack_module_state leaves them."""
    leaves = {"x": leaf(inputs["x"])} | state_leaves(inputs) | weight_leaves(case, inputs)
    names = [name for name in ("h0", "c0") if name in inputs]

    def one(weights: dict[str, Tensor], x: Tensor, *state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, last = torch.func.functional_call(module, weights, (x, state if len(state) > 1 else state[0]))
        return y, last if isinstance(last, tuple) else (last,)

    weights = {name: leaves[name] for name, _ in module.named_parameters()}

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        return torch.func.vmap(one)(weights, leaves["x"], *(leaves[name] for name in names))

    return Differentiated(call, leaves, cotangents_of(inputs), (module,))


# ---- cuDNN ----------------------------------------------------------------------------------------------------------


class TorchRNN(Provider):
    """torch.nn.RNN, GRU or LSTM: cuDNN on a GPU, in the algorithm PyTorch picks; the kernels it ran are in the
    record.

    Several models: a module for each, called one after the other."""

    name, label = "cudnn", "torch.nn (cuDNN)"

    def missing(self, device: torch.device) -> str:
        if device.type == "cuda" and not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return ""

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        set_precision(case)

        def of_one(values: dict[str, Tensor]) -> Session:
            return ModuleSession(module_of(torch.nn, case, values["x"]), values, case)

        return one_by_one(case, inputs, of_one)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return None if case.models == 1 else {"calls": case.models}


class TorchLayers(TorchRNN):
    """A torch.nn module of one layer for each layer and direction, which reaches cuDNN's PERSIST_STATIC where a stack
    does not; the reverse direction reads and writes flipped time."""

    name, label = "cudnn-layers", "torch.nn, one-layer modules (cuDNN)"

    def unsupported(self, case: Case) -> str:
        if case.layers * case.directions == 1:
            return "one layer in one direction: the same as cudnn"
        if case.bidirectional and case.lengths != "full":
            return "a PackedSequence cannot be flipped without unpacking it"
        return ""

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        set_precision(case)
        return one_by_one(case, inputs, lambda values: self._one(case, values))

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return {"calls": case.models * case.layers * case.directions}

    def _one(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        x, cotangents, whole = packed_inputs(case, inputs)
        leaves = {"x": x} | state_leaves(inputs)
        modules = []
        for names in weight_names(case):
            w_ih = inputs[names[0]]
            module = module_of(torch.nn, case, x, input_size=w_ih.shape[1], num_layers=1, bidirectional=False)
            load(module, {f"{kind}_l0": inputs[name] for kind, name in zip(KINDS, names)})
            leaves |= {name: getattr(module, f"{kind}_l0") for kind, name in zip(KINDS, names)}
            modules.append(module)

        def recurrence(k: int, x: Any, state: loops.State) -> tuple[Any, loops.State]:
            state = tuple(s.unsqueeze(0) for s in state)
            y, last = modules[k](x, state if len(state) > 1 else state[0])
            return y, tuple(s[0] for s in (last if isinstance(last, tuple) else (last,)))

        states = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            y, last = loops.over_layers(case, recurrence, whole, states)
            return y if isinstance(y, Tensor) else y.data, last

        return Differentiated(call, leaves, cotangents, modules)


# ---- loops ----------------------------------------------------------------------------------------------------------


class Loop(Provider):
    """A Python loop over the steps of torch.nn.RNNCell, GRUCell or LSTMCell; of several models, whose cells do not
    batch, over the same formulas with batched products."""

    name, label = "loop", "eager loop of RNNCell"

    def missing(self, device: torch.device) -> str:
        return ""

    def unsupported(self, case: Case) -> str:
        return "" if case.lengths == "full" else "the loop takes padded tensors"

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        set_precision(case)
        if case.models > 1:
            return of_formulas(case, inputs, by_formula(case))
        leaves = {"x": leaf(inputs["x"])} | state_leaves(inputs)
        cells = []
        for names in weight_names(case):
            cell = self._cell(case, inputs[names[0]])
            load(cell, {kind: inputs[name] for kind, name in zip(KINDS, names)})
            leaves |= {name: getattr(cell, kind) for kind, name in zip(KINDS, names)}
            cells.append(cell)

        def recurrence(k: int, x: Tensor, state: loops.State) -> tuple[Tensor, loops.State]:
            cell = cells[k]
            if case.cell == "lstm":
                return loops.over_steps(cell, x, state)
            return loops.over_steps(lambda x_t, state: (cell(x_t, state[0]),), x, state)

        return _looped(case, leaves, cotangents_of(inputs), recurrence, cells)

    def _cell(self, case: Case, w_ih: Tensor) -> torch.nn.Module:
        options: dict[str, Any] = {"nonlinearity": case.nonlinearity} if case.cell == "rnn" else {}
        cell = getattr(torch.nn, f"{_MODULES[case.cell]}Cell")
        return cell(w_ih.shape[1], case.H, device=w_ih.device, dtype=w_ih.dtype, **options)


Steps = Callable[[Tensor, loops.State, loops.Weights], tuple[Tensor, loops.State]]


def by_formula(case: Case) -> Steps:
    """All steps of one recurrence, by the formula of the case's cell"""
    kind = loops.kind_of(case)
    return lambda x, state, weights: loops.over_steps(
        lambda x_t, state: loops.formula(kind, x_t, state, weights), x, state
    )


def of_formulas(case: Case, inputs: dict[str, Tensor], steps: Steps) -> Session:
    """Layers of `steps`, of one model or of several at once"""
    leaves = {"x": leaf(inputs["x"])} | state_leaves(inputs) | weight_leaves(case, inputs)
    weights = [tuple(leaves[name] for name in names) for names in weight_names(case)]
    return _looped(case, leaves, cotangents_of(inputs), lambda k, x, state: steps(x, state, weights[k]))


def _looped(
    case: Case, leaves: dict[str, Tensor], cotangents: list[Tensor], recurrence: Any, modules: Any = ()
) -> Differentiated:
    states = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)
    return Differentiated(
        lambda: loops.over_layers(case, recurrence, leaves["x"], states), leaves, cotangents, modules, case.precision
    )


class Compiled(Loop):
    """torch.compile of the loop, CHUNK steps at a time: Dynamo unrolls it, and thousands of steps take it minutes."""

    name, label = "compile", "torch.compile of the loop"
    compiles = True

    def __init__(self, backend: Any = "inductor"):
        self.backend = backend

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        import torch._dynamo

        # Every layer, pass and remainder is a compilation of one function. Past the limit it would run eagerly, and
        # nothing would say so.
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        set_precision(case)
        chunk = torch.compile(by_formula(case), dynamic=False, backend=self.backend)

        def steps(x: Tensor, state: loops.State, weights: loops.Weights) -> tuple[Tensor, loops.State]:
            ys = []
            for part in x.split(CHUNK, -3):
                y, state = chunk(part, state, weights)
                ys.append(y)
            return torch.cat(ys, -3), state

        return of_formulas(case, inputs, steps)

    def shortest(self, case: Case) -> Case:
        return case.at(min(case.T, CHUNK + case.T % CHUNK))  # the last steps are a chunk of their own

    def prepare(self, case: Case, pass_: str, device: torch.device) -> None:
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # there is a process on every core
        super().prepare(case, pass_, device)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return {"steps_compiled_at_once": CHUNK}


class Graphed(Loop):
    """The eager loop captured once, by pass, as a CUDA graph, and replayed. Results are the graph's own tensors."""

    name, label = "graph", "CUDA graph of the loop"
    captured = True

    def missing(self, device: torch.device) -> str:
        return "" if device.type == "cuda" else "a CUDA graph needs a CUDA GPU"

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return Replayed(super().session(case, inputs))


class Replayed:
    """Another session's calls by CUDA graphs, each captured when it is first called."""

    def __init__(self, session: Session):
        self.session = session
        self._calls: dict[str, tuple[Any, Any]] = {}

    def forward(self) -> tuple[Any, Any]:
        return self._replay("forward")

    def train(self) -> Result:
        return self._replay("train")

    def _replay(self, name: str) -> Any:
        if name not in self._calls:
            self._calls[name] = timing.capture(getattr(self.session, name))
        graph, result = self._calls[name]
        graph.replay()
        return result


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Ours(), OurLayers(), TorchRNN(), TorchLayers(), Loop(), Compiled(), Graphed(), FlashRNN(), XMA(), FlagGems(), TorchRL(),
    )
}  # fmt: skip
