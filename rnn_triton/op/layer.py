"""The recurrence as a PyTorch operator: two opaque ops, and what autograd, torch.func and torch.compile need.

`rnn_triton::rnn_forward` and `rnn_triton::rnn_backward` are what torch.compile and export see. Eager mode
reaches them through a pair of autograd.Functions: `Rnn`, whose backward is the kernel, and `RnnBackward`,
which takes its place under create_graph and is differentiated through `reference.backward`. The forward pass
saves its inputs and y, nothing else. Arguments are taken as valid here: `functional` checks them. Shapes as in
`reference`, or an ensemble's: x[M,T,B,I], and M in front of every other shape, too, by stride 0 where the models
share a tensor. vmap over weights makes ensembles. One dtype throughout. `precision` is "tf32", "tf32x3" or "ieee" for
fp32, None for other dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from ..cells import reference
from ..cells.elman import ELMAN
from ..errors import UnsupportedError
from ..launch import dispatch
from ..launch.launcher import has_kernels
from . import onnx_node
from .gradients import DB, DH0, DW_HH, DW_IH, DX, Layer

NAMESPACE = "rnn_triton"
_vjp: Any = torch.func.vjp  # (outputs, pull_back)
# Calls an op past its registered autograd, whose Python half costs more than the rest of the call.
_below_autograd = torch._C._AutoDispatchBelowAutograd
_is_tracing = torch._C._is_tracing  # bound, as torch.jit.is_tracing takes ten times as long
_is_grad_enabled = torch.is_grad_enabled


# ---- the ops on CPU and CUDA tensors -----------------------------------------------------------------------


def run_forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:  # no batch, or no models
        return _fake_forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)
    if has_kernels(x):
        return dispatch.forward(x, w_ih, w_hh, b_ih, b_hh, h0, ELMAN[nonlinearity].name, reverse, precision)
    return _cpu_forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse)


def _run_backward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
    needs: int,
    groups: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dw_ih, dw_hh, db, dh0), each empty unless `needs` asks for it. dy or dhn may be None, not both.

    `groups` = G: the batch is G equal parts; dw_ih[G,H,I], dw_hh[G,H,H] and db[G,H] come separately for each. Of an
    ensemble: dw_ih[M,H,I] or dw_ih[M,G,H,I], and the others alike.
    """
    if y.numel() == 0:
        return _allocate_gradients(y.new_zeros, x, w_ih, w_hh, h0, needs, groups)
    layer = Layer(x, w_ih, w_hh, h0, y, reverse, precision, needs if groups is None else needs & (DX | DH0))
    da = run_backward(layer, dy, dhn, nonlinearity)
    dx, dw_ih, dw_hh, db, dh0 = layer.gradients(da)
    if groups is None:
        return dx, dw_ih, dw_hh, db, dh0
    M = y.shape[:-3]
    da, x, y = (_parts(t, groups, 3) for t in (da, x, y))
    h0 = None if h0 is None else _parts(h0, groups, 2)
    each = Layer(x, w_ih, w_hh, h0, y, reverse, precision, needs & ~(DX | DH0))
    dw_ih, dw_hh, db = (part.view(*M, groups, *part.shape[1:]) for part in each.gradients(da)[1:4])
    return dx, dw_ih, dw_hh, db, dh0


def run_backward(layer: Layer, dy: Tensor | None, dhn: Tensor | None, nonlinearity: str) -> Tensor:
    """da[..,T,B,H]"""
    if has_kernels(layer.y):
        return dispatch.backward(layer.w_hh, layer.y, dy, dhn, ELMAN[nonlinearity].name, layer.reverse, layer.precision)
    return _cpu_backward(layer.w_hh, layer.y, dy, dhn, nonlinearity, layer.reverse)


def _parts(t: Tensor, groups: int, dims: int) -> Tensor:
    """The last `dims` dimensions of t, the batch (next to last) in equal parts: [M G,..], a part for a model"""
    t = t.unflatten(-2, (groups, t.shape[-2] // groups)).movedim(-3, -dims - 1)
    return t.flatten(0, -dims - 1)


def _cpu_forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    if x.dim() == 4:

        def of(t: Tensor | None, m: int) -> Tensor | None:
            return None if t is None else t[m]

        each = [
            _cpu_forward(x[m], w_ih[m], w_hh[m], of(b_ih, m), of(b_hh, m), of(h0, m), nonlinearity, reverse)
            for m in range(x.shape[0])
        ]
        y, hn = (torch.stack(parts) for parts in zip(*each))
        return y, hn
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:
        weights += [w_hh.new_zeros(w_hh.shape[0]) if b is None else b for b in (b_ih, b_hh)]
    if h0 is None:
        h0 = x.new_zeros(x.shape[1], w_hh.shape[0])
    run = getattr(_VF, ELMAN[nonlinearity].aten)
    y, hn = run(
        x.flip(0) if reverse else x, h0.unsqueeze(0), weights, len(weights) == 4, 1, 0.0, False, False, False
    )
    # detach: torch marks y as a view of something, and autograd would then refuse in-place changes to it
    return (y.flip(0) if reverse else y).detach(), hn.squeeze(0).detach()


def _cpu_backward(
    w_hh: Tensor, y: Tensor, dy: Tensor | None, dhn: Tensor | None, nonlinearity: str, reverse: bool
) -> Tensor:
    wide = torch.float32 if y.element_size() == 2 else y.dtype  # what dh accumulates in, as in the kernels
    w_hh, h = w_hh.to(wide), y.movedim(-3, 0).to(wide)  # time first, as below: before the models of an ensemble
    dh = torch.zeros_like(h[0]) if dhn is None else dhn.to(wide)
    da = torch.empty_like(y, memory_format=torch.contiguous_format)
    dy, da_t = None if dy is None else dy.movedim(-3, 0), da.movedim(-3, 0)
    steps = range(h.shape[0])
    with torch.autocast("cpu", enabled=False):  # backward() may be called under it: it would round fp32
        for t in steps if reverse else reversed(steps):
            if dy is not None:
                dh = dh + dy[t]
            if nonlinearity == "tanh":
                da_t[t] = torch.ops.aten.tanh_backward(dh, h[t])
            else:
                da_t[t] = torch.ops.aten.threshold_backward(dh, h[t], 0)
            dh = da_t[t].to(wide) @ w_hh
    return da


# ---- their shapes, for meta tensors, torch.compile and B = 0 -----------------------------------------------


def _fake_forward(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    *M, T, B, _I = x.shape
    H = w_hh.shape[-1]
    return x.new_empty(*M, T, B, H), x.new_empty(*M, B, H)


def _allocate_gradients(
    new: Callable[..., Tensor],
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    needs: int,
    groups: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *M, _T, B, _I = x.shape
    H = w_hh.shape[-1]
    # parts can be told apart where nothing is needed, too
    lead = M if groups is None else [*M, groups]
    dx = new(x.shape if needs & DX else 0)
    dw_ih = new((*lead, *(w_ih.shape[-2:] if needs & DW_IH else (0,))))
    dw_hh = new((*lead, *(w_hh.shape[-2:] if needs & DW_HH else (0,))))
    db = new((*lead, H if needs & DB else 0))
    dh0 = new((*M, B, H) if needs & DH0 else 0)
    return dx, dw_ih, dw_hh, db, dh0


def _fake_backward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
    needs: int,
    groups: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _allocate_gradients(y.new_empty, x, w_ih, w_hh, h0, needs, groups)


# ---- their FLOPs, for torch's counter: two for a multiplication and addition of a product, as torch counts torch.nn.RNN


def forward_flops(x: Sequence[int], w_ih: Sequence[int]) -> int:
    """Of one layer and direction, of any number of models, from the shapes"""
    *M, T, B, I = x
    H = w_ih[-2]
    return 2 * math.prod(M) * T * B * H * (I + H)


def backward_flops(x: Sequence[int], w_ih: Sequence[int], needs: int) -> int:
    *M, T, B, I = x
    H = w_ih[-2]
    of_x = (needs & DX > 0) + (needs & DW_IH > 0)
    # gradients of the states from step to step, and of the first one if it is wanted
    of_h = (T - (needs & DH0 == 0)) + T * (needs & DW_HH > 0)
    return 2 * math.prod(M) * B * H * (T * I * of_x + H * of_h)


# ---- registration ------------------------------------------------------------------------------------------


def define(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any], flops: Callable[..., int]
) -> None:
    """An opaque op of the package: on CPU and CUDA tensors, its shapes, and its FLOPs from shapes in place of tensors"""
    torch.library.define(f"{NAMESPACE}::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"{NAMESPACE}::{name}", ("cpu", "cuda"))(run)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    register_flop_formula(getattr(torch.ops.rnn_triton, name))(flops)


define(
    "rnn_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, "
    "str nonlinearity, bool reverse, str? precision) -> (Tensor y, Tensor hn)",
    run_forward,
    _fake_forward,
    lambda x, w_ih, *_, **__: forward_flops(x, w_ih),
)
define(
    "rnn_backward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? h0, Tensor y, Tensor? dy, Tensor? dhn, "
    "str nonlinearity, bool reverse, str? precision, int needs, int? groups) "
    "-> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dh0)",
    _run_backward,
    _fake_backward,
    lambda x, w_ih, *others, **_: backward_flops(x, w_ih, others[8]),
)

_forward = torch.ops.rnn_triton.rnn_forward.default
_backward = torch.ops.rnn_triton.rnn_backward.default


# ---- eager mode: the Function pair -------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, w_ih, w_hh, _b_ih, _b_hh, h0 = inputs[:6]
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)  # an unused y or hn gives None, not a tensor of zeros
    saved = (x, w_ih, w_hh, h0, output[0])
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _differentiate(ctx: Any, dy: Tensor | None, dhn: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None and dhn is None:
        return (None,) * 9
    for_x, for_w_ih, for_w_hh, for_b_ih, for_b_hh, for_h0 = ctx.needs_input_grad[:6]
    needs = for_x * DX | for_w_ih * DW_IH | for_w_hh * DW_HH | (for_b_ih or for_b_hh) * DB | for_h0 * DH0
    arguments = (*ctx.saved_tensors, dy, dhn, *ctx.settings, needs)
    if torch.is_grad_enabled():  # create_graph
        dx, dw_ih, dw_hh, db, dh0 = RnnBackward.apply(*arguments)
    else:
        with _below_autograd():
            dx, dw_ih, dw_hh, db, dh0 = _backward(*arguments, None)
    return (
        dx if for_x else None,
        dw_ih if for_w_ih else None,
        dw_hh if for_w_hh else None,
        db if for_b_ih else None,
        db if for_b_hh else None,
        dh0 if for_h0 else None,
        None,
        None,
        None,
    )


class RnnBackward(torch.autograd.Function):
    """The gradients as a function of (x, w_ih, w_hh, h0, y, dy, dhn); its own derivatives are the reference's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        h0: Tensor | None,
        y: Tensor,
        dy: Tensor | None,
        dhn: Tensor | None,
        nonlinearity: str,
        reverse: bool,
        precision: str | None,
        needs: int,
    ) -> tuple[Tensor, ...]:
        return _backward(x, w_ih, w_hh, h0, y, dy, dhn, nonlinearity, reverse, precision, needs, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.settings = inputs[7:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])

    @staticmethod
    def _as_function(
        ctx: Any, wanted: int
    ) -> tuple[Callable[..., tuple[Tensor, ...]], list[int], list[Tensor]]:
        """The gradients in `wanted` (DX | ...) as a function of the saved tensors but None; which; those."""
        nonlinearity, reverse = ctx.settings[:2]
        saved = ctx.saved_tensors
        present = [i for i, t in enumerate(saved) if t is not None]

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            arguments: list[Any] = [None] * 7 + [nonlinearity, reverse]
            for i, t in zip(present, tensors):
                arguments[i] = t
            return tuple(g for i, g in enumerate(reference.backward(*arguments)) if wanted & 1 << i)

        if saved[0].dim() == 4:  # the models of an ensemble
            return torch.vmap(gradients), present, [saved[i] for i in present]

        return gradients, present, [saved[i] for i in present]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = sum(1 << i for i, c in enumerate(cotangents) if c is not None)
        result: list[Tensor | None] = [None] * 11
        if wanted:
            gradients, present, tensors = RnnBackward._as_function(ctx, wanted)
            pull_back = _vjp(gradients, *tensors)[1]
            for i, g in zip(present, pull_back(tuple(c for c in cotangents if c is not None))):
                result[i] = g
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        needs = ctx.settings[3]
        gradients, present, tensors = RnnBackward._as_function(ctx, needs)
        # The pull-back is linear in its cotangents, and its transpose is the push-forward. Not by
        # torch.func.jvp: forward mode does not nest, and an open dual_level() is one way to get here.
        outputs, pull_back = _vjp(gradients, *tensors)
        push_forward = _vjp(pull_back, tuple(torch.zeros_like(o) for o in outputs))[1]
        given = [
            torch.zeros_like(t) if tangents[i] is None else tangents[i] for i, t in zip(present, tensors)
        ]
        pushed = iter(push_forward(tuple(given))[0])
        return tuple(next(pushed) if needs & 1 << i else tensors[0].new_zeros(0) for i in range(5))


class Rnn(torch.autograd.Function):
    """(y, hn) of (x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)."""

    generate_vmap_rule = True  # out of the ops' own rules below

    @classmethod
    def apply(cls, *args: Any) -> tuple[Tensor, Tensor]:
        # Function.apply binds its arguments with inspect.signature on every call, which costs more than the
        # rest of the call; only torch.func transforms need what it does
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        h0: Tensor | None,
        nonlinearity: str,
        reverse: bool,
        precision: str | None,
    ) -> tuple[Tensor, Tensor]:
        with _below_autograd():
            return _forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)

    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        x, w_ih, w_hh, h0, y = ctx.saved_tensors
        nonlinearity, reverse, _ = ctx.settings
        return reference.jvp(x, w_ih, w_hh, h0, y, tangents[:6], nonlinearity, reverse)


# torch.compile and export: the same formulas, hung on the op
torch.library.register_autograd(f"{NAMESPACE}::rnn_forward", _differentiate, setup_context=_save)


# ---- vmap --------------------------------------------------------------------------------------------------


def _join(t: Tensor | None, mapped: int | None, n: int) -> Tensor | None:
    """t[..,B,N] with the mapped dimension (or n copies) merged into B, as its outer part."""
    if t is None:
        return None
    if mapped is None:
        t = t.unsqueeze(-3).expand(*t.shape[:-2], n, *t.shape[-2:])
    else:
        t = t.movedim(mapped, -3)
    return t.flatten(-3, -2)


def _part(t: Tensor, n: int, B: int) -> tuple[Tensor, int]:
    """What `_join` merged, n times B, as a dimension of its own again, and which."""
    t = t.unflatten(-2, (n, B))
    return t, t.dim() - 3


def _batch(x: Tensor, mapped: int | None) -> int:
    """Of one sample of x"""
    return [size for dim, size in enumerate(x.shape) if dim != mapped][-2]


def _stack(t: Tensor | None, mapped: int | None, n: int, nested: bool) -> Tensor | None:
    """t as of the models of an ensemble, which share it where it is not mapped; `nested`: it has models already."""
    if t is None:
        return None
    t = t.expand(n, *t.shape) if mapped is None else t.movedim(mapped, 0)
    return t.flatten(0, 1) if nested else t


def _unstack(t: Tensor, n: int, nested: bool) -> tuple[Tensor, int]:
    return (t.unflatten(0, (n, t.shape[0] // max(n, 1))) if nested else t), 0


def _is_ensemble(x: Tensor, mapped: int | None) -> bool:
    return x.dim() - (mapped is not None) == 4


def _vmap_forward(info: Any, dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Data join the batch; weights make an ensemble."""
    tensors, settings, n = arguments[:6], arguments[6:], info.batch_size
    if any(d is not None for d in dims[1:5]):
        nested = _is_ensemble(tensors[0], dims[0])
        outputs = _forward(*[_stack(t, d, n, nested) for t, d in zip(tensors, dims)], *settings)
        return tuple(zip(*[_unstack(t, n, nested) for t in outputs]))  # type: ignore[return-value]
    x, *weights, h0 = tensors
    outputs = _forward(_join(x, dims[0], n), *weights, _join(h0, dims[5], n), *settings)
    return tuple(zip(*[_part(t, n, _batch(x, dims[0])) for t in outputs]))  # type: ignore[return-value]


def _vmap_backward(
    info: Any, dims: tuple, *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    tensors, (*settings, needs, groups), n = arguments[:7], arguments[7:], info.batch_size
    nested = _is_ensemble(tensors[0], dims[0])
    if dims[1] is not None or dims[2] is not None:
        stacked = [_stack(t, d, n, nested) for t, d in zip(tensors, dims)]
        dx, *of_weights, dh0 = _backward(*stacked, *settings, needs, groups)
        data = [_unstack(t, n, nested) if needs & which else (t, None) for t, which in ((dx, DX), (dh0, DH0))]
        weights = [_unstack(t, n, nested) for t in of_weights]
    else:
        x, w_ih, w_hh, *states = tensors
        joined = [_join(t, d, n) for t, d in zip(states, dims[3:])]
        dx, *of_weights, dh0 = _backward(
            _join(x, dims[0], n), w_ih, w_hh, *joined, *settings, needs, n * (groups or 1)
        )
        B = _batch(x, dims[0])
        data = [_part(t, n, B) if needs & which else (t, None) for t, which in ((dx, DX), (dh0, DH0))]
        each = int(nested)  # behind the models
        weights = [(t if groups is None else t.unflatten(each, (n, groups)), each) for t in of_weights]
    return tuple(zip(data[0], *weights, data[1]))  # type: ignore[return-value]


torch.library.register_vmap(f"{NAMESPACE}::rnn_forward", _vmap_forward)
torch.library.register_vmap(f"{NAMESPACE}::rnn_backward", _vmap_backward)


def _only_maps() -> bool:
    """Is every transform that is active a vmap?"""
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    return all(i.key() == torch._C._functorch.TransformType.Vmap for i in interpreters)


# What torch.compiler.assume_constant_result sets, which would import all of Dynamo here: it asks while it traces.
setattr(_only_maps, "_dynamo_marked_constant", True)


# ---- entry -------------------------------------------------------------------------------------------------


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor]:
    """(y, hn), differentiable to any order, under every transform."""
    if torch.compiler.is_compiling():
        to_onnx = torch.onnx.is_in_onnx_export()
        if torch._C._are_functorch_transforms_active() and (to_onnx or not _only_maps()):
            # compile(grad(f)), compile(jvp(f)): Dynamo can take neither the Functions above nor the op's
            # autograd through torch.func's transforms; tangents would even come out as zeros
            return reference.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse)
        if to_onnx:
            return onnx_node.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse)
        return _forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)
    if _is_tracing():  # what a Function does would be traced through, and the kernels with it
        if torch.onnx.is_in_onnx_export():
            raise UnsupportedError(onnx_node.LEGACY)
        return _forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)
    if not _is_grad_enabled() and forward_ad._current_level < 0:
        with _below_autograd():
            return _forward(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)
    return Rnn.apply(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)
