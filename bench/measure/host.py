"""Own host cost of a call: Python and dispatcher, with kernel launches and GEMMs replaced by empty tensors.

Triton's launcher and cuBLAS are left out on purpose: nobody here can make them cheaper. CPU tensors will do, for nothing is computed. """

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

import rnn_triton
from rnn_triton.interpret import interpreter
from rnn_triton.launch import gemm, launcher

from ..instruments.timing import host_us

TARGETS_US = {"fwd": 10.0, "train": 30.0}  # no-grad forward; forward and backward
# Tiny: the torch kernels that are left, the sum for db and the rounding of weight gradients, must cost nothing but their calls.
T, B, H = 2, 1, 16


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Everything but Triton's launcher and the GEMMs, whose results are torch.empty."""
    def matmul(a: Any, b: Any, precision: Any) -> torch.Tensor:
        return a.new_empty((a.shape[0], b.shape[1]))

    def wide(a: Any, b: Any, precision: Any) -> torch.Tensor:
        return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.float32)

    with (
        mock.patch.object(launcher.Launcher, "__call__", lambda *_: None),
        mock.patch.object(gemm, "matmul", matmul),
        mock.patch.object(gemm, "wide", wide),
        mock.patch.object(interpreter, "active", lambda: True),  # CPU tensors take the kernels' way
    ):
        yield


class Empty(torch.autograd.Function):
    """Takes and returns what rnn_triton.rnn does and computes nothing: what PyTorch alone costs on this host."""

    @staticmethod
    def forward(ctx: Any, x: Any, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.inputs = (x, *others)
        return x.new_empty((x.shape[0], x.shape[1], H)), x.new_empty((x.shape[1], H))

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return tuple(torch.empty_like(t) for t in ctx.inputs)


def measure() -> dict[str, tuple[float, float, float]]:
    """(p20, median, p80) microseconds per call of rnn_triton.rnn: "fwd" under no_grad, "train" with backward.

    "empty fwd" and "empty train" are the same for the Function that does nothing: the part no code can save. "lstm fwd" and "lstm train":
    of a module rnn_triton.LSTM. """
    dtype = torch.bfloat16
    x, *others = [torch.empty(shape, dtype=dtype) for shape in ((T, B, H), (H, H), (H, H), (H,), (H,), (B, H))]
    module = rnn_triton.LSTM(H, H, dtype=dtype)
    dy = torch.empty(T, B, H, dtype=dtype)
    calls: dict[str, tuple[Callable[..., Any], list[torch.Tensor]]] = {
        "": (rnn_triton.rnn, others), "empty ": (Empty.apply, others), "lstm ": (lambda x, *_: module(x), list(module.parameters())),
    }  # fmt: skip

    def train(call: Callable[..., Any], leaves: list[torch.Tensor]) -> None:
        y, _ = call(*leaves)
        torch.autograd.grad(y, leaves, dy)

    found = {}
    with nothing_runs():
        for prefix, (call, tensors) in calls.items():
            with torch.no_grad():
                found[f"{prefix}fwd"] = host_us(lambda: call(x, *tensors))
            leaves = [x.clone().requires_grad_(), *(t if t.requires_grad else t.clone().requires_grad_() for t in tensors)]
            found[f"{prefix}train"] = host_us(lambda: train(call, leaves))
    return found
