"""rnn_triton as a provider: its modules as they are, and with a launch for each layer and direction."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import rnn_triton
from rnn_triton.cells import named
from rnn_triton.plan import hardware
from rnn_triton.plan.cudnn import torch_module
from rnn_triton.plan.problem import plan_fields

from ..cases.case import Case
from ..cases.estimate import launches
from ..cases.inputs import lengths_of
from .interface import Provider, Session
from .sessions import Differentiated, ModuleSession, cotangents_of, leaf, module_of, state_leaves, weight_leaves


class Ours(Provider):
    """rnn_triton.RNN, GRU, LSTM or Recurrent, with heads and lengths; several models by torch.func, as one call with stacked weights."""

    name = label = "rnn_triton"
    compiles = True
    options: dict[str, Any] = {}  # of the module
    packs = False  # where lengths differ; else it is told them

    def version(self) -> str | None:
        return rnn_triton.__version__

    def missing(self, device: torch.device) -> str:
        return ""

    def unsupported(self, case: Case) -> str:
        name = torch_module(case.cell)[0] or "Recurrent"
        if not hasattr(rnn_triton, name):
            return f"rnn_triton has no {name}"
        if case.models > 1 and case.lengths != "full":
            return "sequences of different lengths of several models: the gate has no reference for them"
        return ""

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        module = module_of(rnn_triton, case, inputs["x"], heads=case.heads, **self.options)
        if case.models > 1:
            return stacked(case, module, inputs)
        padded = case.lengths != "full" and not self.packs
        return ModuleSession(module, inputs, None, lengths=lengths_of(case).to(inputs["x"].device)) if padded else ModuleSession(module, inputs, case)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return plans_on(case, hardware.of(device))


class OurLayers(Ours):
    """The same module with a launch for each layer and direction: what sharing launches saves."""

    name, label = "rnn_triton-layers", "rnn_triton, a launch a layer and direction"

    def unsupported(self, case: Case) -> str:
        if case.layers * case.directions == 1:
            return "one layer in one direction: the same as rnn_triton"
        if case.models > 1:
            return "several models share no launch: the same as rnn_triton"
        return super().unsupported(case)

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        session = super().set_up(case, inputs)
        apart = rnn_triton.overriding(recurrences=1)
        session.forward, session.train = apart(session.forward), apart(session.train)  # type: ignore[method-assign]
        return session

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        with rnn_triton.overriding(recurrences=1):
            return super().plan(case, device)


class OurPacked(Ours):
    """The same module on a PackedSequence, as who comes from torch.nn has it: what copying to padded rows and back costs."""

    name, label = "rnn_triton-packed", "rnn_triton, packed input"
    packs = True

    def unsupported(self, case: Case) -> str:
        return "sequences of one length: the same as rnn_triton" if case.lengths == "full" else super().unsupported(case)


class OurRecompute(Ours):
    """The same module with recompute=True: what keeping less for the backward pass saves and costs."""

    name, label = "rnn_triton-recompute", "rnn_triton, gates computed again"
    options = {"recompute": True}

    def unsupported(self, case: Case) -> str:
        return super().unsupported(case) if named(case.cell).kept else f"{case.cell} keeps y alone: the same as rnn_triton"


def plans_on(case: Case, device: Any) -> dict[str, Any]:
    """rnn_triton's plans for a hardware.Device: of the first launch, for one model, in each pass, and of a network of several
    layers or directions of every launch with the layers or directions it carries"""
    found = []
    for part in launches(case, device):
        ran = {pass_: plan_fields(part.plan(pass_, device)[1]) for pass_ in ("forward", "backward")}
        found.append({"bundle": asdict(part.bundle), **ran})
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
