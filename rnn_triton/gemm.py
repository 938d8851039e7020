"""The matrix products around the recurrence, in the op's own precision whatever torch's settings are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from . import hardware, interpreter
from .kernels.matmul import matmul_kernel

BLOCKS_M, BLOCKS_N = (32, 64, 128), (32, 64)  # sides of an output tile
BLOCK_K = 32
MIN_SPLIT_K = 512  # below, a program's part is too short to pay for its partial result


@dataclass(frozen=True)
class Tiling:
    """How products are divided: `splits` programs an output tile, each of `split_k` elements of K."""

    block_m: int
    block_n: int
    splits: int
    split_k: int


def tiling(M: int, N: int, K: int, sms: int, products: int = 1) -> Tiling:
    """Tiles as large as the matrix, K split until two programs per SM have work. Pure."""
    block_m = next((block for block in BLOCKS_M if M <= block), BLOCKS_M[-1])
    block_n = next((block for block in BLOCKS_N if N <= block), BLOCKS_N[-1])
    tiles = products * triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    splits = max(1, min(2 * sms // max(tiles, 1), K // MIN_SPLIT_K))
    split_k = triton.cdiv(max(triton.cdiv(K, splits), 1), BLOCK_K) * BLOCK_K
    return Tiling(block_m, block_n, max(1, triton.cdiv(K, split_k)), split_k)


def _options(block_m: int, precision: str | None) -> dict[str, int | None]:
    """Launch options that compile without spills, within 99 KB of shared memory (tests/test_gemm.py)."""
    # Left alone, ptxas spills a few of the tensor-core kernel's registers to squeeze one more program onto an
    # SM; given 255 in the FMA kernel, it hoists loads until it runs out.
    registers = None if precision == "ieee" else 255
    return {"num_warps": 8 if block_m == 128 else 4, "num_stages": 3, "maxnreg": registers}


def matmul(a: torch.Tensor, b: torch.Tensor, precision: str | None) -> torch.Tensor:
    """a[M, K] @ b[K, N] of any strides and one dtype, accumulated in fp32 (fp64 in fp64), in that dtype.

    a[P, M, K] and b[P, K, N] are P products, one launch: an expanded P is not copied.
    precision, for fp32: "tf32", "tf32x3" or "ieee"; None for other dtypes. By torch.mm or torch.bmm where torch's
    current setting serves (its fp32 serves tf32x3), else by the Triton kernel; no setting is changed. Bitwise the
    same from run to run.
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
    return triton_matmul(a, b, precision)


def wide(a: torch.Tensor, b: torch.Tensor, precision: str | None) -> torch.Tensor:
    """a[.., M, K] @ b[.., K, N] as `matmul`, but in the dtype it was accumulated in: fp32, fp64 for fp64."""
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
    """Does torch.mm of such matrices accumulate in fp32? In fp16 a setting makes cuBLAS accumulate in fp16."""
    return not (a.is_cuda and a.dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation)


def project(
    x: torch.Tensor,
    w_ih: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    precision: str | None,
) -> torch.Tensor:
    """u[T,B,H] = x[T,B,I] w_ih[H,I]^T + b_ih + b_hh, contiguous, in the dtype it was accumulated in: fp32, fp64 for fp64.

    16-bit products are not rounded to 16 bits. x of any strides, copied where its T*B rows have no common one;
    precision as in `matmul`.
    """
    T, B, I = x.shape
    u = wide(x.reshape(T * B, I), w_ih.t(), precision)
    biases = [b.to(u.dtype) for b in (b_ih, b_hh) if b is not None]
    if biases:
        u += sum(biases[1:], biases[0])  # the biases first: one pass over u
    return u.view(T, B, -1)


def triton_matmul(a: torch.Tensor, b: torch.Tensor, precision: str | None) -> torch.Tensor:
    """fp32 a[M, K] @ b[K, N], or P of them, by the kernel, on CUDA tensors (in the interpreter: on CPU tensors)."""
    *several, M, K = a.shape
    N = b.shape[-1]
    P = several[0] if several else 1
    strides = (*a.stride(), *b.stride()) if several else (0, *a.stride(), 0, *b.stride())
    plan = tiling(M, N, K, hardware.of(a.device).sms, P)
    parts = a.new_empty((plan.splits, *several, M, N))
    reach = max(_reach(a, plan.block_m, BLOCK_K), _reach(b, BLOCK_K, plan.block_n), plan.block_m * N)
    grid = (P * triton.cdiv(M, plan.block_m) * triton.cdiv(N, plan.block_n), plan.splits)
    with torch.cuda.device_of(a), interpreter.accurate():
        matmul_kernel[grid](
            a, b, parts, M, N, K, *strides, plan.split_k,
            PRECISION=precision, BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_K=BLOCK_K,
            OFFSETS=tl.int32 if reach < 2**31 else tl.int64, **_options(plan.block_m, precision),
        )  # fmt: skip
    if plan.splits == 1:
        return parts[0]
    return parts.sum(0)  # adds in a fixed order


def _reach(matrix: torch.Tensor, rows: int, columns: int) -> int:
    """How far, in elements, the last element of a tile of this size lies from its first."""
    return (rows - 1) * abs(matrix.stride(-2)) + (columns - 1) * abs(matrix.stride(-1))


def compile_ahead(block_m: int, block_n: int, precision: str, capability: int, *, layout: str = "nn") -> Any:
    """The kernel compiled for sm_<capability>, without a GPU. layout: "nn" row-major, "tn" a transposed."""
    pointers = {"a_ptr": "*fp32", "b_ptr": "*fp32", "out_ptr": "*fp32"}
    constants: dict[str, Any] = {"PRECISION": precision, "OFFSETS": tl.int32}
    constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": BLOCK_K}
    constants |= {
        "stride_a_m" if layout == "tn" else "stride_a_k": 1,
        "stride_b_n": 1,
    }  # as a launch specialises them
    names = matmul_kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    source = triton.compiler.ASTSource(
        fn=matmul_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in [*pointers, "SPLIT_K"]},
    )
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=_options(block_m, precision)
    )
