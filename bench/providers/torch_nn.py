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
from .sessions import Differentiated, ModuleSession, by_heads, load, module_of, one_by_one, packed_inputs, state_leaves


class TorchRNN(Provider):
    """torch.nn.RNN, GRU or LSTM: cuDNN on a GPU, in the algorithm PyTorch picks; the kernels it ran are in the record.

    Several models: a module for each, called one after the other. Heads, which torch.nn has not: a module for each, layer by layer."""

    name, label = "cudnn", "torch.nn (cuDNN)"

    def unsupported(self, case: Case) -> str:
        return "" if torch_module(case.cell)[0] else f"torch.nn has no module of {case.cell}"

    def missing(self, device: torch.device) -> str:
        if device.type == "cuda" and not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return ""

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        if case.heads > 1:
            return _apart(case, inputs)
        return one_by_one(case, inputs, lambda one: ModuleSession(module_of(torch.nn, case, one["x"]), one, case))

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        calls = case.models if case.heads == 1 else case.layers * case.directions * case.heads
        return None if calls == 1 else {"calls": calls}


class TorchLayers(TorchRNN):
    """A torch.nn module of one layer for each layer and direction, which reaches cuDNN's PERSIST_STATIC where a stack
    does not; the reverse direction reads and writes flipped time."""

    name, label = "cudnn-layers", "torch.nn, one-layer modules (cuDNN)"

    def unsupported(self, case: Case) -> str:
        if case.layers * case.directions == 1 or case.heads > 1:
            return "one layer in one direction, or heads: the same as cudnn"
        if case.bidirectional and case.lengths != "full":
            return "a PackedSequence cannot be flipped without unpacking it"
        return super().unsupported(case)

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return one_by_one(case, inputs, lambda values: _apart(case, values))

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return {"calls": case.models * case.layers * case.directions}


def _apart(case: Case, inputs: dict[str, Tensor]) -> Session:
    """A module for each layer, direction and head"""
    x, cotangents, whole = packed_inputs(case, inputs)
    leaves = {"x": x} | state_leaves(inputs)
    modules: list[list[torch.nn.Module]] = []  # of the heads of each recurrence
    for names in weight_names(case):
        I, H, values = inputs[names[0]].shape[1], case.H // case.heads, [by_heads(case, name, inputs[name]) for name in names]
        modules.append([module_of(torch.nn, case, x, input_size=I, hidden_size=H, num_layers=1, bidirectional=False) for _ in values[0]])
        for n, module in enumerate(modules[-1]):
            load(module, {f"{kind}_l0": value[n] for kind, value in zip(KINDS, values)})
            of_head = f"#{n}" if case.heads > 1 else ""
            leaves |= {name + of_head: getattr(module, f"{kind}_l0") for kind, name in zip(KINDS, names)}

    def recurrence(k: int, x: Any, state: loops.State) -> tuple[Any, loops.State]:
        outputs, last = [], []
        for module, *parts in zip(modules[k], *(by_heads(case, "h0", s) for s in state)):
            before = tuple(part[None].contiguous() for part in parts)
            y, after = module(x, before if len(before) > 1 else before[0])
            outputs.append(y)
            last.append(tuple(s[0] for s in (after if isinstance(after, tuple) else (after,))))
        if case.heads == 1:
            return outputs[0], last[0]
        return torch.cat(outputs, -1), tuple(torch.cat(parts, -1) for parts in zip(*last))

    states = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        y, last = loops.over_layers(case, recurrence, whole, states)
        return y if isinstance(y, Tensor) else y.data, last

    return Differentiated(call, leaves, cotangents, [module for heads in modules for module in heads])
