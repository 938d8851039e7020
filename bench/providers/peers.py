"""Libraries with recurrent kernels of their own, each through its public interface.

Weights are brought into a library's layout when a session is made, and inputs and cotangents lie in memory as the library wants them:
neither is part of a call. The input projection is part of it, as it is of torch.nn.RNN: a product before the call where a library takes
projected input. Gradients come back in torch.nn's order by views, where nothing else is said. A library that has one bias gets the sum of
torch's two, whose gradients are the same. """

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rnn_triton.cells import named

from ..cases.case import Case
from ..cases.inputs import weight_names
from . import loops
from .interface import Provider, Result, Session
from .sessions import Differentiated, by_heads, cotangents_of, leaf, load, of_heads, state_leaves, weight_leaves


def lying(value: Tensor, *order: int) -> Tensor:
    """The same shape and values, in memory in the order of these dimensions, the outermost first."""
    inverse = [order.index(i) for i in range(len(order))]
    return value.permute(order).contiguous().permute(inverse)


class Layerwise(Differentiated):
    """A session of a library that knows one layer in one direction: `recurrences` for each layer and direction.

    A model's hidden state, or that of a head, is a head of such a library: x[M,T,B,I], h[M,B,H]; M = 1 for the only model of a case, and
    for x and y of heads, which all read x."""

    def __init__(self, case: Case, inputs: dict[str, Tensor], order: tuple[int, ...]):
        """`order` in which the library has the dimensions of a sequence [M,T,B,H] in memory."""
        self.case, self.inputs = case, inputs
        self.weights: list[dict[str, Tensor]] = []
        tensors = {name: self.with_models(name, value) for name, value in inputs.items()}
        sequences = {name: lying(tensors[name], *order) for name in ("x", "dy")}
        leaves = {"x": leaf(sequences["x"])} | state_leaves(tensors)
        for k, names in enumerate(weight_names(case)):
            found = {name: leaf(value) for name, value in self.convert([tensors[name] for name in names]).items()}
            leaves |= {f"{k} {name}": value for name, value in found.items()}
            self.weights.append(found)
        cotangents = [sequences["dy"], *cotangents_of(tensors)[1:]]
        states = tuple(leaves[name] for name in ("h0", "c0") if name in leaves)

        def whole(k: int, x: Tensor, state: loops.State) -> tuple[Tensor, loops.State]:
            y, last = self.recurrence(k, x, state)
            return of_heads(y)[None] if case.heads > 1 else y, last  # which the next layer reads in all heads

        super().__init__(lambda: loops.over_layers(case, whole, leaves["x"], states), leaves, cotangents, precision=case.precision)

    def with_models(self, name: str, value: Tensor) -> Tensor:
        return value if self.case.models > 1 else value[None] if name in ("x", "dy") else by_heads(self.case, name, value)

    def without(self, name: str, value: Tensor) -> Tensor:
        """A result as the case has it"""
        if self.case.models > 1 or (self.case.heads > 1 and name.startswith("dweight_hh")):
            return value
        return of_heads(value) if name in ("hn", "cn", "dh0", "dc0") else value.flatten(0, 1)

    def convert(self, weights: list[Tensor]) -> dict[str, Tensor]:
        """The library's weights from w_ih[M,G*H,I], w_hh[M,G*H,H], b_ih[M,G*H], b_hh[M,G*H]."""
        raise NotImplementedError

    def restore(self, gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of those four from the gradients of the library's weights."""
        raise NotImplementedError

    def recurrence(self, k: int, x: Tensor, state: loops.State) -> tuple[Tensor, loops.State]:
        """y[M,T,B,H] and the last state, of x[M,T,B,I] and state [M,B,H]."""
        raise NotImplementedError

    def projected(self, x: Tensor, weight: Tensor, bias: Tensor | None, batch_first: bool) -> Tensor:
        """[T,B,M,N], or [B,T,M,N], of x[M,T,B,I], weight[M,N,I] and bias[M,N]."""
        rows = x.transpose(1, 2) if batch_first else x  # as it lies in memory
        if len(rows) == 1:
            out = torch.nn.functional.linear(rows[0], weight.flatten(0, 1), None if bias is None else bias.flatten())
            return out.unflatten(2, (len(weight), -1))
        flat = rows.flatten(1, 2)
        out = flat @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight.mT)
        return out.unflatten(1, rows.shape[1:3]).permute(1, 2, 0, 3)

    def forward(self) -> tuple[Tensor, Tensor]:
        y, hn = super().forward()
        return self.without("y", y), self.without("hn", hn)

    def train(self) -> dict[str, Any]:
        return {name: self.without(name, value) for name, value in super().train().items()}

    def gradients(self, y: Tensor, states: tuple[Tensor, ...]) -> dict[str, Tensor]:
        found = super().gradients(y, states)
        out: dict[str, Tensor] = {name: found[name] for name in ("x", "h0", "c0") if name in found}
        for k, names in enumerate(weight_names(self.case)):
            out |= dict(zip(names, self.restore({name: found[f"{k} {name}"] for name in self.weights[k]})))
        return out


class Library(Provider):
    """A library that compiles kernels: `kind` makes a session of (case, inputs, backend); `backend`: of several that the library has."""

    compiles = True
    kind: Callable[..., Session]
    backend = ""

    def __init__(self, backend: str = ""):
        self.backend = backend or self.backend

    def refused(self, case: Case) -> Iterator[tuple[bool, str]]:
        """(whether, why) it does not run a case"""
        raise NotImplementedError

    def unsupported(self, case: Case) -> str:
        lengths = (case.lengths != "full", f"{self.label.partition(' (')[0]} takes padded tensors")
        return next((why for refused, why in (*self.refused(case), lengths) if refused), "")

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        return self.kind(case, inputs, self.backend)


FUNCTIONS = {"elman_tanh": "elman", "gru": "gru", "lstm": "lstm"}


class _FlashRNN(Layerwise):
    """Wx[T,B,G,M,H], R[G,M,H,H] (from hidden unit last), b[G,M,H], states [S,1,B,M,H].

    Gates are torch's, but for a GRU's: R has n, r, z, Wx r, z, n, and b n (of h), r, z, n (of x). Putting the
    gradients of a GRU's weights in torch's order is part of a call: a copy of W_hh."""

    steps = 0  # the dimension of the steps; that of the batch is the other one of the first two

    def __init__(self, case: Case, inputs: dict[str, Tensor], backend: str):
        flashrnn = importlib.import_module("flashrnn")
        dtype = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(inputs["x"].dtype, "float32")
        config = flashrnn.FlashRNNConfig(
            backend=backend, function=FUNCTIONS[case.cell], head_dim=case.H // case.heads, num_heads=case.models * case.heads,
            batch_size=case.B, dtype=dtype, input_shape="TBGHD", output_shape="STBHD",
        )  # fmt: skip
        self.function = functools.partial(flashrnn.flashrnn, config=config)
        super().__init__(case, inputs, (1, 2, 0, 3))

    def convert(self, weights: list[Tensor]) -> dict[str, Tensor]:
        w_ih, w_hh, b_ih, b_hh = weights
        if self.case.cell == "gru":
            w_hh = _by_gate(w_hh).roll(1, 1).flatten(1, 2)
            (xr, xz, xn), (hr, hz, hn) = b_ih.chunk(3, 1), b_hh.chunk(3, 1)
            return {"W": w_ih, "R": w_hh, "b": torch.cat([hn, xr + hr, xz + hz, xn], 1)}
        return {"W": w_ih, "R": w_hh.clone(), "b": b_ih + b_hh}

    def restore(self, gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        W, R, b = (gradients[name] for name in ("W", "R", "b"))
        if self.case.cell != "gru":
            return W, R, b, b
        hn, r, z, xn = b.chunk(4, 1)
        return W, _by_gate(R).roll(-1, 1).flatten(1, 2), torch.cat([r, z, xn], 1), torch.cat([r, z, hn], 1)

    def recurrence(self, k: int, x: Tensor, state: loops.State) -> tuple[Tensor, loops.State]:
        w, H = self.weights[k], self.case.H // self.case.heads
        Wx = self.projected(x, w["W"], None, batch_first=self.steps == 1).unflatten(3, (-1, H)).transpose(2, 3)
        R, b = (w[name].unflatten(1, (-1, H)).transpose(0, 1) for name in ("R", "b"))
        before = torch.stack([s.transpose(0, 1) for s in state]).unsqueeze(1 + self.steps)
        every, last = self.function(Wx, R, b, before)
        return every[0].transpose(0, self.steps).permute(2, 0, 1, 3), tuple(s.select(self.steps, 0).transpose(0, 1) for s in last)


def _by_gate(weight: Tensor) -> Tensor:
    """[M,3*H,...] as [M,3,H,...]"""
    return weight.unflatten(1, (3, -1))


class FlashRNN(Library):
    """FlashRNN (arXiv 2412.07752), its fused CUDA kernels, built by nvcc for each shape when they are first used.

    Models and heads are its heads. It copies the recurrent weights into its own layout in every call, whatever it is given."""

    name, label = "flashrnn", "FlashRNN (fused CUDA)"
    package, module = "flashrnn", "flashrnn"
    kind, backend = _FlashRNN, "cuda_fused"

    def missing(self, device: torch.device) -> str:
        if why := super().missing(device):
            return why
        from torch.utils.cpp_extension import CUDA_HOME

        if CUDA_HOME is None or not os.path.exists(os.path.join(CUDA_HOME, "bin", "nvcc")):
            return "builds its kernels with nvcc, which is not here"
        return ""

    def refused(self, case: Case) -> Iterator[tuple[bool, str]]:
        yield case.cell not in FUNCTIONS, f"FlashRNN's cells are Elman's with tanh, GRU and LSTM (sLSTM is another one), not {case.cell}"

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        # it runs a GRU by its alternating kernels, a product and a pointwise kernel each step
        return {"backend": "cuda" if case.cell == "gru" and self.backend == "cuda_fused" else self.backend}


class _XMA(Layerwise):
    """x[B,T,M,H] with the bias in it, W[M,H,H] (to hidden unit last), state [B,M,H]."""

    def __init__(self, case: Case, inputs: dict[str, Tensor], backend: str):
        self.function = importlib.import_module("xma.layers").rnn
        self.backend = importlib.import_module("xma").KernelBackend[backend]
        super().__init__(case, inputs, (2, 1, 0, 3))

    def convert(self, weights: list[Tensor]) -> dict[str, Tensor]:
        w_ih, w_hh, b_ih, b_hh = weights
        return {"W_ih": w_ih, "W": w_hh.mT.contiguous(), "b": b_ih + b_hh}

    def restore(self, gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return gradients["W_ih"], gradients["W"].mT, gradients["b"], gradients["b"]

    def recurrence(self, k: int, x: Tensor, state: loops.State) -> tuple[Tensor, loops.State]:
        w = self.weights[k]
        projected = self.projected(x, w["W_ih"], w["b"], batch_first=True)
        y, last = self.function(projected, w["W"], state[0].transpose(0, 1), kernel_backend=self.backend)
        return y.permute(2, 1, 0, 3), (last.transpose(0, 1),)


class XMA(Library):
    """XMA (accelerated-model-architectures), its Triton kernel for a tanh RNN: a program for each head and batch tile.

    Models and heads are its heads. Its GRU is another function than torch's: the reset gate is applied before the product with the state, not after it."""

    name, label = "xma", "XMA (Triton)"
    package, module = "accelerated-model-architectures", "xma"
    origin = "from github.com/open-lm-engine/accelerated-model-architectures"
    kind, backend = _XMA, "triton"
    most_H = 256  # W_hh is one tile of a program: 512 x 512 values are twice a whole SM's registers in bf16

    def not_imported(self) -> str:
        why = super().not_imported()
        # PyPI's package of that name is another one
        if not why and not hasattr(importlib.import_module(self.module), "KernelBackend"):
            return f"the installed xma is not {self.package} ({self.origin})"
        return why

    def refused(self, case: Case) -> Iterator[tuple[bool, str]]:
        why = "XMA's recurrent cells are a tanh RNN and a GRU whose reset gate acts before the recurrent product, torch's after it"
        yield case.cell != "elman_tanh", why
        yield case.H > self.most_H * case.heads, f"XMA holds W_hh in the registers of one CTA: H up to {self.most_H}, got {case.H // case.heads}"


class _FlagGems(Differentiated):
    """Arguments are those of torch.rnn_relu, torch.lstm, ...  It adds the gradients of the weights to their .grad itself."""

    def __init__(self, case: Case, inputs: dict[str, Tensor], backend: str):
        x, states = leaf(inputs["x"]), state_leaves(inputs)
        hx: Any = list(states.values()) if len(states) > 1 else states["h0"]
        self.name, self.parameters = named(case.cell).aten, weight_leaves(case, inputs)
        function = getattr(importlib.import_module("flag_gems.ops"), self.name, None)
        if function is None:
            raise NotImplementedError(f"this FlagGems has no {self.name}")

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            # has_biases, num_layers, dropout, train, bidirectional, batch_first
            how = (True, case.layers, 0.0, torch.is_grad_enabled(), case.bidirectional, False)
            y, *last = function(x, hx, tuple(self.parameters.values()), *how)
            return y, tuple(last)

        super().__init__(call, {"x": x, **states}, cotangents_of(inputs), precision=case.precision)

    def train(self) -> Result:
        if not self.name.startswith("rnn"):
            raise NotImplementedError(f"FlagGems' {self.name} has no backward pass")
        return super().train()

    def gradients(self, y: Tensor, states: tuple[Tensor, ...]) -> dict[str, Tensor]:
        for parameter in self.parameters.values():
            parameter.grad = None
        return super().gradients(y, states) | {name: p.grad for name, p in self.parameters.items() if p.grad is not None}


class FlagGems(Library):
    """FlagGems (read: its main branch of August 2026): rnn_relu, a program for each sequence of the batch, whose backward pass is torch's autograd over
    a loop that runs the forward pass again; lstm, a launch a step, without a backward pass; rnn_tanh and gru where a release has them."""

    name, label = "flaggems", "FlagGems (Triton)"
    package, module = "flag-gems", "flag_gems"
    origin = "from github.com/flagos-ai/FlagGems; releases up to 5.0.2 have no RNN"
    kind = _FlagGems

    def refused(self, case: Case) -> Iterator[tuple[bool, str]]:
        yield not named(case.cell).aten, f"FlagGems stands in for torch's functions, and torch has none of {case.cell}"
        yield case.models * case.heads > 1, "FlagGems runs one model a call, of one head"
        yield case.cell != "lstm" and case.layers * case.directions > 1, "of FlagGems' functions lstm alone runs several layers or directions"



MODULES = {"gru": "GRUModule", "lstm": "LSTMModule"}


class _TorchRL(Differentiated):
    def __init__(self, case: Case, inputs: dict[str, Tensor], backend: str):
        modules, tensordict = (importlib.import_module(name) for name in ("torchrl.modules", "tensordict"))
        names = tuple(state_leaves(inputs))
        module = getattr(modules, MODULES[case.cell])(
            case.I, case.H, case.layers, device=inputs["x"].device, in_keys=["x", *names], out_keys=["y", "hn", "cn"][: 1 + len(names)],
            recurrent_backend=backend, recurrent_matmul_precision=case.precision, default_recurrent_mode=True,
        )  # fmt: skip
        network = getattr(module, case.cell)
        load(network, inputs)
        x = leaf(lying(inputs["x"], 1, 0, 2))
        states = {}
        for name in names:
            every = torch.zeros(case.B, case.T, case.layers, case.H, dtype=x.dtype, device=x.device)
            every[:, 0] = inputs[name].transpose(0, 1)
            states[name] = leaf(every)
        data = tensordict.TensorDict(
            {"x": x.transpose(0, 1), "is_init": x.new_zeros(case.B, case.T, 1, dtype=torch.bool), **states}, [case.B, case.T],
        )  # fmt: skip
        self.states = tuple(names)

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            found = module(data.copy())
            last = (found[name][:, -1].transpose(0, 1) for name in ("hn", "cn")[: len(names)])
            return found["y"].transpose(0, 1), tuple(last)

        dy, *others = cotangents_of(inputs)
        leaves = {"x": x, **states, **dict(network.named_parameters())}
        super().__init__(call, leaves, [lying(dy, 1, 0, 2), *others], (module,))

    def gradients(self, y: Tensor, states: tuple[Tensor, ...]) -> dict[str, Tensor]:
        found = super().gradients(y, states)
        return found | {name: found[name][:, 0].transpose(0, 1) for name in self.states}


class TorchRL(Library):
    """TorchRL's GRUModule and LSTMModule with recurrent_backend="triton", which can reset the state at any step; here it never does. It
    keeps states for every step of the sequence, [B,T,L,H], those it gets and those it gives.

    What it makes of a TensorDict is part of a call, as it is for its users."""

    name, label = "torchrl", "TorchRL (Triton)"
    package, module = "torchrl", "torchrl"
    kind, backend = _TorchRL, "triton"

    def refused(self, case: Case) -> Iterator[tuple[bool, str]]:
        yield case.cell not in MODULES, "TorchRL has a GRU and an LSTM"
        yield case.dtype != "fp32", "TorchRL's Triton kernels take fp32"
        yield case.bidirectional, "TorchRL runs both directions by torch.nn, not by its Triton kernels"
        yield case.models * case.heads > 1, "TorchRL runs one model a call, of one head"
