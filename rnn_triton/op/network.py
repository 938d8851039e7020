"""A network of layers and directions as two opaque PyTorch operators, each of which decides by itself what shares a launch
(plan/sharing.py).  A layer is a network of one layer in one direction.

`rnn_triton::forward` keeps y of every layer, `rnn_triton::backward` takes them; nothing else passes between them.  Each decides
anew: the launches of the backward pass need not be those of the forward pass.  Dropout between layers is a function of a seed and
of the element's place (kernels/dropout.py), whatever is launched.

An op's results must not share memory, and their shapes must be known before anybody knows what is launched.  So y of all layers is
one tensor, as the launch of a whole stack leaves it, and y of the last layer a copy of its end, which also lets that tensor go when
the backward pass is over.

Arguments are taken as valid here: `functional` checks them.  `weights` are those of every layer and direction in the order of h_n
(layers.py).  Of L layers in D directions: x[T,B,I], h0 and h_n[L*D,B,H], y[T,B,D*H], kept[L,T,B,D*H]; of one recurrence h0 and
h_n[B,H], of one layer y itself in place of `kept`.  An ensemble has M in front of every shape, by stride 0 where the models share a
tensor.  One dtype throughout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..errors import UnsupportedError
from ..launch import dispatch, gemm
from ..launch.launcher import has_kernels
from ..plan import hardware
from ..plan.problem import DTYPES, ONE, Bundle, Problem
from ..plan.sharing import launches
from . import dropout as masks
from . import on_cpu
from .gradients import DB, DH0, DW_HH, DW_IH, DX, Saved
from .layers import Layer, Settings

Results = tuple[Tensor, Tensor, Tensor | None]
Gradients = tuple[Tensor | None, Tensor | None, list[Tensor | None]]


# ---- what the ops do ------------------------------------------------------------------------------------------------


def run_forward(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, seed: Tensor | None, net: Settings, keep: bool
) -> Results:
    """Returns (y, h_n, kept); kept is None without `keep`, and where there is one layer."""
    layers = net.layers(weights)
    if x.numel() == 0:  # no batch, or no models
        return _empty_forward(x, layers, net, keep)
    if len(layers) == 1:
        y, hn = _one_forward(x, layers[0], h0, net, 0)
        return y, hn, None
    run = functools.partial(_forward_in, x=x, layers=layers, h0=h0, seed=seed, net=net, keep=keep)
    return _decided(x, layers, net, run)


def run_backward(
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor | None,
    seed: Tensor | None,
    kept: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    net: Settings,
    needs: Sequence[int],
    groups: int | None,
) -> Gradients:
    """Returns (dx, dh0, [dw_ih, dw_hh, db of every layer and direction]), each None unless `needs` asks for it: DX | DH0, and then
    for every layer and direction DW_IH | DW_HH | DB.  dy or dhn may be None, not both.  With `groups` = G the batch is G equal parts,
    and gradients of weights come separately for each, [G,..]; of an ensemble [M,G,..]."""
    layers = net.layers(weights)
    if kept.numel() == 0:
        dx, dh0, dweights = _empty_backward(x, layers, net, needs, groups)
        zeros = [g if g is None else g.zero_() for g in (dx, dh0, *dweights)]
        return zeros[0], zeros[1], zeros[2:]
    if len(layers) == 1:
        w_ih, w_hh, *_ = layers[0]
        layer = Saved(x, w_ih, w_hh, h0, kept, net.reverse(0), net.precision, needs[0] | needs[1])
        dx, *weight_gradients, dh0 = layer.gradients(_one_backward(layer, dy, dhn, net), groups)
        return dx, dh0, weight_gradients
    run = functools.partial(
        _backward_in, x=x, layers=layers, h0=h0, seed=seed, kept=kept, dy=dy, dhn=dhn, net=net, needs=needs, groups=groups
    )
    return _decided(x, layers, net, run)


def _one_forward(x: Tensor, layer: Layer, h0: Tensor | None, net: Settings, n: int) -> tuple[Tensor, Tensor]:
    run = dispatch.forward if has_kernels(x) else on_cpu.forward
    return run(x, *layer, h0, net.cell, net.reverse(n), net.precision)


def _one_backward(layer: Saved, dy: Tensor | None, dhn: Tensor | None, net: Settings) -> Tensor:
    run = dispatch.backward if has_kernels(layer.y) else on_cpu.backward
    return run(layer.w_hh, layer.y, dy, dhn, net.cell, layer.reverse, layer.precision)


Result = TypeVar("Result")


def _decided(
    x: Tensor, layers: Sequence[Layer], net: Settings, run: Callable[[Sequence[Bundle]], Result]
) -> Result:
    """Returns run(what each launch carries), once more with other launches where one turns out not to compile."""
    tried: Sequence[Bundle] = ()
    while True:
        parts = _launches(x, layers, net)
        try:
            return run(parts)
        except UnsupportedError:
            if parts == tried:
                raise
            tried = parts


def _launches(x: Tensor, layers: Sequence[Layer], net: Settings) -> tuple[Bundle, ...]:
    """Returns what each launch carries, bottom layer first."""
    if not has_kernels(x) or x.dim() == 4:  # launches of several recurrences take no ensembles
        return (ONE,) * len(layers)
    _, B, I = x.shape
    problem = Problem("forward", B, I, layers[0].w_hh.shape[-1], DTYPES[x.dtype], net.precision, net.cell)
    return launches(problem, len(layers) // net.directions, net.directions == 2, net.dropped > 0, hardware.of(x.device))


def _forward_in(
    parts: Sequence[Bundle],
    *,
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    seed: Tensor | None,
    net: Settings,
    keep: bool,
) -> Results:
    number = len(layers) // net.directions
    keep = keep and number > 1
    kept: Tensor | None = None
    if keep and parts[0].count < len(layers):
        kept = _empty_forward(x, layers, net, True)[2]
    halves: list[Tensor] = []  # y of the forward direction, where the other one has a launch of its own
    last: list[Tensor] = []
    n = 0
    for bundle in parts:
        layer, direction = divmod(n, net.directions)
        h = _states(h0, n, bundle.count)
        if bundle.count == 1:
            y, hn = _one_forward(x, layers[n], h, net, n)
            ys, hn = y.unsqueeze(-4), hn.unsqueeze(-3)  # [layers of the launch,T,B,D*H]
        else:
            columns: list[Any] = [None if w[0] is None else list(w) for w in zip(*layers[n : n + bundle.count])]
            dropout = (seed, net.dropped) if bundle.linked else ()
            given = (h, net.cell, net.reverse(n), net.precision, (bundle, layer), *dropout)
            y, hn = dispatch.forward(x, *columns, *given)  # type: ignore[misc, arg-type]
            ys = y if bundle.linked else y[None]
        last.append(hn)
        n += bundle.count
        if n % net.directions:
            halves = [ys]
            continue
        if halves:
            ys, halves = torch.cat([*halves, ys], -1), []
        if kept is not None:
            # only a copy: the layers above read ys, whose address, and so the order of a CPU's sums, does not depend on `keep`
            kept.narrow(-4, layer, ys.shape[-4]).copy_(ys)
        if n < len(layers):
            x = _dropped(ys.select(-4, -1), seed, n // net.directions - 1, net)
    # a copy also without `keep`: else y would hold the memory of the layers below.  detach: no view, whose in-place changes
    # autograd would refuse
    y = ys.select(-4, -1)
    y = y.clone() if keep or ys.shape[-4] > 1 else y.detach()
    hn = last[0] if len(last) == 1 else torch.cat(last, -3)
    return y, hn, None if not keep else ys if kept is None else kept


def _backward_in(
    parts: Sequence[Bundle],
    *,
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    seed: Tensor | None,
    kept: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    net: Settings,
    needs: Sequence[int],
    groups: int | None,
) -> Gradients:
    data, *needs = needs
    H = layers[0].w_hh.shape[-1]
    outputs = [kept] if len(layers) == net.directions else kept.unbind(-4)  # y of each layer
    states: list[Any] = []  # dh0, the last first
    weights: list[Tensor | None] = []  # gradients of the weights, the last layer and direction first
    dx: Tensor | None = None
    n = len(layers)
    for bundle in reversed(parts):
        above, n = n, n - bundle.count
        if not (data or any(needs[:above])):
            break
        layer, direction = divmod(n, net.directions)
        # a gradient passes to what lies below
        passes = bool(data & DX or (layer and (data & DH0 or any(needs[: layer * net.directions]))))
        both = bundle.count == 2 and not bundle.linked
        launched: list[Saved] = []
        for i in range(n, above):
            number, half = divmod(i, net.directions)
            y = outputs[number]
            if net.directions == 2:
                y = y.chunk(2, -1)[half]
                y = y if both else y.contiguous()
            wanted = needs[i] | data & DH0 | (DX if passes and i == n and not both else 0)
            below = x if number == 0 else _below(outputs[number - 1], seed, number - 1, net, wanted)
            w_ih, w_hh, *_ = layers[i]
            launched.append(Saved(below, w_ih, w_hh, _states(h0, i), y, net.reverse(i), net.precision, wanted))

        d = _states(dhn, n, bundle.count)
        if bundle.count == 1:
            half_dy = dy if dy is None or net.directions == 1 else dy[..., direction * H : (direction + 1) * H]
            das: Sequence[Tensor] = [_one_backward(launched[0], half_dy, d, net)]
        else:
            y = kept[layer : layer + bundle.count] if bundle.linked else outputs[layer]
            linked = ([one.w_ih for one in launched], seed, net.dropped) if bundle.linked else ()
            w_hh_list = [one.w_hh for one in launched]
            da = dispatch.backward(w_hh_list, y, dy, d, net.cell, net.reverse(n), net.precision, (bundle, layer), *linked)
            das = da.unbind(0 if bundle.linked else 2)
        found = [one.gradients(da, groups) for one, da in zip(launched, das, strict=True)]

        for _, *weight_gradients, dh0 in reversed(found):
            weights += reversed(weight_gradients)
            states.append(dh0)
        if passes:
            below_dx = found[0][0]
            if both:
                w_ih = torch.cat([one.w_ih for one in launched])
                below_dx = gemm.matmul(da.flatten(2).flatten(0, 1), w_ih, net.precision).view(*x.shape[:2], -1)
            assert below_dx is not None
            dx = below_dx if dx is None else dx.add_(below_dx)  # of the other direction
        if not direction:
            dy, dx = dx, None
            if layer and dy is not None:
                dy = _dropped(dy, seed, layer - 1, net)
    weights += [None] * (3 * len(layers) - len(weights))
    return dy if data & DX else None, torch.stack(states[::-1], -3) if data & DH0 else None, weights[::-1]


def _states(h: Tensor | None, n: int, count: int = 1) -> Tensor | None:
    """Returns those of `count` recurrences from the n-th on."""
    return h if h is None else h.select(-3, n) if count == 1 else h[n : n + count]


def _below(
    y: Tensor, seed: Tensor | None, layer: int, net: Settings, needs: int
) -> Tensor | Callable[[], Tensor]:
    """Returns what the next layer gets of y of `layer`, as far as the gradients `needs` look at it; dropped where it is asked for."""
    if seed is None or not needs & DW_IH:
        return y
    return lambda: masks.drop(y, seed, layer, net.dropped)


def _dropped(y: Tensor, seed: Tensor | None, layer: int, net: Settings) -> Tensor:
    """Returns what passes from y of a layer to the next, or the other way of its gradient."""
    return y if seed is None else masks.drop(y, seed, layer, net.dropped)


# ---- shapes, for meta tensors, torch.compile and B = 0 -----------------------------------------------------------------


def _empty_forward(x: Tensor, layers: Sequence[Layer], net: Settings, keep: bool) -> Results:
    *M, T, B, _ = x.shape
    H = layers[0].w_hh.shape[-1]
    number = len(layers) // net.directions
    y = x.new_empty(*M, T, B, net.directions * H)
    hn = x.new_empty(*M, *([len(layers)] if len(layers) > 1 else []), B, H)
    return y, hn, x.new_empty(*M, number, *y.shape[len(M) :]) if keep and number > 1 else None


def _empty_backward(
    x: Tensor, layers: Sequence[Layer], net: Settings, needs: Sequence[int], groups: int | None
) -> Gradients:
    *M, _, B, _ = x.shape
    data, *needs = needs
    H = layers[0].w_hh.shape[-1]
    states = [*M, *([len(layers)] if len(layers) > 1 else []), B, H]
    outer = M if groups is None else [*M, groups]
    dweights = []
    for (w_ih, w_hh, *_), wanted in zip(layers, needs, strict=True):
        for need, shape in ((DW_IH, w_ih.shape[-2:]), (DW_HH, w_hh.shape[-2:]), (DB, w_hh.shape[-1:])):
            dweights.append(x.new_empty(*outer, *shape) if wanted & need else None)
    return x.new_empty(x.shape) if data & DX else None, x.new_empty(states) if data & DH0 else None, dweights


# ---- FLOPs, for torch's counter: two for a multiplication and addition of a product, as torch counts torch.nn.RNN -----


def _forward_flops(x: Sequence[int], weights: Any, h0: Any, seed: Any, *settings: Any, **_: Any) -> int:
    *models_and_T, B, _I = x
    net: list[Any] = Settings(*settings[:-1]).layers(weights)
    return sum(2 * math.prod(models_and_T) * B * w_ih[-2] * (w_ih[-1] + w_ih[-2]) for w_ih, *_others in net)


def _backward_flops(
    x: Sequence[int], weights: Any, h0: Any, seed: Any, kept: Any, dy: Any, dhn: Any, *settings: Any, **_: Any
) -> int:  # fmt: skip
    *of, (data, *needs), _groups = settings
    net, (*M, T, B, _I), flops = Settings(*of), x, 0
    shapes: list[Any] = net.layers(weights)
    for n, (w_ih, *_others) in enumerate(shapes):
        beneath = n - n % net.directions  # layers and directions below this one
        if not (data or any(needs[: beneath + net.directions])):
            continue
        H, I = w_ih[-2:]
        passes = data & DX or (beneath and (data & DH0 or any(needs[:beneath])))
        with_x = bool(passes) + (needs[n] & DW_IH > 0)
        # gradients of the states from step to step, and of the first one if it is wanted
        with_h = (T - (data & DH0 == 0)) + T * (needs[n] & DW_HH > 0)
        flops += 2 * math.prod(M) * B * H * (T * I * with_x + H * with_h)
    return flops


# ---- registration ---------------------------------------------------------------------------------------------------


def _op_forward(run: Callable[..., Results]) -> Callable[..., tuple[Tensor, ...]]:
    def forward(
        x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *settings: Any
    ) -> tuple[Tensor, ...]:
        *net, keep = settings
        return tuple(x.new_empty(0) if t is None else t for t in run(x, weights, h0, seed, Settings(*net), keep))

    return forward


def _op_backward(run: Callable[..., Gradients]) -> Callable[..., tuple[Tensor, Tensor, list[Tensor]]]:
    def backward(x: Tensor, weights: list[Tensor], *others: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        *tensors, needs, groups = others
        dx, dh0, dweights = run(x, weights, *tensors[:5], Settings(*tensors[5:]), needs, groups)
        filled = [x.new_empty(0) if g is None else g for g in (dx, dh0, *dweights)]  # a tensor each: no aliases
        return filled[0], filled[1], filled[2:]

    return backward


def _fake_forward(x: Tensor, weights: Any, h0: Any, seed: Any, net: Settings, keep: bool) -> Results:
    return _empty_forward(x, net.layers(weights), net, keep)


def _fake_backward(x: Tensor, weights: Any, h0: Any, seed: Any, kept: Any, dy: Any, dhn: Any, net: Settings, *others: Any) -> Gradients:
    return _empty_backward(x, net.layers(weights), net, *others)


_SETTINGS = "bool b_ih, bool b_hh, str cell, str direction, str? precision, int dropped"
_FORWARD = f"(Tensor x, Tensor[] weights, Tensor? h0, Tensor? seed, {_SETTINGS}, bool keep) -> (Tensor y, Tensor hn, Tensor kept)"
_BACKWARD = (
    "(Tensor x, Tensor[] weights, Tensor? h0, Tensor? seed, Tensor kept, Tensor? dy, Tensor? dhn, "
    f"{_SETTINGS}, int[] needs, int? groups) -> (Tensor dx, Tensor dh0, Tensor[] dweights)"
)
for name, schema, run, fake, flops in (
    ("rnn_triton::forward", _FORWARD, _op_forward(run_forward), _op_forward(_fake_forward), _forward_flops),
    ("rnn_triton::backward", _BACKWARD, _op_backward(run_backward), _op_backward(_fake_backward), _backward_flops),
):
    torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, ("cpu", "cuda"))(run)
    torch.library.register_fake(name, fake)
    register_flop_formula(getattr(torch.ops.rnn_triton, name.split("::")[1]))(flops)

forward = torch.ops.rnn_triton.forward.default
backward = torch.ops.rnn_triton.backward.default
