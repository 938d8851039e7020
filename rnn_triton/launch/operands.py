"""What kernels are called with: which tensors there are, and how they lie in memory: fit for accesses of 16 bytes, with rows
of whole vectors where CTAs exchange them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..interpret import interpreter
from ..kernels.exchange import LINE
from ..plan.problem import Lanes, Problem, is_wide
from .launcher import POINTERS, Launcher

# The pointer parameters of the kernel, in order; an absent tensor is never read.
TENSORS = ("x", "w_in", "w_rec", "bias0", "bias1", "first", "u", "saved", "out", "last", "sync", "report", "seed")

_LINE = int(LINE.value)

# Polls before a group gives up.  A poll takes at least the 0.3 us of an access to L2, so this is more than a second:
# far beyond any step, and far below a watchdog's patience.  Linked lanes wait up to 16 times as long for each other.
SPIN_LIMIT = 1 << 22
# Triton's interpreter runs one program after another: a plan that is forced on it waits in vain, and slowly.
INTERPRETED_LIMIT = 1 << 10


@dataclass(frozen=True)
class Engine:
    """A kernel with TENSORS, as a problem, plan and lanes have it"""

    launch: Launcher
    groups: int
    ctas: int  # of a group
    x_unit: int  # elements in which the strides of x are counted
    u_unit: int
    waits: bool = True  # its CTAs wait for each other
    more: tuple[int, ...] = ()  # scalars behind those of kernels/cta_group.py


def described(problem: Problem, w_ih_home: str, lanes: Lanes) -> tuple[tuple[bool, ...], Callable[[str], str]]:
    """Of the launch with every optional tensor of its pass: which of TENSORS are there, and the type of a parameter"""
    forward = problem.direction == "forward"
    absent = ["last"] if not forward else ["saved"]
    if not forward or (w_ih_home == "gemm" and not lanes.linked):  # linked lanes have their biases in the kernel
        absent += ["bias0", "bias1"]
    if not lanes.linked and (not forward or w_ih_home == "gemm"):
        absent.append("w_in")
    given = forward and w_ih_home != "gemm" and not (lanes.linked and is_wide(problem.I, problem.H, problem.dtype))
    absent.append("u" if given else "x")
    if not lanes.dropout:
        absent.append("seed")
    # absent tensors are stood for by out
    pointers = {f"{name}_ptr": "*i32" for name in (*absent, "out", "last", "sync")} | {"report_ptr": "*i64"}
    if "seed" not in absent:
        pointers["seed_ptr"] = "*i64"
    if forward and "u" not in absent:
        pointers["u_ptr"] = "*fp32"
    of = POINTERS[problem.dtype]
    present = tuple(name not in absent for name in TENSORS)
    return present, lambda name: pointers.get(name, of) if name.endswith("_ptr") else "i32"


def poll_limit() -> int:
    """Polls before a group gives up, of a launch of now"""
    return min(SPIN_LIMIT, INTERPRETED_LIMIT) if interpreter.active() else SPIN_LIMIT


def words(like: Tensor, row: int, shape: tuple[int, ...], sync_words: int, filled: bool) -> tuple[Tensor, Tensor]:
    """The int32 words of [*shape, row] elements of `like`, and behind them, on lines of their own, the synchronisation words:
    one allocation and, where they are `filled` with 0xFF bytes, one fill, so that they are together in a CUDA graph, too"""
    of_row = row * like.element_size() // 4
    n = math.prod(shape) * of_row
    start = -(-n // _LINE) * _LINE
    buffer = torch.empty(start + sync_words, dtype=torch.int32, device=like.device)
    if filled:
        buffer.fill_(-1)
    return buffer[:n].view(*shape, of_row), buffer[start:]


def rows(t: Tensor, missing: int, below: int = 0) -> Tensor:
    """t[.., H], whole, with `missing` zeros behind every row, and then `below` rows of zeros below"""
    return whole(pad(t, (0, missing, 0, below)) if missing else t)


def units(found: Tensor, dtype: torch.dtype, H: int) -> Tensor:
    """`words` -> [.., H], contiguous"""
    t = found.view(dtype)
    if t.shape[-1] != H:
        t = t[..., :H].clone(memory_format=torch.contiguous_format)
    # detach: torch marks t as a view of the words, and autograd would then refuse in-place changes to it
    return t.detach()


def whole(t: Tensor) -> Tensor:
    """t, contiguous and at an address that vectors of 16 bytes divide; copied where it is not."""
    t = t.contiguous()
    return t.clone() if t.data_ptr() % 16 else t


def empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape)  # cheaper on the host than torch.empty with its keywords


def strided(t: Tensor, unit: int) -> tuple[Tensor, int, int]:
    """t[T,B,N] and the strides of T and B as kernels take them: in vectors of `unit` elements where rows are whole
    vectors, else in elements.  t is copied where its address or, rows being whole vectors, its strides are not."""
    T, B, N = t.shape
    first, second, inner = t.stride()
    if T == 1:
        first = 0  # the stride of a dimension of one is arbitrary and never used
    if B == 1:
        second = 0
    if N % unit:
        unit = 1
    fits = not (first % unit or second % unit or t.data_ptr() % 16)
    if fits and (inner == 1 or N == 1):
        return t, first // unit, second // unit
    return t.clone(memory_format=torch.contiguous_format), B * N // unit, N // unit


def strided_models(t: Tensor, unit: int) -> tuple[Tensor, int, int, int]:
    """`strided` of t[M,T,B,N], with the stride of M last: 0 where the models share one, which is all that is then copied."""
    one, first, second = strided(t[0], unit)
    apart = 0 if t.shape[0] == 1 else t.stride(0)
    unit = 1 if t.shape[3] % unit else unit
    if one.data_ptr() == t.data_ptr() and apart % unit == 0:
        return t, first, second, apart // unit
    if apart == 0:
        return one, first, second, 0
    t = t.clone(memory_format=torch.contiguous_format)
    return t, t.stride(1) // unit, t.stride(2) // unit, t.stride(0) // unit


def shared(t: Tensor | None) -> Tensor | None:
    """What the models of t[M, ..] share, without M; t where each has its own"""
    return t[0] if t is not None and (t.stride(0) == 0 or t.shape[0] == 1) else t
