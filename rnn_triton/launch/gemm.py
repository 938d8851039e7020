"""Computes the matrix products around the recurrence, in the precision of the call whatever torch is set to."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ..kernels.matmul import matmul_kernel
from ..plan import hardware
from .launcher import Launcher, compiled_ahead

BLOCK_K = 32
TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (32, 32))  # rows and columns of an output tile
MIN_SPLIT_K = 128  # below, a program's part is too short to pay for its partial result

# Estimates for an H200, in cycles of 0.5 ns, which only serve the choice among tilings.
_FMA = {"tf32": 1024, "tf32x3": 341, "ieee": 128}  # multiply-adds a cycle of an SM, at best
_SM_BYTES = 40  # bytes from L2 a cycle and SM
_START = 1500  # cycles until a program's pipeline is full
_REDUCTION = 5000  # cycles that another launch takes
_L2_BYTES = 2800  # bytes a cycle of the whole chip


@dataclass(frozen=True)
class Tiling:
    """How products are divided: among `splits` programs for each output tile, each of which takes `split_k` elements of K."""

    block_m: int
    block_n: int
    splits: int
    split_k: int


@functools.lru_cache(maxsize=4096)
def tiling(M: int, N: int, K: int, sms: int, products: int = 1, precision: str = "tf32") -> Tiling:
    """Returns the tiling of least estimated time.

    A large tile reads less, but many programs are needed to fill the device.  dx has rows enough for them; a weight gradient has
    only K to divide, at the cost of partial results."""

    def candidates() -> Iterator[Tiling]:
        for block_m, block_n in TILES[precision != "tf32" :]:  # the others are bound by arithmetic, whatever they read
            tiles = products * triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
            most = min(K // MIN_SPLIT_K, 65535)
            for programs in (sms, 2 * sms, 3 * sms, 4 * sms):
                splits = max(1, min(programs // max(tiles, 1), most))
                split_k = triton.cdiv(max(triton.cdiv(K, splits), 1), BLOCK_K) * BLOCK_K
                yield Tiling(block_m, block_n, max(1, triton.cdiv(K, split_k)), split_k)

    def cycles(t: Tiling) -> float:
        tiles = products * triton.cdiv(M, t.block_m) * triton.cdiv(N, t.block_n)
        block = max(t.block_m * t.block_n * BLOCK_K / _FMA[precision], 4 * (t.block_m + t.block_n) * BLOCK_K / _SM_BYTES)
        program = _START + t.split_k // BLOCK_K * block
        adding = 0.0
        if t.splits > 1:
            adding = _REDUCTION + 2 * 4 * t.splits * products * M * N / _L2_BYTES
        return triton.cdiv(tiles * t.splits, sms) * program + adding

    return min(candidates(), key=cycles)


def _options(block_m: int, block_n: int, precision: str) -> dict[str, int | None]:
    """Returns launch options that compile without spills, within 99 KB of shared memory (tests/test_gemm.py)."""
    # Left alone, ptxas spills a few registers to squeeze one more program onto an SM; given 255 in the FMA kernel of
    # small tiles, it hoists loads until it runs out.
    elements = block_m * block_n
    registers: int | None = 255
    if precision == "ieee" and elements <= 4096:
        registers = None if elements == 4096 else 128
    return {"num_warps": 8 if elements > 4096 else 4, "num_stages": 3, "maxnreg": registers}


def matmul(a: torch.Tensor, b: torch.Tensor, precision: str | None) -> torch.Tensor:
    """Returns a[M, K] @ b[K, N], of any strides and one dtype, accumulated in fp32 (fp64 in fp64) and rounded to that dtype.

    a[P, M, K] and b[P, K, N] are P products in one launch; an expanded P is not copied. `precision` is "tf32", "tf32x3" or "ieee"
    for fp32, None for other dtypes. torch.mm or torch.bmm computes the product if torch's current setting fits (its fp32 also fits
    tf32x3), else the Triton kernel does; no setting is changed. Every run gives the same bits.
    """
    if torch.is_autocast_enabled(a.device.type):  # it would round fp32 operands to 16 bits
        with torch.autocast(a.device.type, enabled=False):
            return matmul(a, b, precision)
    # the setting that cuBLAS calls consult; the older allow_tf32 raises when both kinds of switches were used
    torch_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    if a.dtype != torch.float32 or not a.is_cuda or torch_tf32 == (precision == "tf32"):
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        if _accumulates_wide(a):
            return multiply(a, b)
        return multiply(a.float(), b.float()).to(a.dtype)
    assert precision is not None
    return triton_matmul(a, b, precision)


def wide(a: torch.Tensor, b: torch.Tensor, precision: str | None) -> torch.Tensor:
    """Returns the product that `matmul` returns, but in the dtype in which it was accumulated: fp32, or fp64 for fp64."""
    if torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return wide(a, b, precision)
    if a.element_size() > 2:
        return matmul(a, b, precision)
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    if a.is_cuda and _accumulates_wide(a):
        return multiply(a, b, out_dtype=torch.float32)
    return multiply(a.float(), b.float())


def _accumulates_wide(a: torch.Tensor) -> bool:
    """True if torch.mm of matrices like `a` accumulates in fp32; in fp16 a setting makes cuBLAS accumulate in fp16."""
    return not (a.is_cuda and a.dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation)


def project(
    x: torch.Tensor, w_ih: torch.Tensor, b_ih: torch.Tensor | None, b_hh: torch.Tensor | None, precision: str | None
) -> torch.Tensor:
    """Returns u[T,B,H] = x[T,B,I] w_ih[H,I]^T + b_ih + b_hh, contiguous, in fp32 (in fp64 if x is in fp64).

    x may have any strides; it is copied if its T*B rows do not lie at one stride. Tensors of an ensemble have M in front.
    `precision` is that of `matmul`.
    """
    u = wide(x.flatten(-3, -2), w_ih.mT, precision)
    biases = [b.to(u.dtype).unsqueeze(-2) for b in (b_ih, b_hh) if b is not None]
    if biases:
        u += sum(biases[1:], biases[0])  # the biases first: one pass over u
    return u.unflatten(-2, x.shape[-3:-1])


def triton_matmul(a: torch.Tensor, b: torch.Tensor, precision: str) -> torch.Tensor:
    """Returns a[M, K] @ b[K, N], or P such products, in fp32 by the Triton kernel (on CPU tensors by the interpreter)."""
    *several, M, K = a.shape
    N = b.shape[-1]
    P = several[0] if several else 1
    plan = tiling(M, N, K, hardware.of(a.device).sms, P, precision)
    parts = a.new_empty((plan.splits, *several, M, N))
    constants, scalars = arguments(a, b, plan, precision)
    grid = (P * triton.cdiv(M, plan.block_m) * triton.cdiv(N, plan.block_n), plan.splits, 1)
    _launcher(a.device, tuple(constants.items()))((a, b, parts), parts, scalars, grid)
    if plan.splits == 1:
        return parts[0]
    return parts.sum(0)  # adds in a fixed order


@functools.cache
def _launcher(_device: torch.device, constants: tuple[tuple[str, Any], ...]) -> Launcher:
    """Returns a launcher for these constants. Each device has its own, because a kernel that is kept is loaded on one device."""
    constexprs = dict(constants)
    options = _options(constexprs["BLOCK_M"], constexprs["BLOCK_N"], constexprs["PRECISION"])
    return Launcher(matmul_kernel, None, lambda present: constexprs, options)


def arguments(
    a: torch.Tensor, b: torch.Tensor, plan: Tiling, precision: str
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Returns the kernel's constexprs and its scalars, both in its order."""
    (*_, M, K), N = a.shape, b.shape[-1]
    a_inner, b_inner = _inner(a, "m", "k"), _inner(b, "k", "n")
    a_unit, b_unit = _unit(a, a_inner == "k"), _unit(b, b_inner == "n")
    m_unit = a_unit if a_inner == "m" else 1
    n_unit = 1 if N % 4 else 4
    k_unit = max(a_unit if a_inner == "k" else 1, b_unit if b_inner == "k" else 1)
    reach = max(_reach(a, plan.block_m, BLOCK_K), _reach(b, BLOCK_K, plan.block_n), plan.block_m * N)
    constants = {
        "PRECISION": precision, "OFFSETS": tl.int32 if reach < 2**31 else tl.int64,
        "A_INNER": a_inner, "A_UNIT": a_unit, "B_INNER": b_inner, "B_UNIT": b_unit,
        "M_UNIT": m_unit, "N_UNIT": n_unit, "K_UNIT": k_unit,
        "BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "BLOCK_K": BLOCK_K,
    }  # fmt: skip
    strides = [s // unit for t, unit in ((a, a_unit), (b, b_unit)) for s in (*(0,) * (3 - t.dim()), *t.stride())]
    return constants, (M // m_unit, N // n_unit, K // k_unit, *strides, plan.split_k // BLOCK_K)


def _inner(matrix: torch.Tensor, rows: str, columns: str) -> str:
    """Returns the name of the dimension of stride 1, or "" if there is none."""
    return columns if matrix.stride(-1) == 1 else rows if matrix.stride(-2) == 1 else ""


def _unit(matrix: torch.Tensor, last: bool) -> int:
    """Returns 4 if rows (columns, unless the last dimension is the inner one) are whole aligned vectors, else 1."""
    inner, outer = (-1, -2) if last else (-2, -1)
    apart = matrix.stride(0) if matrix.dim() == 3 else 0
    whole = matrix.stride(inner) == 1 and not (matrix.shape[inner] % 4 or matrix.stride(outer) % 4 or apart % 4)
    return 4 if whole and matrix.data_ptr() % 16 == 0 else 1


def _reach(matrix: torch.Tensor, rows: int, columns: int) -> int:
    """Returns the distance, in elements, from the first element of a tile of this size to its last."""
    return (rows - 1) * abs(matrix.stride(-2)) + (columns - 1) * abs(matrix.stride(-1))


def compile_ahead(a: torch.Tensor, b: torch.Tensor, plan: Tiling, precision: str, capability: int) -> Any:
    """Returns the kernel for these operands, on any device but "meta", compiled for sm_<capability> without a GPU."""
    constants, options = arguments(a, b, plan, precision)[0], _options(plan.block_m, plan.block_n, precision)
    return compiled_ahead(matmul_kernel, constants, lambda name: "*fp32" if name.endswith("_ptr") else "i32", options, capability)
