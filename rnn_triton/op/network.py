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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only
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


class Call(NamedTuple):
    """What both passes of a call are given."""

    x: Tensor
    layers: Sequence[Layer]  # of every layer and direction
    h0: Tensor | None
    seed: Tensor | None
    net: Settings

    def forward(self, keep: bool) -> Results:
        """Returns (y, h_n, kept); kept is None without `keep`, and where there is one layer."""
        x, layers, h0, _, net = self
        if x.numel() == 0:  # no batch, or no models
            return self.empty_forward(keep)
        if len(layers) == 1:
            settings = (net.cell, net.direction == "reverse", net.precision)
            if has_kernels(x):
                y, (hn,), _ = dispatch.forward(x, *layers[0], (h0,), *settings)
            else:
                y, hn = on_cpu.forward(x, *layers[0], h0, *settings)
            return y, hn, None
        return self._decided(lambda bundles: self._forward_in(bundles, keep and len(layers) > net.directions))

    def backward(
        self, kept: Tensor, dy: Tensor | None, dhn: Tensor | None, needs: Sequence[int], groups: int | None
    ) -> Gradients:
        """Returns (dx, dh0, [dw_ih, dw_hh, db of every layer and direction]), each None unless `needs` asks for it: DX | DH0, and
        then for every layer and direction DW_IH | DW_HH | DB.  dy or dhn may be None, not both.  With `groups` = G the batch is G
        equal parts, and gradients of weights come separately for each, [G,..]; of an ensemble [M,G,..]."""
        x, layers, h0, _, net = self
        if kept.numel() == 0:
            return tree_map_only(Tensor, Tensor.zero_, self.empty_backward(kept, dy, dhn, needs, groups))
        if len(layers) == 1:
            w_ih, w_hh, *_ = layers[0]
            layer = Saved(x, w_ih, w_hh, h0, kept, net.reverse(0), net.precision, needs[0] | needs[1])
            dx, *dweights, dh0 = layer.gradients(_one_backward(layer, dy, dhn, net), groups)
            return dx, dh0, dweights
        return self._decided(lambda bundles: self._backward_in(bundles, kept, dy, dhn, needs, groups))

    def _decided(self, run: Callable[[Sequence[Bundle]], Any]) -> Any:
        """Returns run(what each launch carries, bottom layer first), once more with other launches where one does not compile."""
        tried: Sequence[Bundle] = ()
        while True:
            bundles = self._launches()
            try:
                return run(bundles)
            except UnsupportedError:
                if bundles == tried:
                    raise
                tried = bundles

    def _launches(self) -> tuple[Bundle, ...]:
        x, layers, _, _, net = self
        if not has_kernels(x) or x.dim() == 4:  # launches of several recurrences take no ensembles
            return (ONE,) * len(layers)
        _, B, I = x.shape
        problem = Problem("forward", B, I, layers[0].w_hh.shape[-1], DTYPES[x.dtype], net.precision, net.cell)
        return launches(problem, len(layers) // net.directions, net.directions == 2, net.dropped > 0, hardware.of(x.device))

    def _forward_in(self, bundles: Sequence[Bundle], keep: bool) -> Results:
        x, layers, h0, seed, net = self
        kept: Tensor | None = None
        if keep and bundles[0].count < len(layers):
            kept = self.empty_forward(True)[2]
        halves: list[Tensor] = []  # y of the forward direction, where the other one has a launch of its own
        last: list[Tensor] = []
        n = 0
        for bundle in bundles:
            layer = n // net.directions
            h = _states(h0, n, bundle.count)
            if bundle.count == 1:
                y, hn = _one_forward(x, layers[n], h, net, n)
                ys, hn = y.unsqueeze(-4), hn.unsqueeze(-3)  # [layers of the launch,T,B,D*H]
            else:
                columns: list[Any] = [None if w[0] is None else list(w) for w in zip(*layers[n : n + bundle.count])]
                dropout = (seed, net.dropped) if bundle.linked else ()
                shared = ((h,), net.cell, net.reverse(n), net.precision, False, None, (bundle, layer), *dropout)
                y, (hn,), _ = dispatch.forward(x, *columns, *shared)  # type: ignore[misc, arg-type]
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
                x = self._dropped(ys.select(-4, -1), n // net.directions - 1)
        # of several layers a copy, also without `keep`: else y would hold the memory of those below.  detach: no view, whose in-place
        # changes autograd would refuse
        y = ys.select(-4, -1)
        y = y.clone() if ys.shape[-4] > 1 else y.detach()
        hn = last[0] if len(last) == 1 else torch.cat(last, -3)
        return y, hn, None if not keep else ys if kept is None else kept

    def _backward_in(
        self,
        bundles: Sequence[Bundle],
        kept: Tensor,
        dy: Tensor | None,
        dhn: Tensor | None,
        needs: Sequence[int],
        groups: int | None,
    ) -> Gradients:
        x, layers, h0, seed, net = self
        data, *needs = needs
        H = layers[0].w_hh.shape[-1]
        outputs = [kept] if len(layers) == net.directions else kept.unbind(-4)  # y of each layer
        states: list[Any] = []  # dh0, the last first
        weights: list[Tensor | None] = []  # gradients of the weights, the last layer and direction first
        dx: Tensor | None = None
        n = len(layers)
        for bundle in reversed(bundles):
            above, n = n, n - bundle.count
            if not (data or any(needs[:above])):
                break
            layer, direction = divmod(n, net.directions)
            passes = self._passes(layer, data, needs)
            both = bundle.count == 2 and not bundle.linked
            launched: list[Saved] = []
            for i in range(n, above):
                number, half = divmod(i, net.directions)
                y = outputs[number]
                if net.directions == 2:
                    y = y.chunk(2, -1)[half]
                    y = y if both else y.contiguous()
                wanted = needs[i] | data & DH0 | (DX if passes and i == n and not both else 0)
                below: Any = x
                if number:  # dropped only where it is looked at
                    below = functools.partial(self._dropped, outputs[number - 1], number - 1)
                launched.append(
                    Saved(below, layers[i].w_ih, layers[i].w_hh, _states(h0, i), y, net.reverse(i), net.precision, wanted)
                )
            d = _states(dhn, n, bundle.count)
            if bundle.count == 1:
                half_dy = dy if dy is None or net.directions == 1 else dy[..., direction * H : (direction + 1) * H]
                das: Sequence[Tensor] = [_one_backward(launched[0], half_dy, d, net)]
            else:
                y = kept[layer : layer + bundle.count] if bundle.linked else outputs[layer]
                linked = ([one.w_ih for one in launched], seed, net.dropped) if bundle.linked else ()
                w_hh = [one.w_hh for one in launched]
                settings = (net.cell, net.reverse(n), net.precision, None, (bundle, layer))
                da, _ = dispatch.backward(w_hh, y, None, dy, (d,), *settings, *linked)
                das = da.unbind(0 if bundle.linked else 2)
            results = [one.gradients(da, groups) for one, da in zip(launched, das, strict=True)]

            for _, *dweights, dh0 in reversed(results):
                weights += reversed(dweights)
                states.append(dh0)
            if passes:
                below_dx = results[0][0]
                if both:
                    w_ih = torch.cat([one.w_ih for one in launched])
                    below_dx = gemm.matmul(da.flatten(2).flatten(0, 1), w_ih, net.precision).view(*x.shape[:2], -1)
                assert below_dx is not None
                dx = below_dx if dx is None else dx.add_(below_dx)  # of the other direction
            if not direction:
                dy, dx = dx, None
                if layer and dy is not None:
                    dy = self._dropped(dy, layer - 1)
        weights += [None] * (3 * len(layers) - len(weights))
        return dy if data & DX else None, torch.stack(states[::-1], -3) if data & DH0 else None, weights[::-1]

    def _passes(self, layer: int, data: int, needs: Sequence[int]) -> bool:
        """True if a gradient passes from this layer to what lies below."""
        return bool(data & DX or (layer and (data & DH0 or any(needs[: layer * self.net.directions]))))

    def _dropped(self, y: Tensor, layer: int) -> Tensor:
        """Returns what passes from y of a layer to the next, or the other way of its gradient."""
        return y if self.seed is None else masks.drop(y, self.seed, layer, self.net.dropped)

    # ---- shapes, for meta tensors, torch.compile and B = 0

    def empty_forward(self, keep: bool) -> Results:
        *M, T, B, _ = self.x.shape
        number, H = len(self.layers) // self.net.directions, self.layers[0].w_hh.shape[-1]
        size = (T, B, self.net.directions * H)
        y, hn = self.x.new_empty(*M, *size), self._empty_states()
        return y, hn, self.x.new_empty(*M, number, *size) if keep and number > 1 else None

    def empty_backward(self, kept: Any, dy: Any, dhn: Any, needs: Sequence[int], groups: int | None) -> Gradients:
        x, (data, *needs) = self.x, needs
        outer = [*x.shape[:-3], *([] if groups is None else [groups])]
        dweights: list[Tensor | None] = []
        for (w_ih, w_hh, *_), wanted in zip(self.layers, needs, strict=True):
            for need, shape in ((DW_IH, w_ih.shape[-2:]), (DW_HH, w_hh.shape[-2:]), (DB, w_ih.shape[-2:-1])):
                dweights.append(x.new_empty(*outer, *shape) if wanted & need else None)
        return x.new_empty(x.shape) if data & DX else None, self._empty_states() if data & DH0 else None, dweights

    def _empty_states(self) -> Tensor:
        *M, _, B, _ = self.x.shape
        number = [len(self.layers)] if len(self.layers) > 1 else []
        return self.x.new_empty(*M, *number, B, self.layers[0].w_hh.shape[-1])

    # ---- FLOPs, for torch's counter, with shapes in place of tensors: two for a multiplication and addition of a product, as torch
    # counts torch.nn.RNN

    def forward_flops(self, keep: bool) -> int:
        *models_and_T, B, _ = cast(Any, self.x)
        return sum(2 * math.prod(models_and_T) * B * rows * (H + I) for rows, H, I in self._sizes())

    def backward_flops(self, kept: Any, dy: Any, dhn: Any, needs: Sequence[int], groups: int | None) -> int:
        (*M, T, B, _), (data, *needs), flops = cast(Any, self.x), needs, 0
        for n, (rows, H, I) in enumerate(self._sizes()):
            layer = n // self.net.directions
            if not (data or any(needs[: (layer + 1) * self.net.directions])):
                continue
            with_x = self._passes(layer, data, needs) + (needs[n] & DW_IH > 0)
            # gradients of the states from step to step, and of the first one if it is wanted
            with_h = (T - (data & DH0 == 0)) + T * (needs[n] & DW_HH > 0)
            flops += 2 * math.prod(M) * B * rows * (T * I * with_x + H * with_h)
        return flops

    def _sizes(self) -> list[Any]:
        """Returns (G * H, H, I) of every layer and direction."""
        return [(*cast(Any, layer.w_hh)[-2:], cast(Any, layer.w_ih)[-1]) for layer in self.layers]


def _one_forward(x: Tensor, layer: Layer, h0: Tensor | None, net: Settings, n: int) -> tuple[Tensor, Tensor]:
    if not has_kernels(x):
        return on_cpu.forward(x, *layer, h0, net.cell, net.reverse(n), net.precision)
    y, (hn,), _ = dispatch.forward(x, *layer, (h0,), net.cell, net.reverse(n), net.precision)
    return y, hn


def _one_backward(layer: Saved, dy: Tensor | None, dhn: Tensor | None, net: Settings) -> Tensor:
    if not has_kernels(layer.y):
        return on_cpu.backward(layer.w_hh, layer.y, dy, dhn, net.cell, layer.reverse, layer.precision)
    return dispatch.backward(layer.w_hh, layer.y, None, dy, (dhn,), net.cell, layer.reverse, layer.precision)[0]


def _states(h: Tensor | None, n: int, count: int = 1) -> Tensor | None:
    """Returns those of `count` recurrences from the n-th on."""
    return h if h is None else h.select(-3, n) if count == 1 else h[n : n + count]


# ---- registration ---------------------------------------------------------------------------------------------------

_COUNT = len(Settings._fields)


def _op(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *others: Any, **_: Any) -> Any:
        net = Settings(*others[:_COUNT])
        results = method(Call(x, net.layers(weights), h0, seed, net), *others[_COUNT:])
        return tree_map(lambda t: x.new_empty(0) if t is None else t, results)  # a tensor each: results have no aliases

    return run


_ARGUMENTS = (
    "Tensor x, Tensor[] weights, Tensor? h0, Tensor? seed, "
    "bool b_ih, bool b_hh, str cell, str direction, str? precision, int dropped, "
)


def _define(name: str, arguments: str, results: str, *methods: Callable[..., Any]) -> Any:
    """Returns an op that is one method of Call on tensors, another one on shapes, and whose FLOPs a third one counts."""
    run, fake, flops = map(_op, methods)
    qualified = f"rnn_triton::{name}"
    torch.library.define(qualified, f"({_ARGUMENTS} {arguments}) -> ({results})", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"))(run)
    torch.library.register_fake(qualified, fake)
    packet = getattr(torch.ops.rnn_triton, name)
    register_flop_formula(packet)(flops)
    return packet.default


forward = _define(
    "forward", "bool keep", "Tensor y, Tensor hn, Tensor kept", Call.forward, Call.empty_forward, Call.forward_flops
)
backward = _define(
    "backward", "Tensor kept, Tensor? dy, Tensor? dhn, int[] needs, int? groups", "Tensor dx, Tensor dh0, Tensor[] dweights",
    Call.backward, Call.empty_backward, Call.backward_flops,
)  # fmt: skip
