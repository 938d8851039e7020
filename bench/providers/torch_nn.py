"""torch.nn's recurrent modules, which run cuDNN on a GPU, as providers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnn_triton.plan.cudnn import torch_module

from ..cases.case import Case
from ..cases.inputs import KINDS, weight_names
from . import loops
from .interface import Provider, Session
from .sessions import Differentiated, ModuleSession, load, module_of, one_by_one, packed_inputs, state_leaves


class TorchRNN(Provider):
    """torch.nn.RNN, GRU or LSTM: cuDNN on a GPU, in the algorithm PyTorch picks; the kernels it ran are in the record.

    Several models: a module for each, called one after the other."""

    name, label = "cudnn", "torch.nn (cuDNN)"

    def unsupported(self, case: Case) -> str:
        return "" if torch_module(case.cell)[0] else f"torch.nn has no module of {case.cell}"

    def missing(self, device: torch.device) -> str:
        if device.type == "cuda" and not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return ""

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return one_by_one(case, inputs, lambda one: ModuleSession(module_of(torch.nn, case, one["x"]), one, case))

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
        return super().unsupported(case)

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
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
