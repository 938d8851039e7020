"""What every provider is made of: its interface, and sessions that run a case forward and through autograd.

Results: y[T,B,D*H], hn[L*D,B,H], an LSTM's cn, and "d" and the name of each input and parameter for its gradient.
Where lengths differ, y and dx hold the valid steps alone, in the order of a PackedSequence's data. Of several
models each result has a leading dimension, or is a list with a tensor for each of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..cases.case import Case
from ..cases.inputs import of_model, packed, tensors, weight_names

Result = dict[str, Any]  # name -> tensor, or a list of one for every model
Call = Callable[[], tuple[Tensor, tuple[Tensor, ...]]]  # -> y, (hn, an LSTM's cn)

FEW_STEPS = 16  # of a call that compiles: more of them run the same kernels again


class Session(Protocol):
    """One provider, set up for one case."""

    def forward(self) -> tuple[Any, Any]:
        """(y, hn) in eval mode under no_grad."""

    def train(self) -> Result:
        """y, hn (cn) and all gradients of <dy, y> + <dhn, hn> (+ <dcn, cn>), in training mode."""


class Provider:
    """Who runs a case. `package` and `module`: of a library that torch does not bring, and what it is imported as."""

    name = ""  # in records
    label = ""  # in figures and tables
    package, module = "", ""
    origin = ""  # where to get it, if not by pip install `package`
    captured = False  # its calls replay CUDA graphs, and are not to be captured again
    compiles = False  # its first call compiles what another process can find in a cache

    def version(self) -> str | None:
        """Of its package; None where it is torch's, and where it is not installed."""
        try:
            return importlib.metadata.version(self.package) if self.package else None
        except importlib.metadata.PackageNotFoundError:
            return None

    def missing(self, device: torch.device) -> str:
        """Why it cannot run on this device; empty where it can."""
        return self.not_imported() or ("" if device.type == "cuda" else "needs a CUDA GPU")

    def not_imported(self) -> str:
        """Why its module cannot be imported; empty where it can."""
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                return f"{self.package} cannot be imported: {error}"
            return f"{self.package} is not installed ({self.origin or f'pip install {self.package}'})"
        except Exception as error:  # some look for a GPU or a compiler when they are imported
            return f"{self.package} cannot be imported: {type(error).__name__}: {error}".strip()
        return ""

    def unsupported(self, case: Case) -> str:
        """Why it cannot run this case on any device; empty where it can, or where only trying tells."""
        return ""

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        """Set up with tensors(); NotImplementedError where it cannot run the case."""
        raise NotImplementedError

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        """What it chose for the case, JSON-able; None where it does not say."""
        return None

    def shortest(self, case: Case) -> Case:
        """Over as few steps as compile what those of the case do."""
        return case.at(min(case.T, FEW_STEPS))

    def prepare(self, case: Case, pass_: str, device: torch.device) -> None:
        """Fill the caches of what it compiles for a pass ("fwd" or "train") of a case, so that another process
        finds it."""
        if self.compiles and not self.missing(device) and not self.unsupported(case):
            short = self.shortest(case)
            session = self.session(short, tensors(short, device))
            session.forward() if pass_ == "fwd" else session.train()


def set_precision(case: Case) -> None:
    """TF32 on or off for cuDNN's RNNs, which rnn_triton follows; other switches stay as torch ships them."""
    if case.precision is not None:
        torch.backends.cudnn.rnn.fp32_precision = case.precision  # type: ignore[attr-defined]


@contextlib.contextmanager
def products_in_tf32(precision: str | None) -> Iterator[None]:
    """While open, torch multiplies fp32 matrices in TF32, if `precision` says so: for what is made of torch's
    products.

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
    """A session by autograd: `call` reads `leaves`, which are named as tensors() names them, in eval or training
    mode of `modules`. `cotangents`: of what the call returns, in its order. `precision`: of the products of a
    call that is made of torch's; what multiplies by itself has none."""

    def __init__(
        self,
        call: Call,
        leaves: Mapping[str, Tensor],
        cotangents: Sequence[Tensor],
        modules: Sequence[torch.nn.Module] = (),
        precision: str | None = None,
    ):
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

    def gradients(self, y: Tensor, states: tuple[Tensor, ...]) -> dict[str, Tensor]:
        found = torch.autograd.grad((y, *states), list(self.leaves.values()), self.cotangents)
        return dict(zip(self.leaves, found))


class ModuleSession(Differentiated):
    """A module with the interface and the parameters of torch.nn.RNN, GRU or LSTM, time-major.

    `case`: needed where its lengths differ; sequences are then packed here, once, as a caller with cuDNN would."""

    def __init__(self, module: torch.nn.Module, inputs: dict[str, Tensor], case: Case | None = None):
        self.module = module
        load(module, inputs)
        x, cotangents, whole = packed_inputs(case, inputs)
        leaves = {"x": x} | state_leaves(inputs)
        state = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            y, last = module(whole, state if len(state) > 1 else state[0])
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

MODULES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}


def module_of(library: Any, case: Case, x: Tensor, **sizes: Any) -> torch.nn.Module:
    """The library's RNN, GRU or LSTM of a case, in x's dtype on its device; sizes other than the case's if given."""
    sizes = {
        "input_size": case.I, "hidden_size": case.H, "num_layers": case.layers, "bidirectional": case.bidirectional, **sizes,
    }  # fmt: skip
    if case.cell == "rnn":
        sizes["nonlinearity"] = case.nonlinearity
    return getattr(library, MODULES[case.cell])(**sizes, device=x.device, dtype=x.dtype)
