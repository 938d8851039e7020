"""Bundles compile-time facts: a kernel takes a few objects of these classes as constexpr parameters, and hands them to its helpers.

Attributes are numbers, strings, dtypes, jit functions and facts.  An object is made of plain values.  Where kernels are compiled
its attributes are tl.constexpr, which Triton up to 3.8 asks for; its interpreter has plain values for constants.  Facts in facts want
a name before they are asked:

    U: tl.constexpr = SHAPE.u
    ... U.aligned
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import triton
import triton.language as tl

_INTERPRETED = bool(triton.knobs.runtime.interpret)  # decorators read it when a kernel is defined, and not again


def _known(value: Any) -> Any:
    return value if _INTERPRETED or isinstance(value, Facts) else tl.constexpr(value)


class Facts(dict[str, str]):
    """What all of them have in common.  Frozen; equal where all attributes are.  A dict of their texts, for Triton's hooks, which
    get the constants of a kernel as JSON."""

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]  # it is a dataclass
        object.__setattr__(self, "plain", {name: getattr(self, name) for name in names})
        self.update({name: str(value) for name, value in self.plain.items()})
        for name, value in self.plain.items():
            object.__setattr__(self, name, _known(value))

    plain: dict[str, Any]  # the attributes as they were given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and type(self) is type(other) and self.plain == other.plain

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.plain.items())))

    @property
    def cache_key(self) -> str:
        """What Triton knows a compiled kernel by; that of a jit function changes with its source."""
        return f"{type(self).__name__}({', '.join(f'{name}={_key(value)}' for name, value in self.plain.items())})"

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        """Short: it goes into the names of device functions, by which Triton tells them apart, and into the keys of kernels in memory."""
        return f"{type(self).__name__}_{hashlib.sha256(self.cache_key.encode()).hexdigest()[:16]}"


def _key(value: Any) -> str:
    return str(value.cache_key if hasattr(value, "cache_key") else value)


def kernel_name(regime: str) -> Callable[[Any], str]:
    """What a profiler calls a kernel of a regime, from Triton's description of it: "one_cta_forward_elman_tanh_H128_bf16".
    """

    def name(specialized: Any) -> str:
        tile, shape, cell = (specialized.constants[fact].plain for fact in ("TILE", "SHAPE", "CELL"))
        pass_ = "forward" if cell["forward"] else "backward"
        return f"{regime}_{pass_}_{cell['name']}_H{shape['H']}_{tile['dtype']}"

    return name


# ---- of every kernel ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Routes(Facts):
    """Which tiles a cell has in one pass, and which products make which of them, as rnn_triton/cells/cell.py says"""

    parts: int
    rec_gates: tuple[int, ...]
    rec_states: tuple[int, ...]
    rec_parts: tuple[int, ...]
    in_parts: tuple[int, ...]
    carried: int
    published: int
    exchanged: int
    kept: int
    reads_y: bool
    vectors: int
    kept_states: tuple[int, ...] = ()

    @property
    def into(self) -> Any:
        """Of each block of W_in, and of u: the part that it goes to"""
        return _known(self.plain["in_parts"] or (0,))

    @property
    def single(self) -> Any:
        """True for a cell of one pre-activation that publishes one tile and has nothing else"""
        of = self.plain
        return _known(of["parts"] == of["published"] == 1 and of["carried"] == of["kept"] == of["vectors"] == 0)

    @property
    def rec_into(self) -> Any:
        """The same of W_rec in kernels/cta_group.py, where what the exchanged tiles make of one part is one product"""
        return _known(self.plain["rec_parts"][:: self.plain["exchanged"]])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Cell(Facts):
    """A cell, in one of the passes"""

    name: str
    step: Any  # kernels/cells.py
    accuracy: str  # kernels/activations.py
    forward: bool  # else backward
    routes: Routes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Has(Facts):
    """Which optional tensors are there"""

    bias0: bool = False
    bias1: bool = False
    first: bool = False
    u: bool = False
    saved: bool = False
    last: bool = False
    kept: bool = False
    lengths: bool = False
    reset: bool = False
    events: bool = False
    restart: bool = False

    @classmethod
    def of(cls, names: tuple[str, ...], present: tuple[bool, ...]) -> "Has":
        """Of the tensors called so"""
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # it is a dataclass
        return cls(**{name: there for name, there in zip(names, present, strict=True) if name in known})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Share(Facts):
    """What shares a launch"""

    models: bool = False  # several: without them their addresses would only take registers
    lanes: int = 1
    linked: bool = False  # lanes are layers, else directions
    dropout: bool = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stored(Facts):
    """How the rows of a tensor [.., B, length] lie in memory"""

    length: int
    aligned: bool  # they divide into aligned vectors, of 2R elements or, x, of 16 bytes; a stride is counted in them
    apart: int = 0  # elements from a row to the next; 0 where the call says it
    wide: bool = False  # fp32 whatever the dtype is
    written: bool = False  # other CTAs may still be writing it (exchange.py)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tile(Facts):
    """What is on chip, and how"""

    dtype: Any
    precision: str  # of tl.dot: "tf32", "tf32x3", "ieee"
    block_b: int  # batch rows

    @property
    def acc(self) -> Any:
        """dtype of accumulators"""
        return _known(tl.float64 if self.plain["dtype"] == tl.float64 else tl.float32)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WarpTile(Tile):
    """Of the kernels that keep W_hh on chip"""

    form: str  # fragments.py
    warps: int
    chains: int  # accumulators that a product takes turns in
    w_in_home: str  # "registers", "shared", "none"

    @property
    def e(self) -> Any:
        """Elements of a 32-bit word, in the mma forms"""
        return _known(2 if self.plain["form"] == "mma16" else 1)


# ---- of kernels/one_cta.py ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OneCtaTile(WarpTile):
    h_pad: int
    chunk: int  # inputs a tile of the projection
    x_depth: int  # of how many steps a thread holds x that is not projected yet, or u of this and the next; 0: of this one alone

    @property
    def r(self) -> Any:
        """Row blocks a warp"""
        return _known(self.plain["h_pad"] // (16 * self.plain["warps"]))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OneCtaShape(Facts):
    I: int
    H: int
    row: int  # with lanes whole 16-byte vectors of H units and zeros, else H
    k_in: int  # columns of W_in
    w_rows: int  # of W_rec in memory: row or, with zeros, h_pad
    w_aligned: bool  # rows of W_in are whole aligned 16-byte vectors
    w_rec_aligned: bool  # rows of W_rec divide into aligned vectors of 2R elements
    x: Stored
    u: Stored
    s: Stored  # everything that is contiguous [.., row]
    out: Stored  # [.., published, row]
    kept: Stored  # [.., kept, row]
    carried: Stored  # [.., row] of one lane alone


# ---- of kernels/cta_group.py --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GroupTile(WarpTile):
    ctas: int
    units: int  # hidden units of a CTA
    shared_tiles: int  # K tiles of W_rec in shared memory
    protocol: str  # "sentinel", "counter"
    x_loads: str  # of the next x: "before" the gather, "behind" it
    look_every: int  # tiles and steps from one look at the error word to the next, a power of 2
    probe_delay: int  # cycles from publishing a tile to the next gather of it, at least


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GroupShape(Facts):
    I: int  # 0: the first of linked lanes has no x
    H: int
    row: int  # whole 16-byte vectors of H units and zeros
    words: int  # of a row
    state_words: int  # of all rows that are exchanged of a batch row
    row_words: int  # from a batch row of out to the next
    apart: int  # elements from a batch row of first, saved and last to the next
    wide_u: bool  # u is fp32 whatever the dtype is


# ---- of kernels/per_step.py ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepTile(Tile):
    block_h: int
    block_k: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepShape(Facts):
    H: int
    row: int  # whole 16-byte vectors of H units and zeros
    u_unit: int  # elements in which the strides of u are counted


# ---- of kernels/elementwise.py ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Elements(Facts):
    dtype: Any  # of storage
    block: int  # elements of a program


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ElementsShape(Facts):
    H: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Results(Facts):
    """Which of its results the kernel writes"""

    published: bool = False
    after: bool = False
    kept: bool = False
    counts: bool = False
