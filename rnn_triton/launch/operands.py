"""Names the operands of kernels, and brings tensors into the form that kernels read and write by 16 bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import cells
from ..cells.cell import Cell
from ..interpret import interpreter
from ..kernels.exchange import LINE, NAN
from ..plan.problem import Bundle, Problem, is_wide
from .launcher import POINTERS, Launcher

States = Sequence[Tensor | None]  # those of a cell, in its order, or their gradients
NOTHING: States = (None,)  # of a cell of one state
Weight = Any  # a tensor or, if there are several recurrences, a list with a tensor for each


class Operands(NamedTuple):
    """The tensors of a launch, in the order of the pointer parameters of kernels/one_cta.py and kernels/cta_group.py, which give
    their shapes.  None stands for a tensor that is absent, which the kernel never reads.  The last ones, of sequences, are no parameters
    of a kernel where they are absent (launcher.py)."""

    x: Tensor | None = None
    w_in: Tensor | None = None
    w_rec: Tensor | None = None
    bias0: Tensor | None = None
    bias1: Tensor | None = None
    first: Tensor | None = None
    u: Tensor | None = None
    saved: Tensor | None = None
    out: Tensor | None = None
    last: Tensor | None = None
    sync: Tensor | None = None
    report: Tensor | None = None
    seed: Tensor | None = None
    carried: Tensor | None = None
    kept: Tensor | None = None
    vectors: Tensor | None = None
    lengths: Tensor | None = None
    events: Tensor | None = None
    restart: Tensor | None = None
    restart_carried: Tensor | None = None


class Scalars(NamedTuple):
    """The integer parameters behind the pointers, in order.  Only kernels/one_cta.py has the last three, which are of ensembles."""

    T: int
    B: int
    reverse: int
    stride_x_t: int = 0
    stride_x_b: int = 0
    stride_u_t: int = 0
    stride_u_b: int = 0
    launch: int = 0
    limit: int = 0
    dropped: int = 0
    bottom: int = 0
    per_model: int = 0
    stride_x_m: int = 0
    stride_u_m: int = 0


OF_SEQUENCES = 4  # the last of Operands
NO_SEQUENCES = (None,) * OF_SEQUENCES

# They take all fields as one tuple, in order, and an eighth of the host time of a call of the class.
as_operands = functools.partial(tuple.__new__, Operands)
as_scalars = functools.partial(tuple.__new__, Scalars)

LINE_WORDS = int(LINE.value)

# Polls before a group gives up.  A poll takes at least the 0.3 us of an access to L2, so this is more than a second:
# far beyond any step, and far below a watchdog's patience.  Linked recurrences wait up to 16 times as long for each other.
SPIN_LIMIT = 1 << 22
# Triton's interpreter runs one program after another, so CTAs of a plan that is forced on it wait in vain, and slowly.
INTERPRETED_LIMIT = 1 << 10


@dataclass(frozen=True)
class Engine:
    """A kernel prepared for a problem, a plan and the recurrences of a launch, and the form in which it takes its operands."""

    launch: Launcher
    scalars: int  # number of Scalars that are its parameters
    groups: int  # of CTAs that compute a recurrence
    ctas: int  # in a group
    row: int  # elements in a row of first, saved, out and last: H values and zeros
    recurrent: int  # rows and columns of W_rec
    input: int  # elements in a row of x, and in a row of W_in unless recurrences are linked
    projected: int  # elements in a row of u, if a GEMM projects x
    x_unit: int  # elements in which the strides of x are counted
    u_unit: int
    words: bool = True  # out and last are words, with synchronisation words behind out
    waits: bool = True  # CTAs wait for each other
    gathers: bool = False  # states are read from global memory: before a step that begins anew there is one, too, if of zeros
    transposes: bool = False  # W_rec is W_hh in both passes, which the kernel transposes


def described(problem: Problem, w_ih_home: str, bundle: Bundle, words: bool, gathers: bool) -> tuple[tuple[bool, ...], Callable[[str], str]]:
    """Returns which of Operands a launch with every optional tensor of its pass has, and a function that gives the type of a
    parameter by its name.  `words` and `gathers` are those of Engine."""
    forward, linked = problem.direction == "forward", bundle.linked
    routes = cells.named(problem.cell).routes(forward, problem.recompute)
    gemm = w_ih_home == "gemm"
    has_x = forward and not gemm and not (linked and is_wide(problem.I, problem.H, problem.dtype))
    biases = forward and not (gemm and gemm_adds_biases(problem, bundle, words))
    restarts = forward and ("reset" if gathers else "restart") in problem.sequences
    present = dict.fromkeys(Operands._fields, True) | dict(
        x=has_x, u=not has_x, w_in=linked or (forward and not gemm), bias0=biases, bias1=biases, saved=routes.reads_y,
        last=forward, sync=words, report=words, seed=bundle.dropout, carried=routes.carried > 0, kept=routes.kept > 0,
        vectors=routes.vectors > 0, lengths=problem.sequences != () if not gathers else "lengths" in problem.sequences, events=problem.sequences != (),
        restart=restarts, restart_carried=restarts and routes.carried > 0,
    )  # fmt: skip
    element, wide = POINTERS[problem.dtype], "*fp64" if problem.dtype == "fp64" else "*fp32"
    state = "*i32" if words else element
    types = dict.fromkeys(Operands._fields, element) | dict(
        u=wide if forward else element, out=state, last=state, sync="*i32", report="*i64", seed="*i64", carried=wide, vectors=wide,
        lengths="*i32", events="*i64", restart_carried=wide,
    )  # fmt: skip
    types |= {name: state for name in types if not present[name]}  # the address of out stands for them
    return tuple(present.values()), lambda name: types[name.removesuffix("_ptr")] if name.endswith("_ptr") else "i32"


def no_parameters(fields: tuple[str, ...], present: tuple[bool, ...]) -> dict[str, None]:
    """Returns the names of the parameters for operands of sequences that are absent, with what stands for them.  `fields`: of all."""
    names = zip(fields[-OF_SEQUENCES:], present[-OF_SEQUENCES:], strict=True)
    return {f"{name}_ptr": None for name, there in names if not there}


def gemm_adds_biases(problem: Problem, bundle: Bundle, words: bool) -> bool:
    """True if a GEMM that projects x adds the biases, too, and not the kernel: where they all go the same way, into one pre-activation."""
    return words and not bundle.linked and len(cells.named(problem.cell).gates) == 1


def poll_limit() -> int:
    """Returns the number of polls after which a group of the next launch gives up."""
    return min(SPIN_LIMIT, INTERPRETED_LIMIT) if interpreter.active() else SPIN_LIMIT


def words(like: Tensor, row: int, shape: tuple[int, ...], sync_words: int, fill: int | None) -> tuple[Tensor, Tensor]:
    """Returns the int32 words of [*shape, row] elements of the dtype of `like`, and behind them, on lines of their own, the
    synchronisation words.  They are one allocation and at most one fill, in a CUDA graph, too: all words are `fill`, unless that is
    None."""
    row_words = row * like.element_size() // 4
    n = math.prod(shape) * row_words
    start = -(-n // LINE_WORDS) * LINE_WORDS
    buffer = torch.empty(start + sync_words, dtype=torch.int32, device=like.device)
    if fill is not None:
        buffer.fill_(fill)
    return buffer[:n].view(*shape, row_words), buffer[start:]


class Carried:
    """What a cell carries from step to step, elementwise and in fp32 (fp64): in the backward pass behind it the gradients of its vectors.

    Kernels read what comes before the first step, and leave in its place what comes behind the last one."""

    def __init__(self, cell: Cell, forward: bool, H: int, row: int) -> None:
        """`row`: elements in a row of memory, H values and zeros."""
        self.cell, self.forward, self.H, self.row = cell, forward, H, row
        self.tiles = cell.routes(forward).carried

    def before(self, states: States, like: Tensor, *shape: int) -> Tensor | None:
        """Returns the tiles before the first step, [.., C,B,row] where shape = (.., B), or None if there are none."""
        if not self.tiles:
            return None
        *outer, B = shape
        tiles = like.new_zeros((*outer, self.tiles, B, self.row), dtype=torch.promote_types(like.dtype, torch.float32))
        for n, name in enumerate(self.cell.carried):
            state = states[self.cell.states.index(name)]
            if state is not None:
                self._tile(tiles, n).copy_(state)
        return tiles

    def states(self, tiles: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        """Returns the last states but the first of them, [.., B,H], in memory of their own."""
        carried = self.cell.carried
        return [] if tiles is None else [self._tile(tiles, carried.index(s)).to(dtype, copy=True) for s in self.cell.states[1:]]

    def gradients(self, tiles: Tensor | None, cut: Tensor | None = None) -> States:
        """Returns [.., B,H] of each first state, or None of one that the cell does not carry, and of each vector.

        `cut`, bool [..,B], where it is given: rows of which the first state is not read, since step 0 begins anew."""
        if tiles is None:
            return NOTHING
        carried = self.cell.carried
        of_states = [self._tile(tiles, carried.index(s)) if s in carried else None for s in self.cell.states]
        if cut is not None:
            of_states = [None if t is None else t.masked_fill(cut.unsqueeze(-1), 0.0) for t in of_states]
        return (*of_states, *[self._tile(tiles, n) for n in range(len(carried), self.tiles)])

    def _tile(self, tiles: Tensor, n: int) -> Tensor:
        tile = tiles.select(-3, n)
        return tile if self.row == self.H else tile[..., : self.H]


def missing(columns: int, rows: int = 0) -> tuple[int, ...]:
    """Returns what `padded` takes to add this many zeros behind every row, and this many rows of zeros below."""
    return (0, columns, 0, rows) if rows else (0, columns) if columns else ()


def padded(t: Tensor, missing: tuple[int, ...]) -> Tensor:
    """Returns t with the zeros of `missing` behind its rows, and below them."""
    return pad(t, missing) if missing else t


def unpadded(t: Tensor, missing: tuple[int, ...]) -> Tensor:
    """Returns t without the zeros that `padded` put behind every row; a copy, if there are any."""
    return t[..., : -missing[1]].clone(memory_format=torch.contiguous_format) if missing else t


def without_sentinel(t: Tensor) -> Tensor:
    """Returns contiguous t with another NaN in place of the word that says that nothing has been written yet (kernels/exchange.py)."""
    words = t.view(torch.int32)
    return words.masked_fill(words == -1, NAN.value).view(t.dtype)


def units(words: Tensor, dtype: torch.dtype, missing: tuple[int, ...]) -> Tensor:
    """Returns the states [.., H] that lie in these words, contiguous."""
    # detach: torch marks the result as a view of the words, and autograd would then refuse in-place changes to it
    return unpadded(words.view(dtype), missing).detach()


def whole(t: Tensor, missing: tuple[int, ...] = ()) -> Tensor:
    """Returns t, `padded`, contiguous, and at an address that 16 bytes divide; copied where it is not."""
    t = (pad(t, missing) if missing else t).contiguous()
    return t.clone() if t.data_ptr() % 16 else t


def empty(like: Tensor, *shape: int) -> Tensor:
    """Returns a tensor that a kernel will fill, of the dtype and on the device of `like`."""
    return like.new_empty(*shape)  # cheaper on the host than a tuple, and than torch.empty with its keywords


def strided(t: Tensor, unit: int) -> tuple[Tensor, int, int, int]:
    """Returns t[T,B,N], the strides of T and B as kernels take them, and 0 for the stride of M.

    Strides are counted in vectors of `unit` elements if N is a multiple of `unit`, else in elements.  t is copied if its address or
    its strides are no whole vectors.  The last result for an ensemble, t[M,T,B,N], is the stride of M: 0 where the models share a
    tensor, of which then only one is copied."""
    if t.dim() == 4:
        return _strided_models(t, unit)
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
        return t, first // unit, second // unit, 0
    return t.clone(memory_format=torch.contiguous_format), B * N // unit, N // unit, 0


def _strided_models(t: Tensor, unit: int) -> tuple[Tensor, int, int, int]:
    one, first, second, _ = strided(t[0], unit)
    apart = 0 if t.shape[0] == 1 else t.stride(0)
    unit = 1 if t.shape[3] % unit else unit
    if one.data_ptr() == t.data_ptr() and apart % unit == 0:
        return t, first, second, apart // unit
    if apart == 0:
        return one, first, second, 0
    t = t.clone(memory_format=torch.contiguous_format)
    return t, t.stride(1) // unit, t.stride(2) // unit, t.stride(0) // unit


def per_model(*tensors: Tensor | None) -> tuple[tuple[Any, ...], int]:
    """Returns w_in, w_rec, bias0, bias1 and first of an ensemble, without the dimension M where the models share a tensor, and a
    number whose bit i says that the i-th one has M."""
    parts = tuple([t[0] if t is not None and (t.stride(0) == 0 or t.shape[0] == 1) else t for t in tensors])
    return parts, sum(1 << i for i, (t, part) in enumerate(zip(tensors, parts, strict=True)) if part is t is not None)
