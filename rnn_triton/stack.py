"""Layers and directions of one network: launches of several lanes (lanes.py) where stack_plan.py finds that they pay, else
so many single layers in turn.

Single layers go wherever lanes cannot be, too: without a GPU, packed sequences, fp64 and "ieee", torch.compile, functorch
transforms, forward-mode derivatives, and whatever must see every operation.  The one place that knows of more than one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import dropout as masks
from . import functional, gemm, hardware, interpreter, launch, op, packed
from .errors import UnsupportedError
from .lanes import BothDirections, Wavefront
from .launcher import have_memory
from .plan import Choices
from .plans import DTYPES, ONE, Lanes, Problem
from .stack_plan import lane_plan, launches

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih, w_hh, b_ih, b_hh


def rnn(
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor | None = None,
    *,
    bias: bool = True,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    precision: str | None = None,
    runs: list[tuple[int, int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y[T,B,D*H], h_n[L*D,B,H]) of x[T,B,I] and h0[L*D,B,H] (zeros if None): L layers in D directions.

    `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh of every layer and direction in the order of h_n: layer by
    layer, in each first forwards, then, if `bidirectional`, backwards in time. A layer takes the outputs of both
    directions of the one below, each element zeroed with probability `dropout` and else scaled by 1 / (1 - dropout).

    With `runs` (see packed.runs_of), x and y are packed rows, [N,I] and [N,D*H].
    """
    layer: Callable[..., tuple[Tensor, Tensor]] = functional.rnn
    if runs is not None:
        layer = functools.partial(packed.rnn, runs=runs)
    each = 4 if bias else 2
    if len(weights) == each:
        h = None if h0 is None else h0[0]
        y, hn = layer(x, *weights, h0=h, nonlinearity=nonlinearity, precision=precision)
        return y, hn[None]

    layers: list[Layer] = [(*weights[i : i + each], None, None)[:4] for i in range(0, len(weights), each)]  # type: ignore[misc]
    parts = (ONE,) * len(layers)
    between = functools.partial(nn.functional.dropout, p=dropout)
    dropped, recording = 0, False
    if runs is None and _may_share(x, weights, h0):
        layer = op.rnn
        dropped = masks.count(dropout)
        recording = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, *weights))
        x, layers, h0, precision = _settled(x, layers, h0, nonlinearity, bidirectional, precision)
        problem = Problem(
            "forward", x.shape[1], x.shape[2], layers[0][1].shape[0], DTYPES[x.dtype], precision, nonlinearity
        )
        number = len(layers) // (2 if bidirectional else 1)
        parts = launches(problem, number, bidirectional, dropped > 0, hardware.of(x.device))
        if x.is_cuda and x.dtype is not torch.float64:
            between = functools.partial(masks.drop_anew, dropped=dropped)

    options: dict[str, Any] = {"nonlinearity": nonlinearity, "precision": precision}
    between_layers = (lambda y, _: between(y)) if dropout else (lambda y, _: y)
    in_turn = functools.partial(_in_turn, one=functools.partial(layer, **options), between=between_layers)

    def together(
        x: Tensor, part: Sequence[Layer], h0: Tensor | None, lanes: Lanes, first: int
    ) -> tuple[Tensor, Tensor]:
        seed = masks.new_seed(x.device) if lanes.dropout else None
        settings = _Settings(nonlinearity, precision, dropped, lanes, first, recording)
        try:
            return _Lanes.apply(x, h0, seed, settings, *[t for layer in part for t in layer])
        except UnsupportedError:  # nothing compiles
            return in_turn(x, part, h0, (ONE,) * lanes.count, bidirectional)

    return in_turn(x, layers, h0, parts, bidirectional, together=together)


def _in_turn(
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    parts: Sequence[Lanes],
    bidirectional: bool,
    *,
    one: Callable[..., tuple[Tensor, Tensor]],
    between: Callable[[Tensor, int], Tensor],
    together: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, h_n) as of `rnn`, part after part: one(x, *layer, h0=, reverse=) for a layer in one direction, else together(x, layers,
    h0, lanes, number of the first layer).  between(y, n): what layer n + 1 gets of y of layer n"""
    directions = 2 if bidirectional else 1
    states = [None] * len(parts) if h0 is None else h0.split([lanes.count for lanes in parts])
    h_n: list[Tensor] = []
    ys: list[Tensor] = []
    at = 0
    for lanes, h in zip(parts, states):
        if at and not ys:
            x = between(x, at // directions - 1)
        if lanes.count == 1:
            y, hn = one(x, *layers[at], h0=None if h is None else h[0], reverse=at % directions == 1)
            hn = hn[None]
        else:
            assert together is not None
            y, hn = together(x, layers[at : at + lanes.count], h, lanes, at // directions)
        h_n.append(hn)
        ys.append(y)
        at += lanes.count
        if at % directions == 0:
            x = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
            ys = []
    return x, h_n[0] if len(h_n) == 1 else torch.cat(h_n)


def _may_share(x: Tensor, weights: Sequence[Tensor], h0: Tensor | None) -> bool:
    """May layers share a launch: kernels on this device, and nobody who must see every operation?"""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and (x.is_cuda or (x.is_cpu and interpreter.active()))
        and x.shape[0] > 0
        and x.shape[1] > 0
        and forward_ad._current_level < 0
        and have_memory(x, h0, *weights)
    )


def _settled(
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    precision: str | None,
) -> tuple[Tensor, list[Layer], Tensor | None, str | None]:
    """(x, layers, h0, precision) as functional.settled has them, layer by layer"""
    directions = 2 if bidirectional else 1
    states = [None] * len(layers) if h0 is None else list(h0)
    found: list[Layer] = []
    given = x
    for n, layer in enumerate(layers):
        given, *weights, states[n], settled = functional.settled(given, *layer, states[n], nonlinearity, precision)
        found.append(tuple(weights))  # type: ignore[arg-type]
        if n == 0:
            x = given
        if n == directions - 1:  # y of the layer below, as far as a check looks at it
            given = x.new_empty(()).expand(*x.shape[:2], directions * found[0][1].shape[0])
    if h0 is not None and h0.dtype is not x.dtype:  # autocast
        h0 = torch.stack(states)  # type: ignore[arg-type]
    return x, found, h0, settled


# ---- launches of several lanes --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _site(call: tuple[Any, ...], chosen: Choices) -> Any:
    """The site of a call (direction, B, I, H, dtype, precision, nonlinearity, lanes, first, device) under the overrides
    `chosen`."""
    direction, B, I, H, dtype, precision, nonlinearity, lanes, first, device = call
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, nonlinearity)
    p = lane_plan(problem, lanes, hardware.of(device), chosen)
    if p is None:
        raise UnsupportedError(f"no plan for {lanes.count} lanes of {problem} compiles on {hardware.of(device).name}")
    return (Wavefront if lanes.linked else BothDirections)(problem, p, lanes, first)


class _Settings(NamedTuple):
    """What a launch of several lanes needs to know besides tensors"""

    nonlinearity: str
    precision: str | None
    dropped: int  # of 65536 elements between linked lanes
    lanes: Lanes
    first: int  # number of the bottom layer in the network
    recording: bool  # does autograd look at it?

    def call(self, direction: str, x: Tensor, I: int, H: int) -> tuple[Any, ...]:
        """as of `_site`"""
        known = self.precision, self.nonlinearity, self.lanes, self.first
        return direction, x.shape[-2], I, H, x.dtype, *known, x.device


def _columns(layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None, list[Tensor] | None]:
    """[w_ih of every layer], [w_hh], [b_ih] or None, [b_hh] or None"""
    w_ih, w_hh, b_ih, b_hh = ([layer[i] for layer in layers] for i in range(4))
    present: Any = [None if b[0] is None else b for b in (b_ih, b_hh)]
    return w_ih, w_hh, *present  # type: ignore[return-value]


class _Lanes(torch.autograd.Function):
    """(y, hn) of (x, h0, seed, settings, *weights, four a lane).

    Kept for the backward pass: the arguments, and y of every layer.  What the backward kernel cannot do (derivatives of the
    gradients, batches of gradients) is done by the same layers one after the other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor | None, seed: Tensor | None, settings: _Settings, *weights: Any
    ) -> tuple[Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = _columns(_layers(weights))
        H = w_hh[0].shape[0]
        linked = settings.lanes.linked
        extra = (seed, settings.dropped) if linked else ()
        call = settings.call("forward", x, x.shape[2], H)
        ys, hn = launch.run(_site, call, "forward", x, w_ih, w_hh, b_ih, b_hh, h0, *extra)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, seed, ys, *weights)
        if not linked:
            return ys, hn
        y = ys[-1, ..., :H]
        if settings.recording and y.is_contiguous():
            return y.detach(), hn
        return y.clone(memory_format=torch.contiguous_format), hn  # else it would keep all the layers' memory

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: torch.utils.checkpoint forgets what it has handed out
        if all(c is None for c in cotangents):
            return (None,) * len(ctx.needs_input_grad)
        create_graph = torch.is_grad_enabled()
        if not create_graph and have_memory(*cotangents, *saved):
            try:
                return _gradients(saved, cotangents, ctx.settings, ctx.needs_input_grad)
            except UnsupportedError:  # overrides are others than in the forward pass, or nothing compiles
                pass
        return _again(saved, cotangents, ctx.settings, ctx.needs_input_grad, create_graph)


def _gradients(
    saved: Sequence[Any], cotangents: Sequence[Tensor | None], settings: _Settings, needs: Sequence[bool]
) -> tuple[Any, ...]:
    """of the arguments of `_Lanes` that need one, by the kernel"""
    x, h0, seed, ys, *weights = saved
    dy, dhn = cotangents
    precision, dropped, linked = settings.precision, settings.dropped, settings.lanes.linked
    w_ih, w_hh, *_ = _columns(_layers(weights))
    H = w_hh[0].shape[0]
    given = (w_ih, w_hh, ys, dy, dhn, seed, dropped) if linked else (w_hh, ys, dy, dhn)
    da = launch.run(_site, settings.call("backward", x, 1, H), "backward", *given)
    das = list(da) if linked else list(da.chunk(2, 2))
    outputs = [y[..., :H] for y in ys] if linked else list(ys.chunk(2, 2))
    dx = dh0 = None
    if needs[0]:
        both = (das[0], w_ih[0]) if linked else (da, torch.cat(w_ih))
        dx = gemm.matmul(both[0].flatten(0, 1), both[1], precision).view_as(x)
    if needs[1]:
        first = [d[0 if linked or n == 0 else -1] for n, d in enumerate(das)]
        dh0 = torch.stack([gemm.matmul(d, w, precision) for d, w in zip(first, w_hh, strict=True)])
    gradients: list[Tensor | None] = []
    for n, (d, y) in enumerate(zip(das, outputs, strict=True)):
        wanted = needs[4 + 4 * n : 8 + 4 * n]
        of = wanted[0] * op.DW_IH | wanted[1] * op.DW_HH | (wanted[2] or wanted[3]) * op.DB
        below = x
        if linked and n:
            below = masks.drop(ys[n - 1], seed, n - 1, dropped)[..., :H] if dropped and wanted[0] else outputs[n - 1]
        h = None if h0 is None else h0[n]
        dw_ih, dw_hh, db = op._weight_gradients(d, below, y, h, not linked and n == 1, precision, of)
        found = (dw_ih, dw_hh, db, db)
        gradients += [g if want else None for g, want in zip(found, wanted, strict=True)]
    return dx, dh0, None, None, *gradients


def _layers(weights: Sequence[Tensor | None]) -> list[Layer]:
    return [tuple(weights[i : i + 4]) for i in range(0, len(weights), 4)]  # type: ignore[misc]


def _again(
    saved: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    settings: _Settings,
    needs: Sequence[bool],
    create_graph: bool,
) -> tuple[Any, ...]:
    """The same by running the layers again, one after the other, with the same masks: those can be differentiated, for any
    batch of cotangents"""
    x, h0, seed, _, *weights = saved
    dropped = settings.dropped if settings.lanes.dropout else 0
    with torch.enable_grad():
        # views: one of these may have been computed from another, or be the same tensor, and the gradients of each are wanted
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in (x, h0, None, None, *weights)]
        outputs = _in_turn(
            inputs[0], _layers(inputs[4:]), inputs[1], (ONE,) * settings.lanes.count, not settings.lanes.linked,
            one=functools.partial(op.rnn, nonlinearity=settings.nonlinearity, precision=settings.precision),
            between=lambda y, n: masks.drop_by_mask(y, seed, n, dropped) if dropped else y,
        )  # fmt: skip
        wanted = [i for i, need in enumerate(needs) if need]
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in wanted], [c for _, c in pairs], create_graph=create_graph,
            allow_unused=True,
        )
    result: list[Any] = [None] * len(inputs)
    for i, g in zip(wanted, found, strict=True):
        result[i] = g
    return tuple(result)
