"""A network of several layers or directions as a PyTorch operator: two opaque ops, each of which decides by itself what shares
a launch (plan/sharing.py), and what autograd and torch.compile need.  The same of layers one after the other: `in_turn`.

`rnn_triton::network_forward` keeps y of every layer, `rnn_triton::network_backward` takes them; nothing else passes between
them.  Each decides anew: the launches of the backward pass need not be those of the forward pass.  Dropout between layers is
a function of a seed and of the element's place (kernels/dropout.py), whatever is launched.

An op's results must not share memory, and their shapes must be known before anybody knows what is launched.  So y of all
layers is one tensor, as the launch of a whole stack leaves it, and y of the last layer a copy of its end, which also lets
that tensor go when the backward pass is over.

Arguments are taken as valid here: `functional` checks them.  `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh of every layer
and direction, in the order of h_n.  x[T,B,I], h0[L*D,B,H], y[T,B,D*H]; T, B >= 1; one dtype throughout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..cells.elman import ELMAN
from ..errors import UnsupportedError
from ..launch import dispatch, gemm
from ..launch.launcher import batched, has_kernels
from ..plan import hardware
from ..plan.choose import shared_plan
from ..plan.overriding import Choices
from ..plan.problem import DTYPES, ONE, Bundle, Problem
from ..plan.sharing import launches
from . import dropout as masks
from . import gradients
from . import layer as op
from .gradients import DB, DH0, DW_HH, DW_IH, DX

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih, w_hh, b_ih, b_hh
Results = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, list[Tensor]]


def layers_of(weights: Sequence[Any], each: int) -> list[Layer]:
    """`weights`, so many of `each` layer and direction, taken apart"""
    return [(*weights[i : i + each], None, None)[:4] for i in range(0, len(weights), each)]  # type: ignore[misc]


class Settings(NamedTuple):
    """What a network is besides tensors, as the ops take it"""

    bias: bool
    nonlinearity: str
    bidirectional: bool
    precision: str | None  # as of `op`
    dropped: int  # of 65536 elements between layers

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def layers(self, weights: Sequence[Any]) -> list[Layer]:
        """of every layer and direction"""
        return layers_of(weights, 4 if self.bias else 2)


# ---- the ops --------------------------------------------------------------------------------------------------------


def _run_forward(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *settings: Any
) -> Results:
    """(y, h_n, y of every layer as [L,T,B,D*H]).  The last of `settings`: `keep`; without it, or where there is one layer, the
    third is empty."""
    *of, keep = settings
    net = Settings(*of)
    if x.numel() == 0:  # no batch
        return _fake_forward(x, weights, h0, seed, *settings)
    run = functools.partial(_forward_in, x=x, layers=net.layers(weights), h0=h0, seed=seed, net=net, keep=keep)
    return _decided(x, weights, net, run)


def _run_backward(
    x: Tensor,
    weights: list[Tensor],
    h0: Tensor | None,
    seed: Tensor | None,
    ys: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    *settings: Any,
) -> Gradients:
    """(dx, dh0, [dw_ih, dw_hh, db of every layer and direction]), each empty unless `needs`, the last of `settings`, asks for
    it: a flag for x, for h0, and three for each layer and direction.  ys[L,T,B,D*H].  dy or dhn may be None, not both."""
    *of, needs = settings
    net = Settings(*of)
    if x.numel() == 0:
        dx, dh0, dweights = _fake_backward(x, weights, h0, seed, ys, dy, dhn, *settings)
        return dx.zero_(), dh0.zero_(), [g.zero_() for g in dweights]
    given = dict(x=x, layers=net.layers(weights), h0=h0, seed=seed, ys=ys, dy=dy, dhn=dhn, net=net, needs=needs)
    return _decided(x, weights, net, functools.partial(_backward_in, **given))


Result = TypeVar("Result")


def _decided(
    x: Tensor, weights: Sequence[Tensor], net: Settings, run: Callable[[Sequence[Bundle]], Result]
) -> Result:
    """run(what each launch holds), and again with other launches where one turns out not to compile"""
    tried: Sequence[Bundle] = ()
    while True:
        parts = _launches(x, weights, net)
        try:
            return run(parts)
        except UnsupportedError:
            if parts == tried:
                raise
            tried = parts


def _launches(x: Tensor, weights: Sequence[Tensor], net: Settings) -> tuple[Bundle, ...]:
    """what each holds, bottom layer first"""
    number = len(weights) // (4 if net.bias else 2)
    if not has_kernels(x):  # a program that was exported where there are
        return (ONE,) * number
    H, dtype = weights[1].shape[0], DTYPES[x.dtype]
    problem = Problem("forward", x.shape[1], x.shape[2], H, dtype, net.precision, ELMAN[net.nonlinearity].name)
    return launches(problem, number // net.directions, net.bidirectional, net.dropped > 0, hardware.of(x.device))


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
    number, width = len(layers) // net.directions, net.directions * layers[0][1].shape[0]
    keep = keep and number > 1
    kept: Tensor | None = None  # y of all layers, [L,T,B,D*H]
    if keep and parts[0].count < len(layers):
        kept = x.new_empty(number, *x.shape[:2], width)
    ys = x  # [layers of the part,T,B,D*H]
    forwards: list[Tensor] = []  # y of the forward direction, where the other one has a launch of its own
    last: list[Tensor] = []
    at = 0
    for bundle in parts:
        layer, direction = divmod(at, net.directions)
        mine = layers[at : at + bundle.count]
        h = None if h0 is None else h0[at : at + bundle.count]
        if bundle.count == 1:
            h = None if h is None else h[0]
            y, hn = op.run_forward(x, *mine[0], h, net.nonlinearity, direction == 1, net.precision)
            ys, hn = y[None], hn[None]
        else:
            ys, hn = _shared_forward(bundle, layer, x, mine, h, seed, net)
        last.append(hn)
        at += bundle.count
        if at % net.directions:
            forwards = [ys]
            continue
        if forwards:
            ys, forwards = torch.cat([*forwards, ys], -1), []
        if kept is not None:
            ys = kept[layer : layer + len(ys)].copy_(ys)
        if at < len(layers):
            x = _dropped(ys[-1], seed, at // net.directions - 1, net)
    # a copy also without `keep`: else y would hold the memory of the layers below.  detach: no view, whose in-place changes
    # autograd would refuse
    y = ys[-1].clone() if keep or len(ys) > 1 else ys[-1].detach()
    hn = last[0] if len(last) == 1 else torch.cat(last)
    return y, hn, x.new_empty(0) if not keep else ys if kept is None else kept


def _shared_forward(
    bundle: Bundle,
    first: int,
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    seed: Tensor | None,
    net: Settings,
) -> tuple[Tensor, Tensor]:
    """(y[n,T,B,D*H] of n layers, contiguous, hn) by one launch, `first` being the bottom layer's number"""
    w_ih, w_hh, b_ih, b_hh = _columns(layers)
    H = w_hh[0].shape[0]
    call = _call("forward", x, x.shape[2], H, bundle, first, net)
    extra = (False, seed, net.dropped) if bundle.linked else ()
    ys, hn = dispatch.run(_launch_for, call, "forward", x, w_ih, w_hh, b_ih, b_hh, h0, *extra)
    return (ys if bundle.linked else ys[None]), hn


def _backward_in(
    parts: Sequence[Bundle],
    *,
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    seed: Tensor | None,
    ys: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    net: Settings,
    needs: Sequence[bool],
) -> Gradients:
    for_x, for_h0, *for_weights = needs
    H = layers[0][1].shape[0]
    states: list[Tensor] = []  # dh0, the last first
    weights: list[Tensor] = []  # gradients of the weights, the last layer and direction first
    dx: Tensor | None = None
    at = len(layers)
    for bundle in reversed(parts):
        above, at = at, at - bundle.count
        if not (for_x or for_h0 or any(for_weights[: 3 * above])):
            break
        layer, direction = divmod(at, net.directions)
        w_ih, w_hh, *_ = _columns(layers[at:above])
        d = None if dhn is None else dhn[at:above]
        outputs = list(ys[layer].chunk(2, 2) if net.bidirectional else ys[layer : layer + bundle.count])
        if net.bidirectional and bundle.count == 1:
            outputs = [outputs[direction].contiguous()]
        need_dx = for_x or (layer and (for_h0 or any(for_weights[: 3 * layer * net.directions])))
        each: list[gradients.Layer] = []
        for n, y in enumerate(outputs):
            number, backwards = divmod(at + n, net.directions)
            wanted = for_weights[3 * (at + n) : 3 * (at + n + 1)]
            of = wanted[0] * DW_IH | wanted[1] * DW_HH | wanted[2] * DB | for_h0 * DH0
            of |= bool(need_dx and n == 0 and (bundle.linked or bundle.count == 1)) * DX
            h = None if h0 is None else h0[at + n]
            below = x if number == 0 else _below(ys[number - 1], seed, number - 1, net, of)
            each.append(gradients.Layer(below, w_ih[n], w_hh[n], h, y, backwards == 1, net.precision, of))

        if bundle.count == 1:
            of_y = None if dy is None else dy[..., direction * H : (direction + 1) * H]
            d = None if d is None else d[0]
            da = op.run_backward(each[0], of_y, d, net.nonlinearity)
            found = [each[0].gradients(da)]
        else:
            given: tuple[Any, ...] = (w_hh, ys[layer], dy, d)
            if bundle.linked:
                given = (w_hh, ys[layer : layer + bundle.count], dy, d, False, w_ih, seed, net.dropped)
            da = dispatch.run(_launch_for, _call("backward", x, 1, H, bundle, layer, net), "backward", *given)
            of_each = zip(each, da.unbind(0 if bundle.linked else 2), strict=True)
            found = [one.gradients(part) for one, part in of_each]

        for _, *of_weights, dh0 in reversed(found):
            weights += reversed(of_weights)
            states.append(dh0)
        if need_dx:
            if bundle.linked or bundle.count == 1:
                of_x = found[0][0]
            else:
                of_x = gemm.matmul(da.flatten(2).flatten(0, 1), torch.cat(w_ih), net.precision).view(*x.shape[:2], -1)
            dx = of_x if dx is None else dx.add_(of_x)  # of the other direction
        if not direction:
            dy, dx = dx, None
            if layer and dy is not None:
                dy = _dropped(dy, seed, layer - 1, net)
    missing = 3 * len(layers) - len(weights)
    weights += [x.new_empty(0) for _ in range(missing)]
    dh0 = torch.stack(states[::-1]) if for_h0 else x.new_empty(0)
    return dy if for_x and dy is not None else x.new_empty(0), dh0, weights[::-1]


def _below(
    y: Tensor, seed: Tensor | None, layer: int, net: Settings, needs: int
) -> Tensor | Callable[[], Tensor]:
    """What the next layer gets of this one's y, as far as the gradients `needs` look at it; dropped where it is asked for"""
    if seed is None or not needs & DW_IH:
        return y
    return lambda: masks.drop(y, seed, layer, net.dropped)


def _dropped(y: Tensor, seed: Tensor | None, layer: int, net: Settings) -> Tensor:
    """what passes from y of a layer to the next, or the other way of its gradient"""
    return y if seed is None else masks.drop(y, seed, layer, net.dropped)


def _columns(layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None, list[Tensor] | None]:
    """[w_ih of every layer], [w_hh], [b_ih] or None, [b_hh] or None"""
    w_ih, w_hh, b_ih, b_hh = ([layer[i] for layer in layers] for i in range(4))
    present: Any = [None if b[0] is None else b for b in (b_ih, b_hh)]
    return w_ih, w_hh, *present  # type: ignore[return-value]


def _call(direction: str, x: Tensor, I: int, H: int, bundle: Bundle, first: int, net: Settings) -> tuple[Any, ...]:
    """Returns the key that `_launch_for` takes."""
    return direction, x.shape[1], I, H, x.dtype, net.precision, net.nonlinearity, bundle, first, x.device


@functools.lru_cache(maxsize=1024)
def _launch_for(call: tuple[Any, ...], chosen: Choices) -> Any:
    """Returns the prepared launch of a call (direction, B, I, H, dtype, precision, nonlinearity, what the launch carries, number of
    the bottom layer, device) under the overrides `chosen`."""
    direction, B, I, H, dtype, precision, nonlinearity, bundle, first, device = call
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, ELMAN[nonlinearity].name)
    p = shared_plan(problem, bundle, hardware.of(device), chosen)
    if p is None:
        raise UnsupportedError(f"no plan for {bundle.count} recurrences of {problem} compiles on {hardware.of(device).name}")
    return dispatch.prepared(problem, p, bundle, first)


# ---- registration ---------------------------------------------------------------------------------------------------


def _fake_forward(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *settings: Any
) -> Results:
    *of, keep = settings
    net = Settings(*of)
    y = x.new_empty(*x.shape[:2], net.directions * weights[1].shape[0])
    number = len(net.layers(weights))
    layers = number // net.directions
    kept = x.new_empty(layers, *y.shape) if keep and layers > 1 else x.new_empty(0)
    return y, x.new_empty(number, x.shape[1], weights[1].shape[0]), kept


def _fake_backward(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, ys: Tensor, dy: Any, dhn: Any, *settings: Any
) -> Gradients:  # fmt: skip
    *of, (for_x, for_h0, *for_weights) = settings
    layers = Settings(*of).layers(weights)
    H = layers[0][1].shape[0]
    shapes = [shape for layer in layers for shape in (layer[0].shape, layer[1].shape, (H,))]
    found = [x.new_empty(shape if want else 0) for shape, want in zip(shapes, for_weights, strict=True)]
    states = (len(layers), x.shape[1], H)
    return x.new_empty(x.shape if for_x else 0), x.new_empty(states if for_h0 else 0), found


def _forward_flops(x: Sequence[int], weights: list[Sequence[int]], h0: Any, seed: Any, *settings: Any, **_: Any) -> int:
    *of, _keep = settings
    layers: Sequence[Any] = Settings(*of).layers(weights)
    return sum(op.forward_flops((*x[:2], w_ih[1]), w_ih) for w_ih, *_ in layers)


def _backward_flops(
    x: Sequence[int], weights: list[Sequence[int]], h0: Any, seed: Any, ys: Any, dy: Any, dhn: Any, *settings: Any, **_: Any
) -> int:  # fmt: skip
    *of, (for_x, for_h0, *for_weights) = settings
    net, found = Settings(*of), 0
    layers: Sequence[Any] = net.layers(weights)
    for n, (w_ih, *_others) in enumerate(layers):
        below = n - n % net.directions  # layers and directions beneath this one
        if not (for_x or for_h0 or any(for_weights[: 3 * (below + net.directions)])):
            continue
        for_w_ih, for_w_hh, _ = for_weights[3 * n : 3 * n + 3]
        need_dx = for_x or (below and (for_h0 or any(for_weights[: 3 * below])))
        needs = for_w_ih * DW_IH | for_w_hh * DW_HH | for_h0 * DH0 | bool(need_dx) * DX
        found += op.backward_flops((*x[:2], w_ih[1]), w_ih, needs)
    return found


_SETTINGS = "bool bias, str nonlinearity, bool bidirectional, str? precision, int dropped"
op.define(
    "network_forward",
    f"(Tensor x, Tensor[] weights, Tensor? h0, Tensor? seed, {_SETTINGS}, bool keep) "
    "-> (Tensor y, Tensor hn, Tensor kept)",
    _run_forward,
    _fake_forward,
    _forward_flops,
)
op.define(
    "network_backward",
    "(Tensor x, Tensor[] weights, Tensor? h0, Tensor? seed, Tensor ys, Tensor? dy, Tensor? dhn, "
    f"{_SETTINGS}, bool[] needs) -> (Tensor dx, Tensor dh0, Tensor[] dweights)",
    _run_backward,
    _fake_backward,
    _backward_flops,
)


# ---- vmap -----------------------------------------------------------------------------------------------------------
# Of compiled and exported programs; what is not compiled goes layer by layer there, by the rules of `op`.


def _vmap_forward(info: Any, dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Data join the batch, but for dropout, whose masks would be others"""
    x, weights, h0, seed, *settings = arguments
    of_x, of_weights, of_h0, *_ = dims
    n = info.batch_size
    if seed is not None or any(d is not None for d in of_weights):
        return _one_by_one(forward, n, dims, arguments)
    found = forward(op._join(x, of_x, n), weights, op._join(h0, of_h0, n), None, *settings)
    B = op._batch(x, of_x)
    return tuple(zip(*[(t, None) if t.dim() == 1 else op._part(t, n, B) for t in found]))  # type: ignore[return-value]


def _vmap_backward(info: Any, dims: tuple, *arguments: Any) -> tuple[Any, Any]:
    """Each sample has gradients of weights of its own"""
    return _one_by_one(backward, info.batch_size, dims, arguments)


def _one_by_one(run: Any, n: int, dims: tuple, arguments: tuple) -> tuple[Any, Any]:
    def of(t: Any, d: Any, i: int) -> Any:
        if isinstance(d, list | tuple):
            return [of(*each, i) for each in zip(t, d, strict=True)]
        return t if d is None else t.select(d, i)

    each = [run(*[of(t, d, i) for t, d in zip(arguments, dims, strict=True)]) for i in range(n)]
    found = [torch.stack(t) if isinstance(t[0], Tensor) else list(map(torch.stack, zip(*t))) for t in zip(*each)]
    return tuple(found), tuple(0 if isinstance(t, Tensor) else [0] * len(t) for t in found)


torch.library.register_vmap(f"{op.NAMESPACE}::network_forward", _vmap_forward)
torch.library.register_vmap(f"{op.NAMESPACE}::network_backward", _vmap_backward)


def _batched_backward(*arguments: Any) -> Gradients:
    """The same of the older vmap (launcher.batched), whose own way of doing without a rule takes no lists of tensors"""
    level = torch._C._vmapmode_increment_nesting() - 1  # of the batches: it says the one within
    torch._C._vmapmode_decrement_nesting()

    def dim(t: Any) -> Any:
        if isinstance(t, list) and t and isinstance(t[0], Tensor):
            return [dim(each) for each in t]
        return 0 if isinstance(t, Tensor) and batched(t) else None

    def plain(t: Any, d: Any) -> Any:
        if isinstance(d, list):
            return [plain(*each) for each in zip(t, d, strict=True)]
        return t if d is None else torch._remove_batch_dim(t, level, 1, 0)

    dims = tuple(map(dim, arguments))
    unwrapped = tuple(map(plain, arguments, dims))
    n = next(t.shape[0] for t, d in zip(unwrapped, dims, strict=True) if d == 0)
    (dx, dh0, dweights), _ = _one_by_one(backward, n, dims, unwrapped)
    wrapped = [torch._add_batch_dim(t, 0, level) for t in (dx, dh0, *dweights)]
    return wrapped[0], wrapped[1], wrapped[2:]


torch.library.impl(f"{op.NAMESPACE}::network_backward", "Batched")(_batched_backward)

forward = torch.ops.rnn_triton.network_forward.default
backward = torch.ops.rnn_triton.network_backward.default


# ---- autograd -------------------------------------------------------------------------------------------------------


def apply(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, net: Settings
) -> tuple[Tensor, Tensor]:
    """(y[T,B,D*H], h_n[L*D,B,H]), differentiable to any order, eager or compiled; not under torch.func's transforms"""
    recording = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, *weights))
    if torch.compiler.is_compiling():
        y, hn, _ = forward(x, weights, h0, seed, *net, recording)
    elif recording:
        # past Function.apply, which binds its arguments with inspect.signature for torch.func's sake
        y, hn = super(torch.autograd.Function, Network).apply(x, h0, seed, net, *weights)  # type: ignore[misc]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            y, hn, _ = forward(x, weights, h0, seed, *net, False)
    return y, hn


class Network(torch.autograd.Function):
    """(y, h_n) of (x, h0, seed, net, *weights), in eager mode.

    Kept for the backward pass: the arguments, and y of every layer.  What the backward op cannot do (derivatives of the
    gradients, batches of gradients) is done by the same layers one after the other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor | None, seed: Tensor | None, net: Settings, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, hn, kept = forward(x, weights, h0, seed, *net, True)
        _keep(ctx, x, h0, seed, net, weights, y, kept)
        return y, hn

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        dx, dh0, dweights = _gradients(ctx, cotangents, ctx.needs_input_grad[:2], ctx.needs_input_grad[4:])
        return dx, dh0, None, None, *dweights


def _keep(
    ctx: Any,
    x: Tensor,
    h0: Tensor | None,
    seed: Tensor | None,
    net: Settings,
    weights: Sequence[Tensor],
    y: Tensor,
    kept: Tensor,
) -> None:
    ctx.net = net
    ctx.set_materialize_grads(False)
    one = len(net.layers(weights)) == net.directions
    ctx.save_for_backward(x, h0, seed, y if one else kept, *weights)


def _gradients(
    ctx: Any, cotangents: Sequence[Tensor | None], needs: Sequence[bool], for_weights: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """of x, h0 and the weights, None where none is needed"""
    x, h0, seed, ys, *weights = ctx.saved_tensors
    net = ctx.net
    if all(c is None for c in cotangents):
        return None, None, [None] * len(weights)
    nothing_kept = ys.dim() == 1  # of a program that was exported as one that asks for no gradients
    if torch.is_grad_enabled() or batched(*cotangents) or nothing_kept:
        return _again(x, h0, seed, weights, cotangents, net, needs, for_weights)
    each = 4 if net.bias else 2
    wanted = []  # w_ih, w_hh and biases of each layer
    for i in range(0, len(weights), each):
        w_ih, w_hh, *biases = for_weights[i : i + each]
        wanted += [w_ih, w_hh, any(biases)]
    with torch._C._AutoDispatchBelowAutograd():
        ys = ys[None] if ys.dim() == 3 else ys
        dx, dh0, found = backward(x, weights, h0, seed, ys, *cotangents, *net, [*needs, *wanted])
    dweights: list[Tensor | None] = []
    for i in range(0, len(found), 3):
        dweights += [found[i], found[i + 1], *[found[i + 2]] * (each - 2)]
    dweights = [g if want else None for g, want in zip(dweights, for_weights, strict=True)]
    return dx if needs[0] else None, dh0 if needs[1] else None, dweights


def _again(
    x: Tensor,
    h0: Tensor | None,
    seed: Tensor | None,
    weights: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    net: Settings,
    needs: Sequence[bool],
    for_weights: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """The same by running the layers again, one after the other, with the same masks: those can be differentiated, for any
    batch of cotangents"""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views: one of these may have been computed from another, or be the same tensor, and the gradients of each are wanted
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in (x, h0, *weights)]
        outputs = in_turn(
            inputs[0], net.layers(inputs[2:]), inputs[1], net.bidirectional,
            one=functools.partial(op.rnn, nonlinearity=net.nonlinearity, precision=net.precision),
            between=lambda y, n: y if seed is None else masks.drop_by_mask(y, seed, n, net.dropped),
        )  # fmt: skip
        wanted = [i for i, need in enumerate((*needs, *for_weights)) if need]
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in wanted], [c for _, c in pairs], create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
    result: list[Any] = [None] * len(inputs)
    for i, g in zip(wanted, found, strict=True):
        result[i] = g
    return result[0], result[1], result[2:]


def in_turn(
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    bidirectional: bool,
    *,
    one: Callable[..., tuple[Tensor, Tensor]],
    between: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """(y, h_n), layer after layer by one(x, *layer, h0=, reverse=).  between(y, n): what layer n + 1 gets of y of layer n"""
    directions = 2 if bidirectional else 1
    h_n: list[Tensor] = []
    for n in range(0, len(layers), directions):
        x = between(x, n // directions - 1) if n else x
        ys = []
        for at in range(n, n + directions):
            y, hn = one(x, *layers[at], h0=None if h0 is None else h0[at], reverse=at > n)
            ys.append(y)
            h_n.append(hn)
        x = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
    return x, torch.stack(h_n)


def _setup_compiled(ctx: Any, inputs: tuple, output: Results) -> None:
    x, weights, h0, seed, *of, _ = inputs
    y, _, kept = output
    _keep(ctx, x, h0, seed, Settings(*of), weights, y, kept)


def _backward_compiled(ctx: Any, dy: Tensor | None, dhn: Tensor | None, _: Any) -> tuple[Any, ...]:
    for_x, for_weights, for_h0, *_ = ctx.needs_input_grad
    dx, dh0, dweights = _gradients(ctx, (dy, dhn), (for_x, for_h0), for_weights)
    return dx, dweights, dh0, *[None] * (len(Settings._fields) + 2)


torch.library.register_autograd(f"{op.NAMESPACE}::network_forward", _backward_compiled, setup_context=_setup_compiled)
