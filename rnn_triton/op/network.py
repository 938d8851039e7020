"""A network of layers and directions as two opaque PyTorch operators, each of which decides by itself what shares a launch
(plan/sharing.py).  A layer is a network of one layer in one direction.

`rnn_triton::forward` keeps y of every layer and the tiles that a cell keeps, `rnn_triton::backward` takes them; nothing else passes
between them.  Each decides anew: the launches of the backward pass need not be those of the forward pass.  Dropout between layers is
a function of a seed and of the element's place (kernels/dropout.py), whatever is launched.

An op's results must not share memory (but where its body is called in place of it, autograd.py), and their shapes must be known before anybody knows what is launched.  So y of all layers is
one tensor, as the launch of a whole stack leaves it, and y of the last layer a copy of its end, which also lets that tensor go when
the backward pass is over.

Arguments are taken as valid here: `functional` checks them.  `weights` are those of every layer and direction in the order of h_n
(layers.py).  Of L layers in D directions: x[T,B,I], each state and last state [L*D,B,H], y[T,B,D*H], kept a list of y of several
layers [L,T,B,D*H] and, where kernels run a cell that keeps K tiles, those of each recurrence [T,B,K*H]; of one recurrence states lack
the L*D.  An ensemble has M in front of every shape, by stride 0 where the models share a tensor.  x of one recurrence may lack M: the
models share it, and its gradient, which lacks M, too, is the sum of theirs.  One dtype throughout.

Sequences that end early or begin anew (cells/sequences.py) come with lengths that have been clamped to 0 .. T; layers, directions and models
share lengths and resets, and the restart states have the shapes of the first ones.  The ops return no gradients of them: autograd.py
has those of restart states.
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

from ..cells.sequences import Sequences
from ..errors import UnsupportedError
from ..launch import dispatch, gemm, recompute
from ..launch.launcher import has_kernels
from ..launch.sequences import ALL
from ..launch.sequences import given as names_of
from ..plan import hardware
from ..plan.problem import DTYPES, ONE, Bundle, Problem
from ..plan.sharing import launches
from . import dropout as masks
from . import on_cpu
from .gradients import DB, DH0, DV, DW_HH, DW_IH, DX, Saved
from .layers import Layer, Settings, States

Results = tuple[Tensor, States, list[Tensor]]
Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]


class Call(NamedTuple):
    """What both passes of a call are given."""

    x: Tensor
    layers: Sequence[Layer]  # of every layer and direction
    states: States  # () for zeros
    seed: Tensor | None
    net: Settings
    sequences: Sequences = ALL

    def forward(self, keep: bool) -> Results:
        """Returns (y, the last states, kept); kept is [] without `keep`."""
        x, layers, states, _, net, sequences = self
        if x.numel() == 0:  # no batch, or no models
            return self.empty_forward(keep)
        if len(layers) == 1:
            return one_forward(x, layers[0], states, net, 0, keep, sequences)
        return self._decided(lambda bundles: self._forward_in(bundles, keep))

    def backward(
        self, kept: Sequence[Tensor], dy: Tensor | None, dlast: Sequence[Tensor | None], needs: Sequence[int], pieces: int | None
    ) -> Gradients:
        """Returns (dx, [gradients of the first states], [Settings.gradients of every layer and direction]), each None unless `needs`
        asks for it: DX | DH0, and then for every layer and direction DW_IH | DW_HH | DB | DV.

        kept[0] is y of every layer; of one layer, of which the forward pass keeps none, y itself.  dy or some of dlast, the gradients of
        the last states, may be None, not all.  With `pieces` = N the batch is N equal parts, and gradients of weights come separately
        for each, [N,..]; of an ensemble [M,N,..]."""
        x, layers, states, _, net, sequences = self
        if kept[0].numel() == 0:
            return tree_map_only(Tensor, Tensor.zero_, self.empty_backward(kept, dy, dlast, needs, pieces))
        if len(layers) == 1:
            y, *tiles = kept
            w_ih, w_hh, *_ = layers[0]
            given = _with_models(x, w_hh)
            below: Any = given if sequences is ALL else lambda: _with_models(_live(x, sequences), w_hh)
            h0 = states[0] if states else None
            saved = Saved(below, w_ih, w_hh, h0, y, net.reverse(0), net.precision, needs[0] | needs[1], sequences, shared=given is not x)
            return _one_backward(saved, layers[0], states, tiles, dy, dlast, net, pieces)
        return self._decided(lambda bundles: self._backward_in(bundles, kept, dy, dlast, needs, pieces))

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
        x, layers, _, _, net, sequences = self
        if not has_kernels(x) or x.dim() == 4:  # launches of several recurrences take no ensembles
            return (ONE,) * len(layers)
        _, B, I = x.shape
        H, dtype = layers[0].w_hh.shape[-1], DTYPES[x.dtype]
        problem = Problem("forward", B, I, H, dtype, net.precision, net.cell, sequences=names_of(sequences))
        return launches(problem, len(layers) // net.directions, net.directions == 2, net.dropped > 0, hardware.of(x.device))

    def _forward_in(self, bundles: Sequence[Bundle], keep: bool) -> Results:
        x, layers, states, seed, net, sequences = self
        together = bundles[0].count == len(layers)  # what the one launch leaves is what is kept
        several = len(layers) > net.directions
        of_all = self._empty_ys() if keep and several and not together else []  # y of every layer
        kept: list[Tensor] = []
        halves: list[Tensor] = []  # y of the forward direction, where the other one has a launch of its own
        last: list[States] = []
        n = 0
        for bundle in bundles:
            layer = n // net.directions
            h = _states(states, n, bundle.count)
            of_launch = _sequences(sequences, n, bundle.count)
            if bundle.count == 1:
                y, after, tiles = one_forward(x, layers[n], h, net, n, keep, of_launch)
                # [layers of the launch,T,B,D*H]
                ys, after = y.unsqueeze(-4), tuple([s.unsqueeze(-3) for s in after])
            else:
                *columns, _ = [None if w[0] is None else list(w) for w in zip(*layers[n : n + bundle.count])]
                vectors = _vectors(layers[n : n + bundle.count])
                dropout = (seed, net.dropped) if bundle.linked else ()
                settings = (net.cell, net.reverse(n), net.precision, _how(keep, net), vectors, (bundle, layer))
                given: Any = (x, *columns, h or net.no_states, *settings, *dropout)
                y, after, kept_tiles = dispatch.forward(*given, sequences=of_launch)
                ys, tiles = y if bundle.linked else y[None], [] if kept_tiles is None else list(kept_tiles.flatten(-2))
            last.append(after)
            kept += tiles
            n += bundle.count
            if n % net.directions:
                halves = [ys]
                continue
            if halves:
                ys, halves = torch.cat([*halves, ys], -1), []
            if of_all:
                # only a copy: the layers above read ys, whose address, and so the order of a CPU's sums, does not depend on `keep`
                of_all[0].narrow(-4, layer, ys.shape[-4]).copy_(ys)
            if n < len(layers):
                x = self._dropped(ys.select(-4, -1), n // net.directions - 1)
        # of several layers a copy, also without `keep`: else y would hold the memory of those below.  detach: no view, whose in-place
        # changes autograd would refuse
        y = ys.select(-4, -1)
        y = y.clone() if ys.shape[-4] > 1 else y.detach()
        if keep and several and together:
            of_all = [ys]
        return y, last[0] if together else tuple([torch.cat(parts, -3) for parts in zip(*last)]), [*of_all, *kept]

    def _backward_in(
        self,
        bundles: Sequence[Bundle],
        kept: Sequence[Tensor],
        dy: Tensor | None,
        dlast: Sequence[Tensor | None],
        needs: Sequence[int],
        pieces: int | None,
    ) -> Gradients:
        x, layers, states, seed, net, sequences = self
        data, *needs = needs
        H = layers[0].w_hh.shape[-1]
        ys, *tiles = kept
        outputs = [ys] if len(layers) == net.directions else ys.unbind(-4)  # y of each layer
        dstates: list[Any] = []  # the last first
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
                below: Any = x if sequences is ALL else functools.partial(_live, x, sequences)
                if number:  # dropped only where it is looked at
                    below = functools.partial(self._dropped, outputs[number - 1], number - 1)
                h0 = states[0].select(-3, i) if states else None
                of_one = _sequences(sequences, i)
                launched.append(Saved(below, layers[i].w_ih, layers[i].w_hh, h0, y, net.reverse(i), net.precision, wanted, of_one))
            d = _states(dlast, n, bundle.count)
            if bundle.count == 1:
                half_dy = dy if dy is None or net.directions == 1 else dy[..., direction * H : (direction + 1) * H]
                results = [_one_backward(launched[0], layers[n], _states(states, n), tiles[n:above], half_dy, d, net, pieces)]
            else:
                y = ys[layer : layer + bundle.count] if bundle.linked else outputs[layer]
                linked = ([one.w_ih for one in launched], seed, net.dropped) if bundle.linked else ()
                w_hh = [one.w_hh for one in launched]
                settings = (net.cell, net.reverse(n), net.precision, _vectors(layers[n:above]), (bundle, layer))
                of_launch = _kept(launched, layers[n:above], [_states(states, i) for i in range(n, above)], tiles[n:above], net)
                da, carried = dispatch.backward(w_hh, y, of_launch, dy, d, *settings, *linked, sequences=sequences)
                das = da.unbind(0 if bundle.linked else 2)
                parts = zip(*[[None] * bundle.count if c is None else c for c in carried])
                of_each = zip(launched, das, parts, [None] * bundle.count if d[0] is None else d[0], strict=True)
                results = [_results(*one, net, pieces) for one in of_each]

            for _, of_states, dweights in reversed(results):
                weights += reversed(dweights)
                dstates.append(of_states)
            if passes:
                below_dx = results[0][0]
                if both:
                    w_ih = torch.cat([one.w_ih for one in launched])
                    by_x = da[..., -len(layers[n].w_ih) :]
                    below_dx = gemm.matmul(by_x.flatten(2).flatten(0, 1), w_ih, net.precision).view(*x.shape[:2], -1)
                assert below_dx is not None
                dx = below_dx if dx is None else dx.add_(below_dx)  # of the other direction
            if not direction:
                dy, dx = dx, None
                if layer and dy is not None:
                    dy = self._dropped(dy, layer - 1)
        weights += [None] * (len(net.gradients) * len(layers) - len(weights))
        of_all = [torch.stack(parts, -3) if data & DH0 else None for parts in zip(*reversed(dstates))]
        return dy if data & DX else None, of_all or [None] * len(net.no_states), weights[::-1]

    def _passes(self, layer: int, data: int, needs: Sequence[int]) -> bool:
        """True if a gradient passes from this layer to what lies below."""
        return bool(data & DX or (layer and (data & DH0 or any(needs[: layer * self.net.directions]))))

    def _dropped(self, y: Tensor, layer: int) -> Tensor:
        """Returns what passes from y of a layer to the next, or the other way of its gradient."""
        return y if self.seed is None else masks.drop(y, self.seed, layer, self.net.dropped)

    # ---- shapes, for meta tensors, torch.compile and B = 0

    def empty_forward(self, keep: bool) -> Results:
        *M, T, B, _ = self._shape()
        y = self.x.new_empty(*M, T, B, self.net.directions * self.layers[0].w_hh.shape[-1])
        return y, tuple(self._empty_states()), self._empty_kept() if keep else []

    def empty_backward(self, kept: Any, dy: Any, dlast: Any, needs: Sequence[int], pieces: int | None) -> Gradients:
        x, (data, *needs) = self.x, needs
        outer = [*self._shape()[:-3], *([] if pieces is None else [pieces])]
        dweights: list[Tensor | None] = []
        for (w_ih, w_hh, *_), wanted in zip(self.layers, needs, strict=True):
            shapes = {DW_IH: w_ih.shape[-2:], DW_HH: w_hh.shape[-2:], DB: w_ih.shape[-2:-1], DV: w_hh.shape[-1:]}
            dweights += [x.new_empty(*outer, *shapes[need]) if wanted & need else None for need in self.net.gradients]
        dstates: list[Any] = self._empty_states() if data & DH0 else [None] * len(self.net.no_states)
        return x.new_empty(x.shape) if data & DX else None, dstates, dweights

    def _shape(self) -> tuple[int, ...]:
        """Returns the shape of x, with M of an ensemble also where x lacks it."""
        return (*self.layers[0].w_hh.shape[:-2], *self.x.shape[-3:])

    def _empty_states(self) -> list[Tensor]:
        *M, _, B, _ = self._shape()
        number = [len(self.layers)] if len(self.layers) > 1 else []
        return [self.x.new_empty(*M, *number, B, self.layers[0].w_hh.shape[-1]) for _ in self.net.no_states]

    def _empty_ys(self) -> list[Tensor]:
        (*M, T, B, _), number, D = self.x.shape, len(self.layers), self.net.directions
        return [self.x.new_empty(*M, number // D, T, B, D * self.layers[0].w_hh.shape[-1])] if number > D else []

    def _empty_kept(self) -> list[Tensor]:
        shape = (*self._shape()[:-1], self.net.tiles * self.layers[0].w_hh.shape[-1])
        number = len(self.layers) if shape[-1] and has_kernels(self.x) else 0
        return [*self._empty_ys(), *[self.x.new_empty(shape) for _ in range(number)]]

    # ---- FLOPs, for torch's counter, with shapes in place of tensors: two for a multiplication and addition of a product, as torch
    # counts torch.nn.RNN

    def forward_flops(self, keep: bool) -> int:
        *_, T, B, _ = cast(Any, self.x)
        return sum(2 * self._models() * T * B * rows * (H + I) for rows, H, I in self._sizes())

    def backward_flops(self, kept: Any, dy: Any, dlast: Any, needs: Sequence[int], pieces: int | None) -> int:
        (*_, T, B, _), (data, *needs), flops = cast(Any, self.x), needs, 0
        for n, (rows, H, I) in enumerate(self._sizes()):
            layer = n // self.net.directions
            if not (data or any(needs[: (layer + 1) * self.net.directions])):
                continue
            with_x = self._passes(layer, data, needs) + (needs[n] & DW_IH > 0)
            # gradients of the states from step to step, and of the first one if it is wanted
            with_h = (T - (data & DH0 == 0)) + T * (needs[n] & DW_HH > 0)
            flops += 2 * self._models() * B * rows * (T * I * with_x + H * with_h)
        return flops

    def _models(self) -> int:
        return math.prod(cast(Any, self.layers[0].w_hh)[:-2])

    def _sizes(self) -> list[Any]:
        """Returns (G * H, H, I) of every layer and direction."""
        return [(*cast(Any, layer.w_hh)[-2:], cast(Any, layer.w_ih)[-1]) for layer in self.layers]


# From one tuple, in less host time than by arguments.
new_call: Callable[..., Call] = functools.partial(tuple.__new__, Call)


def one_forward(
    x: Tensor, layer: Layer, states: States, net: Settings, n: int, keep: bool, sequences: Sequences = ALL
) -> Results:
    """Returns Call.forward(keep) of the n-th recurrence by itself; `sequences` are those of it alone."""
    reverse = net.direction != "forward" and net.reverse(n)
    x = _with_models(x, layer.w_hh)
    if not has_kernels(x):
        return *on_cpu.forward(x, layer, states, net.described, reverse, sequences), []
    w_ih, w_hh, b_ih, b_hh, vectors = layer
    y, last, tiles = dispatch.forward(
        x, w_ih, w_hh, b_ih, b_hh, states or net.no_states, net.cell, reverse, net.precision, _how(keep, net) if net.recompute else keep,
        _vectors([layer]) if vectors else None, sequences=sequences,
    )  # fmt: skip
    return y, last, [] if tiles is None else [tiles.flatten(-2)]


def _one_backward(
    saved: Saved, layer: Layer, states: States, tiles: Sequence[Tensor], dy: Tensor | None, dlast: Sequence[Tensor | None],
    net: Settings, pieces: int | None,
) -> Gradients:  # fmt: skip
    if not has_kernels(saved.y):
        x = saved.x if isinstance(saved.x, Tensor) else saved.x()
        how = (net.described, saved.reverse, saved.needs, pieces, saved.sequences, saved.shared)
        dx, dstates, dweights = on_cpu.backward(x, layer, states, dy, dlast, *how)
        return dx, dstates[: len(net.no_states)], dweights  # without those of restart
    kept = _kept([saved], [layer], [states], tiles, net) if net.described.kept else None
    settings = (net.cell, saved.reverse, saved.precision, _vectors([layer]) if layer.vectors else None)
    da, carried = dispatch.backward(saved.w_hh, saved.y, kept, dy, dlast, *settings, sequences=saved.sequences)
    return _results(saved, da, carried, dlast[0], net, pieces)


def _results(
    saved: Saved, da: Tensor, carried: Sequence[Tensor | None], dhn: Tensor | None, net: Settings, pieces: int | None
) -> Gradients:
    """Returns the gradients of a recurrence from what a launch gives: da, what it carries of the gradients of the states, and behind
    it, where there are any, those of the vectors, [..,B,H].  `dhn` is the gradient of its last h."""
    number = len(net.no_states)
    dx, *dweights, dh0 = saved.gradients(da, pieces, carried[0], dhn)
    others = [c.to(da.dtype) if c is not None and saved.needs & DH0 else None for c in carried[1:number]]
    for c in carried[number:]:
        parts = c if c is None or pieces is None else c.unflatten(-2, (pieces, -1))
        dweights.append(parts.sum(-2).to(da.dtype) if parts is not None and saved.needs & DV else None)
    return dx, [dh0, *others], dweights


def _states(states: Sequence[Any], n: int, count: int = 1) -> Any:
    """Returns of each tensor what belongs to `count` recurrences from the n-th on."""
    return tuple([t if t is None else t.select(-3, n) if count == 1 else t.narrow(-3, n, count) for t in states])


def _sequences(sequences: Sequences, n: int, count: int = 1) -> Sequences:
    """Returns what `count` recurrences from the n-th on are told of sequences."""
    return sequences._replace(restart=_states(sequences.restart, n, count)) if sequences.restart else sequences


def _with_models(x: Tensor, w_hh: Tensor) -> Tensor:
    """Returns x[..,T,B,I] with M in front, by stride 0, if it lacks the M of an ensemble's w_hh."""
    return x.expand(w_hh.shape[0], -1, -1, -1) if w_hh.dim() == x.dim() == 3 else x


def _live(x: Tensor, sequences: Sequences) -> Tensor:
    """Returns x with zeros beyond each sequence: what lies there may be NaN, and the gradient of W_ih multiplies it with zeros."""
    live = sequences.live(x.shape[-3])
    return x if live is None else torch.where(live.unsqueeze(-1), x, 0)


def _how(keep: bool, net: Settings) -> Any:
    """Returns what launches of a forward pass take as `keep`."""
    return "states" if keep and net.recompute else keep


def _kept(
    launched: Sequence[Saved], layers: Sequence[Layer], states: Sequence[States], tiles: Sequence[Tensor], net: Settings
) -> Tensor | None:
    """Returns what the recurrences of a launch keep, as it takes it, from the tiles of each, [..,T,B,K*H]."""
    number, several = net.described.kept, len(launched) > 1
    if not number:
        return None
    by_tile = [t.unflatten(-1, (-1, launched[0].w_hh.shape[-1])) for t in tiles] or [None] * len(launched)
    if not net.recompute:
        return _together(by_tile) if several else by_tile[0]
    y = launched[0].y
    out = y.new_empty(*[len(launched)] * several, *y.shape[:-1], number, launched[0].w_hh.shape[-1])
    for n, (one, (*weights, _), before) in enumerate(zip(launched, layers, states, strict=True)):
        x = one.x if isinstance(one.x, Tensor) else one.x()
        given = (x, *weights, one.y, before or net.no_states, by_tile[n], net.cell, one.reverse, one.precision)
        recompute.kept(*given, _vectors([layers[n]]), out[n] if several else out, one.sequences)  # type: ignore[arg-type, call-arg]
    return out


def _together(parts: Sequence[Any]) -> Tensor:
    """Returns tensors stacked, without a copy if they are the parts of one tensor, as a launch leaves them."""
    first, n = parts[0], parts[0].numel()
    memory = first.untyped_storage().data_ptr()
    places = [(memory, first.storage_offset() + i * n, True) for i in range(len(parts))]
    if places == [(t.untyped_storage().data_ptr(), t.storage_offset(), t.is_contiguous()) for t in parts]:
        return first.as_strided((len(parts), *first.shape), (n, *first.stride()))
    return torch.stack(list(parts))


def _vectors(layers: Sequence[Layer]) -> Tensor | None:
    """Returns the vectors of a launch [V,H], of several recurrences [N,V,H], in fp32 (fp64)."""
    if not layers[0].vectors:
        return None
    each = [torch.stack(layer.vectors, -2) for layer in layers]
    vectors = each[0] if len(each) == 1 else torch.stack(each)
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


# ---- registration ---------------------------------------------------------------------------------------------------

_COUNT = len(Settings._fields)


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """Returns tensors without common memory, as results of an op have to be: copies of the parts of one."""
    memory = [t.untyped_storage().data_ptr() for t in tensors]
    return [t.clone() if memory.count(at) > 1 else t for t, at in zip(tensors, memory)]


def sequences_of(lengths: Any = None, reset: Any = None, restart: Sequence[Any] | None = None) -> Sequences:
    """Returns what the last arguments of an op say of sequences; those that have their defaults may be left out."""
    return ALL if lengths is None and reset is None else Sequences(lengths, reset, tuple(restart or ()))


def _op(method: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`count`: the number of arguments that the method takes."""

    def run(x: Tensor, weights: list[Tensor], states: list[Tensor], seed: Tensor | None, *others: Any, **_: Any) -> Any:
        net, given, of_sequences = Settings(*others[:_COUNT]), others[_COUNT : _COUNT + count], others[_COUNT + count :]
        results = method(Call(x, net.layers(weights), tuple(states), seed, net, sequences_of(*of_sequences)), *given)
        if method is Call.forward:
            y, last, kept = results
            results = y, last, _apart(kept)
        return tree_map(lambda t: x.new_empty(0) if t is None else t, results)  # a tensor each: results have no aliases

    return run


_ARGUMENTS = (
    "Tensor x, Tensor[] weights, Tensor[] states, Tensor? seed, "
    "bool b_ih, bool b_hh, str cell, str direction, str? precision, int dropped, bool recompute, "
)
_SEQUENCES = "Tensor? lengths=None, Tensor? reset=None, Tensor[]? restart=None"


def _define(name: str, arguments: str, results: str, *methods: Callable[..., Any]) -> Any:
    """Returns an op that is one method of Call on tensors, another one on shapes, and whose FLOPs a third one counts."""
    run, fake, flops = [_op(method, 1 + arguments.count(",")) for method in methods]
    qualified = f"rnn_triton::{name}"
    schema = f"({_ARGUMENTS} {arguments}, {_SEQUENCES}) -> ({results})"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"))(run)
    torch.library.register_fake(qualified, fake)
    packet = getattr(torch.ops.rnn_triton, name)
    register_flop_formula(packet)(flops)
    return packet.default


forward = _define(
    "forward", "bool keep", "Tensor y, Tensor[] last, Tensor[] kept", Call.forward, Call.empty_forward, Call.forward_flops
)
backward = _define(
    "backward", "Tensor[] kept, Tensor? dy, Tensor?[] dlast, int[] needs, int? pieces",
    "Tensor dx, Tensor[] dstates, Tensor[] dweights",
    Call.backward, Call.empty_backward, Call.backward_flops,
)  # fmt: skip
