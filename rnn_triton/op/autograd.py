"""The operator as autograd, torch.func and torch.compile see it: `network` is differentiable to any order, under every transform.

torch.compile and export see the ops of network.py.  Eager mode reaches them through a pair of autograd.Functions: `Network`, whose
backward is the backward op, and `NetworkBackward`, which takes its place under create_graph.  Derivatives of the gradients, and
those of forward mode, are those of the reference (cells/reference.py), which runs again from the saved inputs: it holds for every
cell.  So are the gradients of states that sequences begin anew with.  The forward pass saves its inputs and y of every layer, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, profiler
from torch.utils._pytree import tree_map_only

from ..cells import reference
from ..cells.sequences import Sequences
from ..errors import UnsupportedError
from ..launch.launcher import is_batched
from ..launch.sequences import ALL
from . import dropout as masks
from . import network as ops
from . import onnx_node
from .gradients import DB, DH0, DV, DW_HH, DW_IH, DX
from .layers import Layer, Settings, States, in_turn
from .recording import alone

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
    states: int  # how many are given
    kept: int = 0
    needs: Sequence[int] = ()  # those of network.Call.backward
    sequences: tuple[bool, bool, int] | None = None  # lengths are given, resets are, and so many restart states, behind the weights

    def cut(self, tensors: Any) -> tuple[Any, Sequences]:
        """Returns the weights, and what is given of sequences, of tensors that are both.  In a call without sequences, which is most of
        them, it costs host time to ask."""
        if self.sequences is None:
            return tensors, ALL
        lengths, reset, restart = self.sequences
        n = len(tensors) - lengths - reset - restart
        given = iter(tensors[n:])
        return tensors[:n], Sequences(next(given) if lengths else None, next(given) if reset else None, tuple(given))


# ---- below autograd --------------------------------------------------------------------------------------------------


def _may_be_seen(*tensors: Tensor | None) -> bool:
    """True if the dispatcher, given these tensors, may do more than call an op's body: a mode, a transform, a tracer, a profiler or a
    tensor's class sees the call, or a tensor is not what lies in its memory, strided: a batch of torch's older vmap, or zeros without
    memory.  Calling a body costs half of calling the op, for its lists."""
    if _modes() or _function_modes() or _are_transforms_active() or _is_profiling() or profiler._is_profiler_enabled:
        return True
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_neg() or t._is_zerotensor() or t.layout is not _STRIDED):
            return True
    x = tensors[0]
    return x is None or is_batched(x) or not (x.is_cuda or x.is_cpu)  # is_batched of all tensors would take as long as the rest


def _forward(
    x: Tensor, weights: Sequence[Tensor], states: States, seed: Tensor | None, net: Settings, keep: bool, sequences: Sequences = ALL
) -> ops.Results:
    if _may_be_seen(x, *states, *weights) or (sequences is not ALL and _may_be_seen(*_tensors(sequences))):
        with _below_autograd():
            y, last, kept = ops.forward(x, weights, states, seed, *net, keep, *_arguments(sequences))
            if _are_transforms_active():  # vmap's are views, whose tangents would have to lie as they do
                y, last, kept = y.detach(), [t.detach() for t in last], [t.detach() for t in kept]
            return y, tuple(last), kept
    layers = net.layers(weights)
    if len(layers) == 1 and x.numel():  # most calls, in less host time than by a Call
        return ops.one_forward(x, layers[0], states, net, 0, keep, sequences)
    with _below_autograd():
        return ops.new_call((x, layers, states, seed, net, sequences)).forward(keep)


def _tensors(sequences: Sequences) -> tuple[Tensor, ...]:
    """Returns what is given of sequences, in the order of _Facts.sequences."""
    if sequences is ALL:
        return ()
    lengths, reset, restart = sequences
    return *[t for t in (lengths, reset) if t is not None], *restart


def _given(sequences: Sequences) -> tuple[bool, bool, int] | None:
    """Returns _Facts.sequences."""
    if sequences is ALL:
        return None
    lengths, reset, restart = sequences
    return lengths is not None, reset is not None, len(restart)


def _arguments(sequences: Sequences) -> tuple[Any, ...]:
    """Returns the last arguments of an op; none if they have their defaults."""
    return () if sequences is ALL else (sequences.lengths, sequences.reset, list(sequences.restart) or None)


def _backward(x: Tensor, seed: Any, dy: Any, facts: _Facts, *tensors: Any) -> tuple[Tensor | None, ...]:
    """Returns (dx, the gradients of the states, those of all layers), None where none is needed."""
    net, needs = facts.net, facts.needs
    i = len(net.no_states)
    j = i + facts.states
    k = j + facts.kept
    dlast, states, kept = tensors[:i], tensors[i:j], tensors[j:k]
    weights, sequences = tensors[k:], ALL
    if facts.sequences is not None:
        weights, sequences = facts.cut(weights)
    with _below_autograd():
        seen = torch.compiler.is_compiling()  # compiled autograd, whose tracer would go through what follows
        for d in (dy, *dlast):
            seen = seen or (d is not None and is_batched(d))
        if not (seen or _may_be_seen(x, dy, *tensors)):
            call = ops.new_call((x, net.layers(weights), states, seed, net, sequences))
            dx, dstates, dweights = call.backward(kept, dy, dlast, needs, None)
            return dx, *dstates, *dweights
        dx, dstates, dweights = ops.backward(x, weights, states, seed, *net, kept, dy, dlast, needs, None, *_arguments(sequences))
    return tuple([g if want else None for g, want in zip((dx, *dstates, *dweights), _wanted(facts), strict=True)])


def _cut(tensors: Sequence[Any], *sizes: int) -> list[Any]:
    """Returns tensors in parts of these sizes, and what is left."""
    parts, n = [], 0
    for size in sizes:
        parts.append(tensors[n : n + size])
        n += size
    return [*parts, tensors[n:]]


def _wanted(facts: _Facts) -> list[bool]:
    """Returns which of the results of `_backward` are needed."""
    net, (data, *needs) = facts.net, facts.needs
    return [bool(data & DX), *[bool(data & DH0)] * len(net.no_states), *[bool(n & bit) for n in needs for bit in net.gradients]]


# ---- the reference, and what is differentiated by it -----------------------------------------------------------------


def _reference(
    x: Tensor, weights: Sequence[Tensor], seed: Tensor | None, net: Settings, number: int, sequences: Sequences = ALL
) -> Callable[..., tuple[Tensor, ...]]:
    """Returns (x, *states, *restart states, *weights) -> (y, *last states) by plain torch in at least fp32, with the operator's masks
    for tensors of these sizes; `number` states are given.  Those of an ensemble have M in front, but for an x that its models share."""
    dtype, cell = x.dtype, net.described
    wide = torch.float32 if x.element_size() == 2 else dtype
    layers = len(weights) // net.tensors // net.directions
    # now: what is made within a transform has no memory that a kernel could fill
    kept = []
    if seed is not None:
        shape = (*x.shape[:2], net.directions * weights[1].shape[-1])
        kept = [masks.mask(shape, dtype, seed, n, net.dropped) for n in range(layers - 1)]

    def one(x: Tensor, layer: Layer, states: States, restart: States, n: int) -> tuple[Tensor, States]:
        given = (x, layer, states, restart)
        x, (w_ih, w_hh, b_ih, b_hh, vectors), states, restart = tree_map_only(Tensor, lambda t: t.to(wide), given)
        of_one = sequences._replace(restart=restart)
        return reference.recurrence(x, w_ih, w_hh, b_ih, b_hh, states, cell, net.reverse(n), vectors, of_one)

    def between(y: Tensor, n: int) -> Tensor:
        return masks.drop_by_mask(y, kept[n], net.dropped) if kept else y

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, restart, weights = _cut(tensors, number, len(sequences.restart))
        recurrences = net.layers(weights)

        def of(n: int) -> States:
            return restart if len(recurrences) == 1 else tuple([state[n] for state in restart])

        in_place = lambda x, layer, states, n: one(x, layer, states, of(n), n)  # noqa: E731
        y, last = in_turn(x, recurrences, states, net.directions, one=in_place, between=between)
        return tuple([t.to(dtype) for t in (y, *last)])

    def of_models(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.vmap(run, in_dims=(0 if x.dim() == 4 else None, *[0] * len(tensors)))(x, *tensors)

    return run if weights[0].dim() == 2 else of_models


def _spread(tensors: Sequence[Tensor], places: Sequence[int], count: int) -> list[Tensor | None]:
    """Returns `count` tensors, those that are there in their places, None elsewhere."""
    everything: list[Tensor | None] = [None] * count
    for i, t in zip(places, tensors, strict=True):
        everything[i] = t
    return everything


class _Function:
    """The reference, or its gradients, as a function of those of some tensors that are there."""

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor | None]) -> None:
        """`run` takes them all."""
        self.present = present = [i for i, t in enumerate(tensors) if t is not None]
        self.tensors: list[Any] = [tensors[i] for i in present]
        self.count = count = len(tensors)

        def reduced(*some: Tensor) -> tuple[Tensor, ...]:
            return run(*_spread(some, present, count))  # not of self: a cycle of references would hold all of it

        self.run = reduced
        self.device = self.tensors[0].device.type

    def pull_back(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Returns the gradients of the tensors, None of those that are not there."""
        with alone(self.device):
            outputs, pull = _vjp(self.run, *self.tensors)
            dense = [torch.zeros_like(o) if c is None else c for o, c in zip(outputs, cotangents, strict=True)]
            return _spread(pull(tuple(dense)), self.present, self.count)

    def push_forward(self, tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Returns the tangents of the results.  The pull-back is linear in its cotangents, and its transpose is the push-forward.  Not
        by torch.func.jvp: forward mode does not nest, and an open dual_level() is one way to get here."""
        with alone(self.device):
            outputs, pull = _vjp(self.run, *self.tensors)
            push = _vjp(pull, tuple([torch.zeros_like(o) for o in outputs]))[1]
            pairs = [(tangents[i], t) for i, t in zip(self.present, self.tensors, strict=True)]
            return push(tuple([torch.zeros_like(t) if tangent is None else tangent for tangent, t in pairs]))[0]


# ---- the Functions ---------------------------------------------------------------------------------------------------


class Fast(torch.autograd.Function):
    generate_vmap_rule = True  # out of the ops' own rules (batching.py)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # Function.apply binds its arguments with inspect.signature on every call, which costs more than the
        # rest of the call; only torch.func transforms need what it does
        if _are_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class NetworkBackward(Fast):
    """(dx, the gradients of the states, those of all layers) of (x, seed, dy, facts, *dlast, *states, *kept, *weights) and behind them
    what is given of sequences, None where none is needed.

    Its derivatives are those of the reference's gradients, as functions of all but `kept`, which follows from the rest."""

    forward = staticmethod(_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
        x, seed, dy, ctx.facts, *tensors = inputs
        saved = (seed, x, dy, *NetworkBackward._without_kept(ctx.facts, tensors))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def _without_kept(facts: _Facts, tensors: Sequence[Any]) -> tuple[Any, ...]:
        data, _, weights = _cut(tensors, len(facts.net.no_states) + facts.states, facts.kept)
        return *data, *weights

    @staticmethod
    def _gradients(ctx: Any) -> tuple[_Function, list[bool]]:
        """Returns the gradients that were needed as a function of (x, dy, *dlast, *states, *restart states, *weights), and which of them
        those are."""
        seed, *tensors = ctx.saved_tensors
        net, number = ctx.facts.net, len(ctx.facts.net.no_states)
        given = ctx.facts.states
        data, tensors = _cut(tensors, 2 + number + given)
        weights, sequences = ctx.facts.cut(tensors)
        reference = _reference(data[0], weights, seed, net, given, sequences)
        wanted = _wanted(ctx.facts)

        def run(x: Tensor, dy: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
            dlast, inputs = _cut(others, number)
            dx, *gradients = _Function(reference, (x, *inputs)).pull_back((dy, *dlast))
            dstates, _, dweights = _cut(gradients, given, len(sequences.restart))
            results = [dx, *(dstates or [None] * number)]
            for n in range(0, len(dweights), net.tensors):
                results += _spread_biases(dweights[n : n + net.tensors], net)
            return tuple([g for g, want in zip(results, wanted, strict=True) if want])  # type: ignore[misc]

        return _Function(run, (*data, *sequences.restart, *weights)), wanted

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients, wanted = NetworkBackward._gradients(ctx)
        x, dy, *others = gradients.pull_back([c for c, want in zip(cotangents, wanted, strict=True) if want])
        lengths, reset, restart = ctx.facts.sequences or (False, False, 0)
        data, of_restart, weights = _cut(others, len(ctx.facts.net.no_states) + ctx.facts.states, restart)
        return x, None, dy, None, *data, *[None] * ctx.facts.kept, *weights, *[None] * (lengths + reset), *of_restart

    @staticmethod
    def jvp(ctx: Any, x: Any, _seed: Any, dy: Any, _facts: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients, wanted = NetworkBackward._gradients(ctx)
        data, tangents = _cut(NetworkBackward._without_kept(ctx.facts, tangents), len(ctx.facts.net.no_states) + ctx.facts.states)
        weights, sequences = ctx.facts.cut(tangents)
        pushed = iter(gradients.push_forward((x, dy, *data, *sequences.restart, *weights)))
        return tuple([next(pushed) if want else None for want in wanted])


def _spread_biases(dweights: list[Any], net: Settings) -> list[Any]:
    """Returns the gradients of a layer's weights as Settings.gradients has them: of two biases, one of which may not be there, both."""
    (dw_ih, dw_hh), biases, vectors = _cut(dweights, 2, net.b_ih + net.b_hh)
    if net.described.split:
        absent = torch.zeros_like(dw_ih.select(-1, 0))
        b_ih = biases.pop(0) if net.b_ih else absent
        return [dw_ih, dw_hh, b_ih, *(biases or [absent]), *vectors]
    return [dw_ih, dw_hh, *(biases[:1] or [None]), *vectors]


class Network(Fast):
    """(y, *last states, *kept) of (x, seed, facts, *states, *weights) and behind them what is given of sequences."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor | None, facts: _Facts, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, sequences = tensors[facts.states :], ALL
        if facts.sequences is not None:
            weights, sequences = facts.cut(weights)
        y, last, kept = _forward(x, weights, tensors[: facts.states], seed, facts.net, True, sequences)
        return y, *last, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, seed, facts = inputs[:3]
        n = 3 + facts.states
        kept = output[1 + len(facts.net.no_states) :]
        weights, sequences = inputs[n:], ALL
        if facts.sequences is not None:
            weights, sequences = facts.cut(weights)
        _save(ctx, x, inputs[3:n], seed, facts, weights, sequences, output[0], kept, True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *cotangents: Any) -> tuple[Tensor | None, ...]:
        needed, n = ctx.needs_input_grad, 3 + ctx.facts.states
        dlast = cotangents[: len(ctx.facts.net.no_states)]
        for_weights, sequences = ctx.facts.cut(needed[n:])
        dx, dstates, dweights, drestart = _differentiate(ctx, dy, dlast, needed[0], needed[3:n], for_weights, sequences.restart)
        others = len(needed) - n - len(for_weights) - len(drestart)
        return dx, None, None, *dstates, *dweights, *[None] * others, *drestart

    @staticmethod
    def jvp(ctx: Any, x: Any, _seed: Any, _facts: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        facts = ctx.facts
        x_, seed, states, kept, weights, sequences = _saved(ctx)
        run = _reference(x_, weights, seed, facts.net, facts.states, sequences)
        function = _Function(run, (x_, *states, *sequences.restart, *weights))
        of_weights, of_sequences = facts.cut(tangents[facts.states :])
        pushed = function.push_forward((x, *tangents[: facts.states], *of_sequences.restart, *of_weights))
        # the rule of vmap that torch makes takes what is kept as differentiable, whatever it is marked as
        return *pushed, *[torch.zeros_like(t) for t in kept[ctx.own :]]


_apply_network: Any = super(torch.autograd.Function, Network).apply  # type: ignore[misc]  # as Fast, in less host time


def _save(
    ctx: Any, x: Tensor, states: Any, seed: Any, facts: _Facts, weights: Sequence[Tensor], sequences: Sequences, y: Tensor,
    kept: Sequence[Tensor], keep: bool,
) -> None:  # fmt: skip
    net = facts.net
    ctx.own = int(len(weights) == net.tensors * net.directions)  # y of one layer is what the layer above would read
    kept = (y, *kept) if ctx.own else kept
    facts.kept = len(kept)
    ctx.facts, ctx.keep = facts, keep
    ctx.set_materialize_grads(False)  # an unused y or last state gives None, not a tensor of zeros
    saved = (x, seed, *states, *kept, *weights)
    if sequences is not ALL:
        saved = (*saved, *_tensors(sequences))
    ctx.save_for_backward(*saved)
    if forward_ad._current_level >= 0 or _are_transforms_active():  # else nobody asks for jvp
        ctx.save_for_forward(*saved)


def _saved(ctx: Any) -> Any:
    """Returns x, the seed, the states, what is kept, the weights and sequences, as `_save` has saved them."""
    tensors, n = ctx.saved_tensors, 2 + ctx.facts.states
    kept = n + ctx.facts.kept
    weights, sequences = tensors[kept:], ALL
    if ctx.facts.sequences is not None:
        weights, sequences = ctx.facts.cut(weights)
    return tensors[0], tensors[1], tensors[2:n], tensors[n:kept], weights, sequences


def _differentiate(
    ctx: Any, dy: Tensor | None, dlast: Sequence[Tensor | None], for_x: bool, for_states: Sequence[bool], for_weights: Sequence[bool],
    for_restart: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """Returns the gradients of x, the states that are given, the weights and the restart states, None where none is needed."""
    nothing: Any = [None] * len(for_states), [None] * len(for_weights), [None] * len(for_restart)
    if dy is None and all([d is None for d in dlast]):
        return None, *nothing
    x, seed, states, kept, weights, sequences = saved = _saved(ctx)
    net = ctx.facts.net
    drestart = _differentiate_restart(saved, dy, dlast, for_restart, net)
    if drestart and not (for_x or any(for_states) or any(for_weights)):
        return None, *nothing[:2], drestart
    if not ctx.keep:  # a program that was exported as one that asks for no gradients
        y, _, kept = _forward(x, weights, states, seed, net, True, sequences)
        kept = [y, *kept] if ctx.own else kept
    needs = [for_x * DX | any(for_states) * DH0]
    count, biases = net.tensors, 2 + net.b_ih + net.b_hh
    for n in range(0, len(weights), count):
        of = for_weights[n : n + count]
        needs.append(of[0] * DW_IH | of[1] * DW_HH | any(of[2:biases]) * DB | any(of[biases:]) * DV)
    run = NetworkBackward.apply if _is_grad_enabled() else _backward  # create_graph
    facts = _Facts(net, len(states), len(kept), needs, ctx.facts.sequences)
    gradients = run(x, seed, dy, facts, *dlast, *states, *kept, *weights, *_tensors(sequences))
    first, count = 1 + len(net.no_states), len(net.gradients)
    last_bias = 3 if net.described.split else 2
    dweights: list[Tensor | None] = []
    for n in range(first, len(gradients), count):
        dweights += gradients[n : n + 2]
        if net.b_ih:
            dweights.append(gradients[n + 2])
        if net.b_hh:
            dweights.append(gradients[n + last_bias])
        dweights += gradients[n + last_bias + 1 : n + count]
    return gradients[0], _needed(gradients[1:first], for_states), _needed(dweights, for_weights), drestart


def _differentiate_restart(
    saved: Any, dy: Tensor | None, dlast: Sequence[Tensor | None], wanted: Sequence[bool], net: Settings
) -> list[Tensor | None]:
    """Returns the gradients of the restart states.  Launches leave none: the gradient that a segment carries to its first step ends there.
    So the reference runs again."""
    if not any(wanted):
        return [None] * len(wanted)
    x, seed, states, _, weights, sequences = saved
    run = _reference(x, weights, seed, net, len(states), sequences)
    gradients = _Function(run, (x, *states, *sequences.restart, *weights)).pull_back((dy, *dlast))
    return _needed(gradients[1 + len(states) :], wanted)


def _needed(gradients: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [g if want else None for g, want in zip(gradients, wanted)]


# torch.compile and export: the same formulas, hung on the op


def _setup_op(ctx: Any, inputs: tuple, output: ops.Results) -> None:
    x, weights, states, seed, *settings, keep, lengths, reset, restart = inputs
    y, _, kept = output
    sequences = ops.sequences_of(lengths, reset, restart)
    facts = _Facts(Settings(*settings), len(states), sequences=_given(sequences))
    _save(ctx, x, states, seed, facts, weights, sequences, y, kept, keep)


def _differentiate_op(ctx: Any, dy: Tensor | None, dlast: Any, _: Any) -> tuple[Any, ...]:
    for_x, for_weights, for_states, *others = ctx.needs_input_grad
    lengths, reset, restart = ctx.facts.sequences or (False, False, 0)
    dx, dstates, dweights, drestart = _differentiate(ctx, dy, dlast, for_x, for_states, for_weights, others[-1] if restart else ())
    of_sequences = (None, None, drestart)[: 3 if restart else 2 if reset else int(lengths)]  # torch leaves defaults at the end out
    return dx, dweights, dstates, *[None] * (len(Settings._fields) + 2), *of_sequences


torch.library.register_autograd("rnn_triton::forward", _differentiate_op, setup_context=_setup_op)


# ---- entry -----------------------------------------------------------------------------------------------------------


def only_maps() -> bool:
    """True if every transform that is active is a vmap."""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return all(i.key() == torch._C._functorch.TransformType.Vmap for i in interpreters)


def nests_forward_mode() -> bool:
    """True if forward mode runs within forward mode, where torch would drop the outer tangents of an autograd.Function: jacfwd of
    jacfwd would be zeros."""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return [i.key() for i in interpreters].count(torch._C._functorch.TransformType.Jvp) > 1


# What torch.compiler.assume_constant_result sets, which would import all of Dynamo here: it asks while it traces.
setattr(only_maps, "_dynamo_marked_constant", True)


def network(
    x: Tensor, weights: Sequence[Tensor], states: States, seed: Tensor | None, net: Settings, sequences: Sequences = ALL
) -> tuple[Tensor, States]:
    """Returns (y, last states) of network.py, differentiable to any order, under every transform; `states` are () for zeros.

    UnsupportedError: a network is exported to ONNX with sequences."""
    last: Sequence[Tensor]
    if sequences.restart and _are_transforms_active():
        # in an argument that is an optional list the dispatcher looks at no tensor: vmap over these alone would pass the op by
        zeros = [torch.zeros_like(t) for t in sequences.restart]
        states = tuple(map(torch.add, states, zeros)) if states else tuple(zeros)
    recording = _is_grad_enabled() and (weights[0].requires_grad or any([t.requires_grad for t in (x, *states, *weights, *sequences.restart)]))
    if torch.compiler.is_compiling():
        to_onnx = torch.onnx.is_in_onnx_export()
        if _are_transforms_active() and (to_onnx or not only_maps()):
            # compile(grad(f)), compile(jvp(f)): Dynamo can take neither the Functions above nor the op's
            # autograd through torch.func's transforms; tangents would even come out as zeros
            run = _reference(x, weights, None, net, len(states), sequences)
            y, *last = run(x, *states, *sequences.restart, *weights)
        elif to_onnx:
            if sequences is not ALL:
                raise UnsupportedError(onnx_node.NO_SEQUENCES)
            return onnx_node.network(x, weights, states, net, between=lambda y, _: y)
        else:
            y, last, _ = ops.forward(x, weights, states, seed, *net, recording, *_arguments(sequences))
    elif _is_tracing():  # what a Function does would be traced through, and the kernels with it
        if torch.onnx.is_in_onnx_export():
            raise UnsupportedError(onnx_node.LEGACY)
        y, last, _ = ops.forward(x, weights, states, seed, *net, False, *_arguments(sequences))
    elif _are_transforms_active() and nests_forward_mode():
        run = _reference(x, weights, seed, net, len(states), sequences)
        y, *last = run(x, *states, *sequences.restart, *weights)
    elif recording or forward_ad._current_level >= 0 or _are_transforms_active() and (_is_grad_enabled() or not only_maps()):
        apply = Network.apply if _are_transforms_active() else _apply_network
        facts = _Facts(net, len(states), 0, (), None if sequences is ALL else _given(sequences))
        y, *outputs = apply(x, seed, facts, *states, *weights, *_tensors(sequences))
        last = outputs[: len(net.no_states)]
    else:
        y, last, _ = _forward(x, weights, states, seed, net, False, sequences)
    return y, tuple(last)
