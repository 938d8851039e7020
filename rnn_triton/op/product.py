"""A matrix product in the precision of a call, whatever torch is set to: `product`, differentiable to any order, under every transform.

As a layer (autograd.py) it is an operator, rnn_triton::matmul, which torch.compile and export see, and in eager mode an autograd.Function
around it.  Where no kernels run it is torch's own product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..launch import gemm
from ..launch.launcher import has_kernels
from .autograd import Fast, nests_forward_mode, only_maps


def product(a: Tensor, b: Tensor, precision: str | None) -> Tensor:
    """Returns a[..,M,K] @ b[K,N], rounded to their dtype.  `precision` is "tf32", "tf32x3" or "ieee" for fp32, None for other dtypes.
    No autocast is to be on: projection.py, which calls this, takes torch's product then."""
    if not has_kernels(a):
        return a @ b
    transformed = torch._C._are_functorch_transforms_active()
    run: Any = Product.apply
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export() or transformed and not only_maps():  # as in autograd.network
            return a @ b
        run = matmul
    elif torch._C._is_tracing():
        run = matmul
    elif transformed and nests_forward_mode():
        return a @ b
    return run(a, b, precision) if a.dim() == 2 else run(a.flatten(0, -2), b, precision).unflatten(0, a.shape[:-1])


def _matmul(a: Tensor, b: Tensor, precision: str | None) -> Tensor:
    return gemm.matmul(a, b, precision) if a.numel() and b.numel() else a.new_zeros(*a.shape[:-1], b.shape[-1])


def _shape(a: Tensor, b: Tensor, precision: str | None) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _flops(a: Any, b: Any, precision: str | None, **_: Any) -> int:
    """Returns those of operands of these shapes: two for a multiplication and addition."""
    (*P, M, K), N = a, b[-1]
    return 2 * (P[0] if P else 1) * M * K * N


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    a, b, ctx.precision = inputs
    ctx.save_for_backward(a, b)
    ctx.save_for_forward(a, b)


def _gradients(ctx: Any, d: Tensor, run: Any) -> tuple[Tensor | None, Tensor | None, None]:
    (a, b), (for_a, for_b, _) = ctx.saved_tensors, ctx.needs_input_grad
    return run(d, b.mT, ctx.precision) if for_a else None, run(a.mT, d, ctx.precision) if for_b else None, None


torch.library.define("rnn_triton::matmul", "(Tensor a, Tensor b, str? precision) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl("rnn_triton::matmul", ("cpu", "cuda"))(_matmul)
torch.library.register_fake("rnn_triton::matmul", _shape)
torch.library.register_autograd("rnn_triton::matmul", lambda ctx, d: _gradients(ctx, d, matmul), setup_context=_save)
register_flop_formula(torch.ops.rnn_triton.matmul)(_flops)
matmul: Any = torch.ops.rnn_triton.matmul.default  # a[M,K] @ b[K,N], or P such products


class Product(Fast):
    """a[M,K] @ b[K,N] of (a, b, precision)."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, precision: str | None) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return matmul(a, b, precision)

    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _gradients(ctx, d, Product.apply)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor | None:
        a, b = ctx.saved_tensors
        parts = [Product.apply(*pair, ctx.precision) for pair in ((da, b), (a, db)) if pair[0] is not None and pair[1] is not None]
        return sum(parts[1:], parts[0])
