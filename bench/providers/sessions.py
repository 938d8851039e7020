"""Sessions that run a case forward and through autograd, and what they are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnn_triton.plan.cudnn import torch_module

from ..cases.case import Case
from ..cases.inputs import of_model, packed, weight_names
from .interface import Result, Session

Call = Callable[[], tuple[Tensor, tuple[Tensor, ...]]]  # -> y, (hn, an LSTM's cn)


@contextlib.contextmanager
def products_in_tf32(precision: str | None) -> Iterator[None]:
    """While open, torch multiplies fp32 matrices in TF32, if `precision` says so: for what is made of torch's products.

    Not for good: torch ships this switch off, and the other providers run as their users have it."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # the older and the newer switch: one alone makes reading the other fail
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Differentiated:
    """A session by autograd: `call` reads `leaves`, which are named as tensors() names them, in eval or training mode of `modules`. `cotangents`: of
    what the call returns, in its order. `precision`: of the products of a call that is made of torch's; what multiplies by itself has none."""

    def __init__(
        self, call: Call, leaves: Mapping[str, Tensor], cotangents: Sequence[Tensor], modules: Sequence[torch.nn.Module] = (),
        precision: str | None = None,
    ):  # fmt: skip
        self.call, self.leaves, self.cotangents, self.modules = call, dict(leaves), cotangents, modules
        self.precision = precision

    def forward(self) -> tuple[Tensor, Tensor]:
        for module in self.modules:
            module.eval()
        with torch.no_grad(), products_in_tf32(self.precision):
            y, states = self.call()
        return y, states[0]

    def train(self) -> Result:
        for module in self.modules:
            module.train()
        with products_in_tf32(self.precision):
            y, states = self.call()
            gradients = self.gradients(y, states)
        out = {"y": y.detach(), **{name: s.detach() for name, s in zip(("hn", "cn"), states)}}
        return out | {f"d{name}": gradient for name, gradient in gradients.items()}

    def gradients(self, y: Tensor, states: tuple[Tensor, ...]) -> Result:
        """By the names of leaves; those of NAME#0, NAME#1, ... as a list"""
        found: Result = {}
        for name, value in zip(self.leaves, torch.autograd.grad((y, *states), list(self.leaves.values()), self.cotangents)):
            name, several, _ = name.partition("#")
            found[name] = [*found.get(name, ()), value] if several else value
        return found


class ModuleSession(Differentiated):
    """A module with the interface and the parameters of torch.nn.RNN, GRU or LSTM, time-major.

    `case`: needed where its lengths differ; sequences are then packed here, once, as a caller with cuDNN would. `how`: further arguments
    of a call."""

    def __init__(self, module: torch.nn.Module, inputs: dict[str, Tensor], case: Case | None = None, **how: Any):
        self.module = module
        load(module, inputs)
        x, cotangents, whole = packed_inputs(case, inputs)
        leaves = {"x": x} | state_leaves(inputs)
        state = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            y, last = module(whole, state if len(state) > 1 else state[0], **how)
            return y.data if isinstance(y, PackedSequence) else y, last if isinstance(last, tuple) else (last,)

        super().__init__(call, leaves | dict(module.named_parameters()), cotangents, (module,))


def load(module: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    """Parameters of these names, in place: cuDNN's weights stay in one buffer."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


def leaf(value: Tensor) -> Tensor:
    """The same memory, to be differentiated with respect to"""
    return value.detach().requires_grad_()


def state_leaves(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """h0, and an LSTM's c0"""
    return {name: leaf(inputs[name]) for name in ("h0", "c0") if name in inputs}


def weight_leaves(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """All parameters"""
    return {name: leaf(inputs[name]) for names in weight_names(case) for name in names}


def by_heads(case: Case, name: str, value: Tensor) -> Tensor:
    """[N,...] of a state or parameter of a case of N heads, a view"""
    if name.startswith("weight_hh"):
        return value if case.heads > 1 else value[None]
    if name in ("h0", "c0", "dhn", "dcn"):
        return value.unflatten(-1, (case.heads, -1)).movedim(-2, 0)
    return value.unflatten(0, (case.heads, -1))


def of_heads(value: Tensor) -> Tensor:
    """[...,H] of [N,...,H/N]"""
    return value.movedim(0, -2).flatten(-2)


def cotangents_of(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [inputs[name] for name in ("dy", "dhn", "dcn") if name in inputs]


def packed_inputs(case: Case | None, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], Any]:
    """(leaf, cotangents, what the module takes), packed where lengths differ"""
    if case is None or case.lengths == "full":
        x = leaf(inputs["x"])
        return x, cotangents_of(inputs), x
    whole = packed(case, inputs["x"])
    x = leaf(whole.data)
    dy, *others = cotangents_of(inputs)
    return x, [packed(case, dy).data, *others], PackedSequence(x, *whole[1:])


class OneByOne:
    """Models one after the other, by a session for each."""

    def __init__(self, sessions: Sequence[Session]):
        self.sessions = sessions

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        found = [session.forward() for session in self.sessions]
        return [y for y, _ in found], [hn for _, hn in found]

    def train(self) -> Result:
        found = [session.train() for session in self.sessions]
        return {name: [result[name] for result in found] for name in found[0]}


def one_by_one(case: Case, inputs: dict[str, Tensor], of_one: Callable[[dict[str, Tensor]], Session]) -> Session:
    """`of_one` of the only model, or of each of several"""
    if case.models == 1:
        return of_one(inputs)
    return OneByOne([of_one(of_model(inputs, model)) for model in range(case.models)])


def module_of(library: Any, case: Case, x: Tensor, **sizes: Any) -> torch.nn.Module:
    """The library's RNN, GRU or LSTM of a case, in x's dtype on its device; sizes other than the case's if given.  Of a cell that
    torch does not have, the library's Recurrent."""
    name, options = torch_module(case.cell)
    cell = () if name else (case.cell,)
    sizes = {"input_size": case.I, "hidden_size": case.H, "num_layers": case.layers, "bidirectional": case.bidirectional, **sizes}
    return getattr(library, name or "Recurrent")(*cell, **sizes, **options, device=x.device, dtype=x.dtype)
