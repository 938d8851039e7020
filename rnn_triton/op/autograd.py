"""The operator as autograd, torch.func and torch.compile see it: `network` is differentiable to any order, under every transform.

torch.compile and export see the ops of network.py.  Eager mode reaches them through a pair of autograd.Functions: `Network`, whose
backward is the backward op, and `NetworkBackward`, which takes its place under create_graph.  Derivatives of the gradients, and
those of forward mode, are those of the reference (cells/reference.py), which runs again from the saved inputs: it holds for every
cell.  The forward pass saves its inputs and y of every layer, nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, profiler

from ..cells import named, reference
from ..errors import UnsupportedError
from ..launch.launcher import is_batched
from . import dropout as masks
from . import network as ops
from . import onnx_node
from .gradients import DB, DH0, DW_HH, DW_IH, DX
from .layers import Settings, in_turn

_vjp: Any = torch.func.vjp  # (outputs, pull_back)
_autograd: Any = torch._C._autograd  # its stubs lack some
# Calls an op past its registered autograd, whose Python half costs more than the rest of the call.
_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_tracing = torch._C._is_tracing  # bound, as torch.jit.is_tracing takes ten times as long
_is_grad_enabled = torch.is_grad_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_profiling = _autograd._profiler_enabled
_PLAIN = (Tensor, nn.Parameter)
_STRIDED = torch.strided


@dataclass(slots=True)
class _Facts:
    """What the Functions are given besides tensors.  Not a tuple, which torch.func would take apart."""

    net: Settings
    needs: list[int] = field(default_factory=list)  # those of network.Call.backward


# ---- below autograd --------------------------------------------------------------------------------------------------


def _may_be_seen(*tensors: Tensor | None) -> bool:
    """True if the dispatcher, given these tensors, may do more than call an op's body: a mode, a transform, a tracer, a profiler or a
    tensor's class sees the call, or a tensor is not what lies in its memory, strided: a batch of torch's older vmap, or zeros without
    memory.  Calling a body costs half of calling the op, for its lists."""
    if torch.compiler.is_compiling():  # compiled autograd, whose tracer would go through what follows
        return True
    if _modes() or _function_modes() or _are_transforms_active() or _is_profiling() or profiler._is_profiler_enabled:
        return True
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_neg() or t._is_zerotensor() or t.layout is not _STRIDED):
            return True
    x = tensors[0]
    return x is None or is_batched(x) or not (x.is_cuda or x.is_cpu)  # is_batched of all tensors would take as long as the rest


def _forward(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, seed: Tensor | None, net: Settings, keep: bool
) -> ops.Results:
    with _below_autograd():
        if _may_be_seen(x, h0, *weights):
            y, hn, kept = ops.forward(x, weights, h0, seed, *net, keep)
            if _are_transforms_active():  # vmap's are views, whose tangents would have to lie as they do
                y, hn, kept = y.detach(), hn.detach(), kept.detach()
            return y, hn, None if kept.dim() == 1 else kept  # nothing is kept
        return ops.Call(x, net.layers(weights), h0, seed, net).forward(keep)


def _backward(x: Tensor, h0: Any, seed: Any, kept: Tensor, dy: Any, dhn: Any, facts: _Facts, *weights: Tensor) -> Any:
    """Returns (dx, dh0, dw_ih, dw_hh, db, ..), None where none is needed."""
    net, needs = facts.net, facts.needs
    with _below_autograd():
        batched = any([t is not None and is_batched(t) for t in (dy, dhn)])
        if not (batched or _may_be_seen(x, h0, kept, dy, dhn, *weights)):
            call = ops.Call(x, net.layers(weights), h0, seed, net)
            dx, dh0, dweights = call.backward(kept, dy, dhn, needs, None)
            return dx, dh0, *dweights
        dx, dh0, dweights = ops.backward(x, weights, h0, seed, *net, kept, dy, dhn, needs, None)
    wanted = [needs[0] & DX, needs[0] & DH0, *[need & w for need in needs[1:] for w in (DW_IH, DW_HH, DB)]]
    return tuple([g if want else None for g, want in zip((dx, dh0, *dweights), wanted, strict=True)])


# ---- the reference, and what is differentiated by it -----------------------------------------------------------------


def _reference(x: Tensor, weights: Sequence[Tensor], seed: Tensor | None, net: Settings) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns (x, h0, *weights) -> (y, h_n) by plain torch in at least fp32, with the operator's masks for tensors of these sizes."""
    dtype, cell = x.dtype, named(net.cell)
    wide = torch.float32 if x.element_size() == 2 else dtype
    number = len(weights) // net.tensors // net.directions
    # now: what is made within a transform has no memory that a kernel could fill
    kept = []
    if seed is not None:
        shape = (*x.shape[:2], net.directions * weights[1].shape[-1])
        kept = [masks.mask(shape, dtype, seed, n, net.dropped) for n in range(number - 1)]

    def one(*tensors: Any) -> tuple[Tensor, Tensor]:
        *arguments, n = tensors
        operands: Any = [t if t is None else t.to(wide) for t in arguments] + [cell, net.reverse(n)]
        return reference.recurrence(*operands)

    def between(y: Tensor, n: int) -> Tensor:
        return masks.drop_by_mask(y, kept[n], net.dropped) if kept else y

    def run(x: Tensor, h0: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, hn = in_turn(x, net.layers(weights), h0, net.directions, one=one, between=between)
        return y.to(dtype), hn.to(dtype)

    return run


@contextlib.contextmanager
def _alone(device: str) -> Iterator[None]:
    """Keeps from derivatives what may surround a backward pass: autocast, which would round fp32, and hooks of saved tensors, which
    torch.func refuses: it saves for itself."""
    hooks: list[Any] = []
    while (pair := _autograd._top_saved_tensors_default_hooks(False)) is not None:
        hooks.append(pair)
        _autograd._pop_saved_tensors_default_hooks()
    try:
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext():
            yield
    finally:
        for pair in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(*pair)


def _spread(tensors: Sequence[Tensor], places: Sequence[int], count: int) -> list[Tensor | None]:
    """Returns `count` tensors, those that are there in their places, None elsewhere."""
    everything: list[Tensor | None] = [None] * count
    for i, t in zip(places, tensors, strict=True):
        everything[i] = t
    return everything


class _Function:
    """The reference, or its gradients, as a function of those of some tensors that are there."""

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor | None]) -> None:
        """`run` takes them all.  Those of an ensemble all have M in front, and so has the result."""
        self.present = present = [i for i, t in enumerate(tensors) if t is not None]
        self.tensors: list[Any] = [tensors[i] for i in present]
        self.count = count = len(tensors)

        def reduced(*some: Tensor) -> tuple[Tensor, ...]:
            return run(*_spread(some, present, count))  # not of self: a cycle of references would hold all of it

        self.run = torch.vmap(reduced) if self.tensors[0].dim() == 4 else reduced
        self.device = self.tensors[0].device.type

    def pull_back(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Returns the gradients of the tensors, None of those that are not there."""
        with _alone(self.device):
            outputs, pull = _vjp(self.run, *self.tensors)
            dense = [torch.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangents, strict=True)]
            return _spread(pull(tuple(dense)), self.present, self.count)

    def push_forward(self, tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Returns the tangents of the results.  The pull-back is linear in its cotangents, and its transpose is the push-forward.  Not
        by torch.func.jvp: forward mode does not nest, and an open dual_level() is one way to get here."""
        with _alone(self.device):
            outputs, pull = _vjp(self.run, *self.tensors)
            push = _vjp(pull, tuple([torch.zeros_like(o) for o in outputs]))[1]
            pairs = [(tangents[i], t) for i, t in zip(self.present, self.tensors, strict=True)]
            return push(tuple([torch.zeros_like(t) if tangent is None else tangent for tangent, t in pairs]))[0]


# ---- the Functions ---------------------------------------------------------------------------------------------------


class _Fast(torch.autograd.Function):
    generate_vmap_rule = True  # out of the ops' own rules (batching.py)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # Function.apply binds its arguments with inspect.signature on every call, which costs more than the
        # rest of the call; only torch.func transforms need what it does
        if _are_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class NetworkBackward(_Fast):
    """(dx, dh0, dw_ih, dw_hh, db, ..) of (x, h0, seed, kept, dy, dhn, facts, *weights), None where none is needed.

    Its derivatives are those of the reference's gradients, as functions of all but `kept`, which follows from the rest."""

    forward = staticmethod(_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
        x, h0, seed, _, dy, dhn, ctx.facts, *weights = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(seed, x, h0, dy, dhn, *weights)
        ctx.save_for_forward(seed, x, h0, dy, dhn, *weights)

    @staticmethod
    def _gradients(ctx: Any) -> tuple[_Function, list[bool]]:
        """Returns the gradients that were needed as a function of (x, h0, dy, dhn, *weights), and which of them those are."""
        seed, *tensors = ctx.saved_tensors
        net, (data, *needs) = ctx.facts.net, ctx.facts.needs
        reference = _reference(tensors[0], tensors[4:], seed, net)
        wanted = [bool(data & DX), bool(data & DH0), *[bool(n & w) for n in needs for w in (DW_IH, DW_HH, DB)]]

        def run(x: Tensor, h0: Tensor | None, dy: Tensor | None, dhn: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
            dx, dh0, *dweights = _Function(reference, (x, h0, *weights)).pull_back((dy, dhn))
            results = [dx, dh0]
            for n in range(0, len(dweights), net.tensors):
                dw_ih, dw_hh, *db = dweights[n : n + net.tensors]
                results += [dw_ih, dw_hh, db[0] if db else None]
            return tuple([g for g, want in zip(results, wanted, strict=True) if want])  # type: ignore[misc]

        return _Function(run, tensors), wanted

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients, wanted = NetworkBackward._gradients(ctx)
        x, h0, dy, dhn, *weights = gradients.pull_back([c for c, want in zip(cotangents, wanted, strict=True) if want])
        return x, h0, None, None, dy, dhn, None, *weights

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h0, _seed, _kept, dy, dhn, _facts, *weights = tangents
        gradients, wanted = NetworkBackward._gradients(ctx)
        pushed = iter(gradients.push_forward((x, h0, dy, dhn, *weights)))
        return tuple([next(pushed) if want else None for want in wanted])


class Network(_Fast):
    """(y, h_n, kept) of (x, h0, seed, facts, *weights)."""

    @staticmethod
    def forward(x: Tensor, h0: Tensor | None, seed: Tensor | None, facts: _Facts, *weights: Tensor) -> ops.Results:
        return _forward(x, weights, h0, seed, facts.net, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: ops.Results) -> None:
        x, h0, seed, facts, *weights = inputs
        _save(ctx, x, h0, seed, facts.net, weights, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        for_x, for_h0, _seed, _facts, *for_weights = ctx.needs_input_grad
        dx, dh0, dweights = _differentiate(ctx, dy, dhn, for_x, for_h0, for_weights)
        return dx, dh0, None, None, *dweights

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h0, seed, kept, *weights = ctx.saved_tensors
        function = _Function(_reference(x, weights, seed, ctx.net), (x, h0, *weights))
        # the rule of vmap that torch makes takes `kept` as differentiable, whatever it is marked as
        several = len(weights) > ctx.net.tensors * ctx.net.directions
        return *function.push_forward((*tangents[:2], *tangents[4:])), torch.zeros_like(kept) if several else None


def _save(ctx: Any, x: Tensor, h0: Any, seed: Any, net: Settings, weights: Sequence[Tensor], output: ops.Results) -> None:
    y, _, kept = output
    ctx.net = net
    ctx.set_materialize_grads(False)  # an unused y or h_n gives None, not a tensor of zeros
    saved = (x, h0, seed, y if kept is None or len(weights) == net.tensors * net.directions else kept, *weights)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _differentiate(
    ctx: Any, dy: Tensor | None, dhn: Tensor | None, for_x: bool, for_h0: bool, for_weights: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Returns the gradients of x, h0 and the weights, None where none is needed."""
    if dy is None and dhn is None:
        return None, None, [None] * len(for_weights)
    x, h0, seed, kept, *weights = ctx.saved_tensors
    net, count = ctx.net, ctx.net.tensors
    if kept.dim() == 1:  # a program that was exported as one that asks for no gradients
        kept = _forward(x, weights, h0, seed, net, True)[2]
    needs = [for_x * DX | for_h0 * DH0]
    for n in range(0, len(weights), count):
        w_ih, w_hh, *biases = for_weights[n : n + count]
        needs.append(w_ih * DW_IH | w_hh * DW_HH | any(biases) * DB)
    run = NetworkBackward.apply if _is_grad_enabled() else _backward  # create_graph
    dx, dh0, *thirds = run(x, h0, seed, kept, dy, dhn, _Facts(net, needs), *weights)  # (dw_ih, dw_hh, db) of each layer and direction
    dweights: list[Tensor | None] = []
    for n in range(0, len(thirds), 3):
        dweights += [thirds[n], thirds[n + 1], *[thirds[n + 2]] * (count - 2)]
    return dx, dh0, [g if want else None for g, want in zip(dweights, for_weights, strict=True)]


# torch.compile and export: the same formulas, hung on the op


def _setup_op(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weights, h0, seed, *settings, _keep = inputs
    _save(ctx, x, h0, seed, Settings(*settings), weights, output)


def _differentiate_op(ctx: Any, dy: Tensor | None, dhn: Tensor | None, _: Any) -> tuple[Any, ...]:
    for_x, for_weights, for_h0, *_others = ctx.needs_input_grad
    dx, dh0, dweights = _differentiate(ctx, dy, dhn, for_x, for_h0, for_weights)
    return dx, dweights, dh0, *[None] * (len(Settings._fields) + 2)


torch.library.register_autograd("rnn_triton::forward", _differentiate_op, setup_context=_setup_op)


# ---- entry -----------------------------------------------------------------------------------------------------------


def _only_maps() -> bool:
    """True if every transform that is active is a vmap."""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return all(i.key() == torch._C._functorch.TransformType.Vmap for i in interpreters)


# What torch.compiler.assume_constant_result sets, which would import all of Dynamo here: it asks while it traces.
setattr(_only_maps, "_dynamo_marked_constant", True)


def network(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, seed: Tensor | None, net: Settings
) -> tuple[Tensor, Tensor]:
    """Returns (y, h_n) of network.py, differentiable to any order, under every transform."""
    recording = _is_grad_enabled() and any([t is not None and t.requires_grad for t in (x, h0, *weights)])
    if torch.compiler.is_compiling():
        to_onnx = torch.onnx.is_in_onnx_export()
        if _are_transforms_active() and (to_onnx or not _only_maps()):
            # compile(grad(f)), compile(jvp(f)): Dynamo can take neither the Functions above nor the op's
            # autograd through torch.func's transforms; tangents would even come out as zeros
            return _reference(x, weights, None, net)(x, h0, *weights)
        if to_onnx:
            return onnx_node.network(x, weights, h0, net, between=lambda y, _: y)
        y, hn, _ = ops.forward(x, weights, h0, seed, *net, recording)
    elif _is_tracing():  # what a Function does would be traced through, and the kernels with it
        if torch.onnx.is_in_onnx_export():
            raise UnsupportedError(onnx_node.LEGACY)
        y, hn, _ = ops.forward(x, weights, h0, seed, *net, False)
    elif recording or forward_ad._current_level >= 0 or _are_transforms_active() and (_is_grad_enabled() or not _only_maps()):
        y, hn, _ = Network.apply(x, h0, seed, _Facts(net), *weights)
    else:
        y, hn, _ = _forward(x, weights, h0, seed, net, False)
    return y, hn
