"""Dropout by a mask that is computed where it is needed (kernels/dropout.py), of whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..interpret import interpreter
from ..kernels.dropout import drop as _kernel
from ..launch.launcher import TRITON_DTYPES, compiled_ahead, current, has_kernels
from ..launch.operands import whole
from ..plan.hardware import Device
from ..plan.problem import DTYPES, SIZES, row_units

_BLOCK = 128  # vectors of 16 bytes a program


def count(p: float) -> int:
    """`dropped` of 65536: 0 <= p <= 1 to the nearest multiple of 2^-16, but 0 and 1 only where they are meant"""
    return {0.0: 0, 1.0: 65536}.get(p, min(max(round(p * 65536), 1), 65535))


def new_seed(device: torch.device) -> Tensor:
    """int64 [1], of torch's generator for the device: nothing waits, and a CUDA graph draws another at each replay"""
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)


def drop(y: Tensor, seed: Tensor, layer: int, dropped: int) -> Tensor:
    """y[T,B,H] with what is dropped on its way from this layer to the next set to zero and the rest scaled, in y's dtype."""
    if not has_kernels(y):
        return _drop_without_kernels(y, seed, layer, dropped)
    T, B, H = y.shape
    row = row_units(H, DTYPES[y.dtype])
    y = whole(pad(y, (0, row - H)) if row != H else y)
    out = torch.empty_like(y)
    vectors = y.numel() * y.element_size() // 16
    with current(y.device) if y.is_cuda else interpreter.accurate():
        _kernel[(-(-vectors // _BLOCK),)](
            y.view(torch.int32), out.view(torch.int32), seed, T, B, layer, dropped,
            WORDS=row * y.element_size() // 4, BLOCK=_BLOCK, DTYPE=TRITON_DTYPES[DTYPES[y.dtype]],
        )  # fmt: skip
    return out[..., :H]


def _drop_without_kernels(y: Tensor, seed: Tensor, layer: int, dropped: int) -> Tensor:
    """The same on CPU tensors, which programs see that were exported where there are kernels; other masks"""
    generator = torch.Generator().manual_seed(int(seed))
    for _ in range(layer + 1):
        bits = torch.randint(65536, y.shape, generator=generator)
    return drop_by_mask(y, bits >= dropped, dropped)


def mask(shape: Sequence[int], dtype: torch.dtype, seed: Tensor, layer: int, dropped: int) -> Tensor:
    """Returns what `drop` keeps of such a y, as a mask in memory."""
    with torch.no_grad():
        return drop(torch.ones(shape, dtype=dtype, device=seed.device), seed, layer, dropped) != 0


def drop_by_mask(y: Tensor, mask: Tensor, dropped: int) -> Tensor:
    """Returns `drop` of y by ordinary operations: differentiable to any order, under every transform."""
    return torch.where(mask, y * (65536 / max(65536 - dropped, 1)), 0.0)


def compile_ahead(dtype: str, device: Device) -> Any:
    """The kernel of whole tensors for a device that need not be here, for rows of 256 values"""
    constants = dict(WORDS=64 * SIZES[dtype], BLOCK=_BLOCK, DTYPE=TRITON_DTYPES[dtype])
    signature = {"x_ptr": "*i32", "out_ptr": "*i32", "seed_ptr": "*i64"}
    return compiled_ahead(_kernel, constants, lambda n: signature.get(n, "i32"), {}, device.capability)
